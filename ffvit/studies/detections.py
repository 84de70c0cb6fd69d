"""Notebook 21: how well a detector finds, by size, class and score; what it finds, and what it does not, as pictures."""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffvit.data.dense.examples import Annotated
from ffvit.evidence.drawing import COLORS
from ffvit.evidence.escape import drawn
from ffvit.evidence.tables import captioned
from ffvit.settings.config import Config
from ffvit.studies.detection_errors import WRONG_CLASS, Error, Errors
from ffvit.studies.overlays import WRONG, draw_box, draw_objects, short, show
from ffvit.studies.predicted import SURE, Seen
from ffvit.tasks.detection import SIZES, Detections

RECALLS = np.linspace(0, 1, 101)  # at which COCO's score takes precision
MOST_CLASSES = 30  # of a figure
WORST = 6  # missed objects in a picture, and as many false alarms
AROUND = 3  # times an object's longer side is what a picture of it shows


def scores(subjects: Sequence[tuple[Config, Any]], evaluations: Sequence[Detections]) -> pd.DataFrame:
    """One row a run and what is scored of it, boxes or masks: COCO's average precision, in percent."""
    rows = []
    for (config, _), e in zip(subjects, evaluations):
        for part, found in e.parts.items():
            of = {"model": config.label, "seed": config.seed, "test images": e.images, "objects": e.objects}
            by_iou = {"AP": found.ap, "AP50": found.ap50, "AP75": found.ap75}
            by_size = {f"AP {size}": found.by_size[size] for size in SIZES}
            percent = {name: "none" if v is None else f"{v:.2f}" for name, v in (by_iou | by_size).items()}
            rows.append(of | {"scored by": "boxes" if part == "box" else "masks"} | percent)
    return captioned(pd.DataFrame(rows), "Average precision on the test images, in percent")


def by_class(evaluations: Sequence[Detections], classes: list[str]) -> Figure:
    """Average precision of every class, the hardest on top: bars for the mean over runs, dots for the runs. Of many, the hardest."""
    part = [*evaluations[0].parts][-1]  # the headline's
    values = np.array([e.parts[part].by_class for e in evaluations], dtype=float)  # (runs, classes); NaN: not there
    return class_bars(values, classes, f"{part} AP (%)")


def class_bars(values: np.ndarray, classes: list[str], label: str) -> Figure:
    """values: (runs, classes) in percent, NaN for a class that is not there."""
    there = np.flatnonzero(~np.isnan(values).all(axis=0))
    means = dict(zip(there, np.nanmean(values[:, there], axis=0)))
    shown = sorted(there, key=lambda i: means[i])[:MOST_CLASSES]
    figure, panel = plt.subplots(figsize=(7, 1.1 + 0.26 * len(shown)), layout="constrained")
    panel.barh(range(len(shown)), [means[i] for i in shown], color=COLORS[0], alpha=0.55, height=0.7)
    for y, i in enumerate(shown):
        panel.plot(values[:, i], [y] * len(values), "o", color="0.25", markersize=3.5, markeredgewidth=0)
    panel.set_yticks(range(len(shown)), [drawn(short(classes[i])) for i in shown])
    left_out = f", the {len(shown)} hardest of {len(there)}" if len(shown) < len(there) else ", hardest first"
    panel.set(title=f"{label} by class{left_out}", xlabel=label, xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6))
    panel.grid(True, axis="x")
    panel.set_axisbelow(True)
    return figure


def precision_by_recall(evaluations: Sequence[Detections]) -> Figure:
    """At IoU 0.5, a panel for boxes and for masks: thick the mean over classes and runs; thin each run's, or of one run each class's."""
    parts = [*evaluations[0].parts]
    figure, axes = plt.subplots(1, len(parts), figsize=(5.2 * len(parts), 4), squeeze=False, layout="constrained")
    for panel, part in zip(axes[0], parts):
        curves = np.array([e.parts[part].curve for e in evaluations])  # (runs, recalls, classes)
        curves = curves[:, :, ~np.isnan(curves).all(axis=(0, 1))]
        of_runs = np.nanmean(curves, axis=2)
        thin = of_runs if len(evaluations) > 1 else curves[0].T
        panel.plot(RECALLS, thin.T, color="0.65", lw=0.8)
        panel.plot([], [], color="0.65", lw=0.8, label="each run" if len(evaluations) > 1 else "each class")
        panel.plot(RECALLS, of_runs.mean(axis=0), color=COLORS[0], lw=2.4, label="mean over classes")
        panel.set(title=f"{part}, IoU 0.5", xlabel="recall: share of objects found", xlim=(0, 1), ylim=(0, 1.02))
        panel.set_ylabel("precision: share of detections that are right")
        panel.grid(True)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def beside_truth(seen: Iterable[Seen], classes: list[str]) -> Figure:
    """What is true (top) and what the model says with a score of at least SURE (bottom), an image a column."""
    shown = list(seen)
    figure, axes = plt.subplots(2, len(shown), figsize=(2.1 * len(shown), 4.6), squeeze=False, layout="constrained")
    for top, bottom, one in zip(*axes, shown):
        for panel, objects, title in ((top, one.true, "true"), (bottom, one.said, "said")):
            show(panel, one.pixels, f"{title}: {len(objects['boxes'])}")
            draw_objects(panel, objects, classes)
    return figure


def of_own(seen: Seen, classes: list[str]) -> Figure:
    """One image, with what the model says of it."""
    figure, panel = plt.subplots(figsize=(5, 5), layout="constrained")
    show(panel, seen.pixels, f"{len(seen.said['boxes'])} with a score of at least {100 * SURE:.0f} %")
    draw_objects(panel, seen.said, classes)
    return figure


def worst(found: Errors, images: Annotated, classes: list[str]) -> Figure:
    """The largest missed objects (top), and the surest false alarms (bottom), each where it is in its image."""
    figure, axes = plt.subplots(2, WORST, figsize=(1.8 * WORST, 4.6), layout="constrained")
    for panels, wrong, none in zip(axes, (found.missed, found.alarms), ("no object missed", "no false alarm")):
        for panel in panels:
            panel.set_axis_off()
        if not wrong:
            panels[0].text(0, 0.5, none, va="center")
        for panel, error in zip(panels, wrong):
            pixels = np.asarray(images[error.row][0])
            show(panel, pixels, _told(error, classes))
            draw_box(panel, error.box, WRONG, width=2)
            _look_at(panel, error.box, *pixels.shape[1::-1])
    return figure


def _told(error: Error, classes: list[str]) -> str:
    if not error.kind:
        return f"missed: {short(classes[error.label])}"
    why = f"is {short(classes[error.true])}" if error.kind == WRONG_CLASS else error.kind
    return f"said {short(classes[error.label])} ({100 * error.score:.0f} %)\n{why}"


def _look_at(panel: Axes, box: np.ndarray, width: int, height: int) -> None:
    """Show a square around the box that lies in the image as far as it fits."""
    side = min(AROUND * float(max(box[2] - box[0], box[3] - box[1], 8)), max(width, height))
    corner = [
        max(0.0, min(float(box[i] + box[i + 2]) / 2 - side / 2, whole - side))
        for i, whole in enumerate((width, height))
    ]
    panel.set(xlim=(corner[0] - 0.5, corner[0] + side - 0.5), ylim=(corner[1] + side - 0.5, corner[1] - 0.5))
