"""Where images come from: those that come with a dependency, a folder of one's own, or the hub."""

import contextlib
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet
from datasets.data_files import sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from ffvit.data.embedded import EMBEDDED
from ffvit.data.folders import (
    OUTSIDE,
    allowed_places,
    everything_below,
    find_folder,
    no_such_split,
    open_class_folders,
    open_inside,
    training_first,
)
from ffvit.data.shards import check_prepared
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import sha256_of

CARDS = ("README.md", ".huggingface.yaml")  # where datasets is told which files to read
TEST_SHARE = 0.2  # of embedded data without splits of their own
SPLIT_SEED = 0  # of held-out parts and subsets: the same images in every run, whatever its seed


def open_splits(wanted: list[str], config: Config) -> dict[str, datasets.Dataset]:
    """The splits of these names, the training images' first; of none, all that there are.

    Raises InputError for a dataset or split that is not there, and for files that number their classes differently.
    """
    dataset = config.dataset
    place = _place(dataset)
    if place in EMBEDDED:
        return _choose(embedded_splits(dataset), wanted, dataset)
    if isinstance(place, Path):
        with opening(dataset):
            if _is_saved(place):
                _check_saved(place, dataset)
                saved = datasets.load_from_disk(str(place))
                return _choose(saved if isinstance(saved, dict) else {"train": saved}, wanted, dataset)
            if not _parquet_below(place, dataset):
                return open_class_folders(place, wanted, dataset)
            check_prepared(place)
    builder, files = _builder(place, dataset)
    with opening(dataset):
        builder.download_and_prepare()
        splits = _choose(builder.as_dataset(), wanted, dataset)
    files = {name: files[name] for name in splits if files.get(name)}
    if config.task == "classification":  # others name their classes once, in the table of the training images
        first = next(iter(splits.values()))
        label = find_columns(first.features, config)[1]
        _check_files(files, label, getattr(first.features[label], "names", []), dataset)
    if not config.allow_overlap:
        check_copies(files, dataset)
    return splits


def embedded_splits(dataset: str) -> datasets.DatasetDict:
    """Data of EMBEDDED: their own splits; else a fifth of each class is the test split."""
    whole = EMBEDDED[dataset]()
    if isinstance(whole, datasets.DatasetDict):
        return whole
    return whole.train_test_split(TEST_SHARE, seed=SPLIT_SEED, stratify_by_column="label")


def is_table(place: Path, dataset: str) -> bool:
    """Whether a folder holds what save_to_disk or to_parquet wrote."""
    return _is_saved(place) or bool(_parquet_below(place, dataset))


def parquet_files(wanted: list[str], config: Config) -> tuple[dict[str, list[str]], datasets.DatasetInfo]:
    """Paths or addresses by split, none of them opened, and what a dataset card tells of them."""
    dataset = config.dataset
    place = _place(dataset)
    if place not in EMBEDDED and not (isinstance(place, Path) and not _parquet_below(place, dataset)):
        if isinstance(place, Path):
            check_prepared(place)
        builder, files = _builder(place, dataset)
        if files and all(path.endswith(".parquet") for path in itertools.chain(*files.values())):
            return _choose(files, wanted, dataset), builder.info
    raise InputError(
        f"dataset '{dataset}' is not made of parquet files, which streaming reads: save it with "
        "dataset.to_parquet('<folder>/train-00000-of-00001.parquet'), or set streaming=false"
    )


def open_parquet(
    files: dict[str, list[str]], label: str, classes: list[str], dataset: str
) -> dict[str, datasets.Dataset]:
    """Splits from these files and no others. Raises InputError where their column `label` is not of these classes."""
    _check_files(files, label, classes, dataset)
    with opening(dataset):
        return datasets.load_dataset("parquet", data_files=files)


def check_copies(files: Mapping[str, list[str]], dataset: str) -> None:
    """Raises InputError where a file on disk is in two splits, or is a copy of another split's. files: by split."""
    of_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    with opening(dataset):
        for split, paths in files.items():
            for path in (Path(path) for path in paths if "://" not in path):
                of_size[path.stat().st_size].append((split, path))
        for alike in of_size.values():
            if len({split for split, _ in alike}) == 1:
                continue
            firsts: dict[str, tuple[str, Path]] = {}
            for split, path in alike:
                other, first = firsts.setdefault(sha256_of(path), (split, path))
                if other != split:
                    raise InputError(
                        f"dataset '{dataset}': {first.name} of split '{other}' and {path.name} of split '{split}' are "
                        "the same file: take one away, or set allow_overlap=true where it is meant"
                    )


