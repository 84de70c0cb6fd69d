"""The files of experiments/: which models, which seeds, on which images, with which settings, and what is compared.

Settings of a run come, later ones first, from the caller (notebook, pipeline or shell), what trials found for the model, the
comparison, the model's entry, the experiment's own `[settings]`, a named recipe, and the defaults of `Config`. A comparison is data:

    [compare.images]
    title = "Fewer training images"
    models = ["ff", "vit"]                                       # left out: all
    vary.max_train_images = [4500, 13500]                        # runs ff_max_train_images4500, ...

    [compare.stem]
    title = "How patches are made"
    vary.stem = [{ name = "conv", label = "convolutional stem", set = { model_args = { stem = "conv" } } }]  # runs ff_conv, ...

Several axes under `vary` are crossed, the first varying fastest. `change` varies each model in a way of its own:

    [compare.matched]
    title = "The models at equal multiply-adds"
    change = { vit = { model_args = { depth = 10 } } }           # vit_matched

A run may start from another's weights: `initial_weights = "grid"` in a value, from those of the model that is varied.

What trials found for a model of the grid or of a comparison, by its name, wins over its entry and over the comparison:

    [tuned]
    ff_conv = { base_lr = 0.128 }

Two models of a comparison are held against each other where `planned` names them; `against` names, for an axis, the value
that all others of it are held against.
"""

import itertools
import re
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ffvit.settings.config import SETTINGS, Config, short
from ffvit.settings.given import merge, resolve
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import EXPERIMENTS

NAME = re.compile(r"\w[\w.-]{0,99}")  # of a file, and of the folders that its runs and figures lie in
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
MOST_BYTES = 2**20  # of a file


def _in_one_line(text: str) -> str:
    if CONTROL.search(text):
        raise ValueError("be in one line, without control characters")
    return text


Text = Annotated[str, Field(min_length=1)]
Line = Annotated[str, AfterValidator(_in_one_line)]  # what is shown on the screen, in tables and in figures
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
GRID = "grid"  # in `against`: what the models are without the comparison
GRID_TITLE = "The models at one shape"


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Value(_Checked):
    """One value of an axis of a comparison."""

    name: str  # in run ids; may be empty
    label: Line  # in tables; may be empty
    set: dict[str, Any]


class Comparison(_Checked):
    """What is varied against what."""

    title: Annotated[Line, Field(min_length=1)]
    models: list[Text] = []
    seeds: Seeds | None = None
    vary: dict[str, list[Any]] = {}
    change: dict[str, dict[str, Any]] = {}
    against: dict[str, str] = {}

    def axes(self) -> dict[str, list[Value]]:
        """The values of each axis, in full."""
        return {axis: [_value(axis, v) for v in values] for axis, values in self.vary.items()}


class Variant(_Checked):
    """A model of an experiment, as it is trained."""

    name: str
    label: str
    settings: dict[str, Any]  # its own, over the experiment's
    seeds: Seeds
    comparison: str = ""  # the one it was made for; empty: a model of the grid
    of: str = ""  # the model of the grid it is a variant of; empty: itself, or none
    values: dict[str, str] = {}  # name of its value on each axis of the comparison
    value_label: str = ""  # the same in words


