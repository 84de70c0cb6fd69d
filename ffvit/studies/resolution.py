"""Notebook 15: what becomes of a trained model at another image size?

The report (arXiv:2105.02723, section 3.5) says that its model works only at a fixed sequence length. Resampling
(ffvit.models.resample) takes it to another one; how good it is there, before and after a little more training, the
records of an experiment say that varies `img_size` and `training` (experiments/digits-resolution.toml).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
import timm
import torch
from matplotlib.figure import Figure
from torch import nn

from ffvit.evidence import drawing
from ffvit.evidence.measured import NOT_RUN, Measured, everything
from ffvit.models import cost
from ffvit.models.ff import PatchFeatureMixer
from ffvit.models.weights import load_weights, save_weights
from ffvit.settings.experiment import Experiment, Variant
from ffvit.studies.predictions import FF, BySeed, Prediction, as_it_is, measured_beside, taken_off, top1_less
from ffvit.studies.predictions import summary as of_predictions
from ffvit.system.errors import InputError, suggest

# The values of the axis `training`, in the order in which they are shown.
RESAMPLED, TUNED, ANEW = "resampled", "tuned", "anew"
STATES = {"": "trained", RESAMPLED: "resampled", TUNED: "fine-tuned", ANEW: "trained anew"}
RECOVERED = 1.0  # points: predicted to be the most that fine-tuning leaves of the loss


class Taken(NamedTuple):
    """A model of the grid, taken to another image size."""

    model: Variant
    img_size: int
    variants: dict[str, Variant]  # by the value of `training`


def check(name: str, img_size: int) -> None:
    """Raise InputError, before any work, for a model without weights along the patches, or a size that it cannot go to."""
    if not timm.is_model(name):
        raise InputError(f"model '{name}' is unknown to timm{suggest(name, map(str, timm.list_models()))}")
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    if not isinstance(model, PatchFeatureMixer) or model.patches != "ff":
        raise InputError(
            f"model '{name}' has no feed-forward layer over patches, whose weights this is about: choose one that has, "
            "such as ff_tiny_patch16_224"
        )
    own, patch = model.img_size[0], model.patch_embed.patch_size[0]
    if img_size == own:
        raise InputError(f"img_size={img_size} is the size that {name} has: choose another, such as {own + 4 * patch}")
    if img_size < patch or img_size % patch:
        near = max(1, round(img_size / patch)) * patch
        raise InputError(
            f"img_size={img_size} is not divisible by the patch size {patch} of {name}: choose a multiple of it, such "
            f"as {near if near != own else own + patch}"
        )


def refusal(model: nn.Module, img_size: int) -> str:
    """What a model says of images of another size."""
    channels = model.get_parameter("patch_embed.proj.weight").shape[1]
    try:
        model(torch.zeros(1, channels, img_size, img_size))
    except InputError as error:
        return str(error)
    raise AssertionError(f"images of {img_size} px were accepted")


def in_one_call(name: str, img_size: int, checkpoint: str = "") -> pd.DataFrame:
    """A model with weights of its usual size, and the same weights loaded into one of another size.

    checkpoint: such weights; empty: random ones. With what is predicted: a further patch brings each block a row and a
    column of the weights over patches, a bias and two weights of the norm, and the model a position.
    """
    small: Any = timm.create_model(name)
    large: Any = timm.create_model(name, img_size=img_size)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(checkpoint or save(small, folder))
        load_weights(small, file)
        load_weights(large, file)
    hidden = small.blocks[0].mix_patches.mix.fc1.out_features
    more = large.num_tokens - small.num_tokens
    predicted = cost.count_parameters(small) + more * (len(small.blocks) * (2 * hidden + 3) + small.embed_dim)
    rows = []
    for model, parameters in ((small, cost.count_parameters(small)), (large, predicted)):
        rows.append(
            {
                "Image": f"{model.img_size[0]} px",
                "Tokens": f"{model.num_tokens:,}",
                "Hidden units over patches": f"{model.blocks[0].mix_patches.mix.fc1.out_features:,}",
                "Parameters, predicted": f"{parameters:,}",
                "Parameters": f"{cost.count_parameters(model):,}",
            }
        )
    return pd.DataFrame(rows)


def save(model: nn.Module, folder: str) -> Path:
    """Weights as a file; returns its path."""
    file = Path(folder, "weights.safetensors")
    save_weights(file, model)
    return file


def accuracy_table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """A row a model and size: top-1 where it was trained, resampled, fine-tuned, and of one trained anew."""
    found = everything(experiment, records)
    rows = []
    for taken in _taken(experiment):
        row = {
            "Model": taken.model.label,
            "Image": f"{taken.img_size} px",
            f"Trained at {_size_of(experiment, taken.model)} px": str(found.get(taken.model.name, NOT_RUN)),
        }
        for state in (RESAMPLED, TUNED, ANEW):
            variant = taken.variants.get(state)
            row[STATES[state].capitalize()] = str(found.get(variant.name, NOT_RUN)) if variant else NOT_RUN
        rows.append(row)
    return pd.DataFrame(rows)


def predictions_table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Each prediction beside what was measured: a difference in points, paired by seed, with its 95 % interval."""
    found = everything(experiment, records)
    asked: list[tuple[str, BySeed, float, bool]] = []
    for taken in _taken(experiment):
        name, size = taken.model.label, taken.img_size
        trained = found.get(taken.model.name)
        resampled, tuned = (
            found.get(taken.variants[s].name) if s in taken.variants else None for s in (RESAMPLED, TUNED)
        )
        lost, left = _points(trained, resampled), _points(trained, tuned)
        asked.append((f"{name}, {size} px: resampling costs accuracy", lost, 0.0, True))
        asked.append((f"{name}, {size} px: fine-tuning gives it back", left, RECOVERED, False))
    for size, first, second in _pairs(experiment):
        lost, other = (_lost(taken, found) for taken in (first, second))
        what = f"{size} px: {first.model.label} loses more by resampling than {second.model.label}"
        asked.append((what, taken_off(lost, other), 0.0, True))
    return pd.DataFrame(
        {
            "Prediction, in points of top-1": what,
            "Predicted": f"{'>' if above else '≤'} {limit:g}",
            **measured_beside([*points.values()], limit, above),
        }
        for what, points, limit, above in asked
    )


