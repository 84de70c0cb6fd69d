"""What is there of an experiment and what is missing is told as it is, and what is missing can be chosen from."""

import json

import pytest
import torch
from whole import of_images, put, put_own, whole

from ffvit.__main__ import main as ffvit
from ffvit.commands import missing, status
from ffvit.commands.status import BEGUN, IMAGES, MISSING, OTHER, RECORDED, TRAINED, UNSCORED
from ffvit.evidence import records
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.same_run import code_of
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, RESULTS
from ffvit.training import checkpoint


@pytest.fixture
def experiment():
    """Two models, the second one of a comparison and with seeds of its own."""
    digits = load_experiment("digits")
    of_few = {"name": "10", "label": "10 %", "set": {"epochs": 6}}
    compare = {"data": {"title": "Fewer training images", "seeds": [0], "vary": {"epochs": [of_few]}}}
    changes = {"models": {"ff": digits.models["ff"]}, "seeds": [0, 1], "planned": [], "compare": compare}
    return Experiment(**digits.model_dump() | changes)


@pytest.fixture
def look(experiment, tmp_path):
    """Where each run stands, by run id."""
    return lambda: {s.config.run_id: s for s in status.standings(experiment, tmp_path / "results", tmp_path / "runs")}


def write_record(folder, config, **settings):
    """results/<experiment>/<run id>.json, as it was written for these settings."""
    return put(folder, whole(config, **settings))


def begin_run(folder, config, epochs=0, **changes):
    """runs/<experiment>/<run id>/ with a checkpoint after so many epochs."""
    run = folder / "runs" / config.experiment / config.run_id
    run.mkdir(parents=True, exist_ok=True)
    state = {"model": {"weight": torch.zeros(2)}}
    checkpoint.save_state(run / "checkpoints", 10 * epochs, state, {"state": {}}, {"history": [{}] * epochs})
    (run / "config.json").write_text(json.dumps(config.to_dict() | changes))
    return run


def finish_run(folder, config, epochs=0, **changes):
    run = begin_run(folder, config, epochs, **changes)
    (run / "training.json").write_text("{}")
    return run


def states(look):
    return {run_id: s.state for run_id, s in look().items()}


def test_every_run_of_a_new_experiment_is_missing(look):
    assert states(look) == {"ff-seed0": MISSING, "ff-seed1": MISSING, "ff_10-seed0": MISSING}


def test_record_counts_whatever_its_machine_seed_label_and_dataset_folder(experiment, look, tmp_path):
    write_record(tmp_path, experiment.config("ff", 1), num_workers=3, compile=True, label="another", dataset="folder")
    assert states(look) == {"ff-seed0": MISSING, "ff-seed1": RECORDED, "ff_10-seed0": MISSING}


def test_record_with_other_settings_counts_as_missing(experiment, look, tmp_path):
    write_record(tmp_path, experiment.config("ff"), epochs=7)
    write_record(tmp_path, experiment.config("ff", 1), of_another_version=1)
    assert states(look) == {"ff-seed0": OTHER, "ff-seed1": OTHER, "ff_10-seed0": MISSING}
    assert status.report(experiment, list(look().values()), "x").splitlines()[-2].startswith("0 of 3 runs recorded")


def test_record_older_than_a_setting_had_its_default(experiment, look, tmp_path):
    write_record(tmp_path, experiment.config("ff"), clip_grad="absent")
    assert look()["ff-seed0"].state == RECORDED


def test_recorded_runs_of_this_repository_are_found():
    digits = load_experiment("digits")
    found = status.standings(digits)
    recorded = {path.stem for path in (RESULTS / "digits").glob("*.json")}
    assert {s.config.run_id for s in found if s.state == RECORDED} == recorded


@pytest.mark.parametrize("content", [b"", b'{"run_id": "ff', b"[]", b"\xff\xfe", b'{"config": {}}'])
def test_damaged_record_is_named_with_the_cure_and_the_listing_goes_on(experiment, look, tmp_path, content):
    write_record(tmp_path, experiment.config("ff")).write_bytes(content)
    write_record(tmp_path, experiment.config("ff", 1))
    assert states(look) == {"ff-seed0": MISSING, "ff-seed1": RECORDED, "ff_10-seed0": MISSING}
    [problem] = look()["ff-seed0"].problems
    assert "results/digits/ff-seed0.json: " in problem and problem.endswith(records.CURE)
    assert "ff-seed0.json" in status.report(experiment, list(look().values()), "x")


