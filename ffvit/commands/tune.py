"""Find the settings of each model by equal effort: `ffvit tune cifar10-small`.

An experiment's [tuning] says what is searched, in its order, on validation images and never on test images:

    [tuning]
    settings = { epochs = 8 }      # of every trial, beside the experiment's own
    base_lr = [4e-3, 8e-3]         # and on by factors of 2, until no model is best at an edge
    weight_decay = [0.05, 0.2]     # then these, each model at its best rate
    crop_scale = [[0.5, 1.0], [0.8, 1.0]]
    full_length = ["crop_scale"]   # tried without those settings: short trials favour weak augmentation
    seeds = [0, 1]                 # of every trial, judged by their mean; the experiment's first where this is left out

Every model of the grid gets the same trials: where one of them needs a further rate, all try it. With

    variants = true                # each model of every comparison, too

each variant is searched for as well, from the same values on, and each goes on by itself: a further rate is tried by
those alone that are best at an edge. So efforts are equal but for what it takes to leave the edge. A list of names in
place of true searches for these, and for no other.

Trials are kept in results/<experiment>/trials, in which the search finds its place again after an interruption. What was found is then
written into the experiment's file by a person; a test holds the two together. On Ctrl-C or a signal, the trials
write their checkpoints and stop, and the same command goes on.

Exit codes: 0 the search is complete, 2 a trial failed or an argument is wrong, 75 stopped with trials left.
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from typing import Any, NamedTuple

from ffvit.commands.arguments import Parser, add_shared, read_shared
from ffvit.evidence import records
from ffvit.launching.children import Children
from ffvit.launching.jobs import Job, environment, outlook, run, say, slots
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.settings.headline import last_validation
from ffvit.settings.same_run import deciding
from ffvit.system.errors import InputError
from ffvit.system.files import RUNS
from ffvit.system.lifetime import STOPPED

STEP = 2  # between two rates
FLAT = 6  # rates that are all as good as one another: no search finds a best one
OPTIONS = ("settings", "variants", "full_length", "seeds")  # of [tuning]; what else it has is searched


class Search(NamedTuple):
    """Where a search stands."""

    left: list[Config]  # to be tried next; none: the search is complete
    made: int  # trials of this search that there are
    later: int  # trials that will follow those, at least
    found: dict[str, dict]  # the best settings of each model so far


def search(experiment: Experiment, trials: list[dict]) -> Search:
    """Where the search stands by these trials, which are as records.load_trials gives them."""
    plan = {name: values for name, values in experiment.tuning.items() if name not in OPTIONS}
    each_by_itself = experiment.tuning.get("variants", False)
    main = [variant.name for variant in experiment.main_variants]
    models = each_by_itself if isinstance(each_by_itself, list) else [*experiment.variants] if each_by_itself else main
    scores = {key(t["config"]): last_validation(t) for t in trials}
    made = set()
    # What is searched later stands at its first value until then.
    found = {model: {name: values[0] for name, values in plan.items()} for model in models}
    for name, values in plan.items():
        own = {m: list(values) for m in models}
        while True:
            tried = {m: [of_seeds(experiment, m, name, found[m] | {name: v}) for v in own[m]] for m in models}
            wanted = {key(c.to_dict()): c for of_model in tried.values() for of_value in of_model for c in of_value}
            left = [config for k, config in wanted.items() if k not in scores]
            made |= wanted.keys() & scores.keys()
            if left:
                after = list(plan)[list(plan).index(name) + 1 :]
                return Search(
                    left, len(made), sum(len(plan[n]) - 1 for n in after) * len(models) * len(_seeds(experiment)), found
                )
            means = {
                m: [statistics.mean(scores[key(c.to_dict())] for c in of_value) for of_value in tried[m]]
                for m in models
            }
            best = {m: own[m][means[m].index(max(means[m]))] for m in models}
            if name != "base_lr":
                break
            # A rate at the edge that is as good as the best may have a better one beyond it.
            if flat := [m for m in models if len(own[m]) >= FLAT and len(set(means[m])) == 1]:
                raise InputError(
                    f"{flat[0]}: each of the rates {', '.join(map(_shown, own[flat[0]]))} has the same score, {means[flat[0]][0]:g}: "
                    "trials so short tell nothing of it; give tuning.settings more epochs"
                )
            alike = {m: {v for v, mean in zip(own[m], means[m]) if mean == max(means[m])} for m in models}
            if not each_by_itself:
                alike = dict.fromkeys(models, set().union(*alike.values()))
            beyond = {m: _beyond(own[m], alike[m]) for m in models}
            if not any(beyond.values()):
                break
            own = {m: sorted([*own[m], *beyond[m]]) for m in models}
        for model in models:
            found[model][name] = best[model]
    return Search([], len(made), 0, found)


def of_seeds(experiment: Experiment, model: str, searched: str, values: dict) -> list[Config]:
    """The runs of a model with these values, a seed each, made to find the best of the setting that is searched."""
    whole = searched in experiment.tuning.get("full_length", ())
    own = {} if whole else experiment.tuning.get("settings", {})
    return [experiment.config(model, seed, **own | values) for seed in _seeds(experiment)]


def _seeds(experiment: Experiment) -> list[int]:
    return experiment.tuning.get("seeds", experiment.seeds[:1])


def key(config: dict) -> str:
    """Two trials with one key are the same."""
    return json.dumps(_plain(deciding(config) | {"seed": config["seed"]}), sort_keys=True)


def _plain(value: Any) -> Any:
    """With 4 for 4.0, which are the same setting."""
    if isinstance(value, dict):
        return {name: _plain(of) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(of) for of in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def name_of(experiment: Experiment, config: Config) -> str:
    """ff-base_lr0.008-weight_decay0.05: the model and what is searched; the length, where it is the whole one; a further seed."""
    values = {name: config.to_dict()[name] for name in experiment.tuning if name not in OPTIONS}
    shown = ("-".join(map(_shown, value if isinstance(value, list) else [value])) for value in values.values())
    usual = experiment.tuning.get("settings", {}).get("epochs", config.epochs)
    length = [f"epochs{config.epochs}"] * (config.epochs != usual)
    seed = [f"seed{config.seed}"] * (config.seed != experiment.seeds[0])
    return "-".join([config.name, *map("".join, zip(values, shown)), *length, *seed])


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _beyond(values: list[float], best: set[float]) -> list[float]:
    """The next rate below the lowest and above the highest, where that is some model's best."""
    low, high = min(values), max(values)
    return [*([low / STEP] if low in best else []), *([high * STEP] if high in best else [])]


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit tune", __doc__)
    add_shared(parser)
    options = parser.parse_intermixed_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    experiment, settings = read_shared(options)
    if not experiment.tuning:
        raise InputError(f"{experiment.name} has no [tuning]: look at ffvit tune --help")

    children = Children()
    with children.passing_signals():
        while (now := search(experiment, records.load_trials(experiment.name))).left:
            side_by_side, gpus = slots(options.jobs)
            more = f", then at least {now.later} more" if now.later else ""
            say(f"{len(now.left)} trials to make{more}; {side_by_side} side by side")
            jobs = []
            for config in now.left:
                name = name_of(experiment, config)
                here = replace(config, **settings)
                folder = RUNS / experiment.name / "trials" / name
                jobs.append(Job(name, here, folder, environment(here, side_by_side, gpus), scoring=("--trial",)))
            failed, stopped = run(
                jobs,
                side_by_side,
                deadline,
                children,
                outlook(experiment, jobs, side_by_side, children, now.made, now.later),
            )
            for job in failed:
                print(f"error: {job.error}", file=sys.stderr)
            if stopped:
                say("the search is not complete: the same command goes on")
            if failed or stopped:
                return 2 if failed else STOPPED
    for model, values in now.found.items():
        say(f"{model}: {', '.join(f'{name} = {value}' for name, value in values.items())}")
    return 0
