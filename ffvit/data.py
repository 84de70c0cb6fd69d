"""Images, one way for all: a name, a hub id or a local folder becomes Hugging Face splits, then timm's transforms.

What a run sees depends on its settings and on the place in the run alone: each image of the global order has its own
random numbers, so the number of processes, of workers and of interruptions changes nothing. A streamed order also
depends on how files are dealt to processes and workers, but as little on interruptions.
"""

import contextlib
import hashlib
import importlib.util
import io
import itertools
import json
import math
import random
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import PIL.Image
import pyarrow
import pyarrow.parquet
import torch
from PIL.Image import Transpose
from timm.data import create_transform
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler, Subset, default_collate

from ffvit.config import ROOT, Config, InputError

SPLIT_SEED = 0  # of held-out parts and subsets: the same images in every run, whatever its seed
MOST_BAD_IN_A_ROW = 1000  # skipping ends here: such a dataset is not merely damaged
ORIENTATION = 0x0112  # EXIF: how the camera was held
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class BadImage(NamedTuple):
    """A file that is no whole image."""

    index: int  # of its row in the split; of a streamed image: in its parquet file
    file: str  # its name, "" if it has none; of a streamed image: the parquet file's
    reason: str


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
        files, info = _parquet_files(config.dataset)
        train = ParquetStream(_split(files, config.train_split, config.dataset), info, config)
        with _opening(config.dataset):  # the files of these splits and no others
            wanted = {name: _split(files, name, config.dataset) for name in names.values()}
            source = datasets.load_dataset("parquet", data_files=wanted)
    else:
        source = _open(config.dataset)
        train = _two_columns(_split(source, config.train_split, config.dataset), config)
    others = {k: _two_columns(_split(source, v, config.dataset), config) for k, v in names.items() if v}
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

    def __init__(self, splits: Splits, config: Config, accumulation_steps: int = 1, rank: int = 0):
        if config.streaming:
            images = StreamedImages(splits.train, config, accumulation_steps, rank)
            self.source, sampler, num_images = images, None, len(splits.train)
        else:
            images = AugmentedImages(splits.train, config)
            self.source = sampler = EpochOrder(images, config, rank)
            num_images = len(sampler.order)
        self.num_updates = num_images // config.batch_size
        if not self.num_updates:
            raise InputError(
                f"{num_images} training images do not fill one batch of {config.batch_size}: lower batch_size"
            )
        self.loader = Loader(images, config, accumulation_steps, sampler)

    def __len__(self) -> int:
        """Updates per epoch."""
        return self.num_updates

    def epoch(self, epoch: int, first_update: int = 0) -> Iterator[Batch]:
        """The micro-batches of an epoch's updates from first_update on, accumulation_steps of them per update."""
        self.source.begin(epoch, range(first_update, len(self)))
        yield from self.loader


def eval_loader(split: datasets.Dataset, config: Config, rank: int = 0) -> "Loader":
    """Every image of a split exactly once over all processes: no padding, no dropping."""
    images = Images(split, config)
    mine = Subset(images, range(rank, len(images), config.num_processes))
    return Loader(mine, config, config.accumulation_steps or 1)


def first_images(split: "datasets.Dataset | ParquetStream", config: Config, count: int) -> list[tuple]:
    """(image, class index) of the first rows of a split that can be read, at most `count` of them."""
    rows = ((_read(row["image"], i, _name(row["image"]), config), row["label"]) for i, row in enumerate(encoded(split)))
    return list(itertools.islice((row for row in rows if not isinstance(row[0], BadImage)), count))


class Images(torch.utils.data.Dataset):
    """(image (C, H, W), class index, images that could not be read) of every row, as an evaluation sees it."""

    def __init__(self, split: datasets.Dataset, config: Config):
        self.split = encoded(split)
        self.config = config
        self.transform = eval_transform(config)

    def __len__(self) -> int:
        return len(self.split)

    def read(self, row: int) -> tuple[PIL.Image.Image | BadImage, int]:
        content = self.split[row]
        return _read(content["image"], row, _name(content["image"]), self.config), content["label"]

    def __getitem__(self, row: int) -> tuple[Tensor, int, list[BadImage]]:
        image, label = self.read(row)
        if isinstance(image, BadImage):
            return torch.zeros(self.config.in_chans, self.config.img_size, self.config.img_size), -1, [image]
        return self.transform(image), label, []


