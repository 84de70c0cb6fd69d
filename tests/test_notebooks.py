"""Every notebook runs top to bottom, makes what it declares, and stops for a parameter it does not know."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import datasets
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import PIL.Image
import pytest
from ipykernel.ipkernel import IPythonKernel
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config as Traits

from ffvit.data.dense.scenes import make_scenes
from ffvit.evidence import artefacts, tables
from ffvit.evidence.notebook_metadata import load_notebook, load_notebooks
from ffvit.evidence.records import load_own
from ffvit.settings.experiment import load_experiment
from ffvit.settings.parameters import check
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, NOTEBOOKS, ROOT
from ffvit.training.train import train

DECLARED = 'experiment: str = "digits"\nepochs: int = 0\nbase_lr: float = 0.0'
VALUES = {"experiment": "digits", "epochs": 3, "base_lr": 1}
ALL = load_notebooks()
DRAWN = [notebook for notebook in ALL if notebook.makes and "weights" not in notebook.needs]
QUICK = {"14_sequence_length": {"tokens": [196, 256, 320], "embed_dim": 48}}  # what takes minutes, in seconds
COUNTED = {"stage_costs": "19,886,272", "resampled": "10,126,252"}  # tables that need no record, and a number of each
BY_NAME = {"ids": lambda notebook: notebook.name}


def papermilled(name, tmp_path, **parameters):
    """In a kernel of its own, as the pipeline runs it."""
    output = tmp_path / f"{name}.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS / f"{name}.ipynb", output, parameters, kernel_name="python3", progress_bar=False, cwd=ROOT
    )
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def shell():
    """An IPython of this very process, which has the libraries already: a kernel of its own takes seconds to."""
    yield InteractiveShell.instance(config=Traits({"HistoryManager": {"enabled": False}}))
    InteractiveShell.clear_instance()


@pytest.fixture
def run(shell, monkeypatch):
    """Run a notebook's cells with parameters as papermill would; what they print."""
    monkeypatch.chdir(ROOT)

    def run(name, **parameters):
        shell.reset()
        sources = [
            "".join(cell["source"])
            for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
            if cell["cell_type"] == "code"
        ]
        given = "\n".join(["# Parameters", *(f"{key} = {value!r}" for key, value in parameters.items())])
        with capture_output() as shown:
            for source in [sources[0], given, *sources[1:]]:
                shell.run_cell(source, store_history=True).raise_error()
        return shown.stdout

    yield run
    plt.close("all")