class Tuning(_Checked):
    """What is searched for each model, see ffvit tune; beside these, settings with the values to be tried."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[list[Any], Field(min_length=1)]]

    settings: dict[str, Any] = {}
    variants: bool | list[Text] = False
    full_length: list[Text] = []
    seeds: Seeds | None = None


class _File(_Checked):
    title: Annotated[Line, Field(min_length=1)]
    scope: Annotated[
        Line, Field(min_length=1)
    ]  # whose numbers these are: "ImageNet", "CIFAR-10", "digits"; never shown as another's
    about: Text
    seeds: Seeds
    models: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    # Comparisons of two models, named before the runs.
    planned: list[Annotated[tuple[str, str], Field(strict=False)]] = []
    compare: dict[str, Comparison] = {}
    tuning: dict[str, Any] = {}  # what is searched for each model, see ffvit tune
    tuned: dict[str, dict[str, Any]] = {}  # what was found, by the name of the model


class Experiment(_File):
    """One file of experiments/."""

    name: str

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """Every model that is trained, by name: those of the grid, then those of the comparisons."""
        found: dict[str, Variant] = {}
        for variant in [*self._grid(), *itertools.chain.from_iterable(map(self._compared, self.compare))]:
            if variant.name in found:
                raise InputError(f"two models would be called '{variant.name}': give the values of a comparison names")
            found[variant.name] = variant.model_copy(
                update={"settings": merge(variant.settings, self.tuned.get(variant.name, {}))}
            )
        return found

    def of(self, comparison: str = "") -> list[Variant]:
        """The models of a comparison; of none, those of the grid."""
        return [variant for variant in self.variants.values() if variant.comparison == comparison]

    @property
    def main(self) -> str:
        """The comparison whose models stand for the experiment: the grid, or the first one where there is no grid."""
        return "" if self.models else next(iter(self.compare))

    @property
    def main_variants(self) -> list[Variant]:
        return self.of(self.main)

    def parts(self) -> dict[str, str]:
        """Title of the grid, where there is one, and of each comparison, by name."""
        grid = {"": GRID_TITLE} if self.models else {}
        return grid | {name: comparison.title for name, comparison in self.compare.items()}

    def pairs(self, comparison: str = "") -> list[tuple[str, str]]:
        """Names of the models that are held against each other: in the grid, and in a comparison value by value."""
        planned = self.planned or [(first, other) for first in [*self.models][:1] for other in [*self.models][1:]]
        if not comparison:
            return planned
        variants, found = self.of(comparison), []
        for first, second in planned:
            values = {str(v.values): v.values for v in variants if v.of in (first, second)}
            for chosen in values.values():
                ours, theirs = (self._at(comparison, model, chosen) for model in (first, second))
                if ours and theirs:
                    found.append((ours, theirs))
        for axis, value in self.compare[comparison].against.items():
            for variant in variants:
                if variant.values[axis] != value:
                    other = self._at(comparison, variant.of, variant.values | {axis: value})
                    found.append((variant.name, variant.of if value == GRID else other or variant.of))
        return found

    def seeds_of(self, model: str) -> list[int]:
        variant = self.variants.get(model)
        return variant.seeds if variant else self.seeds

    def config(self, model: str, seed: int = 0, **overrides: Any) -> Config:
        """The settings of one run.

        model: a model of this experiment, or any timm name, which then gets the experiment's settings.
        overrides: settings of Config that win over the experiment's.
        Raises InputError for an unknown setting or recipe and for a value of the wrong type or range.
        """
        variant = self.variants.get(model)
        own = {**variant.settings, "label": variant.label} if variant else {"label": model, "model": model}
        given = resolve(merge(self.settings, own, overrides, {"seed": seed}))
        if given.get("initial_weights") == GRID:
            given["initial_weights"] = variant.of if variant and variant.of else model
        return Config(**{"experiment": self.name, "name": model, **given})

    def configs(self) -> list[Config]:
        return [self.config(name, seed) for name, variant in self.variants.items() for seed in variant.seeds]

    def _at(self, comparison: str, model: str, values: dict[str, str]) -> str | None:
        """The model of a comparison with these values; the grid's, where the comparison leaves it as it is."""
        fits = [v.name for v in self.of(comparison) if v.of == model and v.values == values]
        return fits[0] if fits else model if model in self.models and not values else None

    def _grid(self) -> Iterator[Variant]:
        for name, entry in self.models.items():
            own = {key: value for key, value in entry.items() if key not in ("label", "seeds")}
            yield Variant(name=name, label=entry["label"], settings=own, seeds=entry.get("seeds", self.seeds))

    def _compared(self, name: str) -> Iterator[Variant]:
        comparison, grid = self.compare[name], {variant.name: variant for variant in self._grid()}
        seeds = comparison.seeds or self.seeds
        for model, settings in comparison.change.items():
            changed = grid[model]
            yield Variant(
                name=f"{model}_{name}", label=changed.label, settings=merge(changed.settings, settings), seeds=seeds,
                comparison=name, of=model,
            )  # fmt: skip
        axes = comparison.axes()
        for model in (comparison.models or list(grid) or [""]) if axes else []:
            base = grid.get(model)
            # The first axis varies fastest; names and labels keep the axes' order.
            for last_first in itertools.product(*reversed(axes.values())):
                chosen = dict(zip(axes, reversed(last_first)))
                words = ", ".join(filter(None, (value.label for value in chosen.values())))
                yield Variant(
                    name="_".join(filter(None, [model, *(value.name for value in chosen.values())])),
                    label=base.label if base else words,
                    settings=merge(base.settings if base else {}, *(value.set for value in chosen.values())),
                    seeds=seeds, comparison=name, of=model,
                    values={axis: value.name for axis, value in chosen.items()}, value_label=words,
                )  # fmt: skip


