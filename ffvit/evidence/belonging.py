"""Which records are an experiment's: one rule for status, tables, figures, ledger, reproduction and pipeline.

A record belongs if its settings are those of the experiment's file as it is now, and its images those of the other
records that take the same of the dataset. Where records came with the project, theirs are the images; runs that this
machine made of others are in no mean, pair or table. Nor is a trial of another model or shape than the experiment's.
"""

from ffvit.settings.experiment import Experiment
from ffvit.settings.given import with_defaults
from ffvit.settings.headline import headline_of
from ffvit.settings.same_run import differing, images_of
from ffvit.system.errors import InputError

OTHER_SETTINGS, OTHER_IMAGES = "other settings", "other images"  # why a record does not belong
SHAPE = ("model", "model_args", "img_size", "in_chans")  # what no trial varies
Images = dict[
    tuple, dict
]  # for each choice of what is taken of the dataset, the record whose images are the experiment's
ROUNDED = ("loss", "train")  # of results: what differs in its last digits from machine to machine


def belonging(experiment: Experiment, records: list[dict]) -> list[dict]:
    """Those of the records that belong, in their order.

    Raises InputError, naming both, where two that came with the project are of different images or, where none came
    with it, two that this machine made.
    """
    found = [record for record in records if _has_settings(record, experiment)]
    images = _images(found)
    for record in found:
        theirs = other_images(record, images)
        if theirs and origin(theirs) == origin(record):
            raise InputError(of_different_images(theirs, record))
    return [record for record in found if not other_images(record, images)]


def experiment_images(experiment: Experiment, records: list[dict]) -> Images:
    """Whose images are the experiment's: the first record that came with the project, else the first made here."""
    return _images([record for record in records if _has_settings(record, experiment)])


def unlike(facts: dict, experiment: Experiment, images: Images) -> str:
    """Why a record, or what a run left, is not the experiment's: OTHER_SETTINGS or OTHER_IMAGES; "" where it belongs."""
    if not _has_settings(facts, experiment):
        return OTHER_SETTINGS
    return OTHER_IMAGES if other_images(facts, images) else ""


def other_images(facts: dict, images: Images) -> dict | None:
    """The experiment's record that shows a run to be of other images: taken alike and yet different.

    Where no record takes the same of the dataset, one of the same task that has other classes.
    """
    theirs = images.get(images_of(facts["config"]))
    if theirs:
        return theirs if theirs["dataset"]["fingerprint"] != facts["dataset"]["fingerprint"] else None
    task = headline_of(facts["config"])
    others = [record for record in images.values() if headline_of(record["config"]) == task]
    return next((record for record in others if _has_other_classes(record, facts)), None)


def trials_of(experiment: Experiment, trials: list[dict]) -> list[dict]:
    """The trials of the experiment's models at the experiment's shapes; what else a trial varies, it tries."""

    def belongs(config: dict) -> bool:
        try:
            now = experiment.config(config["name"], config["seed"]).to_dict()
        except InputError:
            return False
        then = with_defaults(config)
        return then["experiment"] == experiment.name and all(then[name] == now[name] for name in SHAPE)

    return [trial for trial in trials if belongs(trial["config"])]


def in_use(experiment: Experiment, recorded: list[dict], own: list[dict]) -> list[dict]:
    """What tables and figures show, a record a run: this machine's own, unless it repeats the one that is recorded."""
    there_by_id = {r["run_id"]: r["history"] for r in recorded}
    others = [r for r in own if r["history"] != there_by_id.get(r["run_id"])]  # one that is there too is no copy
    refuse_copies({file_of(r): r for r in (*recorded, *others)})
    found: dict[str, dict] = {}
    for record in belonging(experiment, [*recorded, *own]):
        there = found.get(record["run_id"])
        if there is None or not same_result(record, there):
            found[record["run_id"]] = record
    return [found[run_id] for run_id in sorted(found)]


