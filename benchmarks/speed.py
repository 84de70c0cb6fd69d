"""How fast is a step, beside the report's Figure 2 as published, timm's models, and what the hardware can do at most?

    python benchmarks/speed.py --keep runs/speed.json     # measures; killed or out of time, the same command goes on
    python benchmarks/speed.py --write runs/speed.json    # what was measured, also elsewhere, into the tables

Measuring needs PyTorch, timm and this folder, not what the tables need. On a GPU: the published sizes in bf16, one after
the other. On a CPU: the tiny one, in small batches, all of a precision in turns. Cases come in order of
value, so that --seconds cuts off what matters least; the exit code is 75 then, and the same command goes on with it. A case
that fails is a row that says how. Writing draws speed.png, too. NOTES.md has what each idea was expected to give.
"""

import argparse
import datetime
import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import timm
import torch
from alone import measured_alone
from timed import DTYPES, Case, is_lost, matrix_rate, measure, why_nothing_compiles

from ffvit.models.cost import exact_costs
from ffvit.system import provenance
from ffvit.system.files import ROOT, write_atomically

BASE, TINY, LARGE = "ff_base_patch16_224", "ff_tiny_patch16_224", "ff_large_patch32_224"
MIXER, RESMLP = "mixer_b16_224", "resmlp_24_224"
DEIT_BASE, DEIT_TINY = "deit_base_patch16_224", "deit_tiny_patch16_224"
BLOCK = "compiled by block"
GPU_CASES = [
    Case(BASE, "published"),
    Case(BASE),
    Case(BASE, run=BLOCK),
    Case(BASE, "transposed", BLOCK),
    Case(BASE, "tokens first", BLOCK),
    Case(BASE, run="compiled"),
    Case(BASE, "padded to 8", BLOCK),
    Case(TINY, "published", batch=1024),
    Case(TINY, run=BLOCK, batch=1024),
    Case(TINY, batch=1024),
    Case(MIXER, "timm"),
    Case(BASE, task="inference"),
    Case(BASE, run=BLOCK, task="inference"),
    Case(DEIT_BASE, "timm"),
    Case(RESMLP, "timm"),
    Case(DEIT_TINY, "timm", batch=1024),
    Case(TINY, task="inference", batch=1024),
    Case(TINY, run=BLOCK, task="inference", batch=1024),
    Case(BASE, "a product an image", BLOCK),
    Case(TINY, "a product an image", BLOCK, 1024),
    Case(BASE, "a product an image"),
    Case(TINY, "a product an image", batch=1024),
    Case(BASE, "a product an image", BLOCK, task="inference"),
    Case(TINY, "a product an image", BLOCK, 1024, task="inference"),
    Case(BASE, "padded to 8"),
    Case(TINY, "transposed", BLOCK, 1024),
    Case(TINY, "tokens first", BLOCK, 1024),
    Case(MIXER, "timm", BLOCK),
    Case(BASE, "published", BLOCK),
    Case(DEIT_BASE, "timm", BLOCK),
    Case(RESMLP, "timm", BLOCK),
    Case(DEIT_TINY, "timm", BLOCK, 1024),
    Case(BASE, run=BLOCK, batch=128),
    Case(BASE, run=BLOCK, batch=512),
    Case(BASE, "padded to 16", BLOCK),
    Case(BASE, "without dropout"),
    Case(BASE, "products kept", BLOCK),
    Case(BASE, run=BLOCK, fused=False),
    Case(LARGE, "published"),
    Case(LARGE),
    Case(LARGE, run=BLOCK),
    Case(BASE, run="CUDA graphs"),
    Case(TINY, run="CUDA graphs", batch=1024),
    Case(TINY, run="compiled", batch=1024),
    Case("vit_large_patch32_224", "timm"),
    Case("vit_large_patch32_224", "timm", BLOCK),
]
CPU_CASES = [
    Case(model, form, run, 16, task, precision)
    for precision in ("bf16", "fp32")
    for model, form, run, task in (
        (TINY, "published", "eager", "training"),
        (TINY, "ours", "eager", "training"),
        (TINY, "ours", BLOCK, "training"),
        (DEIT_TINY, "timm", "eager", "training"),
        ("resmlp_12_224", "timm", "eager", "training"),
        (TINY, "ours", "eager", "inference"),
        (TINY, "ours", BLOCK, "inference"),
        (TINY, "transposed", BLOCK, "training"),
        (TINY, "transposed", "eager", "training"),
        (TINY, "padded to 8", BLOCK, "training"),
        (TINY, "a product an image", BLOCK, "training"),
        (TINY, "tokens first", BLOCK, "training"),
        (TINY, "without dropout", "eager", "training"),
        (TINY, "products kept", "eager", "training"),
    )
]
# What a case takes at most, roughly, before any like it was measured; on a GPU compilation takes most of it.
EXPECTED_S = {
    "cuda": {"eager": 6, BLOCK: 14, "compiled": 45, "CUDA graphs": 50},
    "cpu": {"eager": 20, BLOCK: 30},
}
BACKWARD = 3  # a step of training has the products of the forward pass three times
NAMED_BY = (
    "machine",
    "model",
    "step",
    "form",
    "run",
    "precision",
    "batch",
)  # the columns that tell a row from all others
NOTE = (
    "Steps on random images that are on the device already: forward pass, loss, backward pass, AdamW. Of a GPU, medians of five "
    "rounds. Of a CPU, the fastest of eleven, in which all cases of a precision take turns: other work on a shared machine only "
    "adds time, to the limit's products, too, of which the fastest counts as well. The limit is what one large product of random "
    "matrices of the same type reached in the same run, on a CPU after each turn; a step's share of it counts multiply-adds by "
    "formula, three times as many for training, and nothing that a form adds to them. Published is the report's Figure 2, eager; "
    "compiled by block compiles one block, which the others share, and leaves the rest eager. The first step has the "
    "compilation in it, shorter where a case before left some. What each form is, and what was expected of it: "
    "[NOTES.md](NOTES.md). Peak memory is what PyTorch held at most of a GPU; of a CPU's, what the case's own process did, "
    "with libraries and what compiling took. Every row says where it was measured; the line below, where this page was written."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "speed.json", help="where measurements are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case that would end after these")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--small", action="store_true", help="tiny shapes: to see that all cases run, not how fast")
    parser.add_argument("--write", type=Path, nargs="+", metavar="FILE", help="write what was kept, measure nothing")
    parser.add_argument("--alone", nargs=3, metavar=("CASES", "SIZE", "ROUNDS"), help="in this process, on the CPU")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    try:
        if options.write:
            write([json.loads(path.read_text()) for path in options.write])
            return
        if options.device == "cpu" or options.alone:
            from ffvit.system.machine import keep_memory  # here: a GPU needs neither it nor what it imports

            keep_memory()
        if options.alone:
            cases, img_size, rounds = map(json.loads, options.alone)
            print(json.dumps(measure([Case(**case) for case in cases], torch.device("cpu"), img_size, rounds)))
            return
        left = measure_all(cases_of(options), torch.device(options.device), options.keep, deadline, options.small)
        sys.exit(os.EX_TEMPFAIL if left else 0)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def cases_of(options: argparse.Namespace) -> list[Case]:
    cases = [case for case in (GPU_CASES if options.device == "cuda" else CPU_CASES) if options.only in case.name]
    return [replace(case, batch=2) for case in cases] if options.small else cases


