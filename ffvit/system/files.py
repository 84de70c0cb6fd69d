"""Where things lie, and files written so that a kill or a power cut leaves the old one or the new one."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ffvit.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent.parent
EXPERIMENTS, NOTEBOOKS, RUNS, RESULTS, FIGURES = (
    ROOT / name for name in ("experiments", "notebooks", "runs", "results", "figures")
)
MOST_JSON_BYTES = 2**30  # what a run writes of itself is far below


def read_json(path: Path, most_bytes: int = MOST_JSON_BYTES) -> dict:
    """The JSON object in a file. Raises ValueError for what is none, OSError, and RecursionError."""
    if not path.is_file():  # a pipe or a device might never end
        raise ValueError("no regular file" if path.exists() else "it is missing")
    if path.stat().st_size > most_bytes:
        raise ValueError(f"{path.stat().st_size:,} bytes are too many")
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def read_object(path: Path, what: str, cure: str) -> dict:
    """The same, for people. what: "a run's settings". Raises InputError that names the file, and the cure."""
    try:
        return read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} does not hold {what} ({error}): {cure}") from None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that every reader, at any time, also after a power cut, sees it whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        sync(temporary)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to fill, beside the one whose place it then takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def seal(path: Path) -> dict:
    """Bring a file to the disk; its entry in the manifest."""
    path.chmod(0o644)
    sync(path)
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, beside the one whose place it then takes: a kill leaves nothing half of that name.

    Raises InputError where something is there already.
    """
    if os.path.lexists(path):
        raise InputError(f"{path} is there already: choose another folder, or delete it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.iterdir():
            seal(file)
        temporary.chmod(0o755)
        temporary.rename(path)  # onto a folder that came meanwhile: refused, unless that is empty
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