@pytest.fixture(autouse=True)
def every_table_has_a_caption(monkeypatch):
    """Of all that the tests here let notebooks show."""

    def display(table, caption=""):
        styled = shown(table, caption)
        assert styled.caption, table
        return styled

    shown = tables.display
    monkeypatch.setattr(tables, "display", display)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One small run through notebooks 02 and 03: its folder, and the folder of its record."""
    folder = tmp_path_factory.mktemp("trained")
    small = {"epochs": 1, "settings": {"warmup_epochs": 0}, "device": "cpu", "run_dir": str(folder / "run")}
    papermilled("02_train", folder, **small)
    scored = papermilled("03_evaluate", folder, run_dir=str(folder / "run"))
    (folder / "results/digits").mkdir(parents=True)
    shutil.copy(folder / "run/record.json", folder / "results/digits/ff-seed0.json")
    return folder, scored


def test_training_and_evaluation_leave_a_record(trained):
    folder, _ = trained
    record = json.loads((folder / "run/record.json").read_text())
    assert record["results"]["images"] == 360
    assert sum(map(sum, record["results"]["confusion"])) == 360
    assert len(record["history"]) == 1


def pictures(notebook):
    return [o for c in notebook["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]


def test_training_shows_its_images_and_its_curves(trained):
    folder, _ = trained
    assert len(pictures(json.loads((folder / "02_train.ipynb").read_text()))) == 2


def test_a_finished_run_is_not_trained_again(trained, run):
    folder, _ = trained
    before = (folder / "run/last.safetensors").stat().st_mtime_ns
    again = {"epochs": 1, "settings": {"warmup_epochs": 0}, "device": "cpu", "run_dir": str(folder / "run")}
    assert "is finished" in run("02_train", **again)
    assert (folder / "run/last.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["02_train", "03_evaluate"])
def test_an_ablation_that_does_not_exist_is_told_with_the_nearest_that_does(name, run):
    said = "digits-ablations has no model 'ff_conf', nor has timm; did you mean 'ff_conv'?"
    with pytest.raises(InputError, match=re.escape(said)):
        run(name, experiment="digits-ablations", model="ff_conf")


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("14_sequence_length", {"num_heads": 5}, "num_heads=5 does not divide embed_dim=192"),
        ("14_sequence_length", {"hidden_dim": 0}, "hidden_dim=0: the fixed width takes at least 1 hidden unit"),
        ("14_sequence_length", {"tokens": [49, 98, 196]}, "a power takes 3 lengths of 196 tokens or more"),
        ("14_sequence_length", {"device": "auto"}, "device 'auto': memory is measured on cpu and cuda only"),
        ("15_resolution", {"img_size": 224}, "img_size=224 is the size that ff_tiny_patch16_224 has"),
        ("15_resolution", {"img_size": 290}, "img_size=290 is not divisible by the patch size 16"),
        ("15_resolution", {"model": "vit_tiny_patch16_224"}, "has no feed-forward layer over patches"),
    ],
)
def test_a_parameter_that_cannot_be_is_refused_before_any_work(name, given, message, run, tmp_path):
    with pytest.raises(InputError, match=message):
        run(name, figures_dir=str(tmp_path), **given)
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_training_costs_and_leaves_nothing(run, tmp_path):
    assert "estimate: 360 updates" in run("02_train", dry_run=True, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_evaluation_shows_confusion_and_mistakes_as_pictures(trained):
    _, notebook = trained
    assert len(pictures(notebook)) == 2


def test_evaluation_says_of_each_table_what_it_is(trained):
    _, notebook = trained
    shown = [o["data"] for c in notebook["cells"] for o in c.get("outputs", []) if "text/html" in o.get("data", {})]
    tables = ["".join(data["text/html"]) for data in shown]
    assert len(tables) == 2 and all("<caption>" in html for html in tables)


def test_evaluation_takes_any_checkpoint(trained, run, tmp_path):
    folder, _ = trained
    weights = shutil.copy(folder / "run/best.safetensors", tmp_path)
    run("03_evaluate", checkpoint=weights, max_eval_images=50)
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_evaluation_works_after_cloning_and_writes_no_record(run, tmp_path, monkeypatch):
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path)
    told = run("03_evaluate")
    assert (
        "recorded, kept with the project" in told
        and "FF only: not the end of a run of this machine, so nothing is recorded" in told
    )
    assert not list(tmp_path.iterdir())


def made(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.*") if path.stat().st_size > 100}


def default_experiment(notebook):
    """That of its parameters cell; None where it needs none."""
    named = re.search(r'^experiment: str = "(.+?)"', notebook.sources[1], re.M)
    return load_experiment(named[1]) if named else None


@pytest.mark.parametrize("notebook", DRAWN, **BY_NAME)
def test_notebook_makes_what_it_declares_and_nothing_else(notebook, trained, run, tmp_path):
    folder, _ = trained
    where = {"results_dir": str(folder / "results")} if notebook.needs else {}
    run(notebook.name, figures_dir=str(tmp_path), **where, **QUICK.get(notebook.name, {}))
    assert made(tmp_path) == set(notebook.files(default_experiment(notebook)))


@pytest.mark.parametrize("notebook", [n for n in DRAWN if "records" in n.needs], **BY_NAME)
def test_notebook_works_without_any_record(notebook, run, tmp_path):
    of_this_machine = {"runs_dir": str(tmp_path)} if notebook.name == "12_reproduction" else {}
    run(notebook.name, results_dir=str(tmp_path), figures_dir=str(tmp_path), **of_this_machine)
    assert made(tmp_path) == set(notebook.files(default_experiment(notebook)))
    tables = {path.stem: path.read_text() for path in tmp_path.rglob("*.md")}
    for name, number in COUNTED.items():
        assert number in tables.pop(name, number)
    assert all("not run" in table for table in tables.values())


@pytest.mark.parametrize(
    ("name", "experiment"),
    [
        ("11_visualise", "digits-lit"),
        ("13_convolutions", "digits-resolution"),
        ("18_patch_mixer", "digits"),
        ("19_rank_collapse", "digits-attention-only"),
    ],
)
def test_notebooks_of_looking_work_after_cloning_without_training(name, experiment, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path / "runs")
    run(name, experiment=experiment, figures_dir=str(tmp_path / "figures"))
    notebook = load_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert made(tmp_path / "figures") == set(notebook.files(load_experiment(experiment)))
    tables = {path.name: path.read_text() for path in (tmp_path / "figures").rglob("*.md")}
    assert any("kept with the project" in table for table in tables.values())
    assert not any("trained here" in table for table in tables.values())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name, experiment, models, said",
    [
        ("18_patch_mixer", "digits", ["ff", "vit"], "training made the maps more local in"),
        (
            "19_rank_collapse",
            "digits-attention-only",
            ["attention_only", "unprojected", "over_tokens", "ff"],
            "nothing to say",
        ),
    ],
)
def test_notebook_that_looks_into_weights_makes_what_it_declares(
    name, experiment, models, said, run, tmp_path, monkeypatch
):
    text = (EXPERIMENTS / f"{experiment}.toml").read_text().replace("depth = 12", "depth = 2")
    text = re.sub("^epochs = .*$", "", text, flags=re.MULTILINE)
    file = tmp_path / f"{experiment}.toml"
    file.write_text(text.replace("[settings]", "[settings]\nepochs = 1\nwarmup_epochs = 0\nmax_train_images = 64"))
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path / "runs")
    for model in models:
        config = load_experiment(file).config(model)
        train(config, config.run_dir)
    notebook = load_notebook(NOTEBOOKS / f"{name}.ipynb")
    where = {"results_dir": str(tmp_path)} if "records" in notebook.needs else {}
    printed = run(name, experiment=str(file), images=20, figures_dir=str(tmp_path / "figures"), **where)
    assert said in printed
    assert made(tmp_path / "figures") == set(notebook.files(load_experiment(experiment)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A few of digits-scenes, saved: all of them take seconds to make, in each notebook anew."""
    folder = tmp_path_factory.mktemp("scenes")
    few = {"train": 16, "validation": 4, "test": 8}
    parts = {name: part.select(range(few[name])) for name, part in make_scenes().items()}
    datasets.DatasetDict(parts).save_to_disk(folder)
    return str(folder)


