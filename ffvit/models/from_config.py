"""The model of a run: made by `timm.create_model` from the run's settings, and refused before any work where it does not fit."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from timm.optim import list_optimizers
from torch import nn

from ffvit.models.weights import load_weights
from ffvit.settings.config import Config
from ffvit.system.errors import InputError, suggest


def create(config: Config, num_classes: int) -> nn.Module:
    """The model of a run. Raises InputError for an unknown name and for a shape that does not fit."""
    if not timm.is_model(config.model):
        raise InputError(
            f"model '{config.model}' is unknown to timm{suggest(config.model, map(str, timm.list_models()))}"
        )
    shape = {"img_size": config.img_size, "in_chans": config.in_chans, "drop_rate": config.drop_rate}
    if config.drop_path_rate is not None:
        shape["drop_path_rate"] = config.drop_path_rate
    try:
        model = timm.create_model(config.model, num_classes=num_classes, **shape | config.model_args)
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError) as error:
        raise InputError(f"model '{config.model}' cannot have the shape that the settings give it: {error}") from None
    if (task := getattr(model, "task", "classification")) != config.task:
        raise InputError(f"model '{config.model}' is for task='{task}', and the settings say task='{config.task}'")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
    if config.img_size % patch:
        raise InputError(f"img_size {config.img_size} is not divisible by the patch size {patch} of {config.model}")
    if empty := [name for name, weight in model.named_parameters() if not weight.numel()]:
        raise InputError(
            f"model '{config.model}' has nothing in {empty[0]}: make the widths in model_args larger than 0"
        )
    return model


def start_from(model: nn.Module, file: Path) -> None:
    """Put a file's weights into a model that will be trained, resampled where they are of another image size.

    A detector may start from a classification model's, its backbone's.

    Raises InputError for what cannot be loaded, and for weights of another shape than the settings give the model.
    """
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    load_weights(model, file, backbone_will_do=True)
    for name, value in model.state_dict().items():
        if shapes[name] != tuple(value.shape):  # a record's settings say all of its model
            raise InputError(
                f"{file}: {name} is {tuple(value.shape)}, by the settings {shapes[name]}: set model_args = "
                f"{{ patch_hidden_dim = {len(value)} }}"
            )


def check(config: Config) -> None:
    """Raise InputError for a model or optimiser that cannot be made, before any image is read or weight allotted."""
    if config.optimizer not in list_optimizers():
        raise InputError(
            f"optimizer '{config.optimizer}' is unknown to timm{suggest(config.optimizer, map(str, list_optimizers()))}"
        )
    with torch.device("meta"):
        parameters = sum(p.numel() for p in create(config, num_classes=2).parameters())
    needed_gb = 8 * parameters / 1e9  # the least there is: a weight and its gradient, in single precision
    there_gb = psutil.virtual_memory().total / 1e9
    if needed_gb > there_gb:
        raise InputError(
            f"model '{config.model}' has {parameters:,} parameters by img_size and model_args: they take {needed_gb:,.0f} GB "
            f"and this machine has {there_gb:,.0f}; make them smaller"
        )


def use_plain_attention(model: nn.Module) -> None:
    """Compute attention by two products and a softmax instead of torch's one kernel for it. The same function.

    On a CPU in bf16, that kernel takes three times as long for short sequences (65 tokens, heads of 16).
    """
    modules: Iterable[Any] = model.modules()  # timm declares fused_attn final
    for module in modules:
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
