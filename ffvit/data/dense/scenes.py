"""digits-scenes: scikit-learn's handwritten digits on canvases, with boxes and masks, made anew wherever they are needed.

The rule, of whole numbers only, so that every machine makes the same pixels. A scene has 64 x 64 pixels of grey noise from
0 to 39 and one to five digits, each drawn from the scene's own generator, numpy's default_rng((part, scene)): which digit,
its side from 10 to 28 pixels, its brightness from 128 to 255, its place. A digit is enlarged bilinearly. A place where its
box would overlap another's by an IoU of more than 0.2 is drawn again, at most 20 times, then the digit is left out. Larger
digits are drawn first, smaller ones over them; an object's mask is what is seen of its digit, where that is brighter than a
third of its brightest pixel, and its box just holds the mask.

Test scenes are made of the digits that the classification of digits has as test images, validation scenes of a tenth of
the others: no digit is in two parts.
"""

import functools
from typing import NamedTuple

import datasets
import numpy as np

from ffvit.data.dense import masks
from ffvit.data.dense.objects import OBJECTS, objects_column
from ffvit.data.embedded import digit_table
from ffvit.data.sources import SPLIT_SEED, TEST_SHARE

SIDE = 64
SCENES = {"train": 1000, "validation": 150, "test": 300}
MOST_DIGITS = 5
SMALLEST, LARGEST = 10, 28  # a digit's side
DIMMEST = 128  # a third of it is brighter than the noise
NOISE = 40
TRIES = 20
VALIDATION_SHARE = 0.1  # of the digits that are no test images


class Digit(NamedTuple):
    """One that was placed."""

    pixels: np.ndarray  # (SIDE, SIDE) int64, 0 where it is not
    inside: np.ndarray  # (SIDE, SIDE) bool
    box: tuple[int, int, int, int]  # x, y, width, height
    label: int


def make_scenes() -> datasets.DatasetDict:
    """train, validation and test; columns: see ffvit.data.dense.splits."""
    pixels, labels = digit_table()
    objects = objects_column([str(digit) for digit in range(10)])
    features = datasets.Features(image=datasets.Image(), image_id=datasets.Value("int64"), objects=objects)
    parts = {}
    for part, (name, pool) in enumerate(digits_of_parts(labels).items()):
        stored, of_pool = pixels[pool].astype(np.int64), labels[pool].tolist()
        rows = [_scene(np.random.default_rng((part, number)), stored, of_pool) for number in range(SCENES[name])]
        columns = {"image": [r[0] for r in rows], "image_id": range(len(rows)), "objects": [r[1] for r in rows]}
        parts[name] = datasets.Dataset.from_dict(columns, features)
    return datasets.DatasetDict(parts)


def digits_of_parts(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Which of the digits each part's scenes are made of."""
    kinds = datasets.Features(row=datasets.Value("int64"), label=datasets.ClassLabel(num_classes=10))
    rows = datasets.Dataset.from_dict({"row": range(len(labels)), "label": labels}, kinds)
    outer = rows.train_test_split(TEST_SHARE, seed=SPLIT_SEED, stratify_by_column="label")
    inner = outer["train"].train_test_split(VALIDATION_SHARE, seed=SPLIT_SEED, stratify_by_column="label")
    parts = {"train": inner["train"], "validation": inner["test"], "test": outer["test"]}
    return {name: np.asarray(part["row"][:]) for name, part in parts.items()}


def _scene(rng: np.random.Generator, stored: np.ndarray, labels: list[int]) -> tuple[dict, dict[str, list]]:
    """An image's file, and its objects."""
    canvas = rng.integers(0, NOISE, (SIDE, SIDE))
    placed: list[Digit] = []
    for _ in range(rng.integers(1, MOST_DIGITS + 1)):
        which, side = int(rng.integers(0, len(stored))), int(rng.integers(SMALLEST, LARGEST + 1))
        pixels = enlarge(stored[which], side) * rng.integers(DIMMEST, 256) // 255
        inside = 3 * pixels > pixels.max()
        for x, y in rng.integers(0, SIDE - side + 1, (TRIES, 2)).tolist():
            box = _box(inside, x, y)
            if not any(_overlap(box, other.box) for other in placed):
                placed.append(Digit(_on_canvas(pixels, x, y), _on_canvas(inside, x, y), box, labels[which]))
                break
    placed.sort(key=lambda digit: -digit.box[2] * digit.box[3])
    for digit in placed:
        canvas = np.where(digit.inside, digit.pixels, np.maximum(canvas, digit.pixels))
    objects: dict[str, list] = {name: [] for name in OBJECTS}
    for i, digit in enumerate(placed):
        seen = digit.inside & ~np.any([over.inside for over in placed[i + 1 :]], axis=0)
        row = [*map(float, _box(seen, 0, 0))], digit.label, masks.encode(seen), False, float(seen.sum())
        for column, value in zip(objects.values(), row):
            column.append(value)
    file = f"P5 {SIDE} {SIDE} 255\n".encode() + canvas.astype(np.uint8).tobytes()  # PGM: the same bytes by any library
    return {"bytes": file, "path": None}, objects


def enlarge(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bilinear, pixel centres at the half: (n, n) whole numbers -> (side, side), rounded; nothing but whole numbers."""
    weights = _weights(len(pixels), side)
    return (weights @ pixels @ weights.T + 2 * side * side) // (4 * side * side)


@functools.cache
def _weights(n: int, side: int) -> np.ndarray:
    """(side, n), times 2 side: of the pixels along an axis in those of the enlarged image."""
    weights = np.zeros((side, n), np.int64)
    for i in range(side):
        at = min(max((2 * i + 1) * n - side, 0), 2 * side * (n - 1))  # the place among the pixels, times 2 side
        first, share = divmod(at, 2 * side)
        weights[i, first] = 2 * side - share
        if share:
            weights[i, first + 1] = share
    return weights


def _box(inside: np.ndarray, x: int, y: int) -> tuple[int, int, int, int]:
    """The smallest box around a mask whose corner lies at x, y."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    left, top = int(columns[0]), int(rows[0])
    return x + left, y + top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    """Whether two boxes have an IoU of more than 0.2."""
    width, height = (min(one[i] + one[i + 2], other[i] + other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    shared = max(width, 0) * max(height, 0)
    return 5 * shared > one[2] * one[3] + other[2] * other[3] - shared


def _on_canvas(digit: np.ndarray, x: int, y: int) -> np.ndarray:
    canvas = np.zeros((SIDE, SIDE), digit.dtype)
    canvas[y : y + len(digit), x : x + len(digit)] = digit
    return canvas
