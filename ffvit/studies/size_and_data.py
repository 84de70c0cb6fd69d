"""Notebook 17: bigger is not better? Top-1, and how much better the training images are known than the test images, against
size at fixed data and against data at fixed size.

The report (arXiv:2105.02723) says in section 3.3 that large models get worse than base ones when trained on ImageNet-1k
alone, with attention and without.
"""

import math
import statistics
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from ffvit.evidence.drawing import MARKS, finish, legend, mean_and_seeds, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured, everything
from ffvit.evidence.seed_statistics import comparable, interval_words, mean_words
from ffvit.settings.experiment import Experiment, Variant
from ffvit.settings.same_run import images_of
from ffvit.studies.predictions import (
    FF,
    VIT,
    BySeed,
    Prediction,
    Run,
    as_it_is,
    changed,
    less,
    with_least,
    with_most,
)

SIZE, DATA = "size", "data"
SETTING = {SIZE: {"embed_dim", "depth"}, DATA: {"max_train_images"}}  # that a variant of this kind changes
UNKNOWN = "not recorded"  # training images that were not scored


def gap(record: dict) -> float | None:
    """Top-1 of the training images, not augmented, less that of the test images, in points; None: not recorded."""
    known = record["results"].get("train")
    return known["top1_percent"] - record["results"]["top1_percent"] if known else None


def top1_less(first: Measured, second: Measured) -> BySeed:
    """Top-1 of one run less another's, seed by seed, where they may have other numbers of training images."""
    pairs = _same_seeds(first, second)
    return {a["config"]["seed"]: a["results"]["top1_percent"] - b["results"]["top1_percent"] for a, b in pairs}


def gap_less(first: Measured, second: Measured) -> BySeed:
    """The gap of one run less another's, likewise; none where a training score is missing."""
    both = {a["config"]["seed"]: (gap(a), gap(b)) for a, b in _same_seeds(first, second)}
    return {s: ours - theirs for s, (ours, theirs) in both.items() if ours is not None and theirs is not None}


def _same_seeds(first: Measured, second: Measured) -> list[tuple[dict, dict]]:
    """Pairs of records. Raises InputError for runs on different images, but those that are to have more or fewer of them."""
    one, other = ({r["config"]["seed"]: r for r in m.records} for m in (first, second))
    pairs = [(one[seed], other[seed]) for seed in one if seed in other]
    return [pair if len({images_of(r["config"]) for r in pair}) > 1 else comparable(*pair) for pair in pairs]


def _as_long(run: Run, whole: Run) -> Run:
    """A run that made as many updates as another, to 4 %: one that made fewer differs in more than its images."""

    def as_long(experiment: Experiment, found: dict[str, Measured]) -> Measured | None:
        one, other = run(experiment, found), whole(experiment, found)
        alike = one and other and math.isclose(_updates(one), _updates(other), rel_tol=0.04)
        return one if alike else None

    return as_long


