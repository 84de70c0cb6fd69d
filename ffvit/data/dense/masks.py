"""Masks of instances as COCO writes them: polygons, or run lengths (RLE), plain or packed into text.

Run lengths count pixels column by column, of outside and inside in turn, beginning with outside. The packing is that of
COCO's maskApi.c: five bits a character, lowest first, a sixth that says whether more follow, and from the fourth number on
the difference to the number before the last.
"""

import json
import math
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_masks

OUTSIDE = 1.0  # pixels by which a box or a polygon may leave the image: annotations are rounded
FEWEST_CORNERS = 3
MOST_BITS = 40  # of a packed number


def as_text(segmentation: Any, width: int, height: int) -> str:
    """A segmentation as JSON text, "" where there is none: polygons [[x, y, x, y, ...], ...], or {"size", "counts"}.

    segmentation: one of these, or the text of one. Raises ValueError for what is no mask of an image of this size.
    """
    if isinstance(segmentation, str):
        segmentation = json.loads(segmentation) if segmentation else None
    if not segmentation:
        return ""
    if isinstance(segmentation, dict):
        counts, size = segmentation.get("counts"), segmentation.get("size")
        if size is None or list(size) != [height, width]:
            raise ValueError(f"its mask is of an image of [height, width] {size}, not {[height, width]}")
        if isinstance(counts, bytes):
            counts = counts.decode("ascii")
        _run_lengths(counts, width * height)
        segmentation = {"size": [height, width], "counts": counts}
    else:
        _check_polygons(segmentation, width, height)
    return json.dumps(segmentation)


def decode(text: str, width: int, height: int) -> np.ndarray:
    """The mask, (height, width) uint8 of 0 and 1; text: see as_text. Raises ValueError for one of another size."""
    segmentation = json.loads(text)
    if isinstance(segmentation, list):  # of all its polygons together
        packed = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
        segmentation = {"size": packed["size"], "counts": packed["counts"].decode("ascii")}
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its mask is of [height, width] {segmentation['size']}, not {[height, width]}")
    lengths = _run_lengths(segmentation["counts"], width * height)
    columns = np.repeat(np.arange(len(lengths), dtype=np.uint8) % 2, lengths)
    return np.ascontiguousarray(columns.reshape(width, height).T)


def area(text: str, width: int, height: int) -> int:
    """Pixels of a mask, of polygons each by itself; text: see as_text. Decoding it would take ten times as long."""
    segmentation = json.loads(text)
    if isinstance(segmentation, list):
        return int(coco_masks.area(coco_masks.frPyObjects(segmentation, height, width)).sum())
    return sum(_run_lengths(segmentation["counts"], width * height)[1::2])


def encode(mask: np.ndarray) -> str:
    """The text of a mask's plain run lengths. mask: (height, width), true inside."""
    columns = np.asarray(mask, bool).T.ravel()
    changes = np.flatnonzero(np.diff(columns, prepend=False))
    lengths = np.diff(changes, prepend=0, append=len(columns))
    return json.dumps({"size": list(mask.shape), "counts": lengths.tolist()})


def draw_map(objects: dict[str, list], width: int, height: int) -> np.ndarray:
    """A semantic map of instances, (height, width) int64: 0 is the background, class c is c + 1.

    Of instances that overlap the smaller is on top, so that none is lost.
    """
    masks = [decode(text, width, height) for text in objects["segmentation"]]
    drawn = np.zeros((height, width), np.int64)
    for i in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        drawn[masks[i] > 0] = objects["category"][i] + 1
    return drawn


def _run_lengths(counts: Any, num_pixels: int) -> list[int]:
    """Raises ValueError where they are not those of so many pixels."""
    lengths = _unpacked(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(type(length) is int and length >= 0 for length in lengths):
        raise ValueError("the counts of its mask are no run lengths")
    if sum(lengths) != num_pixels:
        raise ValueError(f"the counts of its mask make {sum(lengths):,} pixels, the image has {num_pixels:,}")
    return lengths


def _unpacked(text: str) -> list[int]:
    lengths: list[int] = []
    number = bits = 0
    for byte in text.encode():
        code = byte - 48
        if not 0 <= code < 64 or bits >= MOST_BITS:
            raise ValueError("the counts of its mask are damaged")
        number |= (code & 31) << bits
        bits += 5
        if not code & 32:  # the last of its characters, with the sign of two's complement
            number -= (code & 16) << (bits - 4)
            lengths.append(number + lengths[-2] if len(lengths) > 2 else number)
            number = bits = 0
    if bits:
        raise ValueError("the counts of its mask end in the middle of a number")
    return lengths


def _check_polygons(polygons: Any, width: int, height: int) -> None:
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    for polygon in polygons:
        if len(polygon) % 2 or len(polygon) < 2 * FEWEST_CORNERS:
            raise ValueError(
                f"a polygon has {len(polygon)} numbers: it needs x and y of at least {FEWEST_CORNERS} corners"
            )
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in polygon):
            raise ValueError("a polygon's corners are no numbers")
        for values, most in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -OUTSIDE or max(values) > most + OUTSIDE:
                raise ValueError(f"a polygon leaves the image of {width} x {height} pixels")
