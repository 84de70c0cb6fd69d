"""Which checkpoints of a run are whole, by their manifests: size and sha256 of every file. It needs no torch."""

import re
from pathlib import Path

from ffvit.system.errors import InputError
from ffvit.system.files import read_json, sha256_of

MANIFEST = "manifest.json"
MOST_BYTES = 2**20  # of a manifest


def find_state(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as its manifest says, and a line for each newer one that is damaged.

    (None, []) where there is no checkpoint. Raises InputError where there are some and none is whole.
    """
    damaged: list[str] = []
    for path in checkpoints(folder):
        if not (damage := _damage(path)):
            return path, damaged
        damaged.append(f"{path}: {damage}")
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)}): put a good copy back, or delete the folder to "
            "start the run again"
        )
    return None, []


def checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("*") if re.fullmatch(r"[0-9]{8,20}", path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty where its files are those of its manifest, and nothing else is there."""
    file = path / MANIFEST
    try:
        manifest = read_json(file, MOST_BYTES)
        there = {file.name for file in path.iterdir()} - {MANIFEST}
        if odd := sorted(manifest.keys() ^ there):
            return f"{odd[0]}: {'in the manifest only' if odd[0] in manifest else 'not in the manifest'}"
        for name, promised in manifest.items():
            if not isinstance(promised, dict) or promised.keys() != {"sha256", "bytes"}:
                return f"{MANIFEST}: no sha256 and bytes of {name}"
            file = path / name
            if file.is_symlink() or not file.is_file():
                return f"{name}: not a regular file"
            if file.stat().st_size != promised["bytes"]:
                return f"{name}: {file.stat().st_size} bytes, manifest says {promised['bytes']}"
            if (found := sha256_of(file)) != promised["sha256"]:
                return f"{name}: sha256 is {found}, manifest says {promised['sha256']}"
    except Exception as error:  # it may hold anything, and a disk may fail
        return f"{file.name}: {type(error).__name__}: {error}"
    return ""
