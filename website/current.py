"""Whether site/ shows what is here now, told in a moment by name, size and time of each file that it may be made of."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ffvit.system.files import ROOT, RUNS, write_atomically

SITE = ROOT / "site"
MARK = SITE / ".made-of"
NOT_READ = {
    ".git",
    ".venv",
    ".snakemake",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    "build",
    "data",
    "runs",
    "site",
}
OF_RUNS = ("*/*.ipynb", "*/*/*.ipynb", "*/*/record.json", "*/*/last.safetensors")


def made_of() -> str:
    """Hash of all that there is to show, and of the code that shows it."""
    found = sorted(f"{file} {about.st_size} {about.st_mtime_ns}" for file in _files() for about in [file.stat()])
    return hashlib.sha256("\n".join(found).encode()).hexdigest()


def is_current() -> bool:
    return MARK.is_file() and MARK.read_text() == made_of()


def mark(made_of: str) -> None:
    """made_of: as it was when the pages were begun, so that what changed meanwhile is shown the next time."""
    write_atomically(MARK, made_of)


def _files() -> Iterator[Path]:
    for top in ROOT.iterdir():
        if top.is_file():
            yield top
        elif top.name not in NOT_READ:
            yield from (f for f in top.rglob("*") if f.is_file() and f.suffix != ".pyc")
    for pattern in OF_RUNS:
        yield from RUNS.glob(pattern)