def test_begun_run_tells_the_epoch_that_its_newest_checkpoint_is_in(experiment, look, tmp_path):
    begin_run(tmp_path, experiment.config("ff"), 1)
    begin_run(tmp_path, experiment.config("ff"), 2)
    begin_run(tmp_path, experiment.config("ff_10"), 5)
    found = look()
    assert (found["ff-seed0"].state, found["ff-seed0"].detail) == (BEGUN, "epoch 3 of 18")
    assert (found["ff_10-seed0"].state, found["ff_10-seed0"].detail) == (BEGUN, "epoch 6 of 6")


def test_damaged_checkpoint_is_named_and_the_one_before_it_counts(experiment, look, tmp_path):
    config = experiment.config("ff")
    begin_run(tmp_path, config, 1)
    newest = begin_run(tmp_path, config, 2) / "checkpoints" / "00000020" / "progress.json"
    newest.write_text("{")
    found = look()["ff-seed0"]
    assert (found.state, found.detail) == (BEGUN, "epoch 2 of 18")
    assert "00000020: progress.json" in found.problems[0] and "from the checkpoint before" in found.problems[0]
    (newest.parent.parent / "00000010" / "manifest.json").unlink()
    found = look()["ff-seed0"]
    assert found.state == MISSING
    assert "is whole" in found.problems[0] and "delete the folder to start the run again" in found.problems[0]


def test_finished_run_without_a_record_is_not_scored(experiment, look, tmp_path):
    finish_run(tmp_path, experiment.config("ff"))
    write_record(tmp_path, experiment.config("ff"), epochs=7)  # of before, to be replaced
    assert look()["ff-seed0"].state == UNSCORED


def test_run_trained_and_scored_here_is_no_longer_missing_and_told_from_a_record_of_the_project(
    experiment, look, tmp_path
):
    finish_run(tmp_path, experiment.config("ff"))
    put_own(tmp_path, whole(experiment.config("ff")))
    write_record(tmp_path, experiment.config("ff", 1))
    found = look()
    assert (found["ff-seed0"].state, found["ff-seed1"].state) == (TRAINED, RECORDED)
    told = status.report(experiment, list(found.values()), "x")
    assert "1 of 3 runs recorded, 1 trained here; the rest:" in told and "\n  ff_10-seed0\n" in told


def test_record_of_older_code_is_told(experiment, look, tmp_path):
    for seed, code in ((0, code_of({"model": "ff_tiny_patch16_224"})), (1, "another")):
        file = write_record(tmp_path, experiment.config("ff", seed))
        file.write_text(json.dumps(json.loads(file.read_text()) | {"code": code}))
    found = look()
    assert [found[f"ff-seed{seed}"].state for seed in (0, 1)] == [RECORDED, RECORDED]
    told = status.report(experiment, list(found.values()), "x")
    assert "recorded 0\n" in told and "recorded 1 (by older code)\n" in told


def test_run_trained_here_by_older_code_is_told(experiment, look, tmp_path):
    for seed, code in ((0, code_of({"model": "ff_tiny_patch16_224"})), (1, "another")):
        finish_run(tmp_path, experiment.config("ff", seed))
        put_own(tmp_path, whole(experiment.config("ff", seed)) | {"code": code})
    told = status.report(experiment, list(look().values()), "x")
    assert "trained here 0\n" in told and "trained here 1 (by older code)\n" in told


@pytest.mark.parametrize("make", [begin_run, finish_run])
def test_folder_of_a_run_with_other_settings_is_in_the_way(experiment, look, tmp_path, make):
    make(tmp_path, experiment.config("ff"), 1, base_lr=1.0)
    found = look()["ff-seed0"]
    assert found.state == OTHER and "holds a run with other settings: delete the folder" in found.problems[0]


