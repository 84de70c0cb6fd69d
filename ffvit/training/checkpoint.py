"""The checkpoints of a run: written so that a kill leaves the old ones or the new ones, read so that nothing executes.

A checkpoint is a folder, `<checkpoints>/<update, 8 digits>/`: model.safetensors, ema.safetensors where there is one,
optimizer.pt (torch's, read with weights_only=True), progress.json, and manifest.json with the size and sha256 of the
others. It exists whole or not at all; `find_state` passes over one that was damaged later.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ffvit.models.weights import reading, write_tensors
from ffvit.system.errors import InputError
from ffvit.system.files import seal, sha256_of, sync

KEEP = 2  # checkpoints of a run: the last, and one to fall back to
MANIFEST, OPTIMIZER = "manifest.json", "optimizer.pt"


def save_state(
    folder: Path, update: int, models: dict[str, dict[str, Tensor]], optimizer: dict, progress: dict
) -> Path:
    """Write all that a run needs to go on after an update as folder/<update>, and remove what it outdates.

    models: state dicts by name, e.g. {"model": ..., "ema": ...}. optimizer: its state_dict(). progress: what JSON holds.
    Contiguous tensors on the CPU are not copied; those of one file at a time are copied from a GPU. The disk holds
    KEEP + 1 checkpoints for a moment. Raises OSError, a full disk for one, and leaves the earlier checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)  # what a kill left behind takes the room that this one needs
    path, temporary = folder / f"{update:08d}", folder / f".{update:08d}.new"
    temporary.mkdir()
    try:
        for name, state in models.items():
            write_tensors(temporary / f"{name}.safetensors", state)
        _write_optimizer(temporary / OPTIMIZER, optimizer)
        (temporary / "progress.json").write_text(json.dumps(progress))
        manifest = {file.name: seal(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
        sync(temporary / MANIFEST)
        sync(temporary)
        if path.exists():
            path.rename(_hidden(path))
        temporary.rename(path)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # Newer ones are damaged, or the run would have gone on from them: they must not push out the good ones.
    kept = [other for other in _checkpoints(folder) if int(other.name) <= update][:KEEP]
    for other in set(_checkpoints(folder)) - set(kept):
        other.rename(_hidden(other))
    _sweep(folder)
    return path


def find_state(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose every file is as its manifest says, and a line for each newer one that is damaged.

    (None, []) where there is no checkpoint. Raises InputError where there are some and none is whole.
    """
    damaged = []
    for path in _checkpoints(folder):
        if not (damage := _damage(path)):
            return path, damaged
        damaged.append(f"{path}: {damage}")
    if damaged:
        raise InputError(
            f"no checkpoint in {folder} is whole ({'; '.join(damaged)}): put a good copy back, or delete the folder to "
            "start the run again"
        )
    return None, []


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict, dict]:
    """What save_state was given: the models' state dicts by name, the optimizer's, and the progress; tensors on the CPU.

    Raises InputError, with the file's name, for a file that is missing, damaged or something else; nothing executes.
    """
    cure = f"delete {path} to go on from an older checkpoint"
    models = {}
    for file in sorted(path.glob("*.safetensors")):
        with reading(file, cure):
            models[file.stem] = load_file(file, backend="pread")  # mapped tensors would need the file to stay
    with reading(path / OPTIMIZER, cure) as file:
        optimizer = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
            raise ValueError("no state of an optimizer")
    with reading(path / "progress.json", cure) as file:
        progress = _read_json(file)
    return models, optimizer, progress


def _write_optimizer(path: Path, state: dict) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's, as it ends a file that the system has refused to write
        raise OSError(f"{path} could not be written ({error.__context__ or error})") from None


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = [path for path in folder.glob("*") if re.fullmatch(r"\d{8,}", path.name)]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint; empty where its files are those of its manifest, and nothing else is there."""
    file = path / MANIFEST
    try:
        manifest = _read_json(file)
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


def _read_json(path: Path) -> dict:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _hidden(path: Path) -> Path:
    """Where a checkpoint goes to be removed: for a reader it is whole until then, and gone from then on."""
    return path.with_name(f".{path.name}.old")


def _sweep(folder: Path) -> None:
    for hidden in folder.glob(".[0-9]*"):
        shutil.rmtree(hidden)
