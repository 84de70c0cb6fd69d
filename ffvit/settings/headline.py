"""The number by which weights are best, models are compared and tables speak, of each task."""

from typing import NamedTuple


class Headline(NamedTuple):
    name: str  # in scores and records; in a history, validation_<name>
    label: str  # in words, with its unit


HEADLINES = {
    "classification": Headline("top1_percent", "top-1 (%)"),
    "detection": Headline("box_ap_percent", "box AP (%)"),
    "instance_segmentation": Headline("mask_ap_percent", "mask AP (%)"),
    "semantic_segmentation": Headline("miou_percent", "mIoU (%)"),
}


def headline_of(settings: dict) -> Headline:
    """Of a run, by its settings as they were written down, today or earlier."""
    return HEADLINES[settings.get("task", "classification")]


def last_validation(run: dict) -> float:
    """The headline of the validation images after the last epoch of a run or trial, in percent."""
    return run["history"][-1][f"validation_{headline_of(run['config']).name}"]
