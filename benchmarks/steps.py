"""Does training wait for its images? `make benchmark` times updates of each cell of the grid, at the study's shape.

The same loop on a batch that is there already, on images that stay on the device and are augmented there, and on images
that a DataLoader augments one by one; in turns, in one process. What an update takes longer than on the batch that is
there is waiting, also where the device computes the augmentation itself. The aim: at most 3 % for images on the device.
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from page import write

from ffvit.data import resident
from ffvit.data.loader import Batch
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.training import progress
from ffvit.training.estimate import now
from ffvit.training.start import set_up
from ffvit.training.step import Run, make_update

GPU = torch.cuda.is_available()
UPDATES, ROUNDS = (48, 5) if GPU else (2, 5)
PATHS = {
    "there already": dict(),
    "on the device": dict(),
    "one by one": dict(augment="image", num_workers=min(8, os.cpu_count() or 1) if GPU else 1),
}
# A CPU takes the same model, recipe and images, in smaller batches and as PyTorch comes.
MACHINE = dict() if GPU else dict(batch_size=32, mixed_precision="no", compile=False)
NOTE = (
    "Updates of the study's own loop (experiments/cifar10.toml: DeiT's augmentation with RandAugment, mixup and cutmix), on "
    "4,096 images of noise; medians over rounds in turns. Waiting is what an update takes longer than on a batch that is "
    f"there already. The aim is 3 % on the device. Batches of {MACHINE.get('batch_size', 512)}."
)


def noise(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    rows = {"img": list(pixels), "label": [i % 10 for i in range(len(pixels))]}
    split = datasets.Dataset.from_dict(rows, features)
    split.to_parquet(folder / "train.parquet")
    split.select(range(64)).to_parquet(folder / "test.parquet")


def endless(run: Run) -> Iterator[Batch]:
    return itertools.chain.from_iterable(run.batches.epoch(epoch) for epoch in itertools.count())


def compare(config: Config) -> dict[str, str]:
    runs, batches, took = {}, {}, {path: [] for path in PATHS}
    for path, settings in PATHS.items():
        own = Config(**config.to_dict() | settings)
        accelerator = Accelerator(mixed_precision=own.mixed_precision, cpu=not GPU)
        runs[path] = set_up(own, Path("unused"), accelerator, keep=False)
        runs[path].model.train()
        batches[path] = endless(runs[path])
    images, target, _ = next(batches["there already"])
    batches["there already"] = (Batch(images.clone(), target, []) for _ in itertools.count())
    for number in range(ROUNDS + 1):
        for path, run in runs.items():
            now(run)  # waits for the device
            began = time.monotonic()
            for _ in range(UPDATES):
                make_update(run, batches[path], progress.Meter())
            now(run)
            if number:  # the first round compiles, allots memory and starts workers
                took[path].append((time.monotonic() - began) / UPDATES)
    print(f"{config.label}: {took}", file=sys.stderr)
    median = {path: statistics.median(seconds) for path, seconds in took.items()}
    fastest = median["there already"]

    def waiting(path: str) -> str:
        return f"{100 * max(0.0, 1 - fastest / median[path]):.1f} %"

    return {
        "cell": config.label,
        "batch there (ms)": f"{1000 * fastest:.1f}",
        "on the device (ms)": f"{1000 * median['on the device']:.1f}",
        "one by one (ms)": f"{1000 * median['one by one']:.1f}",
        "waiting, on the device": waiting("on the device"),
        "waiting, one by one": waiting("one by one"),
        "images/s, on the device": f"{config.batch_size / median['on the device']:,.0f}",
        "images/s, one by one": f"{config.batch_size / median['one by one']:,.0f}",
        "rounds": str(ROUNDS),
    }


def main() -> None:
    experiment = load_experiment("cifar10")
    grid = [variant.name for variant in experiment.of()]
    # So that few updates pay for no more images than they use.
    resident.AT_ONCE = MACHINE.get("batch_size", resident.AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        noise(Path(folder))
        rows = [compare(experiment.config(model, dataset=folder, **MACHINE)) for model in grid]
    write("steps", "Does training wait for its images?", rows, NOTE)


if __name__ == "__main__":
    main()
