"""A class for an image: cross-entropy, and exact counts over every image, with those it gets wrong."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.nn import functional as F

from ffvit.data import batch_augmentation
from ffvit.data.batches import TrainBatches, eval_loader, train_batches
from ffvit.data.images import BadImage
from ffvit.data.loader import Batch
from ffvit.data.splits import Splits, load_splits
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.tasks.task import ALONE, EvalBatches, Loss, Part, Task, Together

MAX_CONFUSION_CLASSES = 100  # of a record; with more, confusion matrix and mistakes would make a large file


class Classification(Task):
    """The likeliest of the classes, by their logits."""

    UNREAD = ("ignore_index", "reduce_zero_label", "scale_range", "photometric_distortion")

    def check(self) -> None:
        super().check()
        batch_augmentation.check(self.config)

    def load_splits(self) -> Splits:
        return load_splits(self.config)

    def train_batches(
        self, splits: Splits, accumulation_steps: int = 1, rank: int = 0, device: torch.device | str = "cpu"
    ) -> TrainBatches:
        return train_batches(splits, self.config, accumulation_steps, rank, device)

    def eval_batches(
        self, splits: Splits, part: Part, rank: int = 0, device: torch.device | str = "cpu"
    ) -> EvalBatches:
        return eval_loader(getattr(splits, part), self.config, rank, device)

    def create_loss(self, num_classes: int) -> Loss:
        mix, criterion = create_loss(self.config, num_classes)

        def loss(model: nn.Module, batch: Batch) -> Tensor:
            images, target = mix(batch.images, batch.target) if mix else (batch.images, batch.target)
            return criterion(model(images), target)

        return loss

    def probe(self, count: int, device: torch.device) -> Batch:
        size = self.config.img_size
        images = torch.zeros(count, self.config.in_chans, size, size, device=device)
        return Batch(images, torch.zeros(count, dtype=torch.int64, device=device), [])

    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        num_classes: int,
        device: torch.device | str = "cpu",
        together: Together = ALONE,
    ) -> "Evaluation":
        return evaluate(model, batches, num_classes, device, together.add_up)


TASK = Classification


def create_loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    """What mixes a batch and smooths its labels, None without mixup and cutmix, and the loss to go with it."""
    if config.mixup or config.cutmix:
        mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)
        return mix, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(config.label_smoothing)


@dataclass(frozen=True)
class Evaluation:
    """Counts over all images of all processes; predictions and bad images of this process, in its loader's order."""

    images: int
    loss: float  # mean cross-entropy, nats
    top1_percent: float
    top5_percent: float  # of the five likeliest classes, or of all where there are fewer
    confusion: np.ndarray  # (classes, classes) counts, true class by row
    targets: np.ndarray  # (n,) class index; -1 for an image that could not be read
    predictions: np.ndarray  # (n,) likeliest class; -1 for an image that could not be read
    confidences: np.ndarray  # (n,) its probability; 0 for an image that could not be read
    bad_images: list[BadImage]  # counted in no other number

    @property
    def metrics(self) -> dict[str, float]:
        return {"loss": self.loss, "top1_percent": self.top1_percent, "top5_percent": self.top5_percent}

    def results(self) -> dict[str, Any]:
        found = {"images": self.images, **self.metrics, "per_class_percent": self.per_class_percent}
        if self.bad_images:
            found["bad_images"] = [image._asdict() for image in self.bad_images]
        if len(self.confusion) <= MAX_CONFUSION_CLASSES:
            found |= {"confusion": self.confusion.tolist(), "mistakes": self.mistakes}
        return found

    @property
    def per_class_percent(self) -> list[float | None]:
        """Accuracy of every class, None for a class without images."""
        total = self.confusion.sum(axis=1)
        return [float(100 * c / n) if n else None for c, n in zip(np.diag(self.confusion), total)]

    @property
    def mistakes(self) -> str:
        """ "index:class ..." of every image whose likeliest class is a wrong one, in the loader's order."""
        wrong = np.flatnonzero(self.predictions != self.targets)
        return " ".join(f"{i}:{self.predictions[i]}" for i in wrong)


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    num_classes: int,
    device: torch.device | str = "cpu",
    add_up: Callable[[Tensor], Tensor] = lambda x: x,
) -> Evaluation:
    """Score every image that the loader gives and that could be read, once.

    add_up: sums a tensor over all processes, where there are several. The model is left in the mode it came in.
    Raises InputError where no image could be read.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float32 if str(device).startswith("mps") else torch.float64, device=device)
    targets, predictions, confidences = [], [], []
    bad_images = []
    for images, target, bad in loader:
        bad_images += bad
        target = target.to(device, non_blocking=True)
        read = target >= 0
        logits = model(images.to(device, non_blocking=True)).float()
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        loss = F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        hits5 = (logits.topk(min(5, num_classes), dim=1).indices == target[:, None]).sum()
        sums += torch.stack([loss, hits5]).to(sums)
        cells = torch.where(read, target * num_classes + prediction, num_classes**2)  # one more cell, for the unread
        confusion += torch.bincount(cells, minlength=num_classes**2 + 1)[:-1].view_as(confusion)
        targets.append(target)  # they stay on the device until the end: fetching one waits for the GPU
        predictions.append(prediction.where(read, -1))
        confidences.append(confidence.where(read, 0))
    model.train(was_training)

    counts = add_up(confusion).cpu().numpy()
    loss_sum, hits5 = add_up(sums).tolist()
    count = int(counts.sum())
    if not count:
        first = f", the first ({bad_images[0].file}): {bad_images[0].reason}" if bad_images else ""
        raise InputError(f"no image to score can be read{first}; choose another split or dataset")
    return Evaluation(
        images=count,
        loss=loss_sum / count,
        top1_percent=100 * float(np.trace(counts)) / count,
        top5_percent=100 * hits5 / count,
        confusion=counts,
        targets=_joined(targets),
        predictions=_joined(predictions),
        confidences=_joined(confidences),
        bad_images=sorted(bad_images),
    )


def confident_mistakes(evaluation: Evaluation, count: int) -> list[int]:
    """Indices of the wrong predictions, the surest first; an image that could not be read was not predicted."""
    wrong = np.flatnonzero(evaluation.predictions != evaluation.targets)
    return wrong[np.argsort(-evaluation.confidences[wrong], kind="stable")][:count].tolist()


def _joined(parts: list[Tensor]) -> np.ndarray:
    return torch.cat(parts).cpu().numpy() if parts else np.empty(0, dtype=np.int64)
