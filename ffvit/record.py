"""The record of a run: one small JSON that carries its result and all it takes to believe and repeat it.

`python -m ffvit.record runs/digits/ff-seed0` scores the last weights on the test split, every image once, and writes
results/digits/ff-seed0.json, last of all and atomically: a run without a record is unfinished.

`python -m ffvit.record --trial runs/trials/a` writes down a run made to choose a recipe, as results/digits/trials/a.json:
its validation scores and what it cost, and never a look at the test split.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ffvit import checkpoint, data, models
from ffvit.config import (
    RESULTS,
    RUNS,
    Config,
    Experiment,
    InputError,
    config_from_dict,
    load_experiment,
    with_defaults,
)
from ffvit.evaluate import Evaluation, evaluate
from ffvit.train import FREE_SETTINGS

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
MAX_CONFUSION_CLASSES = 100  # with more classes, the confusion matrix and the mistakes would make a large file


def open_run(run_dir: Path) -> tuple[Config, dict]:
    """Settings and facts of a finished run. Raises InputError for one that is not finished."""
    if not (run_dir / "config.json").is_file():
        raise InputError(
            f"{run_dir} holds no run; train it first, with make reproduce EXPERIMENT=<its experiment> or python -m "
            f"ffvit.launch --experiment <it> --model <its model> --run-dir {run_dir}"
        )
    if not (run_dir / "training.json").is_file():
        raise InputError(
            f"{run_dir} holds no finished run; go on with: python -m ffvit.launch --config {run_dir / 'config.json'} "
            f"--run-dir {run_dir}"
        )
    return (
        config_from_dict(json.loads((run_dir / "config.json").read_text())),
        json.loads((run_dir / "training.json").read_text()),
    )


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


def score(config: Config, weights: str | Path, splits: data.Splits, device: str = "auto") -> Evaluation:
    """Evaluate a checkpoint (ours or the author's; a path or an address) on the test split of a run's settings."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = checkpoint.load_weights(models.create(config, len(splits.classes)), weights, _sha256_of(weights))
    return evaluate(model.to(device), data.eval_loader(splits.test, alone(config)), len(splits.classes), device)


def alone(config: Config) -> Config:
    """What several processes trained, for one to score: all images, in batches of the same size."""
    size = config.micro_batch(config.accumulation_steps or 1)
    return replace(config, num_processes=1, accumulation_steps=1, batch_size=size, parallel="ddp")


def write_record(run_dir: Path, evaluation: Evaluation, results_dir: Path | None = None) -> Path:
    """Join what training left in the run's folder with its score on the test split, and return the file.

    results_dir: None writes to results/ where the run has its experiment's own settings; another one, such as a trial
    with fewer epochs, must not stand among them, and its record stays in its folder.
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
    if results_dir is None and not _has_settings_of_its_experiment(config):
        path = run_dir / "record.json"
    else:
        path = (results_dir or RESULTS) / config.experiment / f"{config.run_id}.json"
    checkpoint.write_atomically(path, json.dumps(facts | {"results": results}, indent=1) + "\n")
    return path


def write_trial(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Keep what training left in the run's folder, under the folder's name. Returns the file."""
    config, facts = open_run(run_dir)
    path = results_dir / config.experiment / "trials" / f"{run_dir.name}.json"
    checkpoint.write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return path


def load_trials(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """All trials of an experiment, by file. Raises InputError for a file that is no whole trial."""
    fields = {name: kind for name, kind in FIELDS.items() if name != "results"}
    return [_read(path, fields) for path in sorted((results_dir / experiment / "trials").glob("*.json"))]


def load_records(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """All records of an experiment, by run id. Raises InputError for a file that is no whole record."""
    return [_read(path, FIELDS) for path in sorted((results_dir / experiment).glob("*.json"))]


def origin(record: dict, runs_dir: Path = RUNS) -> str:
    """ "trained here" where this machine still holds the very run; "recorded" where the record came with the project."""
    run = runs_dir / record["config"]["experiment"] / record["run_id"] / "training.json"
    here = run.is_file() and json.loads(run.read_text())["started_at"] == record["started_at"]
    return "trained here" if here else "recorded"


def deciding(config: dict) -> dict:
    """The settings that decide a result: all but the machine's, the seed, the names, and where the images lie."""
    free, values = FREE_SETTINGS | {"seed", "dataset"}, with_defaults(config)
    kept = {name: value for name, value in values.items() if name not in free}
    if values["model"].startswith("lit_") and values["deformable"] is not False:
        # Batch norms see a part of a batch at a time; how many parts there are is then no matter of the machine.
        kept["parts"] = values["num_processes"] * values["accumulation_steps"]
    return kept


def _sha256_of(weights: str | Path) -> str | None:
    """What training noted of the weights it left in a run's folder."""
    facts = Path(weights).parent / "training.json"
    if not facts.is_file():
        return None
    return json.loads(facts.read_text()).get("weights_sha256", {}).get(Path(weights).name)


def _has_settings_of_its_experiment(config: Config) -> bool:
    try:
        own = load_experiment(config.experiment).config(config.name, config.seed)
    except InputError:
        return False
    return deciding(own.to_dict()) == deciding(config.to_dict())


def _read(path: Path, fields: dict[str, type]) -> dict:
    try:
        record = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: no valid JSON ({error}); delete it and run the pipeline again") from None
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            raise InputError(f"{path}: '{name}' must be {kind.__name__}; delete the file and run the pipeline again")
    return record


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ffvit.record", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--trial", action="store_true", help="write down its validation scores only")
    options = parser.parse_args(arguments)
    run_dir = Path(os.path.relpath(options.run_dir))
    try:
        if options.trial:
            print(f"trial: {os.path.relpath(write_trial(run_dir))}")
            return 0
        config, _ = open_run(run_dir)
        evaluation = score(config, run_dir / "last.safetensors", data.load_splits(config))
        path = write_record(run_dir, evaluation)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"top-1 {evaluation.top1_percent:.2f} % of {evaluation.images:,} test images; record: {os.path.relpath(path)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
