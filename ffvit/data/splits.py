"""The images of a run: a dataset cut into train, validation and test, with a fingerprint of what they are."""

import contextlib
import hashlib
import itertools
import json
import math
from dataclasses import dataclass

import datasets
import numpy as np

from ffvit.data.images import BadImage, content, file_name, read
from ffvit.data.sources import SPLIT_SEED, choose_split, find_columns, open_dataset, opening, parquet_files
from ffvit.data.stream import ParquetStream
from ffvit.settings.config import Config
from ffvit.system.errors import InputError


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


def first_images(split: "datasets.Dataset | ParquetStream", config: Config, count: int) -> list[tuple]:
    """(image, class index) of the first rows of a split that can be read, at most `count` of them."""
    rows = (
        (read(row["image"], i, file_name(row["image"]), config), row["label"]) for i, row in enumerate(encoded(split))
    )
    return list(itertools.islice((row for row in rows if not isinstance(row[0], BadImage)), count))


def encoded(split: "datasets.Dataset | ParquetStream") -> "datasets.Dataset | ParquetStream":
    return split if isinstance(split, ParquetStream) else split.cast_column("image", datasets.Image(decode=False))


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
