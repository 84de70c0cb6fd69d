"""A run from its start, or its last checkpoint, to its end.

The run's folder receives config.json at the start; history.json and the best weights after every epoch; checkpoints/,
one at least every epoch; and training.json last of all: where it is missing, the run is not finished, and the same
command goes on from the newest whole checkpoint.

Nothing random is stored. Random numbers are drawn anew for every part of every update from (seed, update, part,
process), and the images from (seed, epoch, position), so an update is the same whether the run came to it in one go or
after an interruption.
"""

import contextlib
import json
import signal
import time
from functools import partial
from operator import itemgetter
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ffvit.data.images import BadImage
from ffvit.models import weights
from ffvit.settings import run_folder
from ffvit.settings.config import Config
from ffvit.settings.headline import HEADLINES
from ffvit.system.errors import Stopped, TrainingError
from ffvit.system.files import write_atomically
from ffvit.system.lifetime import STOPPED_BY, Stop
from ffvit.tasks.task import Together
from ffvit.training import checkpoint, estimate, memory, optim, processes, progress
from ffvit.training.resume import go_on_from_checkpoint, note_bad_images, require_finite, save_checkpoint, writing
from ffvit.training.run import Run
from ffvit.training.start import set_up
from ffvit.training.step import make_update

WORTH_AN_ESTIMATE_S = 600


def train(config: Config, run_dir: Path, dry_run: bool = False) -> dict | None:
    """Run, or go on with, one training run. Raises InputError, TrainingError, and Stopped after a signal.

    dry_run: make a few updates, say what the whole run will cost, and leave no trace. Returns that: the facts of a record,
    and "epoch_s", seconds of an epoch with its validation.
    """
    accelerator = processes.create_accelerator(config, run_dir)
    if dry_run:
        return estimate.dry_run(config, run_dir, accelerator)
    held = run_folder.trained(run_dir) if accelerator.is_main_process else contextlib.nullcontext()
    try:
        with held, Stop() as stop:
            _train(config, run_dir, accelerator, stop)
    except MemoryError as error:
        raise TrainingError(str(error)) from None
    except RuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        raise TrainingError(memory.advice(config)) from None
    return None


def _train(config: Config, run_dir: Path, accelerator: Accelerator, stop: Stop) -> None:
    say = accelerator.print
    if run_folder.is_finished(config, run_dir):
        return say(f"{run_dir} is finished; delete it to train again")
    with stop.at_once(lambda name: _stopped(name, "before the first update")):
        run = set_up(config, run_dir, accelerator)
        go_on_from_checkpoint(run)
    if accelerator.is_main_process:
        with writing(run, "config.json"):
            run_folder.sweep(run_dir)
            write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=1))
        run.folder_mark = run_folder.mark_of(run_dir)
    if config.tracker:
        accelerator.init_trackers(config.experiment, config={k: str(v) for k, v in config.to_dict().items()})
    facts = run.facts["model"]
    say(
        f"{config.label} ({config.model}): {facts['parameters']:,} parameters, {len(run.batches):,} updates of "
        f"{config.batch_size} images per epoch, {config.total_epochs} epochs, {config.num_processes} x "
        f"{accelerator.device.type}"
        + (f", {run.accumulation_steps} parts an update" if run.accumulation_steps > 1 else "")
    )
    while run.epoch < config.total_epochs:
        meter = _train_epoch(run, stop)
        _save_when_due(run, meter)
        # What a checkpoint of this moment would hold is not lost by leaving at any other, or checkpoint_seconds at most.
        with stop.at_once(lambda name: _stopped(name, f"after update {run.update}")):
            score_epoch(run, meter)
    finish(run)


def _train_epoch(run: Run, stop: Stop) -> progress.Meter:
    """Make the updates of an epoch that are still to be made. Returns what they took."""
    config, accelerator, per_epoch = run.config, run.accelerator, len(run.batches)
    meter = progress.Meter(spent_s=run.seconds, spent_cpu_s=run.cpu_seconds)
    batches = run.batches.epoch(run.epoch, run.done)
    run.model.train()
    settled_at = 0.0
    while run.done < per_epoch:
        lr = make_update(run, batches, meter)
        stop.update_s = meter.update_s
        if meter.line_is_due():
            loss = run.loss_sum.item() / run.done
            require_finite(loss, f"training loss of process {accelerator.process_index}", run)
            memory_mb = progress.peak_memory_mb(accelerator.device)
            accelerator.print(progress.step_line(config, run.epoch, run.done, per_epoch, loss, meter, memory_mb))
            accelerator.log({"train/loss": loss, "train/lr": lr}, step=run.update)
        if meter.updates == estimate.SETTLE:
            settled_at = estimate.now(run)
        if meter.updates == estimate.SETTLE + estimate.MEASURE and run.first_epoch_here == run.epoch:
            estimate.say_estimate(
                run, (estimate.now(run) - settled_at) / estimate.MEASURE, only_above_s=WORTH_AN_ESTIMATE_S
            )
        if number := processes.highest(stop.asked, run.cpu_group):
            stop.acknowledge()
            save_checkpoint(run, meter)
            raise _stopped(signal.Signals(number).name, f"after update {run.update}")
        if config.checkpoint_every and run.done % config.checkpoint_every == 0 and run.done < per_epoch:
            save_checkpoint(run, meter)
    return meter


