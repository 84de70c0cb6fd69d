"""Notebook 08, on mistakes: do models fail on the same images, and on which classes does one do better?"""

import itertools
import math
import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ffvit.evidence.drawing import COLORS, MARKS, bars, finish, matrix_cell, mean_and_seeds
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured, measured
from ffvit.evidence.seed_statistics import comparable, difference, same_seeds
from ffvit.settings.experiment import Experiment

MOST_CLASSES = 30  # whose names can be read


@dataclass(frozen=True)
class Agreement:
    """How alike two models of the grid err, in percent: means over pairs of runs, None where there is nothing to count.

    Two models: their runs of one seed. A model and itself: all pairs of its seeds, the measure to judge the others by.
    """

    first: str
    second: str
    pairs: int
    why_blank: str = ""  # where there is no pair
    errors: tuple[float, float] | None = None  # images that the one, the other gets wrong
    both: float | None = None  # images that both get wrong
    independent: float | None = None  # the same, did the one's mistakes know nothing of the other's
    overlap: float | None = None  # Jaccard: of the images that either gets wrong, those that both do
    independent_overlap: float | None = None
    same_answer: float | None = None  # of the images that both get wrong, those with the same wrong class


def agreement(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """How alike the models of the grid err, beside how alike two seeds of one model do."""
    rows = []
    for a in agreements(experiment, records):
        one, other = (experiment.variants[name].label for name in (a.first, a.second))
        rows.append(
            {
                "Compared": "seeds of one model" if a.first == a.second else "models, the same seed",
                "Runs of": one if a.first == a.second else f"{one}; {other}",
                "Pairs of runs": a.pairs or "",
                "Wrong (%)": "{:.2f}; {:.2f}".format(*a.errors) if a.errors else a.why_blank,
                "Both wrong (%)": _percent(a.both),
                "Both wrong, if independent (%)": _percent(a.independent),
                "Overlap of mistakes (%)": _percent(a.overlap),
                "Overlap, if independent (%)": _percent(a.independent_overlap),
                "Same wrong answer (% of both wrong)": _percent(a.same_answer),
            }
        )
    return pd.DataFrame(rows)


def agreements(experiment: Experiment, records: list[dict]) -> list[Agreement]:
    """Every model of the grid with itself, then with each other. Raises InputError for runs on different images."""
    found = measured(experiment, records)
    names = [variant.name for variant in experiment.main_variants]
    return [_agreement(n, n, found) for n in names] + [
        _agreement(*two, found) for two in itertools.combinations(names, 2)
    ]


def agreement_figure(experiment: Experiment, records: list[dict]) -> Figure:
    """Two matrices over the models of the grid: do two models err more unlike one another than two seeds of one model?"""
    cells = agreements(experiment, records)
    names = [a.first for a in cells if a.first == a.second]
    labels = [drawn(textwrap.fill(experiment.variants[n].label, 14)) for n in names]
    panels = (
        (
            "overlap",
            "Overlap of mistakes (%)",
            "of the images that either gets wrong, those that both do\n(in brackets: were their mistakes independent)",
        ),
        ("same_answer", "The same wrong answer (%)", "of the images that both get wrong"),
    )
    side = max(4.4, 1.3 * len(names))  # inches
    figure, axes = plt.subplots(1, 2, figsize=(2 * side + 1.6, side + 1.2), layout="constrained", sharey=True)
    for panel, (measure, title, below) in zip(axes, panels):
        for a in cells:
            column, row = names.index(a.first), names.index(a.second)
            value, same = getattr(a, measure), a.first == a.second
            matrix_cell(panel, column, row, value, _agreement_words(a, measure), framed=same)
        panel.set(xlim=(-0.05, len(names) + 0.05), ylim=(len(names) + 0.05, -0.05), aspect="equal")
        panel.set(title=title, xlabel=below)
        panel.set_xticks(np.arange(len(names)) + 0.5, labels)
        panel.set_yticks(np.arange(len(names)) + 0.5, labels)
        panel.tick_params(length=0)
        sns.despine(ax=panel, left=True, bottom=True)
    figure.suptitle(
        f"{drawn(experiment.title)}: mistakes on the test images, n pairs of runs.\nFramed: two seeds of one model. Others: two models, the same seed.\n",
        x=0.01,
        ha="left",
    )
    return figure


def _agreement_words(a: Agreement, measure: str) -> str:
    value = getattr(a, measure)
    if value is None:
        return textwrap.fill(a.why_blank or "never both wrong", 10)
    independent = f"\n({a.independent_overlap:.1f})" if measure == "overlap" else ""
    return f"{value:.1f}{independent}\nn={a.pairs}"


def per_class(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 by class of the first two models that the experiment compares, their difference paired by seed.

    Of many classes, those at either end.
    """
    found, names = measured(experiment, records), next(iter(experiment.pairs(experiment.main)), None)
    first, second = (found.get(name) for name in names) if names else (None, None)
    ours, theirs = (drawn(experiment.variants[name].label) for name in names) if names else ("one model", "another")
    pairs = same_seeds(first, second) if first and second else []
    figure, panel = plt.subplots(figsize=(9.2, 4.6), layout="constrained")
    panel.set(title=f"{ours} less {theirs}, class by class", ylabel="difference in test top-1 (points)")
    if first and second and pairs:
        scores = np.array([[r["results"]["per_class_percent"] for r in pair] for pair in pairs], dtype=float)
        points = scores[:, 0] - scores[:, 1]  # (seeds, classes); NaN for a class without test images
        order = [i for i in np.argsort(points.mean(axis=0)) if not np.isnan(points[:, i]).any()]
        if len(order) > MOST_CLASSES:
            order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
            panel.set_title(f"{ours} less {theirs}: {MOST_CLASSES} of {points.shape[1]:,} classes, those at either end")
        names = pairs[0][0]["dataset"].get("class_names", range(points.shape[1]))
        for x, i in enumerate(order):
            mean_and_seeds(panel, x, points[:, i].tolist(), ("0.25", "-", "o"))
        panel.set_xticks(range(len(order)), [drawn(str(names[i])) for i in order])
        turned = dict(rotation=90) if len(order) > 12 else {}
        panel.tick_params(axis="x", length=0, **turned)
        panel.axhline(0, color="0.25", lw=1)
        mean = float(np.mean(difference(first, second).points))
        panel.axhline(
            mean, color=COLORS[0], lw=1.4, linestyle="--", label=f"all classes: {mean:+.2f} points".replace("-", "−")
        )
        panel.legend(handles=[*panel.get_legend_handles_labels()[0], *bars(figure)], frameon=False, loc="upper left")
        panel.set_xlabel("class")
    finish(panel)
    figure.suptitle(
        f"{drawn(experiment.title)}, paired by seed (n={len(pairs)}). Above 0, {ours} is better.\n{MARKS}",
        x=0.01,
        ha="left",
    )
    return figure


def _agreement(first: str, second: str, found: dict[str, Measured]) -> Agreement:
    if first not in found or second not in found:
        return Agreement(first, second, 0, NOT_RUN)
    if first == second:
        runs = [comparable(*two) for two in itertools.combinations(found[first].records, 2)]
    else:
        runs = same_seeds(found[first], found[second])
    if not runs:
        return Agreement(first, second, 0, "too few seeds")
    runs = [two for two in runs if all("mistakes" in r["results"] for r in two)]
    if not runs:
        return Agreement(first, second, 0, "mistakes not recorded")
    counted = pd.DataFrame([_count(*two) for two in runs]).mean()  # a blank, NaN here, is in no mean
    one, other, *means = map(float, counted)
    return Agreement(first, second, len(runs), "", (one, other), *(None if math.isnan(m) else m for m in means))


def _count(first: dict, second: dict) -> tuple[float, ...]:
    """The numbers of Agreement for two runs; NaN for a share of nothing."""
    one, other = (_mistakes(r) for r in (first, second))
    images = first["results"]["images"]
    common = one.keys() & other.keys()
    e, f = len(one) / images, len(other) / images
    shares = (
        (len(one), images),
        (len(other), images),
        (len(common), images),
        (e * f, 1),
        (len(common), len(one.keys() | other.keys())),
        (e * f, e + f - e * f),
        (sum(one[i] == other[i] for i in common), len(common)),
    )
    return tuple(100 * part / whole if whole else float("nan") for part, whole in shares)


def _mistakes(record: dict) -> dict[str, str]:
    """Wrong class by index of the test image."""
    return dict(pair.split(":") for pair in record["results"]["mistakes"].split())


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
