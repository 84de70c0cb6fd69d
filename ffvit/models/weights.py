"""Weights in files: ours are safetensors, authors' are pickles, and nothing that is read executes.

Authors' files are DeiT training checkpoints (the report's author), and plain state dicts or training checkpoints with
settings (LIT's). They are read with `weights_only=True` and two foreign types allowed: `argparse.Namespace`, and yacs'
`CfgNode`, a dict for which an OrderedDict stands in.
"""

import argparse
import contextlib
import http.client
import mmap
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import build_model_with_cfg, get_pretrained_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ffvit.models.resample import at_size_of
from ffvit.system.errors import InputError
from ffvit.system.files import replacing, seal, sha256_of

Model = TypeVar("Model", bound=nn.Module)
AUTHOR_TYPES: list[Any] = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
# The author's parameter names, and ours (ffvit.models.mixing.Block): 1 is over features, 2 over patches.
AUTHOR_NAMES = (
    (".mlp1.", ".mix_features.mix."),
    (".norm1.", ".mix_features.norm."),
    (".mlp2.", ".mix_patches.mix."),
    (".norm2.", ".mix_patches.norm."),
)

EXPORTED = "model.safetensors"  # of a folder that ffvit export wrote
MOST_TIMES, MOST_BESIDE = 10, 2**26  # what a file may hold: the model, its optimizer and averages; other things, bytes


def save_weights(path: Path, model: nn.Module) -> str:
    """Write weights as write_atomically does; returns the file's sha256."""
    with replacing(path) as temporary:
        write_tensors(temporary, model.state_dict())
        return seal(temporary)["sha256"]


def load_weights(
    model: nn.Module, path: str | Path, sha256: str | None = None, backbone_will_do: bool = False
) -> nn.Module:
    """Load a checkpoint, every key and shape of it, into a model of this library or of timm.

    path: our `.safetensors`, or an author's `.pth`. sha256: refuse a file with another hash.
    backbone_will_do: of a detector, a classification model's weights are loaded into the backbone, and the rest stays.
    Weights of another image size are resampled to the model's, see ffvit.models.resample. The parameters are new ones then,
    and a feed-forward layer over patches has the file's hidden width, unless the model was given a patch_hidden_dim.
    Raises InputError for a file that is missing, damaged, not safe to read, much too large, or of another model, and
    for weights that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}")
    with reading(path, "delete it if it was downloaded"):
        _refuse_bomb(path, model)
    if sha256 and (found := sha256_of(path)) != sha256:
        raise InputError(f"{path}: sha256 is {found}, expected {sha256}; delete the file and fetch it again")
    with reading(path, "delete it if it was downloaded"):
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(AUTHOR_TYPES):
                content = torch.load(path, map_location="cpu", weights_only=True)
    state = _state_dict_in(content, path)
    if hasattr(model, "from_official"):
        state = cast(Any, model).from_official(state)
        state = cast(Any, model).with_backbone(state, path) if backbone_will_do else state
    try:
        twin = at_size_of(state, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    state = _with_indices_of(model if twin is None else twin, state)
    if twin is None:
        load_strictly(model, state, path)
    else:
        _load_resampled(model, twin, state, path)
    return model


def _with_indices_of(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The index of a table of biases follows from the size of its map: some files hold it, and others do not."""
    name, own = "relative_position_index", model.state_dict()
    kept = {key: value for key, value in state.items() if key in own or not key.endswith(name)}
    return {key: value for key, value in own.items() if key.endswith(name)} | kept


def _load_resampled(model: Any, twin: Any, state: dict[str, Tensor], path: Path) -> None:
    """Load weights into the model's twin of their size, and make that the model, at its own size."""
    own = model.state_dict()
    _refuse_misfit(twin, twin.state_dict(), state, path)
    _refuse_not_finite(own, state, path)
    twin.load_state_dict({key: value.to(own[key]) for key, value in state.items()}, assign=True)
    twin.set_input_size(getattr(model, "img_size", None) or model.patch_embed.img_size)
    model.__dict__.update(twin.__dict__)


def create_by_timm(model_class: type[Model], name: str, pretrained: bool, **kwargs) -> Model:
    """timm's `build_model_with_cfg`. pretrained: fetch the author's file into torch's hub folder, once, and load it; or what
    ffvit export wrote, where timm was asked for a folder or the hub.

    timm replaces a classifier of another size and adapts the first convolution to other channels; weights are loaded at
    their own image size, and resampled to img_size where the model can be; all else must fit.
    Raises InputError for a model without published weights, without a network, and for a file that is damaged.
    """
    if not pretrained:
        return build_model_with_cfg(model_class, name, pretrained=False, **kwargs)
    source, url = exported_from(kwargs.get("pretrained_cfg")), getattr(get_pretrained_cfg(name), "url", None)
    if not source and not url:
        raise InputError(f"no weights of {name} were published; timm.list_pretrained() tells which models have some")
    img_size = kwargs.pop("img_size", None) if hasattr(model_class, "set_input_size") else None
    kind, _, folder = source.partition(":")
    place = Path(torch.hub.get_dir()) / "checkpoints" / Path(url or "").name
    if source:
        own_size = (kwargs.get("pretrained_model_args") or {}).get("img_size")
        kwargs |= {} if own_size is None else {"img_size": own_size}
        img_size = None if img_size == own_size else img_size
        place = Path(folder) / EXPORTED if kind == "local-dir" else Path(folder)
    fitting = partial(_fitting, path=place)
    try:
        if place.is_file():
            with torch.device("meta"):
                _refuse_bomb(place, build_model_with_cfg(model_class, name, pretrained=False, **deepcopy(kwargs)))
        with torch.serialization.safe_globals(AUTHOR_TYPES), download(source or str(url), place):
            model: Any = build_model_with_cfg(
                model_class, name, pretrained=True, pretrained_filter_fn=fitting, **kwargs
            )
        if img_size is not None:
            whole: Any = model.model if isinstance(model, FeatureGetterNet) else model
            whole.set_input_size(img_size)
        return model
    except InputError:
        raise
    except Exception as error:  # as many kinds as in `reading`, and those of a shape that the weights do not have
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"{place}: cannot be loaded into {name} ({reason}); delete the file if it is damaged"
        ) from None


