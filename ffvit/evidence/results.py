"""What a record says of a task's score, and of each epoch's: whole and in itself true, or an error that names the key.

Numbers in percent. What several tasks have in common is said once, by the classes that begin with an underscore.
"""

import json
import operator
import statistics
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

ALIKE = 1e-6  # points; what is left is rounding
NUMBER = "(0|[1-9][0-9]{0,8})"
PAIR = f"{NUMBER}:{NUMBER}"  # index of an image, and the wrong class

Count = Annotated[int, Field(ge=0, le=10**18)]
Some = Annotated[int, Field(ge=1, le=10**18)]
Percent = Annotated[float, Field(ge=0, le=100)]
Seconds = Annotated[float, Field(ge=0, le=10**12)]
Loss = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """Of a record, what is read of it; it may say more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Epoch(Part):
    epoch: Some
    train_loss: float
    seconds: Seconds
    cpu_seconds: Seconds = 0.0


class _ClassificationEpoch(Epoch):
    validation_loss: float
    validation_top1_percent: Percent


class _DetectionEpoch(Epoch):
    validation_box_ap_percent: Percent


class _InstanceEpoch(_DetectionEpoch):
    validation_mask_ap_percent: Percent


class _SemanticEpoch(Epoch):
    validation_loss: float
    validation_miou_percent: Percent


class Results(Part):
    """Of the test images."""

    images: Some
    per_class_percent: list[Percent | None]  # of the headline; None for a class that is not there
    bad_images: list[dict[str, Any]] = []


class _WithConfusion(Results):
    confusion: list[list[Count]] | None = None  # counts, true class by row

    def need_square(self, confusion: list[list[int]]) -> None:
        classes = len(self.per_class_percent)
        if len(confusion) != classes or any(len(row) != classes for row in confusion):
            raise ValueError(
                f"confusion must have {classes} rows of {classes} counts, as per_class_percent has classes"
            )

    def need_class(self, true: int, counted: float | None) -> None:
        said = self.per_class_percent[true]
        if (said is None) != (counted is None) or abs((said or 0) - (counted or 0)) > ALIKE:
            raise ValueError(f"per_class_percent of class {true} must be {counted} by confusion, got {said}")


class _Known(Part):
    """Scores of the training images, not augmented."""

    images: Some
    loss: Loss
    top1_percent: Percent


class _Classification(_WithConfusion):
    loss: Loss
    top1_percent: Percent
    top5_percent: Percent
    mistakes: Annotated[str, Field(pattern=f"^({PAIR}( {PAIR})*)?$")] | None = None  # see Evaluation.mistakes
    train: _Known | None = None  # where the run has score_train

    @model_validator(mode="after")
    def _agree(self) -> "_Classification":
        classes = len(self.per_class_percent)
        if self.confusion is not None:
            right = self._need_confusion(self.confusion)
            self._need_top1(right, "confusion")
        if self.mistakes is not None:
            # By the parser of JSON: of a hundred records they are half a million numbers.
            numbers = json.loads(f"[{self.mistakes.replace(':', ',').replace(' ', ',')}]")
            wrong, said = numbers[::2], numbers[1::2]
            last = self.images + len(self.bad_images) - 1
            rising = all(map(operator.lt, wrong, wrong[1:]))
            if not rising or max(wrong, default=0) > last or max(said, default=0) >= classes:
                raise ValueError(f"mistakes must rise from 0 to {last} at most, and be of {classes} classes")
            self._need_top1(self.images - len(wrong), "mistakes")
        return self

    def _need_confusion(self, confusion: list[list[int]]) -> int:
        """How many images it says were right."""
        self.need_square(confusion)
        if (counted := sum(map(sum, confusion))) != self.images:
            raise ValueError(f"images must be {counted}, the sum of confusion, got {self.images}")
        for true, row in enumerate(confusion):
            self.need_class(true, 100 * row[true] / sum(row) if sum(row) else None)
        return sum(row[true] for true, row in enumerate(confusion))

    def _need_top1(self, right: int, by: str) -> None:
        if abs(self.top1_percent - 100 * right / self.images) > ALIKE:
            raise ValueError(f"top1_percent must be {100 * right / self.images} by {by}, got {self.top1_percent}")


class _Detection(Results):
    """COCO's average precision: over IoU from 0.50 to 0.95, at one, and by size; None where no object is of that size."""

    objects: Some
    box_ap_percent: Percent
    box_ap50_percent: Percent
    box_ap75_percent: Percent
    box_ap_small_percent: Percent | None
    box_ap_medium_percent: Percent | None
    box_ap_large_percent: Percent | None

    @model_validator(mode="after")
    def _agree(self) -> "_Detection":
        need_mean(self.box_ap_percent, self.per_class_percent, "box_ap_percent")
        return self


class _Instances(_Detection):
    """The same of masks too, whose average precision by class is the headline's."""

    box_per_class_percent: list[Percent | None]
    mask_ap_percent: Percent
    mask_ap50_percent: Percent
    mask_ap75_percent: Percent

    @model_validator(mode="after")
    def _agree(self) -> "_Instances":
        need_mean(self.box_ap_percent, self.box_per_class_percent, "box_ap_percent")
        need_mean(self.mask_ap_percent, self.per_class_percent, "mask_ap_percent")
        return self


class _Semantic(_WithConfusion):
    """Of pixels; confusion counts them."""

    loss: Loss
    miou_percent: Percent
    pixel_accuracy_percent: Percent

    @model_validator(mode="after")
    def _agree(self) -> "_Semantic":
        need_mean(self.miou_percent, self.per_class_percent, "miou_percent")
        if self.confusion is not None:
            self.need_square(self.confusion)
            predicted = [*map(sum, zip(*self.confusion))]
            for true, row in enumerate(self.confusion):
                union = sum(row) + predicted[true] - row[true]
                self.need_class(true, 100 * row[true] / union if union else None)
        return self


def need_mean(said: float, by_class: list[float | None], name: str) -> None:
    there = [value for value in by_class if value is not None]
    mean = statistics.fmean(there) if there else 0.0
    if abs(said - mean) > MEAN_ALIKE:
        raise ValueError(f"{name} must be {mean}, the mean over classes, got {said}")


MEAN_ALIKE = 1e-3  # points: torchmetrics has single precision
OF_TASK: dict[str, tuple[type[Epoch], type[Results]]] = {
    "classification": (_ClassificationEpoch, _Classification),
    "detection": (_DetectionEpoch, _Detection),
    "instance_segmentation": (_InstanceEpoch, _Instances),
    "semantic_segmentation": (_SemanticEpoch, _Semantic),
}
