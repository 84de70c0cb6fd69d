"""Find the settings of each model by equal effort: `python -m ffvit tune cifar10-small`.

An experiment's [tuning] says what is searched, in its order, on validation images and never on test images:

    [tuning]
    settings = { epochs = 8 }      # of every trial, beside the experiment's own
    base_lr = [4e-3, 8e-3]         # and on by factors of 2, until no model is best at an edge
    weight_decay = [0.05, 0.2]     # then these, each model at its best rate

Every model of the grid gets the same trials: where one of them needs a further rate, all try it. Trials are kept in
results/<experiment>/trials, in which the search finds its place again after an interruption. What was found is then
written into the experiment's file by a person; a test holds the two together.

Exit codes: 0 the search is complete, 2 a trial failed or an argument is wrong, 75 stopped with trials left.
"""

import argparse
import math
import signal
import sys
import time
from collections import deque

import torch

from ffvit.commands.missing import Job, check_settings, environment, run, say
from ffvit.evidence import records
from ffvit.settings.config import Config, merge, parse_setting
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.same_run import deciding
from ffvit.system.errors import InputError
from ffvit.system.files import RUNS
from ffvit.system.lifetime import SIGNALS, STOPPED

STEP = 2  # between two rates


def search(experiment: Experiment, trials: list[dict]) -> tuple[list[Config], dict[str, dict]]:
    """What is still to be tried, and the best settings of each model by the trials there are.

    trials: as record.load_trials gives them. Nothing to try means that the search is complete.
    """
    plan = {name: values for name, values in experiment.tuning.items() if name != "settings"}
    models = [variant.name for variant in experiment.of(experiment.main)]
    scores = {key(t["config"]): t["history"][-1]["validation_top1_percent"] for t in trials}
    # What is searched later stands at its first value until then.
    found = {model: {name: values[0] for name, values in plan.items()} for model in models}
    for name, values in plan.items():
        values = list(values)
        while True:
            tried = {m: {str(v): trial(experiment, m, **found[m] | {name: v}) for v in values} for m in models}
            left = [c for of_model in tried.values() for c in of_model.values() if key(c.to_dict()) not in scores]
            if left:
                return left, found
            scored = {m: {key(c.to_dict()): v for v, c in zip(values, tried[m].values())} for m in models}
            best = {m: scored[m][max(scored[m], key=scores.__getitem__)] for m in models}
            beyond = _beyond(values, set(best.values())) if name == "base_lr" else []
            if not beyond:
                break
            values = sorted([*values, *beyond])
        for model in models:
            found[model][name] = best[model]
    return [], found


def trial(experiment: Experiment, model: str, **values: object) -> Config:
    return experiment.config(model, experiment.seeds[0], **experiment.tuning.get("settings", {}) | values)


def key(config: dict) -> str:
    """Two trials with one key are the same."""
    return f"{config['name']} {sorted(deciding(config).items())}"


def name_of(experiment: Experiment, config: Config) -> str:
    """ff-base_lr0.008-weight_decay0.05: the model and what is searched."""
    values = {name: config.to_dict()[name] for name in experiment.tuning if name != "settings"}
    shown = ("-".join(f"{v:g}" for v in (value if isinstance(value, list) else [value])) for value in values.values())
    return "-".join([config.name, *map("".join, zip(values, shown))])


def _beyond(values: list[float], best: set[float]) -> list[float]:
    """The next rate below the lowest and above the highest, where that is some model's best."""
    low, high = min(values), max(values)
    return [*([low / STEP] if low in best else []), *([high * STEP] if high in best else [])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ffvit tune", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", help="a name in experiments/")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the machine, or dataset=<local copy>")
    parser.add_argument("--jobs", type=int, default=2, help="trials side by side")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop with checkpoints; default: never")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    asked: list[int] = []
    try:
        experiment = load_experiment(options.experiment)
        if not experiment.tuning:
            raise InputError(f"{experiment.name} has no [tuning]: look at python -m ffvit tune --help")
        check_settings(merge(*map(parse_setting, options.settings)))
        for number in (signal.SIGINT, *SIGNALS):
            signal.signal(number, lambda number, _: asked.append(number))
        while True:
            left, found = search(experiment, records.load_trials(experiment.name))
            if not left:
                break
            say(f"{len(left)} trials to make, {options.jobs} side by side")
            waiting = deque(_job(experiment, config, options) for config in left)
            failed, stopped = run(waiting, options.jobs, deadline, asked)
            if failed:
                return 2
            if stopped:
                say("the search is not complete: the same command goes on")
                return STOPPED
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for model, values in found.items():
        say(f"{model}: {', '.join(f'{name} = {value}' for name, value in values.items())}")
    return 0


def _job(experiment: Experiment, config: Config, options: argparse.Namespace) -> Job:
    name = name_of(experiment, config)
    folder = RUNS / experiment.name / "trials" / name
    tried = {
        k: v for k, v in config.to_dict().items() if k in {*experiment.tuning, *experiment.tuning.get("settings", {})}
    }
    given = [f"{k}={v!r}" if not isinstance(v, str) else f'{k}="{v}"' for k, v in tried.items()]
    chosen = ["--experiment", experiment.name, "--model", config.name, "--seed", str(config.seed)]
    commands = [
        ["ffvit", "train", *chosen, "--run-dir", str(folder), *given, *options.settings],
        ["ffvit", "score", "--trial", str(folder)],
    ]
    return Job(name, folder, commands, environment(config, options.jobs, torch.cuda.device_count()))


if __name__ == "__main__":
    sys.exit(main())
