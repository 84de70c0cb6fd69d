"""Notebook 19: does attention alone fail, and is it because its tokens become alike?

The report's attention-only network (arXiv:2105.02723, section 3.4) has no published code. Dong et al. 2021
(arXiv:2103.03404) prove that attention without skip connections makes all tokens alike, doubly exponentially with
depth; skip connections and feed-forward layers hold against it. Here the residual that they measure is measured on three
readings of the report's network, beside FF only.
"""

import math
import statistics
from collections.abc import Callable
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ffvit.evidence.drawing import finish, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured
from ffvit.evidence.seed_statistics import difference, interval, mean_words
from ffvit.settings.experiment import Experiment
from ffvit.studies import trained_models
from ffvit.studies.claim_checks import close
from ffvit.studies.finding import CONTRADICTED
from ffvit.studies.predictions import FAILS, HOLDS, UNDECIDED, judge
from ffvit.studies.token_residuals import Bound, Depths, by_depth, theorem

ALIKE = 1e-3  # of a relative residual: tokens that differ by less are called alike
FLOOR = 1e-9  # of a figure


def measure(
    experiment: Experiment, settings: dict[str, Any]
) -> tuple[dict[str, Depths], dict[str, Depths], dict[str, Bound], str]:
    """Of each model's first seed: residuals trained and untrained, by model; the theorem, by "model, trained" and
    "model, untrained", where it has attention over tokens; and whose weights these are, in words.

    settings: in place of the runs', such as max_eval_images. Raises InputError for a run that is missing.
    """
    trained, untrained, bounds, sources = {}, {}, {}, []
    for variant in experiment.of():
        config, weights = trained_models.first(experiment, variant.name)
        model, batches = trained_models.prepare(config, weights, **settings)
        before = trained_models.untrained(config, cast(Any, model).num_classes)
        trained[variant.name], untrained[variant.name] = by_depth(model, batches), by_depth(before, batches)
        if cast(Any, model).patches == "attention":
            bounds[f"{variant.name}, trained"] = theorem(model, batches)
            bounds[f"{variant.name}, untrained"] = theorem(before, batches)
        sources.append(trained_models.source(weights))
    return trained, untrained, bounds, " ".join(sources)


