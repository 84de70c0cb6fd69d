"""The images of a run and their annotations, for the tasks that say where things are."""

from pathlib import Path
from typing import Any

import datasets

from ffvit.data.dense import columns, maps
from ffvit.data.dense.coco import annotation_files, open_coco
from ffvit.data.dense.objects import check_not_empty
from ffvit.data.folders import find_folder
from ffvit.data.sources import is_table, open_splits, opening
from ffvit.data.splits import Splits, cut, encoded, split_names
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

BACKGROUND = "background"  # the first class of maps that are drawn from the masks of objects


def load_splits(config: Config) -> Splits:
    """Open the dataset of a run and cut it into train, validation and test.

    Columns: "image" (datasets.Image), "image_id" (int), and "objects" (ffvit.data.dense.objects.OBJECTS) or "map"
    (datasets.Image of class numbers as they are stored; read them by ffvit.data.dense.maps.read_map). For
    semantic_segmentation of a dataset that has objects with masks and no maps, a map is drawn of the objects when an image
    is read, and "background" is its first class.
    Raises InputError for a dataset, split or column that is not there, splits that overlap, and broken annotations.
    """
    if config.streaming or config.augment == "batch":
        raise InputError(f"{config.task} reads images one by one: set streaming=false and augment='image'")
    names = split_names(config)
    found, classes = _open([*names.values()], config)
    parts: dict[str, Any] = {part: found[name] for part, name in names.items()}
    if "objects" in parts["train"].features:
        check_not_empty(parts["train"], config)
        if config.task == "semantic_segmentation":
            classes = [BACKGROUND, *classes]
    else:
        if len(classes) > maps.MOST_CLASSES:
            raise InputError(
                f"dataset '{config.dataset}': {len(classes)} classes, of which a map can tell {maps.MOST_CLASSES}"
            )
        for part, images in parts.items():
            maps.check_maps(encoded(images), f"{config.dataset}, {part} split", len(classes), config)
    return cut(parts, classes, config)


def _open(wanted: list[str], config: Config) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The wanted splits and the classes."""
    root, semantic = find_folder(config.dataset), config.task == "semantic_segmentation"
    if root is not None and not is_table(root, config.dataset):
        with opening(config.dataset):
            if semantic and (pairs := maps.open_pairs(root, wanted, config)):
                return pairs
            if annotation_files(root):
                return open_coco(root, wanted, config)
        raise InputError(_nothing_known(root, semantic))
    found = open_splits(wanted, config)
    train = found[wanted[0]]
    if semantic and columns.has_maps(train, config):
        with_maps = columns.with_maps(found, config)
        if root is not None and any((root / name).is_file() for name in maps.NAME_FILES):
            return with_maps, maps.class_names(root, config)
        return with_maps, columns.count_classes(with_maps[wanted[0]], config)
    if columns.has_objects(train):
        return columns.with_objects(found, config)
    raise InputError(
        f"dataset '{config.dataset}' has no column 'objects' with bbox and category{', nor two image columns' * semantic}, "
        f"it has {sorted(train.features)}: choose a dataset with what {config.task} learns"
    )


def _nothing_known(root: Path, semantic: bool) -> str:
    layouts = "annotations/instances_train.json with images in images/ or train/"
    if semantic:
        layouts += f"; or maps: {maps.LAYOUTS}"
    return f"the folder {root} holds no annotations in a known layout: {layouts}; or a table with image and objects"
