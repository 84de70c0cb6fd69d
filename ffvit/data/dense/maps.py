"""Semantic maps: images whose pixels are classes, read as such; what the classes are called; folders of pairs.

Known layouts, in which a map is called as its image, but for the ending:

    ADE20K             images/training, images/validation       annotations/training, annotations/validation
    COCO-stuff         images/train2017, or train2017            stuffthingmaps/train2017
    lists of a split   images/, and train.txt with a name a line masks/
    COCO's instances   images/, and annotations/instances_train.json  semantic/
"""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from ffvit.data.dense.coco import annotation_files, find_split, read_annotations
from ffvit.data.dense.headers import checked_size, evenly
from ffvit.data.folders import SPLIT_NAMED, allowed_places, is_image
from ffvit.data.images import decode
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

IGNORED = 255  # of a pixel that counts neither in training nor in evaluation, whatever the files call it
MOST_CLASSES = 255
MOST_CHECKED = 500  # maps of a split that are read before training; of more, as many evenly spread
NAME_FILES = ("classes.json", "annotations/semantic_classes.json", "objectInfo150.txt", "labels.txt")
LAYOUTS = (
    "images/training with annotations/training, images/train2017 with stuffthingmaps/train2017, or images/ with masks/ and "
    "a train.txt that lists names"
)


def read_map(encoded: dict | None, num_classes: int, config: Config, allowed: tuple[str, ...]) -> np.ndarray:
    """(H, W) int64 of classes from 0, and IGNORED. Raises OSError for a file that is no map, ValueError for a class beyond."""
    image = decode(encoded, None, allowed)
    if len(image.getbands()) != 1:
        raise OSError(f"a map has one channel, this one has {len(image.getbands())} ({image.mode}): save class numbers")
    stored = np.asarray(image).astype(np.int64)
    classes = stored - 1 if config.reduce_zero_label else stored
    ignored = stored == config.ignore_index
    if config.reduce_zero_label:
        ignored |= stored == 0
    wrong = ~ignored & (classes >= num_classes)
    if wrong.any():
        y, x = (int(v[0]) for v in np.nonzero(wrong))
        raise ValueError(
            f"value {stored[y, x]} at x={x}, y={y} is none of the {num_classes} classes, nor ignore_index="
            f"{config.ignore_index}: mend the map, set ignore_index or reduce_zero_label, or name all classes"
        )
    classes[ignored] = IGNORED
    return classes


def open_pairs(root: Path, wanted: list[str], config: Config) -> tuple[dict[str, datasets.Dataset], list[str]] | None:
    """The wanted splits with columns "image", "image_id" and "map", and the classes; None of a folder in no known layout.

    Raises InputError for an image without a map, a list of files that are not there, and classes that have no names.
    """
    for find in (_folders_of_splits, _lists_of_splits, _beside_instances):
        if parts := find(root):
            break
    else:
        return None
    classes, found = class_names(root, config), {}
    for name in dict.fromkeys(wanted):
        images, maps, listed = parts[find_split(name, parts, config.dataset)]
        pairs = _pairs(images, maps, listed, config)
        found[name] = datasets.Dataset.from_dict(
            {"image": [image for image, _ in pairs], "image_id": range(len(pairs)), "map": [file for _, file in pairs]},
            datasets.Features(image=datasets.Image(), image_id=datasets.Value("int64"), map=datasets.Image()),
        )
    return found, classes


def class_names(root: Path, config: Config) -> list[str]:
    """What the classes of the maps are called, in order. Raises InputError where no file tells.

    classes.json: {"classes": ["wall", ...]}, a list of names, or of {"name"}. ADE20K's objectInfo150.txt has a table,
    COCO-stuff's labels.txt lines "1: person" that begin with 0, which is no class.
    """
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        raise InputError(
            f"dataset '{config.dataset}': none of {', '.join(NAME_FILES)} tells what the classes are called: write "
            'classes.json, such as {"classes": ["wall", "floor"]}, in the order of the numbers in the maps'
        )
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            content = json.loads(text)
            listed = content["classes"] if isinstance(content, dict) else content
            names = [entry["name"] if isinstance(entry, dict) else entry for entry in listed]
        elif file.name == "labels.txt":
            names = [line.partition(":")[2].strip() for line in text.splitlines() if line.strip()][1:]
        else:
            names = [line.split("\t")[-1].split(",")[0].strip() for line in text.splitlines()[1:] if line.strip()]
        if not names or not all(isinstance(name, str) and name for name in names):
            raise ValueError("names must be words")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{file} does not name the classes ({error!r:.200}): write classes.json, such as "
            '{"classes": ["wall", "floor"]}'
        ) from None
    return names


