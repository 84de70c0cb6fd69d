"""What does our loop cost? `make benchmark` times it against a bare PyTorch loop with the same model and images.

Ours writes a checkpoint and the history after every epoch, reseeds every update and every image, looks for signals and
NaN, and prints; the bare loop trains, validates and does nothing else. Each is a process of its own, in turns; the
ratio of two neighbours is one measurement. The aim: at most 3 % more time, 2 % more memory.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from page import of_other_machines, write
from speed import machine, measured, where
from torch.nn import functional as F

from ffvit.data.batches import TrainBatches
from ffvit.data.images import eval_transform, train_transform
from ffvit.data.splits import load_splits
from ffvit.models import from_config
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.machine import keep_memory
from ffvit.training import progress
from ffvit.training.optim import peak_lr
from ffvit.training.train import train

PAIRS = 3
NOTE = (
    "Whole runs, in turns, one thread each, glibc's memory kept as `ffvit train` keeps it; a checkpoint after every epoch is part of ours. Medians over pairs of "
    "neighbours. Memory is the highest resident set of the process. Seeding an image takes 8 to 12 µs and a checkpoint "
    "some fsyncs and a checksum: digits, whose images take a tenth of a millisecond and whose epochs half a second, are "
    "the worst case. The aim is 1.03 in time and 1.02 in memory."
)
CASES = {
    # Updates of 25 ms, checkpoints of 1.3 MB: where fixed costs weigh most.
    "digits, as in experiments/digits.toml, one by one": dict(),
    # The report's tiny width and depth on images of 32 pixels; checkpoints of 65 MB.
    "FF-only tiny (192 x 12), digits at 32 px": dict(
        img_size=32,
        model_args=dict(patch_size=4, embed_dim=192, depth=12),
        epochs=2,
        warmup_epochs=1,
        max_train_images=640,
    ),
}


def config(case: str) -> Config:
    return load_experiment("digits").config("ff", device="cpu", augment="image", interpolation="bicubic", **CASES[case])


def ours(case: str) -> float:
    """Seconds from the first batch to the finished run."""
    began = []
    epoch = TrainBatches.epoch

    def timed(*arguments):
        began.append(time.monotonic())
        return epoch(*arguments)

    TrainBatches.epoch = timed
    with tempfile.TemporaryDirectory() as folder:
        train(config(case), Path(folder) / "run")
        return time.monotonic() - began[0]


class PlainImages(torch.utils.data.Dataset):
    def __init__(self, split, transform):
        self.rows = [(row["image"].convert("L"), row["label"]) for row in split]
        self.transform = transform

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        image, label = self.rows[index]
        return self.transform(image), label


def bare(case: str) -> float:
    """The same run as anybody would write it down: seconds from the first batch to the last score."""
    c = config(case)
    splits = load_splits(c)
    model = from_config.create(c, len(splits.classes))
    train_images = PlainImages(splits.train, train_transform(c))
    loader = torch.utils.data.DataLoader(train_images, c.batch_size, shuffle=True, drop_last=True)
    validation = torch.utils.data.DataLoader(PlainImages(splits.validation, eval_transform(c)), c.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr(c), weight_decay=c.weight_decay)
    updates = c.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda u: (1 + math.cos(math.pi * u / updates)) / 2)
    began = time.monotonic()
    for _ in range(c.epochs):
        model.train()
        for images, target in loader:
            loss = F.cross_entropy(model(images), target, label_smoothing=c.label_smoothing)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            right = sum((model(images).argmax(1) == target).sum().item() for images, target in validation)
        print(f"top-1 {100 * right / len(splits.validation):.2f} %")
    return time.monotonic() - began


def measure(loop: str, case: str) -> dict:
    """Seconds and peak memory of one loop in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--loop", loop, "--case", case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, pairs: int) -> dict:
    found = {"ours": [], "bare": []}
    for pair in range(pairs):
        for loop in ("ours", "bare") if pair % 2 else ("bare", "ours"):
            found[loop].append(measure(loop, case))
    print(f"{case}: {found}", file=sys.stderr)

    def ratios(what: str) -> list[float]:
        return [o[what] / b[what] for o, b in zip(found["ours"], found["bare"])]

    def median(loop: str, what: str) -> float:
        return statistics.median(m[what] for m in found[loop])

    time_ratios, here = ratios("seconds"), machine(torch.device("cpu"))
    return {
        "machine": where(here),
        "case": case,
        "bare loop (s)": f"{median('bare', 'seconds'):.2f}",
        "ours (s)": f"{median('ours', 'seconds'):.2f}",
        "time, ours / bare": f"{statistics.median(time_ratios):.3f}",
        "lowest to highest": f"{min(time_ratios):.3f} to {max(time_ratios):.3f}",
        "bare loop (MB)": f"{median('bare', 'memory_mb'):.0f}",
        "ours (MB)": f"{median('ours', 'memory_mb'):.0f}",
        "memory, ours / bare": f"{statistics.median(ratios('memory_mb')):.3f}",
        "pairs": str(pairs),
        "measured": measured(here),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loop", choices=("ours", "bare"), help="run one loop, in this process")
    parser.add_argument("--case", choices=CASES, default=next(iter(CASES)))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    if options.loop:
        keep_memory()
        seconds = {"ours": ours, "bare": bare}[options.loop](options.case)
        print(json.dumps({"seconds": seconds, "memory_mb": progress.peak_memory_mb(torch.device("cpu"))}))
    else:
        rows = [compare(case, options.pairs) for case in CASES]
        every = rows + of_other_machines("overhead", rows)
        write("overhead", "Our training loop against a bare PyTorch loop", every, NOTE)


if __name__ == "__main__":
    main()
