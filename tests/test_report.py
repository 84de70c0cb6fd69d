"""Records, tables and figures: reported and measured are never taken for one another, and all say where they come from."""

import functools
import json
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import hostile
import matplotlib.pyplot as plt
import mistune
import numpy as np
import pytest
import timm
import torch
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import load_file, save_file
from whole import RECORDED, of_images, put, put_own, whole

from ffvit.commands import score as score_command
from ffvit.commands import status
from ffvit.data.splits import load_splits
from ffvit.evidence import belonging, drawing, escape, records, tables
from ffvit.evidence.measured import everything, measured, overlap, sources
from ffvit.evidence.records import publish, write_record, write_trial
from ffvit.evidence.reported import load_reported
from ffvit.evidence.scoring import score, score_train
from ffvit.models import mixing
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import (
    architecture,
    lit_stages,
    mistakes,
    one_run,
    report_results,
    reproduction,
    study_plots,
    study_tables,
)
from ffvit.system import provenance
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, RESULTS, write_atomically
from ffvit.tasks.classification import Evaluation
from ffvit.training.train import train

MACHINE = {"device": "cpu", "gpu": None, "processes": 1, "cpu": "A Processor", "cpu_cores": 2}


def make_record(name, seed, top1, experiment="digits", **more):
    config = load_experiment(experiment).config(name, seed)
    epoch = {"epoch": 1, "train_loss": 2.0, "validation_loss": 1.5, "validation_top1_percent": top1}
    return {
        "run_id": config.run_id,
        "config": config.to_dict(),
        "model": {"name": config.model, "parameters": 1234, "macs": 5678, "patches": "ff", "features": "ff"} | more,
        "dataset": {"fingerprint": "0" * 16, "images": {}, "classes": 10},
        "history": [epoch, epoch | {"epoch": 2}],
        "results": {"images": 360, "top1_percent": top1},
        "duration_s": 1.0,
        "peak_memory_mb": 1,
        "started_at": "2026-01-01T00:00:00+00:00",
        "hardware": MACHINE,
        "versions": {},
        "git": {"commit": "abcdef0123456789", "dirty": False},
    }


DIGITS = [make_record("ff", 0, 97.0), make_record("ff", 1, 99.0)]


def test_measured_is_mean_and_sample_deviation_over_seeds():
    found = measured(load_experiment("digits"), DIGITS)
    assert list(found) == ["ff"]
    assert str(found["ff"]) == "98.00 ± 1.41 (n=2)"  # sqrt(((97 - 98)² + (99 - 98)²) / (2 - 1)) = 1.414
    assert measured(load_experiment("digits"), DIGITS[:1])["ff"].sd is None


def test_table1_repeats_the_report_and_keeps_blanks_blank():
    table = report_results.table1(load_experiment("digits"), {})
    printed = {r.model: r.value for r in load_reported() if r.place == "Table 1" and r.metric == "top1"}
    for (_, _, name), cell in zip(report_results.TABLE1, table["ImageNet top-1 reported (%)"]):
        assert cell == ("–" if printed[name] is None else f"{printed[name]:.1f}")


def test_a_number_of_digits_never_stands_in_an_imagenet_column():
    experiment = load_experiment("digits")
    table = report_results.table1(experiment, measured(experiment, DIGITS))
    for column in table.columns:
        holds = table[column].astype(str).str.contains("98.00").any()
        assert holds == (column == "digits top-1 measured (%)")
    assert set(table["ImageNet top-1 measured (%)"]) == {"not run", ""}


def test_an_imagenet_run_stands_beside_its_reported_number():
    experiment = load_experiment("imagenet")
    found = measured(experiment, [make_record("ff_tiny", 0, 60.5, "imagenet")])
    row = report_results.table1(experiment, found).iloc[2]
    assert row["ImageNet top-1 reported (%)"] == "61.4" and row["ImageNet top-1 measured (%)"] == "60.50 (n=1)"


def test_grid_leaves_the_fourth_cell_open_and_says_what_was_not_run():
    experiment = load_experiment("digits")
    table = report_results.grid_table(experiment, measured(experiment, DIGITS))
    fourth = table.iloc[3]
    assert (fourth["Patches mixed by"], fourth["Features mixed by"]) == ("feed-forward", "attention")
    assert fourth["ImageNet top-1 reported (%)"] == "never run" and fourth["digits top-1 measured (%)"] == "not run"


