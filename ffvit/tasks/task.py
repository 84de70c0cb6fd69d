"""What a model learns to do: the images of a run, its loss and its score. The loop of training knows no other difference."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ffvit.data.batches import TrainBatches
from ffvit.data.images import BadImage
from ffvit.data.loader import Batch
from ffvit.data.splits import Splits
from ffvit.settings.config import SETTINGS, Config
from ffvit.system.errors import InputError

Part = Literal["train", "validation", "test"]
Loss = Callable[[nn.Module, Batch], Tensor]


class EvalBatches(Iterable[Batch], Sized, Protocol):
    """Every image of a split once over all processes, in batches."""


class Score(Protocol):
    """How good a model is on the images of a split, over all processes."""

    @property
    def images(self) -> int:
        """That could be read."""

    @property
    def bad_images(self) -> list[BadImage]:
        """Of this process; counted in no other number."""

    @property
    def metrics(self) -> dict[str, float]:
        """By name, such as top1_percent; the headline of the task among them."""

    def results(self) -> dict[str, Any]:
        """What the record says of it: see ffvit.evidence.results."""


@dataclass(frozen=True)
class Together:
    """How processes put together what each has of a score; as it stands, for one alone."""

    add_up: Callable[[Tensor], Tensor] = lambda tensor: tensor  # the sum over all
    gather: Callable[[list], list] = lambda items: items  # those of all, in the order of their ranks


ALONE = Together()


class Task(ABC):
    """A task, by the settings of a run."""

    # Settings that change nothing in this task, and may not be given.
    UNREAD: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Config):
        self.config = config

    def check(self) -> None:
        """Raise InputError for settings that do not go with the task, before any image is read."""
        for name in self.UNREAD:
            default = SETTINGS[name].get_default(call_default_factory=True)
            if getattr(self.config, name) != default:
                raise InputError(f"{name} is no matter of {self.config.task}: leave it at {default!r}")

    @abstractmethod
    def load_splits(self) -> Splits:
        """The images of the run. Raises InputError for what is not there, or broken."""

    def remarks(self, splits: Splits) -> list[str]:
        """What a user should know of these images before training."""
        return []

    @abstractmethod
    def train_batches(
        self, splits: Splits, accumulation_steps: int = 1, rank: int = 0, device: torch.device | str = "cpu"
    ) -> TrainBatches:
        """What a process trains on. Raises InputError where the images do not fill one batch."""

    @abstractmethod
    def eval_batches(
        self, splits: Splits, part: Part, rank: int = 0, device: torch.device | str = "cpu"
    ) -> EvalBatches:
        """The images of a part, to evaluate."""

    @abstractmethod
    def create_loss(self, num_classes: int) -> Loss:
        """A number to be made small, of a model in training and a batch on its device."""

    @abstractmethod
    def probe(self, count: int, device: torch.device) -> Batch:
        """A batch of `count` images that takes as much memory as a real one, on the device."""

    @abstractmethod
    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        num_classes: int,
        device: torch.device | str = "cpu",
        together: Together = ALONE,
    ) -> Score:
        """Score every image that could be read. The model is left in the mode it came in."""


def task_of(config: Config) -> Task:
    """The task of a run: TASK of ffvit.tasks.<task>."""
    return importlib.import_module(f"ffvit.tasks.{config.task}").TASK(config)
