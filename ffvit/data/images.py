"""One image: its file decoded, and what a model sees of it, by timm's transforms."""

import contextlib
import io
import math
import os
import random
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from timm.data import create_transform

from ffvit.data.folders import open_inside
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

MOST_BAD_IN_A_ROW = 1000  # skipping ends here: such a dataset is not merely damaged
MOST_PIXELS = 89_478_485  # of an image, as stored and as resized: where Pillow warns of a bomb; 0.4 GB in its memory
MOST_BYTES = 8 * MOST_PIXELS  # of an image's file: 16 bits for each of four channels
ANYWHERE = ("/",)
# Numbers of TIFF's fields, and a value.
TILE_WIDTH, TILE_LENGTH, BITS, PHOTOMETRIC, WHITE_IS_ZERO = 322, 323, 258, 262, 0


class BadImage(NamedTuple):
    """A file that is no whole image."""

    index: int  # type: ignore[assignment]  # of its row in the split; of a streamed image: in its parquet file
    file: str  # its name, "" if it has none; of a streamed image: the parquet file's
    reason: str


def decode(encoded: dict | None, mode: str | None, allowed: tuple[str, ...] = ANYWHERE) -> PIL.Image.Image:
    """The upright image of a file's bytes, "RGB" or "L"; None: as it is stored, with values that are no brightness.

    Raises OSError with the reason where there is no whole image.
    encoded: {"bytes", "path"}, as Hugging Face's Image(decode=False) gives it; None is a row without an image.
    allowed: where a path may lead, see ffvit.data.folders.allowed_places.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities that do no harm
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            image: PIL.Image.Image = PIL.Image.open(io.BytesIO(content(encoded, allowed)))
            _check_header(image)
            image.load()
            with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the image
                PIL.ImageOps.exif_transpose(image, in_place=True)
            if mode is None:
                return image
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = PIL.Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return image.convert(mode)  # grey, palette and CMYK images among the RGB ones
        except PIL.UnidentifiedImageError:
            raise OSError("it is no image of a known format") from None
        except (Exception, SystemExit) as error:  # a decoder fails with whatever its parser stumbled on
            raise OSError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _check_header(image: Any) -> None:
    """Raises OSError for what would take too much to decode, or would come out too dark, too bright or inverted."""
    kind = image.format
    tags = image.tag_v2 if kind == "TIFF" else {}
    if tags.get(TILE_WIDTH, 1) * tags.get(TILE_LENGTH, 1) > MOST_PIXELS:  # decoded whole, however small the image
        raise OSError(f"its tiles have more than {MOST_PIXELS:,} pixels: save it without tiles")
    if kind == "EPS":  # which may never end
        raise OSError("it is a program that draws an image: save what it draws as PNG")
    of_16_bits = kind in ("PNG", "PPM", "JPEG2000")  # and fewer, which Pillow brings to 16
    if kind == "TIFF":
        of_16_bits = (
            image.mode.startswith("I;16") and tags.get(BITS) == (16,) and tags.get(PHOTOMETRIC) != WHITE_IS_ZERO
        )
    if image.mode.startswith("F") or image.mode.startswith("I") and not of_16_bits:
        raise OSError(
            f"which of its values are black and white is not known ({kind}, pixels of kind {image.mode}): save it with "
            "8 bits, or as PNG with 16"
        )


def read(
    encoded: dict | None, index: int, file: str, config: Config, allowed: tuple[str, ...]
) -> PIL.Image.Image | BadImage:
    """The image of a row, or what is wrong with it. Raises InputError for that with bad_images="refuse"."""
    try:
        image = decode(encoded, "L" if config.in_chans == 1 else "RGB", allowed)
        _check_resized(image, config)
        return image
    except OSError as error:
        bad = BadImage(index, file, str(error))
    if config.bad_images == "refuse":
        raise InputError(
            f"dataset '{config.dataset}': row {index}{f' ({file})' if file else ''} holds no whole image: {bad.reason}; "
            "mend the file, or set bad_images='skip' to go on without it"
        )
    return bad


def _check_resized(image: PIL.Image.Image, config: Config) -> None:
    """An evaluation resizes the short side and only then crops: of a very long image it makes a very large one."""
    short, long = sorted(image.size)
    side = math.floor(config.img_size / config.crop_pct)
    if side * side * long / short > max(MOST_PIXELS, 10 * config.img_size**2):
        raise OSError(
            f"of {image.width} x {image.height} pixels, resized to a short side of {side}, it would have "
            f"{side * side * long // short:,}: cut it into pieces"
        )


def file_name(encoded: dict | None) -> str:
    return Path((encoded or {}).get("path") or "").name


def content(encoded: dict | None, allowed: tuple[str, ...]) -> bytes:
    """The bytes of an image's file. Raises OSError where there are none to be had."""
    if not encoded or encoded["bytes"] is None and not encoded["path"]:
        raise OSError("there is no file")
    content = encoded["bytes"]
    if content is None:
        with open_inside(encoded["path"], allowed) as opened:
            length = os.fstat(opened.fileno()).st_size
            if length > MOST_BYTES:
                raise OSError(f"the file has {length:,} bytes, more than an image has")
            content = opened.read() if length else b""  # what a link to /proc gives has no length, and may have no end
    if not content:
        raise OSError("the file is empty")
    return content


def check_not_all_bad(bad: list[BadImage], num_images: int) -> None:
    if len(bad) == min(num_images, MOST_BAD_IN_A_ROW):
        raise InputError(
            f"{len(bad)} training images one after the other cannot be read, the first at row {bad[0].index} "
            f"({bad[0].file}): {bad[0].reason}; choose another dataset"
        )


def train_transform(config: Config, normalised: bool = True):
    """An image as training sees it, (C, H, W); not normalised: as below, and nothing of it is erased."""
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=True,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.hflip,
        color_jitter=None,  # type: ignore[arg-type]  # none at all, as timm reads it
        auto_augment=config.auto_augment or None,
        interpolation=config.interpolation,
        re_prob=config.random_erasing,
        re_mode="pixel",
        mean=config.mean,
        std=config.std,
        use_prefetcher=not normalised,
    )


def eval_transform(config: Config, normalised: bool = True):
    """An image as a model sees it, (C, H, W); not normalised: the same before it is divided and shifted, as uint8."""
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
        use_prefetcher=not normalised,
    )


class OneByOne:
    """timm's training transforms, by random numbers that are a function of the seed and an image's place in the run.

    Where nothing is erased, which comes after it, normalising is left to the batch: that takes a fraction of the time.
    """

    def __init__(self, config: Config):
        self.seed = config.seed
        self.transform = train_transform(config, normalised=config.random_erasing > 0)

    def __call__(self, image: PIL.Image.Image, *place: int) -> torch.Tensor:
        seed_augmentation(self.seed, *place)
        return self.transform(image)


def seed_augmentation(*key: int) -> None:
    """Start the three generators that timm's transforms draw from. Takes 12 microseconds."""
    random.seed(repr(key))  # of a string: its SHA-512, the same on every machine
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(32))  # torch.manual_seed would start the GPUs' too
