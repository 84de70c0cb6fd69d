"""Notebook 09, its tables of detection and segmentation: the README's numbers beside what was measured by its schedules.

Pan et al. 2022 (AAAI), arXiv:2105.14217; reported numbers are read in the README of its code. A measured number stands beside a
reported one where it is of the same images and of the published model, with no argument changed.
"""

from typing import NamedTuple

import pandas as pd

from ffvit.evidence.artefacts import records_in_use
from ffvit.evidence.measured import NOT_RUN, Measured, measured
from ffvit.evidence.reported import load_reported
from ffvit.settings.experiment import load_experiment
from ffvit.studies.lit_stages import PAPER, PUBLISHED, printed
from ffvit.system.files import EXPERIMENTS

METRICS = {"box_ap": "Box AP", "mask_ap": "Mask AP", "miou": "mIoU"}  # in reported.csv; in records <metric>_percent


class Table(NamedTuple):
    place: str  # in the README
    experiment: str  # that trains by its schedule


# By the name of the file that shows each, which is also timm's for the head.
TABLES = {
    "retinanet": Table("RetinaNet, COCO 1x", "coco-lit"),
    "mask_rcnn": Table("Mask R-CNN, COCO 1x", "coco-lit"),
    "semantic_fpn": Table("Semantic FPN, ADE20K", "ade20k-lit"),
}


def measured_of(head: str, results_dir: str = "") -> dict[str, Measured]:
    """What was measured of the published models with this head, by the backbone's name in reported.csv."""
    name = TABLES[head].experiment
    if not (EXPERIMENTS / f"{name}.toml").is_file():
        return {}
    experiment = load_experiment(name)
    found = measured(experiment, records_in_use(experiment, results_dir)).values()
    unchanged = {m.model: m for m in found if not m.records[0]["config"].get("model_args")}
    return {model: unchanged[f"{head}_{model}"] for model in PUBLISHED if f"{head}_{model}" in unchanged}


def table(head: str, found: dict[str, Measured]) -> pd.DataFrame:
    """One of the README's tables, of a head of TABLES; found: what was measured, see measured_of."""
    rows: dict[str, dict] = {}
    for r in load_reported():
        if (r.paper, r.place) == (PAPER, TABLES[head].place):
            row = rows.setdefault(r.model, {"Model": PUBLISHED[r.model][0]})
            if r.metric == "parameters":
                row["Params reported"] = printed(r)
            else:
                m = found.get(r.model)
                row[f"{METRICS[r.metric]} reported (%)"] = printed(r)
                row[f"{METRICS[r.metric]} measured (%)"] = str(m.also(f"{r.metric}_percent")) if m else NOT_RUN
            row["Note"] = "; ".join(filter(None, [row.pop("Note", ""), r.note]))
    result = pd.DataFrame(rows.values())
    return result.loc[:, (result != "").any()]
