"""A class for every pixel: cross-entropy, and one confusion matrix over the pixels of all images, from which the mean IoU comes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassConfusionMatrix

from ffvit.data.batches import TrainBatches
from ffvit.data.dense.examples import eval_loader, train_batches
from ffvit.data.dense.splits import load_splits
from ffvit.data.images import BadImage
from ffvit.data.loader import Batch
from ffvit.data.splits import Splits
from ffvit.system.errors import InputError
from ffvit.tasks.detection import OF_CLASSIFICATION
from ffvit.tasks.task import ALONE, EvalBatches, Loss, Part, Task, Together

IGNORED = 255  # in targets, whatever a dataset's own ignore_index
MAX_CONFUSION_CLASSES = 100  # of a record; with more, the matrix would make a large file


class SemanticSegmentation(Task):
    """The likeliest class of every pixel, by logits at the image's size."""

    UNREAD = tuple(name for name in OF_CLASSIFICATION if name != "interpolation")

    def load_splits(self) -> Splits:
        return load_splits(self.config)

    def train_batches(
        self, splits: Splits, accumulation_steps: int = 1, rank: int = 0, device: torch.device | str = "cpu"
    ) -> TrainBatches:
        return train_batches(splits, self.config, False, accumulation_steps, rank)

    def eval_batches(
        self, splits: Splits, part: Part, rank: int = 0, device: torch.device | str = "cpu"
    ) -> EvalBatches:
        return eval_loader(getattr(splits, part), self.config, False, rank, len(splits.classes))

    def create_loss(self, num_classes: int) -> Loss:
        return lambda model, batch: (
            _loss(model(batch.images), batch.target) / (batch.target != IGNORED).sum().clamp(min=1)
        )

    def probe(self, count: int, device: torch.device) -> Batch:
        side = self.config.img_size
        images = torch.zeros(count, self.config.in_chans, side, side, device=device)
        return Batch(images, torch.zeros(count, side, side, dtype=torch.int64, device=device), [])

    @torch.inference_mode()
    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        num_classes: int,
        device: torch.device | str = "cpu",
        together: Together = ALONE,
    ) -> "Segmentation":
        """Logits are brought to the size of an image's own map, in which the pixels are counted."""
        was_training = model.training
        model.eval()
        confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORED, sync_on_compute=False).to(device)
        sums = torch.zeros(2, dtype=torch.float64)  # of the loss, and of images
        bad_images: list[BadImage] = []
        for images, target, bad in batches:
            bad_images += bad
            for image, true in zip(images, target):
                if true is None:
                    continue
                true = true.to(device)[None]
                logits = F.interpolate(model(image.to(device)[None]).float(), true.shape[1:], mode="bilinear")
                sums += torch.stack([_loss(logits, true).cpu(), torch.ones(())])
                confusion.update(logits.argmax(dim=1), true)
        model.train(was_training)
        counts = together.add_up(confusion.confmat).cpu().numpy()
        loss, images_scored = together.add_up(
            sums.to(device, torch.float32 if str(device).startswith("mps") else None)
        ).tolist()
        if not counts.sum():
            first = f", the first ({bad_images[0].file}): {bad_images[0].reason}" if bad_images else ""
            raise InputError(
                f"no pixel to score: no image can be read, or all pixels are ignored{first}; choose another split or dataset"
            )
        return Segmentation(int(images_scored), loss / int(counts.sum()), counts, sorted(bad_images))


TASK = SemanticSegmentation


@dataclass(frozen=True)
class Segmentation:
    """Counts over all pixels of all processes that have a class; bad images of this process."""

    images: int
    loss: float  # mean cross-entropy of a pixel, nats
    confusion: np.ndarray  # (classes, classes) pixels, true class by row
    bad_images: list[BadImage]  # counted in no other number

    @property
    def per_class_percent(self) -> list[float | None]:
        """Intersection over union of every class, None for one that is neither there nor found."""
        right = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - right
        return [float(100 * r / u) if u else None for r, u in zip(right, union)]

    @property
    def metrics(self) -> dict[str, float]:
        return {
            "loss": self.loss,
            "miou_percent": float(np.mean([iou for iou in self.per_class_percent if iou is not None])),
            "pixel_accuracy_percent": float(100 * np.trace(self.confusion) / self.confusion.sum()),
        }

    def results(self) -> dict[str, Any]:
        found = {"images": self.images, **self.metrics, "per_class_percent": self.per_class_percent}
        if self.bad_images:
            found["bad_images"] = [image._asdict() for image in self.bad_images]
        return found | ({"confusion": self.confusion.tolist()} if len(self.confusion) <= MAX_CONFUSION_CLASSES else {})


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy, added up over the pixels that have a class."""
    return F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
