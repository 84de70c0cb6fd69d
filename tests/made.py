"""Folders of runs as training and scoring leave them, without any training."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from whole import whole

from ffvit.models import from_config, lit
from ffvit.models.weights import save_weights
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment

OF_FF = dict(patch_size=8, embed_dim=16, depth=2, num_heads=2)
OF_LIT = dict(patch_size=4, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2])


def made_run(folder: Path, config: Config, record: dict) -> Path:
    """The folder of a run as training and scoring leave it, with random weights that are not those of any start."""
    model = from_config.create(config, record["dataset"]["classes"])
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3)))
    run = folder / config.run_id
    run.mkdir(parents=True)
    sha256 = save_weights(run / "last.safetensors", model)
    record = record | {"weights_sha256": {"last.safetensors": sha256}}
    (run / "config.json").write_text(json.dumps(config.to_dict()))
    (run / "training.json").write_text(json.dumps({k: v for k, v in record.items() if k != "results"}))
    (run / "record.json").write_text(json.dumps(record))
    return run


def classifier(folder: Path, name: str = "ff_tiny_patch16_224", model_args: dict | None = None, **settings) -> Path:
    given = dict(
        augment="image", img_size=32, in_chans=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), model_args=model_args
    )
    given["model_args"] = (OF_LIT if name in lit.VARIANTS else OF_FF) if model_args is None else model_args
    config = replace(load_experiment("digits").config("ff"), model=name, **given | settings)
    return made_run(folder, config, whole(config))
