"""What a run will cost, from some of its updates: told before it starts (a dry run), and early in a long one."""

import datetime
import time
from itertools import islice
from pathlib import Path

from accelerate import Accelerator

from ffvit.settings.config import Config
from ffvit.training import memory, processes, progress
from ffvit.training.run import Run
from ffvit.training.start import set_up
from ffvit.training.step import make_update

SETTLE, MEASURE = 3, 7  # updates before an estimate: memory is allotted and kernels chosen; timed


def dry_run(config: Config, run_dir: Path, accelerator: Accelerator) -> dict:
    """Make a few updates, say what the whole run will cost, and leave no trace.

    Returns the facts of a record, and "epoch_s", the seconds of an epoch with its validation.
    """
    run = set_up(config, run_dir, accelerator, keep=False)
    run.model.train()
    batches, meter, settled_at = run.batches.epoch(0), progress.Meter(), now(run)
    for count in range(1, min(SETTLE + MEASURE, len(run.batches)) + 1):
        make_update(run, batches, meter)
        if count == SETTLE:
            settled_at = now(run)
    run.done = 0  # what was tried is still to be done
    timed = meter.updates - SETTLE if meter.updates > SETTLE else meter.updates
    epoch_s = say_estimate(run, (now(run) - settled_at) / timed)
    accelerator.end_training()
    return run.facts | {"epoch_s": epoch_s}


def say_estimate(run: Run, update_s: float, only_above_s: float = 0) -> float | None:
    """From the seconds of an update and two batches of validation. Only of runs that take longer than only_above_s.

    Returns the seconds of an epoch.
    """
    config, accelerator = run.config, run.accelerator
    updates_left = config.total_epochs * len(run.batches) - run.update
    if not processes.highest(int(updates_left * update_s >= only_above_s), run.cpu_group):
        return None
    began = time.monotonic()
    tried = list(islice(run.validation, 2))
    run.task.evaluate(run.raw_model, tried, run.num_classes, accelerator.device)
    score_s = (time.monotonic() - began) / len(tried) * len(run.validation)
    epochs_left = config.total_epochs - run.epoch
    seconds = updates_left * update_s + epochs_left * score_s
    end = datetime.datetime.now() + datetime.timedelta(seconds=min(seconds, 1e11))  # dates end with the year 9999
    on_gpu = accelerator.device.type != "cpu"
    disk_mb = memory.disk_mb(config, run.facts["model"]["parameters"])
    accelerator.print(
        f"estimate: {updates_left:,} updates of {1000 * update_s:,.0f} ms and {epochs_left} validations of "
        f"{score_s:,.1f} s take {progress.duration(seconds)} on {config.num_processes} x {accelerator.device.type}, "
        f"{config.num_processes * seconds / 3600:,.2f} {'GPU' if on_gpu else 'process'}-hours, until "
        f"{end:%Y-%m-%d %H:%M}; checkpoints take up to {disk_mb:,.0f} MB"
    )
    run.model.train()
    return len(run.batches) * update_s + score_s


def now(run: Run) -> float:
    """Of the clock, in seconds, once all is done that was asked for."""
    run.loss_sum.item()  # waits for the work queued on a GPU
    return time.monotonic()
