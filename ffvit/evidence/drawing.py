"""How a figure looks: one style, readable without colour, each with its sources in the file's metadata."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import offset_copy

from ffvit.evidence.escape import drawn, in_one_line
from ffvit.evidence.measured import NOT_RUN, Measured
from ffvit.evidence.seed_statistics import interval
from ffvit.settings.experiment import Experiment
from ffvit.system.files import write_atomically

FORMATS = (".svg", ".png")
COLORS = sns.color_palette("colorblind")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "osD^v"
WHITE = dict(facecolor="white", edgecolor="none")
SEEDS_OF_AN_INTERVAL = 4  # with fewer, an interval says less than the seeds themselves
MARKS = "Large marks: mean over seeds; dots beside: the seeds."
BAR = "_bar"  # the label of an interval's line: matplotlib's own legends leave out what begins so
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
        about: dict[str, str | None] = {"Title": path.stem, "Description": in_one_line(source)}
        # Without a date, and without matplotlib's version in the png, a figure made again is the same file.
        about |= {"Date": None, "Creator": "ffvit"} if path.suffix == ".svg" else {"Software": "ffvit"}
        figure.savefig(buffer, format=path.suffix[1:], metadata=about, dpi=200, bbox_inches="tight", facecolor="white")
        write_atomically(path, buffer.getvalue())


def style_of(experiment: Experiment, name: str) -> tuple:
    """Colour, dashes and marker of a model: those of its place in the grid, in every comparison and whatever was run."""
    names = [variant.name for variant in experiment.main_variants]
    own = name if name in names else experiment.variants[name].of
    i = names.index(own)
    more = i // len(COLORS)  # an eleventh model has the first one's colour, and neither its dashes nor its marker
    return COLORS[i % len(COLORS)], DASHES[(i + more) % len(DASHES)], MARKERS[(i + more) % len(MARKERS)]


def matrix_cell(panel: Axes, column: int, row: int, value: float | None, text: str, framed: bool = False) -> None:
    """A cell of a matrix of percentages; hatched where it is blank."""
    blank: dict[str, Any] = dict(facecolor="none", edgecolor="0.7", hatch="///", lw=0)
    filled: dict[str, Any] = dict(facecolor=plt.get_cmap("Blues")((value or 0) / 100), lw=0)
    panel.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, **(blank if value is None else filled)))
    if framed:
        panel.add_patch(Rectangle((column + 0.03, row + 0.03), 0.94, 0.94, facecolor="none", edgecolor="0.15", lw=2))
    color = "white" if (value or 0) > 55 else "black"
    box = WHITE if value is None else None
    panel.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=11, color=color, bbox=box)


def face(color: Any, fill: str) -> dict[str, Any]:
    """How a mark is filled: "full", "half", or "none", which is white inside."""
    if fill == "half":
        return dict(markerfacecolor=color, markerfacecoloralt="white", fillstyle="bottom")
    return dict(markerfacecolor="white" if fill == "none" else color)


def mean_and_seeds(panel: Axes, x: float, values: list[float], style: tuple, fill: str = "full") -> None:
    """The mean over seeds, from SEEDS_OF_AN_INTERVAL on its 95 % interval, and beside it the seeds. fill: see face."""
    color, _, marker = style
    # Each fill has a distance of its own: where three stand at one place, all can be read.
    aside = {"full": 8, "half": -14, "none": -8}[fill]
    beside = offset_copy(panel.transData, panel.get_figure(root=True), x=aside, units="points")
    panel.plot([x] * len(values), values, ".", color=color, markersize=6, markeredgewidth=0, transform=beside)
    panel.update_datalim([(x, value) for value in values])  # of what is moved aside, matplotlib takes no notice
    limits = interval(values) if len(values) >= SEEDS_OF_AN_INTERVAL else None
    if limits:
        panel.plot([x, x], limits, color=color, lw=1.5, label=BAR)
    panel.plot(
        x, np.mean(values), marker, markersize=6.5, markeredgecolor=color, markeredgewidth=1.2, **face(color, fill)
    )


def finish(*panels: Axes, blank: str = NOT_RUN) -> None:
    """A grid behind what is there; where there is nothing, why."""
    for panel in panels:
        panel.grid(True)
        panel.set_axisbelow(True)
        if not panel.has_data():
            panel.grid(False)
            panel.tick_params(which="both", length=0, labelleft=False, labelbottom=False)
            panel.text(0.5, 0.5, blank, transform=panel.transAxes, ha="center", va="center", fontsize=14, color="0.4")


def bars(figure: Figure) -> list[Line2D]:
    """What a legend says of the bars of mean_and_seeds, where one is drawn."""
    if not any(line.get_label() == BAR for panel in figure.axes for line in panel.lines):
        return []
    words = f"bars: 95 % interval of the mean, from {SEEDS_OF_AN_INTERVAL} seeds on"
    return [Line2D([], [], color="0.3", lw=0, marker="|", markersize=12, markeredgewidth=1.5, label=words)]


def legend(
    figure: Figure, experiment: Experiment, models: list[Measured], more: Sequence[Line2D] = (), lines: bool = True
) -> None:
    """Below the panels: the look of the models drawn, one entry a model of the grid, and what else there is to say.

    lines: whether lines are drawn, or marks alone.
    """
    names = [variant.name for variant in experiment.main_variants]
    shown = {m.name if m.name in names else experiment.variants[m.name].of for m in models}
    handles = []
    for name in sorted(shown, key=names.index):
        color, dashes, marker = style_of(experiment, name)
        style = dict(color=color, linestyle=dashes if lines else "", marker=marker, markersize=7, lw=1.8)
        handles.append(Line2D([], [], label=drawn(experiment.variants[name].label), **style))
    handles += [*more, *bars(figure)]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 4 else 3, frameon=False
        )