@pytest.mark.parametrize("name", ["config.json", "training.json"])
def test_damaged_folder_of_a_run_is_named_with_the_cure(experiment, look, tmp_path, name):
    (finish_run(tmp_path, experiment.config("ff")) / name).write_bytes(b"\xff")
    found = look()["ff-seed0"]
    assert found.state == MISSING and f"runs/digits/ff-seed0/{name}: no valid JSON" in found.problems[0]
    assert found.problems[0].endswith("to start the run again")


def test_damaged_record_of_a_run_here_is_named_and_to_be_scored_again(experiment, look, tmp_path):
    (finish_run(tmp_path, experiment.config("ff")) / "record.json").write_text("{}")
    found = look()["ff-seed0"]
    assert found.state == UNSCORED and "runs/digits/ff-seed0/record.json: needs 'run_id'" in found.problems[0]


def test_run_here_of_other_images_than_the_records_is_named_with_the_cure_and_not_counted(experiment, look, tmp_path):
    for seed in (0, 1):
        finish_run(tmp_path, experiment.config("ff", seed))
        put_own(tmp_path, of_images(whole(experiment.config("ff", seed)), "mine"))
    assert states(look) == {"ff-seed0": TRAINED, "ff-seed1": TRAINED, "ff_10-seed0": MISSING}  # nothing else to go by
    write_record(tmp_path, experiment.config("ff"))
    found = look()
    assert [found[f"ff-seed{seed}"].state for seed in (0, 1)] == [RECORDED, IMAGES]
    for seed in (0, 1):
        [problem] = found[f"ff-seed{seed}"].problems
        assert (
            f"runs/digits/ff-seed{seed} is in no table: its images are not those of results/digits/ff-seed0.json"
            in problem
        )
        assert (
            "fingerprints mine and 6bf8f15ad56789e3" in problem
            and "delete the folder to train on the others" in problem
        )
    told = status.report(experiment, list(found.values()), "x")
    assert "recorded 0\n" in told and "other images 1\n" in told and "1 of 3 runs recorded; the rest:" in told


def test_run_of_other_images_is_told_before_it_is_scored_and_while_it_trains(experiment, look, tmp_path):
    mine = of_images(whole(experiment.config("ff")), "mine")
    write_record(tmp_path, experiment.config("ff", 1))
    (finish_run(tmp_path, experiment.config("ff")) / "training.json").write_text(json.dumps(mine))
    assert look()["ff-seed0"].state == IMAGES
    run = begin_run(tmp_path, experiment.config("ff"), 1)
    (run / "training.json").unlink()
    state = {"model": {"weight": torch.zeros(2)}}
    checkpoint.save_state(run / "checkpoints", 99, state, {"state": {}}, {"history": [{}], "facts": mine})
    assert look()["ff-seed0"].state == IMAGES


def test_runs_here_of_different_images_are_named_where_nothing_is_recorded(experiment, look, tmp_path):
    for seed, images in ((0, "mine"), (1, "other")):
        finish_run(tmp_path, experiment.config("ff", seed))
        put_own(tmp_path, of_images(whole(experiment.config("ff", seed)), images))
    assert states(look) == {"ff-seed0": TRAINED, "ff-seed1": IMAGES, "ff_10-seed0": MISSING}


def test_missing_trains_nothing_beside_a_run_of_other_images_and_says_why(experiment, tmp_path, monkeypatch):
    digits = load_experiment("digits")
    found = [status.Standing(c, IMAGES if c.run_id == "vit-seed1" else MISSING, "", ["why"]) for c in digits.configs()]
    monkeypatch.setattr(missing, "standings", lambda *_: found)
    with pytest.raises(InputError, match="^why$"):
        missing.main(["digits"])


def test_copy_under_another_seed_and_files_of_no_run_are_named(experiment, look, tmp_path):
    first = whole(experiment.config("ff"))
    put(tmp_path, first)
    copied = first | {"run_id": "ff-seed1", "config": first["config"] | {"seed": 1}}
    put(tmp_path, copied)
    put(tmp_path, whole(experiment.config("ff", 7)))
    (tmp_path / "results/digits/notes.json").write_text("{}")
    found = look()
    assert found["ff-seed1"].state == MISSING
    assert "ff-seed1.json is a copy of " in found["ff-seed1"].problems[0]
    others = status.others(experiment, tmp_path / "results", tmp_path / "runs")
    assert ["notes.json: needs 'run_id'" in others[0], "ff-seed7.json is of a further seed" in others[1]] == [
        True,
        True,
    ]
    assert "ff-seed7.json" in status.report(experiment, list(found.values()), "x", others)


