"""Notebook 08: what a study says. All its parts, differences between models, agreement of mistakes, and what was tried before."""

import itertools
import json
import statistics
import textwrap
from collections import defaultdict
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ffvit.evidence.drawing import COLORS, MARKS, WHITE, finish, legend, matrix_cell, mean_and_seeds, style_of
from ffvit.evidence.measured import NOT_RUN, Measured, cell_of, commit, everything, in_grid, machine, measured
from ffvit.evidence.records import deciding
from ffvit.evidence.statistics import comparable, difference, holm, interval_words, p_words, same_seeds, verdict
from ffvit.settings.experiment import PARTS, Experiment
from ffvit.studies.report import in_cell

FF_ONLY = ("ff", "ff")


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


def study(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a model of every part. A cell without a model of equal multiply-adds is there already, in the grid."""
    found = everything(experiment, records)
    rows = []
    for part, title in PARTS.items():
        names = [n for n in experiment.models if experiment.part(n) == part]
        for name in _of_the_grid(experiment, names) + names if part == "matched" else names:
            label = experiment.models[name]["label"]
            label += "" if experiment.part(name) == part else " (the grid's run)"
            label += f", {experiment.config(name).max_train_images:,} images" if part == "data" else ""
            rows.append({"Part": title, "Model": label, **measures(experiment, found.get(name))})
    return pd.DataFrame(rows)


def measures(experiment: Experiment, m: Measured | None) -> dict:
    """The columns of a model in a table of what was measured. m: None, it was not run."""
    columns = {
        "Params": lambda: f"{m.parameters:,}",
        "Multiply-adds": lambda: f"{m.macs:,}",
        "Epochs": lambda: len(m.records[0]["history"]),
        "Training images": lambda: f"{m.records[0]['dataset']['images']['train']:,}",
        f"{experiment.scope} top-1 (%)": lambda: str(m),
        "95 % interval": lambda: interval_words(m.top1_percent, ".2f"),
        "Training (min)": lambda: f"{statistics.mean(r['duration_s'] for r in m.records) / 60:.3g}",
        "Images/s": lambda: f"{statistics.median(e['images_per_s'] for r in m.records for e in r['history']):,.0f}",
        "Hardware": lambda: ", ".join(m.hardware),
    }
    if m is None:
        return {column: NOT_RUN if "top-1" in column else "" for column in columns}
    return {column: value() for column, value in columns.items()}


def pairs(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Differences in top-1, seed by seed, with Holm's correction over all tests of the table."""
    compared = [(first, second, *_words(experiment, first, second)) for first, second in comparisons(experiment)]
    table = differences(experiment, everything(experiment, records), compared)
    parts = [experiment.part(first if experiment.part(first) == "loader" else second) for first, second, *_ in compared]
    table.insert(0, "Part", [PARTS[part] for part in parts])
    return table


def differences(
    experiment: Experiment, found: dict[str, Measured], compared: list[tuple[str, str, str, str]]
) -> pd.DataFrame:
    """One row a comparison: top-1 of the first model less the second's, in points, and Holm's correction over all rows.

    compared: names of two models, and the words for each. Raises InputError for runs on different images.
    """
    both = [difference(found[a], found[b]) if a in found and b in found else None for a, b, *_ in compared]
    tested = [i for i, d in enumerate(both) if d and d.p is not None]
    corrected = dict(zip(tested, holm([both[i].p for i in tested])))
    rows = []
    for i, (d, (*_, ours, theirs)) in enumerate(zip(both, compared)):
        n = 0 if d is None else len(d.points)
        rows.append(
            {
                "Difference": f"{ours} − {theirs}",
                f"{experiment.scope} top-1 (points)": f"{statistics.mean(d.points):+.2f} (n={n})" if n else NOT_RUN,
                "95 % interval": interval_words(d.points, "+.2f") if n else "",
                "p": p_words(d.p) if i in corrected else "",
                "p (Holm)": p_words(corrected[i]) if i in corrected else "",
                "What the seeds show": NOT_RUN if d is None else verdict(d, corrected.get(i), ours),
            }
        )
    return pd.DataFrame(rows)


def comparisons(experiment: Experiment) -> list[tuple[str, str]]:
    """Names of the models compared: FF only with the others of its part, the loader's with the grid's."""
    found = []
    for name, entry in experiment.models.items():
        part = experiment.part(name)
        if part == "loader":
            found.append((name, in_grid(experiment, name)))
        elif cell_of(entry["model"]) != FF_ONLY:
            found.append((_ff_only(experiment, name), name))
    return [(first, second) for first, second in found if first and second]


def agreement(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """How alike the models of the grid err, beside how alike two seeds of one model do."""
    rows = []
    for a in agreements(experiment, records):
        one, other = (experiment.models[name]["label"] for name in (a.first, a.second))
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
    names = [n for n in experiment.models if experiment.part(n) == "grid"]
    return [_agreement(n, n, found) for n in names] + [
        _agreement(*two, found) for two in itertools.combinations(names, 2)
    ]


def trials(experiment: Experiment, trials: list[dict]) -> pd.DataFrame:
    """What was tried before the recipe was chosen, by validation top-1: trials are never scored on the test images."""
    alike = defaultdict(list)
    for trial in trials:
        alike[trial["config"]["name"], _unlike_the_experiment(experiment, trial["config"])].append(trial)
    order = list(experiment.models)
    rows = []
    for (name, settings), group in alike.items():
        top1 = [t["history"][-1]["validation_top1_percent"] for t in group]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(group) > 1 else ""
        rows.append(
            {
                "Model": group[0]["config"]["label"],
                "Name": name,
                "Settings unlike the experiment's": settings or "as chosen",
                "Seeds": ", ".join(str(seed) for seed in sorted(t["config"]["seed"] for t in group)),
                "Validation top-1 (%)": f"{statistics.mean(top1):.2f}{spread} (n={len(group)})",
                "Training (min)": f"{statistics.mean(t['duration_s'] for t in group) / 60:.3g}",
                "Hardware": ", ".join(sorted({machine(t) for t in group})),
                "order": (order.index(name) if name in order else len(order), name, -statistics.mean(top1)),
            }
        )
    table = pd.DataFrame(sorted(rows, key=lambda row: row["order"]))
    if table.empty:
        return pd.DataFrame([{"Model": NOT_RUN, "Settings unlike the experiment's": "no trial is recorded"}])
    return table.drop(columns="order")


def trial_sources(trials: list[dict]) -> str:
    """One sentence on where the numbers of the trials come from."""
    if not trials:
        return "No trial is recorded."
    commits, machines = (", ".join(sorted({of(t) for t in trials})) for of in (commit, machine))
    return f"Validation images, after the last epoch, of {len(trials)} trials: commit {commits}, on {machines}."


def _of_the_grid(experiment: Experiment, matched: list[str]) -> list[str]:
    """The grid's models of cells that have no matched model; none where nothing is matched."""
    cells = {cell_of(experiment.models[n]["model"]) for n in matched}
    grid = [n for n in experiment.models if experiment.part(n) == "grid"]
    return [n for n in grid if cells and cell_of(experiment.models[n]["model"]) not in cells]


def _ff_only(experiment: Experiment, name: str) -> str | None:
    """The FF-only model to compare a model with: of its part or else the grid, its number of images and its size."""

    def fits(other: str, part: str) -> bool:
        images = {experiment.config(n).max_train_images for n in (name, other)}
        return (
            experiment.part(other) == part
            and cell_of(experiment.models[other]["model"]) == FF_ONLY
            and (part != "data" or len(images) == 1)
        )

    def size(other: str) -> list[str]:  # ff_tiny_patch16_224 and vit_tiny_patch16_224 are of one
        return experiment.models[other]["model"].split("_")[-3:]

    own = [n for n in experiment.models if fits(n, experiment.part(name))]
    if experiment.part(name) == "matched":
        own = own or [n for n in experiment.models if fits(n, "grid")]
    return next((n for n in own if size(n) == size(name)), own[0] if own else None)


def _words(experiment: Experiment, first: str, second: str) -> tuple[str, str]:
    """What to call two models compared; the second also says where the comparison differs from others of its part."""
    ours, theirs = (experiment.models[name]["label"] for name in (first, second))
    if experiment.part(first) == "loader":
        return f"{ours}, images one by one", "in batches"
    images = experiment.config(second).max_train_images
    return ours, theirs + (f", {images:,} images" if experiment.part(second) == "data" else "")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


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
    one, other, *means = [None if pd.isna(value) else float(value) for value in counted]
    return Agreement(first, second, len(runs), "", (one, other), *means)


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


def _unlike_the_experiment(experiment: Experiment, config: dict) -> str:
    """The settings that decide a result in which a trial differs from what its experiment says now: "epochs=3, ..."."""
    now = deciding(experiment.config(config["name"], config["seed"]).to_dict())
    then = deciding(config)
    return ", ".join(f"{key}={json.dumps(then[key])}" for key in sorted(then) if then[key] != now.get(key))


MOST_CLASSES = 30  # whose names can be read


def accuracy_by_cost(experiment: Experiment, records: list[dict]) -> Figure:
    """Validation top-1 against epochs, wall time and multiply-adds, and test top-1 against parameters."""
    found = everything(experiment, records)
    grid_figure, matched, long = (
        [m for m in found.values() if experiment.part(m.name) == p] for p in ("grid", "matched", "long")
    )
    curves = grid_figure + long
    seconds = [
        np.cumsum([[e["seconds"] for e in r["history"]] for r in m.records], axis=1).mean(axis=0) for m in curves
    ]
    macs = [_training_macs(m) for m in curves]
    longest, most = (max((x[-1] for x in cost), default=1e12) for cost in (seconds, macs))
    unit, unit_name = next((u for u in ((3600, "hours"), (60, "minutes")) if longest > 2 * u[0]), (1, "seconds"))
    power = 3 * int(np.log10(most) // 3)
    costs = (
        ("Epochs", "epoch", [np.arange(len(x)) + 1 for x in seconds]),
        ("Wall time of training", f"{unit_name}, mean over seeds", [x / unit for x in seconds]),
        (
            "Multiply-adds of training",
            f"$10^{{{power}}}$ multiply-adds: 3 x those of an image x images seen",
            [x / 10**power for x in macs],
        ),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7.6), layout="constrained")
    for panel, (title, label, values) in zip(axes.flat, costs):
        for m, x in zip(curves, values):
            color, dashes, _ = style_of(experiment, m.name)
            y = np.array([[e["validation_top1_percent"] for e in r["history"]] for r in m.records])
            panel.plot(x, y.mean(axis=0), color=color, linestyle=dashes, lw=0.9 if m in long else 1.8)
            panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=color, alpha=0.2, lw=0)
        panel.set(title=title, xlabel=label, ylabel="validation top-1 (%)", xscale="log")
        panel.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
    machines = sorted({h for m in curves for h in m.hardware})
    if len(machines) > 1:
        text = "\n".join(["different hardware, not comparable:", *machines])
        axes[0, 1].text(0.97, 0.04, text, transform=axes[0, 1].transAxes, ha="right", fontsize=9, bbox=WHITE)
    for m in grid_figure + matched:
        mean_and_seeds(
            axes[1, 1], m.parameters / 1e6, m.top1_percent, style_of(experiment, m.name), hollow=m in matched
        )
    axes[1, 1].set(title="Parameters", xlabel="millions", ylabel="test top-1 (%)")
    finish(*axes.flat)
    kinds = [Line2D([], [], color="0.3", lw=0.9, label="thin: longer training")] if long else []
    if matched:
        hollow = dict(marker="o", markerfacecolor="white", markersize=8, label="hollow: at equal multiply-adds")
        kinds.append(Line2D([], [], color="0.3", lw=0, **hollow))
    legend(figure, experiment, grid_figure + matched + long, kinds)
    figure.suptitle(
        f"{experiment.title}. Lines: mean over seeds; bands: from lowest to highest seed.\n{MARKS}", x=0.01, ha="left"
    )
    return figure


def data_size(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 against the number of training images: the models of the part "data" and, for all images, the grid's."""
    found = everything(experiment, records)
    whole = {n: in_grid(experiment, n) for n in experiment.models if experiment.part(n) == "data"}
    cells = [name for name in dict.fromkeys(whole.values()) if name]
    figure, panel = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    panel.set(title="Fewer training images", xlabel="training images", ylabel="test top-1 (%)", xscale="log")
    ticks, drawn = set(), []
    for cell in cells:
        names = [n for n in whole if whole[n] == cell] + [cell]
        line = {found[n].records[0]["dataset"]["images"]["train"]: found[n] for n in names if n in found}
        color, dashes, _ = style_of(experiment, cell)
        for x, m in line.items():
            mean_and_seeds(panel, x, m.top1_percent, style_of(experiment, cell))
        if line:
            panel.plot(sorted(line), [line[x].mean for x in sorted(line)], color=color, linestyle=dashes, lw=1.8)
        ticks |= set(line)
        drawn += line.values()
    panel.set_xticks([], minor=True)
    panel.set_xticks(sorted(ticks), [f"{x:,}" for x in sorted(ticks)])
    finish(panel)
    legend(figure, experiment, drawn)
    figure.suptitle(f"{experiment.title}.\n{MARKS}", x=0.01, ha="left")
    return figure


def per_class(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 of FF only less ViT's by class, paired by seed; of many classes, those at either end."""
    found = measured(experiment, records)
    cells = (("ff", "ff", "ff_tiny_patch16_224"), ("attention", "ff", "deit_tiny_patch16_224"))
    ff, vit = (in_cell(experiment, found, *cell) for cell in cells)
    pairs = same_seeds(ff, vit) if ff and vit else []
    figure, panel = plt.subplots(figsize=(9.2, 4.6), layout="constrained")
    panel.set(title="FF only less ViT, class by class", ylabel="difference in test top-1 (points)")
    if pairs:
        scores = np.array([[r["results"]["per_class_percent"] for r in pair] for pair in pairs], dtype=float)
        points = scores[:, 0] - scores[:, 1]  # (seeds, classes); NaN for a class without test images
        order = [i for i in np.argsort(points.mean(axis=0)) if not np.isnan(points[:, i]).any()]
        if len(order) > MOST_CLASSES:
            order = order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
            panel.set_title(f"FF only less ViT: {MOST_CLASSES} of {points.shape[1]:,} classes, those at either end")
        names = pairs[0][0]["dataset"].get("class_names", range(points.shape[1]))
        for x, i in enumerate(order):
            mean_and_seeds(panel, x, points[:, i].tolist(), ("0.25", "-", "o"))
        panel.set_xticks(range(len(order)), [names[i] for i in order])
        turned = dict(rotation=90) if len(order) > 12 else {}
        panel.tick_params(axis="x", length=0, **turned)
        panel.axhline(0, color="0.25", lw=1)
        mean = np.mean(difference(ff, vit).points)
        panel.axhline(
            mean, color=COLORS[0], lw=1.4, linestyle="--", label=f"all classes: {mean:+.2f} points".replace("-", "−")
        )
        panel.legend(frameon=False, loc="upper left")
        panel.set_xlabel("class")
    finish(panel)
    figure.suptitle(
        f"{experiment.title}, paired by seed (n={len(pairs)}). Above 0, FF only is better.\n{MARKS}", x=0.01, ha="left"
    )
    return figure


def agreement_figure(experiment: Experiment, records: list[dict]) -> Figure:
    """Two matrices over the models of the grid: do two models err more unlike one another than two seeds of one model?"""
    cells = agreements(experiment, records)
    names = [a.first for a in cells if a.first == a.second]
    labels = [textwrap.fill(experiment.models[n]["label"], 14) for n in names]
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
        f"{experiment.title}: mistakes on the test images, n pairs of runs.\nFramed: two seeds of one model. Others: two models, the same seed.\n",
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


def _training_macs(m: Measured) -> np.ndarray:
    """Multiply-adds after every epoch: forward 1, backward 2 of the model's, for each image of the epoch's whole batches."""
    config, images = m.records[0]["config"], m.records[0]["dataset"]["images"]["train"]
    seen = images // config["batch_size"] * config["batch_size"]
    return 3 * m.macs * seen * np.arange(1, len(m.records[0]["history"]) + 1.0)
