"""Notebook 10, its figure: accuracy by what attention costs, and what it adds in one more stage."""

from collections import defaultdict
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ffvit.evidence.drawing import COLORS, MARKERS, MARKS, bars, face, finish, mean_and_seeds
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import Measured, measured
from ffvit.evidence.seed_statistics import difference
from ffvit.settings.experiment import Experiment
from ffvit.studies.lit_stages import MERGINGS, Layout, layouts, words

LOOKS = {"deformable": ("-", "full"), "zero-offset": ("-.", "half"), "plain": ("--", "none")}  # line, and fill of marks


def accuracy_by_macs(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 against multiply-adds of an image and, paired by seed, what attention in one more stage adds to it."""
    found, here = measured(experiment, records), layouts(experiment)
    places = sorted({layout.stages for layout in here.values()}, key=lambda stages: (len(stages), stages))
    looks = {stages: (COLORS[i % len(COLORS)], "", MARKERS[i % len(MARKERS)]) for i, stages in enumerate(places)}
    figure, (accuracy, gain) = plt.subplots(1, 2, figsize=(10.5, 4.9), layout="constrained")
    accuracy.set(title="Accuracy by cost", xlabel="million multiply-adds of an image", ylabel="test top-1 (%)")
    gain.set(title="What attention in one more stage adds", ylabel="difference in test top-1 (points)")
    _draw_accuracy(accuracy, found, here, looks)
    _draw_gain(gain, found, here, looks)
    finish(accuracy, gain)
    mergings = _mergings(here)
    rows = max(2, len(mergings))
    handles = [
        Line2D([], [], color=color, marker=marker, lw=0, markersize=7, label=f"attention in {words(stages)}")
        for stages, (color, _, marker) in looks.items()
    ]
    handles += [Line2D([], [], lw=0, label="")] * (-len(handles) % rows)  # mergings in a column of their own
    for merging in mergings:
        line, fill = LOOKS[merging]
        look: dict[str, Any] = dict(color="0.3", marker="o", markersize=7, lw=1.2, linestyle=line, **face("0.3", fill))
        handles.append(Line2D([], [], **look, label=f"{merging} merging"))
    handles += bars(figure)
    columns = -(-len(handles) // rows)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.6, frameon=False)
    figure.suptitle(f"{drawn(experiment.title)}.\n{MARKS}", x=0.01, ha="left")
    return figure


def _draw_accuracy(panel: Axes, found: dict[str, Measured], here: dict[str, Layout], looks: dict) -> None:
    """A line joins the layouts of one model and one merging."""
    lines = defaultdict(list)
    for name, layout in here.items():
        if name in found:
            m = found[name]
            lines[layout._replace(stages=())].append((m.macs / 1e6, m.mean))
            mean_and_seeds(panel, m.macs / 1e6, m.percent, looks[layout.stages], LOOKS[layout.merging][1])
    panel.xaxis.set_major_formatter("{x:,g}")
    for layout, line in lines.items():
        panel.plot(*zip(*sorted(line)), color="0.6", linestyle=LOOKS[layout.merging][0], lw=1.2, zorder=1)


def _draw_gain(panel: Axes, found: dict[str, Measured], here: dict[str, Layout], looks: dict) -> None:
    """Each layout less the same without attention in its earliest stage. From left to right, stages 4 to 1."""
    names = {layout: name for name, layout in here.items()}
    mergings = _mergings(here)
    ticks = {}
    for layout, name in names.items():
        before = names.get(layout._replace(stages=layout.stages[1:]))
        if not layout.stages or name not in found or before not in found:
            continue
        if points := difference(found[name], found[before]).points:
            stage = layout.stages[0]
            x = -stage + 0.24 * ((len(mergings) - 1) / 2 - mergings.index(layout.merging))  # side by side
            mean_and_seeds(panel, x, points, looks[layout.stages], LOOKS[layout.merging][1])
            ticks[-stage] = f"stage {stage}\n+{(found[name].macs - found[before].macs) / 1e6:.3g}"
    if ticks:
        panel.set(
            xlim=(min(ticks) - 0.5, max(ticks) + 0.5), xlabel="what that costs: million multiply-adds of an image"
        )
        panel.axhline(0, color="0.25", lw=1)
        panel.set_xticks(list(ticks), list(ticks.values()))


def _mergings(here: dict[str, Layout]) -> list[str]:
    """Those that an experiment has, in the order of MERGINGS."""
    return [merging for merging in MERGINGS if merging in {layout.merging for layout in here.values()}]
