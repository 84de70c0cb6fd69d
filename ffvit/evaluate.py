"""How good a model is: exact counts over every image, and which images it gets wrong."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Evaluation:
    """Counts over all images of all processes; predictions of this process, in the order of its loader."""

    images: int
    loss: float  # mean cross-entropy, nats
    top1_percent: float
    top5_percent: float  # of the five likeliest classes, or of all where there are fewer
    confusion: np.ndarray  # (classes, classes) counts, true class by row
    predictions: np.ndarray  # (n,) likeliest class
    confidences: np.ndarray  # (n,) its probability

    @property
    def per_class_percent(self) -> list[float | None]:
        """Accuracy of every class, None for a class without images."""
        total = self.confusion.sum(axis=1)
        return [float(100 * c / n) if n else None for c, n in zip(np.diag(self.confusion), total)]


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    num_classes: int,
    device: torch.device | str = "cpu",
    add_up: Callable[[Tensor], Tensor] = lambda x: x,
) -> Evaluation:
    """Score every image that the loader gives, once.

    add_up: sums a tensor over all processes, where there are several. The model is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    sums = torch.zeros(2, dtype=torch.float32 if str(device).startswith("mps") else torch.float64, device=device)
    predictions, confidences = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for images, target in loader:
        target = target.to(device, non_blocking=True)
        logits = model(images.to(device, non_blocking=True)).float()
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        hits5 = (logits.topk(min(5, num_classes), dim=1).indices == target[:, None]).sum()
        sums += torch.stack([F.cross_entropy(logits, target, reduction="sum"), hits5]).to(sums)
        confusion += torch.bincount(target * num_classes + prediction, minlength=num_classes**2).view_as(confusion)
        predictions.append(prediction.cpu())
        confidences.append(confidence.cpu())
    model.train(was_training)

    confusion = add_up(confusion).cpu().numpy()
    loss_sum, hits5 = add_up(sums).tolist()
    count = int(confusion.sum())
    return Evaluation(
        images=count,
        loss=loss_sum / count,
        top1_percent=100 * float(np.trace(confusion)) / count,
        top5_percent=100 * hits5 / count,
        confusion=confusion,
        predictions=torch.cat(predictions).numpy(),
        confidences=torch.cat(confidences).numpy(),
    )


def confident_mistakes(evaluation: Evaluation, targets: np.ndarray, count: int) -> list[int]:
    """Indices of the wrong predictions, the surest first."""
    wrong = np.flatnonzero(evaluation.predictions != targets)
    return wrong[np.argsort(-evaluation.confidences[wrong], kind="stable")][:count].tolist()
