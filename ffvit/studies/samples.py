"""Notebook 02, its images: as they are stored, and as the model sees them in training. A kind of target is one line of a table."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ffvit.data.dense.examples import Annotated, TrainExamples
from ffvit.data.images import BadImage, train_transform
from ffvit.data.splits import Splits, first_images
from ffvit.settings.config import Config
from ffvit.studies import overlays


class Sample(NamedTuple):
    stored: PIL.Image.Image
    true: Any  # its target, as the task has it
    seen: Tensor  # (C, H, W), normalised
    learned: Any  # the target that goes with it


class Look(NamedTuple):
    """How samples of a task are made and shown."""

    samples: Callable[[Splits, Config, int], Iterator[Sample]]
    draw: Callable[[Axes, Any, list[str]], None]  # a target, over its image
    below: bool  # whether the target is drawn over what the model sees, too
    side: float  # of a picture, in inches


def figure(splits: Splits, config: Config, count: int = 8) -> Figure:
    """The first training images that can be read: as they are stored (top) and as the model sees them in one epoch (bottom)."""
    look = LOOKS[config.task]
    shown = list(look.samples(splits, config, count))
    size = (look.side * len(shown), 2 * look.side + 0.3)
    figure, axes = plt.subplots(2, len(shown), figsize=size, squeeze=False, layout="constrained")
    for top, bottom, sample in zip(*axes, shown):
        overlays.show(top, sample.stored)
        look.draw(top, sample.true, splits.classes)
        overlays.show(bottom, np.clip(sample.seen.permute(1, 2, 0).numpy() * config.std + config.mean, 0, 1))
        if look.below:
            look.draw(bottom, sample.learned, splits.classes)
    return figure


def _labelled(splits: Splits, config: Config, count: int) -> Iterator[Sample]:
    transform = train_transform(config)
    for image, label in first_images(splits.train, config, count):
        yield Sample(image, label, transform(image), label)


def _annotated(splits: Splits, config: Config, count: int) -> Iterator[Sample]:
    images = Annotated(splits.train, config, config.task == "instance_segmentation", len(splits.classes))
    examples = TrainExamples(images)
    read = ((row, *images[row]) for row in range(len(images)))
    whole = ((row, image, true) for row, image, true in read if not isinstance(image, BadImage))
    for row, image, true in islice(whole, count):
        seen, learned, _ = examples[0, row, row]
        yield Sample(image, true, seen, learned)


def _class(panel: Axes, label: int, classes: list[str]) -> None:
    panel.set_title(overlays.short(classes[label]), fontsize=8, fontweight="normal", loc="center")


def _map(panel: Axes, classes_of_pixels: Tensor, classes: list[str]) -> None:
    overlays.draw_map(panel, classes_of_pixels, classes, over=True)


LOOKS = {
    "classification": Look(_labelled, _class, below=False, side=1.2),
    "detection": Look(_annotated, overlays.draw_objects, below=True, side=1.7),
    "instance_segmentation": Look(_annotated, overlays.draw_objects, below=True, side=1.7),
    "semantic_segmentation": Look(_annotated, _map, below=True, side=1.7),
}
