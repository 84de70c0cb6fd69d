"""What is known of the objects of an image, checked before any of it is trained on."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import datasets

from ffvit.data.dense import masks
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

OBJECTS = ("bbox", "category", "segmentation", "iscrowd", "area")
NEED_MASKS = ("instance_segmentation", "semantic_segmentation")

CURE = "mend the annotation, or take it out"


def objects_column(classes: list[str]) -> dict[str, datasets.List]:
    """The column "objects": lists of as many entries as an image has objects.

    Boxes are x, y, width, height in pixels, categories classes from 0, segmentations the text of ffvit.data.dense.masks.
    """
    number, kinds = (
        datasets.Value("float64"),
        {"segmentation": datasets.Value("string"), "iscrowd": datasets.Value("bool")},
    )
    kinds |= {"bbox": datasets.List(number), "area": number, "category": datasets.ClassLabel(names=classes)}
    return {name: datasets.List(kinds[name]) for name in OBJECTS}


def checked_objects(
    annotations: Iterable[Mapping[str, Any]],
    numbers: Mapping[int, int],
    width: int,
    height: int,
    where: str,
    config: Config,
) -> dict[str, list]:
    """The annotations of an image in lists, by the names of OBJECTS.

    annotations: COCO's, with bbox and category_id, and segmentation, iscrowd and area where they have them. numbers: class by
    category id. where: names the file and the image. Raises InputError for a broken annotation; with bad_images="skip"
    those without area are left out, of which COCO's own training images have two, and, where masks are needed, those
    whose mask has no pixel.
    """
    found: dict[str, list] = {name: [] for name in OBJECTS}
    for annotation in annotations:
        try:
            number, box = annotation.get("category_id"), _box(annotation, width, height)
            if type(number) is not int or number not in numbers:
                raise ValueError(f"its class {number!r:.80} is none of the {len(numbers)} categories")
            if not (box[2] > 0 and box[3] > 0):
                if config.bad_images == "skip":
                    continue
                raise ValueError(f"its box {box} has no area; bad_images='skip' leaves such annotations out")
            text = masks.as_text(annotation.get("segmentation"), width, height)
            if not text and config.task in NEED_MASKS:
                raise ValueError(f"it has no mask, which {config.task} needs: set task='detection'")
            if config.task in NEED_MASKS and not masks.area(text, width, height):
                if config.bad_images == "skip":
                    continue
                raise ValueError("its mask has no pixel; bad_images='skip' leaves such annotations out")
            area = annotation.get("area")
            area = float(box[2] * box[3] if area is None else area)
            if not 0 <= area < math.inf:
                raise ValueError(f"its area is {area}")
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(f"{where}, annotation {annotation.get('id')!r:.80}: {error}; {CURE}") from None
        row = box, numbers[number], text, bool(annotation.get("iscrowd")), area
        for column, value in zip(found.values(), row):
            column.append(value)
    return found


def _box(annotation: Mapping[str, Any], width: int, height: int) -> list[float]:
    """Raises ValueError unless it lies in the image."""
    given = annotation.get("bbox")
    if not isinstance(given, list) or len(given) != 4:
        raise ValueError(f"its box {given!r:.80} is not x, y, width, height")
    box = [float(v) for v in given]
    x, y, w, h = box
    if not all(map(math.isfinite, box)):
        raise ValueError(f"its box {box} is not finite")
    slack = masks.OUTSIDE
    if x < -slack or y < -slack or x + w > width + slack or y + h > height + slack:
        raise ValueError(f"its box {box} (x, y, width, height) leaves the image of {width} x {height} pixels")
    return box


def check_not_empty(train: datasets.Dataset, config: Config) -> None:
    """Raises InputError where no training image has an object to learn."""
    if all(all(objects["iscrowd"]) for objects in train["objects"]):
        raise InputError(
            f"dataset '{config.dataset}': no image of split '{config.train_split}' has an annotated object, crowds aside: "
            "name the split that has as train_split"
        )