def measure_all(
    cases: list[Case], device: torch.device, keep: Path, deadline: float, small: bool = False
) -> list[Case]:
    """Measure those that are not kept yet, each kept as soon as it is made. Returns those that there was no time for."""
    kept = resumed(keep, machine(device), small)
    now = measured(kept["machine"])
    left_out = []
    for precision in DTYPES if device.type == "cuda" else ():  # on a CPU, beside every case
        if precision not in kept["matrix_rates"]:
            kept["matrix_rates"][precision] = matrix_rate(device, precision)
            say(f"a large product in {precision}: {kept['matrix_rates'][precision] / 1e12:.2f} TFLOP/s")
    write_atomically(keep, json.dumps(kept, indent=1))
    missing = [case for case in cases if case.name not in kept["cases"]]
    if any(case.run != "eager" for case in missing) and (why := why_nothing_compiles(device)):
        say(f"nothing compiles here, so that only eager cases are measured: {why}")
        missing = [case for case in missing if case.run == "eager"]
    took_s = dict(EXPECTED_S[device.type])  # by how it is run: the latest in this process
    for group in measured_together(missing, device):
        left, needs = deadline - time.monotonic(), sum(took_s[case.run] for case in group)
        if needs > left:
            say(
                f"left out: {', '.join(case.name for case in group)}: {max(0, left):.0f} s are left, {needs:.0f} needed"
            )
            left_out += group
            continue
        if len(group) > 1:
            say(f"{len(group)} cases in turns, together in about {needs:.0f} s")
        for case, found in zip(group, measure_on(device, group, 32 if small else 224)):
            took_s[case.run] = found["took_s"]
            rate = found.get("matrix_rate") or kept["matrix_rates"].get(case.precision)
            kept["cases"][case.name] = asdict(case) | found | {"matrix_rate": rate, "measured": now}
            what = found.get("failed") or f"{found['images_per_s']:,.1f} images/s, {found['ms']:.1f} ms a step"
            say(
                f"{case.name}: {what}; {found['took_s']:.1f} s, of which {found.get('first_step_s', 0):.1f} the first step"
            )
        write_atomically(keep, json.dumps(kept, indent=1))
        if "failed" in found and is_lost(device):
            sys.exit("the device takes nothing more from this process; the same command goes on with the next case")
    say(f"{len(kept['cases'])} cases are kept in {keep}")
    return left_out


