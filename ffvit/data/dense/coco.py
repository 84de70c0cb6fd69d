"""Folders in COCO's layout: annotations/instances_<split>.json, and images in images/ or in a folder called as the split.

The year that COCO adds to a split's name, as in instances_train2017.json and train2017/, is left out of it: the split is
"train".
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import datasets

from ffvit.data.dense.headers import MOST_CHECKED, checked_size, evenly
from ffvit.data.dense.objects import checked_objects, objects_column
from ffvit.data.folders import SPLIT_NAMED, allowed_places, no_such_split
from ffvit.data.sources import check_class_names
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import read_json

MOST_JSON_BYTES = 2 * 10**9  # of an annotation file; COCO's largest has 0.5 GB, and takes ten times that in memory
NAME = re.compile(r"instances_(.+?)(?:20\d\d)?\.json")


def annotation_files(root: Path) -> dict[str, Path]:
    """By split; none where the folder is not in COCO's layout."""
    folder = root / "annotations"
    files = sorted(folder.glob("instances_*.json")) if folder.is_dir() else []
    return {match[1]: file for file in files if (match := NAME.fullmatch(file.name))}


def find_split(wanted: str, there: Any, dataset: str) -> str:
    """The name of a split, which may be another word for it: "validation" is "val". Raises InputError for none or several."""
    if wanted in there:
        return wanted
    alike = [name for name in there if SPLIT_NAMED.get(name, name) == SPLIT_NAMED.get(wanted, wanted)]
    if len(alike) != 1:
        raise InputError(no_such_split(dataset, wanted, there))
    return alike[0]


def open_coco(root: Path, wanted: list[str], config: Config) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The wanted splits, the training images' first, whose categories are everyone's; and the classes, by category id.

    Columns: see ffvit.data.dense.splits. Raises InputError for broken annotations.
    """
    files = annotation_files(root)
    found: dict[str, datasets.Dataset] = {}
    classes: list[str] = []
    for name in dict.fromkeys(wanted):
        file = files[find_split(name, files, config.dataset)]
        content = read_annotations(file)
        numbers, own = _categories(content, file)
        classes = classes or own
        check_class_names(own, classes, f"{config.dataset}, {file.name}")
        rows = _rows(content, numbers, file, _image_folder(root, file, content["images"], config), config)
        found[name] = datasets.Dataset.from_dict(
            {column: [row[column] for row in rows] for column in ("image", "image_id", "objects")},
            datasets.Features(
                image=datasets.Image(), image_id=datasets.Value("int64"), objects=objects_column(classes)
            ),
        )
    return found, classes


def read_annotations(file: Path) -> dict[str, Any]:
    """The content of an annotation file. Raises InputError for what is none of COCO's."""
    try:
        content = read_json(file, MOST_JSON_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} does not hold COCO's annotations ({error}): put a JSON file of at most "
            f"{MOST_JSON_BYTES / 1e9:g} GB in its place"
        ) from None
    for kind, number in (("images", "id"), ("annotations", "image_id"), ("categories", "id")):
        entries = content.get(kind)
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and type(e.get(number)) is int for e in entries
        ):
            raise InputError(
                f"{file} does not hold COCO's annotations: '{kind}' must be a list of objects with a whole number as "
                f"'{number}'; see https://cocodataset.org/#format-data"
            )
    return content


def _categories(content: dict[str, Any], file: Path) -> tuple[dict[int, int], list[str]]:
    """Class by category id, and the names of the classes."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in content["categories"]}
    if not names or not len({*names.values()}) == len(names) == len(content["categories"]):
        raise InputError(f"{file}: 'categories' must have at least one entry, and each an id and a name of its own")
    ids = sorted(names)
    return {number: i for i, number in enumerate(ids)}, [names[number] for number in ids]


def _image_folder(root: Path, file: Path, images: list[dict], config: Config) -> Path:
    """Where the first image of a split lies. Raises InputError where none of the usual places has it."""
    if not images:
        raise InputError(f"dataset '{config.dataset}': {file.name} lists no images: name another split")
    full = file.stem.removeprefix("instances_")
    short = NAME.fullmatch(file.name)[1]  # type: ignore[index]  # its file was found by that name
    places = list(dict.fromkeys(("images", full, f"images/{full}", short, f"images/{short}")))
    for place in places:
        if any((root / place / str(image.get("file_name"))).is_file() for image in images[:10]):
            return root / place
    if config.bad_images == "skip":
        return root / places[0]
    raise InputError(
        f"dataset '{config.dataset}': {images[0].get('file_name')!r:.200}, which {file.name} lists, is in none of "
        f"{', '.join(f'{place}/' for place in places)}: put the images into one of them"
    )


def _rows(content: dict[str, Any], numbers: dict[int, int], file: Path, folder: Path, config: Config) -> list[dict]:
    allowed = allowed_places(config.dataset)
    annotations: dict[Any, list[dict]] = defaultdict(list)
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    rows: list[dict] = []
    heads, seen = {*evenly(len(content["images"]), MOST_CHECKED)}, set()
    for place, image in enumerate(content["images"]):
        number, name = image["id"], image.get("file_name")
        where = f"{file.name}, image {number} ({name!r:.200})"
        if number in seen:
            raise InputError(f"{where}: its id is there twice: give each image its own")
        seen.add(number)
        if not isinstance(name, str) or name.startswith("/") or ".." in Path(name).parts or "\0" in name:
            raise InputError(f"{where}: the file_name names no file below {folder}: mend it")
        said = image.get("width"), image.get("height")
        if not all(type(side) is int and side > 0 for side in said):
            raise InputError(f"{where}: width and height must be whole numbers of pixels, got {said}")
        path = str(folder / name)
        if place in heads or not Path(path).is_file():
            checked_size({"bytes": None, "path": path}, allowed, said, where, config)
        objects = checked_objects(annotations.pop(number, ()), numbers, *said, where, config)
        rows.append({"image": path, "image_id": number, "objects": objects})
    if annotations:
        number, first = next(iter(annotations.items()))
        raise InputError(
            f"{file.name}, annotation {first[0].get('id')!r:.80}: there is no image {number!r:.80}: list it in 'images', or "
            "take the annotation out"
        )
    return rows
