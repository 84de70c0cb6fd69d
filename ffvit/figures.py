"""The report's figures: one style, readable without colour, each with its sources in the file's metadata."""

import inspect
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import offset_copy
from pygments import lex
from pygments.lexers import PythonLexer
from pygments.styles import get_style_by_name

from ffvit import analysis, checkpoint, models
from ffvit.config import Experiment
from ffvit.reported import reported
from ffvit.tables import GRID, NOT_RUN, WORDS, Measured, in_cell, measured

COLORS = sns.color_palette("colorblind")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^v"
WHITE = dict(facecolor="white", edgecolor="none")
SEEDS_OF_AN_INTERVAL = 4  # with fewer, an interval says less than the seeds themselves
MARKS = f"Large marks: mean over seeds; bars: its 95 % interval, from {SEEDS_OF_AN_INTERVAL} seeds on; dots beside: the seeds."
MOST_CLASSES = 30  # whose names can be read
# One style for every figure; importing this module sets it.
sns.set_theme(
    style="ticks",
    rc={
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "0.9",
        "figure.dpi": 110,
        "svg.hashsalt": "ffvit",  # the same figure, the same file
    },
)


def save(figure: Figure, *paths: Path, source: str) -> None:
    """Write svg or png files whose metadata says where the numbers come from; the same figure, the same bytes."""
    for path in paths:
        buffer = io.BytesIO()
        about = {"Title": path.stem, "Description": source}
        # Without a date, and without matplotlib's version in the png, a figure made again is the same file.
        about |= {"Date": None, "Creator": "ffvit"} if path.suffix == ".svg" else {"Software": "ffvit"}
        figure.savefig(buffer, format=path.suffix[1:], metadata=about, dpi=200, bbox_inches="tight", facecolor="white")
        checkpoint.write_atomically(path, buffer.getvalue())


def look(experiment: Experiment, name: str) -> tuple:
    """Colour, dashes and marker of a model: those of its place in the grid, in every part and whatever else was run."""
    grid = [n for n in experiment.models if experiment.part(n) == "grid"]
    twin = name if name in grid else analysis.in_grid(experiment, name)
    i = grid.index(twin) if twin else len(grid)
    return COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]


def architecture(model: models.PatchFeatureMixer) -> Figure:
    """Figure 1 of the report, drawn from the blocks that the model has. Read it from bottom to top."""
    height, gap = 0.56, 0.3  # of a layer, and between two
    boxes, residuals, y = [], [], 2.0
    for branch, mixes in _branches(model.blocks[0]):
        kind = "Feed-Forward Layer" if hasattr(branch.mix, "fc1") else "Attention"
        turn = [("Transpose", "0.80")] * branch.transposed
        start, y = y, y + gap
        for name, color in [*turn, (f"{kind} ({mixes})", COLORS[0] if "Feed" in kind else COLORS[2]), *turn]:
            boxes.append((y, name, color))
            y += height + gap
        residuals.append((start, y))
        y += 1.3 * gap
    top = y + 0.1

    scale = 0.72  # inches a unit: what the texts need
    figure = plt.figure(figsize=(8.4 * scale, (top + 3.3) * scale))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-3.9, 4.5), ylim=(-0.8, top + 2.5))
    axes.set_axis_off()

    def box(x, y, width, height, color, **look):
        shape = "round,pad=0.02,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=color, **{"lw": 0, **look}))

    def tokens(y):
        for i in range(9):
            box(-3.0 + 0.69 * i, y, 0.48, 0.48, COLORS[1] if i == 0 else COLORS[9])

    def arrow(start, end, x=0.0):
        look = dict(arrowstyle="-|>", color="0.35", lw=1.3, shrinkA=0, shrinkB=0)
        axes.annotate("", (x, end), (x, start), arrowprops=look)

    tokens(0)
    size = f"{model.num_tokens} x {model.embed_dim}"
    axes.text(
        0,
        -0.3,
        f"class token and {model.num_tokens - 1} patch tokens with learned positions ({size})",
        ha="center",
        va="top",
    )
    box(-3.1, 1.4, 6.2, top - 1.4, "0.96", lw=1, edgecolor="0.6")
    axes.text(3.4, (1.4 + top) / 2, f"× {len(model.blocks)}", fontsize=15, va="center")
    arrow(0.58, 1.38)
    axes.plot([0, 0], [1.4, top], color="0.35", lw=1.3, zorder=1.5)
    for y, name, color in boxes:
        quiet = name == "Transpose"
        box(-1.9, y, 3.8, height, color, zorder=2)
        axes.text(
            0,
            y + height / 2 - 0.02,
            name,
            ha="center",
            va="center",
            zorder=3,
            color="black" if quiet else "white",
            weight="normal" if quiet else "bold",
        )
    for start, end in residuals:
        axes.plot([0, -2.5, -2.5, -0.12], [start, start, end, end], color="0.35", lw=1.3)
        axes.plot(0, end, marker="o", markersize=11, markerfacecolor="white", markeredgecolor="0.35", zorder=3)
        axes.plot(0, end, marker="+", markersize=7, color="0.2", zorder=4)
    arrow(top + 0.02, top + 0.8)
    tokens(top + 0.85)
    arrow(top + 1.4, top + 2.0, x=-2.76)
    axes.text(-3.0, top + 2.2, f"norm and linear head on the class token: {model.num_classes} classes", va="center")
    return figure