def test_models_table_counts_what_the_report_rounds():
    for row in architecture.models_table().itertuples():
        if row.parameters_reported_millions == row.parameters_reported_millions:  # not blank
            reported = row.parameters_reported_millions
            digits = 1 if reported < 10 else 0  # 5.7, 7.7 and 4.0 million; 62, 206 and 306 million
            tolerance = 0.051 if digits else 1  # the report cuts 86.57 to 86 and 306.54 to 306
            assert abs(row.parameters / 1e6 - reported) < tolerance


@pytest.mark.parametrize("form", ["csv", "md", "tex"])
def test_tables_carry_runs_commit_and_machine(form, tmp_path):
    experiment = load_experiment("digits")
    found = measured(experiment, DIGITS)
    tables.save(
        report_results.table1(experiment, found), tmp_path / f"t.{form}", caption="Table", source=sources(found)
    )
    text = (tmp_path / f"t.{form}").read_text()
    assert all(word in text for word in ("ff-seed0, ff-seed1", "abcdef0123", "A Processor", "recorded, 2 runs"))


def test_figures_carry_their_sources_and_are_the_same_file_again(tmp_path):
    experiment = load_experiment("digits")
    found = measured(experiment, DIGITS)
    for name in ("one", "two"):
        for kind, figure in {
            "curves": report_results.training_curves(experiment, found),
            "grid": report_results.grid_figure(experiment, found),
        }.items():
            drawing.save(figure, tmp_path / name / f"{kind}.png", source=sources(found))
        code, files = (
            architecture.source_code(mixing.Block),
            [tmp_path / name / file for file in ("code.svg", "code.png")],
        )
        architecture.save_code(code, *files, source="Source of ffvit.models.mixing.Block")
    for file in ("curves.png", "grid.png", "code.svg", "code.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "ff-seed1" in Image.open(tmp_path / "one/grid.png").info["Description"]
    assert "Source of ffvit.models.mixing.Block" in (tmp_path / "one/code.svg").read_text()
    assert Image.open(tmp_path / "one/code.png").info["Description"] == "Source of ffvit.models.mixing.Block"


def test_figure2_shows_every_line_of_the_code_within_its_borders(tmp_path):
    code = architecture.source_code(mixing.Branch, mixing.Block)
    architecture.save_code(code, tmp_path / "code.svg", source="")
    picture = ElementTree.parse(tmp_path / "code.svg").getroot()
    lines = picture.findall(".//{*}text")
    assert ["".join(line.itertext()).replace("\N{NO-BREAK SPACE}", " ") for line in lines[:-1]] == code.splitlines()
    assert float(lines[-2].get("y")) < float(picture.get("height"))
    assert max(map(len, code.splitlines())) * 0.602 * 14 < float(picture.get("width"))


def test_figure1_shows_the_layers_the_model_has():
    def layers(name):
        texts = [t.get_text() for t in architecture.architecture(timm.create_model(name)).axes[0].texts]
        return [t for t in texts if "(Features)" in t or "(Patches)" in t or t == "Transpose"]

    assert layers("ff_tiny_patch16_224") == [
        "Feed-Forward Layer (Features)", "Transpose", "Feed-Forward Layer (Patches)", "Transpose"
    ]  # fmt: skip
    assert layers("attention_only_tiny_patch16_224") == [
        "Attention (Patches)", "Transpose", "Attention (Features)", "Transpose"
    ]  # fmt: skip


def test_every_record_and_trial_that_came_with_the_project_is_whole():
    for folder in RESULTS.iterdir():
        assert [r["run_id"] for r in records.load_records(folder.name)] == sorted(f.stem for f in folder.glob("*.json"))
        assert len(records.load_trials(folder.name)) == len([*folder.glob("trials/*.json")])


def refused(file, message):
    """The record in a file, or one beside it, is refused: in one line, with the file and the cure."""
    with pytest.raises(InputError, match=message) as error:
        records.load_records(file.parent.name, file.parent.parent)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value) and "delete it" in str(error.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("git", None, "needs 'git'"),
        ("results", None, "needs 'results'"),
        ("history", [], "history must be of the epochs 1 to 18 in order"),
        ("history.17", None, "history must be of the epochs 1 to 18 in order"),
        ("history.3.epoch", 5, "history must be of the epochs 1 to 18 in order"),
        (
            "history.3.validation_top1_percent",
            101.0,
            "history.3.validation_top1_percent must be less than or equal to 100",
        ),
        ("history.3.train_loss", float("nan"), "history.3.train_loss must be a finite number"),
        ("config.seed", 1, "run_id must be ff-seed1 by config, got 'ff-seed0'"),
        ("config.name", "vit", "run_id must be vit-seed0 by config"),
        ("config.epochs", "18", "config.epochs must be a valid integer, got '18'"),
        ("config.model", "vit_tiny_patch16_224", "model.name must be 'vit_tiny_patch16_224' by config"),
        ("config.experiment", "cifar10", "config.experiment must be 'digits' by where the file lies, got 'cifar10'"),
        ("results.top1_percent", 150.0, "results.top1_percent must be less than or equal to 100, got 150"),
        ("results.top1_percent", -5, "results.top1_percent must be greater than or equal to 0, got -5"),
        ("results.top1_percent", True, "results.top1_percent must be a valid number, got True"),
        ("results.top1_percent", float("inf"), "results.top1_percent must be a finite number, got inf"),
        ("results.top1_percent", 98.8, "results.top1_percent must be 75.0 by confusion, got 98.8"),
        ("results.top5_percent", "99", "results.top5_percent must be a valid number"),
        ("results.confusion.0.0", 28, "results.images must be 361, the sum of confusion, got 360"),
        ("results.confusion.0.0", -1, "results.confusion.0.0 must be greater than or equal to 0"),
        ("results.confusion.0", None, "results.confusion must have 10 rows of 10 counts"),
        ("results.mistakes", "0:1 5:2", "results.top1_percent must be 99.44444444444444 by mistakes, got 75.0"),
        ("results.mistakes", "5:1 5:2", "results.mistakes must rise from 0 to 359"),
        ("results.mistakes", "360:1", "results.mistakes must rise from 0 to 359"),
        ("results.mistakes", "0:10", "results.mistakes must rise from 0 to 359 at most, and be of 10 classes"),
        ("results.mistakes", "zero", "results.mistakes must match pattern"),
        ("results.per_class_percent.0", 80.0, "results.per_class_percent of class 0 must be 75.0 by confusion"),
        ("results.images", 0, "results.images must be greater than or equal to 1"),
        ("dataset.images.test", 370, "results.images must be 370"),
        ("dataset.classes", 9, "dataset.class_names must be 9 by dataset.classes"),
        ("dataset.fingerprint", 7, "dataset.fingerprint must be a valid string"),
        ("model.parameters", 1.5, "model.parameters must be a valid integer"),
        ("hardware.processes", 0, "hardware.processes must be greater than or equal to 1"),
    ],
)
def test_a_record_that_was_edited_is_refused_by_file_key_and_cure(tmp_path, key, value, message):
    record = whole(load_experiment("digits").config("ff"), right=27)
    *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
    place = functools.reduce(lambda place, part: place[part], path, record)
    if value is None:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "digits/ff-seed0.json"
    write_atomically(file, json.dumps(record))
    refused(file, message)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "no valid JSON"),
        (b'{"run_id": "ff', "no valid JSON"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "no valid JSON"),
        (b"[" * 10**6, "maximum recursion depth"),
        (b'{"a": ' * 10**6, "maximum recursion depth"),
        (b'{"run_id": ' + b"9" * 10**5 + b"}", "no valid JSON"),
    ],
)
def test_a_file_that_is_no_record_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "digits/ff-seed0.json"
    write_atomically(file, content)
    refused(file, message)