def load_experiment(name: str | Path) -> Experiment:
    """Read experiments/<name>.toml, or the .toml file at a path. Raises InputError, with the key, for a mistake in it."""
    path = Path(name)
    if path.suffix != ".toml":
        path = EXPERIMENTS / f"{name}.toml"
    try:
        size = path.stat().st_size if path.is_file() else None
    except OSError:  # no name that a file can have
        size = None
    if size is None:
        have = sorted(p.stem for p in EXPERIMENTS.glob("*.toml"))
        raise InputError(f"experiment '{name}' is unknown{suggest(str(name), have)}, or give the path of a .toml file")
    if not NAME.fullmatch(path.stem):  # it names folders, and patterns of the pipeline
        raise InputError(
            f"experiment file {str(path)!r}: name it by letters, digits, '_', '-' and '.', from a letter or digit on, "
            "such as mine.toml"
        )
    try:
        if size > MOST_BYTES:
            raise ValueError(f"{size:,} bytes are more than the {MOST_BYTES:,} that are read")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None
    if "name" in content:
        raise InputError(f"{path}: 'name' is no part of an experiment: it is called as its file is")
    try:
        experiment = Experiment(name=path.stem, **content)
        _check(experiment)
        experiment.configs()  # a mistake in the file is reported now, not in the middle of a sweep
    except ValidationError as error:
        raise InputError(f"{path}: {'; '.join(map(_in_words, error.errors(include_url=False)[:3]))}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return experiment


def _check(experiment: Experiment) -> None:
    """What no key alone can tell. Raises InputError."""
    if not experiment.models and not experiment.compare:
        raise InputError("models: there is none")
    for name, entry in experiment.models.items():
        for key in ("label", "model"):
            if key not in entry and not (key == "model" and "model" in experiment.settings):
                raise InputError(f"models.{name}: needs a {key}")
        if not isinstance(entry["label"], str):
            raise InputError(f"models.{name}: label must be a text, got {entry['label']!r}")
        if CONTROL.search(entry["label"]):
            raise InputError(
                f"models.{name}: label must be in one line, without control characters, got {entry['label']!r}"
            )
    labels = [entry["label"] for entry in experiment.models.values()]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise InputError(f"models: more than one is called '{min(twice)}'")
    for name, comparison in experiment.compare.items():
        for model in [*comparison.models, *comparison.change]:
            if model not in experiment.models:
                raise InputError(f"compare.{name}: there is no model '{model}'{suggest(model, experiment.models)}")
        if not comparison.vary and not comparison.change:
            raise InputError(f"compare.{name}: needs vary or change")
        for axis, value in comparison.against.items():
            known = [GRID, *(v.name for v in comparison.axes().get(axis, []))]
            if value not in known:
                raise InputError(f"compare.{name}: against.{axis} must be one of {known}, got '{value}'")
    for pair in experiment.planned:
        for model in pair:
            if model not in experiment.models:
                raise InputError(f"planned: there is no model '{model}'{suggest(model, experiment.models)}")
    _check_tuning(experiment.tuning)
    searched = experiment.tuning.get("variants")
    for table, names in {"tuned": experiment.tuned, "tuning.variants": searched or []}.items():
        for name in names if names is not True else []:
            if name not in experiment.variants:
                raise InputError(f"{table}: there is no model '{name}'{suggest(name, experiment.variants)}")
    for variant in experiment.variants.values():
        if len(set(variant.seeds)) < len(variant.seeds):
            raise InputError(f"{variant.name}: seeds must differ, got {variant.seeds}")
        _check_start(experiment, variant)


def _check_tuning(tuning: dict[str, Any]) -> None:
    """Raise InputError for what `ffvit tune` could not search by."""
    try:
        options = Tuning(**tuning)
    except ValidationError as error:
        raise InputError(f"tuning.{_in_words(error.errors()[0])}") from None
    known = {*Tuning.model_fields, *SETTINGS}
    for name in [*tuning, *options.settings, *options.full_length]:
        if name not in known:
            raise InputError(f"tuning: '{name}' is no setting of a run{suggest(name, known)}")
    if options.seeds and len(set(options.seeds)) < len(options.seeds):
        raise InputError(f"tuning.seeds must differ, got {options.seeds}")


def _check_start(experiment: Experiment, variant: Variant) -> None:
    """Raise InputError where the run whose weights a run starts from is none of the experiment, or follows on it."""
    followed = [variant.name]
    while first := _start_of(experiment, followed[-1]):
        if first not in experiment.variants:
            known = suggest(first, experiment.variants)
            raise InputError(f"{followed[-1]}: initial_weights: there is no model '{first}'{known}")
        if unseeded := set(variant.seeds) - set(experiment.seeds_of(first)):
            raise InputError(f"{followed[-1]}: initial_weights: '{first}' has no seed {min(unseeded)}")
        if first in followed:
            raise InputError(f"{variant.name}: initial_weights go in a circle: {', '.join(followed)}, {first}")
        followed.append(first)


def _start_of(experiment: Experiment, model: str) -> str:
    config = experiment.config(model)
    return config.initial_weights if config.first_run else ""


def _value(axis: str, value: Any) -> Value:
    """A plain value sets the setting that its axis is named after."""
    if isinstance(value, dict):
        try:
            return Value(**value)
        except ValidationError as error:
            raise InputError(f"vary.{axis}: {_in_words(error.errors()[0])}") from None
    if axis not in SETTINGS:
        raise InputError(
            f"vary.{axis}: no setting of a run{suggest(axis, SETTINGS)}; others are {{ name, label, set }}"
        )
    return Value(name=f"{axis}{value}", label=f"{axis} {value}", set={axis: value})


def _in_words(error: Any) -> str:
    """pydantic's finding as "seeds must be a valid list, got 3", with the key it is about."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"needs '{key}'"
    if error["type"] == "extra_forbidden":
        return f"'{key}' is no part of an experiment{suggest(key, _File.model_fields)}"
    if error["type"] in ("too_short", "string_too_short"):
        return f"{key} must not be empty"
    rule = error["msg"].removeprefix("Input should ").removeprefix("Value error, ")
    return f"{key} must {rule}, got {short(error['input'])}"
