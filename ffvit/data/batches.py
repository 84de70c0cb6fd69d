"""Images, one way for all: a name, a hub id or a local folder becomes Hugging Face splits, then timm's transforms.

What a run sees depends on its settings and on the place in the run alone: each image of the global order has its own
random numbers, so the number of processes, of workers and of interruptions changes nothing. A streamed order also
depends on how files are dealt to processes and workers, but as little on interruptions.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import datasets
import numpy as np
import PIL.Image
import psutil
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler, Subset, default_collate

from ffvit.data.augment import Augmentation, normalise
from ffvit.data.images import (
    BadImage,
    check_not_all_bad,
    eval_transform,
    file_name,
    read,
    seed_augmentation,
    train_transform,
)
from ffvit.data.splits import Splits, encoded
from ffvit.data.stream import StreamedImages
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.lifetime import serve_parent

AT_ONCE = 4096  # images augmented together on the device: enough that starting each operation costs nothing


class Batch(NamedTuple):
    images: Tensor  # (n, C, H, W)
    target: Tensor  # (n,) class index; -1 for an image of an evaluation that could not be read
    bad: list[BadImage]  # met while reading this batch


class TrainBatches:
    """Shuffled, augmented micro-batches of one process, from any update of any epoch on.

    An epoch has images // batch_size updates, whatever the number of processes and of accumulation steps. Its order
    depends on seed and epoch (with repeated augmentation on the epoch, DeiT's rule); process r takes the positions
    r, r + num_processes, ... of it, so a global batch holds the same images however it is divided. Streamed images
    come in StreamedImages' order.
    Raises InputError where the images do not fill one batch, or a stream cannot be divided among the processes.
    """

    def __init__(
        self,
        splits: Splits,
        config: Config,
        accumulation_steps: int = 1,
        rank: int = 0,
        device: torch.device | str = "cpu",
    ):
        """device: where images are kept and augmented with augment="batch"; others come to it batch by batch."""
        if config.streaming:
            self.source = StreamedImages(splits.train, config, accumulation_steps, rank)
            self.loader = Loader(self.source, config, accumulation_steps)
            num_images = len(splits.train)
        else:
            self.source = EpochOrder(len(splits.train), config, rank)
            if config.augment == "batch":
                images = ResidentImages(splits.train, config, device)
                self.loader = ResidentTrainLoader(images, self.source, accumulation_steps)
            else:
                images = AugmentedImages(splits.train, config)
                self.loader = Loader(images, config, accumulation_steps, self.source)
            num_images = len(self.source.order)
        self.num_updates = num_images // config.batch_size
        if not self.num_updates:
            raise InputError(
                f"{num_images} training images do not fill one batch of {config.batch_size}: lower batch_size"
            )

    def __len__(self) -> int:
        """Updates per epoch."""
        return self.num_updates

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """The micro-batches of an epoch's updates from first_update on, accumulation_steps of them per update."""
        self.source.begin(epoch, range(first_update, len(self)))
        yield from self.loader


def eval_loader(
    split: datasets.Dataset, config: Config, rank: int = 0, device: torch.device | str = "cpu"
) -> "Loader | ResidentEvalLoader":
    """Every image of a split exactly once over all processes: no padding, no dropping."""
    parts = config.accumulation_steps or 1
    mine = range(rank, len(split), config.num_processes)
    if config.augment == "batch":
        return ResidentEvalLoader(ResidentImages(split, config, device, mine), config.micro_batch(parts))
    return Loader(Subset(Images(split, config), mine), config, parts)


class Images(torch.utils.data.Dataset):
    """(image (C, H, W), class index, images that could not be read) of every row, as an evaluation sees it."""

    def __init__(self, split: datasets.Dataset, config: Config):
        self.split = encoded(split)
        self.config = config
        self.transform = eval_transform(config)
        keep = config.in_memory and config.augment == "image"
        self.kept = [self.item(row) for row in range(len(split))] if keep else None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, int, list[BadImage]]:
        return self.kept[row] if self.kept else self.item(row)

    def item(self, row: int) -> tuple[Tensor, int, list[BadImage]]:
        image, label = self.read(row)
        if isinstance(image, BadImage):
            return torch.zeros(self.config.in_chans, self.config.img_size, self.config.img_size), -1, [image]
        return self.transform(image), label, []

    def read(self, row: int) -> tuple[PIL.Image.Image | BadImage, int]:
        """The image as it is stored, decoded."""
        stored = self.split[row]
        return read(stored["image"], row, file_name(stored["image"]), self.config), stored["label"]