class AugmentedImages(Images):
    """The same for training, by EpochOrder's keys; the next row that can be read stands in for one that cannot."""

    decoded = None

    def __init__(self, split: datasets.Dataset, config: Config):
        super().__init__(split, config)
        self.transform = train_transform(config)
        self.decoded = [self.read(row) for row in range(len(split))] if config.in_memory else None

    def read(self, row: int) -> tuple[PIL.Image.Image | BadImage, int]:
        return self.decoded[row] if self.decoded else super().read(row)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int, list[BadImage]]:
        epoch, position, row = key
        bad = []
        while True:
            image, label = self.read((row + len(bad)) % len(self))
            if not isinstance(image, BadImage):
                _seed(self.config.seed, epoch, position)
                return self.transform(image), label, bad
            bad.append(image)
            _check_not_all_bad(bad, len(self))


class EpochOrder(Sampler):
    """(epoch, position, row) for this process's positions in an epoch's order, the same for any number of processes."""

    def __init__(self, images: Images, config: Config, rank: int):
        # As if for one process: the rule of both samplers is to deal its order out in turn, done below by position.
        if config.repeated_augmentation:
            self.order = RepeatAugSampler(images, 1, 0, num_repeats=config.repeated_augmentation)
        else:
            self.order = DistributedSampler(images, 1, 0, seed=config.seed)
        self.config = config
        self.rank = rank

    def begin(self, epoch: int, updates: range) -> None:
        self.epoch, self.updates = epoch, updates

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        epoch, size = self.epoch, self.config.batch_size
        self.order.set_epoch(epoch)
        first, last = self.updates.start * size + self.rank, self.updates.stop * size
        mine = itertools.islice(enumerate(self.order), first, last, self.config.num_processes)
        return ((epoch, position, row) for position, row in mine)


class RowGroup(NamedTuple):
    """What is read from a parquet file at a time."""

    file: str
    number: int
    first_row: int  # in its file
    num_rows: int


class ParquetStream:
    """The training images as they lie in parquet files, on disk or on the hub; none is read before it is needed."""

    def __init__(self, files: list[str], info: datasets.DatasetInfo, config: Config):
        self.files = files
        self.info = info
        self.config = config
        self.footers: dict[str, pyarrow.parquet.FileMetaData] = {}  # of the files that were asked for
        features = info.features or datasets.Features.from_arrow_schema(
            self._footers(files[:1])[0].schema.to_arrow_schema()
        )
        self.columns = _find_columns(features, config)
        self.features = datasets.Features(dict(zip(("image", "label"), (features[name] for name in self.columns))))
        if not isinstance(self.features["label"], datasets.ClassLabel):
            raise InputError(
                f"dataset '{config.dataset}': column '{self.columns[1]}' names no classes, and a stream is not read to "
                f"find them; save it as a ClassLabel (dataset.class_encode_column('{self.columns[1]}'))"
            )

    def __len__(self) -> int:
        if "://" in self.files[0] and self.config.train_split in (self.info.splits or {}):
            return self.info.splits[self.config.train_split].num_examples  # counted by the hub
        return sum(footer.num_rows for footer in self._footers(self.files))

    def __iter__(self) -> Iterator[dict]:
        """All rows in the order of the files, images encoded."""
        for file in self.files:
            for group in self.row_groups([file]):
                table = self.read(group)
                yield from (_row(table, row) for row in range(len(table)))

    def file_sizes(self) -> list[int]:
        """Bytes."""
        return self._of_each(self.files, lambda file: fsspec.core.url_to_fs(file)[0].size(file))

    def row_groups(self, files: list[str]) -> list[RowGroup]:
        groups = []
        for file, footer in zip(files, self._footers(files)):
            first = 0
            for number in range(footer.num_row_groups):
                groups.append(RowGroup(file, number, first, footer.row_group(number).num_rows))
                first += groups[-1].num_rows
        return groups

    def read(self, group: RowGroup) -> pyarrow.Table:
        """The columns "image", encoded, and "label". Raises InputError for a damaged file or a label of no class."""
        with _opening(self.config.dataset), fsspec.open(group.file) as opened:
            file = pyarrow.parquet.ParquetFile(opened, metadata=self.footers[group.file])
            table = file.read_row_group(group.number, list(self.columns)).select(self.columns)
            table = datasets.table.table_cast(table.rename_columns(["image", "label"]), self.features.arrow_schema)
        for row, label in enumerate(table["label"].to_pylist(), group.first_row):
            if label is None or not 0 <= label < self.features["label"].num_classes:
                raise InputError(
                    f"{Path(group.file).name}, row {row}: label {label} is outside the "
                    f"{self.features['label'].num_classes} classes"
                )
        return table

    def _footers(self, files: list[str]) -> list[pyarrow.parquet.FileMetaData]:
        def footer(file: str) -> pyarrow.parquet.FileMetaData:
            with fsspec.open(file) as opened:
                return pyarrow.parquet.read_metadata(opened)

        unread = [file for file in files if file not in self.footers]
        self.footers.update(zip(unread, self._of_each(unread, footer)))
        return [self.footers[file] for file in files]

    def _of_each(self, files: list[str], ask: Callable[[str], Any]) -> list:
        """On the hub every question takes a while: sixteen at a time."""
        with _opening(self.config.dataset), ThreadPoolExecutor(16) as pool:
            return list(pool.map(ask, files))


