"""A trained model to use, by what a person has of it: the folder of a run, an exported folder, or a name that timm knows."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

import ffvit.models  # noqa: F401  # registers the models
from ffvit.evidence.export import class_names
from ffvit.evidence.records import open_run
from ffvit.evidence.scoring import load_model
from ffvit.models.exported import CONFIG, SEEN, read_folder
from ffvit.settings.config import Config
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import read_object

PLACES = ("local-dir:", "hf-hub:")  # of timm's names


class Opened(NamedTuple):
    model: nn.Module  # on the CPU, in evaluation mode
    config: Config  # by which images are prepared, as an evaluation does it; those that cannot be read are skipped
    classes: list[str]


def open_model(given: str) -> Opened:
    """given: the folder of a finished run; one that ffvit export wrote; or a name of timm's, with weights, which are fetched.

    Raises InputError for what is none of these, is not finished, or is damaged.
    """
    folder = Path(given).expanduser()
    if folder.is_dir():
        exported = (folder / CONFIG).is_file() and "architecture" in read_object(
            folder / CONFIG, "a model or the settings of a run", "give another folder"
        )
        return _of_folder(folder) if exported else _of_run(folder)
    if not given.startswith(PLACES):
        if "/" in given:
            raise InputError(f"{given} is no folder: give that of a run, or of an exported model, or a name of timm's")
        if not timm.is_model(given):
            raise InputError(f"model '{given}' is no folder, and unknown to timm{suggest(given, timm.list_models())}")
    return _by_timm(given)


def _of_run(folder: Path) -> Opened:
    config, facts = open_run(folder)
    classes = class_names(facts)
    model = load_model(config, folder / "last.safetensors", len(classes), "cpu")
    one_by_one = replace(config, in_memory=False, augment="image", bad_images="skip")
    return Opened(model, one_by_one, classes)


def _of_folder(folder: Path) -> Opened:
    read_folder(folder)
    return _by_timm(f"local-dir:{folder}")


def _by_timm(name: str) -> Opened:
    try:
        model: Any = timm.create_model(name, pretrained=True).eval()
    except InputError:
        raise
    except Exception as error:  # timm's, the hub's and the network's, of many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name} cannot be had with its weights ({reason}); timm.list_pretrained() tells which models have some, and "
            "they are fetched once, by a network"
        ) from None
    classes = _classes(model)
    if not classes:
        raise InputError(f"{name} gives features and no classes: choose a model with a classifier")
    return Opened(model, _config_of(model, name), classes)


def _classes(model: Any) -> list[str]:
    """As the weights say, or ImageNet's where they are of ImageNet; else numbers."""
    count = model.num_classes if hasattr(model, "num_classes") else model.pretrained_cfg["num_classes"]
    names = model.pretrained_cfg.get("label_names")
    if isinstance(names, dict):
        names = [names.get(str(number), str(number)) for number in range(count)]
    if not names and (subset := infer_imagenet_subset(model)):
        info = ImageNetInfo(subset)
        names = [info.index_to_description(number) for number in range(count)]
    if names and len(names) != count:
        raise InputError(f"its config.json names {len(names)} classes, and its weights have {count}: mend label_names")
    return list(names or map(str, range(count)))


def _config_of(model: nn.Module, name: str) -> Config:
    """How images are prepared for a model that timm made: by what its weights say of themselves. name: in messages."""
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    if height != width:
        raise InputError(f"{name} takes images of {width} x {height} pixels, and images are prepared as squares here")
    if (mode := cfg.get("crop_mode", "center")) != "center":
        raise InputError(f"{name} takes images cropped by crop_mode='{mode}', and here they are cropped in the centre")
    seen = {key: cfg[key] for key in SEEN if key in cfg}
    seen |= {key: tuple(map(float, seen[key])) for key in ("mean", "std") if key in seen}
    if "crop_pct" in seen:
        seen["crop_pct"] = float(seen["crop_pct"])
    return Config(
        experiment="own",
        task=getattr(model, "task", "classification"),
        name="own",
        label=name,
        model=name,
        dataset="own",
        img_size=height,
        in_chans=channels,
        bad_images="skip",
        **seen,
    )
