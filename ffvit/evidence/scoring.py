"""Score weights on a test split, and on the training images where a run asks for it, every image once."""

import math
from pathlib import Path

import torch
from torch import nn

from ffvit.data.splits import Splits
from ffvit.evidence.notebook_metadata import load_notebook, load_notebooks
from ffvit.evidence.records import read_object
from ffvit.models import from_config
from ffvit.models.weights import load_weights
from ffvit.settings.config import Config, alone
from ffvit.system.errors import InputError
from ffvit.system.files import NOTEBOOKS
from ffvit.tasks.task import Part, Score, task_of


def load_splits(subjects: list[tuple[Config, Path | str]], notebook: str) -> Splits:
    """The images of what a notebook is to score. Raises InputError for a task that another notebook is for."""
    config, _ = subjects[0]
    if config.task not in load_notebook(NOTEBOOKS / f"{notebook}.ipynb").tasks:
        others = [other.name for other in load_notebooks() if other.scores and config.task in other.tasks]
        raise InputError(f"{config.label} is for {config.task}: score it with notebook {' or '.join(others)}")
    return task_of(config).load_splits()


def load_model(config: Config, weights: str | Path, num_classes: int, device: str = "auto") -> nn.Module:
    """The model of a run with a checkpoint's weights, on the device and in evaluation mode: to score, or to look at."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device='{device}', but PyTorch finds no CUDA GPU: set device='auto' or 'cpu'")
    model = load_weights(from_config.create(config, num_classes), weights, _sha256_of(weights))
    return model.to(device).eval()


def score(config: Config, weights: str | Path, splits: Splits, device: str = "auto") -> Score:
    """Evaluate a checkpoint (a file, ours or the author's) on the test split of a run's settings."""
    return _evaluate(config, weights, splits, "test", device)


def score_train(config: Config, weights: str | Path, splits: Splits, device: str = "auto") -> Score | None:
    """The same on the images it was trained on, not augmented; None where the run's settings do not ask for it."""
    return _evaluate(config, weights, splits, "train", device) if config.score_train else None


def _evaluate(config: Config, weights: str | Path, splits: Splits, part: Part, device: str) -> Score:
    model = load_model(config, weights, len(splits.classes), device)
    task = task_of(alone(config))
    found = task.evaluate(model, task.eval_batches(splits, part), len(splits.classes), next(model.parameters()).device)
    if broken := [
        f"{name} over the images is {value}" for name, value in found.metrics.items() if not math.isfinite(value)
    ]:
        raise InputError(
            f"{weights}: the {broken[0]}: the weights are finite, and what they compute is "
            "not; take other weights, or train again with a lower base_lr"
        )
    return found


def _sha256_of(weights: str | Path) -> str | None:
    """What training noted of the weights it left in a run's folder."""
    facts = Path(weights).parent / "training.json"
    if not facts.is_file():
        return None
    noted = read_object(facts, "give weights from another folder, or train the run again").get("weights_sha256")
    return noted.get(Path(weights).name) if isinstance(noted, dict) else None