def test_a_file_too_large_for_a_record_and_one_without_end_are_not_read(tmp_path):
    (tmp_path / "digits").mkdir()
    file = tmp_path / "digits/ff-seed0.json"
    with open(file, "wb") as opened:
        opened.truncate(2**30)
    refused(file, "1,073,741,824 bytes are too many")
    file.unlink()
    file.symlink_to("/dev/zero")
    refused(file, "no regular file")
    file.unlink()
    os.mkfifo(file)
    refused(file, "no regular file")


def test_a_record_under_another_name_is_refused(tmp_path):
    file = put(tmp_path, whole(load_experiment("digits").config("ff")))
    refused(file.rename(file.with_stem("ff-seed3")), "run_id must be 'ff-seed3' by where the file lies, got 'ff-seed0'")


@pytest.mark.parametrize("name, seed", [("ff", 1), ("vit", 0)])
@pytest.mark.parametrize("kept", ["history", "weights_sha256"])
def test_a_copy_under_another_seed_or_model_is_refused_by_naming_both(tmp_path, name, seed, kept):
    digits = load_experiment("digits")
    put(tmp_path, whole(digits.config("ff")))
    record = whole(digits.config(name, seed))
    put(tmp_path, record | {kept: whole(digits.config("ff"))[kept]})
    with pytest.raises(InputError, match=f"{name}-seed{seed}.json is a copy of .*ff-seed0.json: their .* are the same"):
        records.load_records("digits", tmp_path / "results")


