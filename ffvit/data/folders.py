"""Folders of images by class: <class>/<image>, or <split>/<class>/<image>.

The folders on top alone say which images belong to which split. The datasets library reads it out of file names too: a
folder with one bullet_train.JPEG it takes for a training split of that image, and no other.
"""

import contextlib
import functools
import io
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import PIL.Image
from datasets.data_files import SPLIT_KEYWORDS
from huggingface_hub.constants import HF_HUB_CACHE

from ffvit.data.embedded import EMBEDDED
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import ROOT

SPLIT_NAMED = {word: str(split) for split, words in SPLIT_KEYWORDS.items() for word in words}  # "val": "validation"
LAYOUT = "images lie in <class>/<image>, or in <split>/<class>/<image> with splits train, validation (or val) and test"

OUTSIDE = "it lies outside the dataset's folder, and nothing is read there: move it into the folder"

Parts = tuple[str, ...]  # of the path of a file or folder below another


def find_folder(dataset: str) -> Path | None:
    """The folder that a dataset is; None for what is embedded and for names of the hub."""
    if dataset in EMBEDDED:
        return None
    try:
        folder = Path(dataset).expanduser()
        if not folder.is_dir() and (ROOT / folder).is_dir():
            folder = ROOT / folder  # an experiment file's path means the same in a notebook, which runs in notebooks/
        return folder.absolute() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # of a name too long, of nobody's home, with a zero byte
        return None


def allowed_places(dataset: str) -> tuple[str, ...]:
    """Where a dataset's files may lie, each with "/" at its end: below its folder, or in the hub libraries' caches."""
    folder, library = find_folder(dataset), datasets.config
    caches = library.HF_DATASETS_CACHE, library.DOWNLOADED_DATASETS_PATH, library.EXTRACTED_DATASETS_PATH, HF_HUB_CACHE
    places = [Path(place).absolute() for place in ([folder] if folder else caches)]
    return tuple({_with_slash(plain(place)) for place in places for plain in (os.path.normpath, os.path.realpath)})


@contextlib.contextmanager
def open_inside(path: str, allowed: tuple[str, ...]) -> Iterator[io.FileIO]:
    """A file of a dataset, opened to be read. allowed: see allowed_places.

    A link that lies below the folder may lead out of it, as people link ImageNet's classes together: its owner put it
    there. What a table or a dataset card names must lie below the folder by its path, and all must be regular files.
    Raises OSError for a path elsewhere, and for pipes, devices and folders.
    """
    # Without "..", which leads up from where a link leads: what is checked is what is opened.
    plain = os.path.normpath(path if path.startswith("/") else Path(path).absolute())
    if not plain.startswith(allowed):
        raise OSError(OUTSIDE)
    with open(plain, "rb", buffering=0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("it is no regular file: put one in its place, or take it away")
        yield file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # or it would wait at a pipe for somebody who writes


def everything_below(root: Path) -> tuple[list[Parts], list[Parts]]:
    """All that lies below a folder, hidden files and folders left out, such as .DS_Store and __MACOSX.

    Raises OSError for a folder that cannot be read, InputError for a link to a folder that it lies in itself.
    """
    files: list[Parts] = []
    folders: list[Parts] = []
    # A folder's parts; where it lies, without links; before that, the folders whose links led there.
    todo: list[tuple[Parts, tuple[str, ...]]] = [((), (os.path.realpath(root),))]
    while todo:
        parts, places = todo.pop()
        with os.scandir(places[-1]) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                here = (*parts, entry.name)
                if not _is_folder(entry):
                    files.append(here)
                elif not entry.name.startswith("__"):
                    folders.append(here)
                    if entry.is_symlink():
                        todo.append((here, (*places, _target(entry.path, places, "/".join((str(root), *here))))))
                    else:
                        todo.append((here, (*places[:-1], entry.path)))
    return files, folders


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link to itself
        return False


def _target(link: str, places: tuple[str, ...], shown: str) -> str:
    target = os.path.realpath(link)
    if any(_with_slash(place).startswith(_with_slash(target)) for place in places):
        raise InputError(f"{shown} is a link to a folder that it lies in itself: take it away")
    return target


def _with_slash(folder: str) -> str:
    return folder.rstrip("/") + "/"


def open_class_folders(root: Path, wanted: list[str], dataset: str) -> dict[str, datasets.Dataset]:
    """The wanted splits, or all, the training images' first: their classes are everyone's.

    Raises InputError for a split that is not there, an image out of place, an empty class folder, and a class without
    training images.
    """
    files, folders = everything_below(root)
    images = [parts for parts in files if is_image(parts[-1])]
    if not images:
        raise InputError(f"dataset '{dataset}': the folder holds no images, no parquet files and no save_to_disk")
    root, images, folders = _unwrapped(root, images, folders)
    of_split = _folders_of_splits(images, dataset)
    found: dict[str, datasets.Dataset] = {}
    classes: list[str] = []
    for split in dict.fromkeys(wanted or training_first(of_split)):
        if split not in of_split:
            raise InputError(no_such_split(dataset, split, of_split))
        if len(of_split[split]) > 1:
            raise InputError(
                f"dataset '{dataset}': {[name for (name,) in of_split[split]]} are all called after the {split} split; keep one"
            )
        below = of_split[split][0]
        mine = sorted(_below(below, images), key="/".join)
        here = _classes(mine, _below(below, folders), below, dataset)
        classes = classes or here
        if unknown := sorted(set(here) - set(classes)):
            hint = suggest(unknown[0], classes)
            if not hint:  # there are many classes
                hint = f", which have {len(classes):,}: take it away, or give it training images"
            raise InputError(
                f"dataset '{dataset}': class folder '{'/'.join((*below, unknown[0]))}' is no class of the training images"
                f"{hint}"
            )
        number = {name: i for i, name in enumerate(classes)}
        found[split] = datasets.Dataset.from_dict(
            {
                "image": ["/".join((str(root), *below, *parts)) for parts in mine],
                "label": [number[name] for name, _ in mine],
            },
            datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=classes)),
        )
    return found


