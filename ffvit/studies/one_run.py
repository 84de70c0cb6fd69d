"""Notebooks 02 and 03: one run, its settings, its curves, its mistakes."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython import get_ipython
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ffvit.data.images import decode
from ffvit.data.splits import Splits, encoded
from ffvit.evidence.drawing import COLORS, DASHES
from ffvit.evidence.escape import drawn
from ffvit.evidence.tables import captioned
from ffvit.settings.config import Config
from ffvit.settings.given import config_from_dict
from ffvit.settings.headline import HEADLINES
from ffvit.studies.overlays import short, show
from ffvit.tasks.classification import Evaluation, confident_mistakes


def settings(config: Config) -> pd.DataFrame:
    """What a run is made of beside the defaults: first where it differs, then what else is switched on."""
    needed = ("experiment", "name", "label", "model", "dataset")  # these have no default
    values = config.to_dict()
    defaults = config_from_dict({name: values[name] for name in needed}).to_dict() | dict.fromkeys(needed, "")
    rows = [{"Setting": name, "Value": str(value), "Default": str(defaults[name])} for name, value in values.items()]
    table = pd.DataFrame(rows)
    table = table[(table["Value"] != table["Default"]) | ~table["Value"].isin(("", "None", "False", "0", "0.0"))]
    table = table.iloc[(table["Value"] == table["Default"]).argsort(kind="stable")].replace("None", "the model's own")
    return captioned(table, "Settings of the run: those that differ from the defaults first")


def curves(history: Sequence[dict]) -> Figure:
    """Losses and the task's headline of one run by epoch. Detectors have no loss of validation images."""
    frame = pd.DataFrame(history)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(frame.epoch, frame.train_loss, color=COLORS[0], label="training images, as changed")
    if "validation_loss" in frame:
        left.plot(frame.epoch, frame.validation_loss, color=COLORS[1], ls="--", label="validation images")
    left.set(title="Loss", xlabel="epoch")
    left.legend(frameon=False)
    scores = {h.label: f"validation_{h.name}" for h in HEADLINES.values() if f"validation_{h.name}" in frame}
    for (label, column), color, dashes in zip(scores.items(), COLORS[1:], DASHES[1:]):
        right.plot(frame.epoch, frame[column], color=color, ls=dashes, label=label)
    right.set(title=f"Validation {' and '.join(scores)}", xlabel="epoch")
    if len(scores) > 1:
        right.legend(frameon=False)
    for panel in (left, right):
        panel.grid(True)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


class LiveCurve:
    """Prints each line of a run as it comes and, in a notebook, draws its curves, again and again, in one place.

        with LiveCurve(run_dir) as live:
            launch(config, run_dir, live)

    A log gets the lines alone.
    """

    EVERY_S = 10  # drawing takes a third of a second from the run

    def __init__(self, run_dir: Path):
        self.history = run_dir / "history.json"
        self.display = None
        self.drawn = time.monotonic()

    def __enter__(self) -> "LiveCurve":
        return self

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        if time.monotonic() - self.drawn > self.EVERY_S:
            self.draw()

    def __exit__(self, *_) -> None:
        self.draw()

    def draw(self) -> None:
        self.drawn = time.monotonic()
        if not get_ipython() or not self.history.exists():
            return
        figure = curves(json.loads(self.history.read_text()))
        if self.display:
            self.display.update(figure)
        else:
            self.display = display(figure, display_id=True)
        plt.close(figure)


def scores(subjects: Sequence[tuple[Config, Any]], evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row a run."""
    rows = (
        {
            "model": config.label,
            "seed": config.seed,
            "test images": e.images,
            "top-1 (%)": round(e.top1_percent, 2),
            "top-5 (%)": round(e.top5_percent, 2),
            "loss": round(e.loss, 4),
        }
        for (config, _), e in zip(subjects, evaluations)
    )
    return captioned(pd.DataFrame(rows), "Scores on the test images")


def hardest(evaluations: Sequence[Evaluation], classes: list[str], most: int = 10) -> pd.DataFrame:
    """The classes with the lowest accuracy, mean over runs, the lowest first."""
    by_class = pd.DataFrame([e.per_class_percent for e in evaluations], columns=classes).mean().sort_values()
    table = by_class.round(1).rename_axis("class").reset_index(name="top-1 (%)").head(most)
    return captioned(table, "Accuracy on the test images by class, mean over runs, the lowest first")


def confusion(evaluations: Sequence[Evaluation], classes: list[str], most: int = 20) -> Figure:
    """Counts of predicted class by true class, added up over runs; of many classes, those with the most mistakes."""
    total = np.sum([e.confusion for e in evaluations], axis=0)
    mistakes = total.sum(axis=1) - np.diag(total)
    shown = np.arange(len(classes)) if len(classes) <= most else np.sort(np.argsort(-mistakes, kind="stable")[:most])
    counts = total[np.ix_(shown, shown)]
    names = [drawn(classes[i]) for i in shown]
    side = 2.0 + 0.35 * len(shown)
    figure, axes = plt.subplots(figsize=(side, side), layout="constrained")
    sns.heatmap(
        counts,
        ax=axes,
        annot=True,
        fmt="d",
        cmap="Blues",
        cbar=False,
        square=True,
        linewidths=0.5,
        xticklabels=names,
        yticklabels=names,
        mask=counts == 0,
    )
    axes.set(
        title=f"Images by true and predicted class, {len(evaluations)} run{'s' * (len(evaluations) > 1)}",
        xlabel="predicted",
        ylabel="true",
    )
    return figure


def mistakes(evaluation: Evaluation, splits: Splits, count: int = 8) -> Figure:
    """The wrong answers the model was surest of, as pictures."""
    indices = confident_mistakes(evaluation, count)
    figure, axes = plt.subplots(
        1, max(len(indices), 1), figsize=(1.5 * max(len(indices), 2), 2.0), squeeze=False, layout="constrained"
    )
    if not indices:
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "no mistakes", ha="center")
    test = encoded(splits.test)
    for panel, index in zip(axes[0], indices):
        row = test[index]
        name = short(splits.classes[evaluation.predictions[index]])
        true = short(splits.classes[row["label"]])
        show(
            panel,
            np.asarray(decode(row["image"], "RGB")),
            f"said {name} ({100 * evaluation.confidences[index]:.0f} %)\nis {true}",
        )
    return figure
