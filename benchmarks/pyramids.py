"""What LIT costs where pyramids are used: `make benchmark` times an image through backbones and detectors, beside ResNet-50's.

One image in evaluation, in fp32, from the size of classification to COCO's, with weights as they are drawn; each case in a
process of its own, which tells its peak memory. LIT-S has tables of relative positions: as they are for the image's size,
and resized from 224 pixels in every forward, as the official code does.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
import torchvision
from page import write
from torch import nn

import ffvit.models  # noqa: F401, makes LIT known to timm
from ffvit.training.progress import peak_memory_mb

SIZES = [(224, 224), (512, 512), (800, 1344)]
ROUNDS = 3
MODELS = {
    "backbone": ["lit_ti", "lit_s", "lit_s, tables resized", "resnet50"],
    "RetinaNet": ["retinanet_lit_ti", "retinanet_lit_s", "retinanet_resnet50_fpn"],
    "Mask R-CNN": ["mask_rcnn_lit_ti", "mask_rcnn_lit_s", "maskrcnn_resnet50_fpn"],
    "Semantic FPN": ["semantic_fpn_lit_ti", "semantic_fpn_lit_s"],
}
NOTE = (
    "One image in evaluation, fp32, medians over 3 rounds after one that does not count; weights as they are drawn, with "
    "which a detector keeps its 100 boxes, or none. Peak memory is that of a process, PyTorch with its libraries included; on a "
    "GPU what PyTorch held at most. ResNet-50's detectors are torchvision's."
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
def measure(name: str, size: tuple[int, int]) -> dict:
    """{"ms": of a round each, "mb": peak memory}"""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make(name, size).eval().to(device)
    image = torch.rand(1, 3, *size, device=device)
    listed = isinstance(model, torchvision.models.detection.generalized_rcnn.GeneralizedRCNN) or "retinanet" in name
    took = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        model([image[0]] if listed else image)
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(1000 * (time.perf_counter() - began))
    return {"ms": took[1:], "mb": peak_memory_mb(device)}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], (int(sys.argv[2]), int(sys.argv[3])))))
        return
    rows = []
    for kind, names in MODELS.items():
        for name in names:
            row = {"what": kind, "model": name}
            for size in SIZES:
                command = [sys.executable, str(Path(__file__).resolve()), name, *map(str, size)]
                done = subprocess.run(command, capture_output=True, text=True)
                told = f"{name} at {size}: {done.stdout or done.stderr}"
                print(told, file=sys.stderr)
                found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
                words = f"{size[0]} x {size[1]}"
                row[f"{words} (ms)"] = f"{statistics.median(found['ms']):,.0f}" if found else "failed"
                row[f"{words} (MB)"] = f"{found['mb']:,}" if found else ""
            rows.append(row)
    write("pyramids", "What does LIT cost where pyramids are used?", rows, NOTE)


if __name__ == "__main__":
    main()
