"""Is augment="batch" the same recipe as timm's, image by image? Short trainings either way, to be compared by accuracy.

    python benchmarks/same_recipe.py --dataset ~/cifar10    # killed, the same command goes on with what --keep has

Without --dataset, ../shared/data/cifar10 where that is, else the hub's; where neither can be opened, nothing is trained.
DeiT's augmentation (crops, RandAugment, erasing) on part of CIFAR-10, a small FF-only model, some seeds, each seed once
either way: the same first weights, the same images in the same order, other random numbers of the augmentation.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from page import write

from ffvit.data.sources import open_splits
from ffvit.evidence.seed_statistics import interval_words
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError
from ffvit.system.files import ROOT, write_atomically
from ffvit.system.machine import keep_memory
from ffvit.training.train import train

NEAR, HUB = ROOT.parent / "shared" / "data" / "cifar10", "uoft-cs/cifar10"
SEEDS = (0, 1, 2)
WAYS = ("image", "batch")
SETTINGS = dict(
    model_args=dict(patch_size=8, embed_dim=64, depth=4),
    **dict(max_train_images=6_000, max_eval_images=4_000, epochs=12, warmup_epochs=2, mixed_precision="no"),
    **dict(crop_scale=(0.25, 1.0), auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
    **dict(interpolation="bicubic", in_memory=False, device="cpu", validation_split="test", allow_overlap=True),
)
NOTE = (
    "FF-only of 64 x 4 on 6,000 images of CIFAR-10, 12 epochs, scored on 4,000 of the test images with the last weights. "
    'Crops of a quarter of the area and more, mirroring, RandAugment and erasing: by timm one by one ("image"), or cropped '
    'one by one and the rest in batches ("batch"). The first weights and the order of images are those of the seed. '
    "A pair's difference is batch less image; its spread is that of the pairs, n - 1 in the denominator."
)


def config(way: str, seed: int, dataset: str) -> Config:
    return load_experiment("cifar10-small").config("ff", seed, **SETTINGS, augment=way, dataset=dataset)


def measure_all(kept: dict[str, float], keep: Path, dataset: str) -> None:
    """Train what is not kept yet: {"image, seed 0": top-1 in percent}."""
    for seed in SEEDS:
        for way in WAYS:
            name = f"{way}, seed {seed}"
            if name in kept:
                continue
            with tempfile.TemporaryDirectory() as folder:
                run = Path(folder) / "run"
                train(config(way, seed, dataset), run)
                history = json.loads((run / "training.json").read_text())["history"]
            kept[name] = history[-1]["validation_top1_percent"]
            write_atomically(keep, json.dumps(kept, indent=1))
            print(f"{name}: top-1 {kept[name]:.2f} %", flush=True)


def rows(kept: dict[str, float]) -> list[dict[str, str]]:
    """A row a seed, and one of all, mean ± standard deviation."""
    found = {way: [kept[f"{way}, seed {seed}"] for seed in SEEDS] for way in WAYS}
    pairs = [batch - image for image, batch in zip(found["image"], found["batch"])]
    table = [
        {
            "seed": str(seed),
            **{f"{way}, top-1 (%)": f"{found[way][i]:.2f}" for way in WAYS},
            "difference": f"{pairs[i]:+.2f}".replace("-", "−"),
        }
        for i, seed in enumerate(SEEDS)
    ]
    last = {f"{way}, top-1 (%)": _spread(found[way], "") for way in WAYS}
    told = f"{_spread(pairs, '+')}, 95 % interval {interval_words(pairs, '+.2f')}"
    return [*table, {"seed": "all", **last, "difference": told}]


def _spread(values: list[float], sign: str) -> str:
    return f"{statistics.mean(values):{sign}.2f} ± {statistics.stdev(values):.2f}".replace("-", "−")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    near = str(NEAR) if NEAR.is_dir() else HUB
    parser.add_argument("--dataset", default=near, help="where CIFAR-10 lies, or its name on the hub")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "same_recipe.json", help="where results are kept")
    options = parser.parse_args()
    try:
        open_splits(["train", "test"], config(WAYS[0], SEEDS[0], options.dataset))
    except InputError as error:
        print(f"same_recipe is left out, its table stays as it is: {error}")
        return
    keep_memory()
    kept = json.loads(options.keep.read_text()) if options.keep.exists() else {}
    measure_all(kept, options.keep, options.dataset)
    write("same_recipe", "Is augmentation in batches the same recipe?", rows(kept), NOTE)


if __name__ == "__main__":
    main()
