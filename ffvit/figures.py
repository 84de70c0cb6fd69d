"""The report's figures: one style, readable without colour, each with its sources in the file's metadata."""

import inspect
import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator
from pygments import lex
from pygments.lexers import PythonLexer
from pygments.styles import get_style_by_name

from ffvit import checkpoint, models
from ffvit.config import Experiment
from ffvit.reported import reported
from ffvit.tables import GRID, WORDS, Measured, in_cell

COLORS = sns.color_palette("colorblind")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
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
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for panel, (column, title) in zip(axes, panels):
        panel.set(title=title, xlabel="epoch")
        panel.grid(True)
        for i, m in enumerate(found.values()):
            frame = pd.DataFrame(r for r in rows if r["name"] == m.name)
            sns.lineplot(
                frame,
                x="epoch",
                y=column,
                ax=panel,
                color=COLORS[i],
                linestyle=DASHES[i % len(DASHES)],
                lw=1.8,
                errorbar=("pi", 100),
                label=f"{m.label} (n={len(m.top1_percent)})",
                legend=False,
            )
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    if found:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(found), frameon=False)
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


def _branches(block: models.Block):
    names = {id(block.mix_features): "Features", id(block.mix_patches): "Patches"}
    return [(branch, names[id(branch)]) for branch in block.branches]
