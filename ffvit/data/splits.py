"""The images of a run: a dataset cut into train, validation and test, with a fingerprint of what they are."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from ffvit.data.folders import allowed_places
from ffvit.data.images import BadImage, content, file_name, read
from ffvit.data.sources import (
    SPLIT_SEED,
    check_class_names,
    check_copies,
    find_columns,
    open_parquet,
    open_splits,
    parquet_files,
)
from ffvit.data.stream import ParquetStream
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

SAMPLE = 64  # images of a split that tell whether two splits, or two datasets, are the same


@dataclass(frozen=True)
class Splits:
    """Images of a run and what is known of them, as datasets.

    Columns: "image" and "label"; of the tasks of ffvit.data.dense "image", "image_id", and "objects" or "map".
    """

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

    Raises InputError for a dataset, split or column that is not there, splits that overlap, a label outside the classes,
    an empty split.
    """
    names = split_names(config)
    if config.streaming:
        files, info = parquet_files(list(names.values()), config)
        if not config.allow_overlap:
            check_copies(files, config.dataset)
        train = ParquetStream(files[config.train_split], info, config)
        others = {name: files[name] for part, name in names.items() if part != "train"}
        source = open_parquet(others, train.columns[1], train.features["label"].names, config.dataset)
    else:
        source = open_splits(list(names.values()), config)
        train = two_columns(source[config.train_split], config)
    parts = {"train": train} | {k: two_columns(source[v], config) for k, v in names.items() if k != "train"}
    classes = _class_names(train, config)
    if len(classes) == 1:
        raise InputError(f"dataset '{config.dataset}' has only one class, '{classes[0]}': nothing to tell apart")
    for part, images in parts.items():
        if not isinstance(images, ParquetStream):  # its labels are checked as they come
            _check_labels(images, classes, f"{config.dataset}, {part} split")
    return cut(parts, classes, config)


def split_names(config: Config) -> dict[str, str]:
    """What the dataset calls the images of each part of a run; those of a part that is missing are held out."""
    datasets.disable_caching()  # or the splits' indices are written into the user's own folder
    test = "" if config.test_fraction else config.test_split
    names = {"train": config.train_split, "validation": config.validation_split, "test": test}
    names = {part: name for part, name in names.items() if name}
    if not config.allow_overlap:
        _check_overlap(names)
    return names


def cut(parts: dict[str, Any], classes: list[str], config: Config) -> Splits:
    """Train, validation and test of the parts that there are. Raises InputError where two of them are the same images."""
    allowed, num_train = allowed_places(config.dataset), len(parts["train"])
    if not config.allow_overlap:
        _check_same_images(parts, allowed, config)
    for part, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if part not in parts:
            parts["train"], parts[part] = _hold_out(parts["train"], fraction * num_train, part, len(classes))
    sizes = {"train": config.max_train_images, "validation": config.max_eval_images, "test": config.max_eval_images}
    parts = {part: _subset(parts[part], size) for part, size in sizes.items()}
    return Splits(**parts, classes=classes, fingerprint=fingerprint(parts.values(), classes, allowed))


def first_images(split: "datasets.Dataset | ParquetStream", config: Config, count: int) -> list[tuple]:
    """(image, class index) of the first rows of a split that can be read, at most `count` of them."""
    allowed = allowed_places(config.dataset)
    rows = (
        (read(row["image"], i, file_name(row["image"]), config, allowed), row["label"])
        for i, row in enumerate(encoded(split))
    )
    return list(itertools.islice((row for row in rows if not isinstance(row[0], BadImage)), count))


def encoded(split: "datasets.Dataset | ParquetStream") -> Any:
    """The same with images, and maps, as the bytes or the path of a file."""
    if isinstance(split, ParquetStream):
        return split
    for column in {"image", "map"} & {*split.features}:
        split = split.cast_column(column, datasets.Image(decode=False))
    return split


def two_columns(split: datasets.Dataset, config: Config) -> datasets.Dataset:
    """A split of "image" and "label", whatever they are called there."""
    image, label = find_columns(split.features, config)
    return split.select_columns([image, label]).rename_columns(
        {k: v for k, v in {image: "image", label: "label"}.items() if k != v}
    )


def _labels(split: datasets.Dataset) -> np.ndarray:
    return np.asarray(split.with_format("numpy")["label"][:], dtype=np.int64)


def _check_overlap(names: dict[str, str]) -> None:
    for one, other in itertools.combinations(names, 2):
        if names[one] == names[other]:
            raise InputError(
                f"{one}_split and {other}_split are both '{names[one]}', the same images: name another split, hold images "
                f"out with {other}_split='' and {other}_fraction=0.1, or set allow_overlap=true where it is meant"
            )


