"""Files that hold a model or a run: written so that a kill leaves the old ones or the new ones, read so that nothing
executes.

A checkpoint of a run is a folder, `<checkpoints>/<update, 8 digits>/`: model.safetensors, ema.safetensors where there is
one, optimizer.safetensors, progress.json, and manifest.json with the size and sha256 of the others. It exists whole or
not at all; `find_state` passes over one that was damaged later.

Weights of ours are safetensors. Authors' are pickles: DeiT training checkpoints (the report's author), and plain state
dicts or training checkpoints with settings (LIT's). They are read with `weights_only=True` and two foreign types allowed:
`argparse.Namespace`, and yacs' `CfgNode`, a dict for which an OrderedDict stands in.
"""

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import tempfile
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ffvit.config import InputError

KEEP = 2  # checkpoints of a run: the last, and one to fall back to
MANIFEST = "manifest.json"
AUTHOR_WEIGHTS = "https://github.com/lukemelas/do-you-even-need-attention/releases/download/v0.0.1/"
AUTHOR_SHA256: dict[str, str] = {}  # by file name; the author gives none: pin them once the files have been fetched
# The author's parameter names, and ours (ffvit.models.Block): 1 is over features, 2 over patches.
AUTHOR_NAMES = (
    (".mlp1.", ".mix_features.mix."),
    (".norm1.", ".mix_features.norm."),
    (".mlp2.", ".mix_patches.mix."),
    (".norm2.", ".mix_patches.norm."),
)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that every reader, at any time, also after a power cut, sees it whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(temporary)