def test_an_experiment_of_the_same_name_and_other_shapes_has_no_record(tmp_path):
    text = (EXPERIMENTS / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(
        text.replace('scope = "digits"', 'scope = "ImageNet"').replace("depth = 3", "depth = 2")
    )
    other = load_experiment(tmp_path / "digits.toml")
    found = status.standings(other, runs_dir=tmp_path)
    assert other.scope == "ImageNet" and {s.state for s in found} == {OTHER}
    assert "0 of 12 runs recorded" in status.report(other, found, "x")


@pytest.mark.parametrize("name", ["cifar10", "cifar10-small", "digits", "imagenet"])
def test_listing_is_aligned_and_at_most_100_columns_wide(name, tmp_path):
    experiment = load_experiment(name)
    text = status.report(experiment, status.standings(experiment, tmp_path, tmp_path), name)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    states = [line for line in lines if "  missing " in line]
    assert len(states) == len(experiment.variants) and len({line.index("  missing ") for line in states}) == 1
    listed = " ".join(lines[lines.index("Not recorded:") :]).split()
    assert {config.run_id for config in experiment.configs()} <= set(listed)
    titles = list(experiment.parts().values())
    assert [line for line in lines if line in titles] == titles


def test_listing_says_each_state_of_a_model_once_and_how_to_go_on(experiment, look, tmp_path):
    write_record(tmp_path, experiment.config("ff"))
    begin_run(tmp_path, experiment.config("ff", 1), 4)
    assert status.report(experiment, list(look().values()), "digits").splitlines() == [
        "Handwritten digits, 8x8 pixels: its runs, by seed",
        "",
        "The models at one shape",
        "  ff     FF only  recorded 0",
        "                  begun 1 (epoch 5 of 18)",
        "",
        "Fewer training images",
        "  ff_10  FF only  missing 0",
        "",
        "Not recorded:",
        "  ff-seed1 ff_10-seed0",
        "",
        "1 of 3 runs recorded; the rest:",
        "  make reproduce EXPERIMENT=digits  all that was not run here, with tables and figures",
        "  make missing EXPERIMENT=digits    what is missing, nothing else",
    ]


def test_status_succeeds_and_unknown_experiment_is_named(capsys):
    assert ffvit(["status", "digits"]) == 0
    assert "runs recorded" in capsys.readouterr().out
    assert ffvit(["status", "digitz"]) == 2
    assert "did you mean 'digits'" in capsys.readouterr().err
    assert ffvit(["status"]) == 2


def test_runs_are_chosen_by_model_seed_and_part(experiment):
    def chosen(models=(), seeds=(), part="", **settings):
        return [
            config.run_id for config in missing.chosen_runs(experiment, list(models), list(seeds), part, **settings)
        ]

    assert chosen() == ["ff-seed0", "ff-seed1", "ff_10-seed0"]
    assert chosen(seeds=[0]) == ["ff-seed0", "ff_10-seed0"]
    assert chosen(["ff"], [1], "grid", num_workers=2, dataset="folder") == ["ff-seed1"]
    for wrong, message in (
        ({"models": ["fff"]}, "digits has no model 'fff'; did you mean 'ff'"),
        ({"seeds": [7]}, "no run of these models, seeds and part"),
    ):
        with pytest.raises(InputError, match=message):
            chosen(**wrong)


@pytest.mark.parametrize("command", ["missing", "tune"])
def test_wrong_arguments_are_told(command, capsys):
    for arguments, message in (
        (["digitz"], "did you mean 'digits'"),
        (["digits", "epochs=1"], "'epochs' decides a result"),
        (["digits", "--jobs", "-1"], "must not be negative"),
        (["experiments/digits.toml"], "give the name of a file in experiments/"),
    ):
        assert ffvit([command, *arguments]) == 2
        assert message in capsys.readouterr().err
