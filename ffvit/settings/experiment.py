"""The files of experiments/: which models, which seeds, on which images, with which settings.

Settings of a run come, later ones first, from the caller (notebook, pipeline or shell), the model's entry in the
experiment file, the experiment's own `[settings]`, a named recipe, and the defaults of `Config`.
"""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from ffvit.settings.config import Config, config_from_dict
from ffvit.settings.recipes import RECIPES
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import EXPERIMENTS

# What the models of an experiment are compared in. A mean, a table row or a curve never mixes two of them.
PARTS = {
    "grid": "The models at one shape",
    "matched": "The models at equal multiply-adds",
    "long": "Longer training",
    "data": "Fewer training images",
    "loader": "Images augmented one by one",
}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One file of experiments/: which models, which seeds, on which images, with which settings."""

    name: str
    title: str
    scope: str  # whose numbers these are: "ImageNet", "CIFAR-10", "digits"; never shown as another's
    about: str
    seeds: list[int]
    models: dict[str, dict]  # name -> label, model, settings of its own; and part, seeds where they are not the usual
    settings: dict = field(default_factory=dict)
    tuning: dict = field(default_factory=dict)  # what is searched for each model, see ffvit.tune; may be left out

    def part(self, model: str) -> str:
        """One of PARTS."""
        return self.models[model].get("part", "grid")

    def seeds_of(self, model: str) -> list[int]:
        return self.models.get(model, {}).get("seeds", self.seeds)

    def config(self, model: str, seed: int = 0, **overrides) -> Config:
        """The settings of one run.

        model: a name in this experiment, or any timm name, which then gets the experiment's settings.
        overrides: settings of Config that win over the experiment's.
        Raises InputError for an unknown setting or recipe and for a value of the wrong type or range.
        """
        entry = self.models.get(model, {"label": model, "model": model})
        own = {name: value for name, value in entry.items() if name not in ("part", "seeds")}
        given = {**self.settings, **own, **overrides, "seed": seed}
        recipe = given.get("recipe", "")
        if recipe and recipe not in RECIPES:
            raise InputError(f"recipe '{recipe}' is unknown{suggest(str(recipe), RECIPES)}")
        known = {f.name for f in fields(Config)} - {"experiment", "name"}
        for key in given:
            if key not in known:
                raise InputError(f"'{key}' is no setting of a run{suggest(key, known)}")
        return config_from_dict(
            {"experiment": self.name, "name": model, **(RECIPES[recipe]() if recipe else {}), **given}
        )

    def configs(self) -> list[Config]:
        return [self.config(model, seed) for model in self.models for seed in self.seeds_of(model)]


def load_experiment(name: str | Path) -> Experiment:
    """Read experiments/<name>.toml, or the .toml file at a path."""
    path = Path(name)
    if path.suffix != ".toml":
        path = EXPERIMENTS / f"{name}.toml"
    if not path.is_file():
        have = sorted(p.stem for p in EXPERIMENTS.glob("*.toml"))
        raise InputError(f"experiment '{name}' is unknown{suggest(str(name), have)}, or give the path of a .toml file")
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    needed = {f.name for f in fields(Experiment)} - {"name", "tuning"}
    if wrong := needed.symmetric_difference(content.keys() - {"tuning"}):
        raise InputError(f"{path}: must have exactly {sorted(needed)}; look at {sorted(wrong)}")
    experiment = Experiment(name=path.stem, **content)
    _check_seeds(content["seeds"], str(path))
    for model, entry in experiment.models.items():
        _check_seeds(experiment.seeds_of(model), f"{path}, {model}")
        if experiment.part(model) not in PARTS:
            raise InputError(f"{path}, {model}: part '{entry['part']}' is unknown{suggest(str(entry['part']), PARTS)}")
    experiment.configs()  # a mistake in the file is reported now, not in the middle of a sweep
    return experiment


def _check_seeds(seeds, where: str) -> None:
    whole = isinstance(seeds, list) and all(type(s) is int for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"{where}: seeds must be a list of different whole numbers, got {seeds!r}")