SMALL_BACKBONE = dict(embed_dims=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])


def test_a_detector_is_shown_and_scored_by_its_notebooks_and_by_no_other(scenes, run, tmp_path):
    own = {"experiment": "digits-scenes", "model": "mask_rcnn", "run_dir": str(tmp_path / "run")}
    args = {"width": 16, "box_width": 16, "backbone_args": SMALL_BACKBONE}
    settings = {"warmup_epochs": 0, "warmup_updates": 0, "model_args": args}
    given = dict(dataset=scenes, epochs=1, batch_size=8, device="cpu")
    train(load_experiment("digits-scenes").config("mask_rcnn", **given, **settings), tmp_path / "run")
    told = run("02_train", **own, **given, settings=settings)
    assert "10 classes" in told and "is finished" in told
    with pytest.raises(
        InputError, match="Mask R-CNN is for instance_segmentation: score it with notebook 21_detection"
    ):
        run("22_segmentation", **own)
    assert "recorded in record.json" in run("21_detection", **own)
    results = json.loads((tmp_path / "run/record.json").read_text())["results"]
    assert results["images"] == 8 and {"box_ap_percent", "mask_ap_percent"} <= results.keys()


def test_a_segmentation_is_scored_by_its_notebook_and_makes_a_map_of_any_picture(scenes, run, tmp_path):
    config = load_experiment("digits-scenes").config(
        "semantic_fpn", dataset=scenes, epochs=1, batch_size=8, warmup_epochs=0, warmup_updates=0, device="cpu",
        model_args={"width": 16, "head_width": 16, "backbone_args": SMALL_BACKBONE},
    )  # fmt: skip
    train(config, tmp_path / "run")
    PIL.Image.new("RGB", (90, 50), "white").save(tmp_path / "mine.jpg")
    told = run("22_segmentation", run_dir=str(tmp_path / "run"), image=str(tmp_path / "mine.jpg"))
    results = json.loads((tmp_path / "run/record.json").read_text())["results"]
    assert "recorded in record.json" in told and sum(map(sum, results["confusion"])) == 8 * 64 * 64


