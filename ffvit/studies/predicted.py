"""Notebooks 21 and 22: images of a test split, or one of one's own, beside what a trained model says of them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffvit.data.dense.examples import Annotated, EvalExamples
from ffvit.data.dense.objects import objects_column
from ffvit.data.images import BadImage
from ffvit.data.splits import Splits
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.tasks.detection import MASK_FROM

SURE = 0.5  # the score from which on a detection is shown, and counted as said


class Seen(NamedTuple):
    """An image, what is true of it and what a model says.

    Of detection both are dicts of boxes (n, 4), labels (n,), with masks (n, H, W), what is said with scores (n,), of at least
    SURE; of semantic_segmentation both are (H, W) classes.
    """

    row: int
    pixels: np.ndarray  # (H, W) or (H, W, 3) uint8, as they are stored
    true: Any
    said: Any


def annotated(split: datasets.Dataset, config: Config, classes: list[str]) -> Annotated:
    """The images of a split with what is true of them."""
    return Annotated(split, config, config.task == "instance_segmentation", len(classes))


def own(path: str, splits: Splits, config: Config) -> Annotated:
    """A file of one's own as a split of one image of which nothing is known; without a path, the first test image.

    It is decoded and changed as the images of the run are. Raises InputError where there is no such file, or no image in it.
    """
    if not path:
        return annotated(splits.test.select([0]), config, splits.classes)
    file = Path(path).expanduser()
    try:
        image = {"bytes": file.read_bytes(), "path": file.name}
    except OSError as error:
        raise InputError(f"image '{path}': {error.strerror}: give the path of a picture, or none") from None
    column = objects_column(splits.classes)
    columns = {"image": [image], "image_id": [0], "objects": [{name: [] for name in column}]}
    features = datasets.Features(image=datasets.Image(), image_id=datasets.Value("int64"), objects=column)
    return annotated(datasets.Dataset.from_dict(columns, features), config, splits.classes)


@torch.inference_mode()
def look(model: nn.Module, images: Annotated, rows: Iterable[int]) -> Iterator[Seen]:
    """What a model in evaluation mode says of the images in these rows, of which those that cannot be read are left out."""
    examples, device = EvalExamples(images), next(model.parameters()).device
    say = _classes_of_pixels if images.config.task == "semantic_segmentation" else _objects
    for row in rows:
        stored, true = images[row]
        if isinstance(stored, BadImage):
            continue
        pixels, *_ = examples[row]
        yield Seen(row, np.asarray(stored), true, say(model, pixels.to(device), stored.size))


def _objects(model: nn.Module, pixels: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    [found] = model([pixels])
    sure = found["scores"] >= SURE
    found = {key: value[sure].cpu() for key, value in found.items()}
    return found | ({"masks": found["masks"][:, 0] >= MASK_FROM} if "masks" in found else {})


def _classes_of_pixels(model: nn.Module, pixels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """size: (width, height) of the image, to which logits are brought, as they are to be scored."""
    logits = F.interpolate(model(pixels[None]).float(), size[::-1], mode="bilinear")
    return logits.argmax(dim=1)[0].cpu().numpy()