def measured_together(cases: list[Case], device: torch.device) -> list[list[Case]]:
    """On a GPU each by itself; on a CPU, which may have other work from one minute to the next, in turns with all to be compared."""
    if device.type == "cuda":
        return [[case] for case in cases]
    return [group for precision in DTYPES if (group := [case for case in cases if case.precision == precision])]


def measure_on(device: torch.device, cases: list[Case], img_size: int) -> list[dict]:
    """On a CPU, the memory that each takes is that of a process of its own."""
    if device.type == "cuda":
        return measure(cases, device, img_size)
    began = time.monotonic()
    found = [in_a_process([case], img_size, rounds=1)[0] for case in cases]
    sound = [number for number, its in enumerate(found) if "failed" not in its]
    for number, its in zip(sound, in_a_process([cases[number] for number in sound], img_size) if sound else []):
        found[number] = its | {"peak_memory_gb": found[number]["peak_memory_gb"]}
    return [its | {"took_s": (time.monotonic() - began) / len(cases)} for its in found]


def in_a_process(cases: list[Case], img_size: int, rounds: int = 0) -> list[dict]:
    """`measure` in a process of their own, which a system may kill for the memory that it takes: their result, then."""
    try:
        return measured_alone(__file__, json.dumps([asdict(case) for case in cases]), str(img_size), str(rounds))
    except RuntimeError as error:
        return [{"failed": str(error).splitlines()[-1]} for _ in cases]


def say(line: str) -> None:
    print(line, flush=True)


def machine(device: torch.device) -> dict:
    """What a reader needs to judge the numbers, and what has to be the same for measuring to go on."""
    versions = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    return {"hardware": provenance.hardware(device), "versions": versions}


def where(here: dict) -> str:
    """ "GPU: NVIDIA H200", "CPU: 2 cores of AMD EPYC": the column "machine" of what was measured there."""
    hardware = here["hardware"]
    return f"GPU: {hardware['gpu']}" if hardware["gpu"] else f"CPU: {hardware['cpu_cores']} cores of {hardware['cpu']}"


def measured(here: dict) -> str:
    """The column "measured" of what is measured now: the day, the commit, the versions."""
    commit = (provenance.git_state()["commit"] or "unknown")[:10]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    return f"{datetime.date.today()}, commit {commit}, {versions}"


