"""Images read, and augmented or cropped, one by one, in worker processes where there are any: the usual way."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler, default_collate

from ffvit.data.batch_augmentation import Cropped, joined, normalise, training_view
from ffvit.data.folders import allowed_places
from ffvit.data.images import BadImage, check_not_all_bad, eval_transform, file_name, read
from ffvit.data.splits import encoded
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.lifetime import serve_parent


class Batch(NamedTuple):
    """Of n images, as many as a process takes at a time."""

    images: Any  # (n, C, H, W); of tasks whose images differ in size a list of (C, h, w); or Cropped, for the device to go on
    target: Any  # of classification (n,) class index, -1 for an image of an evaluation that could not be read
    bad: list[BadImage]  # met while reading this batch


class Images(torch.utils.data.Dataset):
    """(image (C, H, W), class index, images that could not be read) of every row, as an evaluation sees it."""

    def __init__(self, split: datasets.Dataset, config: Config):
        self.split = encoded(split)
        self.config = config
        self.allowed = allowed_places(config.dataset)
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
        image = read(stored["image"], row, file_name(stored["image"]), self.config, self.allowed)
        return image, stored["label"]


class AugmentedImages(Images):
    """The same for training, by EpochOrder's keys, with augment="batch" Cropped; the next row that can be read stands in for
    one that cannot.
    """

    def __init__(self, split: datasets.Dataset, config: Config):
        super().__init__(split, replace(config, in_memory=False))
        self.augment = training_view(config)
        self.decoded = [self.read(row) for row in range(len(split))] if config.in_memory else None

    def __getitem__(  # type: ignore[override]  # a key of EpochOrder, where an evaluation has a row
        self, key: tuple[int, int, int]
    ) -> tuple[Tensor | Cropped, int, list[BadImage]]:
        epoch, position, row = key
        read = self.decoded.__getitem__ if self.decoded else self.read
        image, label, bad = first_readable(read, row, len(self))
        return self.augment(image, epoch, position), label, bad


def first_readable(read: Callable[[int], tuple], row: int, num_images: int) -> tuple[Any, Any, list[BadImage]]:
    """(image, target, images that could not be read) of a row, or of the next that can be read.

    read: (image or BadImage, target) of a row. Raises InputError where there is no end of bad ones.
    """
    bad: list[BadImage] = []
    while True:
        image, target = read((row + len(bad)) % num_images)
        if not isinstance(image, BadImage):
            return image, target, bad
        bad.append(image)
        check_not_all_bad(bad, num_images)


class EpochOrder(Sampler):
    """(epoch, position, row) for this process's positions in an epoch's order, the same for any number of processes."""

    def __init__(self, num_images: int, config: Config, rank: int):
        # As if for one process: the rule of both samplers is to deal its order out in turn, done below by position.
        if config.repeated_augmentation:
            self.order: Any = RepeatAugSampler(range(num_images), 1, 0, num_repeats=config.repeated_augmentation)
        else:
            self.order = DistributedSampler(range(num_images), 1, 0, seed=config.seed)  # type: ignore[arg-type]  # has a length
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


class Loader(DataLoader):
    """Batches. What goes wrong in a worker with the input comes as the InputError it was."""

    def __init__(
        self,
        images,
        config: Config,
        accumulation_steps: int,
        sampler: Sampler | None = None,
        join: Callable[[list], Batch] | None = None,
    ):
        """join: makes a batch of the items of `images`; without, they are those of Images."""
        super().__init__(
            images,
            batch_size=config.micro_batch(accumulation_steps),
            sampler=sampler,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=torch.cuda.is_available() and config.device != "cpu",
            collate_fn=join or partial(_batch, config=config),
            worker_init_fn=serve_parent,
            generator=torch.Generator(),  # its own: starting workers must not draw from the run's random numbers
        )

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names its own class
        try:
            yield from super().__iter__()
        except InputError as error:  # torch puts the worker's traceback before the message
            error.__traceback__ = None  # it refers to itself and would keep the workers, which nobody ends at exit
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


def _batch(items: list[tuple[Tensor | Cropped, int, list[BadImage]]], config: Config) -> Batch:
    seen, target, bad = zip(*items)
    images: Tensor | Cropped
    if isinstance(seen[0], Cropped):
        pixels, draws = zip(*seen)
        images = Cropped(default_collate(list(pixels)), joined(draws))
    else:
        stacked = default_collate(list(seen))
        images = normalise(stacked, config) if stacked.dtype == torch.uint8 else stacked  # see OneByOne
    return Batch(images, torch.tensor(target), [image for found in bad for image in found])
