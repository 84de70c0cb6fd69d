"""Images, one way for all: a name, a hub id or a local folder becomes Hugging Face splits, then timm's transforms.

What a run sees depends on its settings and on the place in the run alone: each image of the global order has its own
random numbers, so the number of processes, of workers and of interruptions changes nothing. A streamed order also
depends on how files are dealt to processes and workers, but as little on interruptions.
"""

from collections.abc import Iterable, Iterator

import datasets
import torch
from torch.utils.data import Subset

from ffvit.data.batch_augmentation import Augmentation
from ffvit.data.loader import AugmentedImages, Batch, EpochOrder, Images, Loader
from ffvit.data.resident import ResidentEvalLoader, ResidentImages, ResidentTrainLoader
from ffvit.data.splits import Splits
from ffvit.data.stream import StreamedImages
from ffvit.settings.config import Config
from ffvit.system.errors import InputError


class TrainBatches:
    """Shuffled, augmented micro-batches of one process, from any update of any epoch on.

    An epoch has images // batch_size updates, whatever the number of processes and of accumulation steps. Its order
    depends on seed and epoch (with repeated augmentation on the epoch, DeiT's rule); process r takes the positions
    r, r + num_processes, ... of it, so a global batch holds the same images however it is divided. Streamed images
    come in StreamedImages' order.
    """

    def __init__(self, source: StreamedImages | EpochOrder, loader: Iterable[Batch], num_images: int, config: Config):
        """source: what is told where in which epoch the loader goes on. Raises InputError where the images do not fill a batch."""
        self.source = source
        self.loader = loader
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


def train_batches(
    splits: Splits, config: Config, accumulation_steps: int = 1, rank: int = 0, device: torch.device | str = "cpu"
) -> TrainBatches:
    """Images and class indices.

    device: where images are augmented with augment="batch", and kept with in_memory=True too; others come to it batch by
    batch, augmented.
    Raises InputError where the images do not fill one batch, or a stream cannot be divided among the processes.
    """
    source: StreamedImages | EpochOrder
    loader: Iterable[Batch]
    if config.streaming:
        source = StreamedImages(splits.train, config, accumulation_steps, rank)
        loader, num_images = Loader(source, config, accumulation_steps), len(splits.train)
    else:
        source = EpochOrder(len(splits.train), config, rank)
        num_images = len(source.order)
        if config.augment == "batch" and config.in_memory:
            images = ResidentImages(splits.train, config, device)
            return TrainBatches(source, ResidentTrainLoader(images, source, accumulation_steps), num_images, config)
        loader = Loader(AugmentedImages(splits.train, config), config, accumulation_steps, source)
    if config.augment == "batch":
        loader = AugmentedOnDevice(loader, config, device)
    return TrainBatches(source, loader, num_images, config)


class AugmentedOnDevice:
    """The batches of a loader whose images are Cropped, their augmentation finished on a device."""

    def __init__(self, loader: Iterable[Batch], config: Config, device: torch.device | str):
        self.loader = loader
        self.augmentation = Augmentation(config)
        self.device = device

    def __iter__(self) -> Iterator[Batch]:
        for (pixels, draws), target, bad in self.loader:
            yield Batch(self.augmentation(pixels.to(self.device, non_blocking=True), draws), target, bad)


def eval_loader(
    split: datasets.Dataset, config: Config, rank: int = 0, device: torch.device | str = "cpu"
) -> "Loader | ResidentEvalLoader":
    """Every image of a split exactly once over all processes: no padding, no dropping."""
    parts = config.accumulation_steps or 1
    mine = range(rank, len(split), config.num_processes)
    if config.augment == "batch" and config.in_memory:
        return ResidentEvalLoader(ResidentImages(split, config, device, mine), config.micro_batch(parts))
    return Loader(Subset(Images(split, config), mine), config, parts)
