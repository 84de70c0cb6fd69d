"""Boxes of objects: the detector's own losses, and COCO's average precision over all images.

Scores are torchmetrics', computed by faster-coco-eval: the numbers of COCO's own evaluation (arXiv:1405.0312), digit by digit.
"""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from ffvit.data.batches import TrainBatches
from ffvit.data.dense.examples import eval_loader, train_batches
from ffvit.data.dense.splits import load_splits
from ffvit.data.images import BadImage
from ffvit.data.loader import Batch
from ffvit.data.splits import Splits
from ffvit.system.errors import InputError
from ffvit.tasks.task import ALONE, EvalBatches, Loss, Part, Task, Together

# Settings of the loader and the loss of classification, which tasks that say where have not.
OF_CLASSIFICATION = (
    *("augment", "streaming", "score_train", "auto_augment", "random_erasing", "repeated_augmentation"),
    *("mixup", "cutmix", "label_smoothing", "crop_scale", "crop_ratio", "crop_pct", "interpolation"),
)
PARTS: dict[str, Literal["bbox", "segm"]] = {
    "box": "bbox",
    "mask": "segm",
}  # of a detection that is scored: ours, and COCO's names
# COCO's own, in double precision. torchmetrics' are in single: a recall of exactly 0.7 is then another side of 0.7, and
# precision averages differ by a tenth of a point.
IOU, RECALL = np.linspace(0.5, 0.95, 10).tolist(), np.linspace(0, 1, 101).tolist()
SIZES = ("small", "medium", "large")  # below 32 x 32 pixels, below 96 x 96, and above
MASK_FROM = 0.5  # of a probability: from there on a pixel is the object's


