"""Trained models to look at, and whose they are: beside the untrained ones they began as, and how to watch them at work."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ffvit.data.batches import eval_loader
from ffvit.data.loader import Batch
from ffvit.data.splits import load_splits
from ffvit.evidence import kept_weights
from ffvit.evidence.measured import commit, machine
from ffvit.evidence.records import load_records, open_run, read_record
from ffvit.evidence.subjects import weights_to_score
from ffvit.models import from_config
from ffvit.models.weights import load_weights
from ffvit.settings.config import Config, alone
from ffvit.settings.experiment import Experiment
from ffvit.settings.given import config_from_dict

NONE_READABLE = "no image to look at can be read; choose another dataset"
TITLE: dict[str, Any] = dict(x=0.01, ha="left", fontsize=10)
Watched = Mapping[nn.Module, Callable[[Tensor], None]]  # to each module, who is shown its output


def first(experiment: Experiment, model: str, checkpoint: str = "") -> tuple[Config, str | Path]:
    """Settings and weights of a model's first seed: the run of this machine, or the one that came with the project.

    checkpoint: a file, instead of a run. Raises InputError where there are none, and for damaged ones.
    """
    [found] = weights_to_score(experiment, model, [experiment.seeds_of(model)[0]], checkpoint=checkpoint)
    return found


def prepare(config: Config, weights: str | Path, num_classes: int = 0, **settings) -> tuple[nn.Module, Iterable[Batch]]:
    """The model of a run or checkpoint, and batches of its test images.

    num_classes: the checkpoint's; 0: as many as the dataset has. settings: of Config, in place of the run's, such as
    max_eval_images, a random subset, or where the images are now.
    """
    config = alone(config_from_dict(config.to_dict() | settings))
    splits = load_splits(config)
    model = from_config.create(config, num_classes or len(splits.classes))
    return load_weights(model, weights), eval_loader(splits.test, config)


def untrained(config: Config, num_classes: int) -> nn.Module:
    """The model of a run as it was before its first update, weight for weight. torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # as training does before it makes the model
        return from_config.create(config, num_classes)


def source(weights: str | Path) -> str:
    """One sentence on whose weights a picture shows: those of a run, by id and commit, or of a file from elsewhere.

    Weights that are bit for bit a recorded run's are said to be that run's: the picture is the one that came with the project.
    """
    weights = Path(weights)
    if kept_weights.is_kept(weights):
        experiment = weights.parent.parent.name
        run = read_record(weights.parent.parent / f"{weights.stem}.json", experiment, weights.stem)
        return _told("last.safetensors", run, "recorded, kept with the project")
    if not (weights.parent / "training.json").is_file():
        return f"Weights: {weights.name}, a file that was given; not trained here."
    config, facts = open_run(weights.parent)
    mine = facts.get("weights_sha256", {}).get(weights.name)
    same = [
        r for r in load_records(config.experiment) if mine and r.get("weights_sha256", {}).get(weights.name) == mine
    ]
    return _told(weights.name, *((same[0], "recorded") if same else (facts, "trained here")))


def _told(file: str, run: dict, origin: str) -> str:
    experiment = run["config"]["experiment"]
    return f"Weights: {file} of run {run['run_id']} of {experiment}, {origin}, commit {commit(run)}, on {machine(run)}."


@contextlib.contextmanager
def watching(model: nn.Module, watched: Watched) -> Iterator[None]:
    """Meanwhile the model is in evaluation mode, and each module's output is shown to its function."""
    training = model.training
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, see=see: see(output))
        for module, see in watched.items()
    ]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)


@contextlib.contextmanager
def unfused(attentions: Iterable[Any]) -> Iterator[None]:  # timm declares fused_attn final
    """Meanwhile attention computes its probabilities step by step: the fused operator shows them to nobody."""
    fused = {attention: attention.fused_attn for attention in attentions}
    try:
        for attention in fused:
            attention.fused_attn = False
        yield
    finally:
        for attention, was in fused.items():
            attention.fused_attn = was