def save_weights(path: Path, model_or_state: nn.Module | dict[str, Tensor]) -> str:
    """Write weights as write_atomically does; returns the file's sha256."""
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    with _replacing(path) as temporary:
        _write_tensors(temporary, state)
        return _seal(temporary)["sha256"]


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
            _write_tensors(temporary / f"{name}.safetensors", state)
        tensors: dict[str, Tensor] = {}
        structure = _without_tensors(optimizer, "optimizer", tensors)
        _write_tensors(temporary / "optimizer.safetensors", tensors, structure=json.dumps(structure))
        (temporary / "progress.json").write_text(json.dumps(progress))
        manifest = {file.name: _seal(file) for file in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")))
        _sync(temporary / MANIFEST)
        _sync(temporary)
        if path.exists():
            path.rename(_hidden(path))
        temporary.rename(path)
        _sync(folder)
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
        if file.stem != "optimizer":
            with _reading(file, cure):
                models[file.stem] = load_file(file, backend="pread")  # mapped tensors would need the file to stay
    with _reading(path / "optimizer.safetensors", cure) as file, safe_open(file, "pt", backend="pread") as content:
        optimizer = _with_tensors(json.loads((content.metadata() or {})["structure"]), content.get_tensors())
        if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
            raise ValueError("no state of an optimizer")
    with _reading(path / "progress.json", cure) as file:
        progress = _read_json(file)
    return models, optimizer, progress


def load_weights(model: nn.Module, path_or_url: str | Path, sha256: str | None = None) -> nn.Module:
    """Load a checkpoint, every key and shape of it, into a model of this library or of timm.

    path_or_url: our `.safetensors`, or an author's `.pth`; an http(s) address is downloaded once into torch's
    hub folder. sha256: refuse a file with another hash.
    Raises InputError for a file that is missing, damaged, not safe to read, or of another model.
    """
    path = _download(str(path_or_url)) if "://" in str(path_or_url) else Path(path_or_url)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if sha256 and (found := _sha256(path)) != sha256:
        raise InputError(f"{path}: sha256 is {found}, expected {sha256}; delete the file and fetch it again")
    with _reading(path, "delete it if it was downloaded"):
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    for container in ("state_dict", "model"):  # mmcv's, and DeiT's and Swin's
        state = state.get(container, state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in state.items()):
        raise InputError(f"{path}: holds no state dict of tensors")
    load_strictly(model, _our_names(state), path)
    return model


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put a state dict in place, or raise InputError, naming its file, and leave the model as it is.

    Keys and shapes must be the model's; a float tensor may have another precision, but not become an integer.
    """
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is foreign" for key in state if key not in own]
    for key in (key for key in own if key in state):
        theirs, ours = state[key], own[key]
        if theirs.shape != ours.shape:
            problems.append(f"{key} is {tuple(theirs.shape)}, the model's {tuple(ours.shape)}")
        elif (theirs.is_floating_point(), theirs.is_complex()) != (ours.is_floating_point(), ours.is_complex()):
            problems.append(f"{key} is {theirs.dtype}, the model's {ours.dtype}")
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        whose = ""
        if hasattr(model, "describe_weights") and (theirs := model.describe_weights(state)):
            whose = f" ({theirs}; this one is {model.describe_weights(own)}; create one of that shape to load them)"
        raise InputError(f"{path}: the weights of another model{whose}: {shown}")
    model.load_state_dict(state)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
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


@contextlib.contextmanager
def _reading(file: Path, cure: str) -> Iterator[Path]:
    """Turn what reading a file raises into an InputError that names the file."""
    try:
        yield file
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{file}: cannot be read safely as a checkpoint ({reason}); {cure}") from None


def _write_tensors(path: Path, tensors: dict[str, Tensor], **texts: str) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt", **texts})
    except SafetensorError as error:  # it wraps the system's
        raise OSError(f"{path} could not be written ({error})") from None


def _without_tensors(value, name: str, tensors: dict[str, Tensor]):
    """The value as JSON can hold it: keys keep their type, tuples are marked, tensors move to `tensors` by name."""
    match value:
        case Tensor():
            # Parameter groups may share one learning rate; safetensors takes no shared memory.
            tensors[name] = value.clone() if value.dim() == 0 else value
            return {"tensor": name}
        case dict():
            return {"dict": [[key, _without_tensors(v, f"{name}/{key}", tensors)] for key, v in value.items()]}
        case list() | tuple():
            items = [_without_tensors(v, f"{name}/{i}", tensors) for i, v in enumerate(value)]
            return {"tuple": items} if isinstance(value, tuple) else items
    return value


def _with_tensors(value, tensors: dict[str, Tensor]):
    """The inverse of _without_tensors."""
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {key: _with_tensors(v, tensors) for key, v in items}
        case {"tuple": items}:
            return tuple(_with_tensors(v, tensors) for v in items)
        case list():
            return [_with_tensors(v, tensors) for v in value]
    return value


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
            if (found := _sha256(file)) != promised["sha256"]:
                return f"{name}: sha256 is {found}, manifest says {promised['sha256']}"
    except Exception as error:  # it may hold anything, and a disk may fail
        return f"{file.name}: {type(error).__name__}: {error}"
    return ""


def _read_json(path: Path) -> dict:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _seal(path: Path) -> dict:
    """Bring a file to the disk; its entry in the manifest."""
    path.chmod(0o644)
    _sync(path)
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hidden(path: Path) -> Path:
    """Where a checkpoint goes to be removed: for a reader it is whole until then, and gone from then on."""
    return path.with_name(f".{path.name}.old")


def _sweep(folder: Path) -> None:
    for hidden in folder.glob(".[0-9]*"):
        shutil.rmtree(hidden)


def _is_plain(value) -> bool:
    """Whether it is a tensor with numbers in it: a pickle may also hold sparse ones, and ones without memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _our_names(state: dict) -> dict:
    """The author's names become ours; any other state dict stays as it is, without what DDP puts before its names."""
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(".mlp1." in key for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        for theirs, ours in AUTHOR_NAMES:
            key = key.replace(theirs, ours)
        renamed[key] = value
    return renamed


def _download(url: str) -> Path:
    try:
        address = urllib.parse.urlparse(url)
    except ValueError as error:
        raise InputError(f"{url}: no address ({error})") from None
    if address.scheme not in ("http", "https"):
        raise InputError(
            f"{url}: only http and https addresses are downloaded; give a file on this machine by its path"
        )
    name = re.sub(r"[^\w.-]", "_", Path(address.path).name)[-100:]
    if not url.startswith(AUTHOR_WEIGHTS) or name.startswith("."):  # files of one name from two addresses are two files
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"could not download {url} ({error}). Fetch it elsewhere and put it at {target}") from None
    return target
