"""What is known or said of an image, drawn over it: boxes, masks, a class for every pixel. Notebooks 02, 03, 21 and 22."""

import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ffvit.data.dense.splits import BACKGROUND
from ffvit.evidence.drawing import COLORS
from ffvit.evidence.escape import drawn

MOST_NAMED = 12  # objects of an image; the names of more would cover it
MOST_IN_A_LEGEND, LEGEND_COLUMNS = 24, 6  # classes
PLAIN = (0.9, 0.9, 0.9)  # of the background in a map
WRONG = (0.86, 0.0, 0.16)  # red, no class's


def show(panel: Axes, image: Any, title: str = "") -> None:
    """image: (H, W), (H, W, 1) or (H, W, 3), of 0 to 255, or of 0 to 1."""
    panel.imshow(np.asarray(image).squeeze(), cmap="gray")
    panel.set_title(drawn(title), fontsize=8, fontweight="normal", loc="center")
    panel.set_axis_off()


def class_colors(classes: list[str]) -> np.ndarray:
    """(classes, 3) of 0 to 1: one colour a class, wherever it is drawn."""
    things = [name for name in classes if name != BACKGROUND]
    palette = iter(COLORS if len(things) <= len(COLORS) else sns.color_palette("husl", len(things)))
    return np.array([PLAIN if name == BACKGROUND else next(palette) for name in classes])


def draw_objects(panel: Axes, objects: dict[str, Any], classes: list[str]) -> None:
    """objects: "boxes" (n, 4) of x1, y1, x2, y2 in pixels, "labels" (n,); and "scores" (n,), "masks" (n, H, W) where there are."""
    boxes, labels = np.asarray(objects["boxes"]), np.asarray(objects["labels"])
    colors, scores = class_colors(classes), objects.get("scores")
    if (masks := objects.get("masks")) is not None:
        for mask, label in zip(np.asarray(masks, bool), labels):
            panel.imshow(np.dstack([*np.broadcast_to(colors[label], (*mask.shape, 3)).transpose(2, 0, 1), 0.5 * mask]))
    for i, (box, label) in enumerate(zip(boxes, labels)):
        draw_box(panel, box, colors[label])
        if len(boxes) <= MOST_NAMED:
            sure = "" if scores is None else f" ({100 * float(scores[i]):.0f} %)"
            _name(panel, box, f"{short(classes[label])}{sure}", colors[label])


def draw_box(panel: Axes, box: np.ndarray, color: Any, width: float = 1.4) -> None:
    left, top, right, bottom = box - 0.5  # a pixel's middle is a whole number
    panel.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, lw=width))


def draw_map(panel: Axes, classes_of_pixels: Any, classes: list[str], over: bool = False) -> None:
    """classes_of_pixels: (H, W), those beyond the classes, which are ignored, in white. over: an image, which is seen through it."""
    found = np.asarray(classes_of_pixels)
    through = np.full(found.shape, 0.6)
    if BACKGROUND in classes:
        through[found == classes.index(BACKGROUND)] = 0
    panel.imshow(painted(found, classes), alpha=through if over else 1.0)
    panel.set_axis_off()


def painted(classes_of_pixels: Any, classes: list[str]) -> np.ndarray:
    """(H, W) classes -> (H, W, 3) of 0 to 1."""
    colors = np.vstack([class_colors(classes), np.ones(3)])
    return colors[np.minimum(np.asarray(classes_of_pixels), len(classes))]


def class_legend(figure: Figure, classes: list[str], shown: Iterable[int]) -> None:
    """Below the panels, the colours of the classes that are to be seen; of many, the first."""
    colors = class_colors(classes)
    there = sorted({int(i) for i in shown if i < len(classes)})[:MOST_IN_A_LEGEND]
    handles = [Patch(facecolor=colors[i], edgecolor="0.4", label=drawn(short(classes[i]))) for i in there]
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(LEGEND_COLUMNS, len(handles)), frameon=False
        )


def short(name: str) -> str:
    """A class's name, of several the first, in letters that fit over a box."""
    return textwrap.shorten(name.split(",")[0], 18, placeholder="…")


def _name(panel: Axes, box: np.ndarray, text: str, color: Any) -> None:
    """Beside the box, and within the image."""
    left, top, right, _ = box - 0.5
    (first, last), (bottom, upper) = panel.get_xlim(), panel.get_ylim()
    to_the_left = left > first + 0.55 * (last - first)
    bright = float(np.dot(color, (0.3, 0.59, 0.11))) > 0.6
    above = top - upper > 0.12 * (bottom - upper)
    panel.text(
        right if to_the_left else left, top, drawn(text), fontsize=6.5, color="black" if bright else "white", clip_on=True,
        ha="right" if to_the_left else "left", va="bottom" if above else "top",
        bbox=dict(facecolor=color, edgecolor="none", pad=0.8),
    )  # fmt: skip
