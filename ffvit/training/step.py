"""One update of a run: batch, loss, gradient, optimiser. Nothing random is stored: see ffvit.training.run."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ffvit.data.batches import TrainBatches
from ffvit.data.loader import Batch, Loader
from ffvit.data.resident import ResidentEvalLoader
from ffvit.settings.config import Config
from ffvit.training import optim, progress


@dataclass
class Run:
    """The parts of a run, and where it stands."""

    config: Config
    run_dir: Path
    accelerator: Accelerator
    num_classes: int
    batches: TrainBatches
    validation: Loader | ResidentEvalLoader
    accumulation_steps: int
    raw_model: nn.Module
    model: nn.Module  # the raw one, as the processes share it
    cpu_group: torch.distributed.ProcessGroup | None  # of several processes
    ema: ModelEmaV3 | None
    optimizer: AcceleratedOptimizer  # torch's, as the processes share it
    scheduler: Scheduler
    mix: Mixup | None
    criterion: nn.Module
    facts: dict
    loss_sum: Tensor  # of this process, over the epoch's updates
    history: list[dict] = field(default_factory=list)  # of whole, scored epochs
    done: int = 0  # updates of the epoch under way
    seconds: float = 0.0  # the epoch has taken so far, before an interruption
    cpu_seconds: float = 0.0  # the same, of processor time; the first process has that of all
    bad_images: dict[str, list] = field(default_factory=lambda: {"train": [], "validation": []})
    weights_sha256: dict[str, str] = field(default_factory=dict)
    first_epoch_here: int = 0  # of this process
    folder_mark: tuple[int, int] | None = None  # by which the first process knows the run's folder again
    saved_at: float = -math.inf  # by time.monotonic(), which may begin with the machine

    @property
    def epoch(self) -> int:
        """Index of the epoch under way, from 0."""
        return len(self.history)

    @property
    def update(self) -> int:
        return self.epoch * len(self.batches) + self.done


def make_update(run: Run, batches: Iterator[Batch], meter: progress.Meter) -> None:
    """One step of the optimiser, over config.batch_size images of all processes."""
    config, accelerator, parts = run.config, run.accelerator, run.accumulation_steps
    for part in range(parts):
        with meter.waiting():
            images, target, bad = next(batches)
        run.bad_images["train"] += bad
        images = images.to(accelerator.device, non_blocking=True)
        target = target.to(accelerator.device, non_blocking=True)
        _reseed(accelerator.device, config.seed, run.update, part, accelerator.process_index)
        if run.mix:
            images, target = run.mix(images, target)
        last = part == parts - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            with accelerator.autocast():
                loss = run.criterion(run.model(images), target) / parts
            accelerator.backward(loss)
        run.loss_sum += loss.detach().float()  # read only when a line is due: reading waits for the GPU
    if config.clip_grad:
        accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema:
        run.ema.update(run.raw_model)
    run.done += 1
    meter.updates += 1


def _reseed(device: torch.device, *key: int) -> None:
    """Make the random numbers that follow a function of the key alone, so that none need be stored to go on."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes ten times as long on a machine without a GPU
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def set_rate(run: Run) -> float:
    """Set the learning rate of the update that comes next."""
    return optim.set_rate(run.config, run.scheduler, run.epoch, run.update)
