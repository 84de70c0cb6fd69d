"""Records, tables and figures: reported and measured are never taken for one another, and all say where they come from."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import timm
from PIL import Image

from ffvit.commands import score as score_command
from ffvit.data.splits import load_splits
from ffvit.evidence import drawing, records, tables
from ffvit.evidence.measured import measured, sources
from ffvit.evidence.records import publish, write_record
from ffvit.evidence.reported import load_reported
from ffvit.evidence.scoring import score
from ffvit.models import ff
from ffvit.settings.experiment import load_experiment
from ffvit.studies import architecture, report_results
from ffvit.system.errors import InputError
from ffvit.system.files import write_atomically
from ffvit.training.run import train

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
            "curves": report_results.training_curves(experiment, DIGITS, found),
            "grid": report_results.grid_figure(experiment, found),
        }.items():
            drawing.save(figure, tmp_path / name / f"{kind}.png", source=sources(found))
        code, files = architecture.source_code(ff.Block), [tmp_path / name / file for file in ("code.svg", "code.png")]
        architecture.save_code(code, *files, source="Source of ffvit.models.ff.Block")
    for file in ("curves.png", "grid.png", "code.svg", "code.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "ff-seed1" in Image.open(tmp_path / "one/grid.png").info["Description"]
    assert "Source of ffvit.models.ff.Block" in (tmp_path / "one/code.svg").read_text()
    assert Image.open(tmp_path / "one/code.png").info["Description"] == "Source of ffvit.models.ff.Block"


def test_figure2_shows_every_line_of_the_code_within_its_borders(tmp_path):
    code = architecture.source_code(ff.Branch, ff.Block)
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


def test_record_that_is_cut_off_or_incomplete_is_refused(tmp_path):
    (tmp_path / "digits").mkdir()
    file = tmp_path / "digits/ff-seed0.json"
    file.write_text(json.dumps(DIGITS[0])[:-20])
    with pytest.raises(InputError, match="ff-seed0.json: no valid JSON"):
        records.load_records("digits", tmp_path)
    file.write_text(json.dumps({k: v for k, v in DIGITS[0].items() if k != "git"}))
    with pytest.raises(InputError, match="'git' must be dict"):
        records.load_records("digits", tmp_path)


def test_a_run_that_never_began_gets_no_record_but_the_command_that_begins_it(tmp_path):
    with pytest.raises(InputError, match="holds no run; train it first, with make reproduce EXPERIMENT="):
        score_command.main([str(tmp_path)])


def test_unfinished_run_gets_no_record_but_the_command_that_goes_on(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="holds no finished run; go on with: python -m ffvit train --config"):
        score_command.main([str(tmp_path)])


def own_record(folder, **changes):
    file = folder / "digits/ff-seed0/record.json"
    write_atomically(file, json.dumps(DIGITS[0] | changes))


def test_a_run_of_this_machine_is_shown_where_it_gave_another_result_and_says_so(tmp_path):
    other = DIGITS[0]["results"] | {"top1_percent": 50.0}
    own_record(tmp_path, results=other, weights_sha256={"last.safetensors": "another"})
    shown = records.in_use(DIGITS, records.load_own("digits", tmp_path))
    assert [r["run_id"] for r in shown] == sorted(r["run_id"] for r in DIGITS)
    [mine] = [r for r in shown if records.origin(r) == "trained here"]
    assert (mine["run_id"], mine["results"]["top1_percent"]) == ("ff-seed0", 50.0)


@pytest.mark.parametrize("change", [{}, {"started_at": "later"}, {"weights_sha256": {"last.safetensors": "another"}}])
def test_a_run_that_repeats_a_record_changes_nothing_that_is_shown(tmp_path, change):
    own_record(tmp_path, **change)
    shown = records.in_use(DIGITS, records.load_own("digits", tmp_path))
    assert shown == sorted(DIGITS, key=lambda r: r["run_id"])


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


def test_a_trial_is_never_published_and_a_record_never_written_over(trial, tmp_path):
    config, folder = trial
    splits = load_splits(config)
    write_record(folder, score(config, folder / "last.safetensors", splits), splits.fingerprint)
    with pytest.raises(InputError, match="other settings than digits"):
        publish(folder, tmp_path)
    whole = load_experiment("digits").config("ff")
    (folder / "config.json").write_text(json.dumps(whole.to_dict()))
    file = publish(folder, tmp_path)
    assert file == tmp_path / "digits/ff-seed0.json" and json.loads(file.read_text())["results"]["images"] == 360
    with pytest.raises(InputError, match="ff-seed0.json is there already: delete it first"):
        publish(folder, tmp_path)


def test_a_run_of_several_processes_is_scored_on_all_images(trial):
    config, folder = trial
    several = replace(config, num_processes=2)
    assert score(several, folder / "last.safetensors", load_splits(config)).images == 360


def test_a_score_of_other_images_gets_no_record(trial):
    config, folder = trial
    fewer = load_splits(replace(config, max_eval_images=50))
    with pytest.raises(InputError, match="50 images scored, its test split has 360"):
        write_record(folder, score(config, folder / "last.safetensors", fewer), fewer.fingerprint)
    others = load_splits(config)  # as many, but not the same
    with pytest.raises(InputError, match="its images are not those of .*run .fingerprint 0123, not .*: put those back"):
        write_record(folder, score(config, folder / "last.safetensors", others), "0123")
    assert not (folder / "record.json").exists()
