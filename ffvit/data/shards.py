"""Prepared images, by `ffvit prepare`: a folder of parquet files, the shards, and an index that says what each must be."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ffvit.system.errors import InputError
from ffvit.system.files import read_json, read_object, sha256_of, write_atomically

INDEX = "index.json"
MADE_BY = "ffvit prepare"
ROWS = 2048  # of a shard: some 60 MB of ImageNet, enough files for the processes of a stream to share
CURE = "delete that file and start the same `ffvit prepare` again, which makes what is missing"


@dataclass
class Index:
    """What a folder of prepared images holds. Where it is not `whole`, its making was interrupted."""

    made_of: dict[str, Any]  # all that decides the shards' bytes
    rows: dict[str, int]  # of the dataset that they are made of, by split
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)  # by file: rows, bytes, sha256, bad

    @property
    def planned(self) -> dict[str, tuple[str, range]]:
        """Every shard's file, with its split and rows there."""
        return {file: place for split, rows in self.rows.items() for file, place in _shards(split, rows)}

    @property
    def missing(self) -> list[str]:
        return [file for file in self.planned if file not in self.shards]

    def write(self, folder: Path) -> None:
        shards = {file: self.shards[file] for file in sorted(self.shards)}
        content = {"made by": MADE_BY, "made of": self.made_of, "rows": self.rows, "shards": shards}
        write_atomically(folder / INDEX, json.dumps(content, indent=1))


def read_index(folder: Path) -> Index:
    """Raises InputError where there is none that is whole."""
    cure = "give another folder, or delete it to prepare the images again"
    content = read_object(folder / INDEX, "an index of prepared images", cure)
    try:
        index = Index(content["made of"], content["rows"], content["shards"])
        entries = [index.shards[file] for file in index.shards]
        good = content["made by"] == MADE_BY and set(index.shards) <= set(index.planned)
        good = good and all({"rows", "bytes", "sha256", "bad"} <= entry.keys() for entry in entries)
    except (KeyError, TypeError, AttributeError, ValueError):
        good = False
    if not good:
        raise InputError(f"{folder / INDEX} is no index of `{MADE_BY}`: {cure}")
    return index


def is_prepared(folder: Path) -> bool:
    try:
        return read_json(folder / INDEX).get("made by") == MADE_BY
    except (OSError, ValueError, RecursionError):  # something else is called so, too
        return False


def check_prepared(folder: Path) -> None:
    """Raises InputError for prepared images that are not all there, by the sizes of their files: read none of them.

    Of other folders nothing is said.
    """
    if not is_prepared(folder):
        return
    index = read_index(folder)
    if index.missing:
        raise InputError(
            f"{folder} is being prepared, or that was interrupted: {len(index.shards)} of {len(index.planned)} shards are "
            "there; start the same `ffvit prepare` again, which goes on"
        )
    check_shards(folder, index, content=False)


def check_shards(folder: Path, index: Index, content: bool) -> None:
    """Raises InputError for a shard that is missing or damaged. content: read all of them, which takes a while."""
    for file, entry in index.shards.items():
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing: start the same `ffvit prepare` again, which makes what is missing")
        if path.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{path} is damaged, of {path.stat().st_size:,} bytes in place of {entry['bytes']:,}: {CURE}"
            )
        if content and sha256_of(path) != entry["sha256"]:
            raise InputError(f"{path} is damaged, by its checksum: {CURE}")


def _shards(split: str, rows: int) -> Iterator[tuple[str, tuple[str, range]]]:
    # In data/, datasets takes what comes before the number for the split's name, whatever it is.
    starts = range(0, rows, ROWS)
    for number, start in enumerate(starts):
        file = f"data/{split}-{number:05}-of-{len(starts):05}.parquet"
        yield file, (split, range(start, min(start + ROWS, rows)))


def check_split_name(split: str) -> None:
    if not re.fullmatch(r"\w+(\.\w+)*", split):
        raise InputError(f"split '{split}' cannot be part of a file's name: call it otherwise")
