"""A run from its start, or its last checkpoint, to its end.

The run's folder receives config.json at the start; history.json and the best weights after every epoch; checkpoints/,
one at least every epoch; and training.json last of all: where it is missing, the run is not finished, and the same
command goes on from the newest whole checkpoint.

Nothing random is stored. Random numbers are drawn anew for every part of every update from (seed, update, part,
process), and the images from (seed, epoch, position), so an update is the same whether the run came to it in one go or
after an interruption.
"""

import contextlib
import datetime
import json
import math
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import gather_object
from filelock import FileLock, Timeout
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from ffvit.data import augment
from ffvit.data.batches import TrainBatches, eval_loader
from ffvit.data.images import BadImage
from ffvit.data.splits import Splits, load_splits
from ffvit.models import build, cost, ff, weights
from ffvit.settings.config import Config, with_defaults
from ffvit.settings.same_run import code_of, differing
from ffvit.system import provenance
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.files import write_atomically
from ffvit.system.lifetime import Stop
from ffvit.training import checkpoint, memory, optim, processes, progress
from ffvit.training.evaluate import evaluate
from ffvit.training.step import Run, make_update, set_rate

STOPPED_BY = "stopped by"  # how the line begins that says so
SETTLE, MEASURE = 3, 7  # updates before an estimate: memory is allotted and kernels chosen; timed
WORTH_AN_ESTIMATE_S = 600


def train(config: Config, run_dir: Path, dry_run: bool = False) -> None:
    """Run, or go on with, one training run. Raises InputError, TrainingError, and Stopped after a signal.

    dry_run: make a few updates, say what the whole run will cost, and leave no trace.
    """
    accelerator = create_accelerator(config, run_dir)
    if dry_run:
        return _dry_run(config, run_dir, accelerator)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock", timeout=0)  # freed by the system when the process ends, however it ends
    try:
        with lock if accelerator.is_main_process else contextlib.nullcontext(), Stop() as stop:
            _train(config, run_dir, accelerator, stop)
    except Timeout:
        raise InputError(
            f"{run_dir} is being trained by another process: wait for it, or choose another folder"
        ) from None
    except MemoryError as error:
        raise TrainingError(str(error)) from None
    except RuntimeError as error:
        if not memory.is_exhausted(error):
            raise
        raise TrainingError(memory.advice(config)) from None


def _train(config: Config, run_dir: Path, accelerator: Accelerator, stop: Stop) -> None:
    say = accelerator.print
    if _already_finished(config, run_dir):
        return say(f"{run_dir} is finished; delete it to train again")
    with stop.at_once(lambda name: _stopped(name, "before the first update")):
        run = set_up(config, run_dir, accelerator)
        _go_on_from_checkpoint(run)
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


def set_up(config: Config, run_dir: Path, accelerator: Accelerator, keep: bool = True) -> Run:
    """Every part of a run at its start. keep: whether anything will be written."""
    device = accelerator.device
    build.check(config)
    augment.check(config)
    random_seed(config.seed)
    splits = load_splits(config)
    num_classes = len(splits.classes)
    raw_model = build.create(config, num_classes)
    if device.type == "cpu" and config.mixed_precision == "bf16":
        build.use_plain_attention(raw_model)
    if keep:
        _check_disk(run_dir, config, raw_model)
        if accelerator.is_main_process:
            write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=1))
    facts = _facts(config, splits, raw_model, device)
    parts = memory.accumulation_steps(config, num_classes, accelerator)
    batches = TrainBatches(splits, config, parts, accelerator.process_index, device)
    scored_alike = replace(config, accumulation_steps=parts)
    validation = eval_loader(splits.validation, scored_alike, accelerator.process_index, device)
    if config.grad_checkpointing:
        raw_model.set_grad_checkpointing(True)
    ema = ModelEmaV3(raw_model, decay=config.ema_decay) if config.ema_decay else None
    if ema:
        ema.to(device)
    # Scheduler and loaders stay outside prepare(): accelerate would step the one once per process and shard the others
    # a second time.
    # Scores come from the raw model, as they do when the weights are evaluated later.
    compiled = torch.compile(raw_model) if config.compile else raw_model
    model, optimizer = accelerator.prepare(compiled, optim.create_optimizer(config, raw_model))
    mix, criterion = optim.create_loss(config, num_classes)
    return Run(
        config=config,
        run_dir=run_dir,
        accelerator=accelerator,
        num_classes=num_classes,
        batches=batches,
        validation=validation,
        accumulation_steps=parts,
        raw_model=raw_model,
        model=model,
        cpu_group=processes.cpu_group(),
        ema=ema,
        optimizer=optimizer,
        scheduler=optim.create_scheduler(config, optimizer, len(batches)),
        mix=mix,
        criterion=criterion,
        facts=facts,
        loss_sum=torch.zeros((), device=device),
    )


