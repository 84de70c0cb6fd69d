"""benchmarks/speed.py, steps.py, pyramids.py and cores.py, and `make benchmark`: every form is the same function,
measuring goes on whatever a case does, and rows say where they were measured."""

import copy
import csv
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ffvit.models.cost import exact_costs
from ffvit.system.files import ROOT

FOLDER = ROOT / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


def other_forms() -> list[str]:
    forms = ["published", "transposed", "tokens first", "padded to 8", "padded to 16", "a product an image"]
    return [*forms, "without dropout", "products kept"]


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


def test_of_products_that_are_kept_none_is_computed_again_and_what_lies_between_is(model):
    class Calls(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.of = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.of[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    def calls(form: str) -> Counter:
        net, parameters = in_form(model, form)
        with Calls() as counted:
            outputs_and_gradients(net, parameters, torch.randn(2, 3, 224, 224), torch.randint(10, (2,)))
        return counted.of

    ours, kept = calls("ours"), calls("products kept")
    assert [kept[name] for name in ("mm", "addmm", "bmm")] == [ours[name] for name in ("mm", "addmm", "bmm")]
    assert ours["gelu"] > 0 and kept["gelu"] == 2 * ours["gelu"]


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
        torch.testing.assert_close(got[name], tensor, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def small(**case):
    import timed

    return timed.Case(**{"model": "ff_tiny_patch16_224", "batch": 2, **case})


@pytest.mark.parametrize("task", ["training", "inference"])
@pytest.mark.parametrize("form", ["ours", *other_forms()])
def test_a_case_is_measured(task, form):
    import timed

    [measured] = timed.measure([small(form=form, task=task)], CPU, img_size=32)
    assert measured["lowest_ms"] <= measured["ms"] <= measured["highest_ms"]
    assert measured["images_per_s"] == pytest.approx(2 / (measured["ms"] / 1000))
    assert measured["peak_memory_gb"] > 0.1 and measured["matrix_rate"] > 1e9
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
    one, other = timed.measure([small(), small(form="published")], CPU, 32, rounds=1)
    assert one["failed"] == said and other["ms"] > 0


def test_a_model_that_gives_nan_is_not_fast(monkeypatch):
    import timed

    def broken(model):
        torch.nn.init.constant_(model.head.bias, float("nan"))
        return model

    monkeypatch.setitem(timed.FORMS, "ours", broken)
    assert "not finite" in timed.measure([small()], CPU, 32, rounds=1)[0]["failed"]


def test_cases_take_turns_so_that_what_else_slows_a_machine_slows_all_of_them(monkeypatch):
    import timed

    seen: list[str] = []

    def pretended(case, device, img_size, rounds):
        for number in range(rounds):
            yield
            seen.append(f"{case.form} {number}")
        return {"ms": 1.0, "products": [{"ours": 1.0, "published": 3.0}[case.form]] * rounds}

    monkeypatch.setattr(timed, "_timed", pretended)
    ours, published = timed.measure([small(), small(form="published")], CPU, rounds=2)
    assert seen == ["ours 0", "published 0", "ours 1", "published 1"]
    fastest = 2 * timed.PRODUCT["cpu"] ** 3 / 1.0  # of all of them: 1 s
    assert ours["matrix_rate"] == published["matrix_rate"] == fastest


@pytest.fixture
def counted(monkeypatch):
    """speed.py, measuring nothing: it lists the cases it would have, and the second of them fails."""
    import speed

    made: list[str] = []

    def pretended(device, cases, img_size):
        return [measured(case) for case in cases]

    def measured(case):
        made.append(case.name)
        if len(made) == 2:
            return {"failed": "out of memory", "took_s": 1.0, "matrix_rate": 4e11}
        step = {
            "ms": 500.0,
            "lowest_ms": 490.0,
            "highest_ms": 510.0,
            "images_per_s": 2 * case.batch,
            "first_step_s": 1.0,
        }
        return {**step, "peak_memory_gb": 1.25, "took_s": 3.0, "matrix_rate": 4e11}

    monkeypatch.setattr(speed, "measure_on", pretended)
    monkeypatch.setattr(speed, "matrix_rate", lambda device, precision: 4e11)
    monkeypatch.setattr(speed, "why_nothing_compiles", lambda device: None)
    return speed, made


def test_an_interrupted_benchmark_goes_on_where_it_was_also_at_another_commit(counted, tmp_path, monkeypatch):
    speed, made = counted
    keep, cases = tmp_path / "kept.json", speed.CPU_CASES[:4]
    assert speed.measure_all(cases[:3], CPU, keep, float("inf")) == []
    monkeypatch.setattr(speed.provenance, "git_state", lambda: {"commit": "b" * 40})  # committed in between
    speed.measure_all(cases, CPU, keep, float("inf"))
    assert made == [case.name for case in cases]
    kept = json.loads(keep.read_text())
    assert list(kept["cases"]) == made
    assert ["commit bbbbbbbbbb" in case["measured"] for case in kept["cases"].values()] == [False, False, False, True]
    with pytest.raises(ValueError, match="another --keep"):
        speed.measure_all(cases, CPU, keep, float("inf"), small=True)


def test_no_case_begins_that_would_end_too_late(counted, tmp_path, capsys, monkeypatch):
    speed, made = counted
    monkeypatch.setattr(speed, "measured_together", lambda cases, device: [[case] for case in cases])
    cases = [small(run="compiled by block"), small(), small(run="compiled by block", precision="fp32")]
    left = speed.measure_all(cases, CPU, tmp_path / "kept.json", time.monotonic() + 25)
    assert made == [cases[1].name] and left == [cases[0], cases[2]]  # 30 seconds do not fit, 20 do
    assert capsys.readouterr().out.count("left out") == 2


def test_where_nothing_compiles_the_eager_cases_are_measured(counted, tmp_path, monkeypatch, capsys):
    speed, made = counted
    monkeypatch.setattr(speed, "why_nothing_compiles", lambda device: "no C compiler")
    cases = [small(run="compiled by block"), small()]
    speed.measure_all(cases, CPU, tmp_path / "kept.json", float("inf"))
    assert made == [cases[1].name]
    assert "no C compiler" in capsys.readouterr().out


def test_a_lost_device_ends_the_process_and_keeps_what_was_made(counted, tmp_path, monkeypatch):
    speed, made = counted
    monkeypatch.setattr(speed, "is_lost", lambda device: True)
    monkeypatch.setattr(speed, "measured_together", lambda cases, device: [[case] for case in cases])
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
    import picture

    written: list = []
    monkeypatch.setattr(page, "write", lambda name, title, rows, note: written.extend(rows))
    monkeypatch.setattr(picture, "draw", lambda: None)
    monkeypatch.setattr(page, "ROOT", tmp_path)
    keep = tmp_path / "kept.json"
    speed.measure_all([small()], CPU, keep, float("inf"))
    mine = speed.rows(json.loads(keep.read_text()))
    again, other = mine[0] | {"images/s": "old"}, mine[0] | {"batch": "64"}
    gpu, blank = mine[0] | {"machine": "GPU: one"}, mine[0] | {"machine": "GPU: none", "measured": page.BLANK}
    (tmp_path / "benchmarks").mkdir()
    speed_csv(tmp_path / "benchmarks", [gpu, again, other, blank])
    speed.write([json.loads(keep.read_text())])
    assert [row for row in written if row["measured"] != page.BLANK] == [gpu, mine[0], other]
    blanks = written[1:-2]  # of the GPU that has a row
    assert len(blanks) == len(speed.GPU_CASES) and {row["machine"] for row in blanks} == {"GPU: one"}


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


def test_a_case_of_a_gpu_is_measured_or_blank_and_says_by_which_command():
    import page

    case = {"model": "a", "run": "eager"}
    mine = {"machine": "CPU: mine", **case, "images/s": "1", "measured": "today"}
    theirs = mine | {"machine": "GPU: one"}
    blank = {"machine": "GPU: one", "model": "b", "run": "eager", "images/s": "", "measured": page.BLANK}
    assert page.with_blanks([theirs, mine], [case, {"model": "b", "run": "eager"}]) == [theirs, mine, blank]
    assert page.with_blanks([mine], [case])[1:] == [
        theirs | {"machine": "GPU: any", "images/s": "", "measured": page.BLANK}
    ]
    assert "make benchmark DEVICE=cuda" in page.BLANK


@pytest.mark.parametrize("name", ["speed", "steps", "pyramids", "images"])
def test_every_case_of_a_gpu_has_a_row(name):
    import images
    import page
    import pyramids
    import speed
    import steps

    cases = {
        "speed": [speed.names(vars(case)) for case in speed.GPU_CASES],
        "steps": steps.gpu_cases(),
        "pyramids": pyramids.gpu_cases(),
        "images": images.GPU_CASES,
    }[name]
    with open(FOLDER / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert page.with_blanks(rows, cases) == rows
    assert {row["machine"].startswith("GPU") for row in rows if row["measured"] == page.BLANK} <= {True}


def test_pages_count_the_rows_that_are_blank_and_leave_them_out(monkeypatch, tmp_path):
    import page

    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setitem(page.SHOWN, "one", ["machine", "ms"])
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/one.csv").write_text(f"machine,ms,measured\nCPU,1,today\nGPU: any,,{page.BLANK}\n")
    text = page.of_benchmark("one")
    assert text.startswith("**CPU**\n\n| ms |\n| --- |\n| 1 |\n\n") and "GPU: any" not in text
    assert "1 of its rows, of a GPU, are blank until `make benchmark DEVICE=cuda` fills them in." in text


def test_each_machine_has_a_table_of_its_own_under_its_name():
    import page

    rows = [{"machine": m, "ms": ms} for m, ms in (("GPU: A", "1"), ("CPU", "2"), ("GPU: A", "3"))]
    assert page.by_machine(rows) == "**GPU: A**\n\n| ms |\n| --- |\n| 1 |\n| 3 |\n\n**CPU**\n\n| ms |\n| --- |\n| 2 |\n"
    assert page.by_machine([{"seed": "0"}]) == page.markdown([{"seed": "0"}])


def row(machine: str, model: str, form: str, run: str, share: float | None, **more: str) -> dict[str, str]:
    words = {"machine": machine, "model": model, "form": form, "run": run, "step": "training", "precision": "bf16"}
    measured = {"share of the limit": f"{share} %", "ms a step": str(1000 / share)} if share else {}
    return {"batch": "16", "share of the limit": "", "ms a step": ""} | words | measured | more


def speed_csv(folder: Path, rows: list[dict[str, str]]) -> Path:
    with open(folder / "speed.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder


def test_aims_are_judged_by_ours_or_else_by_the_fastest_form(tmp_path):
    import aims

    gpu, cpu = "GPU: One", "CPU: 2 cores of Test"
    rows = [
        row(gpu, aims.BASE, "published", "eager", 20.0),
        row(gpu, aims.BASE, "transposed", "compiled", 38.0),
        row(gpu, aims.BASE, "tokens first", "compiled by block", 45.0),
        row(cpu, aims.TINY, "published", "eager", 60.0),
        row(cpu, aims.TINY, "ours", "eager", 75.0),
        row(cpu, aims.TINY, "tokens first", "eager", 99.0),
        row(cpu, aims.TINY, "ours", "eager", 50.0, step="inference"),
        row(cpu, aims.TINY, "ours", "compiled by block", 66.0, step="inference"),
        row(cpu, aims.TINY, "ours", "compiled by block", None, precision="fp32"),
    ]
    found = aims.rows(speed_csv(tmp_path, rows))
    told = [(r["as a share of the limit"], r["measured"], r["by"], r["verdict"]) for r in found]
    assert told == [
        ("40 %", "45.0 %", "tokens first, compiled by block", "reached"),
        ("50 %", "45.0 %", "tokens first, compiled by block", "missed"),
        ("60 %", "2.25 times", "tokens first, compiled by block", "missed"),
        ("", "not yet", "", ""),
        ("75 %", "75.0 %", "ours, eager", "reached"),
        ("75 %", "1.25 times", "ours, eager", "reached"),
        ("", "not yet", "", ""),
        ("65 %", "1.32 times", "ours, compiled by block", "reached"),
        ("", "not yet", "", ""),
    ]


def test_the_picture_has_every_share_that_was_measured_in_the_panel_of_its_machine(tmp_path):
    import picture

    rows = [
        row("GPU: One", "ff_base_patch16_224", "ours", "eager", 20.0),
        row("GPU: One", "ff_base_patch16_224", "ours", "compiled", 40.0),
        row("GPU: One", "ff_base_patch16_224", "ours", "eager", 30.0, batch="32"),
        row("GPU: One", "mixer_b16_224", "timm", "eager", 25.0),
        row("GPU: One", "mixer_b16_224", "timm", "compiled", None),
        row("CPU: 2 cores of Test", "ff_tiny_patch16_224", "ours", "eager", 70.0, step="inference"),
    ]
    figure = picture.picture(picture.table(speed_csv(tmp_path, rows) / "speed.csv"))
    gpu, cpu = figure.axes
    assert (gpu.get_title(loc="left"), cpu.get_title(loc="left")) == ("One, bf16", "2 cores of Test, bf16")
    assert sorted(x for x, _ in gpu.collections[0].get_offsets()) == [20.0, 25.0, 30.0, 40.0]
    figure.canvas.draw()
    assert [label.get_text() for label in gpu.get_yticklabels()] == [
        "ff_base, ours",
        "ff_base, ours, batch 32",
        "mixer_b16",
    ]
    assert [label.get_text() for label in cpu.get_yticklabels()] == ["ff_tiny, inference, ours"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["eager", "compiled"]


def test_waiting_is_told_as_it_was_measured_below_zero_too():
    import steps

    took = {"there already": [1.0, 1.0, 1.2], "on the device": [0.8, 1.0, 0.8], "one by one": [2.0, 1.0, 4.0]}
    row = steps.numbers(took, batch=32)
    assert (row["batch there (ms)"], row["on the device (ms)"], row["one by one (ms)"]) == ("1000.0", "800.0", "2000.0")
    assert (row["waiting, on the device"], row["waiting, one by one"]) == ("-25.0 %", "50.0 %")
    assert row["lowest to highest, on the device"] == "-50.0 to 0.0 %"
    assert row["lowest to highest, one by one"] == "0.0 to 70.0 %"
    assert (row["images/s, on the device"], row["images/s, one by one"]) == ("40", "16")


def test_runs_that_share_cores_are_told_by_the_ratios_of_their_rounds(monkeypatch):
    import cores
    import speed

    here = speed.machine(CPU)
    here["hardware"]["cpu_cores"] = 2
    speeds = {(1, 2): iter([10.0, 20.0, 30.0, 40.0, 50.0]), (2, 1): iter([20.0, 30.0, 40.0, 50.0, 60.0])}
    monkeypatch.setattr(cores, "images_per_s", lambda name, processes, threads: next(speeds[processes, threads]))
    row = cores.row_of("FF-only tiny, 224 px", here)
    assert (row["one run on all cores (images/s)"], row["a run a core (images/s)"]) == ("30", "40")
    assert (row["times"], row["lowest to highest"]) == ("1.33", "1.20 to 2.00")


@pytest.mark.machine
def test_two_processes_train_side_by_side(monkeypatch, capfd):
    import cores

    name = next(iter(cores.SHAPES))
    assert cores.images_per_s(name, 2, 1) > 0
    monkeypatch.setitem(cores.SHAPES, "no shape that it knows", ({}, 1))
    with pytest.raises(RuntimeError, match="its error is above"):
        cores.images_per_s("no shape that it knows", 2, 1)
    assert "KeyError" in capfd.readouterr().err


def test_a_case_of_pyramids_that_fails_is_a_row_that_says_so(monkeypatch):
    import pyramids

    def measured(script, name, *size):
        if size == ("224", "224"):
            raise RuntimeError("no memory")
        return {"ms": [1.0, 2.0, 9.0], "mb": 1000}

    monkeypatch.setattr(pyramids, "measured_alone", measured)
    row = pyramids.row_of("backbone", "lit_ti", CPU)
    assert (row["224 x 224 (ms)"], row["224 x 224 (MB)"]) == ("failed", "")
    assert (row["512 x 512 (ms)"], row["512 x 512 (MB)"]) == ("2", "1,000") and row["machine"].startswith("CPU: ")
    assert (row["224 x 224, lowest to highest"], row["512 x 512, lowest to highest"]) == ("", "1 to 9")


def test_on_a_cpu_all_cases_of_a_precision_are_measured_together():
    import speed

    by_precision = speed.measured_together(speed.CPU_CASES, CPU)
    assert [{case.precision for case in group} for group in by_precision] == [{"bf16"}, {"fp32"}]
    assert sum(by_precision, []) == speed.CPU_CASES
    assert speed.measured_together(speed.GPU_CASES, torch.device("cuda")) == [[case] for case in speed.GPU_CASES]


@pytest.mark.machine
def test_a_case_of_a_cpu_is_measured_in_a_process_of_its_own():
    import speed

    [here] = speed.measure_on(CPU, [small()], 32)
    assert here["lowest_ms"] <= here["ms"] <= here["highest_ms"] < 1000 * here["took_s"]
    assert 0.1 < here["peak_memory_gb"] < 3


def test_of_a_process_of_its_own_the_last_line_is_what_was_measured(tmp_path):
    import alone

    script = tmp_path / "case.py"
    script.write_text("import json, sys; print('first'); print(json.dumps({'given': sys.argv[1:]}))")
    assert alone.measured_alone(str(script), "a case", "32") == {"given": ["--alone", "a case", "32"]}


def test_a_case_whose_process_is_killed_is_a_row_that_says_so(monkeypatch, tmp_path):
    import alone
    import speed

    script = tmp_path / "killed.py"
    script.write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(speed, "measured_alone", lambda _, *arguments: alone.measured_alone(str(script), *arguments))
    assert speed.measure_on(CPU, [small()], 32)[0]["failed"] == "its process ended with -9"


def test_what_make_benchmark_is_given_does_not_reach_the_pipeline_that_is_timed(monkeypatch):
    import startup

    made = (ROOT / "Makefile").read_text()
    variables = made.partition("VALUES := ")[2].partition("\n")[0].split()
    for name in (*variables, "MAKEFLAGS"):
        monkeypatch.setenv(name, "/photographs")
    assert "/photographs" not in startup.environment().values() and "PATH" in startup.environment()


@pytest.fixture
def make_benchmark(tmp_path):
    """Calls it in an empty folder, with a `python` that only writes down what it is asked; gives those lines, and make's."""
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$@" >> asked\ncase "$*" in *"$ENDS"*) exit "$WITH";; esac\n')
    fake.chmod(0o755)
    here = {"CONDA_DEFAULT_ENV": "ffvit", "PATH": f"{fake.parent}:{os.environ['PATH']}"}

    def call(*values: str, ends: str = "nothing", code: int = 0) -> tuple[list[str], subprocess.CompletedProcess]:
        (tmp_path / "asked").unlink(missing_ok=True)
        done = subprocess.run(
            ["make", "-f", str(ROOT / "Makefile"), "benchmark", *values],
            cwd=tmp_path,
            env=os.environ | here | {"ENDS": ends, "WITH": str(code)},
            capture_output=True,
            text=True,
        )
        return (tmp_path / "asked").read_text().splitlines(), done

    return call, tmp_path / "runs"


def scripts_of(asked: list[str]) -> list[str]:
    names = [line.split()[0].removeprefix("benchmarks/").removesuffix(".py") for line in asked]
    return list(dict.fromkeys(names))


def test_make_benchmark_goes_on_with_the_script_that_was_interrupted(make_benchmark):
    call, runs = make_benchmark
    everything = ["speed", "startup", "overhead", "steps", "images", "same_recipe", "pyramids", "cores"]
    asked, done = call(ends="overhead.py", code=1)
    assert scripts_of(asked) == everything[:3] and done.returncode
    asked, done = call()
    assert scripts_of(asked) == everything[2:] and done.returncode == 0, done.stderr
    assert not list(runs.iterdir())  # so that the next time all are measured anew
    assert scripts_of(call()[0]) == everything


def test_on_a_gpu_every_script_is_told_so_and_steps_that_are_left_come_with_the_next_call(make_benchmark):
    call, runs = make_benchmark
    asked, done = call("DEVICE=cuda", ends="speed.py --keep", code=75)
    assert scripts_of(asked) == ["speed", "images", "pyramids", "steps"] and done.returncode == 0, done.stderr
    assert all(line.endswith("--device cuda") for line in asked if "--write" not in line)
    assert "--seconds" in asked[0] and "--write" in asked[1] and "the same command goes on" in done.stdout
    asked, done = call("DEVICE=cuda")
    assert scripts_of(asked) == ["speed"] and not list(runs.iterdir())


@pytest.mark.machine
def test_the_script_measures_small_shapes_from_the_shell(tmp_path):
    command = [sys.executable, str(FOLDER / "speed.py"), "--device", "cpu", "--small", "--only", "ours, eager, fp32"]
    keep = tmp_path / "kept.json"
    done = subprocess.run([*command, "--keep", str(keep)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = json.loads(Path(keep).read_text())["cases"]
    assert len(cases) == 2 and not any("failed" in case for case in cases.values())
    assert done.stdout.count("images/s") == 2
    again = subprocess.run([*command, "--keep", str(keep)], capture_output=True, text=True)
    assert "images/s" not in again.stdout
    refused = subprocess.run([*command[:2], "--write", str(keep)], capture_output=True, text=True)
    assert refused.returncode == 2 and "--small" in refused.stderr