class Detection(Task):
    """Boxes with classes and scores, by a detector of ffvit.models.dense."""

    UNREAD = (*OF_CLASSIFICATION, "ignore_index", "reduce_zero_label", "scale_range")
    parts: tuple[str, ...] = ("box",)  # that are scored, the headline's last

    def load_splits(self) -> Splits:
        return load_splits(self.config)

    def remarks(self, splits: Splits) -> list[str]:
        args = self.config.model_args  # torchvision's Mask R-CNN has a name of its own
        cap = args.get("box_detections_per_img", args.get("detections_per_img", 100))
        found = []
        for part in ("validation", "test"):
            counts = np.array([objects["iscrowd"].count(False) for objects in getattr(splits, part)["objects"]])
            if over := int((counts > cap).sum()):
                found.append(
                    f"{over} of {len(counts)} {part} images have more than {cap} objects, up to {counts.max()}: a model gives {cap} "
                    "at most (model_args.detections_per_img), and COCO's score takes the surest 100 of an image"
                )
        return found

    def train_batches(
        self, splits: Splits, accumulation_steps: int = 1, rank: int = 0, device: torch.device | str = "cpu"
    ) -> TrainBatches:
        return train_batches(splits, self.config, "mask" in self.parts, accumulation_steps, rank)

    def eval_batches(
        self, splits: Splits, part: Part, rank: int = 0, device: torch.device | str = "cpu"
    ) -> EvalBatches:
        return eval_loader(getattr(splits, part), self.config, "mask" in self.parts, rank)

    def create_loss(self, num_classes: int) -> Loss:
        return lambda model, batch: sum(model(batch.images, batch.target).values(), torch.zeros(()))

    def probe(self, count: int, device: torch.device) -> Batch:
        side = self.config.img_size
        image = torch.zeros(self.config.in_chans, side, round(side * 1333 / 800), device=device)
        target = {
            "boxes": torch.tensor([[0.0, 0.0, side, side]], device=device),
            "labels": torch.zeros(1, dtype=torch.int64, device=device),
            "masks": torch.ones(1, *image.shape[1:], dtype=torch.uint8, device=device),
        }
        return Batch([image] * count, [target] * count, [])

    @torch.inference_mode()
    def evaluate(
        self,
        model: nn.Module,
        batches: Iterable[Batch],
        num_classes: int,
        device: torch.device | str = "cpu",
        together: Together = ALONE,
    ) -> "Detections":
        was_training = model.training
        model.eval()
        score = MeanAveragePrecision(
            iou_type=tuple(PARTS[part] for part in self.parts),
            backend="faster_coco_eval",
            iou_thresholds=IOU,
            rec_thresholds=RECALL,
            extended_summary=True,
            sync_on_compute=False,
        )
        found: list[dict[str, Any]] = []
        bad_images: list[BadImage] = []
        for images, target, bad in batches:
            bad_images += bad
            readable = [i for i, true in enumerate(target) if true is not None]
            if not readable:
                continue
            predicted = model(send_to_device([images[i] for i in readable], device))
            predicted = [self._on_cpu(one) for one in predicted]
            score.update(predicted, [self._true(target[i]) for i in readable])
            found += [
                {"image_id": target[i]["image_id"]} | {key: one[key] for key in ("boxes", "scores", "labels")}
                for i, one in zip(readable, predicted)
            ]
        model.train(was_training)
        for (
            state
        ) in score.metric_state:  # lists with an item an image; torchmetrics' own way asks for as many in each process
            setattr(score, state, together.gather(getattr(score, state)))
        images_scored = len(score.groundtruth_labels)
        objects = sum(int((crowds == 0).sum()) for crowds in score.groundtruth_crowds)  # a crowd is not to be found
        if not objects:
            first = (
                f", the first image that could not be read ({bad_images[0].file}): {bad_images[0].reason}"
                if bad_images
                else ""
            )
            raise InputError(f"no object to find in {images_scored} images{first}; choose another split or dataset")
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of a process that had no image, and of images with over 100 objects: see remarks
            computed = score.compute()
        return Detections(
            images=images_scored,
            objects=objects,
            parts={part: _precision(computed, PARTS[part], num_classes, len(self.parts) > 1) for part in self.parts},
            found=found,
            bad_images=sorted(bad_images),
        )

    def _on_cpu(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {key: value.cpu() for key, value in found.items()}
        return found | ({"masks": found["masks"][:, 0] >= MASK_FROM} if "mask" in self.parts else {})

    def _true(self, target: dict[str, Any]) -> dict[str, Tensor]:
        """An image's objects; of masks, torchmetrics wants truth values."""
        kept = {key: value for key, value in target.items() if isinstance(value, Tensor)}
        return kept | ({"masks": kept["masks"].bool()} if "mask" in self.parts else {})


TASK = Detection


@dataclass(frozen=True)
class Precision:
    """COCO's average precision, in percent."""

    ap: float  # mean over classes and over IoU from 0.50 to 0.95
    ap50: float
    ap75: float
    by_size: dict[str, float | None]  # SIZES; None where no object is of that size
    by_class: list[float | None]  # None for a class that is in none of the images
    curve: (
        np.ndarray
    )  # (recall 0, 0.01, ..., 1; classes) precision at IoU 0.50; NaN for a class that is in none of the images


@dataclass(frozen=True)
class Detections:
    """Scores over all images of all processes; what was found, and bad images, of this process, in its loader's order."""

    images: int
    objects: int  # that were to be found
    parts: dict[str, Precision]  # "box", and "mask"
    found: list[dict[str, Any]]  # image_id, boxes (n, 4), scores, labels: an image each
    bad_images: list[BadImage]  # counted in no other number

    @property
    def metrics(self) -> dict[str, float]:
        return {
            f"{part}_{name}_percent": getattr(precision, name)
            for part, precision in self.parts.items()
            for name in ("ap", "ap50", "ap75")
        }

    def results(self) -> dict[str, Any]:
        headline = [*self.parts.values()][-1]
        found: dict[str, Any] = {"images": self.images, "objects": self.objects, **self.metrics}
        for part, precision in self.parts.items():
            found |= {f"{part}_ap_{size}_percent": value for size, value in precision.by_size.items()}
        found |= {"per_class_percent": headline.by_class}
        if len(self.parts) > 1:
            found |= {"box_per_class_percent": self.parts["box"].by_class}
        if self.bad_images:
            found["bad_images"] = [image._asdict() for image in self.bad_images]
        return found


def _precision(computed: dict[str, Tensor], kind: str, num_classes: int, several: bool) -> Precision:
    """From torchmetrics' summary; of several kinds, its keys begin with the kind's name. -1 there means: nothing to find."""
    of = {key.removeprefix(f"{kind}_"): value for key, value in computed.items() if not several or key.startswith(kind)}
    # (IoU, recall, classes that are there or were found, areas, most detections of an image)
    precision = of["precision"][..., 0, -1].double().numpy()
    there = np.full((*precision.shape[:2], num_classes), np.nan)
    there[..., computed["classes"].reshape(-1).numpy()] = np.where(precision < 0, np.nan, precision)
    by_class = [None if np.isnan(p).all() else 100 * float(np.nanmean(p)) for p in np.moveaxis(there, 2, 0)]
    sizes = {size: float(of[f"map_{size}"]) for size in SIZES}
    return Precision(
        ap=100 * float(of["map"]),
        ap50=100 * float(of["map_50"]),
        ap75=100 * float(of["map_75"]),
        by_size={size: None if value < 0 else 100 * value for size, value in sizes.items()},
        by_class=by_class,
        curve=there[0],
    )
