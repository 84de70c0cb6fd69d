"""Every notebook runs top to bottom, and stops for a parameter it does not know."""

import json
from pathlib import Path

import papermill
import pytest

from ffvit.commands.notebook import check
from ffvit.system.errors import InputError

ROOT = Path(__file__).parent.parent
DECLARED = 'experiment: str = "digits"\nepochs: int = 0\nbase_lr: float = 0.0'
VALUES = {"experiment": "digits", "epochs": 3, "base_lr": 1}


def run(name, tmp_path, **parameters):
    output = tmp_path / f"{name}.ipynb"
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb", output, parameters, kernel_name="python3", progress_bar=False, cwd=ROOT
    )
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One small run through notebooks 02 and 03: its folder, and the folder of its record."""
    folder = tmp_path_factory.mktemp("trained")
    small = {"epochs": 1, "settings": {"warmup_epochs": 0}, "device": "cpu", "run_dir": str(folder / "run")}
    run("02_train", folder, **small)
    scored = run("03_evaluate", folder, run_dir=str(folder / "run"), results_dir=str(folder / "results"))
    return folder, scored


def test_training_and_evaluation_leave_a_record(trained):
    folder, _ = trained
    record = json.loads((folder / "results/digits/ff-seed0.json").read_text())
    assert record["results"]["images"] == 360
    assert sum(map(sum, record["results"]["confusion"])) == 360
    assert len(record["history"]) == 1


def pictures(notebook):
    return [o for c in notebook["cells"] for o in c.get("outputs", []) if "image/png" in o.get("data", {})]


def test_training_shows_its_images_and_its_curves(trained):
    folder, _ = trained
    assert len(pictures(json.loads((folder / "02_train.ipynb").read_text()))) == 2


def test_dry_run_says_what_training_costs_and_leaves_nothing(tmp_path):
    notebook = run("02_train", tmp_path, dry_run=True, run_dir=str(tmp_path / "run"))
    assert "estimate: 360 updates" in json.dumps(notebook)
    assert not (tmp_path / "run").exists()


def test_evaluation_shows_confusion_and_mistakes_as_pictures(trained):
    _, notebook = trained
    assert len(pictures(notebook)) == 2


def test_evaluation_takes_any_checkpoint(trained, tmp_path):
    folder, _ = trained
    weights = str(folder / "run/best.safetensors")
    run("03_evaluate", tmp_path, checkpoint=weights, max_eval_images=50, results_dir=str(tmp_path))
    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize(
    "name", ["01_architecture", "04_table1", "05_attention_only", "06_training_curves", "07_claims", "08_study"]
)
def test_notebook_makes_its_figures_and_tables(name, trained, tmp_path):
    folder, _ = trained
    where = {} if name == "01_architecture" else {"results_dir": str(folder / "results")}
    run(name, tmp_path, figures_dir=str(tmp_path), **where)
    made = {
        "01_architecture": ["figure1_architecture.svg", "figure2_block.svg", "models.csv"],
        "04_table1": ["table1.csv", "table1.md", "table1.tex"],
        "05_attention_only": ["attention_only.csv", "attention_only.md", "attention_only.png"],
        "06_training_curves": ["training_curves.png"],
        "07_claims": ["claims.csv", "claims.md"],
        "08_study": [
            *(f"{table}.{form}" for table in ("study", "pairs", "agreement") for form in ("csv", "md")),
            *("accuracy_by_cost.png", "per_class.png", "agreement.png"),
        ],
    }[name]
    assert all((tmp_path / "digits" / file).stat().st_size > 500 for file in made)


@pytest.mark.parametrize("name", ["04_table1", "05_attention_only", "06_training_curves", "07_claims", "08_study"])
def test_notebook_works_without_any_record(name, tmp_path):
    run(name, tmp_path, results_dir=str(tmp_path), figures_dir=str(tmp_path))
    assert all("not run" in table.read_text() for table in (tmp_path / "digits").glob("*.md"))


@pytest.mark.parametrize("name", ["09_lit", "10_stages"])
def test_notebook_of_lit_works_without_any_record(name, tmp_path):
    run(name, tmp_path, results_dir=str(tmp_path), figures_dir=str(tmp_path))
    tables = {path.stem: path.read_text() for path in (tmp_path / "digits-lit").glob("*.md")}
    counted = tables.pop("stage_costs", "19,886,272")
    assert "19,886,272" in counted and len(tables) in (3, 4)
    assert all("not run" in table for table in tables.values())


def test_misspelt_parameter_stops_the_notebook_before_any_work(tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match="no parameter 'epoch'; did you mean 'epochs'"):
        run("02_train", tmp_path, epoch=1, run_dir=str(tmp_path / "run"))
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


def test_names_defined_in_later_cells_are_no_parameters():
    check([DECLARED, "config = 1", "%matplotlib inline\nx = 2", DECLARED], VALUES | {"config": 1, "x": 2})