def _updates(m: Measured) -> int:
    config, images = m.records[0]["config"], m.records[0]["dataset"]["images"]["train"]
    return config["epochs"] * (images // config["batch_size"])


def _of(cell: tuple[str, str], name: str) -> tuple[Prediction, ...]:
    """A is top-1 of the test images; G the gap, top-1 of the training images less A."""
    whole, widest, narrowest = as_it_is(cell), with_most(cell, "embed_dim"), with_least(cell, "embed_dim")
    fewest = _as_long(with_least(cell, "max_train_images"), whole)
    return (
        Prediction(
            f"Large models get worse when images are few: {name}",
            "Section 3.3",
            f"A({name}) > A({name}, widest)",
            less(whole, widest, top1_less),
        ),
        Prediction(
            f"The gap grows with size: {name}",
            "Follows from section 3.3",
            f"G({name}, widest) > G({name}, narrowest)",
            less(widest, narrowest, gap_less),
        ),
        Prediction(
            f"The gap shrinks with data: {name}",
            "Follows from section 3.3",
            f"G({name}, fewest images) > G({name})",
            less(fewest, whole, gap_less),
        ),
        Prediction(
            f"More images help: {name}",
            "Follows from section 3.3",
            f"A({name}) > A({name}, fewest images)",
            less(whole, fewest, top1_less),
        ),
    )


PREDICTIONS = (*_of(FF, "FF"), *_of(VIT, "ViT"))


def series(experiment: Experiment, kind: str) -> dict[str, list[Variant]]:
    """By model of the grid: itself, and its variants that differ from it in SIZE, or in DATA, alone."""
    found: dict[str, list[Variant]] = {}
    for base in experiment.of():
        others = [v for v in experiment.variants.values() if v.of == base.name and v.comparison]
        alike = [v for v in others if SETTING[kind] & changed(experiment, v).keys()]
        if alike:
            found[base.name] = [base, *alike]
    return found


def table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a size, then one row a number of images, of every model: both accuracies and the gap between them."""
    found = everything(experiment, records)
    rows = []
    for kind in (SIZE, DATA):
        for variants in series(experiment, kind).values():
            measured = [(v, found.get(v.name)) for v in variants]
            for variant, m in sorted(measured, key=lambda pair: _place(kind, pair[1])):
                rows.append({"Against": kind, "Model": variant.label, **_cells(experiment, variant, m)})
    return pd.DataFrame(rows or [{"Model": NOT_RUN, "Against": "this experiment varies neither size nor data"}])


def figure(experiment: Experiment, records: list[dict]) -> Figure:
    """Above, top-1 of training and test images; below, the gap. On the left against parameters, on the right against images."""
    found = everything(experiment, records)
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.4), layout="constrained", sharex="col", sharey="row")
    shown: dict[str, Measured] = {}
    for (above, below), kind in zip(axes.T, (SIZE, DATA)):
        for name, variants in series(experiment, kind).items():
            runs = sorted((found[v.name] for v in variants if v.name in found), key=lambda m: _place(kind, m))
            if runs:
                shown[name] = runs[0]
                _draw(above, below, kind, runs, style_of(experiment, name))
        above.set(title=f"Against {kind}", xscale="log", ylabel="top-1 (%)")
        below.set(xscale="log", xlabel=_words(kind), ylabel="gap (points)")
        for panel in (above, below):
            panel.tick_params(labelleft=True)
        above.xaxis.set_major_formatter("{x:,.0f}")
        if kind == DATA:
            places = {
                _place(kind, found[v.name]) for vs in series(experiment, kind).values() for v in vs if v.name in found
            }
            above.set_xticks(sorted(places))
            above.xaxis.set_minor_locator(NullLocator())
    finish(*axes.flat)
    kinds = [
        Line2D([], [], color="0.3", marker="o", lw=1.4, label="test images"),
        Line2D([], [], color="0.3", marker="o", markerfacecolor="white", lw=1.0, ls=":", label="training images"),
    ]
    legend(figure, experiment, list(shown.values()), kinds)
    figure.suptitle(f"{drawn(experiment.title)}. Gap: top-1 of training images less that of test images.\n{MARKS}", x=0.01, ha="left")  # fmt: skip
    return figure


def _draw(above: Axes, below: Axes, kind: str, runs: list[Measured], style: tuple) -> None:
    color, dashes, _ = style
    for m in runs:
        mean_and_seeds(above, _place(kind, m), m.percent, style)
    above.plot([_place(kind, m) for m in runs], [m.mean for m in runs], color=color, linestyle=dashes, lw=1.4)
    known = [m for m in runs if _gaps(m)]
    places = [_place(kind, m) for m in known]
    for place, m in zip(places, known):
        mean_and_seeds(below, place, _gaps(m), style)
    below.plot(places, [statistics.mean(_gaps(m)) for m in known], color=color, linestyle=dashes, lw=1.4)
    trained = [statistics.mean(_train_top1(m)) for m in known]
    above.plot(places, trained, marker=style[2], markerfacecolor="white", color=color, linestyle=":", lw=1.0)


def _place(kind: str, m: Measured | None) -> int:
    """Where a run stands on the axis: parameters, or training images. Runs that are not there come last."""
    if m is None:
        return 10**18
    return m.parameters if kind == SIZE else m.records[0]["dataset"]["images"]["train"]


def _words(kind: str) -> str:
    return "parameters" if kind == SIZE else "training images"


def _train_top1(m: Measured) -> list[float]:
    return [r["results"]["train"]["top1_percent"] for r in m.records if "train" in r["results"]]


def _gaps(m: Measured) -> list[float]:
    return [g for r in m.records if (g := gap(r)) is not None]


def _cells(experiment: Experiment, variant: Variant, m: Measured | None) -> dict[str, Any]:
    gaps = _gaps(m) if m else []
    trained = f"{statistics.mean(_train_top1(m)):.2f}" if m and gaps else UNKNOWN if m else ""
    return {
        "Which": variant.value_label or "as it is",
        "Params": f"{m.parameters:,}" if m else "",
        "Training images": f"{_place(DATA, m):,}" if m else "",
        "Training top-1 (%)": trained,
        f"{experiment.scope} top-1 (%)": str(m) if m else NOT_RUN,
        "Gap (points)": mean_words(gaps) if gaps else "",
        "95 % interval of the gap": interval_words(gaps, "+.2f") if gaps else "",
    }
