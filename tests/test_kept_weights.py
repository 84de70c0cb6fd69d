"""Weights that come with the project: whole, small, those of the records beside them, and left alone by runs of one's own."""

import json
import re
import shutil

import pytest
from made import made_run

from ffvit.__main__ import main
from ffvit.evidence import kept_weights, subjects
from ffvit.evidence.records import read_record
from ffvit.evidence.scoring import load_model
from ffvit.settings import config as settings
from ffvit.settings.experiment import load_experiment
from ffvit.studies import trained_models
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, sha256_of
from ffvit.tasks.task import task_of

DIGITS = load_experiment("digits")
INDEXES = sorted(RESULTS.glob("*/weights/checksums.json"))
KEPT = [(index.parent, name, said) for index in INDEXES for name, said in json.loads(index.read_text()).items()]
BY_NAME = pytest.mark.parametrize(
    ("folder", "name", "said"), KEPT, ids=lambda value: value if isinstance(value, str) else ""
)
MOST_OF_ALL = 21_000_000  # bytes: every clone has them


@pytest.mark.parametrize(
    "name, message",
    [
        ("ff_atention", "digits has no model 'ff_atention', nor has timm; did you mean 'ff_attention'"),
        ("vit_tinny_patch16_224", "nor has timm; did you mean 'vit_tiny_patch16_224'"),
        ("zzz", "nor has timm; known: attention_only, ff, ff_attention, vit"),
    ],
)
def test_a_model_that_does_not_exist_is_told_with_the_nearest_of_the_experiment_and_of_timm(name, message):
    subjects.need_model(DIGITS, "ff_attention")
    subjects.need_model(DIGITS, "vit_tiny_patch16_224")
    for look in (subjects.need_model, lambda *of: subjects.weights_to_score(*of, [0])):
        with pytest.raises(InputError, match=re.escape(message)):
            look(DIGITS, name)
    with pytest.raises(InputError, match=re.escape(message)):
        subjects.weights_to_score(DIGITS, name, [0], checkpoint="w.pth")


@BY_NAME
def test_each_is_what_its_record_ended_with(folder, name, said):
    file = folder / f"{name}.safetensors"
    record = read_record(folder.parent / said["record"], folder.parent.name, name)
    assert sha256_of(file) == said["sha256"] == record["weights_sha256"]["last.safetensors"]
    assert file.stat().st_size == said["bytes"] <= kept_weights.MOST_BYTES


def test_all_of_them_are_small_and_none_lies_there_unnamed():
    files = list(RESULTS.glob("*/weights/*.safetensors"))
    assert len(files) == len(KEPT) >= 6
    assert sum(file.stat().st_size for file in files) < MOST_OF_ALL


@pytest.mark.parametrize("model", DIGITS.models)
def test_scored_again_they_give_their_record_image_for_image(model):
    config = DIGITS.config(model)
    record = read_record(RESULTS / f"digits/{model}-seed0.json", "digits", config.run_id)
    task = task_of(config)
    net = load_model(config, kept_weights.find(config), 10, "cpu")
    found = task.evaluate(net, task.eval_batches(task.load_splits(), "test"), 10)
    assert found.mistakes == record["results"]["mistakes"] and found.images == record["results"]["images"]


@pytest.fixture
def results(tmp_path):
    """A copy, to be spoilt."""
    shutil.copytree(RESULTS / "digits", tmp_path / "results/digits", ignore=shutil.ignore_patterns("trials"))
    return tmp_path / "results"


def test_damaged_and_missing_ones_are_refused_with_what_to_do(results):
    file = results / "digits/weights/ff-seed0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="ff-seed0.safetensors: sha256 is .* git checkout"):
        kept_weights.find(DIGITS.config("ff"), results)
    file.unlink()
    with pytest.raises(InputError, match="is missing: .*git checkout"):
        kept_weights.find(DIGITS.config("ff"), results)
    (results / "digits/weights/checksums.json").write_text("{")
    with pytest.raises(InputError, match="checksums of weights"):
        kept_weights.find(DIGITS.config("ff"), results)


def test_they_are_not_taken_for_a_run_with_other_settings(results):
    assert kept_weights.find(DIGITS.config("ff"), results)
    assert kept_weights.find(DIGITS.config("ff", epochs=7), results) is None
    assert kept_weights.find(DIGITS.config("ff", seed=9), results) is None


def test_a_run_of_ones_own_goes_first_and_without_one_they_are_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", tmp_path)
    _, weights = trained_models.first(DIGITS, "ff")
    assert weights.name == "ff-seed0.safetensors" and "kept with the project" in trained_models.source(weights)
    record = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
    run = made_run(tmp_path / "digits", DIGITS.config("ff"), record)
    _, weights = trained_models.first(DIGITS, "ff")
    assert weights.resolve() == run / "last.safetensors" and "trained here" in trained_models.source(weights)
    with pytest.raises(InputError, match="holds no run; train it first"):
        trained_models.first(load_experiment("digits-lit"), "none")


def test_a_file_of_ones_own_in_a_folder_of_that_name_is_none_of_them(tmp_path):
    own = tmp_path / "weights/linear-tiny-checkpoint.pth"
    assert not kept_weights.is_kept(own)
    assert trained_models.source(own) == "Weights: linear-tiny-checkpoint.pth, a file that was given; not trained here."


def test_weights_are_kept_of_recorded_small_runs_alone(results, tmp_path, monkeypatch, capsys):
    record = json.loads((RESULTS / "digits/ff-seed1.json").read_text())
    run = made_run(tmp_path, DIGITS.config("ff", seed=1), record)
    assert main(["export", str(run), "--keep"]) == 2
    assert "record it first" in capsys.readouterr().err
    shutil.copy(run / "record.json", results / "digits/ff-seed1.json")
    kept = kept_weights.keep(run, results)
    assert kept_weights.find(DIGITS.config("ff", seed=1), results) == kept
    assert len(json.loads((kept.parent / "checksums.json").read_text())) == 5
    monkeypatch.setattr(kept_weights, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="1,000 are kept at most"):
        kept_weights.keep(run, results)
