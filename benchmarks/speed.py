"""How fast is a step, beside the report's Figure 2 as published, timm's models, and what the hardware can do at most?

    python benchmarks/speed.py --keep runs/speed.json     # measures; killed or out of time, the same command goes on
    python benchmarks/speed.py --write runs/speed.json    # what was measured, also elsewhere, into the tables

Measuring needs PyTorch, timm and this folder, not what the tables need. On a GPU: the published sizes in bf16; on a CPU:
the tiny one, in small batches. Cases come in order of value, so that --seconds cuts off what matters least; a case that
fails is a row that says how. NOTES.md has what each idea was expected to give.
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
    )
]
# What a case takes at most, roughly, before any like it was measured; compilation takes most of it.
EXPECTED_S = {"eager": 6, BLOCK: 14, "compiled": 45, "CUDA graphs": 50}
BACKWARD = 3  # a step of training has the products of the forward pass three times
NOTE = (
    "Steps on random images that are on the device already: forward pass, loss, backward pass, AdamW. Medians of five rounds. "
    "The limit is what one large product of random matrices of the same type reached in the same run; a step's share of "
    "it counts multiply-adds by formula, three times as many for training, and nothing that a form adds to them. "
    "Published is the report's Figure 2, eager; compiled by block compiles one block, which the others share, and leaves "
    "the rest eager. The first step has the compilation in it, shorter where a case before left some. What each form is, "
    "and what was expected of it: [NOTES.md](NOTES.md). Every row says where it was measured; the line below, where "
    "this page was written."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "speed.json", help="where measurements are kept")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case that would end after these")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--small", action="store_true", help="tiny shapes: to see that all cases run, not how fast")
    parser.add_argument("--write", type=Path, nargs="+", metavar="FILE", help="write what was kept, measure nothing")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    try:
        if options.write:
            write([json.loads(path.read_text()) for path in options.write])
            return
        if options.device == "cpu":
            keep_memory()
        measure_all(cases_of(options), torch.device(options.device), options.keep, deadline, options.small)
    except (OSError, ValueError) as error:
        parser.error(str(error))


def cases_of(options: argparse.Namespace) -> list[Case]:
    cases = [case for case in (GPU_CASES if options.device == "cuda" else CPU_CASES) if options.only in case.name]
    return [replace(case, batch=2) for case in cases] if options.small else cases


def measure_all(cases: list[Case], device: torch.device, keep: Path, deadline: float, small: bool = False) -> None:
    """Measure those that are not kept yet, each kept as soon as it is made, as long as there is time for it."""
    kept = resumed(keep, machine(device), small)
    for precision in DTYPES:
        if precision not in kept["matrix_rates"]:
            kept["matrix_rates"][precision] = matrix_rate(device, precision)
            say(f"a large product in {precision}: {kept['matrix_rates'][precision] / 1e12:.2f} TFLOP/s")
    write_atomically(keep, json.dumps(kept, indent=1))
    missing = [case for case in cases if case.name not in kept["cases"]]
    if any(case.run != "eager" for case in missing) and (why := why_nothing_compiles(device)):
        say(f"nothing compiles here, so that only eager cases are measured: {why}")
        missing = [case for case in missing if case.run == "eager"]
    took_s = dict(EXPECTED_S)  # by how it is run: the latest in this process
    for case in missing:
        left, needs = deadline - time.monotonic(), took_s[case.run]
        if needs > left:
            say(f"left out: {case.name}: {max(0, left):.0f} s are left, it may need {needs:.0f}")
            continue
        measured = measure(case, device, 32 if small else 224)
        took_s[case.run] = measured["took_s"]
        kept["cases"][case.name] = asdict(case) | measured
        write_atomically(keep, json.dumps(kept, indent=1))
        what = measured.get("failed") or f"{measured['images_per_s']:,.1f} images/s, {measured['ms']:.1f} ms a step"
        say(
            f"{case.name}: {what}; {measured['took_s']:.1f} s, of which {measured.get('first_step_s', 0):.1f} the first step"
        )
        if "failed" in measured and is_lost(device):
            sys.exit("the device takes nothing more from this process; the same command goes on with the next case")
    say(f"{len(kept['cases'])} cases are kept in {keep}")


def say(line: str) -> None:
    print(line, flush=True)


def machine(device: torch.device) -> dict:
    """What a reader needs to judge the numbers."""
    versions = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    commit = provenance.git_state()["commit"]
    return {"hardware": provenance.hardware(device), "versions": versions, "commit": commit}


def resumed(keep: Path, here: dict, small: bool) -> dict:
    """What is kept, or its beginning. Raises ValueError for measurements of another machine, or other shapes."""
    if not keep.exists():
        day = datetime.date.today().isoformat()
        return {"machine": here, "date": day, "small": small, "matrix_rates": {}, "cases": {}}
    kept = json.loads(keep.read_text())
    if kept["machine"] != here or kept["small"] != small:
        raise ValueError(
            f"{keep} has measurements of {kept['machine']}{', small ones' * kept['small']}: give another --keep"
        )
    return kept


def write(all_kept: list[dict]) -> None:
    """benchmarks/speed.csv and its pages; rows of machines that are not measured now stay as they are."""
    import page  # here: it needs what the tables need

    new = [row for kept in all_kept for row in rows(kept)]
    stay = page.of_other_machines("speed", new)
    page.write("speed", "How fast is a step?", sorted(new + stay, key=lambda row: "GPU" not in row["machine"]), NOTE)


def rows(kept: dict) -> list[dict[str, str]]:
    """A row a case, in words. Raises ValueError for small shapes, which say nothing."""
    if kept["small"]:
        raise ValueError("measured with --small: those are no measurements")
    hardware, versions = kept["machine"]["hardware"], kept["machine"]["versions"]
    where = f"GPU: {hardware['gpu']}" if hardware["gpu"] else f"CPU: {hardware['cpu_cores']} cores of {hardware['cpu']}"
    how = ", ".join(f"{name} {version}" for name, version in versions.items())
    published = {
        (case["model"], case["task"], case["precision"]): case.get("images_per_s")
        for case in kept["cases"].values()
        if (case["form"], case["run"]) == ("published", "eager")
    }
    macs = {model: exact_costs(model)["macs"] for model in {case["model"] for case in kept["cases"].values()}}
    return [
        {
            "machine": where,
            "model": case["model"],
            "step": case["task"],
            "form": case["form"] + ("" if case["fused"] else ", AdamW not fused"),
            "run": case["run"],
            "precision": case["precision"],
            "batch": str(case["batch"]),
            **numbers(case, macs[case["model"]], kept["matrix_rates"], published),
            "measured": f"{kept['date']}, commit {(kept['machine']['commit'] or 'unknown')[:10]}, {how}",
        }
        for case in kept["cases"].values()
    ]


def numbers(case: dict, macs: int, rates: dict[str, float], published: dict) -> dict[str, str]:
    """What was measured of a case, and what follows; a case that failed says so in place of images/s."""
    rate = rates[case["precision"]]
    limit = rate / (2 * macs * (BACKWARD if case["task"] == "training" else 1))
    fast = case.get("images_per_s")
    slow = published.get((case["model"], case["task"], case["precision"]))
    memory = case.get("peak_memory_gb")
    return {
        "images/s": f"{fast:,.1f}" if fast else case["failed"].replace("|", "/"),
        "times published": f"{fast / slow:.2f}" if fast and slow else "",
        "share of the limit": f"{100 * fast / limit:.1f} %" if fast else "",
        "limit (images/s)": f"{limit:,.1f}",
        "matrix rate (TFLOP/s)": f"{rate / 1e12:.2f}",
        "ms a step": f"{case['ms']:.1f}" if fast else "",
        "lowest to highest": f"{case['lowest_ms']:.1f} to {case['highest_ms']:.1f}" if fast else "",
        "peak memory (GB)": f"{memory:.1f}" if memory else "",
        "first step (s)": f"{case['first_step_s']:.1f}" if fast else "",
    }


def keep_memory() -> None:
    """On a CPU, start again as `ffvit train` starts: glibc reads how it keeps memory only at the start."""
    from ffvit.launching.launch import KEEP_MEMORY  # here: a GPU needs neither it nor what it imports

    if not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})


if __name__ == "__main__":
    main()
