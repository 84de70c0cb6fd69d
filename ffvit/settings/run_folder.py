"""The folder of a run: a run's own, written by one run at a time, and known again. It needs no torch.

Two locks keep it: that of the process that started the run and writes request.json and log.txt, and that of the first
process that trains. A process that nobody of this library started takes both. The system frees them when their process
ends, however it ends.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ffvit.settings.config import Config
from ffvit.settings.given import read_config, read_settings
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, FIGURES, NOTEBOOKS, RESULTS, ROOT, RUNS, read_object

TRAINED, STARTED = ".lock", ".start.lock"  # held by who trains, and by who started it
BY_LAUNCHER = "FFVIT_BY_LAUNCHER"  # in the environment of what a launcher starts: it holds STARTED
ORPHAN_S = 3  # what a killed launcher has started is there for a second or two
# What may lie there before a run's config.json does: of its start, of the pipeline, and of the system.
BEFORE = re.compile(
    r"\.lock|\.start\.lock|request\.json|log\.txt|02_train\.(ipynb|log)|\.ipynb_checkpoints|\.DS_Store|\.nfs.*"
)
# By a kill, see files.replacing; and by safetensors.
LEFT_BEHIND = re.compile(r"\.(\w+\.json|(last|best|ema)\.safetensors)\.[a-z0-9_]{8}|\.tmp\w{6}")


def require_own(folder: Path) -> None:
    """Raise InputError for a folder that is not for a run, or holds something else. Nothing is written there before this."""
    place, cure = folder.resolve(), "give the run a new or empty folder, such as --run-dir runs/first"
    if place in (EXPERIMENTS, NOTEBOOKS, RUNS, RESULTS, FIGURES, ROOT, *ROOT.parents):
        raise InputError(f"{folder} ({place}) is no folder for a run: {cure}")
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is no folder: {cure}")
    if not folder.is_dir():
        return
    for name in ("config.json", "request.json"):
        if os.path.lexists(folder / name):
            read_settings(folder / name, f"{cure}; or, where it was a run's, put a good copy back")
    if (folder / "config.json").exists():
        return
    found = [path.name for path in folder.iterdir()]
    if foreign := sorted(name for name in found if not (BEFORE.fullmatch(name) or LEFT_BEHIND.fullmatch(name))):
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(f"{folder} holds {shown} and no run: {cure}")


def is_finished(config: Config, folder: Path) -> bool:
    """Whether the folder holds this very run, finished. Raises InputError where it holds another one, or what is damaged."""
    finished = folder / "training.json"
    begun = (folder / "checkpoints").exists() or finished.exists()
    if begun and (folder / "config.json").exists():
        there = read_config(folder / "config.json", "delete the folder to train anew").to_dict()
        asked = config.to_dict()
        if differ := differing(there, asked):
            shown = ", ".join(f"{k} is {there.get(k)!r}, asked {asked.get(k)!r}" for k in differ[:3])
            raise InputError(f"{folder} holds a run with other settings ({shown}): choose another folder, or delete it")
    if not finished.exists():
        return False
    cure = "delete this file to train the run anew"
    if "history" not in read_object(finished, "the end of a run", cure):
        raise InputError(f"{finished} does not hold the end of a run (no 'history'): {cure}")
    return True


@contextlib.contextmanager
def started(folder: Path, config: Config) -> Iterator[None]:
    """Hold the folder for who starts a run there; make it where it is missing. Raises InputError where it is not free.

    Where a run is refused, nothing in the folder is changed.
    """
    require_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / STARTED):
        with _held(folder / TRAINED, ORPHAN_S):
            is_finished(config, folder)
        yield


@contextlib.contextmanager
def trained(folder: Path) -> Iterator[None]:
    """Hold the folder for the process that trains; make it where it is missing. Raises InputError where it is not free."""
    require_own(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if os.environ.get(BY_LAUNCHER) else _held(folder / STARTED), _held(folder / TRAINED):
        yield


def mark_of(folder: Path) -> tuple[int, int] | None:
    """By which a folder that is held is known again: its lock, whose place on the disk no other file can take. None: gone."""
    try:
        found = (folder / TRAINED).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sweep(folder: Path) -> None:
    """Remove what a kill has left half written."""
    for path in folder.glob(".*"):
        if LEFT_BEHIND.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextlib.contextmanager
def _held(file: Path, wait_s: float = 0) -> Iterator[None]:
    lock = FileLock(file, timeout=wait_s)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{file.parent} is being trained by another process: wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()
