"""The record of a run: one small JSON that carries its result and all it takes to believe and repeat it.

A run without a record is unfinished. Trials, runs made to choose a recipe, have records of their own, in a folder
trials/: with validation scores, and never with a look at the test split. Whoever reads a record gets it whole and in
itself true, as the models below say, or an error that names the file, the key and the cure.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, create_model, model_validator

from ffvit.evidence import belonging
from ffvit.evidence.results import OF_TASK, Count, Epoch, Part, Results, Seconds, Some
from ffvit.settings.config import Config, Task, short
from ffvit.settings.experiment import load_experiment
from ffvit.settings.given import config_from_dict
from ffvit.settings.same_run import code_of, differing, images_of
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, RESULTS, RUNS, read_json, write_atomically

if TYPE_CHECKING:
    from ffvit.tasks.task import Score

CURE = "restore the file, or delete it and run the pipeline again"
MOST_BYTES = 32 * 2**20  # of a file; records have some ten thousand

Text = Annotated[str, Field(min_length=1)]
Patches = Literal["ff", "attention"] | None
Features = Literal["ff", "attention", "attention_over_tokens", "attention_unprojected"] | None


class _Settings(Part):
    """What is computed with; that the others are an experiment's is a matter of belonging."""

    experiment: Text
    task: Task = "classification"
    name: Annotated[str, Field(pattern=r"^[\w.-]*\w$")]
    label: Text
    model: Text
    seed: Annotated[int, Field(ge=0, le=10**9)]
    epochs: Some
    cooldown_epochs: Count = 0
    num_processes: Some = 1
    accumulation_steps: Count = 1
    batch_size: Some
    base_lr: Annotated[float, Field(ge=0)]
    model_args: dict[str, Any] = {}


class _Model(Part):
    name: Text
    parameters: Count
    macs: Count
    patches: Patches
    features: Features


class _Images(Part):
    train: Some
    validation: Some
    test: Some


class _Dataset(Part):
    fingerprint: Annotated[str, Field(pattern=r"^\w+$")]
    images: _Images
    classes: Some
    class_names: list[str] | None = None


class Trial(Part):
    """What training leaves of a run."""

    run_id: Text
    config: _Settings
    model: _Model
    dataset: _Dataset
    history: list[Epoch]
    duration_s: Seconds
    peak_memory_mb: Count
    started_at: Text
    hardware: "_Hardware"
    versions: dict[str, str]
    git: "_Git"
    code: str | None = None  # older files name none
    weights_sha256: dict[str, str] = {}

    @model_validator(mode="after")
    def _fit_together(self) -> "Trial":
        config = self.config
        if self.run_id != (wanted := f"{config.name}-seed{config.seed}"):
            raise ValueError(f"run_id must be {wanted} by config, got {self.run_id!r}")
        if self.model.name != config.model:
            raise ValueError(f"model.name must be {config.model!r} by config, got {self.model.name!r}")
        epochs = config.epochs + config.cooldown_epochs
        if [epoch.epoch for epoch in self.history] != [*range(1, epochs + 1)]:
            raise ValueError(f"history must be of the epochs 1 to {epochs} in order, as config says")
        names = self.dataset.class_names
        if names is not None and len(names) != self.dataset.classes:
            raise ValueError(f"dataset.class_names must be {self.dataset.classes} by dataset.classes, got {len(names)}")
        return self


class _Hardware(Part):
    gpu: str | None
    cpu: str
    processes: Some


class _Git(Part):
    commit: str | None
    dirty: bool | None


class Record(Trial):
    """The same with its score on the test images."""

    results: Results

    @model_validator(mode="after")
    def _are_of_the_dataset(self) -> "Record":
        results, dataset = self.results, self.dataset
        if (scored := results.images + len(results.bad_images)) != dataset.images.test:
            raise ValueError(f"results.images must be {dataset.images.test} with bad ones, by dataset, got {scored}")
        if len(results.per_class_percent) != dataset.classes:
            raise ValueError(
                f"results.per_class_percent must be of {dataset.classes} classes, got {len(results.per_class_percent)}"
            )
        return self


def open_run(run_dir: Path) -> tuple[Config, dict]:
    """Settings and facts of a finished run. Raises InputError for one that is not finished, and for damaged files."""
    if not (run_dir / "config.json").is_file():
        raise InputError(
            f"{run_dir} holds no run; train it first, with make reproduce EXPERIMENT={_experiment_of(run_dir)} in the "
            f"project's folder, or python -m ffvit train --experiment <it> --model <its model> --run-dir {run_dir}"
        )
    if not (run_dir / "training.json").is_file():
        raise InputError(
            f"{run_dir} holds no finished run; go on with: python -m ffvit train --config {run_dir / 'config.json'} "
            f"--run-dir {run_dir}"
        )
    cure = f"delete the folder {run_dir} to start the run again"
    config, facts = (read_object(run_dir / name, cure) for name in ("config.json", "training.json"))
    try:
        return config_from_dict(config), facts
    except (InputError, TypeError) as error:
        raise InputError(f"{run_dir / 'config.json'}: {error}; {cure}") from None