def find_columns(features: datasets.Features, config: Config) -> tuple[str, str]:
    """The names of the columns with the images and with the class numbers."""

    def find(wanted: str, kind: str, fits) -> str:
        if wanted and wanted not in features:
            raise InputError(f"dataset '{config.dataset}' has no column '{wanted}', it has {sorted(features)}")
        found = [wanted] if wanted else [name for name, feature in features.items() if fits(name, feature)]
        if len(found) != 1:
            raise InputError(
                f"dataset '{config.dataset}': {'no' if not found else 'more than one'} {kind} column among "
                f"{ {k: type(v).__name__ for k, v in features.items()} }; name it with {kind}_column"
            )
        return found[0]

    image = find(config.image_column, "image", lambda name, feature: isinstance(feature, datasets.Image))
    label = find(
        config.label_column, "label", lambda name, feature: isinstance(feature, datasets.ClassLabel) or name == "label"
    )
    if not isinstance(features[image], datasets.Image):
        raise InputError(f"dataset '{config.dataset}': column '{image}' holds no images")
    kind = features[label]
    if not isinstance(kind, datasets.ClassLabel) and "int" not in getattr(kind, "dtype", ""):
        raise InputError(
            f"dataset '{config.dataset}': column '{label}' holds {getattr(kind, 'dtype', kind)}, not class numbers; "
            f"save it as a ClassLabel (dataset.class_encode_column('{label}'))"
        )
    return image, label


def check_class_names(own: list[str], classes: list[str], where: str) -> None:
    """Raises InputError unless a split or a file names the classes of the training images, in their order."""
    for number, (here, there) in enumerate(itertools.zip_longest(own, classes, fillvalue="none")):
        if here != there:
            raise InputError(
                f"{where}: class {number} is {here}, of the training images it is {there}: the same classes in the same "
                "order are needed, in a dataset card too"
            )


def of_each(files: Iterable[str], ask: Callable[[str], Any], dataset: str) -> list:
    """On the hub every question takes a while: sixteen at a time."""
    with opening(dataset), ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, files))


def read_footer(file: str) -> pyarrow.parquet.FileMetaData:
    with fsspec.open(file) as opened:
        return pyarrow.parquet.read_metadata(opened)


def classes_of(footer: pyarrow.parquet.FileMetaData, label: str) -> list[str] | None:
    """The class names that a parquet file was written with; None: it names none."""
    kind = datasets.Features.from_arrow_schema(footer.schema.to_arrow_schema()).get(label)
    return kind.names if isinstance(kind, datasets.ClassLabel) else None


@contextlib.contextmanager
def opening(dataset: str, cure: str = "") -> Iterator[None]:
    """Says of what fails in opening or reading files what it means. dataset: which, and which of its files if that is known.

    cure: without one, to give another dataset.
    """
    cure = cure or (
        f"Give {_or(EMBEDDED)}, a hub id (with network, and `hf auth login` for gated sets such as ILSVRC/imagenet-1k), or a "
        "local folder"
    )
    try:
        yield
    except InputError:
        raise
    except IndexError:  # what load_from_disk makes of a split without rows
        raise InputError(f"dataset '{dataset}': a split is empty") from None
    except Exception as error:  # a reader fails with whatever its parser stumbled on
        cause: BaseException = error
        while cause.__cause__ and str(cause.__cause__):  # datasets says that something went wrong; its cause says what
            cause = cause.__cause__
        reason = (str(cause) or type(cause).__name__).splitlines()[0]
        raise InputError(f"dataset '{dataset}' cannot be opened: {reason}. {cure}") from None