def _class_names(train: datasets.Dataset, config: Config) -> list[str]:
    label = train.features["label"]
    if isinstance(label, datasets.ClassLabel):
        return list(label.names)
    numbers = np.unique(_labels(train))
    numbers = numbers[numbers >= 0]  # the others are refused later on, by place
    if len(numbers) and numbers[-1] >= len(numbers):
        raise InputError(
            f"{config.dataset}, train split: {len(numbers)} different labels from {numbers[0]} to {numbers[-1]}, which leave "
            "out some between: number classes 0, 1, 2, ..., or save them as a ClassLabel "
            f"(dataset.class_encode_column('{config.label_column or 'label'}'))"
        )
    return [str(number) for number in numbers]


def _check_labels(split: datasets.Dataset, classes: list[str], where: str) -> None:
    label, num_classes = split.features["label"], len(classes)
    if isinstance(label, datasets.ClassLabel):
        check_class_names(label.names, classes, where)
    labels = _labels(split)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise InputError(
            f"{where}: {len(wrong)} labels outside the {num_classes} classes, the first {labels[wrong[0]]} at index "
            f"{wrong[0]}; a split whose labels are all -1 is unlabelled, choose another"
        )


def _hold_out(
    images: datasets.Dataset, count: float, part: str, num_classes: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The images without, and those of, a part; each class keeps its share in both where it has enough images."""
    held_out, stratify = math.ceil(count), None
    if isinstance(images.features.get("label"), datasets.ClassLabel):
        counts = np.bincount(_labels(images), minlength=num_classes)
        enough = counts[counts > 0].min() >= 2 and min(held_out, len(images) - held_out) >= (counts > 0).sum()
        stratify = "label" if enough else None
    try:
        parts = images.train_test_split(held_out, seed=SPLIT_SEED, stratify_by_column=stratify)
    except ValueError as error:
        raise InputError(f"{part}_fraction: {held_out} of {len(images)} images: {error}") from None
    return parts["train"], parts["test"]


def _subset(split: datasets.Dataset, size: int) -> datasets.Dataset:
    if not 0 < size < len(split):
        return split
    return split.shuffle(seed=SPLIT_SEED).select(range(size))


def _check_same_images(parts: dict[str, Any], allowed: tuple[str, ...], config: Config) -> None:
    """Raises InputError where two splits have as many images, and those of a sample are the same files."""
    for one, other in itertools.combinations(parts, 2):
        if len(parts[one]) != len(parts[other]):
            continue
        first = any(isinstance(parts[part], ParquetStream) for part in (one, other))
        pairs = zip(*(_sample(parts[part], first, allowed) for part in (one, other)))
        same = [len(a) if a == b else -1 for a, b in pairs]
        if min(same) >= 0 and max(same) > 0:  # where all are missing, none are the same
            raise InputError(
                f"dataset '{config.dataset}': its {one} images and its {other} images are the same: mend the dataset, "
                f"name another split as {other}_split, or set allow_overlap=true where it is meant"
            )


def _sample(
    split: "datasets.Dataset | ParquetStream", first: bool, allowed: tuple[str, ...], column: str = "image"
) -> Iterator[bytes]:
    """The encoded bytes of up to 64 images, the first or evenly spread; none of an image that is missing."""
    rows = encoded(split)
    if first:
        chosen: Iterable[dict] = itertools.islice(rows, SAMPLE)
    else:
        chosen = (rows[int(i)] for i in np.linspace(0, len(rows) - 1, num=min(SAMPLE, len(rows)), dtype=int))
    for row in chosen:
        try:
            yield content(row[column], allowed)
        except (OSError, ValueError):  # reported where its image is wanted; the latter is of a path with a zero byte
            yield b""


def fingerprint(splits: Iterable, classes: list[str], allowed: tuple[str, ...]) -> str:
    """sha256 over classes, sizes, all labels or objects and the encoded bytes of up to 64 images, and maps, of each split.

    Of a stream, not to read all of it: the number of its rows, the sizes of its files, and its first 64 images.
    """
    digest = hashlib.sha256(json.dumps(classes).encode())
    for split in splits:
        streamed = isinstance(split, ParquetStream)
        if streamed:
            digest.update(json.dumps([len(split), split.file_sizes()]).encode())
        elif "label" in split.features:
            digest.update(_labels(split).tobytes())
        elif "objects" in split.features:
            for rows in split.select_columns(["image_id", "objects"]).iter(1000):
                digest.update(json.dumps(rows).encode())
        else:
            digest.update(json.dumps(split["image_id"][:]).encode())
            for stored in _sample(split, streamed, allowed, "map"):
                digest.update(stored)
        for image in _sample(split, streamed, allowed):
            digest.update(image)
    return digest.hexdigest()[:16]
