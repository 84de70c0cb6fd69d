"""Tables with Hugging Face's usual columns: image and objects (bbox, category, ...), or image and a map that is an image too."""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
import numpy as np

from ffvit.data.dense.headers import MOST_CHECKED, checked_size, evenly
from ffvit.data.dense.maps import IGNORED, read_map
from ffvit.data.dense.objects import checked_objects, objects_column
from ffvit.data.folders import allowed_places
from ffvit.data.images import file_name
from ffvit.data.sources import check_class_names
from ffvit.data.splits import encoded
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

IMAGE_ID = "image_id"


def has_objects(split: datasets.Dataset) -> bool:
    return "objects" in split.features


def has_maps(split: datasets.Dataset, config: Config) -> bool:
    """Whether there is a second image column, which label_column does not turn down."""
    return config.label_column != "objects" and len(_pictures(split)) > 1


def with_objects(
    found: Mapping[str, datasets.Dataset], config: Config
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """The splits with columns "image", "image_id" and "objects", checked, and the classes of the first.

    Boxes are COCO's: x, y, width, height in pixels. Raises InputError for broken annotations.
    """
    classes: list[str] = []
    made = {}
    for name, split in found.items():
        where = f"{config.dataset}, split '{name}'"
        own = _class_names(split, where)
        classes = classes or own or _numbers(split, where)
        if own:
            check_class_names(own, classes, where)
        made[name] = _checked(_renamed(split, {_image_column(split, config): "image"}), where, classes, config)
    return made, classes


def with_maps(found: Mapping[str, datasets.Dataset], config: Config) -> dict[str, datasets.Dataset]:
    """The splits with columns "image", "image_id" and "map"; the classes are not named there."""
    made = {}
    for name, split in found.items():
        image = _image_column(split, config)
        pictures = [name for name in _pictures(split) if name != image]
        wanted = [config.label_column] if config.label_column else pictures
        if len(wanted) != 1 or wanted[0] not in pictures:
            raise InputError(
                f"dataset '{config.dataset}': {wanted or 'no column'} as the one image column with maps beside '{image}', "
                f"among {sorted(split.features)}: name it with label_column"
            )
        made[name] = _numbered(_renamed(split, {image: "image", wanted[0]: "map"}), range(len(split)))
    return made


def count_classes(train: datasets.Dataset, config: Config) -> list[str]:
    """Numbers as names, "0", "1", ..., up to the highest that a training map has: all of them are read."""
    allowed, highest = allowed_places(config.dataset), -1
    for row in encoded(train):
        try:
            found = read_map(row["map"], 2**16, config, allowed)
        except OSError:  # reported where its image is wanted
            continue
        highest = max(highest, int(np.where(found == IGNORED, -1, found).max()))
    return [str(number) for number in range(highest + 1)]


def _pictures(split: datasets.Dataset) -> list[str]:
    return [name for name, kind in split.features.items() if isinstance(kind, datasets.Image)]


def _image_column(split: datasets.Dataset, config: Config) -> str:
    pictures = _pictures(split)
    wanted = config.image_column or ("image" if "image" in pictures else (pictures[0] if len(pictures) == 1 else ""))
    if wanted not in pictures:
        raise InputError(
            f"dataset '{config.dataset}': no image column {wanted!r} among {sorted(split.features)}: name it with image_column"
        )
    return wanted


def _renamed(split: datasets.Dataset, names: dict[str, str]) -> datasets.Dataset:
    kept = [*names, *({IMAGE_ID, "objects", "width", "height"} & {*split.features} - {*names})]
    split = split.select_columns([name for name in split.column_names if name in kept])
    return split.rename_columns({old: new for old, new in names.items() if old != new})


def _numbered(split: datasets.Dataset, numbers: Any, **more: tuple[list, Any]) -> datasets.Dataset:
    """The images, and maps, of a split with numbers beside them, and more columns: values and features."""
    images = split.select_columns([name for name in ("image", "map") if name in split.features])
    columns = {IMAGE_ID: (list(numbers), datasets.Value("int64")), **more}
    kinds = datasets.Features({name: kind for name, (_, kind) in columns.items()})
    beside = datasets.Dataset.from_dict({name: values for name, (values, _) in columns.items()}, kinds)
    return datasets.concatenate_datasets([images, beside], axis=1)  # add_column would pickle all, to name a cache


def _class_names(split: datasets.Dataset, where: str) -> list[str]:
    """Of a ClassLabel; none of plain numbers."""
    kind = split.features["objects"]
    of_one: Any = getattr(kind, "feature", kind)  # a list of objects, or lists of their parts
    category = of_one.get("category") if isinstance(of_one, dict) else None
    category = getattr(category, "feature", category)
    if isinstance(category, datasets.ClassLabel):
        return list(category.names)
    if "int" not in getattr(category, "dtype", ""):
        raise InputError(f"{where}: 'objects' needs 'bbox' and 'category', a ClassLabel or class numbers, got {kind}")
    return []


def _numbers(train: datasets.Dataset, where: str) -> list[str]:
    """Class numbers as names; they must be 0, 1, 2, ..., as with classification. Others are refused later on, by place."""
    found: set[int] = set()
    for row in train.select_columns(["objects"]):
        objects = row["objects"] or {}
        given = objects.get("category") if isinstance(objects, dict) else [one.get("category") for one in objects]
        found.update(number for number in given or () if number is not None and number >= 0)
    if found and max(found) >= len(found):
        raise InputError(
            f"{where}: {len(found)} different categories from {min(found)} to {max(found)}, which leave out some between: "
            "number classes 0, 1, 2, ..., or save them as a ClassLabel"
        )
    return [str(number) for number in sorted(found)]


def _annotations(objects: Any) -> Iterator[dict]:
    """The objects of an image one by one, under COCO's names."""
    if isinstance(objects, dict):
        lists = {name: values for name, values in objects.items() if values is not None}
        if len({len(values) for values in lists.values()}) > 1:
            raise ValueError("the lists of its objects are of different lengths")
        objects = [dict(zip(lists, values)) for values in zip(*lists.values())]
    for number, one in enumerate(objects or ()):
        yield {"id": number, **{k: v for k, v in one.items() if v is not None}, "category_id": one.get("category")}


def _checked(split: datasets.Dataset, where: str, classes: list[str], config: Config) -> datasets.Dataset:
    allowed = allowed_places(config.dataset)
    numbers = {number: number for number in range(len(classes))}
    heads, ids, columns = {*evenly(len(split), MOST_CHECKED)}, [], []
    for place, row in enumerate(encoded(split)):
        here = f"{where}, row {place}" + (f" ({name})" if (name := file_name(row["image"])) else "")
        said = (row["width"], row["height"]) if row.get("width") and row.get("height") else None
        size = checked_size(row["image"], allowed, said, here, config) if place in heads or not said else said
        try:
            found = list(_annotations(row["objects"]))
        except ValueError as error:
            raise InputError(f"{here}: {error}: mend the row") from None
        # Of an image that cannot be read, and is skipped, nothing can be checked, or trained on.
        width, height = size or (1, 1)
        columns.append(checked_objects(found if size else (), numbers, width, height, here, config))
        ids.append(row[IMAGE_ID] if isinstance(row.get(IMAGE_ID), int) else place)
    if len({*ids}) != len(ids):
        number = next(number for i, number in enumerate(ids) if number in ids[:i])
        raise InputError(f"{where}: image_id {number} is there twice: give each image its own")
    return _numbered(split, ids, objects=(columns, objects_column(classes)))
