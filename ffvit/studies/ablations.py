"""Notebook 16: what carries the performance? One thing changed at a time, and what that does to top-1, seed by seed.

The report (arXiv:2105.02723) supposes in section 3.5 that patch embedding and training procedure explain more of a vision
transformer's strength than attention does, and leaves normalisation and initialisation to future work.
"""

import statistics
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ffvit.evidence.drawing import finish, legend, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import everything
from ffvit.evidence.seed_statistics import LEVEL, difference, interval
from ffvit.settings.experiment import Experiment, Variant
from ffvit.studies import study_tables
from ffvit.studies.predictions import (
    FF,
    VIT,
    Cell,
    Points,
    Prediction,
    as_it_is,
    beyond,
    both,
    changed,
    less,
    with_change,
    with_least,
    with_most,
)

OF_SIZE = {"embed_dim", "depth", "max_train_images"}  # what notebook 17 is about
LINEAR, TICKS = 1.0, (-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100)  # points; up to LINEAR, the axis is linear
UNAUGMENTED = {"crop_scale": [1.0, 1.0]}


def _lost(cell: Cell, **change: object) -> Points:
    """What a model loses by a change."""
    return less(as_it_is(cell), with_change(cell, **change))


def _carries_more_than_attention(**change: object) -> Points:
    """What ViT loses by a change beyond what it loses by giving up attention, A(ViT) − A(FF), and beyond nothing.

    Where FF only is better than ViT, a part that carries nothing would carry more than attention.
    """
    return both(less(as_it_is(FF), with_change(VIT, **change)), _lost(VIT, **change))


# A is top-1.
PREDICTIONS = (
    Prediction(
        "Patch embedding explains more of ViT's strength than attention does",
        "Section 3.5, a supposition",
        "A(FF) > A(ViT, frozen random embedding) and A(ViT) > A(ViT, frozen random embedding)",
        _carries_more_than_attention(stem="frozen"),
    ),
    Prediction(
        "Augmentation explains more of ViT's strength than attention does",
        "Section 3.5, a supposition",
        "A(FF) > A(ViT, no augmentation) and A(ViT) > A(ViT, no augmentation)",
        _carries_more_than_attention(**UNAUGMENTED),
    ),
    Prediction(
        "A learned patch embedding helps ViT",
        "Follows from section 3.5",
        "A(ViT) > A(ViT, frozen random embedding)",
        _lost(VIT, stem="frozen"),
    ),
    Prediction(
        "Augmentation helps ViT",
        "Follows from section 3.5",
        "A(ViT) > A(ViT, no augmentation)",
        _lost(VIT, **UNAUGMENTED),
    ),
    Prediction(
        "Attention needs positions more than a feed-forward layer over patches, which has a weight for each place",
        "Follows from section 3.1",
        "A(ViT) − A(ViT, no positions) > A(FF) − A(FF, no positions)",
        beyond(_lost(VIT, pos_embed="none"), _lost(FF, pos_embed="none")),
    ),
    Prediction(
        "Larger patches, taken to save cost, cost accuracy: FF only",
        "Follows from section 3.2",
        "A(FF) > A(FF, largest patches)",
        less(as_it_is(FF), with_most(FF, "patch_size")),
    ),
    Prediction(
        "Larger patches, taken to save cost, cost accuracy: ViT",
        "Follows from section 3.2",
        "A(ViT) > A(ViT, largest patches)",
        less(as_it_is(VIT), with_most(VIT, "patch_size")),
    ),
    Prediction(
        "A hidden width over patches that does not grow with them, taken to save cost, costs accuracy",
        "Follows from section 3.5",
        "A(FF) > A(FF, fewer hidden units over patches)",
        less(as_it_is(FF), with_least(FF, "patch_hidden_dim")),
    ),
    Prediction(
        "Normalisation contributes: FF only is worse without LayerNorm where patches are mixed",
        "Future work",
        "A(FF) > A(FF, no LayerNorm)",
        _lost(FF, patch_norm="none"),
    ),
    Prediction(
        "Initialisation contributes: FF only is worse with the report's initial weights of 0.02 at a small width",
        "Future work",
        "A(FF) > A(FF, initial weights of 0.02)",
        _lost(FF, weight_init="trunc_normal"),
    ),
)


class Line(NamedTuple):
    """One line of the picture: an ablation, and the variants that have it."""

    words: str
    variants: dict[str, Variant]  # by the model of the grid that they are of


def lines(experiment: Experiment) -> list[Line]:
    """The ablations of an experiment, in its order; those of size and of the number of images are none."""
    found: dict[tuple[str, str], Line] = {}
    for variant in experiment.variants.values():
        if variant.of and variant.comparison and not OF_SIZE & changed(experiment, variant).keys():
            title = experiment.compare[variant.comparison].title
            words = variant.value_label or f"{title[:1].lower()}{title[1:]}"
            line = found.setdefault((variant.comparison, words), Line(words, {}))
            line.variants[variant.of] = variant
    return [*found.values()]


