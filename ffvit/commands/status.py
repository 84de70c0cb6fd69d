"""Which runs of an experiment are recorded, and which are begun or missing: `make status EXPERIMENT=cifar10`, or
`ffvit status cifar10`. It reads results/<experiment>/ and runs/<experiment>/, and changes nothing.
"""

import itertools
import json
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

from ffvit.commands.arguments import Parser
from ffvit.evidence import records
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, RUNS
from ffvit.training.manifest import find_state

# Where a run can stand, from done to untouched.
RECORDED, TRAINED = "recorded", "trained here"  # came with the project; has a record beside the run
UNSCORED, BEGUN, OTHER, MISSING = "not scored", "begun", "other settings", "missing"
DONE = (RECORDED, TRAINED)
WIDTH = 100  # columns
LABEL_WIDTH = 40


@dataclass(frozen=True)
class Standing:
    """Where one run stands."""

    config: Config
    state: str = MISSING
    detail: str = ""  # how far a begun run is; whether a record is of older code
    problems: list[str] = field(default_factory=list)  # what is damaged or in the way, with the cure


def standings(experiment: Experiment, results_dir: Path = RESULTS, runs_dir: Path = RUNS) -> list[Standing]:
    """Where every run of an experiment stands, in its order."""
    return [standing(config, results_dir, runs_dir) for config in experiment.configs()]


def standing(config: Config, results_dir: Path = RESULTS, runs_dir: Path = RUNS) -> Standing:
    """Where a run stands. A record counts if its settings are the experiment's as they are now."""
    problems: list[str] = []
    state, detail = MISSING, ""
    file = results_dir / config.experiment / f"{config.run_id}.json"
    if file.exists():
        try:
            written = json.loads(file.read_text())
            if wrong := [name for name, kind in records.FIELDS.items() if not isinstance(written.get(name), kind)]:
                raise ValueError(f"{', '.join(wrong)} missing or of another type")
            if _same_settings(config, written["config"]):
                of_older_code = "code" in written and records.is_of_older_code(written)  # older files name no code
                return Standing(config, RECORDED, "by older code" if of_older_code else "")
            state = OTHER
        except Exception as error:  # it may hold anything
            problems.append(_cured(error, file, "delete it"))
    folder = runs_dir / config.experiment / config.run_id
    try:
        finished, path = (folder / "training.json").exists(), None
        if not finished:
            path, damaged = find_state(folder / "checkpoints")
            problems += [f"{line}; the run goes on from the checkpoint before" for line in damaged]
        if finished or path:
            if not _same_settings(config, json.loads((folder / "config.json").read_text())):
                state = OTHER
                problems.append(f"{folder} holds a run with other settings: delete the folder to train this one")
            elif path is None:
                records.open_run(folder)
                state = TRAINED if (folder / "record.json").exists() else UNSCORED
            else:
                done = json.loads((path / "progress.json").read_text())["history"]
                state, detail = BEGUN, f"epoch {len(done) + 1} of {config.total_epochs}"
    except Exception as error:
        problems.append(_cured(error, folder, "delete the folder to start the run again"))
    return Standing(config, state, detail, problems)


def _same_settings(config: Config, values: dict) -> bool:
    """Whether settings that were written down decide the same result."""
    return not differing(values, config.to_dict())


def _cured(error: Exception, path: Path, cure: str) -> str:
    if isinstance(error, InputError):  # it says so itself
        return str(error)
    return f"{path} is damaged ({type(error).__name__}: {error}): {cure}"


def report(experiment: Experiment, found: list[Standing], name: str) -> str:
    """The listing: part by part, model by model, the seeds by where they stand; then what is wrong, and what to do.

    name: of the experiment, as it was given.
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
    if problems := [problem for s in found for problem in s.problems]:
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
    for state in (RECORDED, TRAINED, UNSCORED, BEGUN, OTHER, MISSING):
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
    print(report(experiment, standings(experiment, results, runs), name))
    return 0
