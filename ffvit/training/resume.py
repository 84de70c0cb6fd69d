"""What a run keeps of itself so that it can go on, and going on from it. The files themselves: ffvit.training.checkpoint."""

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from accelerate.utils import gather_object
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ffvit.models import weights
from ffvit.settings import run_folder
from ffvit.settings.given import config_from_dict
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError, TrainingError
from ffvit.training import checkpoint, processes, progress
from ffvit.training.manifest import checkpoints, find_state
from ffvit.training.run import Run
from ffvit.training.start import circumstances


class _Saved(BaseModel):
    """What progress.json must hold: the types, and what no run can have."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    history: list[dict[str, float]]
    done: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    cpu_seconds: Annotated[float, Field(ge=0)] = 0.0
    loss_sums: Annotated[list[float], Field(min_length=1)]
    bad_images: dict[Literal["train", "validation"], list[Annotated[tuple[int, str, str], Field(strict=False)]]]
    weights_sha256: dict[str, str]
    facts: dict
    scaler: dict | None


def save_checkpoint(run: Run, meter: progress.Meter) -> None:
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
    with writing(run, f"the checkpoint after update {run.update}"):
        checkpoint.save_state(
            run.run_dir / "checkpoints", run.update, states, run.optimizer.optimizer.state_dict(), saved
        )


@contextlib.contextmanager
def writing(run: Run, what: str) -> Iterator[None]:
    """Around what is written into the run's folder. Raises TrainingError where that is gone, or cannot be written to."""
    require_folder(run)
    try:
        yield
    except OSError as error:
        require_folder(run)
        raise TrainingError(
            f"{what} cannot be written: {error}; {_kept(run)}. Make room, or see that the folder may be written to; then "
            "start the same command again"
        ) from None
    require_folder(run)


def require_folder(run: Run) -> None:
    """Raise TrainingError where the folder that the run began in is no longer at its place."""
    there = run_folder.mark_of(run.run_dir) == run.folder_mark and (run.run_dir / "config.json").exists()
    if run.folder_mark and not there:
        raise TrainingError(
            f"{run.run_dir} has been deleted, moved or replaced while the run was trained there, up to update {run.update}. "
            "Put it back to go on from its last checkpoint; or start the same command to begin anew"
        )


def go_on_from_checkpoint(run: Run) -> None:
    """Put the newest whole checkpoint back in place, if there is one. Every process reads it for itself."""
    accelerator, folder = run.accelerator, run.run_dir / "checkpoints"
    path, damaged = find_state(folder)
    for line in damaged:
        accelerator.print(f"damaged, and passed over: {line}")
    if not path:
        return
    states, optimizer, saved = checkpoint.load_state(path)
    _require_own(saved, path, run)
    weights.load_strictly(run.raw_model, states.get("model", {}), path)
    if run.ema:
        weights.load_strictly(run.ema.module, states.get("ema", {}), path)
    with weights.reading(path / checkpoint.OPTIMIZER, checkpoint.cure_of(path)):
        run.optimizer.optimizer.load_state_dict(optimizer)
    if accelerator.scaler:
        with weights.reading(path / checkpoint.PROGRESS, checkpoint.cure_of(path)):
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


def _require_own(saved: dict, path: Path, run: Run) -> None:
    """Raise InputError for the progress of another run, of other images, or of no run at all."""
    file, cure = path / checkpoint.PROGRESS, checkpoint.cure_of(path)
    try:
        _Saved(**saved)
        settings, images = saved["facts"]["config"], saved["facts"]["dataset"]["fingerprint"]
        settings = config_from_dict(settings | {"dataset": run.config.dataset}).to_dict()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {cure}") from None
    except (InputError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not what a run writes ({type(error).__name__}: {error}); {cure}") from None
    if differ := differing(settings, run.config.to_dict()):
        raise InputError(f"{file}: of a run with another {', '.join(differ[:3])}; {cure}")
    if images != run.facts["dataset"]["fingerprint"]:
        raise InputError(
            f"dataset '{run.config.dataset}': its images are not those that {run.run_dir} began with (fingerprint "
            f"{run.facts['dataset']['fingerprint']}, not {images}): put those back, or give another folder to train on these"
        )
    per_epoch, epochs = len(run.batches), len(saved["history"])
    numbers = [epoch.get("epoch") for epoch in saved["history"]]
    if numbers != [*range(1, epochs + 1)] or epochs * per_epoch + saved["done"] != int(path.name):
        raise InputError(f"{file}: {epochs} epochs and {saved['done']} updates are not update {path.name}; {cure}")


def require_finite(value: float, what: str, run: Run) -> None:
    """Raise TrainingError for a loss or weight that is no number."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what} is {value} in epoch {run.epoch + 1}, by update {run.update}; {_kept(run)}. Try a lower base_lr, more "
            "warmup_epochs, clip_grad=1, or mixed_precision='no'"
        )


def _kept(run: Run) -> str:
    folder = run.run_dir / "checkpoints"
    return f"the last good checkpoint is kept in {folder}" if checkpoints(folder) else "there is no checkpoint to keep"


def note_bad_images(run: Run, split: str, found: list) -> None:
    """Join what the processes met, each image once."""
    everywhere = gather_object([tuple(b) for b in found])
    run.bad_images[split] = sorted({tuple(b) for b in [*run.bad_images[split], *everywhere]})