def test_runs_of_one_model_and_seed_that_are_scored_otherwise_have_the_same_weights_and_are_no_copies(tmp_path):
    digits = load_experiment("digits")
    weights = whole(digits.config("ff"))["weights_sha256"]
    other = whole(digits.config("ff_tiny_patch16_224", model_args=digits.config("ff").model_args, crop_pct=0.9))
    for record in (whole(digits.config("ff")), other | {"weights_sha256": weights}):
        put(tmp_path, record)
    assert len(records.load_records("digits", tmp_path / "results")) == 2


def test_a_run_of_this_machine_that_copies_a_record_under_another_seed_is_refused_and_its_own_record_is_none():
    digits = load_experiment("digits")
    recorded = whole(digits.config("ff"))
    own = recorded | {"trained_here": True}
    assert belonging.in_use(digits, [recorded], [own]) == [recorded]
    own |= {"run_id": "ff-seed1", "config": digits.config("ff", 1).to_dict()}
    with pytest.raises(InputError, match="runs/digits/ff-seed1/record.json is a copy of results/digits/ff-seed0.json"):
        belonging.in_use(digits, [recorded], [own])


def test_a_trial_cut_short_and_a_copied_one_are_refused(tmp_path):
    digits = load_experiment("digits")
    first = whole(digits.config("ff"))
    del first["results"]
    short = whole(digits.config("ff", base_lr=0.5)) | {"history": first["history"][:5]}
    folder = tmp_path / "digits/trials"
    write_atomically(folder / "a b.json", json.dumps(first))
    assert len(records.load_trials("digits", tmp_path)) == 1
    for other, message in (
        (short, "c.json: history must be of the epochs 1 to 18"),
        (first, "c.json is a copy of .*a b.json"),
    ):
        write_atomically(folder / "c.json", json.dumps(other))
        with pytest.raises(InputError, match=message):
            records.load_trials("digits", tmp_path)
    mine = of_images(whole(digits.config("ff", base_lr=0.5)), "mine")
    write_atomically(folder / "c.json", json.dumps(mine))
    with pytest.raises(InputError, match="a b.json and .*c.json are of different images"):
        records.load_trials("digits", tmp_path)


def test_a_run_that_never_began_gets_no_record_but_the_command_that_begins_it(tmp_path):
    with pytest.raises(InputError, match="holds no run; train it first, with make reproduce EXPERIMENT="):
        score_command.main([str(tmp_path)])


def test_unfinished_run_gets_no_record_but_the_command_that_goes_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no finished run; go on with: python -m ffvit train --config"):
        score_command.main([str(tmp_path)])


def own_record(folder, **changes):
    put_own(folder, whole(load_experiment("digits").config("ff"), right=27) | changes)
    return records.load_own("digits", folder / "runs")


TWO = [whole(load_experiment("digits").config("ff", seed), right=27) for seed in (0, 1)]


def test_a_run_of_this_machine_is_shown_where_it_gave_another_result_and_says_so(tmp_path):
    other = whole(load_experiment("digits").config("ff"), right=18)["results"]
    own = own_record(
        tmp_path, results=other, history=RECORDED["history"], weights_sha256={"last.safetensors": "another"}
    )
    shown = belonging.in_use(load_experiment("digits"), TWO, own)
    assert [r["run_id"] for r in shown] == sorted(r["run_id"] for r in TWO)
    [mine] = [r for r in shown if belonging.origin(r) == "trained here"]
    assert (mine["run_id"], mine["results"]["top1_percent"]) == ("ff-seed0", 50.0)


@pytest.mark.parametrize("change", [{}, {"started_at": "later"}, {"weights_sha256": {"last.safetensors": "another"}}])
def test_a_run_that_repeats_a_record_changes_nothing_that_is_shown(tmp_path, change):
    shown = belonging.in_use(load_experiment("digits"), TWO, own_record(tmp_path, **change))
    assert shown == TWO