def accuracy_figure(experiment: Experiment, records: list[dict]) -> Figure:
    """A panel a size: top-1 of each model, from where it was trained to where it is fine-tuned, beside one trained anew."""
    found = everything(experiment, records)
    sizes = sorted({taken.img_size for taken in _taken(experiment)})
    drawn, panels = plt.subplots(
        1, len(sizes), figsize=(4.6 * len(sizes), 4.2), layout="constrained", sharey=True, squeeze=False
    )
    shown = []
    for panel, size in zip(panels[0], sizes):
        mine = [taken for taken in _taken(experiment) if taken.img_size == size]
        for i, taken in enumerate(mine):
            style = drawing.style_of(experiment, taken.model.name)
            states = {"": taken.model, **taken.variants}
            means = {}
            for x, state in enumerate(STATES):
                measured = found.get(states[state].name) if state in states else None
                if measured:
                    at = x + 0.16 * (i - (len(mine) - 1) / 2)
                    drawing.mean_and_seeds(panel, at, measured.percent, style)
                    means[state] = (at, measured.mean)
                    shown.append(measured)
            way = [means[state] for state in ("", RESAMPLED, TUNED) if state in means]
            if way:
                panel.plot(*zip(*way), color=style[0], linestyle=style[1], lw=1.4, zorder=1)
        origins = {_size_of(experiment, taken.model) for taken in mine}
        ticks = [
            f"trained\nat {' and '.join(map(str, sorted(origins)))} px",
            "resampled",
            "fine-\ntuned",
            "trained\nanew",
        ]
        panel.set_xticks(range(len(STATES)), ticks)
        panel.set_title(f"To {size} px")
        panel.set_xlim(-0.5, len(STATES) - 0.5)
    panels[0][0].set_ylabel("Top-1 on test images (%)")
    drawing.finish(*panels[0])
    drawing.legend(drawn, experiment, shown)
    return drawn


def summary(experiment: Experiment, records: list[dict]) -> str:
    """What became of each model at each size, in words, and which predictions hold."""
    found, told = everything(experiment, records), []
    for taken in _taken(experiment):
        states = {state: found.get(variant.name) for state, variant in ({"": taken.model} | taken.variants).items()}
        ways = [f"{m.mean:.2f} % {words}" for state, words in STATES.items() if (m := states.get(state))]
        if len(ways) > 1:
            told.append(f"{taken.model.label} to {taken.img_size} px: {', '.join(ways)}.")
    table = predictions_table(experiment, records)
    return "\n".join([*told, of_predictions(table["Prediction, in points of top-1"], table["Found"])])


def _within_a_point(experiment: Experiment, found: dict[str, Measured]) -> BySeed:
    """What fine-tuning at the largest size leaves FF only of RECOVERED points, seed by seed."""
    trained = as_it_is(FF)(experiment, found)
    mine = [taken for taken in _taken(experiment) if trained and taken.model.name == trained.name]
    largest = max(mine, key=lambda taken: taken.img_size, default=None)
    tuned = largest.variants.get(TUNED) if largest else None
    left = _points(trained, found.get(tuned.name) if tuned else None)
    return {seed: RECOVERED - points for seed, points in left.items()}


def _taken(experiment: Experiment) -> Iterator[Taken]:
    """Each model of the grid at each other size, in the experiment's order."""
    for comparison, content in experiment.compare.items():
        if not {"img_size", "training"} <= content.vary.keys():
            continue
        grouped: dict[tuple[str, int], dict[str, Variant]] = {}
        for variant in experiment.of(comparison):
            place = variant.of, _size_of(experiment, variant)
            grouped.setdefault(place, {})[variant.values["training"]] = variant
        for (model, size), variants in grouped.items():
            yield Taken(experiment.variants[model], size, variants)


def _pairs(experiment: Experiment) -> Iterator[tuple[int, Taken, Taken]]:
    """The models that the experiment planned to compare, size by size."""
    for one, other in experiment.pairs():
        first, second = ([t for t in _taken(experiment) if t.model.name == name] for name in (one, other))
        for a in first:
            yield from ((a.img_size, a, b) for b in second if b.img_size == a.img_size)


def _size_of(experiment: Experiment, variant: Variant) -> int:
    return experiment.config(variant.name).img_size


def _lost(taken: Taken, found: dict[str, Measured]) -> BySeed:
    resampled = taken.variants.get(RESAMPLED)
    return _points(found.get(taken.model.name), found.get(resampled.name) if resampled else None)


def _points(first: Measured | None, second: Measured | None) -> BySeed:
    return top1_less(first, second) if first and second else {}


# For the claims ledger.
PREDICTIONS = (
    Prediction(
        "Taken to another length, and fine-tuned there, FF only comes within a point of what it was",
        "Follows from section 3.5",
        f"{RECOVERED:g} > A(FF) − A(FF, resampled and fine-tuned)",
        _within_a_point,
    ),
)