def exported_from(pretrained_cfg: Any) -> str:
    """Where timm was told to find weights, "local-dir:<folder>" or "hf-hub:<name>"; "" where it was told of no place."""
    cfg = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    place = {"local-dir": cfg.get("file"), "hf-hub": cfg.get("hf_hub_id")}.get(cfg.get("source", ""))
    return f"{cfg['source']}:{place}" if place else ""


@contextlib.contextmanager
def download(source: str, place: Path | None = None) -> Iterator[None]:
    """Turn what a network raises into an InputError. place: where the file may be put by hand."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        cure = f"Fetch it elsewhere and put it at {place}" if place else "Is there a network, and such a model?"
        raise InputError(f"could not download {source} ({error}). {cure}") from None


def _fitting(content, model: nn.Module, path: Path) -> dict[str, Tensor]:
    """What timm calls between reading and loading: the state dict in an author's file, refused where it does not fit."""
    cfg: Any = model.pretrained_cfg
    state, own = _with_indices_of(model, _state_dict_in(content, path)), model.state_dict()
    first_conv = f"{cfg['first_conv']}.weight"
    if first_conv in state:  # timm adapts it, and leaves the classifier out where it is of another size
        own[first_conv] = state[first_conv]
    own |= {key: value for key, value in state.items() if key.startswith(f"{cfg['classifier']}.")}
    _refuse_misfit(model, own, state, path)
    _refuse_not_finite(own, state, path)
    return state


def load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Put a state dict in place, or raise InputError, naming its file, and leave the model as it is.

    Keys and shapes must be the model's; a float tensor may have another precision, but not become an integer, and must
    be finite.
    """
    own = model.state_dict()
    _refuse_misfit(model, own, state, path)
    _refuse_not_finite(own, state, path)
    model.load_state_dict(state)


def _refuse_misfit(model: nn.Module, own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
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
        variant_of = getattr(model, "variant_of", None)
        variant = variant_of(state) if variant_of else ""
        whose = f" (its blocks are those of {variant})" if variant else ""
        raise InputError(f"{path}: the weights of another model{whose}: {shown}")


def _refuse_not_finite(own: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """A model with such weights gives the first class to every image, and no error."""
    spoilt = [key for key, value in state.items() if not value.to(own[key].dtype).isfinite().all()]
    if spoilt:
        shown = ", ".join(spoilt[:3]) + (f" and {len(spoilt) - 3} more" if len(spoilt) > 3 else "")
        raise InputError(
            f"{path}: NaN or infinite numbers in {shown}: the training that wrote them went astray; take other "
            "weights, or train again with a lower base_lr"
        )


def _refuse_bomb(path: Path, model: nn.Module) -> None:
    """Raise ValueError for a file that would take far more memory than the model does, before any of it is unpacked."""
    own = model.state_dict()
    size = path.stat().st_size
    most = MOST_TIMES * sum(value.numel() * value.element_size() for value in own.values()) + MOST_BESIDE
    with path.open("rb") as file:
        begin = file.read(8)
        if begin.startswith(b"PK\x03\x04"):  # torch's zip
            with zipfile.ZipFile(file) as archive:
                for entry in archive.infolist():
                    if entry.compress_type != zipfile.ZIP_STORED:
                        raise ValueError(f"its part {entry.filename} is compressed, and torch.save compresses nothing")
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
        if size > most:
            raise ValueError(
                f"it holds {size:,} bytes, more than the {most:,} that a checkpoint of this model may have"
            )
        if path.suffix == ".safetensors":
            header = int.from_bytes(begin, "little")
            if header > 2**20 + 1000 * len(own):
                raise ValueError(f"its header has {header:,} bytes, for a model of {len(own)} tensors")
        else:
            refuse_bytearray(path)


def refuse_bytearray(path: Path) -> None:
    """Raise ValueError for a pickle that holds one: torch makes it of any length that the pickle says."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"bytearray") >= 0:
            raise ValueError("it holds a bytearray, which no checkpoint needs")


@contextlib.contextmanager
def reading(file: Path, cure: str) -> Iterator[Path]:
    """Turn what reading a file raises into an InputError that names the file."""
    try:
        yield file
    except Exception as error:  # torch and safetensors raise many kinds for a file that is not what it should be
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{file}: cannot be read safely as a checkpoint ({reason}); {cure}") from None


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:  # it wraps the system's
        raise OSError(f"{path} could not be written ({error})") from None


def _is_plain(value) -> bool:
    """Whether it is a tensor with numbers in it: a pickle may also hold sparse ones, and ones without memory."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta


def _state_dict_in(content, path: Path) -> dict[str, Tensor]:
    """The state dict of a file's content, under our names and without what DDP puts before them."""
    state = content
    for container in ("state_dict", "model"):  # mmcv's, and DeiT's and Swin's
        state = state.get(container, state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(k, str) and _is_plain(v) for k, v in state.items()):
        raise InputError(f"{path}: holds no state dict of tensors")
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
