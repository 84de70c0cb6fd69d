"""How many training images does a core make ready? timm's way, torchvision's and ours, in turns, on the same photographs.

    python benchmarks/images.py --dataset ~/imagenet      # measures; killed, the same command goes on with the next round
    python benchmarks/images.py --write runs/images.json  # what was measured, also elsewhere, into the tables

DeiT's augmentation at 224 pixels, of JPEGs as they are and of what `ffvit prepare` makes of them. With augment="batch" the
CPU decodes and crops, and the rest is the device's part, which is measured by itself. On a GPU that part alone is measured,
and how fast it decodes. Without --dataset, ../shared/data/imagenet-sample where that is, else two photographs that come with
scikit-learn, larger than most of ImageNet's, whose rows never take the place of others. Each round gives every way the same
images, on one thread.
"""

import argparse
import io
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import PIL.Image
import torch
from sklearn.datasets import load_sample_images
from speed import machine, measured, resumed, say, where
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from ffvit.commands.prepare import QUALITY, SHORT_SIDE
from ffvit.data.batch_augmentation import Augmentation, Cropped, joined, training_view
from ffvit.data.images import ANYWHERE, BadImage, content, read, train_transform
from ffvit.data.prepare import Preparation
from ffvit.data.sources import open_splits
from ffvit.data.splits import encoded, two_columns
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.files import ROOT, write_atomically
from ffvit.system.machine import keep_memory

ROUNDS, IMAGES = 5, 150  # images of a round; fewer photographs are taken several times
AT_ONCE = {"cpu": 50, "cuda": 256}  # images that a device augments together
TIMM, TORCHVISION, OURS = "timm, one by one", "torchvision v2, one by one", 'ours, augment="image"'
CROPPED, DEVICE = 'ours, augment="batch": the CPU\'s part', 'ours, augment="batch": the device\'s part'
ON_GPU = "torchvision on the GPU, decoding alone"
NEAR = ROOT.parent / "shared" / "data" / "imagenet-sample"  # beside the project on machines that have it
SAMPLES = "2 of scikit-learn"
GPU_CASES = [  # the columns that name what is measured on a GPU
    {"photographs": "as they are", "way": ON_GPU},
    {"photographs": "prepared", "way": ON_GPU},
    {"photographs": "any", "way": DEVICE},
]
NOTE = (
    "DeiT's augmentation at 224 pixels: random resized crop (bicubic), mirroring, RandAugment, normalising, erasing. Images a "
    "second of processor time of one core, medians over 5 rounds in turns; what a GPU does, by the clock. torchvision's RandAugment "
    "has other operations and magnitudes, always two of them, where timm applies each with probability 0.5, and moves images bilinearly. Prepared: "
    f"by `ffvit prepare` with a short side of {SHORT_SIDE} pixels and quality {QUALITY}. Handing batches from workers to the training process, and "
    "reading files, are not in these numbers. The aim is three times timm's for the CPU's part."
)


class Photographs(NamedTuple):
    name: str
    files: list[bytes]  # JPEG
    taken_from: str  # how many, and of what


def recipe(augment: str) -> Config:
    return load_experiment("imagenet").config("ff_tiny", augment=augment)


def ways() -> dict[str, Callable[[bytes, int], Any]]:
    """What the CPU does with the file of an image in a round, by name."""
    config = recipe("image")
    by_timm, by_torchvision = train_transform(config), torchvision_transform(config)
    views = {name: training_view(recipe(augment)) for name, augment in ((OURS, "image"), (CROPPED, "batch"))}

    def timm(file: bytes, number: int) -> torch.Tensor:
        return by_timm(PIL.Image.open(io.BytesIO(file)).convert("RGB"))

    def torchvision(file: bytes, number: int) -> torch.Tensor:
        return by_torchvision(decode_jpeg(torch.frombuffer(bytearray(file), dtype=torch.uint8), ImageReadMode.RGB))

    def ours(name: str) -> Callable[[bytes, int], Any]:
        def view(file: bytes, number: int) -> Any:
            image = read({"bytes": file, "path": None}, number, "", config, ANYWHERE)
            return views[name](image, 0, number)

        return view

    return {TIMM: timm, TORCHVISION: torchvision, OURS: ours(OURS), CROPPED: ours(CROPPED)}


