"""What a run keeps of itself so that it can go on, and going on from it. The files themselves: ffvit.training.checkpoint."""

import math
import time

import torch
from accelerate.utils import gather_object

from ffvit.models import weights
from ffvit.system.errors import TrainingError
from ffvit.training import checkpoint, processes, progress
from ffvit.training.manifest import find_state
from ffvit.training.start import circumstances
from ffvit.training.step import Run


def save_state(run: Run, meter: progress.Meter) -> None:
    """Write a checkpoint of the run as it stands. All processes call this; the first one writes.

    Raises TrainingError rather than keep weights or losses that are no numbers, or where the disk is full.
    """
    accelerator, run.saved_at = run.accelerator, time.monotonic()
    sums, cpu_seconds = accelerator.gather(run.loss_sum[None]).tolist(), processes.total(meter.epoch_cpu_s, accelerator)
    for rank, value in enumerate(sums):
        require_finite(value, f"training loss of process {rank}", run)
    note_bad_images(run, "train", run.bad_images["train"])
    if not accelerator.is_main_process:
        return
    states = {"model": run.raw_model.state_dict()}
    if run.ema:
        states["ema"] = run.ema.module.state_dict()
    # A loss can be finite and its gradient not; such weights would spoil every epoch after them.
    largest = torch.stack([v.abs().max() for v in states["model"].values() if v.is_floating_point()]).max()
    require_finite(float(largest), "the largest weight", run)
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


def go_on_from_checkpoint(run: Run) -> None:
    """Put the newest whole checkpoint back in place, if there is one. Every process reads it for itself."""
    accelerator, folder = run.accelerator, run.run_dir / "checkpoints"
    path, damaged = find_state(folder)
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
    now = circumstances(run.config, accelerator.device)
    run.facts = saved["facts"] | {"resumed": [*saved["facts"].get("resumed", []), {"update": run.update, **now}]}
    accelerator.print(
        f"going on after update {run.done} of epoch {run.epoch + 1}/{run.config.total_epochs}, from {path}"
    )


def require_finite(value: float, what: str, run: Run) -> None:
    """Raise TrainingError for a loss or weight that is no number."""
    if not math.isfinite(value):
        folder = run.run_dir / "checkpoints"
        kept = f"the last good checkpoint is kept in {folder}" if folder.exists() else "there is no checkpoint to keep"
        raise TrainingError(
            f"{what} is {value} in epoch {run.epoch + 1}, by update {run.update}; {kept}. Try a lower base_lr, more "
            "warmup_epochs, clip_grad=1, or mixed_precision='no'"
        )


def note_bad_images(run: Run, split: str, found: list) -> None:
    """Join what the processes met, each image once."""
    everywhere = gather_object([tuple(b) for b in found])
    run.bad_images[split] = sorted({tuple(b) for b in [*run.bad_images[split], *everywhere]})