def test_a_run_of_other_images_or_settings_takes_no_records_place(tmp_path):
    digits = load_experiment("digits")
    for other in (of_images(whole(digits.config("ff")), "mine"), whole(digits.config("ff"), epochs=3)):
        own = own_record(tmp_path, **other)
        assert belonging.in_use(digits, TWO, own) == TWO
        assert belonging.in_use(digits, [], own) == (own if other["config"]["epochs"] == 18 else [])


def test_a_folder_of_another_name_holds_no_run_of_the_experiment(tmp_path):
    file = put_own(tmp_path, whole(load_experiment("digits").config("ff")))
    for name in ("first", "ff-seed0-longer"):
        file = file.parent.rename(file.parent.with_name(name)) / "record.json"
        assert records.load_own("digits", tmp_path / "runs") == []
    file.parent.rename(file.parent.with_name("ff-seed9"))
    with pytest.raises(InputError, match="ff-seed9/record.json: run_id must be 'ff-seed9'"):
        records.load_own("digits", tmp_path / "runs")


def test_no_mean_mixes_images_of_the_project_or_of_one_machine():
    digits = load_experiment("digits")
    for more in ({}, {"trained_here": True}):
        first, other = (r | more for r in (TWO[0], of_images(TWO[1], "mine")))
        with pytest.raises(InputError, match="ff-seed0 and ff-seed1 of digits are of different images .fingerprints"):
            measured(digits, [other, first])
    mine = of_images(TWO[1], "mine") | {"trained_here": True}
    assert measured(digits, [mine, TWO[0]])["ff"].run_ids == ["ff-seed0"]


def test_of_a_subset_that_nobody_recorded_other_classes_tell_other_images():
    study = load_experiment("cifar10-small")
    few = whole(study.config("ff_third")) | {"trained_here": True}
    grid = whole(study.config("ff"))
    assert set(everything(study, [grid, few])) == {"ff", "ff_third"}
    few["dataset"] = few["dataset"] | {"class_names": list("abcdefghij"), "fingerprint": "mine"}
    assert set(everything(study, [few, grid])) == {"ff"}


def test_an_experiment_of_the_same_name_and_other_shapes_shows_nothing_of_the_records(tmp_path):
    text = (EXPERIMENTS / "digits.toml").read_text()
    (tmp_path / "digits.toml").write_text(
        text.replace('scope = "digits"', 'scope = "ImageNet"').replace("depth = 3", "depth = 2")
    )
    other, found = load_experiment(tmp_path / "digits.toml"), records.load_records("digits")
    trials = records.load_trials("digits")
    assert other.scope == "ImageNet" and len(found) == 12 and trials
    assert everything(other, found) == {} and belonging.in_use(other, found, found) == []
    tables_of = [
        report_results.table1(other, measured(other, found)),
        report_results.grid_table(other, measured(other, found)),
        study_tables.study(other, found),
        study_tables.pairs(other, found),
        study_tables.trials(other, trials),
        mistakes.agreement(other, found),
        reproduction.table(other, found, found),
        lit_stages.measured_table(other, found),
    ]
    top1 = {f"{r['results']['top1_percent']:.2f}" for r in found}
    shown = "".join(table.to_csv() for table in tables_of)
    assert "98.80" not in shown and not [value for value in top1 if value in shown]
    assert not study_plots.learning_rates(other, trials).axes[0].lines
    assert not study_plots.accuracy_by_cost(other, found).axes[3].lines


def test_imagenet_grid_shows_the_tiny_models_alone():
    experiment = load_experiment("imagenet")
    records = [make_record("ff_tiny", 0, 61.0, "imagenet"), make_record("ff_large", 0, 71.0, "imagenet")]
    table = report_results.grid_table(experiment, measured(experiment, records))
    assert table["ImageNet top-1 measured (%)"].tolist() == ["not run", "61.00 (n=1)", "not run", "not run"]


@pytest.mark.parametrize("change", [{"epochs": 5}, {"experiment": "cifar10"}, {"name": "ffff"}])
def test_a_run_that_is_not_the_experiments_is_in_no_mean(change):
    other = make_record("ff", 1, 99.0)
    other["config"] |= change
    [found] = measured(load_experiment("digits"), [DIGITS[0], other]).values()
    assert found.run_ids == ["ff-seed0"]


