"""Notebook 21, where a detector is wrong: the objects it missed, its false alarms and what they are mistaken for.

A detection is right as in COCO's score at IoU 0.5 (arXiv:1405.0312): of an image and class, the surest takes the object that it
overlaps best; a second one of the same object is a false alarm. One that lies in a crowd is neither right nor wrong.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torchvision.ops import box_iou

from ffvit.data.splits import Splits
from ffvit.evidence.tables import captioned
from ffvit.settings.config import Config
from ffvit.studies.predicted import SURE
from ffvit.tasks.detection import Detections

IOU = 0.5  # from there on a box is an object's
NEAR = 0.1  # from there on it is near one
WRONG_CLASS, LOOSE, NEITHER = "another class", "a box that does not fit", "neither class nor box fits"
SECOND, NOTHING = "the same object again", "nothing there"
KINDS = (WRONG_CLASS, LOOSE, NEITHER, SECOND, NOTHING)  # of false alarms


class Error(NamedTuple):
    """A missed object, or a false alarm."""

    row: int  # of the split
    box: np.ndarray  # x1, y1, x2, y2
    label: int
    score: float = 0.0  # of a false alarm
    kind: str = ""  # of a false alarm
    true: int = -1  # of a false alarm for an object of another class: its class


class Errors(NamedTuple):
    right: int  # detections of at least SURE
    missed: list[Error]  # that no detection overlaps by IOU with the right class, whatever its score; the largest first
    alarms: list[Error]  # the surest first


def errors(detections: Detections, splits: Splits) -> Errors:
    """Of all test images."""
    found: list[Errors] = []
    unread = {image.index for image in detections.bad_images}
    readable = [row for row in range(len(splits.test)) if row not in unread]
    truths = splits.test.select_columns(["objects"])
    for row, said in zip(readable, detections.found):
        found.append(of_image(row, said, truths[row]["objects"]))
    return Errors(
        right=sum(e.right for e in found),
        missed=sorted((error for e in found for error in e.missed), key=lambda error: -_area(error.box)),
        alarms=sorted((error for e in found for error in e.alarms), key=lambda error: -error.score),
    )


def of_image(row: int, said: dict[str, Any], true: dict[str, list]) -> Errors:
    """said: boxes (n, 4) of x1, y1, x2, y2, scores (n,), labels (n,). true: see ffvit.data.dense.objects.OBJECTS."""
    boxes = torch.tensor(true["bbox"], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    crowd, labels = np.array(true["iscrowd"], bool), np.array(true["category"], int)
    iou = box_iou(said["boxes"].float(), boxes).numpy()
    same = said["labels"].numpy()[:, None] == labels
    fits = iou >= IOU
    free = ~crowd
    right, alarms = 0, []
    for i in np.argsort(-said["scores"].numpy(), kind="stable"):
        score = float(said["scores"][i])
        candidates = np.flatnonzero(fits[i] & same[i] & free)
        if len(candidates):
            free[candidates[iou[i, candidates].argmax()]] = False
            right += score >= SURE
        elif not (same[i] & crowd & (_inside(said["boxes"][i].numpy(), boxes.numpy()) >= IOU)).any():
            kind, of = _kind(iou[i] * ~crowd, same[i], labels)
            alarms.append(Error(row, said["boxes"][i].numpy(), int(said["labels"][i]), score, kind, of))
    unseen = np.flatnonzero(~(fits & same).any(axis=0) & ~crowd)
    return Errors(right, [Error(row, boxes[j].numpy(), int(labels[j])) for j in unseen], alarms)


def counts(found: Sequence[Errors], subjects: Sequence[tuple[Config, Any]]) -> pd.DataFrame:
    """How many detections of a score from SURE on are right, and what the others are; a row a run."""
    rows = []
    for (config, _), of_run in zip(subjects, found):
        kinds = Counter(alarm.kind for alarm in of_run.alarms if alarm.score >= SURE)
        told = {f"false: {kind}": kinds[kind] for kind in KINDS}
        of = {"model": config.label, "seed": config.seed, "right": of_run.right}
        rows.append(of | told | {"objects missed": len(of_run.missed)})
    return captioned(pd.DataFrame(rows), f"What detections of a score from {100 * SURE:.0f} % on are")


def conclusion(found: Sequence[Errors], evaluations: Sequence[Detections], classes: list[str]) -> str:
    """What was found over all runs, in sentences whose numbers are computed, each on a line of its own."""
    alarms = Counter(alarm.kind for of_run in found for alarm in of_run.alarms if alarm.score >= SURE)
    missed = Counter(error.label for of_run in found for error in of_run.missed)
    right, wrong, objects = sum(of_run.right for of_run in found), alarms.total(), sum(e.objects for e in evaluations)
    said = [f"Detections with a score of at least {100 * SURE:.0f} %: {right + wrong:,}."]
    if right + wrong:
        said.append(f"Of them, {100 * right / (right + wrong):.0f} % are right.")
    if wrong:
        [(kind, count)] = alarms.most_common(1)
        said.append(f"The others are most often of this kind: {kind}, {count:,} of {wrong:,}.")
    said.append(f"Of {objects:,} objects, {missed.total():,} are found by no detection.")
    if missed:
        [(label, count)] = missed.most_common(1)
        said.append(f"Those are most often of the class {classes[label]}: {count:,}.")
    return "\n".join(said)


def _kind(iou: np.ndarray, same: np.ndarray, labels: np.ndarray) -> tuple[str, int]:
    """What a false alarm is, and the class of what it is mistaken for."""
    if (same & (iou >= IOU)).any():
        return SECOND, -1
    if (iou >= IOU).any():
        return WRONG_CLASS, int(labels[iou.argmax()])
    if (same & (iou >= NEAR)).any():
        return LOOSE, -1
    return (NEITHER if (iou >= NEAR).any() else NOTHING), -1


def _inside(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which share of a box lies in each of the others."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return sides.clip(min=0).prod(axis=1) / max(_area(box), 1e-9)


def _area(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))
