"""What was aimed at for a step, beside what speed.csv has: a table of docs/speed.md, made by `make readme`.

An aim is judged by the fastest way to run ours; where that was not measured on a machine, by the fastest of the other forms,
which is named.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from ffvit.system.files import ROOT

BASE, TINY = "ff_base_patch16_224", "ff_tiny_patch16_224"
OF_THE_LIMIT, PUBLISHED, EAGER = "% of the limit", "times published", "times eager"


class Aim(NamedTuple):
    least: float
    unit: str  # EAGER: of a compiled step, beside the eager one of the same form
    model: str
    step: str = "training"
    precision: str = "bf16"


AIMS = {
    "GPU": [
        Aim(40, OF_THE_LIMIT, BASE),
        Aim(50, OF_THE_LIMIT, BASE),  # wanted
        Aim(3, PUBLISHED, BASE),
        Aim(25, OF_THE_LIMIT, TINY),
    ],
    "CPU": [
        Aim(75, OF_THE_LIMIT, TINY),
        Aim(1.25, PUBLISHED, TINY),
        Aim(1, PUBLISHED, TINY, precision="fp32"),
        Aim(1.3, EAGER, TINY, "inference"),
        Aim(1.3, EAGER, TINY, "inference", "fp32"),
    ],
}


def rows(folder: Path = ROOT / "benchmarks") -> list[dict[str, str]]:
    with (folder / "speed.csv").open(newline="") as opened:
        measured = [row for row in csv.DictReader(opened) if row["share of the limit"]]
    machines = sorted({row["machine"] for row in measured}, reverse=True)
    return [
        row(aim, machine, [row for row in measured if row["machine"] == machine])
        for machine in machines
        for aim in AIMS[machine.partition(":")[0]]
    ]


def row(aim: Aim, machine: str, measured: list[dict[str, str]]) -> dict[str, str]:
    """measured: the rows of this machine."""
    same = [r for r in measured if (r["model"], r["step"], r["precision"]) == (aim.model, aim.step, aim.precision)]
    published = [r for r in same if (r["form"], r["run"]) == ("published", "eager")]
    ours = [r for r in same if r["form"] == "ours"] or [r for r in same if r["form"] != "published"]
    compiled = [r for r in ours if r["run"] != "eager"]
    best = max((compiled if aim.unit == EAGER else ours), key=share, default=None)
    beside = published
    if aim.unit == EAGER and best:
        beside = [r for r in ours if r["run"] == "eager" and r["form"] == best["form"]]
    told = {
        "machine": machine,
        "aim": f"{aim.model.partition('_patch')[0]}, {aim.step}, {aim.precision}: at least {aim.least:g} {aim.unit}",
        "as a share of the limit": "",
        "measured": "not yet",
        "by": "",
        "verdict": "",
    }
    if not best or not (beside or aim.unit == OF_THE_LIMIT):
        return told
    if aim.unit == OF_THE_LIMIT:
        reached, wanted = share(best), aim.least
    else:
        reached, wanted = speed(best) / speed(beside[0]), aim.least * share(beside[0])
    return told | {
        "as a share of the limit": f"{wanted:.0f} %",
        "measured": f"{reached:.1f} %" if aim.unit == OF_THE_LIMIT else f"{reached:.2f} times",
        "by": f"{best['form']}, {best['run']}",
        "verdict": "reached" if reached >= aim.least else "missed",
    }


def share(row: dict[str, str]) -> float:
    """In percent."""
    return float(row["share of the limit"].removesuffix(" %"))


def speed(row: dict[str, str]) -> float:
    """In images/ms."""
    return float(row["batch"]) / float(row["ms a step"])
