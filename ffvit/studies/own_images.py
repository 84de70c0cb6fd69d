"""What a trained model says of pictures of one's own, as rows of a table: ffvit predict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from ffvit.data.folders import everything_below, is_image
from ffvit.evidence.opened import Opened
from ffvit.studies.predicted import Seen, look, probabilities, read_picture, unknown
from ffvit.system.errors import InputError

Row = dict[str, Any]


class Said(NamedTuple):
    rows: list[Row]  # by the columns of COLUMNS
    classes_of_pixels: np.ndarray | None = None  # (H, W), of semantic segmentation


# Of a task's table, after the file. Boxes in pixels of the upright image, from its upper left corner.
COLUMNS = {
    "classification": ["class", "probability"],
    "detection": ["class", "score", "x1", "y1", "x2", "y2"],
    "instance_segmentation": ["class", "score", "x1", "y1", "x2", "y2", "mask_pixels"],
    "semantic_segmentation": ["class", "share"],
}


class Picture(NamedTuple):
    file: Path
    place: str  # of what is written of it, below a folder for that


def pictures(given: list[Path]) -> list[Picture]:
    """The files to look at: each that was given; of a folder, all below it that end as images do.

    Raises InputError for a folder without any.
    """
    found: list[Picture] = []
    for path in given:
        if not path.is_dir():
            found.append(Picture(path, path.name))
            continue
        parts = sorted("/".join(parts) for parts in everything_below(path)[0] if is_image(parts[-1]))
        if not parts:
            raise InputError(f"{path} holds no image files: give images, or a folder of them")
        found += [Picture(path / part, part) for part in parts]
    return found


def say(opened: Opened, file: Path, top: int, least: float) -> Said:
    """top: how many classes of an image, the likeliest first. least: the score from which on an object is said.

    Raises OSError, with the reason, for what is no whole image.
    """
    picture = read_picture(file)
    if opened.config.task == "classification":
        found = probabilities(opened.model, picture, opened.config)
        best = found.topk(min(top, len(found)))
        rows = zip(best.indices.tolist(), best.values.tolist())
        return Said([{"class": opened.classes[i], "probability": p} for i, p in rows])
    images = unknown(picture, opened.config, opened.classes)
    for seen in look(opened.model, images, [0], least):
        return SAY[opened.config.task](seen, opened.classes)
    raise OSError(getattr(images[0][0], "reason", "it cannot be read"))


def _objects(seen: Seen, classes: list[str]) -> Said:
    boxes, labels, scores = (seen.said[key].tolist() for key in ("boxes", "labels", "scores"))
    rows = [
        {"class": classes[i], "score": s} | dict(zip(("x1", "y1", "x2", "y2"), b))
        for b, i, s in zip(boxes, labels, scores)
    ]
    if "masks" in seen.said:
        rows = [row | {"mask_pixels": int(mask.sum())} for row, mask in zip(rows, seen.said["masks"])]
    return Said(rows)


def _pixels(seen: Seen, classes: list[str]) -> Said:
    counts = np.bincount(seen.said.ravel(), minlength=len(classes))
    order = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
    return Said([{"class": classes[i], "share": counts[i] / counts.sum()} for i in order], seen.said)


SAY: dict[str, Callable[[Seen, list[str]], Said]] = {
    "detection": _objects,
    "instance_segmentation": _objects,
    "semantic_segmentation": _pixels,
}


def map_picture(classes_of_pixels: np.ndarray, classes: list[str]) -> PIL.Image.Image:
    """(H, W) classes -> a PNG's pixels, whose values are the classes' numbers, in the colours of the notebooks."""
    from ffvit.studies.overlays import class_colors  # with matplotlib

    picture = PIL.Image.fromarray(classes_of_pixels.astype(np.uint8), mode="P")
    picture.putpalette(np.round(255 * class_colors(classes)).astype(np.uint8).ravel().tolist())
    return picture