def same_result(first: dict, second: dict) -> bool:
    """Whether two runs of the same images ended in the same weights, or in the same answer to every test image."""
    if first["dataset"]["fingerprint"] != second["dataset"]["fingerprint"]:
        return False
    weights = [last_weights(r) for r in (first, second)]
    scores = [{k: v for k, v in r["results"].items() if k not in ROUNDED} for r in (first, second)]
    return (weights[0] is not None and weights[0] == weights[1]) or scores[0] == scores[1]


def refuse_copies(found: dict[str, dict]) -> None:
    """Raises InputError, naming both, for a record that is another's under another seed or name. found: by file."""
    for problem in copies(found).values():
        raise InputError(problem)


def copies(found: dict[str, dict]) -> dict[str, str]:
    """Of records by file, those that are another's, under another seed or name: what is wrong, with the cure."""
    first: dict[str, tuple[str, dict]] = {}
    problems = {}
    for name, record in found.items():
        # Two runs never take the same time to the microsecond.
        other, _ = first.setdefault(str(record["history"]), (name, record))
        if other != name:
            problems[name] = f"{name} is a copy of {other}: their histories are the same, times included; delete it"
            continue
        # Runs that differ in how they are scored have the same weights; those of other seeds or models never.
        if weights := last_weights(record):
            other, theirs = first.setdefault(weights, (name, record))
            if other != name and _network(record) != _network(theirs):
                problems[name] = (
                    f"{name} is a copy of {other}: their weights are the same, their seeds or models not; delete it"
                )
    return problems


def last_weights(record: dict) -> str | None:
    """Their sha256, where it was noted."""
    return record.get("weights_sha256", {}).get("last.safetensors")


def origin(record: dict) -> str:
    """Whether this machine made the run, or its record is one of those that came with the project."""
    return "trained here" if record.get("trained_here") else "recorded"


def file_of(record: dict) -> str:
    """Where a record lies, in words for a message."""
    experiment, run_id = record["config"]["experiment"], record["run_id"]
    return (
        f"runs/{experiment}/{run_id}/record.json"
        if record.get("trained_here")
        else f"results/{experiment}/{run_id}.json"
    )


def of_different_images(first: dict, second: dict) -> str:
    """What is wrong with two records, in one line with the cure."""
    first, second = sorted((first, second), key=file_of)
    return (
        f"{first['run_id']} and {second['run_id']} of {first['config']['experiment']} are of different images "
        f"({_fingerprints(first, second)}), and an experiment is of one set: delete {file_of(first)} or "
        f"{file_of(second)}, and give the other images an experiment file of their own"
    )


def told_of_images(facts: dict, theirs: dict, file: str = "") -> str:
    """What is wrong with a run of other images than a record, in words with the cure. file: the record's, if it is known."""
    return (
        f"its images are not those of {file or file_of(theirs)} ({_fingerprints(facts, theirs)}): give them an experiment "
        "file of their own, see docs/own-images.md"
    )


def _fingerprints(first: dict, second: dict) -> str:
    return f"fingerprints {first['dataset']['fingerprint']} and {second['dataset']['fingerprint']}"


def _network(record: dict) -> tuple:
    """What a run's weights cannot be the same without."""
    config = with_defaults(record["config"])
    return config["seed"], config["model"], config["model_args"]


def _has_settings(facts: dict, experiment: Experiment) -> bool:
    config = facts["config"]
    if config["experiment"] != experiment.name or config["name"] not in experiment.variants:
        return False
    return not differing(config, experiment.config(config["name"], config["seed"]).to_dict())


def _images(records: list[dict]) -> Images:
    images: Images = {}
    for record in sorted(records, key=lambda r: bool(r.get("trained_here"))):
        images.setdefault(images_of(record["config"]), other_images(record, images) or record)
    return images


def _has_other_classes(first: dict, second: dict) -> bool:
    """Of labels taken alike; records that do not name their classes agree with all."""
    one, other = (with_defaults(facts["config"]) for facts in (first, second))
    if any(one[name] != other[name] for name in ("train_split", "label_column")):
        return False
    names = [facts["dataset"].get("class_names") for facts in (first, second)]
    return None not in names and names[0] != names[1]
