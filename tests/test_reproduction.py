"""A reader's runs beside the records: the same, within the spread of seeds, or outside, and never written over them."""

import copy

import pytest

from ffvit.evidence.records import load_records
from ffvit.settings.experiment import load_experiment
from ffvit.studies import reproduction
from ffvit.studies.reproduction import (
    NO_SPREAD,
    NOT_RECORDED,
    OTHER_IMAGES,
    OUTSIDE,
    SAME_ACCURACY,
    SAME_WEIGHTS,
    WITHIN,
)

DIGITS = load_experiment("digits")
RECORDED = load_records("digits")


def here(record, top1=None, weights="", fingerprint="", **changes):
    """The run of a record, as another machine may have made it."""
    own = copy.deepcopy(record)
    if top1 is not None:
        own["results"]["top1_percent"] = top1
    if top1 is not None or weights:
        own["weights_sha256"] = {"last.safetensors": weights or "0" * 64}
    if fingerprint:
        own["dataset"]["fingerprint"] = fingerprint
    return own | changes


FIRST = RECORDED[0]
ALIKE = [r for r in RECORDED if r["config"]["name"] == FIRST["config"]["name"]]


@pytest.mark.parametrize(
    "own, recorded, verdict",
    [
        (here(FIRST), RECORDED, SAME_WEIGHTS),
        (here(FIRST, weights="f" * 64), RECORDED, SAME_ACCURACY),
        (here(FIRST, top1=FIRST["results"]["top1_percent"] + 0.01), RECORDED, WITHIN),
        (here(FIRST, top1=1.0), RECORDED, OUTSIDE),
        (here(FIRST, top1=99.99), ALIKE[:1], NO_SPREAD),
        (here(FIRST, fingerprint="other"), RECORDED, OTHER_IMAGES),
        (here(FIRST, run_id="ff-seed99"), RECORDED, NOT_RECORDED),
        (here(FIRST, run_id="ff-seed99", fingerprint="other"), RECORDED, OTHER_IMAGES),
    ],
)
def test_a_run_is_told_how_it_compares(own, recorded, verdict):
    found = reproduction.table(DIGITS, recorded, [own])
    assert found["Here it is"].tolist() == [verdict]
    assert reproduction.summary(found) == f"1 runs made here: 1 {verdict}."


def test_the_spread_is_where_one_more_run_is_expected():
    # Alike, they have none; of 90, 91 and 92: t of 2 degrees of freedom is 4.303, times sd 1 times sqrt(4/3): 91 ± 4.97.
    recorded = [here(r, top1=100.0) for r in ALIKE]
    assert reproduction.verdict(here(FIRST, top1=99.7, weights="a"), recorded[0], recorded) == NO_SPREAD
    recorded = [here(r, top1=value) for r, value in zip(ALIKE, (90.0, 91.0, 92.0))]
    assert reproduction.verdict(here(FIRST, top1=95.9, weights="a"), recorded[0], recorded) == WITHIN
    assert reproduction.verdict(here(FIRST, top1=96.0, weights="a"), recorded[0], recorded) == OUTSIDE


def test_runs_of_other_settings_are_not_compared_and_those_of_other_images_with_nothing():
    other = here(FIRST, config=FIRST["config"] | {"epochs": 3})
    assert reproduction.table(DIGITS, RECORDED, [other])["Model"].tolist() == ["not run"]
    mixed = [here(FIRST, fingerprint="mine"), here(ALIKE[1], fingerprint="other")]
    assert reproduction.table(DIGITS, [], mixed)["Here it is"].tolist() == [NOT_RECORDED, OTHER_IMAGES]


def test_variants_of_a_model_are_told_apart():
    ablations, recorded = load_experiment("digits-ablations"), load_records("digits-ablations")
    table = reproduction.table(ablations, recorded, recorded)
    assert len(table) == len(recorded) == len(set(table["Run"])) and "FF only, 192 wide" in set(table["Model"])


def test_both_machines_stand_in_the_row():
    hardware = FIRST["hardware"] | {"cpu": "Another Processor"}
    row = reproduction.table(DIGITS, RECORDED, [here(FIRST, hardware=hardware)]).iloc[0]
    assert "Another Processor" in row["Here with"] and "Another Processor" not in row["Recorded with"]
    assert FIRST["versions"]["torch"] in row["Recorded with"] and FIRST["git"]["commit"][:10] in row["Recorded with"]


def test_nothing_run_here_says_so():
    found = reproduction.table(DIGITS, RECORDED, [])
    assert found["Model"].tolist() == ["not run"]
    assert reproduction.summary(found) == "No run of this experiment was made here."