def _go_on_from_checkpoint(run: Run) -> None:
    """Put the newest whole checkpoint back in place, if there is one. Every process reads it for itself."""
    accelerator, folder = run.accelerator, run.run_dir / "checkpoints"
    path, damaged = checkpoint.find_state(folder)
    for line in damaged:
        accelerator.print(f"damaged, and passed over: {line}")
    if not path:
        return
    states, optimizer, saved = checkpoint.load_state(path)
    weights.load_strictly(run.raw_model, states["model"], path)
    if run.ema:
        weights.load_strictly(run.ema.module, states["ema"], path)
    run.optimizer.optimizer.load_state_dict(optimizer)
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(saved["scaler"])
    run.history, run.done, run.seconds = saved["history"], saved["done"], saved["seconds"]
    run.cpu_seconds = saved.get("cpu_seconds", 0.0) if accelerator.is_main_process else 0.0
    run.bad_images, run.weights_sha256 = saved["bad_images"], saved["weights_sha256"]
    sums = saved["loss_sums"]
    run.first_epoch_here = run.epoch
    same_processes = len(sums) == accelerator.num_processes
    run.loss_sum.fill_(sums[accelerator.process_index] if same_processes else sum(sums) / len(sums))
    now = _circumstances(run.config, accelerator.device)
    run.facts = saved["facts"] | {"resumed": [*saved["facts"].get("resumed", []), {"update": run.update, **now}]}
    accelerator.print(
        f"going on after update {run.done} of epoch {run.epoch + 1}/{run.config.total_epochs}, from {path}"
    )


def _train_epoch(run: Run, stop: Stop) -> progress.Meter:
    """Make the updates of an epoch that are still to be made. Returns what they took."""
    config, accelerator, per_epoch = run.config, run.accelerator, len(run.batches)
    meter = progress.Meter(spent_s=run.seconds, spent_cpu_s=run.cpu_seconds)
    batches = run.batches.epoch(run.epoch, run.done)
    run.model.train()
    settled_at = 0.0
    while run.done < per_epoch:
        lr = set_rate(run)
        make_update(run, batches, meter)
        stop.update_s = meter.update_s
        if meter.line_is_due():
            loss = run.loss_sum.item() / run.done
            _require_finite(loss, f"training loss of process {accelerator.process_index}", run)
            memory_mb = progress.peak_memory_mb(accelerator.device)
            accelerator.print(progress.step_line(config, run.epoch, run.done, per_epoch, loss, meter, memory_mb))
            accelerator.log({"train/loss": loss, "train/lr": lr}, step=run.update)
        if meter.updates == SETTLE:
            settled_at = now(run)
        if meter.updates == SETTLE + MEASURE and run.first_epoch_here == run.epoch:
            _say_estimate(run, (now(run) - settled_at) / MEASURE, only_above_s=WORTH_AN_ESTIMATE_S)
        if number := processes.highest(stop.asked, run.cpu_group):
            stop.acknowledge()
            save_state(run, meter)
            raise _stopped(signal.Signals(number).name, f"after update {run.update}")
        if config.checkpoint_every and run.done % config.checkpoint_every == 0 and run.done < per_epoch:
            save_state(run, meter)
    return meter


def _save_when_due(run: Run, meter: progress.Meter) -> None:
    """The checkpoint after an epoch. The first process decides for all: their clocks differ."""
    early = time.monotonic() - run.saved_at < run.config.checkpoint_seconds
    if not processes.highest(int(early and run.accelerator.is_main_process), run.cpu_group):
        save_state(run, meter)


def _stopped(name: str, when: str) -> Stopped:
    return Stopped(f"{STOPPED_BY} {name} {when}; the same command goes on from the last checkpoint")