class AugmentedImages(Images):
    """The same for training, by EpochOrder's keys; the next row that can be read stands in for one that cannot."""

    def __init__(self, split: datasets.Dataset, config: Config):
        super().__init__(split, replace(config, in_memory=False))
        self.transform = train_transform(config)
        self.decoded = [self.read(row) for row in range(len(split))] if config.in_memory else None

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int, list[BadImage]]:
        epoch, position, row = key
        bad = []
        while True:
            number = (row + len(bad)) % len(self)
            image, label = self.decoded[number] if self.decoded else self.read(number)
            if not isinstance(image, BadImage):
                seed_augmentation(self.config.seed, epoch, position)
                return self.transform(image), label, bad
            bad.append(image)
            check_not_all_bad(bad, len(self))


class EpochOrder(Sampler):
    """(epoch, position, row) for this process's positions in an epoch's order, the same for any number of processes."""

    def __init__(self, num_images: int, config: Config, rank: int):
        # As if for one process: the rule of both samplers is to deal its order out in turn, done below by position.
        if config.repeated_augmentation:
            self.order = RepeatAugSampler(range(num_images), 1, 0, num_repeats=config.repeated_augmentation)
        else:
            self.order = DistributedSampler(range(num_images), 1, 0, seed=config.seed)
        self.config = config
        self.rank = rank

    def begin(self, epoch: int, updates: range) -> None:
        self.epoch, self.updates = epoch, updates

    def mine(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions, rows)"""
        self.order.set_epoch(self.epoch)
        size = self.config.batch_size
        first, last = self.updates.start * size + self.rank, self.updates.stop * size
        positions = np.arange(first, last, self.config.num_processes)
        return positions, np.fromiter(self.order, dtype=np.int64, count=len(self.order))[positions]

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        positions, rows = self.mine()
        return ((self.epoch, position, row) for position, row in zip(positions.tolist(), rows.tolist()))


class ResidentImages:
    """Images of a split as numbers on a device: decoded, resized and cropped as an evaluation sees them.

    rows: which; None for all. The target of an image that cannot be read is -1.
    """

    def __init__(self, split: datasets.Dataset, config: Config, device: torch.device | str, rows: range | None = None):
        stored, images = eval_transform(config, normalised=False), Images(split, config)
        rows = range(len(images)) if rows is None else rows
        _check_room(len(rows) * config.in_chans * config.img_size**2, torch.device(device))
        self.config = config
        self.bad: list[BadImage] = []
        pixels = torch.zeros(len(rows), config.in_chans, config.img_size, config.img_size, dtype=torch.uint8)
        target = torch.full((len(rows),), -1)
        for place, row in enumerate(rows):
            image, label = images.read(row)
            if isinstance(image, BadImage):
                self.bad.append(image)
            else:
                pixels[place], target[place] = torch.as_tensor(stored(image)), label
        self.readable = np.flatnonzero(target >= 0)
        self.pixels, self.target = pixels.to(device), target.to(device)


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
        draws = self.augmentation.draw(self.order.epoch, len(self.order.order))
        bad = images.bad
        at_once = max(1, AT_ONCE // self.micro_batch) * self.micro_batch
        for start in range(0, len(rows), at_once):
            chosen = torch.from_numpy(rows[start : start + at_once]).to(images.pixels.device, non_blocking=True)
            augmented = self.augmentation(images.pixels[chosen], draws[positions[start : start + at_once]])
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


class Loader(DataLoader):
    """Batches. What goes wrong in a worker with the input comes as the InputError it was."""

    def __init__(self, images, config: Config, accumulation_steps: int, sampler: Sampler | None = None):
        super().__init__(
            images,
            batch_size=config.micro_batch(accumulation_steps),
            sampler=sampler,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=torch.cuda.is_available() and config.device != "cpu",
            collate_fn=_batch,
            worker_init_fn=serve_parent,
            generator=torch.Generator(),  # its own: starting workers must not draw from the run's random numbers
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        except InputError as error:  # torch puts the worker's traceback before the message
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


def _check_room(needed: int, device: torch.device) -> None:
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    if needed > free:
        raise InputError(
            f"augment='batch' keeps all images on the device: they take {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are "
            "free; set augment='image', or a smaller img_size"
        )


def _batch(items: list[tuple[Tensor, int, list[BadImage]]]) -> Batch:
    images, target, bad = zip(*items)
    return Batch(default_collate(images), torch.tensor(target), [image for found in bad for image in found])