def source_code(*objects) -> Figure:
    """Figure 2 of the report: the highlighted source of what is really used, read from the library itself."""
    code = "\n\n\n".join(textwrap.dedent(inspect.getsource(o)).rstrip() for o in objects)
    style = get_style_by_name("xcode")
    lines = code.count("\n") + 1
    columns = max(map(len, code.splitlines()))
    size = 8.0  # points; a character of DejaVu Sans Mono is 0.602 of it wide
    width, height = columns * 0.602 * size / 72, lines * 1.35 * size / 72
    figure = plt.figure(figsize=(width + 0.3, height + 0.3))
    axes = figure.add_axes(
        (0.15 / (width + 0.3), 0.15 / (height + 0.3), width / (width + 0.3), height / (height + 0.3))
    )
    axes.set(xlim=(0, columns), ylim=(lines, 0))
    axes.set_axis_off()
    row = column = 0
    for kind, text in lex(code, PythonLexer(stripnl=False)):
        look = style.style_for_token(kind)
        for i, part in enumerate(text.split("\n")):
            if i:
                row, column = row + 1, 0
            if part.strip():
                axes.text(
                    column,
                    row + 0.75,
                    part,
                    family="DejaVu Sans Mono",
                    fontsize=size,
                    va="baseline",
                    color=f"#{look['color'] or '000000'}",
                    weight="bold" if look["bold"] else "normal",
                )
            column += len(part)
    return figure


def training_curves(experiment: Experiment, records: list[dict], found: dict[str, Measured]) -> Figure:
    """Loss and accuracy by epoch, a line per model (mean over seeds), a band from the lowest to the highest seed."""
    rows = [
        {"name": r["config"]["name"], "seed": r["config"]["seed"], **epoch}
        for r in records
        if r["config"]["name"] in found
        for epoch in r["history"]
    ]
    panels = (
        ("train_loss", "Training loss"),
        ("validation_loss", "Validation loss"),
        ("validation_top1_percent", "Validation top-1 (%)"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4 + 0.12 * max(0, len(found) - 4)), layout="constrained")
    for panel, (column, title) in zip(axes, panels):
        panel.set(title=title, xlabel="epoch")
        panel.grid(True)
        for m in found.values():
            frame = pd.DataFrame(r for r in rows if r["name"] == m.name)
            color, dashes, _ = look(experiment, m.name)
            sns.lineplot(
                frame,
                x="epoch",
                y=column,
                ax=panel,
                color=color,
                linestyle=dashes,
                lw=1.8,
                errorbar=("pi", 100),
                label=f"{m.label} (n={len(m.top1_percent)})",
                legend=False,
            )
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if found:
        columns = len(found) if len(found) <= 4 else 2
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{experiment.title}: mean over seeds; bands from lowest to highest seed", x=0.01, ha="left")
    return figure


