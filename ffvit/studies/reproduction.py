"""Notebook 12: how the runs of this machine compare with the records that came with the project."""

import math
import statistics
from collections import Counter

import pandas as pd
from scipy import stats

from ffvit.evidence.belonging import OTHER_IMAGES, OTHER_SETTINGS, experiment_images, last_weights, unlike
from ffvit.evidence.measured import NOT_RUN, commit, headline, machine, overlap
from ffvit.evidence.seed_statistics import LEVEL, interval
from ffvit.settings.experiment import Experiment
from ffvit.studies.study_tables import in_words

SAME_WEIGHTS, SAME_ACCURACY = "same weights", "same accuracy to the digit"
WITHIN, OUTSIDE = "within the spread of seeds", "outside the spread of seeds"
NO_SPREAD, NOT_RECORDED = "no spread to judge by", "not recorded"
# From alike to unlike.
VERDICTS = (SAME_WEIGHTS, SAME_ACCURACY, WITHIN, NO_SPREAD, OUTSIDE, OTHER_IMAGES, NOT_RECORDED)


def table(experiment: Experiment, recorded: list[dict], own: list[dict]) -> pd.DataFrame:
    """A row for each run of this machine, beside the recorded run of the same model and seed; of today's settings, both.

    Runs of other images than the experiment's have a row that says so, and are compared with nothing.
    """
    images = experiment_images(experiment, [*recorded, *own])
    recorded = [r for r in recorded if not unlike(r, experiment, images)]
    rows = []
    for mine in own:
        why = unlike(mine, experiment, images)
        if why == OTHER_SETTINGS:
            continue
        theirs = next((r for r in recorded if r["run_id"] == mine["run_id"]), None)
        rows.append(
            {
                "Run": mine["run_id"],
                "Model": in_words(experiment.variants[mine["config"]["name"]]),
                "Seed": mine["config"]["seed"],
                "Recorded top-1 (%)": f"{headline(theirs):.2f}" if theirs else NOT_RECORDED,
                "Here top-1 (%)": f"{headline(mine):.2f}",
                "Here it is": why or verdict(mine, theirs, recorded),
                "Recorded with": _where(theirs) if theirs else "",
                "Here with": _where(mine),
            }
        )
    return pd.DataFrame(
        rows or [{"Model": NOT_RUN, "Here it is": "no run of this experiment was made on this machine"}]
    )


def verdict(mine: dict, theirs: dict | None, recorded: list[dict]) -> str:
    """One of VERDICTS, for runs of the same images.

    The spread is the 95 % prediction interval of one more run, by the recorded seeds of the model.
    """
    if theirs is None:
        return NOT_RECORDED
    weights = last_weights(mine)
    if weights and weights == last_weights(theirs):
        return SAME_WEIGHTS
    if headline(mine) == headline(theirs):
        return SAME_ACCURACY
    seeds = [headline(r) for r in recorded if r["config"]["name"] == mine["config"]["name"]]
    if interval(seeds) is None:
        return NO_SPREAD
    n, t = len(seeds), stats.t.ppf((1 + LEVEL) / 2, len(seeds) - 1)
    reach = t * statistics.stdev(seeds) * math.sqrt(1 + 1 / n)
    return WITHIN if abs(headline(mine) - statistics.mean(seeds)) <= reach else OUTSIDE


def summary(found: pd.DataFrame) -> str:
    """One line: "12 runs made here: 12 same weights.\""""
    counted = Counter(found["Here it is"])
    words = [f"{counted[v]} {v}" for v in VERDICTS if counted[v]]
    return f"{len(found)} runs made here: {', '.join(words)}." if words else "No run of this experiment was made here."


def sources(recorded: list[dict], own: list[dict]) -> str:
    """Where the numbers of the table come from."""
    return f"Recorded: came with the project. Here: trained on this machine.{overlap([*recorded, *own])}"


def _where(record: dict) -> str:
    versions = ", ".join(
        f"{name} {record['versions'][name]}" for name in ("torch", "timm") if name in record["versions"]
    )
    return f"{machine(record)}, {versions}, commit {commit(record)}"
