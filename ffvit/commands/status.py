"""Which runs of an experiment are recorded, and which are begun or missing: `make status EXPERIMENT=cifar10`, or
`ffvit status cifar10`. It reads results/<experiment>/ and runs/<experiment>/, and changes nothing.
"""

import itertools
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ffvit.commands.arguments import Parser
from ffvit.evidence import belonging, records
from ffvit.evidence.belonging import OTHER_IMAGES, OTHER_SETTINGS
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, RUNS
from ffvit.training.manifest import find_state

# Where a run can stand, from done to untouched.
RECORDED, TRAINED = "recorded", "trained here"  # came with the project; has a record beside the run
UNSCORED, BEGUN, OTHER, IMAGES, MISSING = "not scored", "begun", OTHER_SETTINGS, OTHER_IMAGES, "missing"
DONE = (RECORDED, TRAINED)
WIDTH = 100  # columns
LABEL_WIDTH = 40
AGAIN = "delete the folder to start the run again"


@dataclass(frozen=True)
class Standing:
    """Where one run stands."""

    config: Config
    state: str = MISSING
    detail: str = ""  # how far a begun run is; whether a record is of older code
    problems: list[str] = field(default_factory=list)  # what is damaged or in the way, with the cure


@dataclass(frozen=True)
class Records:
    """What lies in an experiment's folders, by file."""

    whole: dict[Path, dict]
    problems: dict[Path, str]  # of those that are not whole, or copies
    images: belonging.Images


def standings(experiment: Experiment, results_dir: Path = RESULTS, runs_dir: Path = RUNS) -> list[Standing]:
    """Where every run of an experiment stands, in its order. A record counts if it belongs to the experiment."""
    there = _read(experiment, results_dir, runs_dir)
    return [_standing(config, experiment, there, results_dir, runs_dir) for config in experiment.configs()]


def others(experiment: Experiment, results_dir: Path = RESULTS, runs_dir: Path = RUNS) -> list[str]:
    """What is to be said of records besides those of the runs that the experiment's file names."""
    there, named = _read(experiment, results_dir, runs_dir), {config.run_id for config in experiment.configs()}
    found = [problem for file, problem in there.problems.items() if _run_id(file) not in named]
    for file, record in there.whole.items():
        if record["run_id"] not in named and not belonging.unlike(record, experiment, there.images):
            found.append(
                f"{file} is of a further seed, which tables count: delete it, or name the seed in the experiment"
            )
    return found


def _read(experiment: Experiment, results_dir: Path, runs_dir: Path) -> Records:
    whole: dict[Path, dict] = {}
    problems: dict[Path, str] = {}
    for files, more in (
        ((results_dir / experiment.name).glob("*.json"), {}),
        (records.own_files(experiment.name, runs_dir), {"trained_here": True}),
    ):
        found: dict[str, dict] = {}
        for file in sorted(files):
            try:
                found[str(file)] = records.read_record(file, experiment.name, _run_id(file)) | more
            except InputError as error:
                problems[file] = str(error)
        copies = belonging.copies(found)
        problems |= {Path(file): problem for file, problem in copies.items()}
        whole |= {Path(file): record for file, record in found.items() if file not in copies}
    return Records(whole, problems, belonging.experiment_images(experiment, list(whole.values())))


def _run_id(file: Path) -> str:
    return file.parent.name if file.name == "record.json" else file.stem


def _standing(config: Config, experiment: Experiment, there: Records, results_dir: Path, runs_dir: Path) -> Standing:
    file = results_dir / config.experiment / f"{config.run_id}.json"
    folder = runs_dir / config.experiment / config.run_id
    problems = [there.problems[path] for path in (file, folder / "record.json") if path in there.problems]
    own, state, detail = there.whole.get(folder / "record.json"), MISSING, ""
    if own and (theirs := belonging.other_images(own, there.images)):
        problems.append(_left_out(folder, own, theirs))
    if record := there.whole.get(file):
        state = belonging.unlike(record, experiment, there.images) or RECORDED
        if theirs := belonging.other_images(record, there.images):
            problems.append(belonging.of_different_images(theirs, record))
        if state == RECORDED:
            return Standing(config, RECORDED, _age(record), problems)
    try:
        finished, path = (folder / "training.json").exists(), None
        if not finished:
            path, damaged = find_state(folder / "checkpoints")
            problems += [f"{line}; the run goes on from the checkpoint before" for line in damaged]
        if finished or path:
            if differing(records.read_object(folder / "config.json", AGAIN), config.to_dict()):
                state = OTHER
                problems.append(f"{folder} holds a run with other settings: delete the folder to train this one")
            elif own:
                state = belonging.unlike(own, experiment, there.images) or TRAINED
                detail = _age(own) if state == TRAINED else ""
            else:
                state, detail, facts = _without_record(config, folder, path)
                if facts and (theirs := belonging.other_images(facts, there.images)):
                    state, detail = IMAGES, ""
                    problems.append(_left_out(folder, facts, theirs))
    except Exception as error:  # it may hold anything
        problems.append(
            str(error)
            if isinstance(error, InputError)
            else f"{folder} is damaged ({type(error).__name__}: {error}): {AGAIN}"
        )
    return Standing(config, state, detail, problems)