def score_epoch(run: Run, meter: progress.Meter) -> None:
    """Score the validation images and close the epoch in the history."""
    config, accelerator = run.config, run.accelerator
    training_s = meter.epoch_s
    lr = optim.set_rate(config, run.scheduler, run.epoch, run.update - 1)  # the last of the epoch, also after a resume
    add_up = partial(accelerator.reduce, reduction="sum")
    processes.share_buffers(run.raw_model)  # each process scores a part, all by the weights that will be saved
    # The raw model, not DDP's: not all processes have as many batches to score.
    score = evaluate(run.raw_model, run.validation, run.num_classes, accelerator.device, add_up)
    _require_finite(score.loss, "validation loss", run)
    _note_bad_images(run, "validation", score.bad_images)
    train_loss = accelerator.reduce(run.loss_sum, "mean").item() / len(run.batches)
    run.history.append(
        {
            "epoch": run.epoch + 1,
            "train_loss": train_loss,
            "validation_loss": score.loss,
            "validation_top1_percent": score.top1_percent,
            "validation_top5_percent": score.top5_percent,
            "lr": lr,
            "images_per_s": len(run.batches) * config.batch_size / training_s,
            "data_wait_percent": meter.wait_percent,
            "seconds": meter.epoch_s,
            "cpu_seconds": _of_all_processes(run, meter.epoch_cpu_s),
        }
    )
    run.done, run.seconds, run.cpu_seconds = 0, 0.0, 0.0
    run.loss_sum.zero_()
    now = run.history[-1]
    accelerator.print(progress.epoch_line(config, run.history, progress.peak_memory_mb(accelerator.device)))
    accelerator.log({f"epoch/{k}": v for k, v in now.items() if k != "epoch"}, step=run.update)
    if now is max(run.history, key=lambda e: e["validation_top1_percent"]):
        _save_weights(run, "best.safetensors", run.raw_model)
    if accelerator.is_main_process:
        write_atomically(run.run_dir / "history.json", json.dumps(run.history, indent=1))


def finish(run: Run) -> None:
    accelerator = run.accelerator
    _save_weights(run, "last.safetensors", run.raw_model)
    if run.ema:
        _save_weights(run, "ema.safetensors", run.ema.module)
    if accelerator.is_main_process:
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
        shutil.rmtree(run.run_dir / "checkpoints", ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.print(f"finished. Score the test split and write the record: python -m ffvit score {run.run_dir}")
    accelerator.end_training()


def save_state(run: Run, meter: progress.Meter) -> None:
    """Write a checkpoint of the run as it stands. All processes call this; the first one writes.

    Raises TrainingError rather than keep weights or losses that are no numbers, or where the disk is full.
    """
    accelerator, run.saved_at = run.accelerator, time.monotonic()
    sums, cpu_seconds = accelerator.gather(run.loss_sum[None]).tolist(), _of_all_processes(run, meter.epoch_cpu_s)
    for rank, value in enumerate(sums):
        _require_finite(value, f"training loss of process {rank}", run)
    _note_bad_images(run, "train", run.bad_images["train"])
    if not accelerator.is_main_process:
        return
    states = {"model": run.raw_model.state_dict()}
    if run.ema:
        states["ema"] = run.ema.module.state_dict()
    # A loss can be finite and its gradient not; such weights would spoil every epoch after them.
    largest = torch.stack([v.abs().max() for v in states["model"].values() if v.is_floating_point()]).max()
    _require_finite(float(largest), "the largest weight", run)
    saved = {
        "history": run.history,
        "done": run.done,
        "seconds": meter.epoch_s,
        "cpu_seconds": cpu_seconds,
        "loss_sums": sums,
        "bad_images": run.bad_images,
        "weights_sha256": run.weights_sha256,
        "facts": run.facts,
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }
    try:
        checkpoint.save_state(
            run.run_dir / "checkpoints", run.update, states, run.optimizer.optimizer.state_dict(), saved
        )
    except OSError as error:
        raise TrainingError(
            f"the checkpoint after update {run.update} cannot be written: {error}; the one before it is kept in "
            f"{run.run_dir / 'checkpoints'}. Make room, then start the same command again"
        ) from None


def _save_weights(run: Run, name: str, model: nn.Module) -> None:
    if run.accelerator.is_main_process:
        run.weights_sha256[name] = weights.save_weights(run.run_dir / name, model)


def _of_all_processes(run: Run, value: float) -> float:
    return run.accelerator.reduce(torch.tensor(value, device=run.accelerator.device), "sum").item()


def _note_bad_images(run: Run, split: str, found: list) -> None:
    """Join what the processes met, each image once."""
    everywhere = gather_object([tuple(b) for b in found])
    run.bad_images[split] = sorted({tuple(b) for b in [*run.bad_images[split], *everywhere]})


def create_accelerator(config: Config, run_dir: Path) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device='cuda', but PyTorch finds no CUDA GPU: set device='auto' or 'cpu', or check nvidia-smi"
        )
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device='mps', but PyTorch finds no Apple GPU: set device='auto' or 'cpu'")
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("mixed_precision='fp16' needs a CUDA GPU: set 'bf16' or 'no'")
    available = sorted(str(t) for t in get_available_trackers())
    if config.tracker and config.tracker not in available:
        cure = "install its package" if config.tracker in LOGGER_TYPE_TO_CLASS else "accelerate does not know it"
        raise InputError(f"tracker '{config.tracker}': {cure}; there are {available}")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.device == "cpu",
        log_with=config.tracker or None,
        project_dir=run_dir,
    )
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"{accelerator.num_processes} processes were started, num_processes={config.num_processes}: give accelerate "
            "launch and ffvit worker the same number"
        )
    return accelerator


