"""benchmarks/speed.py: every form is the same function, and measuring goes on whatever a case does."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F

from ffvit.models.cost import exact_costs
from ffvit.system.files import ROOT

FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def other_forms() -> list[str]:
    return ["published", "transposed", "tokens first", "padded to 8", "padded to 16", "a product an image"]


@pytest.fixture(scope="module")
def model():
    """FF-only with 197 tokens, and with weights that no layer norm or bias of is left at 1 or 0."""
    torch.manual_seed(time.time_ns() % 2**32)
    model = timm.create_model("ff_tiny_patch16_224", depth=2, num_classes=10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def in_form(model, form: str):
    """A copy in another form, and its parameters by the names that the model has for them."""
    import timed

    copied = copy.deepcopy(model)
    names = dict(copied.named_parameters())
    return timed.FORMS[form](copied), names


def outputs_and_gradients(model, parameters: dict, images, target, bf16: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    F.cross_entropy(logits.float(), target).backward()
    return {"logits": logits.detach().float(), **{name: p.grad.clone() for name, p in parameters.items()}}


def test_every_form_is_tested_here():
    import timed

    assert set(timed.FORMS) == {"ours", "timm", *other_forms()}


@pytest.mark.parametrize("form", other_forms())
def test_a_form_gives_the_outputs_and_gradients_of_ours(model, form):
    images, target = torch.randn(2, 3, 224, 224), torch.randint(10, (2,))
    expected = outputs_and_gradients(model, dict(model.named_parameters()), images, target)
    other, parameters = in_form(model, form)
    got = outputs_and_gradients(other, parameters, images, target)
    assert {id(p) for p in other.parameters()} == {id(p) for p in parameters.values()}
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("form", other_forms())
def test_in_bf16_a_form_is_as_near_to_fp32_as_ours_is(model, form):
    images, target = torch.randn(2, 3, 224, 224), torch.randint(10, (2,))
    exact = outputs_and_gradients(model, dict(model.named_parameters()), images, target)
    ours = outputs_and_gradients(model, dict(model.named_parameters()), images, target, bf16=True)
    theirs = outputs_and_gradients(*in_form(model, form), images, target, bf16=True)
    # Roundings differ: twenty logits have them by chance, a million gradients on average.
    for take, times in ((logits, 3), (all_gradients, 1.25)):
        rounding = (take(ours) - take(exact)).norm()
        assert 0 < rounding < 0.05 * take(exact).norm()  # else the bound says nothing
        assert (take(theirs) - take(exact)).norm() < times * rounding


def logits(of: dict) -> torch.Tensor:
    return of["logits"]


def all_gradients(of: dict) -> torch.Tensor:
    return torch.cat([tensor.flatten() for name, tensor in of.items() if name != "logits"])


@pytest.mark.machine
@pytest.mark.parametrize("form", ["ours", *other_forms()])
def test_a_compiled_form_gives_what_the_eager_model_gives(model, form):
    import timed

    images, target = torch.randn(2, 3, 224, 224), torch.randint(10, (2,))
    expected = outputs_and_gradients(model, dict(model.named_parameters()), images, target)
    other, parameters = in_form(model, form)
    timed.compile_as(other, "compiled by block")
    got = outputs_and_gradients(other, parameters, images, target)
    torch.compiler.reset()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def small(**case):
    import timed

    return timed.Case(**{"model": "ff_tiny_patch16_224", "batch": 2, **case})


@pytest.mark.parametrize("task", ["training", "inference"])
@pytest.mark.parametrize("form", ["ours", *other_forms()])
def test_a_case_is_measured(task, form):
    import timed

    measured = timed.measure(small(form=form, task=task), CPU, img_size=32)
    assert measured["lowest_ms"] <= measured["ms"] <= measured["highest_ms"]
    assert measured["images_per_s"] == pytest.approx(2 / (measured["ms"] / 1000))
    assert measured["took_s"] > 6 * measured["lowest_ms"] / 1000


@pytest.mark.parametrize(
    "error, said",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "out of memory"),
        (RuntimeError("CUDA error: misaligned address\nmore"), "RuntimeError: CUDA error: misaligned address"),
    ],
)
def test_a_case_that_fails_says_why(monkeypatch, error, said):
    import timed

    def fail(*_):
        raise error

    monkeypatch.setitem(timed.FORMS, "ours", fail)
    assert timed.measure(small(), CPU, 32)["failed"] == said


def test_a_model_that_gives_nan_is_not_fast(monkeypatch):
    import timed

    def broken(model):
        torch.nn.init.constant_(model.head.bias, float("nan"))
        return model

    monkeypatch.setitem(timed.FORMS, "ours", broken)
    assert "not finite" in timed.measure(small(), CPU, 32)["failed"]


@pytest.fixture
def counted(monkeypatch):
    """speed.py, measuring nothing: it lists the cases it would have, and the second of them fails."""
    import speed

    made: list[str] = []

    def pretended(case, device, img_size):
        made.append(case.name)
        if len(made) == 2:
            return {"failed": "out of memory", "took_s": 1.0}
        step = {
            "ms": 500.0,
            "lowest_ms": 490.0,
            "highest_ms": 510.0,
            "images_per_s": 2 * case.batch,
            "first_step_s": 1.0,
        }
        return {**step, "peak_memory_gb": None, "took_s": 3.0}

    monkeypatch.setattr(speed, "measure", pretended)
    monkeypatch.setattr(speed, "matrix_rate", lambda device, precision: 4e11)
    monkeypatch.setattr(speed, "why_nothing_compiles", lambda device: None)
    return speed, made


def test_an_interrupted_benchmark_goes_on_where_it_was(counted, tmp_path):
    speed, made = counted
    keep, cases = tmp_path / "kept.json", speed.CPU_CASES[:4]
    speed.measure_all(cases[:3], CPU, keep, float("inf"))
    speed.measure_all(cases, CPU, keep, float("inf"))
    assert made == [case.name for case in cases]
    kept = json.loads(keep.read_text())
    assert list(kept["cases"]) == made
    with pytest.raises(ValueError, match="another --keep"):
        speed.measure_all(cases, CPU, keep, float("inf"), small=True)


def test_no_case_begins_that_would_end_too_late(counted, tmp_path, capsys):
    speed, made = counted
    cases = [small(run="compiled"), small(), small(run="CUDA graphs")]
    speed.measure_all(cases, CPU, tmp_path / "kept.json", time.monotonic() + 20)
    assert made == [cases[1].name]  # 45 and 50 seconds do not fit, 6 do
    assert capsys.readouterr().out.count("left out") == 2


def test_where_nothing_compiles_the_eager_cases_are_measured(counted, tmp_path, monkeypatch, capsys):
    speed, made = counted
    monkeypatch.setattr(speed, "why_nothing_compiles", lambda device: "no C compiler")
    cases = [small(run="compiled"), small()]
    speed.measure_all(cases, CPU, tmp_path / "kept.json", float("inf"))
    assert made == [cases[1].name]
    assert "no C compiler" in capsys.readouterr().out


def test_a_lost_device_ends_the_process_and_keeps_what_was_made(counted, tmp_path, monkeypatch):
    speed, made = counted
    monkeypatch.setattr(speed, "is_lost", lambda device: True)
    keep = tmp_path / "kept.json"
    with pytest.raises(SystemExit, match="goes on with the next case"):
        speed.measure_all(speed.CPU_CASES[:3], CPU, keep, float("inf"))
    speed.measure_all(speed.CPU_CASES[:3], CPU, keep, float("inf"))
    assert made == [case.name for case in speed.CPU_CASES[:3]]


def test_a_row_has_the_share_of_the_limit_and_how_a_case_failed(counted, tmp_path):
    speed, made = counted
    keep = tmp_path / "kept.json"
    cases = [small(form="published", batch=16), small(form="padded to 8"), small(batch=32), small(task="inference")]
    speed.measure_all(cases, CPU, keep, float("inf"))
    rows = speed.rows(json.loads(keep.read_text()))
    macs = exact_costs("ff_tiny_patch16_224")["macs"]
    assert [row["images/s"] for row in rows] == ["32.0", "out of memory", "64.0", "4.0"]
    assert [row["times published"] for row in rows] == ["1.00", "", "2.00", ""]
    shares = [100 * 32 * 6 * macs / 4e11, 100 * 64 * 6 * macs / 4e11, 100 * 4 * 2 * macs / 4e11]
    assert [row["share of the limit"] for row in rows if row["ms a step"]] == [f"{share:.1f} %" for share in shares]
    assert len({tuple(row) for row in rows}) == 1  # all have the same columns


def test_small_shapes_are_no_measurements(counted, tmp_path):
    speed, _ = counted
    keep = tmp_path / "kept.json"
    speed.measure_all([small()], CPU, keep, float("inf"), small=True)
    with pytest.raises(ValueError, match="--small"):
        speed.rows(json.loads(keep.read_text()))


def test_rows_of_other_machines_stay_when_one_is_measured_again(counted, tmp_path, monkeypatch):
    speed, _ = counted
    import page

    written: list = []
    monkeypatch.setattr(page, "write", lambda name, title, rows, note: written.extend(rows))
    monkeypatch.setattr(page, "ROOT", tmp_path)
    keep = tmp_path / "kept.json"
    speed.measure_all([small()], CPU, keep, float("inf"))
    mine = speed.rows(json.loads(keep.read_text()))
    (tmp_path / "benchmarks").mkdir()
    columns = ",".join(mine[0])
    gpu = ",".join(["GPU: one"] + ["x"] * (len(mine[0]) - 1))
    old = ",".join([f'"{mine[0]["machine"]}"'] + ["old"] * (len(mine[0]) - 1))
    (tmp_path / "benchmarks" / "speed.csv").write_text(f"{columns}\n{gpu}\n{old}\n")
    speed.write([json.loads(keep.read_text())])
    assert [row["machine"] for row in written] == ["GPU: one", mine[0]["machine"]]
    assert written[1] == mine[0]


def test_cases_have_names_of_their_own_and_are_explained():
    import speed
    import timed

    notes = (FOLDER / "NOTES.md").read_text()
    for cases in (speed.GPU_CASES, speed.CPU_CASES):
        names = [case.name for case in cases]
        assert len(set(names)) == len(names)
        for case in cases:
            assert case.form in timed.FORMS and case.run in timed.RUNS and case.task in timed.TASKS
            assert (case.form == "timm") == (not case.model.startswith("ff_"))
            assert case.form in ("ours", "timm") or f"**{case.form}**" in notes, case.form
            assert case.run == "eager" or f"**{case.run}**" in notes, case.run


def test_measuring_imports_nothing_that_only_tables_and_data_need():
    block = (
        "import sys; import speed; "
        "sys.exit(str({'pandas', 'pydantic', 'datasets', 'papermill', 'matplotlib', 'page', 'ffvit.data'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", block], cwd=FOLDER, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"


@pytest.mark.machine
def test_the_script_measures_small_shapes_from_the_shell(tmp_path):
    command = [sys.executable, str(FOLDER / "speed.py"), "--device", "cpu", "--small", "--only", "eager, fp32"]
    keep = tmp_path / "kept.json"
    done = subprocess.run([*command, "--keep", str(keep)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = json.loads(Path(keep).read_text())["cases"]
    assert len(cases) == 6 and not any("failed" in case for case in cases.values())
    assert done.stdout.count("images/s") == 6
    again = subprocess.run([*command, "--keep", str(keep)], capture_output=True, text=True)
    assert "images/s" not in again.stdout
    refused = subprocess.run([*command[:2], "--write", str(keep)], capture_output=True, text=True)
    assert refused.returncode == 2 and "--small" in refused.stderr