def torchvision_transform(config: Config) -> v2.Transform:
    """The recipe as near as torchvision has it."""
    bicubic = v2.InterpolationMode.BICUBIC
    fill: Any = [round(255 * value) for value in config.mean]
    return v2.Compose(
        [
            v2.RandomResizedCrop(config.img_size, config.crop_scale, config.crop_ratio, bicubic, antialias=True),
            v2.RandomHorizontalFlip(config.hflip),
            v2.RandAugment(num_ops=2, magnitude=9, interpolation=v2.InterpolationMode.BILINEAR, fill=fill),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config.mean, config.std),
            v2.RandomErasing(config.random_erasing, value="random"),
        ]
    )


def photographs(dataset: str) -> list[Photographs]:
    """As they are, and prepared."""
    dataset = dataset or (str(NEAR) if NEAR.is_dir() else "")
    if dataset:
        config = Config(**{**recipe("image").to_dict(), "dataset": dataset})
        split = encoded(two_columns(open_splits(["train"], config)["train"], config))
        split = split.select(range(min(IMAGES, len(split))))
        taken_from = f"{len(split)} of a dataset"
    else:
        taken_from = SAMPLES
        buffers = [io.BytesIO() for _ in range(2)]
        for pixels, buffer in zip(load_sample_images().images, buffers):
            PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        features = datasets.Features(image=datasets.Image(decode=False), label=datasets.Value("int64"))
        rows = {"image": [{"bytes": b.getvalue(), "path": None} for b in buffers], "label": [0, 1]}
        split = datasets.Dataset.from_dict(rows, features)
    prepare = Preparation({"train": split}, recipe("image"), ANYWHERE, SHORT_SIDE, QUALITY)
    found = [prepare.image("train", row) for row in range(len(split))]
    original = [content(row["image"], ANYWHERE) for row in split]
    prepared = [row["image"]["bytes"] for row in found if not isinstance(row, BadImage)]
    of_images = [list(itertools.islice(itertools.cycle(files), IMAGES)) for files in (original, prepared)]
    return [Photographs(name, files, taken_from) for name, files in zip(("as they are", "prepared"), of_images)]


def measure_round(sets: list[Photographs], device: torch.device, number: int) -> dict[str, dict[str, float]]:
    """{"as they are": {way: images a second}, "prepared": ..., "any": ...}"""
    found: dict[str, dict[str, float]] = {name: {} for name, *_ in sets}
    if device.type == "cuda":
        for name, files, _ in sets:
            try:
                found[name][ON_GPU] = decoding_rate(files)
            except RuntimeError as error:  # torchvision as it is built here may have no decoder for a GPU
                say(f"not decoded on the GPU: {str(error).splitlines()[0]}")
        crop = ways()[CROPPED]
        made = [crop(file, number * IMAGES + i) for i, file in enumerate(sets[-1].files)]
    else:
        for (name, files, _), (way, make) in itertools.product(sets, ways().items()):
            began = time.process_time()
            made = [make(file, number * IMAGES + i) for i, file in enumerate(files)]
            found[name][way] = len(files) / (time.process_time() - began)
    batches = list(_batches(made, AT_ONCE[device.type], device))  # those of CROPPED, the last way
    found["any"] = {DEVICE: device_rate(batches, device)}
    return found


def decoding_rate(files: list[bytes]) -> float:
    """Images a second that torchvision's decoder makes of these JPEGs on a GPU, all given to it at once, by the clock."""
    encoded_files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    decode_jpeg(encoded_files[:1], ImageReadMode.RGB, device="cuda")  # it is set up
    torch.cuda.synchronize()
    began = time.perf_counter()
    decode_jpeg(encoded_files, ImageReadMode.RGB, device="cuda")
    torch.cuda.synchronize()
    return len(files) / (time.perf_counter() - began)


def device_rate(batches: list[Cropped], device: torch.device) -> float:
    """Images a second: on a GPU by the clock, of batches that are there already; else of one core's processor time."""
    augmentation = Augmentation(recipe("batch"))
    on_gpu = device.type == "cuda"
    augmentation(*batches[0])  # constants are copied to the device, kernels loaded
    if on_gpu:
        torch.cuda.synchronize()
    clock = time.perf_counter if on_gpu else time.process_time
    began = clock()
    for batch in batches:
        augmentation(*batch)
    if on_gpu:
        torch.cuda.synchronize()
    return sum(len(pixels) for pixels, _ in batches) / (clock() - began)


