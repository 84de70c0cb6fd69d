"""What LIT costs where pyramids are used: `make benchmark` times an image through backbones and detectors, beside ResNet-50's.

One image in evaluation, in fp32, from the size of classification to COCO's, with weights as they are drawn; on a CPU each case
in a process of its own, which tells its peak memory. LIT-S has tables of relative positions: as they are for the image's size,
and resized from 224 pixels in every forward, as the official code does.
"""

import argparse
import json
import statistics
import sys
import time

import timm
import torch
import torchvision
from alone import measured_alone
from page import of_other_machines, with_blanks, write
from speed import machine, measured, where
from torch import nn

import ffvit.models  # noqa: F401, makes LIT known to timm
from ffvit.system.machine import keep_memory
from ffvit.training.progress import peak_memory_mb

SIZES = [(224, 224), (512, 512), (800, 1344)]
ROUNDS, SECONDS = (3, 25), 5  # at least, at most; and until these have passed
MODELS = {
    "backbone": ["lit_ti", "lit_s", "lit_s, tables resized", "resnet50"],
    "RetinaNet": ["retinanet_lit_ti", "retinanet_lit_s", "retinanet_resnet50_fpn"],
    "Mask R-CNN": ["mask_rcnn_lit_ti", "mask_rcnn_lit_s", "maskrcnn_resnet50_fpn"],
    "Semantic FPN": ["semantic_fpn_lit_ti", "semantic_fpn_lit_s"],
}
NOTE = (
    "One image in evaluation, fp32, medians of 3 to 25 rounds, as many as fit in 5 seconds, after one that does not count; "
    "weights as they are drawn, with which a detector keeps its 100 boxes, or none. Peak memory is that of a process, PyTorch "
    "with its libraries included; on a GPU what PyTorch held at most. ResNet-50's detectors are torchvision's."
)


def make(name: str, size: tuple[int, int]) -> nn.Module:
    resized = name.endswith(", tables resized")
    name = name.removesuffix(", tables resized")
    detectors = torchvision.models.detection
    if hasattr(detectors, name):
        return getattr(detectors, name)(weights=None, weights_backbone=None, min_size=min(size), max_size=max(size))
    if name.startswith("semantic_fpn"):
        return timm.create_model(name)
    if "_lit_" in name:
        return timm.create_model(name, min_size=min(size), max_size=max(size))
    whole = timm.create_model(name, features_only=True)
    if name == "lit_s" and not resized:
        whole.model.set_input_size(size)
    return whole


@torch.inference_mode()
def measure(name: str, size: tuple[int, int], device: torch.device) -> dict:
    """{"ms": of a round each, "mb": peak memory}"""
    torch.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = make(name, size).eval().to(device)
    image = torch.rand(1, 3, *size, device=device)
    listed = isinstance(model, torchvision.models.detection.generalized_rcnn.GeneralizedRCNN) or "retinanet" in name
    took: list[float] = []
    deadline = time.perf_counter() + SECONDS
    while len(took) <= ROUNDS[0] or len(took) <= ROUNDS[1] and time.perf_counter() < deadline:
        began = time.perf_counter()
        model([image[0]] if listed else image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(1000 * (time.perf_counter() - began))
    return {"ms": took[1:], "mb": peak_memory_mb(device)}


def row_of(kind: str, name: str, device: torch.device) -> dict[str, str]:
    here = machine(device)
    row = {"machine": where(here), "what": kind, "model": name}
    for size in SIZES:
        try:
            found = (
                measure(name, size, device)
                if device.type == "cuda"
                else measured_alone(__file__, name, *map(str, size))
            )
        except RuntimeError as error:  # this case's result: no memory, an operation that is not there
            found = {}
            print(error, file=sys.stderr)
        print(f"{name} at {size}: {found or 'failed'}", file=sys.stderr)
        words = f"{size[0]} x {size[1]}"
        row[f"{words} (ms)"] = f"{statistics.median(found['ms']):,.0f}" if found else "failed"
        row[f"{words}, lowest to highest"] = f"{min(found['ms']):,.0f} to {max(found['ms']):,.0f}" if found else ""
        row[f"{words} (MB)"] = f"{found['mb']:,}" if found else ""
    return row | {"measured": measured(here)}


def gpu_cases() -> list[dict[str, str]]:
    """The columns that name what is measured on a GPU."""
    return [{"what": kind, "model": name} for kind, names in MODELS.items() for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--alone", nargs=3, metavar=("MODEL", "HEIGHT", "WIDTH"), help="one case, in this process")
    options = parser.parse_args()
    keep_memory()
    if options.alone:
        name, *size = options.alone
        print(json.dumps(measure(name, tuple(map(int, size)), torch.device("cpu"))))
        return
    rows = [row_of(kind, name, torch.device(options.device)) for kind, names in MODELS.items() for name in names]
    every = with_blanks(rows + of_other_machines("pyramids", rows), gpu_cases())
    write("pyramids", "What does LIT cost where pyramids are used?", every, NOTE)


if __name__ == "__main__":
    main()
