"""Models that are handed on: timm's layout of the hub, config.json beside model.safetensors, written and read.

`timm.create_model("local-dir:FOLDER", pretrained=True)`, and "hf-hub:OWNER/NAME", make such a model again, after
`import ffvit.models`: those that timm's own builder makes, and by `register_model` below those that it does not.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import timm.models
from huggingface_hub import hf_hub_download
from timm.models import split_model_name_tag
from torch import nn

from ffvit.models.weights import EXPORTED, download, exported_from, load_weights
from ffvit.system.errors import InputError
from ffvit.system.files import read_object

if TYPE_CHECKING:  # models are made without what settings need
    from ffvit.settings.config import Config

CONFIG, WEIGHTS = "config.json", EXPORTED
SEEN = ("mean", "std", "interpolation", "crop_pct")  # of what a model sees: ours and timm's go by the same names
OF_MODEL = ("fixed_input_size", "first_conv", "classifier")  # what timm must know of it to load and adapt weights

Made = TypeVar("Made", bound=nn.Module)


def hub_config(model: nn.Module, config: "Config", classes: list[str]) -> dict[str, Any]:
    """What config.json says of a run's model: its name and shape, its classes, and how an evaluation prepares an image.

    Drop rates are no part of it: they are training's, and the record has them.
    """
    known: dict[str, Any] = dict(getattr(model, "pretrained_cfg", {}))
    seen = {name: value for name, value in config.to_dict().items() if name in SEEN}
    size = [config.in_chans, config.img_size, config.img_size]
    said: dict[str, Any] = {
        "architecture": split_model_name_tag(config.model)[0],
        "task": config.task,
        "num_classes": len(classes),
        "label_names": classes,
        "model_args": {"img_size": config.img_size, "in_chans": config.in_chans, **config.model_args},
        "pretrained_cfg": {name: known[name] for name in OF_MODEL if name in known}
        | {"input_size": size, "crop_mode": "center", "num_classes": len(classes), **seen},
    }
    if features := getattr(model, "num_features", None):
        said["num_features"] = features
    return said


def read_folder(folder: Path) -> dict[str, Any]:
    """The config.json of an exported folder. Raises InputError for one that holds no such model."""
    cure = "give a folder that ffvit export, or timm's save_for_hf, has written"
    said = read_object(folder / CONFIG, "a model as timm has it", cure)
    if not isinstance(said.get("architecture"), str) or not isinstance(said.get("pretrained_cfg", {}), dict):
        raise InputError(f"{folder / CONFIG} does not hold a model as timm has it (no 'architecture'): {cure}")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}: {cure}")
    return said


def register_model(make: Callable[..., Made]) -> Callable[..., Made]:
    """timm's, for a model that timm's builder does not make: exported weights are loaded into it too, each key and shape.

    Asked for with other classes than they have, they are refused.
    """

    @functools.wraps(make)
    def made(
        pretrained: bool = False, pretrained_cfg: Any = None, pretrained_model_args: dict | None = None, **kwargs: Any
    ) -> Made:
        source = exported_from(pretrained_cfg)
        if not source:
            return make(pretrained=pretrained, **kwargs)
        kwargs.setdefault("num_classes", pretrained_cfg["num_classes"])
        model = make(pretrained=False, **kwargs)
        cast(Any, model).pretrained_cfg = pretrained_cfg
        if pretrained:
            load_weights(model, weights_at(source))
        return model

    return timm.models.register_model(made)


def weights_at(source: str) -> Path:
    """The weights of a folder, or of a model on the hub, which are fetched once. Raises InputError where there are none."""
    kind, _, place = source.partition(":")
    if kind == "local-dir":
        return Path(place) / WEIGHTS
    name, _, revision = place.partition("@")
    with download(source):
        return Path(hf_hub_download(name, WEIGHTS, revision=revision or None))