def is_image(name: str) -> bool:
    return name.lower().endswith(_suffixes())


def training_first(splits: Iterable[str]) -> list[str]:
    return sorted(splits, key=lambda name: (name != "train", name))


def no_such_split(dataset: str, split: str, there: Iterable[str]) -> str:
    return (
        f"dataset '{dataset}' has no split '{split}', it has {sorted(there)}; set train_split, validation_split and "
        "test_split; where there are no test images, test_fraction=0.1 holds out a tenth of the training images"
    )


def _unwrapped(root: Path, images: list[Parts], folders: list[Parts]) -> tuple[Path, list[Parts], list[Parts]]:
    """The same from within a folder that only wraps all the others, such as data/ or one that a zip file was made of."""
    while all(len(parts) > 2 for parts in images) and len(tops := {parts[0] for parts in images}) == 1:
        [top] = tops
        if top.lower() in SPLIT_NAMED:
            break
        root, images, folders = root / top, _below((top,), images), _below((top,), folders)
    return root, images, folders


def _folders_of_splits(images: list[Parts], dataset: str) -> dict[str, list[Parts]]:
    """Split -> the folders that are called so. A folder called train that holds images is a class among others."""
    tops = {parts[0] for parts in images if len(parts) > 1}
    named = {top for top in tops if top.lower() in SPLIT_NAMED}
    if not named or named != tops and not any(parts[0] in named and len(parts) > 2 for parts in images):
        return {"train": [()]}
    for parts in images:
        if parts[0] not in named:
            raise InputError(
                f"dataset '{dataset}': '{'/'.join(parts)}' lies outside the splits {sorted(named)}: move it away; {LAYOUT}"
            )
    of_split: dict[str, list[Parts]] = {}
    for top in sorted(named):
        of_split.setdefault(SPLIT_NAMED[top.lower()], []).append((top,))
    return of_split


def _below(folder: Parts, every: list[Parts]) -> list[Parts]:
    depth = len(folder)
    return [parts[depth:] for parts in every if parts[:depth] == folder and len(parts) > depth]


def _classes(images: list[Parts], folders: list[Parts], split: Parts, dataset: str) -> list[str]:
    for parts in images:
        if len(parts) != 2:
            raise InputError(f"dataset '{dataset}': '{'/'.join(split + parts)}' is out of place: {LAYOUT}")
    classes = {name for name, _ in images}
    for parts in folders:
        if len(parts) == 1 and parts[0] not in classes:
            raise InputError(
                f"dataset '{dataset}': class folder '{'/'.join(split + parts)}' holds no image: fill it, or take it away"
            )
    return sorted(classes)


@functools.cache
def _suffixes() -> tuple[str, ...]:
    known = PIL.Image.registered_extensions()
    return tuple(suffix for suffix, kind in known.items() if kind in PIL.Image.OPEN)
