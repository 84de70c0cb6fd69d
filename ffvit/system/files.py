"""Where things lie, and files written so that a kill or a power cut leaves the old one or the new one."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
EXPERIMENTS, NOTEBOOKS, RUNS, RESULTS, FIGURES = (
    ROOT / name for name in ("experiments", "notebooks", "runs", "results", "figures")
)


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
