"""Weights in files: ours are safetensors, authors' are pickles, and nothing that is read executes.

Authors' files are DeiT training checkpoints (the report's author), and plain state dicts or training checkpoints with
settings (LIT's). They are read with `weights_only=True` and two foreign types allowed: `argparse.Namespace`, and yacs'
`CfgNode`, a dict for which an OrderedDict stands in.
"""

import argparse
import contextlib
import hashlib
import http.client
import re
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ffvit.system.errors import InputError
from ffvit.system.files import replacing, seal, sha256_of

AUTHOR_WEIGHTS = "https://github.com/lukemelas/do-you-even-need-attention/releases/download/v0.0.1/"
AUTHOR_SHA256: dict[str, str] = {}  # by file name; the author gives none: pin them once the files have been fetched
# The author's parameter names, and ours (ffvit.models.ff.Block): 1 is over features, 2 over patches.
AUTHOR_NAMES = (
    (".mlp1.", ".mix_features.mix."),
    (".norm1.", ".mix_features.norm."),
    (".mlp2.", ".mix_patches.mix."),
    (".norm2.", ".mix_patches.norm."),
)


def save_weights(path: Path, model_or_state: nn.Module | dict[str, Tensor]) -> str:
    """Write weights as write_atomically does; returns the file's sha256."""
    state = model_or_state.state_dict() if isinstance(model_or_state, nn.Module) else model_or_state
    with replacing(path) as temporary:
        write_tensors(temporary, state)
        return seal(temporary)["sha256"]


def load_weights(model: nn.Module, path_or_url: str | Path, sha256: str | None = None) -> nn.Module:
    """Load a checkpoint, every key and shape of it, into a model of this library or of timm.

    path_or_url: our `.safetensors`, or an author's `.pth`; an http(s) address is downloaded once into torch's
    hub folder. sha256: refuse a file with another hash.
    Raises InputError for a file that is missing, damaged, not safe to read, or of another model.
    """
    path = _download(str(path_or_url)) if "://" in str(path_or_url) else Path(path_or_url)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    if sha256 and (found := sha256_of(path)) != sha256:
        raise InputError(f"{path}: sha256 is {found}, expected {sha256}; delete the file and fetch it again")
    with reading(path, "delete it if it was downloaded"):
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
def reading(file: Path, cure: str) -> Iterator[Path]:
    """Turn what reading a file raises into an InputError that names the file."""
    try:
        yield file
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{file}: cannot be read safely as a checkpoint ({reason}); {cure}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor], **texts: str) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt", **texts})
    except SafetensorError as error:  # it wraps the system's
        raise OSError(f"{path} could not be written ({error})") from None


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