def table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row an ablation of a model: its top-1, and its effect, paired by seed, with Holm's correction over all of them.

    Raises InputError for runs on different images.
    """
    found = everything(experiment, records)
    both = [(line.words, variant) for line in lines(experiment) for variant in line.variants.values()]
    compared = [(v.name, v.of, f"{v.label}, {words}", "as it is") for words, v in both]
    effects = study_tables.differences(experiment, found, compared, ["all"] * len(compared))
    scores = [study_tables.measures(experiment, v.name, found.get(v.name)) for _, v in both]
    top1 = f"{experiment.scope} top-1 (%)"
    result = pd.DataFrame(
        {
            "Model": [v.label for _, v in both],
            "One thing changed": [words for words, _ in both],
            "base_lr": [experiment.config(v.name).base_lr for _, v in both],
            "Params": [score["Params"] for score in scores],
            top1: [score[top1] for score in scores],
        }
    )
    return pd.concat([result, effects.drop(columns="Difference")], axis="columns")


def effects(experiment: Experiment, records: list[dict]) -> Figure:
    """Every ablation a line: what it does to top-1 of each model, mean and 95 % interval over seeds, and the seeds."""
    found, shown = everything(experiment, records), lines(experiment)
    grid = [variant.name for variant in experiment.of()]
    figure, panel = plt.subplots(figsize=(9.2, 1.6 + 0.52 * max(4, len(shown))), layout="constrained")
    seeds = [-LINEAR, LINEAR]  # what must be seen: an interval of few seeds goes far beyond what can be read
    for y, line in enumerate(shown):
        for of, variant in line.variants.items():
            if variant.name in found and of in found:
                points = difference(found[variant.name], found[of]).points
                aside = 0.3 * (grid.index(of) - (len(grid) - 1) / 2)  # one below the other
                _effect(panel, y + aside, points, style_of(experiment, of))
                seeds += points
    if panel.lines:
        panel.axvline(0, color="0.25", lw=1)
        panel.set_xscale("symlog", linthresh=LINEAR, linscale=0.6)
        panel.set(ylim=(len(shown) - 0.5, -0.5), xlim=(1.5 * min(seeds), 1.5 * max(seeds)))
        ticks = [x for x in TICKS if 1.5 * min(seeds) < x < 1.5 * max(seeds)]
        panel.set_xticks(ticks, [f"{x:+g}".replace("-", "−") if x else "0" for x in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_yticks(range(len(shown)), [drawn(line.words) for line in shown])
        panel.tick_params(axis="y", length=0)
    panel.set_xlabel(
        "effect on test top-1 (points; logarithmic beyond ±1): right of zero, better than the model as it is"
    )
    finish(panel)
    panel.grid(False, axis="y")
    dot = Line2D([], [], color="0.3", marker=".", lw=0, label="a seed")
    cut = Line2D([], [], color="0.3", lw=1.5, label="95 % interval of the mean, cut where no seed is near")
    legend(figure, experiment, [found[name] for name in grid if name in found], [dot, cut])
    figure.suptitle(f"{drawn(experiment.title)}.\nEach variant at its own learning rate.", x=0.01, ha="left")  # fmt: skip
    return figure


def strongest(experiment: Experiment, records: list[dict]) -> str:
    """In words, a line a model: the change that costs it most, and the one that gains it most. Then which changes do
    something by Holm's correction over all of them, and how many would without it.
    """
    found, told, ps = everything(experiment, records), [], []
    for base in experiment.of():
        effects = {}
        for line in lines(experiment):
            variant = line.variants.get(base.name)
            if variant and variant.name in found and base.name in found:
                tested = difference(found[variant.name], found[base.name])
                effects[line.words] = tested.points
                ps.append(tested.p)
        if effects:
            means = {words: statistics.mean(points) for words, points in effects.items()}
            worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            told.append(
                f"{base.label}: worst with {worst} ({_signed(means[worst])} points), best with {best} ({_signed(means[best])})."
            )
    if not told:
        return "Nothing was run."
    corrected = table(experiment, records)
    shown = corrected[corrected["What the seeds show"].str.contains("better$|worse$")]
    names = [f"{row['Model']} with {row['One thing changed']}" for _, row in shown.iterrows()]
    by_itself = sum(p is not None and p < 1 - LEVEL for p in ps)
    told.append(
        f"Of {len(ps)} changes, {len(names)} do something by Holm's correction over all of them{': ' if names else ''}"
        f"{', '.join(names)}. By themselves, {by_itself} have p below {1 - LEVEL:.2g}, which luck alone gives one in twenty."
    )
    return "\n".join(told)


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")


def _effect(panel: Axes, y: float, points: list[float], style: tuple) -> None:
    color, _, marker = style
    if limits := interval(points):
        panel.plot(limits, [y, y], color=color, lw=1.5)
    panel.plot(
        points, [y + 0.13] * len(points), ".", color=color, markersize=6, markeredgewidth=0
    )  # below the interval
    panel.plot(statistics.mean(points), y, marker, color=color, markersize=7)