@pytest.mark.parametrize(
    "splits, told",
    [
        ({"allow_overlap": False}, ""),
        ({}, "allow_overlap is set, and splits may share images"),
        (
            {"validation_split": "validation", "test_split": "validation"},
            "validation and test images are both 'validation'",
        ),
        ({"validation_split": "train"}, "training and validation images are both 'train'"),
        ({"test_split": "train"}, "training and test images are both 'train'"),
        ({"test_split": "train", "test_fraction": 0.1, "allow_overlap": False}, ""),
    ],
)
def test_images_in_two_roles_are_told_under_every_table(splits, told):
    overlapping = Experiment(**load_experiment("digits").model_dump())
    overlapping.settings.update({"allow_overlap": True} | splits)
    both = [whole(overlapping.config("ff", seed)) for seed in (0, 1)]
    for source in (
        sources(measured(overlapping, both)),
        study_tables.trial_sources(both),
        reproduction.sources(both, []),
    ):
        assert source.endswith(f". Images in two roles: {told}." if told else ".")
        assert ("two roles" in source) == bool(told)
    if told:
        other = whole(load_experiment("digits").config("vit"))
        assert overlap([*both, other]) == f" Images in two roles: {told} (ff-seed0, ff-seed1)."


def test_our_reading_of_attention_only_stands_beside_its_number():
    table = report_results.grid_table(load_experiment("digits"), {})
    assert "our reading counts 4,039,360" in table.iloc[2]["Note"]


@pytest.fixture
def trial(tmp_path):
    config = load_experiment("digits").config("ff", epochs=1, warmup_epochs=0, max_train_images=64, batch_size=32)
    train(config, tmp_path / "run")
    return config, tmp_path / "run"


def test_a_record_is_written_beside_its_run(trial):
    config, folder = trial
    splits = load_splits(config)
    evaluation = score(config, folder / "last.safetensors", splits)
    assert write_record(folder, evaluation, splits.fingerprint) == folder / "record.json"


def test_a_run_that_asks_for_it_has_its_training_images_scored_not_augmented_and_others_have_not(trial):
    config, folder = trial
    splits = load_splits(config)
    weights, evaluation = folder / "last.safetensors", score(config, folder / "last.safetensors", splits)
    assert score_train(config, weights, splits) is None
    of_train = score_train(replace(config, score_train=True), weights, splits)
    assert of_train.images == 64
    swapped = replace(splits, test=splits.train)  # the training images in the place of the test images
    assert of_train.top1_percent == score(config, weights, swapped).top1_percent
    written = [write_record(folder, evaluation, splits.fingerprint, known).read_text() for known in (None, of_train)]
    without, there = (json.loads(text)["results"].get("train") for text in written)
    assert without is None
    assert there == {"images": 64, **of_train.metrics} and there["top1_percent"] == of_train.top1_percent


def test_a_trial_is_never_published_and_a_record_never_written_over(trial, tmp_path):
    config, folder = trial
    splits = load_splits(config)
    write_record(folder, score(config, folder / "last.safetensors", splits), splits.fingerprint)
    with pytest.raises(InputError, match="other settings than digits"):
        publish(folder, tmp_path)
    _finished(folder, whole(load_experiment("digits").config("ff"), right=27))
    file = publish(folder, tmp_path)
    assert file == tmp_path / "digits/ff-seed0.json" and json.loads(file.read_text())["results"]["images"] == 360
    with pytest.raises(InputError, match="ff-seed0.json is there already: delete it first"):
        publish(folder, tmp_path)


def _finished(folder, record):
    """A run's folder with this record."""
    for name, content in (("config.json", record["config"]), ("training.json", record), ("record.json", record)):
        write_atomically(folder / name, json.dumps(content))


def test_a_run_of_other_images_and_a_copy_are_never_published(tmp_path):
    digits, results = load_experiment("digits"), tmp_path / "results"
    first = whole(digits.config("ff"))
    put(tmp_path, first)
    _finished(tmp_path / "run", of_images(whole(digits.config("vit")), "mine"))
    with pytest.raises(
        InputError, match="run is not recorded: its images are not those of results/digits/ff-seed0.json"
    ):
        publish(tmp_path / "run", results)
    _finished(tmp_path / "run", whole(digits.config("ff", 1)) | {"history": first["history"]})
    with pytest.raises(InputError, match="run/record.json is a copy of results/digits/ff-seed0.json"):
        publish(tmp_path / "run", results)
    assert [path.name for path in (results / "digits").iterdir()] == ["ff-seed0.json"]
    _finished(tmp_path / "run", whole(digits.config("vit")))
    assert publish(tmp_path / "run", results).name == "vit-seed0.json"


