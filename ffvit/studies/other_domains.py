"""Notebook 20: the same blocks on text. The report (arXiv:2105.02723) leaves domains other than images to future work.

Text is laid out as an image of one row of patches (ffvit.data.embedded), so that nothing else of a run changes.
"""

from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.linear_model import LogisticRegression

from ffvit.data.embedded import SYMBOLS
from ffvit.data.splits import Splits
from ffvit.evidence.drawing import bars, finish, mean_and_seeds, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured
from ffvit.evidence.tables import captioned
from ffvit.settings.experiment import Experiment
from ffvit.studies.claim_checks import close
from ffvit.studies.predictions import BySeed, measured_beside, taken_off, top1_less

ORDER = "order"  # the comparison with and without learned positions


class Anchors(NamedTuple):
    """What a reader of less than the text gets right, in percent of the test texts."""

    chance: float  # always the most frequent kind
    letters: float  # a linear classifier of how often each symbol stands in a text, wherever it stands


def examples(splits: Splits) -> pd.DataFrame:
    """A test text of each kind."""
    labels = np.asarray(splits.test["label"])
    texts = {name: splits.test[int(np.flatnonzero(labels == i)[0])]["image"] for i, name in enumerate(splits.classes)}
    shown = {"Kind": [*texts], "Definition, as far as it is read": [read(np.asarray(t)) for t in texts.values()]}
    return captioned(pd.DataFrame(shown), "A test text of each kind")


def read(image: np.ndarray) -> str:
    """The text of an image, (rows, places)."""
    return "".join(SYMBOLS[column.argmax()] if column.any() else "" for column in image.T)


def anchors(splits: Splits) -> Anchors:
    """Fitted to the training texts, scored on the test texts."""
    (x, y), (x_test, y_test) = (_counts(part) for part in (splits.train, splits.test))
    classifier = LogisticRegression(solver="newton-cholesky").fit(x, y)  # in 5 steps; the default takes 800
    return Anchors(100 * np.bincount(y_test).max() / len(y_test), 100 * float(classifier.score(x_test, y_test)))


def accuracy(experiment: Experiment, found: dict[str, Measured], known: Anchors) -> pd.DataFrame:
    """One row a model, and what less than the text gets right."""
    column = f"{experiment.scope} top-1 (%)"
    rows = [
        {"Model": "the most frequent kind", "Learned positions": "", "Params": "", column: f"{known.chance:.2f}"},
        {"Model": "counts of symbols, linear", "Learned positions": "", "Params": "", column: f"{known.letters:.2f}"},
    ]
    for name, variant in experiment.variants.items():
        mine = found.get(name)
        rows.append(
            {
                "Model": variant.label,
                "Learned positions": "no" if variant.comparison == ORDER else "yes",
                "Params": f"{mine.parameters:,}" if mine else "",
                column: str(mine) if mine else NOT_RUN,
            }
        )
    return pd.DataFrame(rows)


def predictions(experiment: Experiment, found: dict[str, Measured], known: Anchors) -> pd.DataFrame:
    """Prediction beside measurement: differences in points with 95 % intervals over paired seeds."""
    ff, vit = experiment.pairs()[0]
    unplaced = {variant.of: variant.name for variant in experiment.of(ORDER)}
    limit = close()
    ours = {name: m.percent for name, m in found.items()}
    loss = {name: _points(found, name, unplaced[name]) for name in (ff, vit)}
    asked = [
        ("FF only − counts of symbols > 0", [v - known.letters for v in ours.get(ff, [])], 0.0, True),
        ("ViT − counts of symbols > 0", [v - known.letters for v in ours.get(vit, [])], 0.0, True),
        (f"ViT − FF only ≤ {limit:g}, the report's own distance", [*_points(found, vit, ff).values()], limit, False),
        ("ViT − ViT without learned positions > 0", [*loss[vit].values()], 0.0, True),
        (
            "what ViT loses without them − what FF only loses > 0",
            [*taken_off(loss[vit], loss[ff]).values()],
            0.0,
            True,
        ),
    ]
    rows = [{"Prediction (points)": words, **measured_beside(points, at, above)} for words, points, at, above in asked]
    return pd.DataFrame(rows)


def figure(
    experiment: Experiment, found: dict[str, Measured], known: Anchors, image: PIL.Image.Image, kind: str
) -> Figure:
    """Left, what a model sees of one text, cut into its patches; right, accuracy with and without learned positions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="constrained", width_ratios=[1.15, 1])
    width = experiment.config(experiment.pairs()[0][0]).model_args["patch_size"][1]
    pixels = np.asarray(image)
    used = int(np.flatnonzero(pixels.any(axis=1)).max()) + 1  # below, no symbol of this text
    left.imshow(pixels[:used], cmap="Greys_r", interpolation="nearest", aspect="auto")
    left.set_xticks(np.arange(0, pixels.shape[1], width) - 0.5, labels=[])
    left.set_yticks(range(used), labels=["␣" if s == " " else s for s in SYMBOLS[:used]], fontsize=7)
    left.tick_params(axis="y", length=0)
    left.grid(True, axis="x", color="0.8", lw=0.6)
    left.set(xlabel=f"place in the text; a token every {width}, between the lines")
    left.set_title(f"One text ({drawn(kind)}) as its image", loc="left")
    places = {"": 0.0, ORDER: 1.0}
    for name, variant in experiment.variants.items():
        if name in found:
            aside = -0.12 if (variant.of or name) == experiment.pairs()[0][0] else 0.12
            mean_and_seeds(right, places[variant.comparison] + aside, found[name].percent, style_of(experiment, name))
    for value, words, line in (
        (known.chance, "the most frequent kind", ":"),
        (known.letters, "counts of symbols", "--"),
    ):
        right.axhline(value, color="0.5", lw=1, ls=line, label=words)
    right.set(xlim=(-0.5, 1.5), ylim=(0, 100), ylabel=f"{drawn(experiment.scope)} top-1 (%)")
    right.set_xticks([*places.values()], labels=["as they are", "without learned positions"])
    right.set_title("Who reads what", loc="left")
    finish(right)
    looks = {name: style_of(experiment, name) for name in experiment.pairs()[0]}
    handles = [
        Line2D([], [], ls="", color=color, marker=marker, markersize=6.5, label=drawn(experiment.variants[name].label))
        for name, (color, _, marker) in looks.items()
    ]
    handles += [*right.get_legend_handles_labels()[0], *bars(figure)]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _counts(part) -> tuple[np.ndarray, np.ndarray]:
    """How often each symbol stands in each text, and the kinds."""
    counts = [np.asarray(image).sum(axis=1) / 255 for image in part["image"]]
    return np.stack(counts), np.asarray(part["label"])


def _points(found: dict[str, Measured], first: str, second: str) -> BySeed:
    return top1_less(found[first], found[second]) if {first, second} <= found.keys() else {}