def _save_when_due(run: Run, meter: progress.Meter) -> None:
    """The checkpoint after an epoch. The first process decides for all: their clocks differ."""
    early = time.monotonic() - run.saved_at < run.config.checkpoint_seconds
    if not processes.highest(int(early and run.accelerator.is_main_process), run.cpu_group):
        save_checkpoint(run, meter)


def _stopped(name: str, when: str) -> Stopped:
    return Stopped(f"{STOPPED_BY} {name} {when}; the same command goes on from the last checkpoint")


def score_epoch(run: Run, meter: progress.Meter) -> None:
    """Score the validation images and close the epoch in the history."""
    config, accelerator = run.config, run.accelerator
    training_s = meter.epoch_s
    lr = optim.set_rate(config, run.scheduler, run.epoch, run.update - 1)  # the last of the epoch, also after a resume
    together = Together(partial(accelerator.reduce, reduction="sum"), gather_object)
    processes.share_buffers(run.raw_model)  # each process scores a part, all by the weights that will be saved
    # The raw model, not DDP's: not all processes have as many batches to score.
    score = run.task.evaluate(run.raw_model, run.validation, run.num_classes, accelerator.device, together)
    for name, value in score.metrics.items():
        require_finite(value, f"validation {name}", run)
    note_bad_images(run, "validation", score.bad_images)
    train_loss = accelerator.reduce(run.loss_sum, "mean").item() / len(run.batches)
    run.history.append(
        {
            "epoch": run.epoch + 1,
            "train_loss": train_loss,
            **{f"validation_{name}": value for name, value in score.metrics.items()},
            "lr": lr,
            "images_per_s": len(run.batches) * config.batch_size / training_s,
            "data_wait_percent": meter.wait_percent,
            "seconds": meter.epoch_s,
            "cpu_seconds": processes.total(meter.epoch_cpu_s, accelerator),
        }
    )
    run.done, run.seconds, run.cpu_seconds = 0, 0.0, 0.0
    run.loss_sum.zero_()
    now = run.history[-1]
    accelerator.print(progress.epoch_line(config, run.history, progress.peak_memory_mb(accelerator.device)))
    accelerator.log({f"epoch/{k}": v for k, v in now.items() if k != "epoch"}, step=run.update)
    if accelerator.is_main_process:
        with writing(run, f"what epoch {run.epoch} came to"):
            if now is max(run.history, key=itemgetter(f"validation_{HEADLINES[config.task].name}")):
                _save_weights(run, "best.safetensors", run.raw_model)
            write_atomically(run.run_dir / "history.json", json.dumps(run.history, indent=1))


def finish(run: Run) -> None:
    accelerator = run.accelerator
    if accelerator.is_main_process:
        with writing(run, "the end of the run"):
            _save_weights(run, "last.safetensors", run.raw_model)
            if run.ema:
                _save_weights(run, "ema.safetensors", run.ema.module)
            facts = run.facts | {
                "history": run.history,
                "bad_images": {
                    split: [BadImage(*image)._asdict() for image in found] for split, found in run.bad_images.items()
                },
                "weights_sha256": run.weights_sha256,
                "duration_s": sum(e["seconds"] for e in run.history),
                "peak_memory_mb": progress.peak_memory_mb(accelerator.device),
            }
            write_atomically(run.run_dir / "training.json", json.dumps(facts, indent=1))
            with contextlib.suppress(OSError):  # the run has ended, with checkpoints or without
                checkpoint.remove_all(run.run_dir / "checkpoints")
    accelerator.wait_for_everyone()
    accelerator.print(f"finished. Score the test split and write the record: python -m ffvit score {run.run_dir}")
    accelerator.end_training()


def _save_weights(run: Run, name: str, model: nn.Module) -> None:
    run.weights_sha256[name] = weights.save_weights(run.run_dir / name, model)
