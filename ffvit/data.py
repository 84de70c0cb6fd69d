"""Images, one way for all: a name, a hub id or a local folder becomes Hugging Face splits, then timm's transforms.

What a run sees depends on its settings and on the place in the run alone: each image of the global order has its own
random numbers, so the number of processes, of workers and of interruptions changes nothing. A streamed order also
depends on how files are dealt to processes and workers, but as little on interruptions.
"""

import contextlib
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import datasets
import numpy as np
import PIL.Image
import psutil
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, Sampler, Subset, default_collate

from ffvit.augment import Augmentation, normalise
from ffvit.config import Config, InputError
from ffvit.images import (
    BadImage,
    check_not_all_bad,
    content,
    eval_transform,
    file_name,
    read,
    seed_augmentation,
    train_transform,
)
from ffvit.lifetime import serve_parent
from ffvit.sources import SPLIT_SEED, choose_split, find_columns, open_dataset, opening, parquet_files
from ffvit.stream import ParquetStream, StreamedImages

AT_ONCE = 4096  # images augmented together on the device: enough that starting each operation costs nothing


class Batch(NamedTuple):
    images: Tensor  # (n, C, H, W)
    target: Tensor  # (n,) class index; -1 for an image of an evaluation that could not be read
    bad: list[BadImage]  # met while reading this batch


@dataclass(frozen=True)
class Splits:
    """Images and labels of a run, as datasets with the two columns "image" and "label"."""

    train: "datasets.Dataset | ParquetStream"
    validation: datasets.Dataset
    test: datasets.Dataset
    classes: list[str]
    fingerprint: str  # of the content, the same on every machine

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(getattr(self, name)) for name in ("train", "validation", "test")}


def load_splits(config: Config) -> Splits:
    """Open the dataset of a run and cut it into train, validation and test.

    Raises InputError for a dataset, split or column that is not there, a label outside the classes, an empty split.
    """
    datasets.disable_caching()  # or the splits' indices are written into the user's own folder
    names = {"test": config.test_split, "validation": config.validation_split}
    if config.streaming:
        files, info = parquet_files(config.dataset)
        train = ParquetStream(choose_split(files, config.train_split, config.dataset), info, config)
        with opening(config.dataset):  # the files of these splits and no others
            wanted = {name: choose_split(files, name, config.dataset) for name in names.values()}
            source = datasets.load_dataset("parquet", data_files=wanted)
    else:
        source = open_dataset(config.dataset)
        train = _two_columns(choose_split(source, config.train_split, config.dataset), config)
    others = {k: _two_columns(choose_split(source, v, config.dataset), config) for k, v in names.items() if v}
    classes = _class_names(train, config)
    known = others if config.streaming else {"train": train, **others}  # a stream's labels are checked as they come
    for name, split in known.items():
        _check_labels(split, classes, f"{config.dataset}, {name} split")
    if "validation" not in others:
        train, others["validation"] = _hold_out(train, config, len(classes))
    train = _subset(train, config.max_train_images)
    validation, test = (_subset(others[name], config.max_eval_images) for name in ("validation", "test"))
    return Splits(train, validation, test, classes, _fingerprint(train, validation, test, classes))


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


def first_images(split: "datasets.Dataset | ParquetStream", config: Config, count: int) -> list[tuple]:
    """(image, class index) of the first rows of a split that can be read, at most `count` of them."""
    rows = (
        (read(row["image"], i, file_name(row["image"]), config), row["label"]) for i, row in enumerate(encoded(split))
    )
    return list(itertools.islice((row for row in rows if not isinstance(row[0], BadImage)), count))


def encoded(split: "datasets.Dataset | ParquetStream") -> "datasets.Dataset | ParquetStream":
    return split if isinstance(split, ParquetStream) else split.cast_column("image", datasets.Image(decode=False))


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


def _two_columns(split: datasets.Dataset, config: Config) -> datasets.Dataset:
    image, label = find_columns(split.features, config)
    return split.select_columns([image, label]).rename_columns(
        {k: v for k, v in {image: "image", label: "label"}.items() if k != v}
    )


def _labels(split: datasets.Dataset) -> np.ndarray:
    return np.asarray(split.with_format("numpy")["label"][:], dtype=np.int64)


def _class_names(train: datasets.Dataset, config: Config) -> list[str]:
    label = train.features["label"]
    if isinstance(label, datasets.ClassLabel):
        return list(label.names)
    return [str(c) for c in range(int(_labels(train).max()) + 1)]


def _check_labels(split: datasets.Dataset, classes: list[str], where: str) -> None:
    label, num_classes = split.features["label"], len(classes)
    if isinstance(label, datasets.ClassLabel) and list(label.names) != classes:
        raise InputError(
            f"{where}: its classes {label.names[:5]} are not those of the training images, {classes[:5]}: "
            "the same classes in the same order are needed"
        )
    labels = _labels(split)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"{where}: {len(wrong)} labels outside the {num_classes} classes, the first {labels[wrong[0]]} at index "
            f"{wrong[0]}; a split whose labels are all -1 is unlabelled, choose another"
        )


def _hold_out(train: datasets.Dataset, config: Config, num_classes: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Train and validation images; each class keeps its share in both where there are enough images for it."""
    counts = np.bincount(_labels(train), minlength=num_classes)
    held_out = math.ceil(len(train) * config.validation_fraction)
    enough = counts[counts > 0].min() >= 2 and min(held_out, len(train) - held_out) >= (counts > 0).sum()
    stratify = "label" if enough and isinstance(train.features["label"], datasets.ClassLabel) else None
    try:
        parts = train.train_test_split(config.validation_fraction, seed=SPLIT_SEED, stratify_by_column=stratify)
    except ValueError as error:
        raise InputError(f"validation_fraction {config.validation_fraction} of {len(train)} images: {error}") from None
    return parts["train"], parts["test"]


def _subset(split: datasets.Dataset, size: int) -> datasets.Dataset:
    if not 0 < size < len(split):
        return split
    return split.shuffle(seed=SPLIT_SEED).select(range(size))


def _fingerprint(train, validation, test, classes: list[str]) -> str:
    """sha256 over classes, sizes, all labels and the encoded bytes of up to 64 images of each split.

    Of a stream, not to read all of it: the number of its rows, the sizes of its files, and its first 64 images.
    """
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in (train, validation, test):
        if isinstance(split, ParquetStream):
            digest.update(json.dumps([len(split), split.file_sizes()]).encode())
            rows = itertools.islice(split, 64)
        else:
            digest.update(_labels(split).tobytes())
            rows_of = encoded(split)
            rows = (rows_of[int(i)] for i in np.linspace(0, len(split) - 1, num=min(64, len(split)), dtype=int))
        for row in rows:
            with contextlib.suppress(OSError):  # a missing file is reported where its image is wanted
                digest.update(content(row["image"]))
    return digest.hexdigest()[:16]