class StreamedImages(IterableDataset):
    """Augmented training images of one process, read from parquet files as they are needed.

    Process r owns the files r, r + num_processes, ..., and passes over their row groups again and again, each time in
    another order, dealt out to its workers; a worker mixes the rows of a pass within windows of shuffle_buffer rows.
    All follows from the settings and the number of a worker's image, so a stream starts anywhere and reads nothing
    that lies before. It never ends: a process whose files hold fewer rows begins its next pass earlier, instead of
    letting the others wait, and shows its images more often.
    Raises InputError where a process would own no images.
    """

    def __init__(self, source: ParquetStream, config: Config, accumulation_steps: int, rank: int):
        if len(source.files) < config.num_processes:
            raise InputError(
                f"dataset '{config.dataset}': {config.num_processes} processes cannot share {len(source.files)} parquet "
                "files: save it in more files, lower num_processes, or set streaming=false"
            )
        self.source = source
        self.groups = source.row_groups(source.files[rank :: config.num_processes])
        if not sum(group.num_rows for group in self.groups):
            raise InputError(f"dataset '{config.dataset}': the parquet files of process {rank} are all empty")
        self.config = config
        self.accumulation_steps = accumulation_steps
        self.micro_batch = _micro_batch(config, accumulation_steps)
        self.rank = rank
        self.transform = train_transform(config)
        self.span = torch.zeros(2, dtype=torch.int64).share_memory_()  # micro-batches to give; workers live on and look

    def begin(self, epoch: int, updates: range) -> None:
        before = epoch * updates.stop  # which is an epoch's number of updates
        self.span[0] = (before + updates.start) * self.accumulation_steps
        self.span[1] = (before + updates.stop) * self.accumulation_steps

    def __iter__(self) -> Iterator[tuple[Tensor, int, list[BadImage]]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # A loader takes a batch from each worker in turn, beginning with the first wherever the epoch begins: so that
        # every batch comes from the same stream as in an uninterrupted run, workers exchange their streams.
        batches = range(int(self.span[0]) + worker, int(self.span[1]), workers)
        stream, first = batches.start % workers, batches.start // workers * self.micro_batch
        return itertools.islice(self._augmented(stream, workers, first), len(batches) * self.micro_batch)

    def _augmented(self, stream: int, streams: int, first: int) -> Iterator[tuple[Tensor, int, list[BadImage]]]:
        """The stream's images from `first` on; the next that can be read stands in for one that cannot."""
        bad = []
        for number, (group, row, content) in enumerate(self.rows(stream, streams, first), first):
            image = _read(content["image"], group.first_row + row, Path(group.file).name, self.config)
            if isinstance(image, BadImage):
                bad.append(image)
                _check_not_all_bad(bad, len(self.source))
                continue
            for left in range(len(bad), -1, -1):
                _seed(self.config.seed, self.rank, stream, number - left)
                yield self.transform(image), content["label"], bad[len(bad) - left :]
            bad = []

    def rows(self, stream: int, streams: int, first: int) -> Iterator[tuple[RowGroup, int, dict]]:
        """(row group, row in it, content) of the stream's rows from `first` on, mixed within windows."""
        seed, size = (self.config.seed, self.rank), self.config.shuffle_buffer
        tables = {}
        for number in itertools.count():
            order = np.random.default_rng((*seed, number)).permutation(len(self.groups))
            # Dealt from another stream on in each pass: there may be fewer row groups than streams.
            groups = [self.groups[i] for i in order[(stream - number) % streams :: streams]]
            num_rows = sum(group.num_rows for group in groups)
            if first >= num_rows:  # a pass that lies before
                first -= num_rows
                continue
            for begin in range(first // size * size, num_rows, size):
                rows = list(_between(groups, begin, begin + size))
                needed = dict.fromkeys(group for group, _ in rows)
                # A row group that goes on in the next window is not read again.
                tables = {group: tables[group] if group in tables else self.source.read(group) for group in needed}
                mixed = np.random.default_rng((*seed, number, stream, begin)).permutation(len(rows))
                for group, row in (rows[i] for i in mixed[max(first - begin, 0) :]):
                    yield group, row, _row(tables[group], row)
            first = 0


class Loader(DataLoader):
    """Batches. What goes wrong in a worker with the input comes as the InputError it was."""

    def __init__(self, images, config: Config, accumulation_steps: int, sampler: Sampler | None = None):
        super().__init__(
            images,
            batch_size=_micro_batch(config, accumulation_steps),
            sampler=sampler,
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=torch.cuda.is_available() and config.device != "cpu",
            collate_fn=_batch,
        )

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        except InputError as error:  # torch puts the worker's traceback before the message
            raise InputError(str(error).rpartition("InputError: ")[2].strip()) from None


def train_transform(config: Config):
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=True,
        scale=config.crop_scale,
        ratio=config.crop_ratio,
        hflip=config.hflip,
        color_jitter=None,
        auto_augment=config.auto_augment or None,
        interpolation=config.interpolation,
        re_prob=config.random_erasing,
        re_mode="pixel",
        mean=config.mean,
        std=config.std,
    )


def eval_transform(config: Config):
    return create_transform(
        input_size=(config.in_chans, config.img_size, config.img_size),
        is_training=False,
        interpolation=config.interpolation,
        crop_pct=config.crop_pct,
        mean=config.mean,
        std=config.std,
    )


def _row(table: pyarrow.Table, row: int) -> dict:
    return {name: table[name][row].as_py() for name in table.column_names}


def decode(encoded: dict | None, mode: str) -> PIL.Image.Image:
    """The upright image of a file's bytes, "RGB" or "L". Raises OSError with the reason where there is no whole image.

    encoded: {"bytes", "path"}, as Hugging Face's Image(decode=False) gives it; None is a row without an image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities that do no harm
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            image = PIL.Image.open(io.BytesIO(_content(encoded)))
            image.load()
            image = _upright(image)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
            return image.convert(mode)  # grey, palette and CMYK images among the RGB ones
        except PIL.UnidentifiedImageError:
            raise OSError("it is no image of a known format") from None
        except Exception as error:  # a decoder fails with whatever its parser stumbled on
            raise OSError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _content(encoded: dict | None) -> bytes:
    if not encoded or encoded["bytes"] is None and not encoded["path"]:
        raise OSError("there is no file")
    content = Path(encoded["path"]).read_bytes() if encoded["bytes"] is None else encoded["bytes"]
    if not content:
        raise OSError("the file is empty")
    return content


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    orientation = None
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the image
        orientation = image.getexif().get(ORIENTATION)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _read(encoded: dict | None, index: int, file: str, config: Config) -> PIL.Image.Image | BadImage:
    try:
        return decode(encoded, "L" if config.in_chans == 1 else "RGB")
    except OSError as error:
        bad = BadImage(index, file, str(error))
    if config.bad_images == "refuse":
        raise InputError(
            f"dataset '{config.dataset}': row {index}{f' ({file})' if file else ''} holds no whole image: {bad.reason}; "
            "mend the file, or set bad_images='skip' to go on without it"
        )
    return bad


def _name(encoded: dict | None) -> str:
    return Path((encoded or {}).get("path") or "").name


def _check_not_all_bad(bad: list[BadImage], num_images: int) -> None:
    if len(bad) == min(num_images, MOST_BAD_IN_A_ROW):
        raise InputError(
            f"{len(bad)} training images one after the other cannot be read, the first at row {bad[0].index} "
            f"({bad[0].file}): {bad[0].reason}; choose another dataset"
        )


def _seed(*key: int) -> None:
    """Start the three generators that timm's transforms draw from. Takes 12 microseconds."""
    random.seed(repr(key))  # of a string: its SHA-512, the same on every machine
    np.random.seed(random.getrandbits(32))
    torch.default_generator.manual_seed(random.getrandbits(32))  # torch.manual_seed would start the GPUs' too


def _micro_batch(config: Config, accumulation_steps: int) -> int:
    """Images that a process takes at a time."""
    return config.batch_size // config.num_processes // accumulation_steps


def _batch(items: list[tuple[Tensor, int, list[BadImage]]]) -> Batch:
    images, target, bad = zip(*items)
    return Batch(default_collate(images), torch.tensor(target), [image for found in bad for image in found])


def _between(groups: list[RowGroup], first: int, last: int) -> Iterator[tuple[RowGroup, int]]:
    """(row group, row in it) of the rows first, ..., last - 1 of all the groups in a row."""
    before = 0
    for group in groups:
        for row in range(max(first - before, 0), min(last - before, group.num_rows)):
            yield group, row
        before += group.num_rows


def encoded(split: "datasets.Dataset | ParquetStream") -> "datasets.Dataset | ParquetStream":
    return split if isinstance(split, ParquetStream) else split.cast_column("image", datasets.Image(decode=False))


def _open(dataset: str) -> datasets.DatasetDict:
    if dataset == "digits":
        return _digits()
    with _opening(dataset):
        path = _path(dataset)
        if (Path(path) / "dataset_dict.json").exists() or (Path(path) / "state.json").exists():
            source = datasets.load_from_disk(path)
        else:
            source = datasets.load_dataset(path)
    return source if isinstance(source, dict) else datasets.DatasetDict(train=source)


def _parquet_files(dataset: str) -> tuple[dict[str, list[str]], datasets.DatasetInfo]:
    """Paths or addresses by split, none of them opened, and what a dataset card tells of them."""
    with _opening(dataset):
        builder = datasets.load_dataset_builder(_path(dataset)) if dataset != "digits" else None
    files = {str(split): list(paths) for split, paths in (builder and builder.config.data_files or {}).items()}
    if not files or not all(path.endswith(".parquet") for paths in files.values() for path in paths):
        raise InputError(
            f"dataset '{dataset}' is not made of parquet files, which streaming reads: save it with "
            "dataset.to_parquet('<folder>/train-00000-of-00001.parquet'), or set streaming=false"
        )
    return files, builder.info


def _path(dataset: str) -> str:
    """A folder, or a hub id as it is."""
    folder = Path(dataset).expanduser()
    if not folder.is_dir() and (ROOT / folder).is_dir():
        folder = ROOT / folder  # an experiment file's path means the same in a notebook, which runs in notebooks/
    if folder.is_dir():
        return str(folder)
    if dataset.startswith((".", "/", "~")):
        raise InputError(f"dataset '{dataset}': there is no such folder")
    return dataset


@contextlib.contextmanager
def _opening(dataset: str) -> Iterator[None]:
    """Says of what fails in opening or reading files what it means."""
    try:
        yield
    except InputError:
        raise
    except IndexError:  # what load_from_disk makes of a split without rows
        raise InputError(f"dataset '{dataset}': a split is empty") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"dataset '{dataset}' cannot be opened: {(str(error) or type(error).__name__).splitlines()[0]}. Give 'digits', a hub id "
            "(with network, and `hf auth login` for gated sets such as ILSVRC/imagenet-1k), or a local folder"
        ) from None


