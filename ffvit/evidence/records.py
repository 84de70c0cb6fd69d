"""The record of a run: one small JSON that carries its result and all it takes to believe and repeat it.

A run without a record is unfinished. Trials, runs made to choose a recipe, have records of their own, in a folder trials/:
with validation scores, and never with a look at the test split.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.given import config_from_dict
from ffvit.settings.same_run import code_of, differing
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, RUNS, write_atomically

if TYPE_CHECKING:
    from ffvit.training.evaluate import Evaluation

FIELDS = {
    "run_id": str,
    "config": dict,
    "model": dict,
    "dataset": dict,
    "history": list,
    "results": dict,
    "duration_s": float,
    "peak_memory_mb": int,
    "started_at": str,
    "hardware": dict,
    "versions": dict,
    "git": dict,
}


def open_run(run_dir: Path) -> tuple[Config, dict]:
    """Settings and facts of a finished run. Raises InputError for one that is not finished."""
    if not (run_dir / "config.json").is_file():
        raise InputError(
            f"{run_dir} holds no run; train it first, with make reproduce EXPERIMENT=<its experiment> or python -m "
            f"ffvit train --experiment <it> --model <its model> --run-dir {run_dir}"
        )
    if not (run_dir / "training.json").is_file():
        raise InputError(
            f"{run_dir} holds no finished run; go on with: python -m ffvit train --config {run_dir / 'config.json'} "
            f"--run-dir {run_dir}"
        )
    return (
        config_from_dict(json.loads((run_dir / "config.json").read_text())),
        json.loads((run_dir / "training.json").read_text()),
    )


def load_trials(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """All trials of an experiment, by file. Raises InputError for a file that is no whole trial."""
    fields = {name: kind for name, kind in FIELDS.items() if name != "results"}
    return [_read(path, fields) for path in sorted((results_dir / experiment / "trials").glob("*.json"))]


def load_records(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """The records that came with the project, by run id. Raises InputError for a file that is no whole record."""
    return [_read(path, FIELDS) for path in sorted((results_dir / experiment).glob("*.json"))]


def load_own(experiment: str, runs_dir: Path = RUNS) -> list[dict]:
    """The records of the runs that this machine made. Raises InputError for a file that is no whole record."""
    files = sorted((runs_dir / experiment).glob("*/record.json"))
    return [_read(path, FIELDS) | {"trained_here": True} for path in files]


def in_use(recorded: list[dict], own: list[dict]) -> list[dict]:
    """What tables and figures show, a record a run: this machine's own, unless it repeats the one that is recorded."""
    found = {r["run_id"]: r for r in recorded}
    for record in own:
        if record["run_id"] not in found or not same_result(record, found[record["run_id"]]):
            found[record["run_id"]] = record
    return [found[run_id] for run_id in sorted(found)]


def same_result(first: dict, second: dict) -> bool:
    """Whether two runs of the same images ended in the same weights, or in the same answer to every test image."""
    if first["dataset"]["fingerprint"] != second["dataset"]["fingerprint"]:
        return False
    weights = [r.get("weights_sha256", {}).get("last.safetensors") for r in (first, second)]
    scores = [[r["results"].get(name) for name in ("top1_percent", "mistakes", "confusion")] for r in (first, second)]
    return (weights[0] is not None and weights[0] == weights[1]) or scores[0] == scores[1]


def origin(record: dict) -> str:
    """Whose number it is: one of this machine's own runs, or one that came with the project."""
    return "trained here" if record.get("trained_here") else "recorded"


def belongs(record: dict, experiment: Experiment) -> bool:
    """Whether a record, or what a run left, is of a run of the experiment as its file is now."""
    config = record["config"]
    if config["experiment"] != experiment.name or config["name"] not in experiment.variants:
        return False
    return not differing(config, experiment.config(config["name"], config["seed"]).to_dict())


def belongs_to_its_experiment(config: Config) -> bool:
    try:
        return belongs({"config": config.to_dict()}, load_experiment(config.experiment))
    except InputError:
        return False


def is_of_older_code(record: dict) -> bool:
    """Whether the code that decides its result has changed since, or was not noted then."""
    return record.get("code") != code_of(record["config"]["model"])


def _read(path: Path, fields: dict[str, type]) -> dict:
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no valid JSON ({error}); delete it and run the pipeline again") from None
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            raise InputError(f"{path}: '{name}' must be {kind.__name__}; delete the file and run the pipeline again")
    return record


MAX_CONFUSION_CLASSES = 100  # with more classes, the confusion matrix and the mistakes would make a large file


def write_record(run_dir: Path, evaluation: "Evaluation", fingerprint: str) -> Path:
    """Join what training left in the run's folder with its score on the test split, as record.json beside it.

    fingerprint: of the images scored, with those of the other splits. Raises InputError where they are not those the run
    was made for.
    """
    config, facts = open_run(run_dir)
    images = evaluation.images + len(evaluation.bad_images)
    if images != facts["dataset"]["images"]["test"]:
        raise InputError(f"{run_dir}: {images} images scored, its test split has {facts['dataset']['images']['test']}")
    if fingerprint != (began := facts["dataset"]["fingerprint"]):
        raise InputError(
            f"dataset '{config.dataset}': its images are not those of {run_dir} (fingerprint {fingerprint}, not {began}): put "
            "those back to score it, or train on these in another folder"
        )
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