def _experiment_of(run_dir: Path) -> str:
    """Of a run where the pipeline puts it, runs/<experiment>/<run>."""
    name = run_dir.resolve().parent.name
    return name if (EXPERIMENTS / f"{name}.toml").is_file() else "<its experiment>"


def read_object(path: Path, cure: str = CURE) -> dict:
    """A JSON object from a file that may be anything. Raises InputError with the cure."""
    try:
        return read_json(path, MOST_BYTES)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid JSON ({error}): {cure}") from None


def read_record(path: Path, experiment: str, run_id: str) -> dict:
    """One record. Raises InputError for a file that is not whole, or is of another run or experiment."""
    record = _read(path, Record, experiment)
    if record["run_id"] != run_id:
        raise InputError(f"{path}: run_id must be {run_id!r} by where the file lies, got {record['run_id']!r}: {CURE}")
    return record


def load_records(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """The records that came with the project, by run id. Raises InputError for one that is not whole, or a copy."""
    files = sorted((results_dir / experiment).glob("*.json"))
    found = {str(path): read_record(path, experiment, path.stem) for path in files}
    belonging.refuse_copies(found)
    return list(found.values())


def own_files(experiment: str, runs_dir: Path = RUNS) -> list[Path]:
    """The records beside the runs that this machine made; what folders of other names hold is nobody's run."""
    files = sorted((runs_dir / experiment).glob("*/record.json"))
    return [file for file in files if re.fullmatch(r".+-seed\d+", file.parent.name)]


def load_own(experiment: str, runs_dir: Path = RUNS) -> list[dict]:
    """The records of the runs that this machine made. Raises InputError for one that is not whole, or a copy."""
    if runs_dir != RUNS and not runs_dir.is_dir():  # before the first run, there is no RUNS
        raise InputError(f"there is no folder '{runs_dir}' of runs; runs_dir empty is runs/")
    files = own_files(experiment, runs_dir)
    found = {str(file): read_record(file, experiment, file.parent.name) | {"trained_here": True} for file in files}
    belonging.refuse_copies(found)
    return list(found.values())


def load_trials(experiment: str, results_dir: Path = RESULTS) -> list[dict]:
    """All trials of an experiment, by file.

    Raises InputError for a file that is no whole trial or a copy, and for two that take the same of different images.
    """
    found = _trials(experiment, results_dir)
    belonging.refuse_copies(found)
    first: dict[tuple, tuple[str, str]] = {}
    for name, trial in found.items():
        fingerprint = trial["dataset"]["fingerprint"]
        other, images = first.setdefault(images_of(trial["config"]), (name, fingerprint))
        if images != fingerprint:
            raise InputError(
                f"{other} and {name} are of different images (fingerprints {images} and {fingerprint}): delete one"
            )
    return list(found.values())


def is_of_older_code(record: dict) -> bool:
    """Whether the code that decides its result has changed since, or was not noted then."""
    return record.get("code") != code_of(record["config"])


def write_record(run_dir: Path, evaluation: "Score", fingerprint: str, of_train: "Score | None" = None) -> Path:
    """Join what training left in the run's folder with its score on the test split, as record.json beside it.

    of_train: the score of its training images, where there is one.
    fingerprint: of the images scored, with those of the other splits. Raises InputError where they are not those the
    run was made for, and for scores that are none.
    """
    config, facts = open_run(run_dir)
    _need_whole(
        _kind(facts, Trial),
        facts,
        str(run_dir / "training.json"),
        f"delete the folder {run_dir} to start the run again",
    )
    images = evaluation.images + len(evaluation.bad_images)
    if images != facts["dataset"]["images"]["test"]:
        raise InputError(f"{run_dir}: {images} images scored, its test split has {facts['dataset']['images']['test']}")
    if fingerprint != (began := facts["dataset"]["fingerprint"]):
        raise InputError(
            f"dataset '{config.dataset}': its images are not those of {run_dir} (fingerprint {fingerprint}, not {began}): put "
            "those back to score it, or train on these in another folder"
        )
    results = evaluation.results()
    if of_train:
        results["train"] = {"images": of_train.images, **of_train.metrics}
    path = run_dir / "record.json"
    _need_whole(OF_TASK[config.task][1], results, f"the scores of {run_dir}", "train the run again")
    write_atomically(path, json.dumps(facts | {"results": results}, indent=1) + "\n")
    return path


def publish(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Put the record of a run among those that come with the project, and return the file.

    Raises InputError for a run with other settings than its experiment's, such as a trial, or of other images than the
    records there, for a copy of one of them, and where a record is there: a record is never written over.
    """
    name = open_run(run_dir)[0].experiment
    record = _read(run_dir / "record.json", Record, name)
    try:
        experiment = load_experiment(name)
    except InputError as error:
        raise InputError(f"{run_dir} is of no experiment here: {error}") from None
    if belonging.unlike(record, experiment, {}):
        raise InputError(f"{run_dir} has other settings than {name}: it is none of its runs")
    there = load_records(name, results_dir)
    if theirs := belonging.other_images(record, belonging.experiment_images(experiment, there)):
        raise InputError(f"{run_dir} is not recorded: {belonging.told_of_images(record, theirs)}")
    path = results_dir / name / f"{record['run_id']}.json"
    if path.exists():
        raise InputError(f"{path} is there already: delete it first to record the run anew")
    belonging.refuse_copies({belonging.file_of(r): r for r in there} | {str(run_dir / "record.json"): record})
    write_atomically(path, (run_dir / "record.json").read_text())
    return path


def write_trial(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Keep what training left in the run's folder, under the folder's name. Returns the file.

    Raises InputError for a trial of other images than those there, and where another trial has this name.
    """
    config, facts = open_run(run_dir)
    name = config.experiment
    _need_whole(
        _kind(facts, Trial),
        facts,
        str(run_dir / "training.json"),
        f"delete the folder {run_dir} to start the run again",
    )
    there = {belonging.file_of(r): r for r in load_records(name, results_dir)} | _trials(name, results_dir)
    for file, record in there.items():
        if belonging.other_images(facts, {images_of(record["config"]): record}):
            raise InputError(f"{run_dir} is not recorded: {belonging.told_of_images(facts, record, file)}")
    path = results_dir / name / "trials" / f"{run_dir.absolute().name}.json"
    if other := differing(read_object(path)["config"], facts["config"]) if path.exists() else []:
        raise InputError(
            f"{path} is of a trial with other settings ({', '.join(other)}): delete it, or rename {run_dir}"
        )
    write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return path


def images_unlike_recorded(config: Config, fingerprint: str) -> str:
    """In words, that a run's images are not those of its experiment's records; "" where they are, or there is none."""
    try:
        experiment = load_experiment(config.experiment)
        images = belonging.experiment_images(experiment, load_records(experiment.name))
    except InputError:  # a run of no experiment here; damaged records are told where they are read
        return ""
    facts = {"config": config.to_dict(), "dataset": {"fingerprint": fingerprint}}
    if belonging.unlike(facts, experiment, {}) or not (theirs := belonging.other_images(facts, images)):
        return ""
    return belonging.told_of_images(facts, theirs)


def _trials(experiment: str, results_dir: Path) -> dict[str, dict]:
    """By file."""
    files = sorted((results_dir / experiment / "trials").glob("*.json"))
    return {str(file): _read(file, Trial, experiment) for file in files}


def _read(path: Path, kind: type[Trial], experiment: str) -> dict:
    content = read_object(path)
    _need_whole(_kind(content, kind), content, str(path), CURE)
    if (named := content["config"]["experiment"]) != experiment:
        raise InputError(
            f"{path}: config.experiment must be {experiment!r} by where the file lies, got {named!r}: {CURE}"
        )
    return content


def _kind(content: dict, kind: type[Trial]) -> type[Trial]:
    """Trial or Record as they are of the task that a file says it is of."""
    config = content.get("config")
    task = config.get("task") if isinstance(config, dict) else None
    return _of_task(task if task in [*OF_TASK] else "classification", kind)


@cache
def _of_task(task: str, kind: type[Trial]) -> type[Trial]:
    epoch, results = OF_TASK[task]
    scored: dict[str, Any] = {"results": (results, ...)} if kind is Record else {}
    return create_model(kind.__name__, __base__=kind, history=(list[epoch], ...), **scored)  # type: ignore[valid-type]


def _need_whole(kind: type[Part], content: dict, where: str, cure: str) -> None:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f", and {len(others)} more" if others else ""
        raise InputError(f"{where}: {_in_words(first)}{more}: {cure}") from None


def _in_words(error: Any) -> str:
    """pydantic's finding as "results.top1_percent must be less than or equal to 100, got 150"."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"needs '{key}'"
    if error["type"] == "value_error":  # one of ours
        return f"{key}.{error['ctx']['error']}" if key else str(error["ctx"]["error"])
    rule = error["msg"].removeprefix("Input should ").removeprefix("String should ")
    return f"{key} must {rule}, got {short(error['input'])}"