def test_a_table_or_figure_that_is_not_declared_is_refused(tmp_path):
    story = artefacts.open_story("05_attention_only", "digits", str(tmp_path), str(tmp_path))
    for name, message in {"atention_only": "; did you mean 'attention_only'", "lit/attention_only": ""}.items():
        with pytest.raises(InputError, match=f"05_attention_only.ipynb does not declare '{name}' as .csv.*{message}"):
            story.table(pd.DataFrame(), name, "")
    with pytest.raises(InputError, match="04_table1.ipynb does not declare 'table1' as .svg or .png"):
        artefacts.open_story("04_table1", "digits", str(tmp_path)).figure(plt.figure(), "table1")
    assert not list(tmp_path.iterdir())


def test_a_story_of_another_task_or_of_no_records_is_refused(tmp_path):
    with pytest.raises(InputError, match="04_table1 is for classification, digits-scenes is not: 23_where"):
        artefacts.open_story("04_table1", "digits-scenes")
    with pytest.raises(InputError, match="results_dir: there is no folder 'resutls'"):
        artefacts.open_story("04_table1", "digits", "resutls")
    with pytest.raises(InputError, match="there is no folder '.*runz' of runs"):
        load_own("digits", tmp_path / "runz")


def test_what_is_said_is_printed_in_lines_that_fit_and_no_word_is_broken(tmp_path, capsys):
    story = artefacts.open_story("05_attention_only", "digits", str(tmp_path), str(tmp_path))
    capsys.readouterr()
    words = [f"attention_only-seed{i}" for i in range(12)]
    story.say(f"Short.\n{' '.join(words)}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Short." and " ".join(lines[1:]).split() == words
    assert len(lines) > 2 and max(map(len, lines)) <= artefacts.WIDTH


def test_a_short_cell_is_shown_in_one_line_and_a_long_one_is_not():
    shown = tables.display(pd.DataFrame({"Top-1": ["61.57 ± 10.71 (n=3)", 24 * "w"]}), "Scores").to_html()
    assert re.findall(r"#T_\w+_row(\d)_col0[^{]*{[^}]*nowrap", shown) == ["0"]


def declaring(folder, **said):
    path = folder / "12_mine.ipynb"
    cells = [{"cell_type": "markdown", "source": ["# Mine\n"]}]
    path.write_text(json.dumps({"metadata": {"ffvit": {"gives": "it", "needs": ["records"], **said}}, "cells": cells}))
    return path


@pytest.mark.parametrize(
    "said, message",
    [
        ({"make": []}, "12_mine.ipynb: metadata.ffvit says 'make'; did you mean 'makes'"),
        ({"needs": ["record"]}, "needs 'record'; did you mean 'records'"),
        ({"makes_where": {"compares": []}}, "makes files where 'compares'; did you mean 'compare'"),
        ({"needs": [], "makes": ["a.csv"]}, r"makes \['a.csv'\] of no experiment: name a folder"),
    ],
)
def test_a_mistake_in_what_a_notebook_declares_is_named(said, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_notebook(declaring(tmp_path, **said))
    with pytest.raises(InputError, match="nowhere.ipynb: no notebook"):
        load_notebook(tmp_path / "nowhere.ipynb")


@pytest.mark.parametrize(
    "said, fitting",
    [
        ({}, {"digits", "cifar10-small", "digits-lit", "imagenet-lit"}),
        ({"models": "ff_*"}, {"digits", "cifar10-small"}),
        ({"models": "lit_*"}, {"digits-lit", "imagenet-lit"}),
        ({"models": "lit_*", "varies": "attention"}, {"digits-lit"}),
        ({"varies": "max_train_images"}, {"cifar10-small"}),
        ({"models": "ff_*", "experiments": ["digits", "digits-lit"]}, {"digits"}),
        ({"models": "lit_*", "unless_all": {"deformable": False}}, {"digits-lit", "imagenet-lit"}),
        ({"models": "lit_*", "unless_all": {"drop_rate": 0.0}}, set()),
        ({"models": "lit_*", "unless_all": {"patch_size": 1}}, {"imagenet-lit"}),
    ],
)
def test_notebook_is_for_the_experiments_it_says(said, fitting, tmp_path):
    notebook = load_notebook(declaring(tmp_path, **said))
    names = ("digits", "cifar10-small", "digits-lit", "imagenet-lit")
    assert {name for name in names if notebook.fits(load_experiment(name))} == fitting


def test_files_are_of_the_experiment_or_of_none(tmp_path):
    said = dict(makes=["a.csv", "lit/b.csv"], makes_where={"compare": ["c.png"], "tuning": ["d.png"]})
    notebook = load_notebook(declaring(tmp_path, **said))
    assert notebook.files(load_experiment("digits-lit")) == ["digits-lit/a.csv", "lit/b.csv", "digits-lit/c.png"]
    assert notebook.files(load_experiment("digits")) == ["digits/a.csv", "lit/b.csv", "digits/d.png"]
    assert notebook.files(load_experiment("cifar10")) == ["cifar10/a.csv", "lit/b.csv", "cifar10/c.png"]


def test_every_committed_table_and_figure_is_declared_and_none_is_missing():
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "figures"], capture_output=True, text=True)
    if not listed.stdout:
        pytest.skip("needs the project's git repository")
    committed = {line.removeprefix("figures/") for line in listed.stdout.splitlines()}
    shown = {file.split("/")[0] for file in committed} - {"length", "lit", "report"}
    found = {file for n in ALL for e in map(load_experiment, shown) if n.fits(e) for file in n.files(e)}
    assert committed == {file for file in found if Path(file).stem != "reproduction"}  # that one is of one machine