def _age(record: dict) -> str:
    """Whether a record is of other code than today's. The oldest files do not say which."""
    return "by older code" if "code" in record and records.is_of_older_code(record) else ""


def _without_record(config: Config, folder: Path, checkpoint: Path | None) -> tuple[str, str, dict]:
    """State and detail of a run that is finished, or has a checkpoint; and its facts, if they say which images it has."""
    if checkpoint is None:
        state, detail, facts = UNSCORED, "", records.open_run(folder)[1]
    else:
        progress = records.read_object(checkpoint / "progress.json", AGAIN)
        state, facts = BEGUN, progress.get("facts", {})
        detail = f"epoch {len(progress['history']) + 1} of {config.total_epochs}"
    return state, detail, facts if facts.keys() >= {"config", "dataset"} else {}


def _left_out(folder: Path, facts: dict, theirs: dict) -> str:
    return (
        f"{folder} is in no table: {belonging.told_of_images(facts, theirs)}; delete the folder to train on the others"
    )


def report(experiment: Experiment, found: list[Standing], name: str, others: Sequence[str] = ()) -> str:
    """The listing: part by part, model by model, the seeds by where they stand; then what is wrong, and what to do.

    name: of the experiment, as it was given. others: what is to be said of other files.
    """
    names = max(map(len, experiment.variants), default=0)
    labels = min(LABEL_WIDTH, max((len(variant.label) for variant in experiment.variants.values()), default=0))
    lines = [f"{experiment.title}: its runs, by seed"]
    for part, title in experiment.parts().items():
        models = [variant.name for variant in experiment.of(part)]
        lines += ["", title] if models else []
        for model in models:
            label = textwrap.shorten(experiment.variants[model].label, labels, placeholder="…")
            states = _by_state([s for s in found if s.config.name == model])
            before = f"  {model:{names}}  {label:{labels}}  "
            wrapped = [line for state in states for line in textwrap.wrap(state, max(20, WIDTH - len(before)))]
            lines += [before + wrapped[0], *(" " * len(before) + line for line in wrapped[1:])]
    if problems := [problem for s in found for problem in s.problems] + [*others]:
        lines += ["", "Damaged, or in the way:"]
        lines += [line for problem in problems for line in _indented(problem)]
    left = [s.config.run_id for s in found if s.state not in DONE]
    if left:
        lines += ["", "Not recorded:", *_indented(" ".join(left))]
    here = sum(s.state == TRAINED for s in found)
    lines += [
        "",
        f"{len(found) - len(left) - here} of {len(found)} runs recorded" + (f", {here} trained here" if here else ""),
    ]
    if left:
        lines[-1] += "; the rest:"
        ways = {f"make reproduce EXPERIMENT={name}": "all that was not run here, with tables and figures"}
        if name == experiment.name:  # of a file elsewhere, nothing is recorded without the pipeline
            ways[f"make missing EXPERIMENT={name}"] = "what is missing, nothing else"
        lines += [f"  {way:{max(map(len, ways))}}  {what}" for way, what in ways.items()]
    return "\n".join(lines)


def _by_state(found: list[Standing]) -> list[str]:
    """A line for each state that runs of a model are in: "recorded 0, 1, 2", "begun 3 (epoch 37 of 100)"."""
    lines = []
    for state in (RECORDED, TRAINED, UNSCORED, BEGUN, OTHER, IMAGES, MISSING):
        for detail, alike in itertools.groupby((s for s in found if s.state == state), key=lambda s: s.detail):
            seeds = ", ".join(str(s.config.seed) for s in alike)
            lines.append(f"{state} {seeds} ({detail})" if detail else f"{state} {seeds}")
    return lines


def _indented(text: str) -> list[str]:
    """Lines in which run ids and paths stay in one piece, to be copied."""
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit status", __doc__)
    parser.add_argument("experiment", help="a name in experiments/, or the path of a .toml file")
    name = parser.parse_args(arguments).experiment
    experiment = load_experiment(name)
    results, runs = (Path(os.path.relpath(folder)) for folder in (RESULTS, RUNS))  # no home folder in outputs
    print(report(experiment, standings(experiment, results, runs), name, others(experiment, results, runs)))
    return 0
