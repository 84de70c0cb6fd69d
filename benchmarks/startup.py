"""How long until something is there? `make benchmark` times what a person waits for before anything begins.

Each command is started anew, as a person starts it, some times in turn with the others; the first round, whose files
come from disk, does not count.
"""

import os
import statistics
import subprocess
import sys
import time

import torch
from page import of_other_machines, write
from speed import machine, measured, where

from ffvit.system.files import ROOT

ROUNDS = 5
# What `make benchmark` was given, and would be taken by the `make` that is timed here.
OF_MAKE = {"EXPERIMENT", "DATASET", "JOBS", "RUNS_PER_GPU", "PROFILE", "DEVICE", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
NOTE = (
    "Wall time of a process from its start to its end, medians of 5 rounds after one that does not count. The pipeline with "
    "nothing to do is that of digits, whose runs and figures are there; a table is made of the records that came with the "
    "project. Within: whether the median is in its budget."
)
TABLE = (
    "from ffvit.evidence.records import load_records; from ffvit.settings.experiment import load_experiment; "
    "from ffvit.studies.study_tables import study; print(study(load_experiment('digits'), load_records('digits')))"
)
# What it is, its budget in seconds, the command.
CASES: list[tuple[str, float, list[str]]] = [
    ("import ffvit", 0.3, [sys.executable, "-c", "import ffvit"]),
    ("ffvit --help", 0.5, [sys.executable, "-m", "ffvit", "--help"]),
    ("make reproduce, with nothing to do", 1.5, ["make", "reproduce"]),
    ("a table from records", 3.0, [sys.executable, "-c", TABLE]),
]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_MAKE}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    here = machine(torch.device("cpu"))
    subprocess.run(["make", "reproduce"], cwd=ROOT, env=environment(), check=True)  # so that there is nothing to do
    rounds = [[seconds(command) for *_, command in CASES] for _ in range(ROUNDS + 1)][1:]
    rows = [
        {
            "machine": where(here),
            "what": name,
            "budget (s)": f"{budget:.1f}",
            "it took (s)": f"{statistics.median(took):.2f}",
            "lowest to highest": f"{min(took):.2f} to {max(took):.2f}",
            "within": "yes" if statistics.median(took) <= budget else "no",
            "measured": measured(here),
        }
        for (name, budget, _), took in zip(CASES, zip(*rounds))
    ]
    write("startup", "How long until something is there?", rows + of_other_machines("startup", rows), NOTE)


if __name__ == "__main__":
    main()
