"""Batches of images with what is known of them: boxes, masks of instances, semantic maps.

As with classification, what a run sees depends on its settings and on the place in the run alone, whatever the number of
processes, of workers and of interruptions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import datasets
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ffvit.data.batch_augmentation import normalise
from ffvit.data.batches import TrainBatches
from ffvit.data.dense import masks
from ffvit.data.dense.maps import MOST_CLASSES, map_name, read_map
from ffvit.data.dense.transforms import DetectionTransform, SemanticTransform, plain, resized
from ffvit.data.folders import allowed_places
from ffvit.data.images import BadImage, file_name, read, seed_augmentation
from ffvit.data.loader import Batch, EpochOrder, Loader, first_readable
from ffvit.data.splits import Splits, encoded
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

Item = tuple[Tensor, Any, list[BadImage]]  # image, target, images that could not be read


def train_batches(
    splits: Splits,
    config: Config,
    with_masks: bool,
    accumulation_steps: int = 1,
    rank: int = 0,
) -> TrainBatches:
    """Shuffled, changed micro-batches of one process.

    Of detection: images a list of (C, h, w), target a list of {"boxes": (n, 4) x1, y1, x2, y2 in pixels of the image,
    "labels": (n,) int64, "image_id": int, and with_masks "masks": (n, h, w) uint8}, crowds left out.
    Of semantic_segmentation: images (B, C, img_size, img_size), target (B, img_size, img_size) int64, 255 ignored.
    Raises InputError where they do not fill one batch.
    """
    order = EpochOrder(len(splits.train), config, rank)
    semantic = config.task == "semantic_segmentation"
    examples = TrainExamples(Annotated(splits.train, config, with_masks, len(splits.classes)))
    loader = Loader(examples, config, accumulation_steps, order, partial(join, stacked=semantic))
    return TrainBatches(order, loader, len(order.order), config)


def eval_loader(
    images: datasets.Dataset,
    config: Config,
    with_masks: bool,
    rank: int = 0,
    num_classes: int = MOST_CLASSES,
) -> Loader:
    """Every image of a split exactly once over all processes; images and targets are lists.

    Of detection as in training, with crowds, "iscrowd" (n,) bool and "area" (n,). Of semantic_segmentation images of a short
    side of img_size, and maps (H, W) int64 at their own size. The target of an image that cannot be read is None.
    num_classes: what a map may hold.
    """
    mine = range(rank, len(images), config.num_processes)
    examples = EvalExamples(Annotated(images, config, with_masks, num_classes))
    return Loader(Subset(examples, mine), config, config.accumulation_steps or 1, join=partial(join, stacked=False))


class Annotated:
    """(image, target) of every row of a split: as they are stored, but decoded."""

    def __init__(self, split: datasets.Dataset, config: Config, with_masks: bool, num_classes: int):
        self.split = encoded(split)
        self.config = config
        self.with_masks = with_masks
        self.num_classes = num_classes
        self.allowed = allowed_places(config.dataset)
        self.kept = [self.read(row) for row in range(len(split))] if config.in_memory else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[PIL.Image.Image | BadImage, Any]:
        return self.kept[row] if self.kept else self.read(row)

    def read(self, row: int) -> tuple[PIL.Image.Image | BadImage, Any]:
        """target: of semantic_segmentation (H, W) int64 classes, else a dict of all objects, crowds among them.

        Raises InputError for annotations that do not fit the image, and for a bad image unless they are skipped.
        """
        stored = self.split[row]
        image = read(stored["image"], row, file_name(stored["image"]), self.config, self.allowed)
        if isinstance(image, BadImage):
            return image, None
        try:
            if self.config.task == "semantic_segmentation":
                return image, self._map(stored, *image.size)
            return image, self._objects(stored, *image.size)
        except OSError as error:  # of a file that is no map
            reason = f"its map {map_name(stored)}: {error}"
            if self.config.bad_images == "skip":
                return BadImage(row, file_name(stored["image"]), reason), None
        except ValueError as error:
            reason = str(error)
        name = file_name(stored["image"])
        raise InputError(f"dataset '{self.config.dataset}': row {row}{f' ({name})' if name else ''}: {reason}")

    def _map(self, stored: dict, width: int, height: int) -> Tensor:
        if "objects" in stored:
            return torch.from_numpy(masks.draw_map(stored["objects"], width, height))
        found = read_map(stored["map"], self.num_classes, self.config, self.allowed)
        if found.shape != (height, width):
            raise ValueError(
                f"its map has {found.shape[1]} x {found.shape[0]} pixels, the image {width} x {height}: give it its own"
            )
        return torch.from_numpy(found)

    def _objects(self, stored: dict, width: int, height: int) -> dict[str, Any]:
        found = stored["objects"]
        boxes = torch.tensor(found["bbox"], dtype=torch.float64).view(-1, 4)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1).float()
        target: dict[str, Any] = {
            "boxes": F.clamp_bounding_boxes(
                tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width))
            ),
            "labels": torch.tensor(found["category"], dtype=torch.int64),
            "image_id": stored["image_id"],
            "iscrowd": torch.tensor(found["iscrowd"], dtype=torch.bool),
            "area": torch.tensor(found["area"], dtype=torch.float32),
        }
        if self.with_masks:
            drawn = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
            for mask, text in zip(drawn, found["segmentation"]):
                mask.copy_(torch.from_numpy(masks.decode(text, width, height)))
            target["masks"] = tv_tensors.Mask(drawn)
        return target


class EvalExamples(torch.utils.data.Dataset):
    """Images and targets as an evaluation sees them."""

    def __init__(self, images: Annotated):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Item:
        config = self.images.config
        image, target = self.images[row]
        if isinstance(image, BadImage):
            return torch.zeros(config.in_chans, config.img_size, config.img_size), None, [image]
        if config.task == "semantic_segmentation":
            return normalise(resized(image, config.img_size, config), config), target, []
        return normalise(F.pil_to_tensor(image), config), plain(target), []


class TrainExamples(EvalExamples):
    """The same for training, by EpochOrder's keys; the next row that can be read stands in for one that cannot."""

    def __init__(self, images: Annotated):
        super().__init__(images)
        semantic = images.config.task == "semantic_segmentation"
        self.transform: Callable = (SemanticTransform if semantic else DetectionTransform)(images.config)

    def __getitem__(self, key: tuple[int, int, int]) -> Item:  # type: ignore[override]  # where an evaluation has a row
        epoch, position, row = key
        image, target, bad = first_readable(self.images.__getitem__, row, len(self))
        seed_augmentation(self.images.config.seed, epoch, position)
        if self.images.config.task != "semantic_segmentation":
            target = _without_crowds(target)
        return *self.transform(image, target), bad


def _without_crowds(target: dict[str, Any]) -> dict[str, Any]:
    """What is learned: each object alone."""
    single = ~target["iscrowd"]
    learned = {"labels": target["labels"][single], "image_id": target["image_id"]}
    for name in ("boxes", "masks"):
        if name in target:
            learned[name] = tv_tensors.wrap(target[name][single], like=target[name])
    return learned


def join(items: list[Item], stacked: bool) -> Batch:
    """stacked: images and targets of one size, as tensors; else as lists."""
    images, target, bad = (list(part) for part in zip(*items))
    met = [image for found in bad for image in found]
    return Batch(torch.stack(images), torch.stack(target), met) if stacked else Batch(images, target, met)
