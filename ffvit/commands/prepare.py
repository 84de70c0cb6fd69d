"""Make photographs smaller once, so that every training to come reads them in less time: a copy of a dataset whose images
have a short side of --short-side pixels, as JPEG in parquet files. `ffvit prepare DATASET --to FOLDER`, then dataset=FOLDER.

DATASET is what the setting dataset takes: a folder, or an id of the hub. Images that are smaller are kept as they are. Before
it begins it says how much room and time it will take. Killed or stopped, the same command goes on, and ends with the very
bytes; once all is there, it compares every file with its checksum. What lies in FOLDER is never written over.

Exit codes: 0 all is there, 2 an error that is named.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from ffvit.commands.arguments import Parser, path
from ffvit.settings.config import Config
from ffvit.settings.given import merge, parse_setting
from ffvit.system.errors import InputError, suggest
from ffvit.system.lifetime import end_with
from ffvit.system.machine import LOADING_MB, require_room

if TYPE_CHECKING:
    from ffvit.data.prepare import Preparation
    from ffvit.data.shards import Index

SHORT_SIDE, QUALITY = 256, 90
MAY_BE_SET = ("bad_images", "image_column", "label_column", "allow_overlap")
TRIED = 32  # images, to say what all will take
LINE_S = 10  # between lines that say how far it is
LOCK = ".preparing"

_preparation: "Preparation"  # of a process that makes shards, which receives it once


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit prepare", __doc__)
    parser.add_argument("dataset", help="a folder, or an id of the hub")
    parser.add_argument("--to", type=path, required=True, metavar="FOLDER", help="where the shards and their index go")
    parser.add_argument(
        "--short-side", type=int, default=SHORT_SIDE, help=f"pixels; default: {SHORT_SIDE}, more keeps more for crops"
    )
    parser.add_argument("--quality", type=int, default=QUALITY, help=f"of JPEG, from 1 to 100; default: {QUALITY}")
    parser.add_argument(
        "--split", action="append", default=[], help="may be given several times; default: all there are"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one a core")
    parser.add_argument("settings", nargs="*", metavar="name=value", help=f"of the dataset: {', '.join(MAY_BE_SET)}")
    options = parser.parse_intermixed_args(arguments)
    if not 16 <= options.short_side <= 10_000:
        parser.error("--short-side must be from 16 to 10,000")
    if not 1 <= options.quality <= 100:
        parser.error("--quality must be from 1 to 100")
    if options.jobs < 1:
        parser.error("--jobs must be 1 or more")
    require_room("--jobs", options.jobs, 1, LOADING_MB)
    config = _config(options.dataset, merge(*map(parse_setting, options.settings)))

    from ffvit.data.prepare import preparation  # with datasets, which takes seconds

    folder = options.to.expanduser()
    _check_free(folder)
    prepare(preparation(config, options.split, options.short_side, options.quality), folder, options.jobs)
    return 0


def prepare(wanted: "Preparation", folder: Path, jobs: int) -> None:
    """Make the shards that are missing. Raises InputError for a folder of something else, and for images that are none."""
    from ffvit.data.shards import check_shards

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0), _gone_at_the_end(folder / LOCK):
            index = _begun(wanted, folder)
            missing = index.missing
            check_shards(folder, index, content=not missing)
            if missing:
                _say_cost(wanted, index, missing, folder, jobs)
                _make(wanted, index, missing, folder, jobs)
            else:
                print(f"{folder} is whole: each of its {len(index.shards)} shards has its checksum")
    except Timeout:
        raise InputError(f"{folder} is being prepared by another process: wait for it, or give another --to") from None
    bad = [image for entry in index.shards.values() for image in entry["bad"]]
    rows, size = (sum(entry[what] for entry in index.shards.values()) for what in ("rows", "bytes"))
    for row, file, reason in bad:
        print(f"left out: row {row} ({file}): {reason}")
    print(f"{rows:,} images in {len(index.shards)} shards, {_size(size)}; train from them with dataset={folder}")


@contextlib.contextmanager
def _gone_at_the_end(file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def _config(dataset: str, settings: dict[str, Any]) -> Config:
    """How the dataset is read. Raises InputError for settings that are no matter of that."""
    for name in settings:
        if name not in MAY_BE_SET:
            raise InputError(f"'{name}' is nothing that ffvit prepare takes{suggest(name, MAY_BE_SET)}")
    return Config(
        **dict(experiment="prepare", name="prepare", label="prepare", model="none", dataset=dataset) | settings
    )


def _check_free(folder: Path) -> None:
    """Raise InputError where something else lies in the folder, before the dataset is opened."""
    from ffvit.data.shards import is_prepared

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to {folder} is a file: give a folder")
    if folder.is_dir() and not is_prepared(folder) and any(file.name != LOCK for file in folder.iterdir()):
        raise InputError(
            f"--to {folder} holds something else, which is not written over: give an empty or a new folder"
        )


def _begun(wanted: "Preparation", folder: Path) -> "Index":
    """The folder's index, written if there is none; what a kill left half made is gone. Raises InputError for another's."""
    from ffvit.data.shards import INDEX, read_index

    new = wanted.index()
    if not (folder / INDEX).exists():
        new.write(folder)
        return new
    there = read_index(folder)
    for name, one, other in [
        *((name, there.made_of.get(name), value) for name, value in new.made_of.items()),
        ("rows", there.rows, new.rows),
    ]:
        if one != other:
            raise InputError(
                f"--to {folder} holds images prepared otherwise ({name}: {one} there, {other} asked): give another folder, or "
                "the options that it was begun with"
            )
    for file in [file for file in there.shards if not (folder / file).exists()]:
        del there.shards[file]  # somebody took it away, to have it made again
    for left in (folder / "data").glob(".*"):  # half written, by a process that was killed
        left.unlink()
    return there


def _say_cost(wanted: "Preparation", index: "Index", missing: list[str], folder: Path, jobs: int) -> None:
    """Tell room and time, by some images of all over. Raises InputError where there is no room."""
    from ffvit.training.progress import duration

    planned = index.planned
    rows = [(planned[file][0], row) for file in missing for row in planned[file][1]]
    tried = [rows[i * len(rows) // TRIED] for i in range(TRIED)] if len(rows) > TRIED else rows
    began = time.monotonic()
    made = [wanted.image(split, row) for split, row in tried]
    seconds = (time.monotonic() - began) / len(tried) * len(rows) / jobs
    sizes = [len(row["image"]["bytes"]) for row in made if isinstance(row, dict)]
    needed = sum(sizes) / len(tried) * len(rows)
    free = shutil.disk_usage(folder).free
    what = f"{len(rows):,} images take about {_size(needed)}"
    if needed > free:
        raise InputError(f"{folder}: {what}, {_size(free)} are free: make room, or give a --to elsewhere")
    done = f", {len(index.shards)} of {len(planned)} shards are there" if index.shards else ""
    print(f"{what} and {duration(seconds)} with {jobs} {'process' if jobs == 1 else 'processes'}{done}", flush=True)


def _make(wanted: "Preparation", index: "Index", missing: list[str], folder: Path, jobs: int) -> None:
    """Write shard after shard into the folder and its index."""
    from ffvit.training.progress import duration

    planned, began, said = index.planned, time.monotonic(), time.monotonic()
    for count, (file, entry) in enumerate(_made(wanted, {file: planned[file] for file in missing}, folder, jobs), 1):
        index.shards[file] = entry
        index.write(folder)
        if time.monotonic() - said > LINE_S:
            said = time.monotonic()
            left = (said - began) / count * (len(missing) - count)
            print(f"{len(index.shards)} of {len(planned)} shards, {duration(left)} to go", flush=True)


def _made(
    wanted: "Preparation", places: dict[str, tuple[str, range]], folder: Path, jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, entry of the index) of each shard as it is done, by processes that end with this one."""
    with concurrent.futures.ProcessPoolExecutor(min(jobs, len(places)), None, _begin, (wanted, os.getpid())) as pool:
        made = {pool.submit(_shard, folder, file, *place): file for file, place in places.items()}
        try:
            for future in concurrent.futures.as_completed(made):
                yield made[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a process was killed, for want of memory perhaps: the same command goes on; --jobs takes fewer"
            ) from None
        except BaseException:  # Ctrl-C, or an image that is none: what is half made is made again
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _begin(wanted: "Preparation", parent: int) -> None:
    global _preparation
    _preparation = wanted
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this one answers it
    end_with(parent)


def _shard(folder: Path, file: str, split: str, rows: range) -> dict[str, Any]:
    return _preparation.shard(folder, file, split, rows)


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
