"""Sizes of images, read from the heads of their files: what annotations are checked against before training."""

import io
import warnings
from typing import Any

import numpy as np
import PIL.Image

from ffvit.data.folders import open_inside
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

MOST_CHECKED = 10_000  # files of a split whose heads are read before training; of more, as many evenly spread
ORIENTATION, TURNED = 274, (5, 6, 7, 8)  # Exif's field, and its values that exchange width and height


def upright_size(encoded: dict | None, allowed: tuple[str, ...]) -> tuple[int, int]:
    """(width, height) of an image as ffvit.data.images.decode gives it. Raises OSError where there is no image.

    encoded: {"bytes", "path"}; allowed: see ffvit.data.folders.allowed_places.
    """
    if not encoded or encoded["bytes"] is None and not encoded["path"]:
        raise OSError("there is no file")
    if encoded["bytes"] is not None:
        return _size(io.BytesIO(encoded["bytes"]))
    with open_inside(encoded["path"], allowed) as opened:
        return _size(opened)


def _size(opened: Any) -> tuple[int, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = PIL.Image.open(opened)
            # Of a PNG file it may stand behind all pixels; they are checked again when it is read.
            turned = image.format != "PNG" and image.getexif().get(ORIENTATION) in TURNED
        except Exception as error:  # a decoder fails with whatever its parser stumbled on
            raise OSError(str(error) or type(error).__name__) from None
    return image.size[::-1] if turned else image.size


def evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers from 0 to count - 1, evenly spread."""
    return np.linspace(0, count - 1, num=min(most, count), dtype=int).tolist()


def checked_size(
    encoded: dict | None, allowed: tuple[str, ...], said: tuple[int, int] | None, where: str, config: Config
) -> tuple[int, int] | None:
    """(width, height) of an image; None of one that cannot be read, with bad_images="skip".

    said: its size by its annotations. Raises InputError for another one, and for a file that is missing or no image.
    """
    try:
        size = upright_size(encoded, allowed)
    except OSError as error:
        if config.bad_images == "skip":
            return None
        raise InputError(
            f"{where}: the image cannot be read: {error.strerror or error}; put it there, or set bad_images='skip' to go "
            "on without it"
        ) from None
    if said and size != said:
        raise InputError(
            f"{where}: the image has {size[0]} x {size[1]} pixels, its annotations are of {said[0]} x {said[1]}: give them "
            "the image that they were made of"
        )
    return size