def test_a_trial_of_other_images_is_not_kept(tmp_path):
    digits, results = load_experiment("digits"), tmp_path / "results"
    put(tmp_path, whole(digits.config("ff")))
    _finished(tmp_path / "good", whole(digits.config("vit", base_lr=0.5)))
    assert write_trial(tmp_path / "good", results) == results / "digits/trials/good.json"
    _finished(tmp_path / "bad", of_images(whole(digits.config("vit", base_lr=0.6)), "mine"))
    with pytest.raises(InputError, match="bad is not recorded: its images are not those of"):
        write_trial(tmp_path / "bad", results)
    assert len(records.load_trials("digits", results)) == 1


def test_a_trial_writes_over_no_other_one_and_has_a_name(tmp_path, monkeypatch):
    digits, results = load_experiment("digits"), tmp_path / "results"
    monkeypatch.chdir(tmp_path)
    for folder, base_lr in (("one/a", 0.5), ("two/a", 0.6)):
        (tmp_path / folder).parent.mkdir()
        _finished(tmp_path / folder, whole(digits.config("vit", base_lr=base_lr)))
    monkeypatch.chdir(tmp_path / "one/a")
    for _ in range(2):  # itself again
        assert write_trial(Path(), results) == results / "digits/trials/a.json"
    with pytest.raises(InputError, match=r"a.json is of a trial with other settings \(base_lr\): delete it, or rename"):
        write_trial(tmp_path / "two/a", results)


def test_a_copy_within_another_repository_has_no_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(provenance, "ROOT", tmp_path / "copy")
    assert provenance.git_state() == {"commit": None, "dirty": None}
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert provenance.git_state() == {"commit": None, "dirty": False}  # before its first commit


def test_images_unlike_the_records_are_told_in_words():
    config = load_experiment("digits").config("ff")
    assert records.images_unlike_recorded(config, RECORDED["dataset"]["fingerprint"]) == ""
    told = records.images_unlike_recorded(config, "mine")
    assert told.startswith("its images are not those of results/digits/") and "docs/own-images.md" in told
    assert records.images_unlike_recorded(load_experiment("digits").config("ff", epochs=3), "mine") == ""


def test_a_run_of_several_processes_is_scored_on_all_images(trial):
    config, folder = trial
    several = replace(config, num_processes=2)
    assert score(several, folder / "last.safetensors", load_splits(config)).images == 360


