"""What the published models cost, as data: counted.csv, so that a table of records need not build a model.

`make readme` counts them again on the models themselves, and a test holds the file to them.
"""

import csv
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

CSV = Path(__file__).with_name("counted.csv")


@dataclass(frozen=True)
class Counted:
    """Of one model at 224 px and 1000 classes."""

    parameters: int
    without_classifier: int  # parameters
    macs: int  # multiply-adds of one image
    patches: str | None  # what mixes them: "ff" or "attention"; None outside of the 2x2 grid
    features: str | None


def counted(model: str, **model_args: object) -> Counted | None:
    """The costs of a model by timm's name; None for one that the file does not have."""
    return _load().get(key(model, model_args))


def key(model: str, model_args: dict) -> str:
    return f"{model} {json.dumps(model_args, sort_keys=True)}"


@cache
def _load() -> dict[str, Counted]:
    found = {}
    with open(CSV, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            given: dict[str, Any] = {name: int(row[name]) for name in ("parameters", "without_classifier", "macs")}
            given |= {name: row[name] or None for name in ("patches", "features")}
            found[key(row["model"], json.loads(row["model_args"]))] = Counted(**given)
    return found
