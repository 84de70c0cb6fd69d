"""Notebook 08, its plots of accuracy: against what training costs, in every comparison, and by learning rate."""

import itertools
import json
import math
import statistics
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ffvit.evidence.belonging import trials_of
from ffvit.evidence.drawing import DASHES, MARKS, WHITE, finish, legend, mean_and_seeds, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured, everything, machine
from ffvit.settings.experiment import Experiment
from ffvit.settings.headline import last_validation
from ffvit.settings.same_run import deciding

PANELS_IN_A_ROW = 4


def accuracy_by_cost(experiment: Experiment, records: list[dict]) -> Figure:
    """Validation top-1 against epochs, processor time and multiply-adds, and test top-1 against parameters."""
    found = everything(experiment, records)
    grid = [m for m in found.values() if experiment.variants[m.name].comparison == experiment.main]
    base = {m.name: m for m in grid}
    others = [(m, base[of]) for m in found.values() if m not in grid and (of := experiment.variants[m.name].of) in base]
    longer = [m for m, of in others if _epochs(m) > _epochs(of)]
    resized = [m for m, of in others if m.parameters != of.parameters]
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")
    epochs, seconds, macs, parameters = axes.flat
    runs_on = Counter(machine(r) for m in grid + longer for r in m.records)
    timed_on = max(runs_on, key=runs_on.__getitem__, default="")  # times of other machines are another measure
    on_gpu = any(r["hardware"]["gpu"] for m in grid + longer for r in m.records if machine(r) == timed_on)
    for m in grid + longer:
        look: dict[str, Any] = dict(style=style_of(experiment, m.name), width=0.9 if m in longer else 1.8)
        _curve(epochs, m, np.arange(len(m.records[0]["history"])) + 1, **look)
        _curve(macs, m, _training_macs(m) / 10 ** (power := _power(grid + longer)), **look)
        timed = [r for r in m.records if machine(r) == timed_on and all("cpu_seconds" in e for e in r["history"])]
        if timed and not on_gpu:  # beside a GPU a processor waits for the most part
            spent = np.cumsum([[e["cpu_seconds"] for e in r["history"]] for r in timed], axis=1).mean(axis=0)
            _curve(seconds, replace(m, records=timed), spent / 60, **look)
    epochs.set(title="Epochs", xlabel="epoch")
    seconds.set(title="Processor time of training", xlabel="minutes of one core, mean over seeds")
    macs.set(title="Multiply-adds of training")
    if grid:
        macs.set_xlabel(f"$10^{{{power}}}$ multiply-adds: 3 x those of an image x images seen")
    for panel in (epochs, seconds, macs):
        panel.set(ylabel="validation top-1 (%)", xscale="log")
        panel.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
    if len(runs_on) > 1 and not on_gpu:
        text = "\n".join(["runs on this machine alone:", drawn(timed_on)])
        seconds.text(0.97, 0.04, text, transform=seconds.transAxes, ha="right", fontsize=9, bbox=WHITE)
    for m in grid + resized:
        fill = "none" if m in resized else "full"
        mean_and_seeds(parameters, m.parameters / 1e6, m.percent, style_of(experiment, m.name), fill)
    parameters.set(title="Parameters", xlabel="millions", ylabel="test top-1 (%)")
    finish(seconds, blank=NOT_RUN if not grid else "trained on a GPU" if on_gpu else "not recorded")
    finish(epochs, macs, parameters)
    kinds = [Line2D([], [], color="0.3", lw=0.9, label=_thin(experiment, longer))] if longer else []
    if resized:
        hollow: dict[str, Any] = dict(
            marker="o", markerfacecolor="white", markersize=8, label="hollow: of another size"
        )
        kinds.append(Line2D([], [], color="0.3", lw=0, **hollow))
    legend(figure, experiment, grid + longer + resized, kinds)
    figure.suptitle(
        f"{drawn(experiment.title)}. Lines: mean over seeds; bands: from lowest to highest seed.\n{MARKS}",
        x=0.01,
        ha="left",
    )
    return figure


