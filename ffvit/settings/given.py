"""Settings as people and files give them: read, joined in layers, and brought from older forms to today's."""

import tomllib
from pathlib import Path
from typing import Any

from ffvit.settings.config import SETTINGS, Config
from ffvit.settings.recipes import RECIPES
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import read_object

# Arguments of models that were settings of their own once, and a setting that is gone: how older files are read.
ONCE_SETTINGS = (
    *("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"),
    *("embed_dims", "depths", "mlp_ratios", "attention_stages", "deformable"),
)
BACKBONE = "backbone_args"  # among model_args, of a detector's
GONE = {"parallel": "ddp"}
OF_A_RUN = ("experiment", "name", "model", "dataset")  # that it always has, and no other program's config.json


def read_settings(path: Path, cure: str) -> dict:
    """The settings of a run as a file has them. Raises InputError for a file that is missing, damaged, or another program's."""
    values = read_object(path, "the settings of a run", cure)
    if missing := [name for name in OF_A_RUN if not isinstance(values.get(name), str)]:
        raise InputError(f"{path} does not hold the settings of a run (no '{missing[0]}'): {cure}")
    if not isinstance(values.get("model_args", {}), dict):
        raise InputError(f"{path} does not hold the settings of a run (model_args is no table): {cure}")
    return values


def read_config(path: Path, cure: str) -> Config:
    """The run whose settings are in a file. Raises InputError that names the file."""
    values = read_settings(path, cure)
    try:
        return config_from_dict(values)
    except InputError as error:
        raise InputError(f"{path}: {error}: {cure}") from None


def config_from_dict(values: dict) -> Config:
    """The inverse of Config.to_dict, for a config.json of a run. Raises InputError for one of another version."""
    values = with_defaults(values)
    if unknown := sorted(set(values) - set(SETTINGS)):
        raise InputError(f"{unknown}: no settings of a run; was this config written by another version?")
    return Config(**values)


def with_defaults(values: dict) -> dict:
    """Settings that were written down, in today's form; those younger than the file have their default, as runs then had."""
    defaults = {name: f.get_default(call_default_factory=True) for name, f in SETTINGS.items() if not f.is_required()}
    kept = {k: v for k, v in values.items() if k not in ONCE_SETTINGS and GONE.get(k, values) != v}
    old = {name: values[name] for name in ONCE_SETTINGS if values.get(name) is not None}
    kept["model_args"] = old | values.get("model_args", {})
    return {k: list(v) if isinstance(v, tuple) else v for k, v in {**defaults, **kept}.items()}


def resolve(given: dict) -> dict:
    """Settings over those of the recipe they name. Raises InputError for an unknown recipe or setting."""
    recipe = given.get("recipe", "")
    if not isinstance(recipe, str) or (recipe and recipe not in RECIPES):
        raise InputError(f"recipe '{recipe}' is unknown{suggest(str(recipe), RECIPES)}")
    for name in given:
        if name in ONCE_SETTINGS:
            raise InputError(f"'{name}' is an argument of the model: write model_args = {{ {name} = ... }}")
        if name not in SETTINGS:
            raise InputError(f"'{name}' is no setting of a run{suggest(name, SETTINGS)}")
    return {**(RECIPES[recipe]() if recipe else {}), **given}


def merge(*layers: dict) -> dict:
    """Later settings win; arguments of the model, and of its backbone, are joined one by one."""
    model_args: dict = {}
    for layer in layers:
        args = layer.get("model_args", {})
        if not isinstance(args, dict):
            raise InputError(f"model_args must be a table, such as {{ depth = 4 }}, got {args!r}")
        before, after = model_args.get(BACKBONE), args.get(BACKBONE)
        model_args |= args
        if isinstance(before, dict) and isinstance(after, dict):
            model_args[BACKBONE] = before | after
    merged = {name: value for layer in layers for name, value in layer.items()}
    return merged | ({"model_args": model_args} if model_args else {})


def parse_setting(text: str) -> dict:
    """'epochs=3' -> {"epochs": 3}, 'model_args.depth=2' -> {"model_args": {"depth": 2}}. TOML; a bare word is a string."""
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"'{text}': write settings as name=value, such as epochs=3")
    try:
        return tomllib.loads(f"{key} = {value}")
    except (ValueError, RecursionError):  # no TOML, a number of thousands of digits, or a nest too deep
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        return nested