def _digits() -> datasets.DatasetDict:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels; a stratified fifth is the test split."""
    # Its file, read without importing scikit-learn: that takes a second in every process of a pipeline of small runs.
    file = Path(importlib.util.find_spec("sklearn").origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # 64 pixels from 0 to 16, then the digit
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(d) for d in range(10)])}
    )
    images = []
    for pixels in table[:, :64].reshape(-1, 8, 8):
        encoded = io.BytesIO()  # as BMP: png bytes, and with them the fingerprint, differ between versions of zlib
        PIL.Image.fromarray(np.round(pixels / 16 * 255).astype(np.uint8)).save(encoded, "BMP")
        images.append({"bytes": encoded.getvalue(), "path": None})
    whole = datasets.Dataset.from_dict({"image": images, "label": table[:, 64].astype(int).tolist()}, features)
    return whole.train_test_split(0.2, seed=SPLIT_SEED, stratify_by_column="label")


def _split(source: datasets.DatasetDict, name: str, dataset: str) -> datasets.Dataset:
    if name not in source:
        raise InputError(
            f"dataset '{dataset}' has no split '{name}', it has {sorted(source)}; set train_split, "
            "validation_split and test_split"
        )
    if not len(source[name]):
        raise InputError(f"dataset '{dataset}': split '{name}' is empty")
    return source[name]


def _two_columns(split: datasets.Dataset, config: Config) -> datasets.Dataset:
    image, label = _find_columns(split.features, config)
    return split.select_columns([image, label]).rename_columns(
        {k: v for k, v in {image: "image", label: "label"}.items() if k != v}
    )


def _find_columns(features: datasets.Features, config: Config) -> tuple[str, str]:
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
                digest.update(_content(row["image"]))
    return digest.hexdigest()[:16]