def test_finite_weights_that_compute_no_number_get_no_score(trial):
    config, folder = trial
    weights = load_file(folder / "last.safetensors")
    save_file({name: weight * 1e30 for name, weight in weights.items()}, folder / "huge.safetensors")
    with pytest.raises(InputError, match="huge.safetensors: the loss over the images is (nan|inf): .* lower base_lr"):
        score(config, folder / "huge.safetensors", load_splits(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_scoring_on_a_gpu_that_is_not_there_is_refused(trial):
    config, folder = trial
    with pytest.raises(InputError, match="device='cuda', but PyTorch finds no CUDA GPU"):
        score(config, folder / "last.safetensors", load_splits(config), device="cuda")


def test_a_score_of_other_images_gets_no_record(trial):
    config, folder = trial
    fewer = load_splits(replace(config, max_eval_images=50))
    with pytest.raises(InputError, match="50 images scored, its test split has 360"):
        write_record(folder, score(config, folder / "last.safetensors", fewer), fewer.fingerprint)
    splits = load_splits(config)
    whole_test = score(config, folder / "last.safetensors", splits)
    with pytest.raises(InputError, match="its images are not those of .* .fingerprint changed, not "):
        write_record(folder, whole_test, "changed")
    with pytest.raises(InputError, match="the scores of .*: loss must be a finite number"):
        write_record(folder, replace(whole_test, loss=float("nan")), splits.fingerprint)
    assert not (folder / "record.json").exists()


@pytest.fixture(scope="module")
def hostile_records(tmp_path_factory):
    """The hostile experiment with a record of every run, of machines and classes that are called as badly."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.toml").write_text(hostile.TEXT)
    experiment = load_experiment(folder / "hostile.toml")
    found = [whole(config, right=27 + config.seed + 2 * (config.name == "vit")) for config in experiment.configs()]
    for record in found:
        record["hardware"] |= {"cpu": f"{hostile.LABELS[0]}\n\x1b[2J{record['run_id']}"}
        record["dataset"]["class_names"] = [f"{hostile.LABELS[c % 3]}\n{c}" for c in range(10)]
    return experiment, found


def shown_tables(experiment, found):
    grid = measured(experiment, found)
    yield report_results.table1(experiment, grid)
    yield report_results.grid_table(experiment, grid)
    yield study_tables.study(experiment, found)
    yield study_tables.pairs(experiment, found)
    yield study_tables.trials(experiment, found)
    yield mistakes.agreement(experiment, found)
    yield reproduction.table(experiment, found, found)


def words(cell):
    """As text is shown: control characters and runs of spaces count as one space."""
    return " ".join(escape.in_one_line(str(cell)).split())


class Cells(HTMLParser):
    """The texts of a page's table cells, and the tags in it."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags, self.within = [], set(), False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.within = True

    def handle_endtag(self, tag):
        self.within &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.within:
            self.cells[-1] += data


def test_hostile_texts_stand_in_tables_as_they_are(hostile_records, tmp_path):
    experiment, found = hostile_records
    read = mistune.create_markdown(escape=False, plugins=["table", "strikethrough", "url"])
    source = sources(measured(experiment, found))
    assert "\x1b" in source
    for table in shown_tables(experiment, found):
        files = [tmp_path / f"t.{form}" for form in ("csv", "md", "tex")]
        tables.save(table, *files, caption=f"{experiment.title}", source=source)
        texts = [words(cell) for cell in [*table, *table.to_numpy().ravel()]]
        for page, allowed in (
            (
                tables.display(table, experiment.title).to_html(),
                {"style", "table", "caption", "thead", "tbody", "tr", "th", "td"},
            ),
            (read(files[1].read_text()), {"table", "thead", "tbody", "tr", "th", "td", "p", "strong"}),
        ):
            cells = Cells(page)
            assert cells.tags == allowed
            assert [words(cell) for cell in cells.cells] == texts
        comment, *tex = files[2].read_text().split("\n")
        assert comment.startswith("% ") and comment.endswith(escape.in_one_line(source)) and tex[0] == r"\begin{table}"
        rows = [line for line in tex if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(table.columns) - 1}
        assert not re.findall(r"(?<!\\)[%$#]", "".join(tex))
        assert len(rows) == len(table) + 1


def test_hostile_texts_stand_in_figures_as_they_are(hostile_records, tmp_path):
    experiment, found = hostile_records
    evaluations = [
        Evaluation(360, 0.5, 75.0, 100.0, np.array(found[0]["results"]["confusion"]), *[np.zeros(0)] * 3, [])
    ]
    for figure, labels in (
        (report_results.training_curves(experiment, measured(experiment, found)), hostile.LABELS[:2]),
        (report_results.grid_figure(experiment, measured(experiment, found)), [hostile.SCOPE]),
        (study_plots.accuracy_by_cost(experiment, found), [*hostile.LABELS[:2], hostile.TITLE]),
        (study_plots.comparisons(experiment, found), [hostile.LABELS[2], "{few} | $x$", hostile.TITLE]),
        (study_plots.learning_rates(experiment, found), hostile.LABELS[:2]),
        (mistakes.per_class(experiment, found), hostile.LABELS),
        (mistakes.agreement_figure(experiment, found), [*hostile.LABELS[:2], hostile.TITLE]),
        (one_run.confusion(evaluations, found[0]["dataset"]["class_names"]), hostile.LABELS),
    ):
        drawing.save(figure, tmp_path / "f.svg", source=sources(measured(experiment, found)))
        ElementTree.parse(tmp_path / "f.svg")
        texts = [text._preprocess_math(text.get_text()) for text in figure.findobj(Text)]
        plain = " ".join(words(text) for text, is_math in texts if not is_math)
        assert all(words(label) in plain for label in labels)
        assert {text for text, is_math in texts if is_math} <= {t for t, _ in texts if t.startswith("$10^{")}
        plt.close(figure)


def test_hostile_texts_stand_in_the_listing_as_they_are(hostile_records, tmp_path):
    experiment, found = hostile_records
    for record in found[:3]:
        put(tmp_path, record)
    told = status.report(experiment, status.standings(experiment, tmp_path / "results", tmp_path), "hostile")
    assert all(text in told for text in (hostile.TITLE, *hostile.LABELS[:2])) and "3 of 8 runs recorded" in told
    assert "\x1b" not in told