def grid(experiment: Experiment, found: dict[str, Measured]) -> Figure:
    """The 2x2 grid twice: the report's ImageNet numbers, and what this experiment measured, on one scale."""
    order = ("ff", "attention")
    left, right, left_text, right_text = (np.full((2, 2), kind) for kind in (np.nan, np.nan, object(), object()))
    for patches, features, name, place in GRID:
        cell = order.index(patches), order.index(features)
        printed = reported(place, name, "top1").value if place else None
        mine = in_cell(experiment, found, patches, features, name)
        title = {
            "deit_tiny_patch16_224": "DeiT",
            "ff_tiny_patch16_224": "FF only",
            "attention_only_tiny_patch16_224": "attention only\n(100 epochs)",
        }.get(name, "open")
        left[cell] = np.nan if printed is None else printed
        left_text[cell] = f"{title}\n{printed:.1f} %" if printed else "never run"
        right[cell] = mine.mean if mine else np.nan
        spread = f"\n± {mine.sd:.2f}" if mine and mine.sd is not None else ""
        right_text[cell] = f"{mine.mean:.2f} %{spread}\n(n={len(mine.top1_percent)})" if mine else "not run"
    panels = (
        (left, left_text, "ImageNet, tiny, as reported"),
        (
            right,
            right_text,
            f"{experiment.scope}, {' and '.join(sorted({m.origin for m in found.values()})) or 'not run'}",
        ),
    )
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
    for panel, (values, text, title) in zip(axes, panels):
        sns.heatmap(
            values,
            ax=panel,
            vmin=0,
            vmax=100,
            cmap="Blues",
            cbar=False,
            linewidths=3,
            linecolor="white",
            square=True,
        )
        for (row, column), value in np.ndenumerate(values):
            blank = np.isnan(value)
            if blank:
                panel.add_patch(
                    Rectangle(
                        (column + 0.03, row + 0.03),
                        0.94,
                        0.94,
                        facecolor="none",
                        edgecolor="0.7",
                        hatch="///",
                        lw=0,
                    )
                )
            panel.text(
                column + 0.5,
                row + 0.5,
                text[row, column],
                ha="center",
                va="center",
                fontsize=11,
                color="white" if value > 55 else "black",
                bbox=dict(facecolor="white", edgecolor="none") if blank else None,
            )
        panel.set(title=title, xlabel="features mixed by", ylabel="patches mixed by")
        panel.set_xticklabels([WORDS[k] for k in order])
        panel.set_yticklabels([WORDS[k] for k in order], rotation=90, va="center")
        panel.tick_params(length=0)
    figure.suptitle("Top-1 accuracy of the four ways to mix patches and features", x=0.01, ha="left")
    return figure


def accuracy_by_cost(experiment: Experiment, records: list[dict]) -> Figure:
    """Validation top-1 against epochs, wall time and multiply-adds, and test top-1 against parameters."""
    found = analysis.everything(experiment, records)
    grid, matched, long = (
        [m for m in found.values() if experiment.part(m.name) == p] for p in ("grid", "matched", "long")
    )
    curves = grid + long
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
            color, dashes, _ = look(experiment, m.name)
            y = np.array([[e["validation_top1_percent"] for e in r["history"]] for r in m.records])
            panel.plot(x, y.mean(axis=0), color=color, linestyle=dashes, lw=0.9 if m in long else 1.8)
            panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=color, alpha=0.2, lw=0)
        panel.set(title=title, xlabel=label, ylabel="validation top-1 (%)", xscale="log")
        panel.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter="{x:g}")
    machines = sorted({h for m in curves for h in m.hardware})
    if len(machines) > 1:
        text = "\n".join(["different hardware, not comparable:", *machines])
        axes[0, 1].text(0.97, 0.04, text, transform=axes[0, 1].transAxes, ha="right", fontsize=9, bbox=WHITE)
    for m in grid + matched:
        mean_and_seeds(axes[1, 1], m.parameters / 1e6, m.top1_percent, look(experiment, m.name), hollow=m in matched)
    axes[1, 1].set(title="Parameters", xlabel="millions", ylabel="test top-1 (%)")
    finish(*axes.flat)
    kinds = [Line2D([], [], color="0.3", lw=0.9, label="thin: longer training")] if long else []
    if matched:
        hollow = dict(marker="o", markerfacecolor="white", markersize=8, label="hollow: at equal multiply-adds")
        kinds.append(Line2D([], [], color="0.3", lw=0, **hollow))
    _legend(figure, experiment, grid + matched + long, kinds)
    figure.suptitle(
        f"{experiment.title}. Lines: mean over seeds; bands: from lowest to highest seed.\n{MARKS}", x=0.01, ha="left"
    )
    return figure