def accuracy(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """Each model's top-1, and what it lacks to the reference's, against the distance that the report's words leave."""
    limit, reference = close(), _reference(experiment)
    rows = []
    for variant in experiment.of():
        mine, other = found.get(variant.name), found.get(reference)
        points = difference(other, mine).points if mine and other and variant.name != reference else []
        limits = interval(points)
        lacks = f"{statistics.mean(points):+.2f}" if points else ""
        spread = f" (95 % {limits[0]:+.2f} to {limits[1]:+.2f})" if limits else ""
        rows.append(
            {
                "Reading": variant.label,
                "Params": f"{mine.parameters:,}" if mine else "",
                f"{experiment.scope} top-1 (%)": str(mine) if mine else NOT_RUN,
                "Lacks to FF only (points)": (lacks + spread).replace("-", "−"),
                f"Predicted by the report: more than {limit:g}": _as_the_report(points, limit),
            }
        )
    return pd.DataFrame(rows)


def residuals(
    experiment: Experiment, trained: dict[str, Depths], untrained: dict[str, Depths], bounds: dict[str, Bound]
) -> pd.DataFrame:
    """Prediction beside measurement at the last depth, a row a model, trained and untrained."""
    rows = []
    for name in trained:
        for state, depths in {"untrained": untrained[name], "trained": trained[name]}.items():
            bound = bounds.get(f"{name}, {state}")
            rows.append(
                {
                    "Reading": experiment.variants[name].label,
                    "Weights": state,
                    "Depth 0": f"{depths.with_skips[0]:.2g}",
                    "Last, with skips": f"{depths.with_skips[-1]:.2g}",
                    "Last, without": f"{depths.without_skips[-1]:.2g}",
                    f"Predicted: without < {ALIKE:g} < with; FF only not": _as_predicted(experiment, name, depths),
                    "Attention over tokens alone, under the bound": _under(bound),
                }
            )
    return pd.DataFrame(rows)


def conclusion(
    experiment: Experiment,
    found: dict[str, Measured],
    trained: dict[str, Depths],
    untrained: dict[str, Depths],
    bounds: dict[str, Bound],
) -> str:
    """What became of the three predictions, a line each, in words whose numbers are computed."""
    labels = {name: experiment.variants[name].label for name in trained}
    followed = [
        (name, f"{label}, {state}", depths)
        for name, label in labels.items()
        for state, depths in (("untrained", untrained[name]), ("trained", trained[name]))
    ]
    alike = [words for _, words, depths in followed if depths.without_skips[-1] < ALIKE]
    wrong = [words for name, words, depths in followed if _as_predicted(experiment, name, depths) == CONTRADICTED]
    under = [_is_under(bound) for bound in bounds.values()]
    said = [
        f"Attention over tokens alone is under the bound in {sum(under)} of {len(bounds)} cases. The theorem's own line, from "
        f"the first layer's input, falls in {sum(map(_falls, bounds.values()))} of them; where it rises, only that for one layer "
        f"can be broken. The proof's condition on the scores holds in {sum(bound.holds for bound in bounds.values())}.",
        f"Alike after the last block, where skip connections are left out: {'; '.join(alike) or 'the tokens of no model'}. "
        f"What was predicted of that is contradicted in {len(wrong)} of {len(followed)} cases{': ' if wrong else ''}"
        f"{'; '.join(wrong)}.",
    ]
    reference = _reference(experiment)
    readings = [name for name in labels if name != reference and {name, reference} <= found.keys()]
    lacks = {name: difference(found[reference], found[name]).points for name in readings}
    verdicts = [
        f"{labels[name]} {mean_words(points)}, {_as_the_report(points, close())}" for name, points in lacks.items()
    ]
    if verdicts:
        least = min(lacks, key=lambda name: statistics.mean(lacks[name]))
        said.append(
            f"Points lacking to FF only, more than {close():g} by the report: {'; '.join(verdicts)}. "
            f"Lacks least: {labels[least]}; expected: {labels[readings[0]]}."
        )
    else:
        said.append("No reading has runs beside those of FF only: of accuracy there is nothing to say.")
    return "\n".join(said)


def depth_figure(experiment: Experiment, trained: dict[str, Depths], untrained: dict[str, Depths]) -> Figure:
    """Relative residual against depth: on the left with skip connections, on the right without; dashed: untrained.

    What stays near 1 is told apart on a linear axis, what falls to nothing on a logarithmic one.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained")
    kinds: dict[str, Callable[[Depths], np.ndarray]] = {
        "With skip connections": lambda d: d.with_skips,
        "Without": lambda d: d.without_skips,
    }
    for panel, (title, of) in zip(panels, kinds.items()):
        for name, depths in trained.items():
            color, _, marker = style_of(experiment, name)
            for line, mark, of_state in (("-", color, depths), ("--", "white", untrained[name])):
                values = np.maximum(of(of_state), FLOOR)
                panel.plot(values, ls=line, color=color, marker=marker, markersize=4.5, lw=1.4, markerfacecolor=mark)
        panel.set(xlabel="block", title=title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set(ylabel="relative residual ‖res(X)‖ / ‖X‖", ylim=(0, max(1.2, panels[0].get_ylim()[1])))
    panels[1].set(yscale="log", ylim=(FLOOR / 2, 4))
    panels[1].axhline(ALIKE, color="0.5", lw=1, ls=":")
    finish(*panels)
    handles = [
        Line2D([], [], color=style_of(experiment, name)[0], marker=style_of(experiment, name)[2], markersize=5,
               label=drawn(experiment.variants[name].label))
        for name in trained
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="0.4", ls="--", marker="o", markersize=5, markerfacecolor="white", label="untrained"),
        Line2D([], [], color="0.5", lw=1, ls=":", label=f"{ALIKE:g}, called alike"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def bound_figure(experiment: Experiment, bounds: dict[str, Bound]) -> Figure:
    """The theorem: log10 of the residual of attention over tokens alone, and below which line it must stay."""
    names = {key.partition(", ")[0] for key in bounds}
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for panel, state in zip(panels, ("untrained", "trained")):
        for name in (n for n in experiment.variants if n in names):
            color, _, marker = style_of(experiment, name)
            bound = bounds[f"{name}, {state}"]
            seen = 1 + int(np.isfinite(bound.measured).sum())
            panel.plot(bound.measured[:seen], color=color, marker=marker, markersize=5)
            panel.plot(bound.from_start[:seen], color=color, ls=":", lw=1.6)
            panel.plot(bound.from_last[:seen], color=color, ls="--", lw=1.2, marker=marker, markerfacecolor="white")
        panel.set_title(f"{state[0].upper()}{state[1:]} weights")
        panel.set(xlabel="attention over tokens, layer", ylim=(-20, 12))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("log10 ‖res(X)‖")
    finish(*panels)
    handles = [
        Line2D([], [], color=style_of(experiment, name)[0], marker=style_of(experiment, name)[2],
               label=drawn(experiment.variants[name].label))
        for name in experiment.variants if name in names
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="0.4", ls=":", lw=1.6, label="the bound, from the first layer's input"),
        Line2D([], [], color="0.4", ls="--", lw=1.2, label="the bound for one layer, from its own input"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _reference(experiment: Experiment) -> str:
    """The model that the readings are held against: the second of the planned pairs."""
    return experiment.pairs()[0][1]


def _as_predicted(experiment: Experiment, name: str, depths: Depths) -> str:
    """Whether tokens become alike without skip connections and only there; of FF only, the opposite was predicted."""
    alike = depths.without_skips[-1] < ALIKE
    fits = depths.with_skips[-1] > ALIKE and alike == (name != _reference(experiment))
    return "as predicted" if fits else CONTRADICTED


def _as_the_report(points: list[float], limit: float) -> str:
    """Whether a model does as badly beside FF only as the report says of attention only."""
    if not points:
        return ""
    if interval(points) is None:
        return "undecided: no interval"
    return {HOLDS: "as the report says", FAILS: CONTRADICTED, UNDECIDED: "undecided"}[judge(points, limit)]


def _is_under(bound: Bound) -> bool:
    # Of the mean's residual, which is at most twice the smallest; where precision has ended, there is nothing to compare.
    return not (bound.measured[1:] > np.minimum(bound.from_start, bound.from_last)[1:] + math.log10(2)).any()


def _under(bound: Bound | None) -> str:
    if bound is None:
        return ""
    said = (
        "no" if not _is_under(bound) else "yes" if _falls(bound) else "yes, for one layer; the theorem's own line rises"
    )
    return f"{said}{'' if bound.holds else '; its condition on the scores fails'}"


def _falls(bound: Bound) -> bool:
    """Whether the theorem says anything: a line that rises leaves room for everything."""
    return bool(bound.from_start[1] < bound.from_start[0])
