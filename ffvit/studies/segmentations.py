"""Notebook 22: how well every pixel is classified, which classes are taken for which, and where, as maps."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from ffvit.evidence.escape import drawn
from ffvit.evidence.tables import captioned
from ffvit.settings.config import Config
from ffvit.studies.detections import class_bars
from ffvit.studies.overlays import WRONG, class_legend, draw_map, short, show
from ffvit.studies.predicted import Seen
from ffvit.tasks.semantic_segmentation import IGNORED, Segmentation

MOST_CLASSES = 20  # of a confusion matrix


class OfImage(NamedTuple):
    miou_percent: float  # over the classes that are in the image, or said of it
    seen: Seen


def scores(subjects: Sequence[tuple[Config, Any]], evaluations: Sequence[Segmentation]) -> pd.DataFrame:
    """One row a run."""
    rows = (
        {
            "model": config.label,
            "seed": config.seed,
            "test images": e.images,
            "mIoU (%)": round(e.metrics["miou_percent"], 2),
            "pixel accuracy (%)": round(e.metrics["pixel_accuracy_percent"], 2),
            "loss of a pixel": round(e.loss, 4),
        }
        for (config, _), e in zip(subjects, evaluations)
    )
    return captioned(pd.DataFrame(rows), "Scores on the test images")


def by_class(evaluations: Sequence[Segmentation], classes: list[str]) -> Figure:
    """Intersection over union of every class, the hardest on top: bars for the mean over runs, dots for the runs. Of many, the hardest."""
    return class_bars(np.array([e.per_class_percent for e in evaluations], dtype=float), classes, "IoU (%)")


def confusion(evaluations: Sequence[Segmentation], classes: list[str], most: int = MOST_CLASSES) -> Figure:
    """Of the pixels of a class, the percentage that is said to be each class, over all runs. Of many classes, those most often wrong."""
    total = np.sum([e.confusion for e in evaluations], axis=0)
    there = np.flatnonzero(total.sum(axis=1))
    wrong = total.sum(axis=1) - np.diag(total)
    shown = there if len(there) <= most else np.sort(there[np.argsort(-wrong[there], kind="stable")[:most]])
    percent = 100 * total[np.ix_(shown, shown)] / total[shown].sum(axis=1, keepdims=True)
    names = [drawn(short(classes[i])) for i in shown]
    side = 2.2 + 0.42 * len(shown)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    sns.heatmap(
        percent, ax=axes, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, cbar=False, square=True, linewidths=0.5,
        xticklabels=names, yticklabels=names, mask=percent < 0.5, annot_kws=dict(fontsize=8),
    )  # fmt: skip
    axes.tick_params(axis="x", rotation=90 if max(map(len, names)) > 3 else 0)
    axes.tick_params(axis="y", rotation=0)
    axes.set(title="Pixels of a class, by what they are said to be (%)", xlabel="said", ylabel="true")
    return figure


def image_iou(seen: Seen, num_classes: int) -> float | None:
    """Mean IoU in percent of one image, over the classes that are in it or said of it; None where all of it is ignored."""
    counted = seen.true != IGNORED
    pairs = seen.true[counted] * num_classes + seen.said[counted]
    counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    right, union = np.diag(counts), counts.sum(axis=0) + counts.sum(axis=1) - np.diag(counts)
    return float(100 * np.mean(right[union > 0] / union[union > 0])) if counts.sum() else None


def hardest(seen: Iterable[Seen], num_classes: int, count: int = 5) -> list[OfImage]:
    """The images of the lowest mean IoU."""
    worst: list[OfImage] = []
    for one in seen:
        one = one._replace(true=np.asarray(one.true))
        if (iou := image_iou(one, num_classes)) is not None:
            worst = sorted([*worst, OfImage(iou, one)], key=lambda of: of.miou_percent)[
                :count
            ]  # few are kept at a time
    return worst


def beside_truth(shown: Sequence[OfImage], classes: list[str]) -> Figure:
    """Image, true map, predicted map and the pixels that are wrong, in red, from top to bottom; an image a column."""
    size = 2.0 * len(shown) + 0.6, 8.6
    figure, axes = plt.subplots(4, len(shown), figsize=size, squeeze=False, layout="constrained")
    for column, (iou, seen) in zip(axes.T, shown):
        show(column[0], seen.pixels, f"mIoU {iou:.0f} %")
        for panel, found, title in ((column[1], seen.true, "true"), (column[2], seen.said, "said")):
            draw_map(panel, found, classes)
            panel.set_title(title, fontsize=8, fontweight="normal", loc="center")
        wrong = (seen.said != seen.true) & (seen.true != IGNORED)
        show(column[3], _marked(seen.pixels, wrong), f"wrong: {100 * wrong.mean():.1f} % of pixels")
    class_legend(figure, classes, np.unique([c for _, s in shown for of in (s.true, s.said) for c in np.unique(of)]))
    return figure


def of_own(seen: Seen, classes: list[str]) -> Figure:
    """One image, and the map that the model makes of it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.6), layout="constrained")
    show(left, seen.pixels)
    draw_map(right, seen.said, classes)
    class_legend(figure, classes, np.unique(seen.said))
    return figure


def conclusion(evaluations: Sequence[Segmentation], classes: list[str]) -> str:
    """What was found over all runs, in sentences whose numbers are computed, each on a line of its own."""
    by_run = np.array([e.per_class_percent for e in evaluations], dtype=float)  # (runs, classes); NaN: not there
    there = np.flatnonzero(~np.isnan(by_run).all(axis=0))
    means = np.nanmean(by_run[:, there], axis=0)
    counts = np.sum([e.confusion for e in evaluations], axis=0)
    wrong = counts - np.diag(np.diag(counts))
    said = [
        f"Hardest is {classes[there[means.argmin()]]}, with an IoU of {means.min():.1f} %; "
        f"easiest is {classes[there[means.argmax()]]}, with {means.max():.1f} %.",
        f"Of the pixels, {100 * wrong.sum() / counts.sum():.1f} % are wrong.",
    ]
    if wrong.any():
        true, taken_for = np.unravel_index(wrong.argmax(), wrong.shape)
        said.append(
            f"The most common mistake is {classes[true]} said to be {classes[taken_for]}: {100 * wrong.max() / wrong.sum():.0f} % of them."
        )
    return "\n".join(said)


def _marked(pixels: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(H, W, 3) of 0 to 1: the image in grey, the wrong pixels in red."""
    grey = np.atleast_3d(pixels).mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    return np.where(wrong[..., None], WRONG, 0.35 + 0.5 * grey)