def _already_finished(config: Config, run_dir: Path) -> bool:
    """Whether the folder holds this very run, finished. Raises InputError where it holds another one."""
    begun = (run_dir / "checkpoints").exists() or (run_dir / "training.json").exists()
    if begun and (run_dir / "config.json").exists():
        there, asked = with_defaults(json.loads((run_dir / "config.json").read_text())), config.to_dict()
        if differ := differing(there, asked):
            shown = ", ".join(f"{k} is {there.get(k)!r}, asked {asked.get(k)!r}" for k in differ[:3])
            raise InputError(
                f"{run_dir} holds a run with other settings ({shown}): choose another folder, or delete it"
            )
    return (run_dir / "training.json").exists()


def _check_disk(run_dir: Path, config: Config, model: nn.Module) -> None:
    needed, free = memory.disk_mb(config, cost.count_parameters(model)), shutil.disk_usage(run_dir).free / 1e6
    if free < needed:
        raise InputError(f"{run_dir}: checkpoints need {needed:,.0f} MB, {free:,.0f} MB are free")


def _facts(config: Config, splits: Splits, model: nn.Module, device: torch.device) -> dict:
    """What the record says of a run besides its numbers, as it was at the start."""
    local = Path(config.dataset).expanduser().is_dir()
    return {
        "run_id": config.run_id,
        "code": code_of(config.model),
        # A local folder's path is its owner's business; the fingerprint says which images they were.
        "config": config.to_dict() | ({"dataset": Path(config.dataset).resolve().name} if local else {}),
        "model": {
            "name": config.model,
            "parameters": cost.count_parameters(model),
            "macs": cost.count_macs(model, (config.in_chans, config.img_size, config.img_size)),
            **ff.cell(model),
        },
        "dataset": {
            "fingerprint": splits.fingerprint,
            "images": splits.sizes,
            "classes": len(splits.classes),
            "class_names": splits.classes,
        },
        **_circumstances(config, device),
    }


def _circumstances(config: Config, device: torch.device) -> dict:
    """When, where and with which code the run starts, or goes on."""
    return {
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device, config.num_processes),
        "versions": provenance.versions(),
        "git": provenance.git_state(),
    }


def _require_finite(value: float, what: str, run: Run) -> None:
    if not math.isfinite(value):
        folder = run.run_dir / "checkpoints"
        kept = f"the last good checkpoint is kept in {folder}" if folder.exists() else "there is no checkpoint to keep"
        raise TrainingError(
            f"{what} is {value} in epoch {run.epoch + 1}, by update {run.update}; {kept}. Try a lower base_lr, more "
            "warmup_epochs, clip_grad=1, or mixed_precision='no'"
        )


def _dry_run(config: Config, run_dir: Path, accelerator: Accelerator) -> None:
    run = set_up(config, run_dir, accelerator, keep=False)
    run.model.train()
    set_rate(run)
    batches, meter, settled_at = run.batches.epoch(0), progress.Meter(), now(run)
    for count in range(1, min(SETTLE + MEASURE, len(run.batches)) + 1):
        make_update(run, batches, meter)
        if count == SETTLE:
            settled_at = now(run)
    run.done = 0  # what was tried is still to be done
    timed = meter.updates - SETTLE if meter.updates > SETTLE else meter.updates
    _say_estimate(run, (now(run) - settled_at) / timed)
    accelerator.end_training()


def now(run: Run) -> float:
    run.loss_sum.item()  # waits for the work queued on a GPU
    return time.monotonic()


def _say_estimate(run: Run, update_s: float, only_above_s: float = 0) -> None:
    """From the updates just timed and two batches of validation. Only of runs that take longer than only_above_s."""
    config, accelerator = run.config, run.accelerator
    updates_left = config.total_epochs * len(run.batches) - run.update
    if not processes.highest(int(updates_left * update_s >= only_above_s), run.cpu_group):
        return
    began = time.monotonic()
    tried = list(islice(run.validation, 2))
    evaluate(run.raw_model, tried, run.num_classes, accelerator.device)
    score_s = (time.monotonic() - began) / len(tried) * len(run.validation)
    epochs_left = config.total_epochs - run.epoch
    disk_mb = memory.disk_mb(config, run.facts["model"]["parameters"])
    device = accelerator.device.type
    accelerator.print(progress.estimate_line(config, updates_left, epochs_left, update_s, score_s, disk_mb, device))
    run.model.train()