@pytest.mark.parametrize("notebook", ALL, **BY_NAME)
def test_notebook_is_as_jupyterlab_writes_it(notebook, tmp_path):
    """Else opening it would mark it as changed: JupyterLab puts in what its kernel says of itself."""
    text = notebook.path.read_text()
    content = nbformat.reads(text, 4)
    nbformat.validate(content)
    assert nbformat.writes(content) + "\n" == text
    said = dict(content.metadata.language_info)
    assert said.pop("version") == "3.11.7"  # one for all, whatever Python is at hand
    assert said == {key: value for key, value in IPythonKernel.language_info.items() if key != "version"}
    assert content.metadata.kernelspec == {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }


def test_misspelt_parameter_stops_the_notebook_before_any_work(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'epoch'; did you mean 'epochs'"):
        papermilled("02_train", tmp_path, epoch=1, run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_parameters_of_the_declared_types_pass():
    check([DECLARED, "# Parameters\nepochs = 3\n"], VALUES)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epochs": "3"}, "'epochs' must be int, got '3'"),
        ({"epochs": True}, "'epochs' must be int, got True"),
        ({"base_lr": "1e-3"}, "'base_lr' must be float"),
        ({"experiment": None}, "'experiment' must be str"),
    ],
)
def test_parameter_of_another_type_is_an_error(values, message):
    with pytest.raises(InputError, match=message):
        check([DECLARED], VALUES | values)


def test_an_empty_list_and_a_choice_that_is_none_are_errors():
    declared, values = (
        'seeds: list = [0]\nmodels: list = []\ndevice: str = "auto"',
        {"seeds": [0], "models": [], "device": ""},
    )
    check([declared], values)
    with pytest.raises(InputError, match=r"parameter 'seeds' is empty: give at least one, or leave it out for \[0\]"):
        check([declared], values | {"seeds": []})
    with pytest.raises(InputError, match="parameter 'device' must be one of 'auto', 'cuda', 'cpu', 'mps', got 'nope'"):
        check([declared], values | {"device": "nope"})


def test_names_defined_in_later_cells_are_no_parameters():
    check([DECLARED, "config = 1", "%matplotlib inline\nx = 2", DECLARED], VALUES | {"config": 1, "x": 2})
