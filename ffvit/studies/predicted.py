"""Images of a test split, or of one's own, beside what a trained model says of them. Notebooks 21 and 22, and ffvit predict."""

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
from ffvit.data.images import MOST_BYTES, BadImage
from ffvit.data.loader import Images
from ffvit.data.splits import Splits
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.tasks.detection import MASK_FROM

SURE = 0.5  # the score from which on a detection is shown, and counted as said


class Seen(NamedTuple):
    """An image, what is true of it and what a model says.

    Of detection both are dicts of boxes (n, 4), labels (n,), with masks (n, H, W), what is said with scores (n,), of at
    least SURE, or what was asked for; of semantic_segmentation both are (H, W) classes.
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
    try:
        return unknown(read_picture(Path(path).expanduser()), config, splits.classes)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"image '{path}': {reason}: give the path of a picture, or none") from None


def read_picture(file: Path) -> dict[str, Any]:
    """A file as a dataset has it. Raises OSError for one that is not there, and for what is larger than an image can be."""
    if file.exists() and not file.is_file():
        raise OSError("it is no regular file")
    if file.stat().st_size > MOST_BYTES:
        raise OSError(f"the file has {file.stat().st_size:,} bytes, more than an image has")
    return {"bytes": file.read_bytes(), "path": file.name}


def unknown(picture: dict[str, Any], config: Config, classes: list[str]) -> Annotated:
    """A split of one image of which nothing is known."""
    column = objects_column(classes)
    columns = {"image": [picture], "image_id": [0], "objects": [{name: [] for name in column}]}
    features = datasets.Features(image=datasets.Image(), image_id=datasets.Value("int64"), objects=column)
    return annotated(datasets.Dataset.from_dict(columns, features), config, classes)


@torch.inference_mode()
def probabilities(model: nn.Module, picture: dict[str, Any], config: Config) -> Tensor:
    """(classes,) of one image, by a classification model in evaluation mode. Raises OSError for what is no whole image."""
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    split = datasets.Dataset.from_dict({"image": [picture], "label": [0]}, features)
    pixels, _, bad = Images(split, config)[0]
    if bad:
        raise OSError(bad[0].reason)
    return model(pixels[None].to(next(model.parameters()).device)).float().softmax(dim=1)[0].cpu()


@torch.inference_mode()
def look(model: nn.Module, images: Annotated, rows: Iterable[int], least: float = SURE) -> Iterator[Seen]:
    """What a model in evaluation mode says of the images in these rows, of which those that cannot be read are left out.

    least: the score from which on an object is said.
    """
    examples, device = EvalExamples(images), next(model.parameters()).device
    say = _classes_of_pixels if images.config.task == "semantic_segmentation" else _objects
    for row in rows:
        stored, true = images[row]
        if isinstance(stored, BadImage):
            continue
        pixels, *_ = examples[row]
        yield Seen(row, np.asarray(stored), true, say(model, pixels.to(device), stored.size, least))


def _objects(model: nn.Module, pixels: Tensor, size: tuple[int, int], least: float) -> dict[str, Tensor]:
    [found] = model([pixels])
    sure = found["scores"] >= least
    found = {key: value[sure].cpu() for key, value in found.items()}
    return found | ({"masks": found["masks"][:, 0] >= MASK_FROM} if "masks" in found else {})


def _classes_of_pixels(model: nn.Module, pixels: Tensor, size: tuple[int, int], least: float) -> np.ndarray:
    """size: (width, height) of the image, to which logits are brought, as they are to be scored."""
    logits = F.interpolate(model(pixels[None]).float(), size[::-1], mode="bilinear")
    return logits.argmax(dim=1)[0].cpu().numpy()