def data_size(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 against the number of training images: the models of the part "data" and, for all images, the grid's."""
    found = analysis.everything(experiment, records)
    whole = {n: analysis.in_grid(experiment, n) for n in experiment.models if experiment.part(n) == "data"}
    cells = [name for name in dict.fromkeys(whole.values()) if name]
    figure, panel = plt.subplots(figsize=(8.4, 4.8), layout="constrained")
    panel.set(title="Fewer training images", xlabel="training images", ylabel="test top-1 (%)", xscale="log")
    ticks, drawn = set(), []
    for cell in cells:
        names = [n for n in whole if whole[n] == cell] + [cell]
        line = {found[n].records[0]["dataset"]["images"]["train"]: found[n] for n in names if n in found}
        color, dashes, _ = look(experiment, cell)
        for x, m in line.items():
            mean_and_seeds(panel, x, m.top1_percent, look(experiment, cell))
        if line:
            panel.plot(sorted(line), [line[x].mean for x in sorted(line)], color=color, linestyle=dashes, lw=1.8)
        ticks |= set(line)
        drawn += line.values()
    panel.set_xticks([], minor=True)
    panel.set_xticks(sorted(ticks), [f"{x:,}" for x in sorted(ticks)])
    finish(panel)
    _legend(figure, experiment, drawn)
    figure.suptitle(f"{experiment.title}.\n{MARKS}", x=0.01, ha="left")
    return figure


def per_class(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 of FF only less ViT's by class, paired by seed; of many classes, those at either end."""
    found = measured(experiment, records)
    cells = (("ff", "ff", "ff_tiny_patch16_224"), ("attention", "ff", "deit_tiny_patch16_224"))
    ff, vit = (in_cell(experiment, found, *cell) for cell in cells)
    pairs = analysis.same_seeds(ff, vit) if ff and vit else []
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
        mean = np.mean(analysis.difference(ff, vit).points)
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


def agreement(experiment: Experiment, records: list[dict]) -> Figure:
    """Two matrices over the models of the grid: do two models err more unlike one another than two seeds of one model?"""
    cells = analysis.agreements(experiment, records)
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
            _cell(panel, column, row, value, _agreement_words(a, measure), framed=same)
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


def _cell(panel: Axes, column: int, row: int, value: float | None, text: str, framed: bool) -> None:
    """A cell of a matrix of percentages; hatched where it is blank."""
    blank = dict(facecolor="none", edgecolor="0.7", hatch="///", lw=0)
    filled = dict(facecolor=plt.get_cmap("Blues")((value or 0) / 100), lw=0)
    panel.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, **(blank if value is None else filled)))
    if framed:
        panel.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, facecolor="none", edgecolor="0.15", lw=2))
    color = "white" if (value or 0) > 55 else "black"
    box = WHITE if value is None else None
    panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=11, color=color, bbox=box)


def _agreement_words(a: analysis.Agreement, measure: str) -> str:
    value = getattr(a, measure)
    if value is None:
        return textwrap.fill(a.why_blank or "never both wrong", 10)
    independent = f"\n({a.independent_overlap:.1f})" if measure == "overlap" else ""
    return f"{value:.1f}{independent}\nn={a.pairs}"


def mean_and_seeds(panel: Axes, x: float, values: list[float], style: tuple, hollow: bool = False) -> None:
    """The mean over seeds, from SEEDS_OF_AN_INTERVAL on its 95 % interval, and beside it the seeds."""
    color, _, marker = style
    # Hollow to the left: where two stand at one place, both can be read.
    beside = offset_copy(panel.transData, panel.figure, x=-8 if hollow else 8, units="points")
    panel.plot([x] * len(values), values, ".", color=color, markersize=6, markeredgewidth=0, transform=beside)
    panel.update_datalim([(x, value) for value in values])  # of what is moved aside, matplotlib takes no notice
    limits = analysis.interval(values) if len(values) >= SEEDS_OF_AN_INTERVAL else None
    if limits:
        panel.plot([x, x], limits, color=color, lw=1.5)
    look = dict(markerfacecolor="white" if hollow else color, markeredgecolor=color, markeredgewidth=1.2)
    panel.plot(x, np.mean(values), marker, markersize=6.5, **look)


def _training_macs(m: Measured) -> np.ndarray:
    """Multiply-adds after every epoch: forward 1, backward 2 of the model's, for each image of the epoch's whole batches."""
    config, images = m.records[0]["config"], m.records[0]["dataset"]["images"]["train"]
    seen = images // config["batch_size"] * config["batch_size"]
    return 3 * m.macs * seen * np.arange(1, len(m.records[0]["history"]) + 1.0)


def finish(*panels: Axes) -> None:
    """A grid behind what is there; "not run" where there is nothing."""
    for panel in panels:
        panel.grid(True)
        panel.set_axisbelow(True)
        if not panel.has_data():
            panel.grid(False)
            panel.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
            panel.text(0.5, 0.5, NOT_RUN, transform=panel.transAxes, ha="center", va="center", fontsize=14, color="0.4")


def _legend(figure: Figure, experiment: Experiment, drawn: list[Measured], more: Sequence[Line2D] = ()) -> None:
    """Below the panels: the look of the models drawn, one entry a cell, and what else there is to say."""
    cells = {m.name if experiment.part(m.name) == "grid" else analysis.in_grid(experiment, m.name): m for m in drawn}
    handles = []
    for name in sorted(cells, key=list(experiment.models).index):
        color, dashes, marker = look(experiment, name)
        style = dict(color=color, linestyle=dashes, marker=marker, markersize=7, lw=1.8)
        handles.append(Line2D([], [], label=cells[name].label, **style))
    handles += more
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 4 else 3, frameon=False
        )


def _branches(block: models.Block):
    names = {id(block.mix_features): "Features", id(block.mix_patches): "Patches"}
    return [(branch, names[id(branch)]) for branch in block.branches]
