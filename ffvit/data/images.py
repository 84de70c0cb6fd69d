"""One image: its file decoded, and what a model sees of it, by timm's transforms."""

import contextlib
import io
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from timm.data import create_transform

from ffvit.settings.config import Config
from ffvit.system.errors import InputError

MOST_BAD_IN_A_ROW = 1000  # skipping ends here: such a dataset is not merely damaged


class BadImage(NamedTuple):
    """A file that is no whole image."""

    index: int  # type: ignore[assignment]  # of its row in the split; of a streamed image: in its parquet file
    file: str  # its name, "" if it has none; of a streamed image: the parquet file's
    reason: str


def decode(encoded: dict | None, mode: str) -> PIL.Image.Image:
    """The upright image of a file's bytes, "RGB" or "L". Raises OSError with the reason where there is no whole image.

    encoded: {"bytes", "path"}, as Hugging Face's Image(decode=False) gives it; None is a row without an image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities that do no harm
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            image: PIL.Image.Image = PIL.Image.open(io.BytesIO(content(encoded)))
            image.load()
            with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the image
                PIL.ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
            return image.convert(mode)  # grey, palette and CMYK images among the RGB ones
        except PIL.UnidentifiedImageError:
            raise OSError("it is no image of a known format") from None
        except Exception as error:  # a decoder fails with whatever its parser stumbled on
            raise OSError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def read(encoded: dict | None, index: int, file: str, config: Config) -> PIL.Image.Image | BadImage:
    try:
        return decode(encoded, "L" if config.in_chans == 1 else "RGB")
    except OSError as error:
        bad = BadImage(index, file, str(error))
    if config.bad_images == "refuse":
        raise InputError(
            f"dataset '{config.dataset}': row {index}{f' ({file})' if file else ''} holds no whole image: {bad.reason}; "
            "mend the file, or set bad_images='skip' to go on without it"
        )
    return bad


def file_name(encoded: dict | None) -> str:
    return Path((encoded or {}).get("path") or "").name


def content(encoded: dict | None) -> bytes:
    if not encoded or encoded["bytes"] is None and not encoded["path"]:
        raise OSError("there is no file")
    content = Path(encoded["path"]).read_bytes() if encoded["bytes"] is None else encoded["bytes"]
    if not content:
        raise OSError("the file is empty")
    return content


def check_not_all_bad(bad: list[BadImage], num_images: int) -> None:
    if len(bad) == min(num_images, MOST_BAD_IN_A_ROW):
        raise InputError(
            f"{len(bad)} training images one after the other cannot be read, the first at row {bad[0].index} "
            f"({bad[0].file}): {bad[0].reason}; choose another dataset"
        )


def train_transform(config: Config):
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


def seed_augmentation(*key: int) -> None:
    """Start the three generators that timm's transforms draw from. Takes 12 microseconds."""
    random.seed(repr(key))  # of a string: its SHA-512, the same on every machine
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(32))  # torch.manual_seed would start the GPUs' too
