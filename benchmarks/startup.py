"""How long until something is there? `make benchmark` times what a person waits for before anything begins.

Each command is started anew, as a person starts it, some times in turn with the others; the first round, whose files
come from disk, does not count. In turn with them, as many small images as CIFAR-10 trains on are decoded, and read as an
earlier run kept them.
"""

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import torch
from page import of_other_machines, write
from speed import machine, measured, where

from ffvit.data.resident import ResidentImages
from ffvit.settings.experiment import load_experiment
from ffvit.system.files import ROOT

NUM_IMAGES = 45_000
ROUNDS = 5
# What `make benchmark` was given, and would be taken by the `make` that is timed here.
OF_MAKE = {"EXPERIMENT", "DATASET", "JOBS", "RUNS_PER_GPU", "PROFILE", "DEVICE", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS"}
NOTE = (
    "Wall time of a process from its start to its end, medians of 5 rounds after one that does not count. The pipeline with "
    "nothing to do is that of digits, whose runs and figures are there; a table is made of the records that came with the "
    "project. Small images are JPEGs of 32 x 32 pixels, made ready for training in a process whose libraries are loaded; kept "
    "ones are compared byte by byte with their files. Within: whether the median is in its budget, where there is one."
)
TABLE = (
    "from ffvit.evidence.records import load_records; from ffvit.settings.experiment import load_experiment; "
    "from ffvit.studies.study_tables import study; print(study(load_experiment('digits'), load_records('digits')))"
)
# What it is, its budget in seconds, the command.
CASES: list[tuple[str, float, list[str]]] = [
    ("import ffvit", 0.3, [sys.executable, "-c", "import ffvit"]),
    ("ffvit --help", 0.5, [sys.executable, "-m", "ffvit", "--help"]),
    ("make reproduce, with nothing to do", 1.5, ["make", "reproduce"]),
    ("a table from records", 3.0, [sys.executable, "-c", TABLE]),
]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_MAKE}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment(), check=True, capture_output=True)
    return time.perf_counter() - began


def small_images() -> datasets.Dataset:
    """JPEGs of smooth noise, 32 x 32 pixels and 0.9 kB each, as those of CIFAR-10 have."""
    images = []
    for pixels in np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 6, 6, 3), dtype=np.uint8):
        encoded = io.BytesIO()
        PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BICUBIC).save(encoded, "JPEG")
        images.append({"bytes": encoded.getvalue(), "path": None})
    columns = {"image": images, "label": [0] * NUM_IMAGES}
    return datasets.Dataset.from_dict(columns, datasets.Features(image=datasets.Image(), label=datasets.Value("int64")))


def of_images(folder: Path) -> list[tuple[str, None, Callable[[], float]]]:
    """The cases of small images, in their order: what the first keeps in the folder, the second finds."""
    datasets.config.HF_DATASETS_CACHE = folder
    split, config = small_images(), load_experiment("cifar10-small").config("ff")

    def ready() -> float:
        began = time.perf_counter()
        ResidentImages(split, config, "cpu")
        return time.perf_counter() - began

    def anew() -> float:
        for file in folder.glob("ffvit/*"):
            file.unlink()
        return ready()

    what = f"{NUM_IMAGES:,} small images"
    return [(f"{what}, decoded", None, anew), (f"{what}, kept by an earlier run", None, ready)]


def main() -> None:
    here = machine(torch.device("cpu"))
    subprocess.run(["make", "reproduce"], cwd=ROOT, env=environment(), check=True)  # so that there is nothing to do
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            *((name, budget, partial(seconds, command)) for name, budget, command in CASES),
            *of_images(Path(folder)),
        ]
        rounds = [[timed() for *_, timed in cases] for _ in range(ROUNDS + 1)][1:]
    rows = [
        {
            "machine": where(here),
            "what": name,
            "budget (s)": f"{budget:.1f}" if budget else "",
            "it took (s)": f"{statistics.median(took):.2f}",
            "lowest to highest": f"{min(took):.2f} to {max(took):.2f}",
            "within": ("yes" if statistics.median(took) <= budget else "no") if budget else "",
            "measured": measured(here),
        }
        for (name, budget, _), took in zip(cases, zip(*rounds))
    ]
    write("startup", "How long until something is there?", rows + of_other_machines("startup", rows), NOTE)


if __name__ == "__main__":
    main()