def _or(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _place(dataset: str) -> Path | str:
    """A folder, or a name of EMBEDDED or a hub id as they are."""
    if dataset in EMBEDDED:
        return dataset
    if folder := find_folder(dataset):
        return folder.resolve()
    if dataset.startswith((".", "/", "~")):
        raise InputError(f"dataset '{dataset}': there is no such folder")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", dataset):  # datasets would take "json" for any such file in this folder
        raise InputError(
            f"dataset '{dataset}' is no folder, and no id of the hub, which has an owner, such as 'uoft-cs/cifar10': give "
            f"one of them, or {_or(EMBEDDED)}"
        )
    return dataset


def _inside(file: Path, dataset: str) -> Path:
    """A file that datasets is going to open by itself. Raises InputError where it may not."""
    try:
        if "::" in str(file) or ".." in file.parts:  # the first is a way from one file into another, for fsspec
            raise OSError(OUTSIDE)
        with open_inside(str(file), allowed_places(dataset)):
            return file
    except OSError as error:
        raise InputError(f"dataset '{dataset}': {file} is not read: {error.strerror or error}") from None


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _check_saved(folder: Path, dataset: str) -> None:
    """Raises InputError where what save_to_disk wrote names files outside the folder."""
    names = ("state.json", "dataset_info.json")
    parts = [folder]
    if not all((folder / name).is_file() for name in names):
        splits = json.loads(_inside(folder / "dataset_dict.json", dataset).read_bytes())["splits"]
        parts = [folder / split for split in splits]
    for part in parts:
        state, _ = (_inside(part / name, dataset) for name in names)
        for file in json.loads(state.read_bytes())["_data_files"]:
            _inside(part / file["filename"], dataset)


def _check_card(folder: Path, dataset: str) -> None:
    """Raises InputError where a dataset card leads out of its folder, before datasets looks for files there."""
    there = [_inside(folder / name, dataset) for name in (*CARDS, "dataset_infos.json") if (folder / name).exists()]
    for card in there:
        text = card.read_text(encoding="utf-8")
        if card.suffix == ".yaml":
            text = f"---\n{text}\n---\n"
        if card.name not in CARDS or not text.lstrip().startswith("---"):  # it names no files
            continue
        for options in MetadataConfigs.from_dataset_card_data(DatasetCard(text).data).values():
            patterns = sanitize_patterns(options.get("data_files") or []).values()
            for pattern in (options.get("data_dir") or "", *itertools.chain(*patterns)):
                elsewhere = pattern.startswith("/") and not pattern.startswith(f"{folder}/")
                if elsewhere or ".." in Path(pattern).parts or "://" in pattern or "::" in pattern:
                    raise InputError(
                        f"dataset '{dataset}': {card.name} names '{pattern}', outside the folder, and nothing is read "
                        "there: move the files into it, or give the folder that they lie in"
                    )


def _parquet_below(folder: Path, dataset: str) -> set[str]:
    with opening(dataset):
        files, _ = everything_below(folder)
    return {str(folder.joinpath(*parts)) for parts in files if parts[-1].endswith(".parquet")}


def _builder(place: Path | str, dataset: str) -> tuple[datasets.DatasetBuilder, dict[str, list[str]]]:
    """How datasets reads a folder of parquet files, or the hub, and the files of each split.

    Raises InputError for a file of a folder that would be left out, or be in two splits.
    """
    with opening(dataset):
        if isinstance(place, Path):
            _check_card(place, dataset)
        builder = datasets.load_dataset_builder(str(place))
    files = {str(split): list(paths) for split, paths in (builder.config.data_files or {}).items()}
    for path in itertools.chain(*files.values()):
        if isinstance(place, Path):
            _inside(Path(path), dataset)
        elif not path.rpartition("::")[2].startswith(("hf://", "https://")):  # a card can name files of this machine
            raise InputError(f"dataset '{dataset}' names '{path}', which is not on the hub: choose another dataset")
    if isinstance(place, Path) and len(builder.builder_configs) == 1:  # of several, a dataset card chose one
        splits_of = Counter(itertools.chain(*files.values()))
        for path in sorted(_parquet_below(place, dataset) | set(splits_of)):
            if splits_of[path] != 1:
                raise InputError(
                    f"dataset '{dataset}': {Path(path).name} belongs to {splits_of[path] or 'none'} of the splits "
                    f"{sorted(files)}: call files <split>-00000-of-00001.parquet, or move it away"
                )
    return builder, files


def _choose(source: Mapping[str, Any], wanted: list[str], dataset: str) -> dict[str, Any]:
    wanted = wanted or training_first(source)
    for name in wanted:
        if name not in source:
            raise InputError(no_such_split(dataset, name, source))
        if not len(source[name]):
            raise InputError(f"dataset '{dataset}': split '{name}' is empty")
    return {name: source[name] for name in wanted}


def _check_files(files: dict[str, list[str]], label: str, classes: list[str], dataset: str) -> None:
    """Raises InputError where parquet files number their classes differently: datasets casts them without a word.

    Of a split on the hub its first file is asked.
    """
    asked = [path for paths in files.values() for path in (paths[:1] if "://" in paths[0] else paths)]
    asked = [path for path in asked if path.endswith(".parquet")]
    for path, footer in zip(asked, of_each(asked, read_footer, dataset)):
        own = classes_of(footer, label)
        if own is not None:
            check_class_names(own, classes, f"{dataset}, {Path(path).name}")
