"""Training images that are read from parquet files as they are needed, on disk or on the hub."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from ffvit.data.batch_augmentation import Cropped, training_view
from ffvit.data.folders import allowed_places
from ffvit.data.images import BadImage, check_not_all_bad, read
from ffvit.data.sources import check_class_names, classes_of, find_columns, of_each, opening, read_footer
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

DAMAGED = "If that file is damaged, put a whole one in its place; one of `ffvit prepare`: delete it and prepare again"


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
        self.columns = find_columns(features, config)
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
        return of_each(self.files, lambda file: fsspec.core.url_to_fs(file)[0].size(file), self.config.dataset)

    def row_groups(self, files: list[str]) -> list[RowGroup]:
        """Raises InputError for a file that numbers its classes differently."""
        groups = []
        for file, footer in zip(files, self._footers(files)):
            own = classes_of(footer, self.columns[1])
            if own is not None:
                check_class_names(own, self.features["label"].names, f"{self.config.dataset}, {Path(file).name}")
            first = 0
            for number in range(footer.num_row_groups):
                groups.append(RowGroup(file, number, first, footer.row_group(number).num_rows))
                first += groups[-1].num_rows
        return groups

    def read(self, group: RowGroup) -> pyarrow.Table:
        """The columns "image", encoded, and "label". Raises InputError for a damaged file or a label of no class."""
        with opening(f"{self.config.dataset}, {Path(group.file).name}", DAMAGED), fsspec.open(group.file) as opened:
            file = pyarrow.parquet.ParquetFile(
                opened, metadata=self.footers[group.file], page_checksum_verification=True
            )
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
        unread = [file for file in files if file not in self.footers]
        self.footers.update(zip(unread, of_each(unread, read_footer, self.config.dataset)))
        return [self.footers[file] for file in files]


class StreamedImages(IterableDataset):
    """Augmented training images of one process, read from parquet files as they are needed; with augment="batch" Cropped.

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
        self.allowed = allowed_places(config.dataset)
        self.accumulation_steps = accumulation_steps
        self.micro_batch = config.micro_batch(accumulation_steps)
        self.rank = rank
        self.augment = training_view(config)
        self.span = torch.zeros(2, dtype=torch.int64).share_memory_()  # micro-batches to give; workers live on and look

    def begin(self, epoch: int, updates: range) -> None:
        before = epoch * updates.stop  # which is an epoch's number of updates
        self.span[0] = (before + updates.start) * self.accumulation_steps
        self.span[1] = (before + updates.stop) * self.accumulation_steps

    def __iter__(self) -> Iterator[tuple[Tensor | Cropped, int, list[BadImage]]]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # A loader takes a batch from each worker in turn, beginning with the first wherever the epoch begins: so that
        # every batch comes from the same stream as in an uninterrupted run, workers exchange their streams.
        batches = range(int(self.span[0]) + worker, int(self.span[1]), workers)
        stream, first = batches.start % workers, batches.start // workers * self.micro_batch
        return itertools.islice(self._augmented(stream, workers, first), len(batches) * self.micro_batch)

    def _augmented(
        self, stream: int, streams: int, first: int
    ) -> Iterator[tuple[Tensor | Cropped, int, list[BadImage]]]:
        """The stream's images from `first` on; the next that can be read stands in for one that cannot."""
        bad = []
        for number, (group, row, content) in enumerate(self.rows(stream, streams, first), first):
            image = read(content["image"], group.first_row + row, Path(group.file).name, self.config, self.allowed)
            if isinstance(image, BadImage):
                bad.append(image)
                check_not_all_bad(bad, len(self.source))
                continue
            for left in range(len(bad), -1, -1):
                yield self.augment(image, self.rank, stream, number - left), content["label"], bad[len(bad) - left :]
            bad = []

    def rows(self, stream: int, streams: int, first: int) -> Iterator[tuple[RowGroup, int, dict]]:
        """(row group, row in it, content) of the stream's rows from `first` on, mixed within windows."""
        seed, size = (self.config.seed, self.rank), self.config.shuffle_buffer
        tables: dict[RowGroup, Any] = {}
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


def _row(table: pyarrow.Table, row: int) -> dict:
    return {name: table[name][row].as_py() for name in table.column_names}


def _between(groups: list[RowGroup], first: int, last: int) -> Iterator[tuple[RowGroup, int]]:
    """(row group, row in it) of the rows first, ..., last - 1 of all the groups in a row."""
    before = 0
    for group in groups:
        for row in range(max(first - before, 0), min(last - before, group.num_rows)):
            yield group, row
        before += group.num_rows
