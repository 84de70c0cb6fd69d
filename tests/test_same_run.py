"""When two runs are the same: settings that decide, and code that decides."""

import ast

import pytest

from ffvit.settings import same_run
from ffvit.settings.experiment import load_experiment
from ffvit.settings.same_run import code_of, deciding, differing

STEP = '''
"""One step."""

import math
from a import b


def step(x: int, rate: float = 0.1) -> float:
    """Shapes."""
    if x < 0:
        raise ValueError(f"{x} is negative")
    count: int = 2
    print(f"step {x}")
    return math.sqrt(x) * rate * count * table[f"x{x}"]  # why
'''


def bare(text: str) -> str:
    return same_run._spelled(same_run._Bare().visit(ast.parse(text)))


@pytest.mark.parametrize(
    "old, new",
    [
        ("One step.", "A step, once."),
        ("Shapes.", "x: (B, N)."),
        ("# why", "# because"),
        (" is negative", " must not be negative: give a larger one"),
        ("step {x}", "at step {x}"),
        ("x: int", "x: int | None"),
        (" -> float", ""),
        ("count: int = 2", "count = 2"),
        ("from a import b", "from a.c import b"),
    ],
)
def test_what_only_people_read_trains_nothing_again(old, new):
    assert old in STEP and bare(STEP.replace(old, new)) == bare(STEP)


@pytest.mark.parametrize(
    "old, new",
    [
        ("= 0.1", "= 0.2"),
        ("* count", "+ count"),
        ("x < 0", "x <= 0"),
        ("sqrt", "exp"),
        ("x{x}", "x{x + 1}"),
        ("x{x}", "y{x}"),
    ],
)
def test_what_computes_trains_again(old, new):
    assert old in STEP and bare(STEP.replace(old, new)) != bare(STEP)


def test_moving_a_statement_to_another_file_trains_nothing_again(tmp_path, monkeypatch):
    ours, there = "a = 1\n\n\ndef f():\n    return a\n", "b = 2\n"
    moved = ("a = 1\n", "b = 2\n\n\ndef f():\n    return a\n")
    monkeypatch.setattr(same_run, "_files_of", lambda models: [])
    monkeypatch.setattr(same_run, "LIBRARY", tmp_path)
    for folder in ("data", "training", "tasks", "models"):
        (tmp_path / folder).mkdir()
    for name in ("tasks/task.py", "tasks/classification.py", "models/from_config.py"):
        (tmp_path / name).write_text('"""What it is."""\n')
    found = []
    for one, other in ((ours, there), moved, ("a = 2\n", moved[1])):
        (tmp_path / "data/one.py").write_text(one)
        (tmp_path / "training/other.py").write_text(other)
        same_run._bare.cache_clear(), same_run._code_of.cache_clear()
        found.append(code_of({"model": "any"}))
    same_run._bare.cache_clear(), same_run._code_of.cache_clear()
    assert found[0] == found[1] != found[2]


def test_a_newer_python_trains_nothing_again(monkeypatch):
    before = bare(STEP)
    monkeypatch.setattr(ast.FunctionDef, "_fields", (*ast.FunctionDef._fields, "type_params"))  # as 3.12 has it
    monkeypatch.setattr(ast.FunctionDef, "type_params", [], raising=False)
    assert "type_params" in ast.dump(ast.parse(STEP)) and bare(STEP) == before


def test_a_model_is_of_its_own_file_and_of_no_other_models(monkeypatch):
    read = same_run._bare

    def edited(name):
        same_run._code_of.cache_clear()
        monkeypatch.setattr(same_run, "_bare", lambda file: read(file) + (["edited"] if file.name == name else []))
        return [code_of({"model": model}) for model in ("ff_tiny_patch16_224", "vit_tiny_patch16_224", "lit_ti")]

    before = edited("")
    changed = {
        name: [a != b for a, b in zip(before, edited(name))]
        for name in ("ff.py", "lit.py", "step.py", "study_tables.py")
    }
    same_run._code_of.cache_clear()
    assert changed["ff.py"] == [True, False, False] and changed["lit.py"] == [False, False, True]
    assert changed["step.py"] == [True] * 3 and changed["study_tables.py"] == [False] * 3


def test_a_task_is_of_all_files_of_its_data(monkeypatch):
    read = same_run._bare

    def edited(name):
        same_run._code_of.cache_clear()
        monkeypatch.setattr(same_run, "_bare", lambda file: read(file) + (["edited"] if file.name == name else []))
        return [code_of({"model": "lit_ti", "task": task}) for task in ("classification", "instance_segmentation")]

    before = edited("")
    for name in ("masks.py", "columns.py", "objects.py"):
        assert [a != b for a, b in zip(before, edited(name))] == [False, True], name
    same_run._code_of.cache_clear()


def test_settings_of_the_machine_make_no_other_run():
    config = load_experiment("digits").config("ff").to_dict()
    there = {"num_workers": 4, "compile": True, "device": "cuda", "label": "x", "dataset": "elsewhere", "recipe": ""}
    assert differing(config, config | there) == []
    assert differing(config, config | {"base_lr": 1.0, "seed": 3}) == ["base_lr", "seed"]


def test_batch_norms_of_detectors_and_maps_see_the_parts_of_a_batch():
    for name in ("retinanet", "mask_rcnn", "semantic_fpn"):
        config = load_experiment("digits-scenes").config(name).to_dict()
        assert differing(config, config | {"accumulation_steps": 2}) == ["parts"]


def test_lits_batch_norms_see_the_parts_of_a_batch():
    for name, decides in (("stages34", True), ("stages34_zero", True), ("stages34_plain", False)):
        config = load_experiment("cifar10-lit").config(name).to_dict()
        assert (deciding(config) != deciding(config | {"accumulation_steps": 2})) == decides
