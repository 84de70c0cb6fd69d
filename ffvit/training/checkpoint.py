"""The checkpoints of a run: written so that a kill leaves the old ones or the new ones, read so that nothing executes.

A checkpoint is a folder, `<checkpoints>/<update, 8 digits>/`: model.safetensors, ema.safetensors where there is one,
optimizer.pt (torch's, read with weights_only=True), progress.json, and manifest.json with the size and sha256 of the
others. It exists whole or not at all; ffvit.training.manifest tells whether it still is.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ffvit.models.weights import reading, write_tensors
from ffvit.system.files import read_json, seal, sync
from ffvit.training.manifest import MANIFEST, checkpoints

KEEP = 2  # checkpoints of a run: the last, and one to fall back to
OPTIMIZER, PROGRESS = "optimizer.pt", "progress.json"
# Of a checkpoint, and what safetensors leaves when it is killed.
OWN = re.compile(r"manifest\.json|optimizer\.pt|progress\.json|\w+\.safetensors|\.tmp\w{6}")
HIDDEN = re.compile(r"\.[0-9]{8,20}(\.[0-9a-f]{8})?\.(new|old)")


def save_state(
    folder: Path, update: int, models: dict[str, dict[str, Tensor]], optimizer: dict, progress: dict
) -> Path:
    """Write all that a run needs to go on after an update as folder/<update>, and remove what it outdates.

    models: state dicts by name, e.g. {"model": ..., "ema": ...}. optimizer: its state_dict(). progress: what JSON holds.
    Contiguous tensors on the CPU are not copied; those of one file at a time are copied from a GPU. The disk holds
    KEEP + 1 checkpoints for a moment. Raises OSError, a full disk for one, and leaves the earlier checkpoints. Of what is
    no checkpoint's, nothing is removed.
    """
    folder.mkdir(exist_ok=True)  # and not its parent: a run's folder that is gone stays gone
    _sweep(folder)  # what a kill left behind takes the room that this one needs
    path, temporary = folder / f"{update:08d}", folder / f".{update:08d}.new"
    temporary.mkdir()
    try:
        for name, state in models.items():
            write_tensors(temporary / f"{name}.safetensors", state)
        _write_optimizer(temporary / OPTIMIZER, optimizer)
        (temporary / PROGRESS).write_text(json.dumps(progress))
        manifest = {file.name: seal(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
        sync(temporary / MANIFEST)
        sync(temporary)
        if os.path.lexists(path):
            _hide(path)
        temporary.rename(path)
        sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # Newer ones are damaged, or the run would have gone on from them: they must not push out the good ones.
    own = [other for other in checkpoints(folder) if _is_own(other)]
    kept = [other for other in own if int(other.name) <= update][:KEEP]
    for other in set(own) - set(kept):
        _hide(other)
    _sweep(folder)
    return path


def remove_all(folder: Path) -> None:
    """Remove the checkpoints of a run that has ended; what else lies among them stays, and the folder with it."""
    for path in filter(_is_own, checkpoints(folder)):
        _hide(path)
    _sweep(folder)
    with contextlib.suppress(OSError):  # something else is in it, it is a link, or it is not there
        folder.rmdir()


def load_state(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict, dict]:
    """What save_state was given: the models' state dicts by name, the optimizer's, and the progress; tensors on the CPU.

    Raises InputError, with the file's name, for a file that is missing, damaged or something else; nothing executes.
    """
    cure = cure_of(path)
    models = {}
    for file in sorted(path.glob("*.safetensors")):
        with reading(file, cure):
            models[file.stem] = load_file(file, backend="pread")  # mapped tensors would need the file to stay
    with reading(path / OPTIMIZER, cure) as file:
        with zipfile.ZipFile(file) as parts:  # torch's are as long as what they hold, others can be a thousand times it
            if sum(part.file_size for part in parts.infolist()) > file.stat().st_size:
                raise ValueError("it holds more than its size")
        optimizer = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
            raise ValueError("no state of an optimizer")
    with reading(path / PROGRESS, cure) as file:
        progress = read_json(file)
    return models, optimizer, progress


def _write_optimizer(path: Path, state: dict) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:  # torch's, as it ends a file that the system has refused to write
        raise OSError(f"{path} could not be written ({error.__context__ or error})") from None


def cure_of(path: Path) -> str:
    return f"delete {path} to go on from an older checkpoint"


def _is_own(path: Path) -> bool:
    """Whether it is a folder with nothing in it but what a checkpoint has, or some of that."""
    if path.is_symlink() or not path.is_dir():
        return False
    return all(OWN.fullmatch(file.name) and (file.is_symlink() or not file.is_dir()) for file in path.iterdir())


def _hide(path: Path) -> None:
    """Where a checkpoint goes to be removed: for a reader it is whole until then, and gone from then on."""
    path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}.old"))


def _sweep(folder: Path) -> None:
    for path in folder.glob(".[0-9]*"):
        if HIDDEN.fullmatch(path.name) and _is_own(path):
            shutil.rmtree(path)
