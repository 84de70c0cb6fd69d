"""Images of few pixels, all kept on the device and augmented there, many at a time: in_memory=True and augment="batch"."""

import math
from collections.abc import Iterator

import datasets
import numpy as np
import psutil
import torch

from ffvit.data import kept_pixels
from ffvit.data.batch_augmentation import Augmentation, normalise
from ffvit.data.images import BadImage, check_not_all_bad, eval_transform
from ffvit.data.loader import Batch, EpochOrder, Images
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

AT_ONCE = 4096  # images augmented together on the device: enough that starting each operation costs nothing


class ResidentImages:
    """Images of a split as numbers on a device: decoded, resized and cropped as an evaluation sees them.

    rows: which; None for all. The target of an image that cannot be read is -1.
    """

    def __init__(self, split: datasets.Dataset, config: Config, device: torch.device | str, rows: range | None = None):
        rows = range(len(split)) if rows is None else rows
        _check_room(len(rows) * config.in_chans * config.img_size**2, torch.device(device))
        self.config = config
        self.bad: list[BadImage] = []
        file = kept_pixels.file_of(split, rows, config)
        pixels = kept_pixels.load(file) if file else None
        if pixels is None:
            pixels = self._decoded(split, rows)
            if file and not self.bad:
                kept_pixels.keep(pixels, file)
        target = torch.as_tensor(split.select(rows).with_format("numpy")["label"][:], dtype=torch.int64)
        target[[rows.index(bad.index) for bad in self.bad]] = -1
        self.readable = np.flatnonzero(target >= 0)
        self.pixels, self.target = pixels.to(device), target.to(device)

    def _decoded(self, split: datasets.Dataset, rows: range) -> torch.Tensor:
        config = self.config
        stored, images = eval_transform(config, normalised=False), Images(split, config)
        pixels = torch.zeros(len(rows), config.in_chans, config.img_size, config.img_size, dtype=torch.uint8)
        for place, row in enumerate(rows):
            image, _ = images.read(row)
            if isinstance(image, BadImage):
                self.bad.append(image)
            else:
                pixels[place] = torch.as_tensor(stored(image))
        return pixels


class ResidentTrainLoader:
    """Micro-batches of a process, by EpochOrder; the next row that can be read stands in for one that cannot."""

    def __init__(self, images: ResidentImages, order: EpochOrder, accumulation_steps: int):
        check_not_all_bad(images.bad, len(images.pixels))
        self.images = images
        self.order = order
        self.augmentation = Augmentation(images.config)
        self.micro_batch = images.config.micro_batch(accumulation_steps)

    def __iter__(self) -> Iterator[Batch]:
        images, readable = self.images, self.images.readable
        positions, rows = self.order.mine()
        rows = readable[np.searchsorted(readable, rows) % len(readable)]
        draws = self.augmentation.draw(len(self.order.order), self.order.epoch)
        bad = images.bad
        at_once = max(1, AT_ONCE // self.micro_batch) * self.micro_batch
        for start in range(0, len(rows), at_once):
            chosen = torch.from_numpy(rows[start : start + at_once]).to(images.pixels.device, non_blocking=True)
            own = draws.of(positions[start : start + at_once])
            augmented = self.augmentation(self.augmentation.crop_kept(images.pixels[chosen], own), own)
            target = images.target[chosen]
            for part in zip(augmented.split(self.micro_batch), target.split(self.micro_batch)):
                yield Batch(*part, bad)
                bad = []


class ResidentEvalLoader:
    """Batches of an evaluation."""

    def __init__(self, images: ResidentImages, batch_size: int):
        self.images = images
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.images.pixels) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        images, bad = self.images, self.images.bad
        for pixels, target in zip(images.pixels.split(self.batch_size), images.target.split(self.batch_size)):
            yield Batch(normalise(pixels, images.config), target, bad)
            bad = []


def _check_room(needed: int, device: torch.device) -> None:
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    if needed > free:
        raise InputError(
            f"augment='batch' with in_memory=true keeps all images on the device: they take {needed / 1e9:,.1f} GB, "
            f"{free / 1e9:,.1f} GB are free; set in_memory=false, which reads them as they are needed, or a smaller img_size"
        )
