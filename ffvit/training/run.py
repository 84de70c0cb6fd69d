"""A run: its parts, and where it stands."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from ffvit.data.batches import TrainBatches
from ffvit.settings.config import Config
from ffvit.tasks.task import EvalBatches, Loss, Task


@dataclass
class Run:
    """The parts of a run, made by ffvit.training.start, and where it stands."""

    config: Config
    task: Task
    run_dir: Path
    accelerator: Accelerator
    num_classes: int
    batches: TrainBatches
    validation: EvalBatches
    accumulation_steps: int
    raw_model: nn.Module
    model: nn.Module  # the raw one, as the processes share it
    cpu_group: torch.distributed.ProcessGroup | None  # of several processes
    ema: ModelEmaV3 | None
    optimizer: AcceleratedOptimizer  # torch's, as the processes share it
    scheduler: Scheduler
    loss: Loss
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