def check_maps(split: Any, where: str, num_classes: int, config: Config) -> None:
    """Reads maps of a split, all of a small one.

    Raises InputError for a class beyond the list, a file that is no map, and a map of another size than its image.
    """
    allowed = allowed_places(config.dataset)
    for row in evenly(len(split), MOST_CHECKED):
        stored = split[row]
        here = f"{where}, row {row} ({map_name(stored)})"
        try:
            found = read_map(stored["map"], num_classes, config, allowed)
        except OSError as error:
            if config.bad_images == "skip":
                continue
            raise InputError(f"{here}: {error}; mend the map, or set bad_images='skip' to go on without it") from None
        except ValueError as error:
            raise InputError(f"{here}: {error}") from None
        checked_size(stored["image"], allowed, (found.shape[1], found.shape[0]), here, config)


def map_name(row: dict) -> str:
    return Path((row["map"] or {}).get("path") or "").name or "a map without a name"


Part = tuple[Path, Path, list[str] | None]  # folders of images and of maps; the names of files, None for all


def _folders_of_splits(root: Path) -> dict[str, Part]:
    """ADE20K's layout, and COCO-stuff's, with the year left out of a split's name."""
    found: dict[str, Part] = {}
    for name in ("annotations", "stuffthingmaps"):
        for maps in sorted((root / name).glob("*/")):
            images = next((p for p in (root / "images" / maps.name, root / maps.name) if p.is_dir()), None)
            if images:
                found[maps.name.removesuffix("2017")] = images, maps, None
    return found


def _lists_of_splits(root: Path) -> dict[str, Part]:
    images, maps = root / "images", root / "masks"
    if not images.is_dir() or not maps.is_dir():
        return {}
    lists = [file for file in sorted(root.glob("*.txt")) if file.is_file() and file.name not in NAME_FILES]
    if not any(file.stem.lower() in SPLIT_NAMED for file in lists):  # a licence, notes
        return {}
    return {file.stem: (images, maps, _lines(file)) for file in lists}


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _beside_instances(root: Path) -> dict[str, Part]:
    images, maps = root / "images", root / "semantic"
    if not images.is_dir() or not maps.is_dir():
        return {}
    there = {file.stem for file in maps.iterdir()}
    found: dict[str, Part] = {}
    for split, file in annotation_files(root).items():
        stems = (Path(str(image["file_name"])).stem for image in read_annotations(file)["images"])
        found[split] = images, maps, [stem for stem in stems if stem in there]
    return found


def _pairs(images: Path, maps: Path, listed: list[str] | None, config: Config) -> list[tuple[str, str]]:
    """(image, map), sorted by name."""
    of_image, of_map = (
        {
            path.relative_to(folder).with_suffix("").as_posix(): path
            for path in sorted(folder.rglob("*"))
            if is_image(path.name)
        }
        for folder in (images, maps)
    )
    names = (
        list(of_image) if listed is None else [name.rpartition(".")[0] if is_image(name) else name for name in listed]
    )
    if not names:
        raise InputError(f"dataset '{config.dataset}': there are no images in {images}")
    for name in names:
        for kind, there, folder in (("image", of_image, images), ("map", of_map, maps)):
            if name not in there:
                raise InputError(
                    f"dataset '{config.dataset}': there is no {kind} '{name}' in {folder}: put it there, or take the name "
                    "away from its list and from the other folder"
                )
    return [(str(of_image[name]), str(of_map[name])) for name in names]
