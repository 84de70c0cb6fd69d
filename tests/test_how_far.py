"""docs/how-far.md: what it says of tests and records is what they are."""

import pytest
from whole import put, whole

from ffvit.evidence import records
from ffvit.settings.experiment import load_experiment
from ffvit.studies import how_far

TESTS = """
@pytest.mark.parity("their code")
@pytest.mark.parametrize("n", [1])
def test_ours_is_theirs(shared, n): ...

def test_of_ours_alone(): ...
"""


def test_marked_tests_are_listed_with_whom_they_compare_with(tmp_path):
    (tmp_path / "test_a.py").write_text(TESTS)
    [row] = how_far.parity(tmp_path).to_dict("records")
    assert (row["held against"], row["claim"]) == ("their code", "ours is theirs")
    assert "test_a.py" in row["test"] and "skipped" in row["also needs"]


@pytest.fixture
def one_record(tmp_path, monkeypatch):
    """digits with one record, of two GPUs."""
    record = whole(load_experiment("digits").config("ff"))
    record["hardware"] |= {"gpu": "A GPU", "processes": 2}
    put(tmp_path, record)
    load = records.load_records
    monkeypatch.setattr(how_far, "load_records", lambda name: load(name, tmp_path / "results"))
    return record


def test_what_was_recorded_is_told_with_its_size_and_the_rest_as_never(one_record):
    there, none = how_far.sizes(["digits", "imagenet"]).to_dict("records")
    assert there["recorded"] == "1 of 12" and there["on"] == "A GPU"
    assert there["parameters"] == f"{one_record['model']['parameters']:,}" and there["pixels"] == "8"
    assert none["recorded"] == "0 of 8" and none["pixels"] == "**never recorded**"


def test_each_way_to_train_is_counted(one_record):
    found = {row["training"]: row for row in how_far.circumstances(["digits"]).to_dict("records")}
    assert found["on several GPUs, which NCCL connects"]["records"] == "1 of 1"
    assert found["in fp16"]["records"] == "0 of 1" and "never" in found["in fp16"][""]
    assert found["on a GPU"][""] == ""