def comparisons(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 in every comparison, a panel each: value by value of what is varied, and as in the grid.

    No line from value to value: few of what is varied have an order, and the grid is none of its ends.
    """
    found = everything(experiment, records)
    parts = [part for part in experiment.parts() if part]
    columns = min(PANELS_IN_A_ROW, max(1, len(parts)))
    rows = max(1, math.ceil(len(parts) / columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.6 + 3.6 * columns, 0.9 + 3.7 * rows), layout="constrained", squeeze=False
    )
    for panel in axes.flat[max(1, len(parts)) :]:
        panel.set_axis_off()
    drawn_models: list[Measured] = []
    for panel, part in zip(axes.flat, parts):
        variants = experiment.of(part)
        ticks = list(dict.fromkeys(v.value_label or "changed" for v in variants))
        for of in dict.fromkeys(v.of for v in variants if v.of):
            points = {ticks.index(v.value_label or "changed") + 1: v.name for v in variants if v.of == of} | {0: of}
            shown = {x: found[name] for x, name in sorted(points.items()) if name in found}
            for x, m in shown.items():
                mean_and_seeds(panel, x, m.percent, style_of(experiment, of))
            drawn_models += shown.values()
        if experiment.compare[part].change:  # which brings models to what the others have: those stand beside them
            unchanged = [v.name for v in experiment.of() if v.name in found and v.name not in {c.of for c in variants}]
            for name in unchanged:
                mean_and_seeds(panel, 0, found[name].percent, style_of(experiment, name))
            drawn_models += [found[name] for name in unchanged]
        panel.set(title=drawn(experiment.compare[part].title), xlim=(-0.5, len(ticks) + 0.5), ylabel="test top-1 (%)")
        run = {v.value_label or "changed" for v in variants if v.name in found}
        named = [drawn(tick) if tick in run else f"{drawn(tick)}:\n{NOT_RUN}" for tick in ticks]
        panel.set_xticks(range(len(ticks) + 1), ["as in the grid", *named], rotation=20, ha="right")
    finish(*axes.flat[: max(1, len(parts))])
    legend(figure, experiment, drawn_models, lines=False)
    figure.suptitle(f"{drawn(experiment.title)}.\n{MARKS}", x=0.01, ha="left")
    return figure


def learning_rates(experiment: Experiment, trials: list[dict]) -> Figure:
    """Validation top-1 against the learning rate, of trials that differ in that alone, a line a model: those of the grid, or
    those that [tuning] names.

    Ringed: the rate that the model was given.
    """
    trials, named = trials_of(experiment, trials), experiment.tuning.get("variants")
    models = [experiment.variants[name] for name in named] if isinstance(named, list) else experiment.main_variants
    shown: set[float] = set()
    figure, panel = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    for variant, dashes in zip(models, itertools.cycle(DASHES)):
        (color, _, marker), chosen = style_of(experiment, variant.name), experiment.config(variant.name).base_lr
        top1 = _by_rate([t for t in trials if t["config"]["name"] == variant.name])
        shown |= top1.keys()
        if top1:
            words = f"{variant.label}, {variant.value_label}" if variant.of else variant.label
            panel.plot(list(top1), list(top1.values()), color=color, linestyle=dashes, marker=marker, lw=1.8,
                       label=drawn(words))  # fmt: skip
        if chosen in top1:
            panel.plot(chosen, top1[chosen], "o", markersize=15, markerfacecolor="none", markeredgecolor=color)
    panel.set(xscale="log", xlabel="base_lr: learning rate for 512 images", ylabel="validation top-1 (%)")
    rates = sorted(shown)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticks(rates, [f"{rate:g}" for rate in rates])
    finish(panel)
    if panel.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(
        f"{drawn(experiment.title)}: trials that differ in the learning rate alone.\nRinged: the rate that each model then trains with.",
        x=0.01, ha="left",
    )  # fmt: skip
    return figure


def _by_rate(trials: list[dict]) -> dict[float, float]:
    """Validation top-1 at each rate, of the most trials of a model that differ in the rate alone; of more seeds the mean."""
    alike: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        others = json.dumps(deciding(trial["config"]) | {"base_lr": None}, sort_keys=True)
        alike[others][trial["config"]["base_lr"]].append(last_validation(trial))
    most = max(alike.values(), key=len, default={})
    return {rate: statistics.mean(most[rate]) for rate in sorted(most)}


def _curve(panel: Axes, m: Measured, x: np.ndarray, style: tuple, width: float) -> None:
    y = np.array([[e["validation_top1_percent"] for e in r["history"]] for r in m.records])
    panel.plot(x, y.mean(axis=0), color=style[0], linestyle=style[1], lw=width)
    panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=style[0], alpha=0.2, lw=0)


def _thin(experiment: Experiment, longer: list[Measured]) -> str:
    """What the models with thin lines are: a run of more epochs may have fewer images, and as many updates."""
    variants = ((experiment.variants[m.name], _epochs(m)) for m in longer)
    words = [f"{v.value_label or experiment.compare[v.comparison].title}, {epochs} epochs" for v, epochs in variants]
    return f"thin: {'; '.join(map(drawn, dict.fromkeys(words)))}"


def _epochs(m: Measured) -> int:
    return m.records[0]["config"]["epochs"]


def _power(curves: list[Measured]) -> int:
    """Of ten, a multiple of three, for an axis of multiply-adds."""
    return 3 * int(np.log10(max(_training_macs(m)[-1] for m in curves)) // 3)


def _training_macs(m: Measured) -> np.ndarray:
    """Multiply-adds after every epoch: forward 1, backward 2 of the model's, for each image of the epoch's whole batches."""
    config, images = m.records[0]["config"], m.records[0]["dataset"]["images"]["train"]
    seen = images // config["batch_size"] * config["batch_size"]
    return 3 * m.macs * seen * np.arange(1, len(m.records[0]["history"]) + 1.0)
