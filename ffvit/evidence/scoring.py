"""Score a run's last weights on the test split, every image once, and write the record, last of all and atomically."""

import json
import os
from pathlib import Path

import torch

from ffvit.data.batches import eval_loader
from ffvit.data.splits import Splits
from ffvit.evidence.records import belongs_to_its_experiment, open_run
from ffvit.models import build
from ffvit.models.weights import load_weights
from ffvit.settings.config import Config, alone
from ffvit.settings.experiment import Experiment
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, write_atomically
from ffvit.training.evaluate import Evaluation, evaluate

MAX_CONFUSION_CLASSES = 100  # with more classes, the confusion matrix and the mistakes would make a large file


def choose(
    experiment: Experiment, model: str, seeds: list[int], run_dir: str = "", checkpoint: str = "", **settings
) -> list[tuple[Config, Path | str]]:
    """Settings and weights to evaluate: the last weights of the seeds' runs, of one run's folder, or any checkpoint."""
    if checkpoint:
        return [(experiment.config(model, **settings), checkpoint)]
    if settings:
        raise InputError(f"{', '.join(sorted(settings))}: for a checkpoint only; a run is scored on its own images")
    folders = [Path(run_dir)] if run_dir else [experiment.config(model, seed).run_dir for seed in seeds]
    folders = [Path(os.path.relpath(folder)) for folder in folders]  # no home folder in outputs
    return [(open_run(folder)[0], folder / "last.safetensors") for folder in folders]


def score(config: Config, weights: str | Path, splits: Splits, device: str = "auto") -> Evaluation:
    """Evaluate a checkpoint (a file, ours or the author's) on the test split of a run's settings."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_weights(build.create(config, len(splits.classes)), weights, _sha256_of(weights))
    return evaluate(model.to(device), eval_loader(splits.test, alone(config)), len(splits.classes), device)


def write_record(run_dir: Path, evaluation: Evaluation) -> Path:
    """Join what training left in the run's folder with its score on the test split, as record.json beside it.

    Raises InputError where the images scored are not those the run was made for.
    """
    config, facts = open_run(run_dir)
    images = evaluation.images + len(evaluation.bad_images)
    if images != facts["dataset"]["images"]["test"]:
        raise InputError(f"{run_dir}: {images} images scored, its test split has {facts['dataset']['images']['test']}")
    results = {
        "images": evaluation.images,
        "loss": evaluation.loss,
        "top1_percent": evaluation.top1_percent,
        "top5_percent": evaluation.top5_percent,
        "per_class_percent": evaluation.per_class_percent,
    }
    if evaluation.bad_images:
        results["bad_images"] = [image._asdict() for image in evaluation.bad_images]
    if len(evaluation.confusion) <= MAX_CONFUSION_CLASSES:
        results["confusion"] = evaluation.confusion.tolist()
        results["mistakes"] = evaluation.mistakes
    path = run_dir / "record.json"
    write_atomically(path, json.dumps(facts | {"results": results}, indent=1) + "\n")
    return path


def publish(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Put the record of a run among those that come with the project, and return the file.

    Raises InputError for a run with other settings than its experiment's, such as a trial, and where a record is there:
    a record is never written over.
    """
    config, _ = open_run(run_dir)
    if not belongs_to_its_experiment(config):
        raise InputError(f"{run_dir} has other settings than {config.experiment}: it is none of its runs")
    path = results_dir / config.experiment / f"{config.run_id}.json"
    if path.exists():
        raise InputError(f"{path} is there already: delete it first to record the run anew")
    write_atomically(path, (run_dir / "record.json").read_text())
    return path


def write_trial(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Keep what training left in the run's folder, under the folder's name. Returns the file."""
    config, facts = open_run(run_dir)
    path = results_dir / config.experiment / "trials" / f"{run_dir.name}.json"
    write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return path


def _sha256_of(weights: str | Path) -> str | None:
    """What training noted of the weights it left in a run's folder."""
    facts = Path(weights).parent / "training.json"
    if not facts.is_file():
        return None
    return json.loads(facts.read_text()).get("weights_sha256", {}).get(Path(weights).name)
