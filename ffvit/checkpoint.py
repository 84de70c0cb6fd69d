"""Files that hold a model: written so that a kill leaves the old one or the new one, read so that nothing executes.

Ours are safetensors. The author's are DeiT training checkpoints, pickles whose only foreign type is an
`argparse.Namespace`; they are read with `weights_only=True` and that one type allowed.
"""

import argparse
import hashlib
import http.client
import json
import os
import tempfile
import urllib.parse
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from ffvit.config import InputError

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
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def save_weights(path: Path, model: nn.Module) -> None:
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_atomically(path, save(tensors, metadata={"format": "pt"}))


def save_training_state(path: Path, models: dict[str, nn.Module], optimizer, progress: dict) -> None:
    """Everything a run needs to go on, in one file, so that it is never half old and half new.

    models: e.g. {"model": ..., "ema": ...}. progress: what JSON can hold (epoch, history).
    """
    tensors = {
        f"{name}/{k}": v.detach().cpu().contiguous() for name, m in models.items() for k, v in m.state_dict().items()
    }
    state, scalars = optimizer.state_dict(), {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = value.detach().cpu().contiguous()
            else:
                scalars.setdefault(index, {})[name] = value
    groups = [{k: v.item() if isinstance(v, torch.Tensor) else v for k, v in g.items()} for g in state["param_groups"]]
    texts = {"progress": progress, "param_groups": groups, "optimizer_scalars": scalars}
    write_atomically(path, save(tensors, metadata={name: json.dumps(value) for name, value in texts.items()}))


def load_training_state(path: Path, models: dict[str, nn.Module], optimizer) -> dict:
    """Put a saved state back in place; returns its progress. Raises InputError for a file that does not fit."""
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            texts = {name: json.loads(text) for name, text in file.metadata().items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole training state ({error}); delete it to start the run again") from None

    def under(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    for name, model in models.items():
        _load_strictly(model, under(f"{name}/"), path)
    state: dict = {int(index): values for index, values in texts["optimizer_scalars"].items()}
    for key, value in under("optimizer/").items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": texts["param_groups"]})
    return texts["progress"]


def load_weights(model: nn.Module, path_or_url: str | Path, sha256: str | None = None) -> nn.Module:
    """Load a checkpoint, every key and shape of it, into a model of this library or of timm.

    path_or_url: our `.safetensors`, or the author's `.pth`; an http(s) address is downloaded once into torch's
    hub folder. sha256: refuse a file with another hash.
    Raises InputError for a file that is missing, damaged, not safe to read, or of another model.
    """
    path = _download(str(path_or_url)) if "://" in str(path_or_url) else Path(path_or_url)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if sha256 and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise InputError(f"{path}: sha256 is {found}, expected {sha256}; delete the file and fetch it again")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read safely as a checkpoint ({reason}); delete it if it was downloaded"
        ) from None
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InputError(f"{path}: holds no state dict of tensors")
    _load_strictly(model, _our_names(state), path)
    return model


def _our_names(state: dict) -> dict:
    """The author's names become ours; any other state dict stays as it is."""
    if not any(".mlp1." in key for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        for theirs, ours in AUTHOR_NAMES:
            key = key.replace(theirs, ours)
        renamed[key] = value
    return renamed


def _load_strictly(model: nn.Module, state: dict, path: Path) -> None:
    own = model.state_dict()
    problems = [f"{key} is missing" for key in own if key not in state]
    problems += [f"{key} is foreign" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)}, the model's {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        raise InputError(f"{path}: the weights of another model: {shown}")
    model.load_state_dict(state)


def _download(url: str) -> Path:
    name = Path(urllib.parse.urlparse(url).path).name
    if not url.startswith(AUTHOR_WEIGHTS):  # files of one name from two addresses are two files
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"could not download {url} ({error}). Fetch it elsewhere and put it at {target}") from None
    return target
