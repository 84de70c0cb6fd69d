"""Does training wait for its images? `make benchmark` times updates of each cell of the grid, at the study's shape.

The same model on a batch that is there already, on images that stay on the device and are augmented there, and on images
that a DataLoader augments one by one; in turns, in one process. What an update takes longer than on the batch that is
there is waiting, also where the device computes the augmentation itself. The aim: at most 3 % for images on the device.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from page import of_other_machines, with_blanks, write
from speed import machine, measured, where

from ffvit.data import resident
from ffvit.data.batches import TrainBatches
from ffvit.data.loader import Batch
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.machine import keep_memory
from ffvit.tasks.task import task_of
from ffvit.training import progress
from ffvit.training.estimate import now
from ffvit.training.start import set_up
from ffvit.training.step import make_update

UPDATES, ROUNDS = {"cuda": 24, "cpu": 2}, {"cuda": 5, "cpu": 15}
WORKERS = {"cuda": min(8, os.cpu_count() or 1), "cpu": 1}  # that augment images one by one
PREFETCHED = 2  # batches that each of them makes ahead
# A CPU takes the same model, recipe and images, in smaller batches and as PyTorch comes.
SETTINGS = {"cuda": dict(), "cpu": dict(batch_size=32, mixed_precision="no", compile=False)}
NOTE = (
    "Updates of the study's own loop (experiments/cifar10.toml: DeiT's augmentation with RandAugment, mixup and cutmix), on "
    "4,096 images of noise; on a GPU in bf16 and compiled, on a CPU neither. Medians over rounds in turns. Waiting is what an "
    "update takes longer than on a batch that is there already; below 0 it is noise. The aim is 3 % on the device."
)


def noise(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
    rows = {"img": list(pixels), "label": [i % 10 for i in range(len(pixels))]}
    split = datasets.Dataset.from_dict(rows, features)
    split.to_parquet(folder / "train.parquet")
    split.select(range(64)).to_parquet(folder / "test.parquet")


def endless(batches: TrainBatches) -> Iterator[Batch]:
    return itertools.chain.from_iterable(batches.epoch(epoch) for epoch in itertools.count())


def compare(config: Config, device: str) -> dict[str, str]:
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=device == "cpu")
    run = set_up(config, Path("unused"), accelerator, keep=False)
    run.model.train()
    other = task_of(Config(**config.to_dict() | dict(augment="image", num_workers=WORKERS[device])))
    loaded = other.train_batches(other.load_splits(), run.accumulation_steps, device=accelerator.device)
    on_device = endless(run.batches)
    images, target, _ = next(on_device)
    batches = {
        "there already": (Batch(images.clone(), target, []) for _ in itertools.count()),
        "on the device": on_device,
        "one by one": endless(loaded),
    }
    took: dict[str, list[float]] = {path: [] for path in batches}

    def seconds_of(updates: int, path: str) -> float:
        began = now(run)  # which waits for the device
        for _ in range(updates):
            make_update(run, batches[path], progress.Meter())
        return now(run) - began

    for number in range(ROUNDS[device] + 1):
        for path in batches:
            if path == "one by one":  # what workers made while the others had their turns
                seconds_of(PREFETCHED * WORKERS[device], path)
            seconds = seconds_of(UPDATES[device], path) / UPDATES[device]
            if number:  # the first round compiles, allots memory and starts workers
                took[path].append(seconds)
    print(f"{config.label}: {took}", file=sys.stderr)
    here = machine(accelerator.device)
    return {
        "machine": where(here),
        "batch": str(config.batch_size),
        "cell": config.label,
        **numbers(took, config.batch_size),
        "rounds": str(ROUNDS[device]),
        "measured": measured(here),
    }


def numbers(took: dict[str, list[float]], batch: int) -> dict[str, str]:
    """took: seconds of an update, by path and round."""
    median = {path: statistics.median(seconds) for path, seconds in took.items()}
    there = median["there already"]
    row = {"batch there (ms)": f"{1000 * there:.1f}"}
    row |= {f"{path} (ms)": f"{1000 * median[path]:.1f}" for path in ("on the device", "one by one")}
    for path in ("on the device", "one by one"):
        rounds = [100 * (1 - base / seconds) for base, seconds in zip(took["there already"], took[path])]
        row[f"waiting, {path}"] = f"{100 * (1 - there / median[path]):.1f} %"
        row[f"lowest to highest, {path}"] = f"{min(rounds):.1f} to {max(rounds):.1f} %"
    return row | {f"images/s, {path}": f"{batch / median[path]:,.0f}" for path in ("on the device", "one by one")}


def gpu_cases() -> list[dict[str, str]]:
    """The columns that name what is measured on a GPU."""
    experiment = load_experiment("cifar10")
    configs = [experiment.config(variant.name, **SETTINGS["cuda"]) for variant in experiment.of()]
    return [{"batch": str(config.batch_size), "cell": config.label} for config in configs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    device = parser.parse_args().device
    keep_memory()
    experiment = load_experiment("cifar10")
    grid = [variant.name for variant in experiment.of()]
    # So that few updates pay for no more images than they use.
    resident.AT_ONCE = SETTINGS[device].get("batch_size", resident.AT_ONCE)
    with tempfile.TemporaryDirectory() as folder:
        noise(Path(folder))
        rows = [compare(experiment.config(model, dataset=folder, **SETTINGS[device]), device) for model in grid]
    every = with_blanks(rows + of_other_machines("steps", rows), gpu_cases())
    write("steps", "Does training wait for its images?", every, NOTE)


if __name__ == "__main__":
    main()