def _batches(made: list[Cropped], size: int, device: torch.device) -> Iterator[Cropped]:
    items = list(itertools.islice(itertools.cycle(made), -(-len(made) // size) * size))
    for part in zip(*[iter(items)] * size):
        yield Cropped(torch.stack([pixels for pixels, _ in part]).to(device), joined(draws for _, draws in part))


def few(photographs: Photographs, number: int) -> Photographs:
    return photographs._replace(files=photographs.files[:number])


def measure_all(sets: list[Photographs], device: torch.device, keep: Path, rounds: int, small: bool = False) -> None:
    """Measure the rounds that are not kept yet, each kept as soon as it is made."""
    kept = resumed(keep, machine(device), small)
    now = measured(kept["machine"])
    kept["taken from"] = sets[0].taken_from
    mean_bytes = {name: round(float(np.mean([len(file) for file in files]))) for name, files, _ in sets}
    if kept.setdefault("bytes", mean_bytes) != mean_bytes:
        raise ValueError(f"{keep} has measurements of other photographs: give another --keep")
    made = kept.setdefault("rounds", [])
    if not made:
        measure_round([few(photographs, 2) for photographs in sets], device, 0)  # what is loaded but once
    while len(made) < rounds:
        found = measure_round(sets, device, len(made))
        made.append({"rates": found, "measured": now})
        write_atomically(keep, json.dumps(kept, indent=1))
        rates = "; ".join(f"{way} {rate:,.0f}" for of_set in found.values() for way, rate in of_set.items())
        say(f"round {len(made)} of {rounds}, images a second: {rates}")


def rows(kept: dict) -> list[dict[str, str]]:
    """A row a way and set, in words. Raises ValueError for small ones, which say nothing."""
    if kept["small"]:
        raise ValueError("measured with --small: those are no measurements")
    core, device = f"a core of {kept['machine']['hardware']['cpu']}", where(kept["machine"])
    on_gpu = device.startswith("GPU")
    found = {
        (name, way): [made["rates"][name][way] for made in kept["rounds"]]
        for name, of_set in kept["rounds"][0]["rates"].items()
        for way in of_set
    }

    def times(rates: list[float], name: str) -> str:
        base = found.get((name, TIMM))
        return f"{statistics.median(rates) / statistics.median(base):.2f}" if base else ""

    return [
        {
            "machine": device if on_gpu else core,
            "photographs": name,
            "taken from": kept["taken from"],
            "KB an image": f"{kept['bytes'][name] / 1000:.0f}" if name in kept["bytes"] else "",
            "way": way,
            "images/s": f"{statistics.median(rates):,.0f}",
            "lowest to highest": f"{min(rates):,.0f} to {max(rates):,.0f}",
            "times timm": times(rates, name),
            "times timm, photographs as they are": times(rates, "as they are") if way != DEVICE else "",
            "rounds": str(len(rates)),
            "measured": "; ".join(dict.fromkeys(made["measured"] for made in kept["rounds"])),
        }
        for (name, way), rates in found.items()
    ]


def write(all_kept: list[dict]) -> None:
    """benchmarks/images.csv and its pages; rows of machines that are not measured now stay as they are."""
    import page  # here: it needs what the tables need

    real = {row["machine"] for row in page.measured_before("images") if row["taken from"] != SAMPLES}
    new = []
    for row in (row for kept in all_kept for row in rows(kept)):
        if row["taken from"] == SAMPLES and row["machine"] in real:
            say(f"left out, for there are rows of a dataset's photographs: {row['way']} on {row['machine']}, {SAMPLES}")
        else:
            new.append(row)
    every = page.with_blanks(page.of_other_machines("images", new) + new, GPU_CASES)
    page.write("images", "How many training images does a core make ready?", every, NOTE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="", help="a folder or a name of the hub, whose first images are taken")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "images.json", help="where measurements are kept")
    parser.add_argument("--small", action="store_true", help="a few images once: to see that all runs, not how fast")
    parser.add_argument("--write", type=Path, nargs="+", metavar="FILE", help="write what was kept, measure nothing")
    options = parser.parse_args()
    try:
        if options.write:
            write([json.loads(path.read_text()) for path in options.write])
            return
        keep_memory()
        torch.set_num_threads(1)
        sets, rounds = photographs(options.dataset), 1 if options.small else ROUNDS
        if options.small:
            sets = [few(photographs, 4) for photographs in sets]
        measure_all(sets, torch.device(options.device), options.keep, rounds, options.small)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
