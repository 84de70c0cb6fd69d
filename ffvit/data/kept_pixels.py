"""Pixels of many small images, decoded once: kept on disk, where the next run of the same images finds them.

They lie where datasets keeps its own tables, a file for the rows that a process takes of a split.
"""

import contextlib
import hashlib
import json
from pathlib import Path

import datasets
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ffvit.data import images
from ffvit.data.folders import allowed_places
from ffvit.data.splits import encoded
from ffvit.settings.config import Config
from ffvit.system.files import replacing, sha256_of, sync
from ffvit.system.provenance import versions

LEAST = 5000  # images: fewer are decoded in a second or so
MOST_BYTES = 2**31  # of a file: 14,000 images of 224 pixels


def file_of(split: datasets.Dataset, rows: range, config: Config) -> Path | None:
    """Where the pixels of these rows are kept, once they have been decoded; None where they are not to be.

    All that decides them decides its name: each byte of each image, how it is resized, and the code and packages that do it.
    """
    if len(rows) < LEAST or len(rows) * config.in_chans * config.img_size**2 > MOST_BYTES:
        return None
    resized = [config.in_chans, config.img_size, config.crop_pct, config.interpolation]
    digest = hashlib.sha256(json.dumps([resized, versions(), sha256_of(Path(images.__file__))]).encode())
    allowed = allowed_places(config.dataset)
    try:
        for some in encoded(split.select(rows)).iter(100):
            for stored in some["image"]:
                whole = images.content(stored, allowed)
                digest.update(len(whole).to_bytes(8, "big") + whole)
    except (OSError, ValueError):  # an image is missing, which is told when it is read
        return None
    return Path(datasets.config.HF_DATASETS_CACHE, "ffvit", f"{digest.hexdigest()[:32]}.safetensors")


def load(file: Path) -> torch.Tensor | None:
    """(n, C, H, W) uint8; None where nothing is kept, or no longer as it was written."""
    try:
        with safe_open(file, "pt") as opened:
            pixels = opened.get_tensor("pixels")
            written = (opened.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return pixels if written == _sha256(pixels) else None


def keep(pixels: torch.Tensor, file: Path) -> None:
    """For later runs. Where the disk is full, or may not be written, they decode again."""
    with contextlib.suppress(OSError, SafetensorError), replacing(file) as temporary:
        save_file({"pixels": pixels}, temporary, {"sha256": _sha256(pixels)})
        sync(temporary)


def _sha256(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.numpy().data).hexdigest()