def resumed(keep: Path, here: dict, small: bool) -> dict:
    """What is kept, or its beginning. Raises ValueError for measurements of another machine, or other shapes."""
    if not keep.exists():
        return {"machine": here, "small": small, "matrix_rates": {}, "cases": {}}
    kept = json.loads(keep.read_text())
    if kept["machine"] != here or kept["small"] != small:
        raise ValueError(
            f"{keep} has measurements of {kept['machine']}{', small ones' * kept['small']}: give another --keep, or remove it"
        )
    return kept


def write(all_kept: list[dict]) -> None:
    """benchmarks/speed.csv, its pages and its picture; what was measured before stays, but for the cases measured now."""
    import page  # here: they need what the tables need
    import picture

    new = [row for kept in all_kept for row in rows(kept)]
    again = {tuple(row[column] for column in NAMED_BY) for row in new}
    stay = [row for row in page.measured_before("speed") if tuple(row[column] for column in NAMED_BY) not in again]
    every = page.with_blanks(new + stay, [names(asdict(case)) for case in GPU_CASES])
    place = {tuple(names(asdict(case)).values()): number for number, case in enumerate([*GPU_CASES, *CPU_CASES])}
    every.sort(
        key=lambda row: (
            "GPU" not in row["machine"],
            row["machine"],
            place.get(tuple(row[column] for column in NAMED_BY[1:]), len(place)),
        )
    )
    page.write("speed", "How fast is a step?", every, NOTE)
    picture.draw()


def rows(kept: dict) -> list[dict[str, str]]:
    """A row a case, in words. Raises ValueError for small shapes, which say nothing."""
    if kept["small"]:
        raise ValueError("measured with --small: those are no measurements")
    limits = {name: limit(case) for name, case in kept["cases"].items()}
    published = {
        (case["model"], case["task"], case["precision"]): case.get("images_per_s")
        for case in kept["cases"].values()
        if (case["form"], case["run"]) == ("published", "eager")
    }
    return [
        {
            "machine": where(kept["machine"]),
            **names(case),
            **numbers(case, limits[name], published.get((case["model"], case["task"], case["precision"]))),
            "measured": case["measured"],
        }
        for name, case in kept["cases"].items()
    ]


def limit(case: dict) -> float | None:
    """Images/s, if nothing but products took time; None of a case that failed before products were measured beside it."""
    macs = exact_costs(case["model"])["macs"] * (BACKWARD if case["task"] == "training" else 1)
    return case["matrix_rate"] and case["matrix_rate"] / (2 * macs)


def names(case: dict) -> dict[str, str]:
    """The columns of NAMED_BY, without the machine."""
    return {
        "model": case["model"],
        "step": case["task"],
        "form": case["form"] + ("" if case["fused"] else ", AdamW not fused"),
        "run": case["run"],
        "precision": case["precision"],
        "batch": str(case["batch"]),
    }


def numbers(case: dict, limit: float | None, published: float | None) -> dict[str, str]:
    """What was measured of a case, and what follows; a case that failed says so in place of images/s.

    published: the images/s of the published form.
    """
    fast = case.get("images_per_s")
    memory = case.get("peak_memory_gb")
    return {
        "images/s": f"{fast:,.1f}" if fast else case["failed"].replace("|", "/"),
        "times published": f"{fast / published:.2f}" if fast and published else "",
        "share of the limit": f"{100 * fast / limit:.1f} %" if fast else "",
        "limit (images/s)": f"{limit:,.1f}" if limit else "",
        "matrix rate (TFLOP/s)": f"{case['matrix_rate'] / 1e12:.2f}" if limit else "",
        "ms a step": f"{case['ms']:.1f}" if fast else "",
        "lowest to highest": f"{case['lowest_ms']:.1f} to {case['highest_ms']:.1f}" if fast else "",
        "peak memory (GB)": f"{memory:.1f}" if memory else "",
        "first step (s)": f"{case['first_step_s']:.1f}" if fast else "",
    }


if __name__ == "__main__":
    main()
