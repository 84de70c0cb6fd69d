"""What the report's Table 1 would cost, from speed.csv and images.csv: a table of docs/speed.md, made by `make readme`.

Nothing here was trained at that size. A time is what the steps of all epochs take at the measured rate, or their images
where the cores make fewer ready; what follows from measurements so is marked with ≈, and what lacks one is "not run".
"""

import csv
from pathlib import Path

from images import CROPPED, DEVICE, OURS, SAMPLES

from ffvit.evidence.reported import load_reported
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.files import ROOT

PLACE = "Table 1"
IMAGES = 1_281_167  # of ImageNet-1k, to train on (Russakovsky et al. 2015, arXiv:1409.0575)
FORMS = ("ours", "transposed", "timm")  # of the step: ours, or what ours was until it was made faster; others' models
CORES = 8  # for each GPU, as many as DeiT's recipe has workers
NOT_RUN = "not run"
STEP, ALONE = "step (images/s)", ("steps alone, 1 GPU (h)", "steps alone, 8 GPUs (h)")
# How images are made ready, and on which photographs.
WAYS = {
    "augment=image": (OURS, "as they are"),
    "augment=batch": (CROPPED, "as they are"),
    "augment=batch, prepared": (CROPPED, "prepared"),
}


def text(folder: Path = ROOT / "benchmarks") -> str:
    """The section, a table for each GPU that steps were measured on."""
    speed, images = (_read(folder / f"{name}.csv") for name in ("speed", "images"))
    gpus = sorted({row["machine"] for row in speed if row["machine"].startswith("GPU") and row["images/s"]})
    real = [row for row in images if row["taken from"] != SAMPLES]
    core = {name: _rate(real, way, on) for name, (way, on) in WAYS.items()}
    cores = sorted({row["machine"].removeprefix("a core of ") for row in real if row["way"] == OURS})
    parts = []
    for gpu in gpus:
        on_device = _rate([row for row in images if row["machine"] == gpu], DEVICE, "any")
        rows = [_row(config, [row for row in speed if row["machine"] == gpu], core, on_device) for config in table_1()]
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        device = (
            f"{on_device:,.0f} images a second by itself, which is in the hours"
            if on_device
            else "that time is not in the hours (not run: `python benchmarks/images.py --device cuda` measures it)"
        )
        name = gpu.removeprefix("GPU: ")
        parts.append(f"Steps on one {name}. With `augment=batch` the GPU augments, too: {device}.\n\n{table}")
    return (
        "\n".join(parts)
        + "\n≈ is extrapolated: no run of these was made. The last columns are ways to make images ready: how many cores feed one GPU; and how "
        f"long it takes with {CORES} cores, with what decides that, its step or its images. Eight GPUs "
        f"take an eighth, with {8 * CORES} cores, where they wait for nothing else. Rates of images are those of a core of "
        f"{', '.join(cores)}, and cores differ. A step is the fastest that was measured of its model: compiled ones beside eager "
        f"ones are no comparison like for like. Where a step was {NOT_RUN}, `make benchmark DEVICE=cuda` measures it. Validation, "
        "checkpoints, reading files and what GPUs tell one another are left out.\n"
    )


def table_1() -> list[Config]:
    """Runs of experiments/imagenet.toml whose models are in the report's Table 1 with an accuracy."""
    known = [
        row.model for row in load_reported() if (row.place, row.metric) == (PLACE, "top1") and row.value is not None
    ]
    return [config for config in load_experiment("imagenet").configs() if config.model in known]


def _row(config: Config, speed: list[dict], core: dict[str, float | None], on_device: float | None) -> dict[str, str]:
    found = [
        row
        for form in FORMS
        for row in speed
        if (row["model"], row["step"], row["precision"], row["form"]) == (config.model, "training", "bf16", form)
        and row["images/s"].replace(",", "").replace(".", "").isdigit()
    ]
    found = [row for row in found if row["form"] == found[0]["form"]]
    row = {"model": config.label, "epochs": str(config.total_epochs)}
    if not found:
        return row | dict.fromkeys([STEP, *ALONE, *WAYS], NOT_RUN)
    fastest = max(found, key=lambda row: _number(row["images/s"]))
    step = _number(fastest["images/s"])
    hours = config.total_epochs * IMAGES / 3600
    row[STEP] = f"{step:,.0f} ({fastest['form']}, {fastest['run']})"
    row |= dict(zip(ALONE, (f"≈ {hours / step:,.0f}", f"≈ {hours / step / 8:,.1f}")))
    for name, rate in core.items():
        busy = step if WAYS[name][0] == OURS or not on_device else 1 / (1 / step + 1 / on_device)
        waits = "step" if busy <= CORES * (rate or 0) else "images"
        row[name] = f"≈ {busy / rate:,.1f}; ≈ {hours / min(busy, CORES * rate):,.0f} h, {waits}" if rate else NOT_RUN
    return row


def _rate(images: list[dict], way: str, photographs: str) -> float | None:
    """Images a second, the lowest where several machines were measured; None where none was."""
    found = [row["images/s"] for row in images if (row["way"], row["photographs"]) == (way, photographs)]
    found = [rate for rate in found if rate]  # a row may be blank
    return min(map(_number, found)) if found else None


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _read(file: Path) -> list[dict]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))
