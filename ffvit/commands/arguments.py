"""Command lines: read as argparse does, with errors that name what is nearest."""

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

from ffvit.settings.config import MACHINE, Config
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.given import config_from_dict, merge, parse_setting, read_settings, with_defaults
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError, suggest
from ffvit.system.machine import TRAINING_MB, require_room

# The machine's, and where the images lie: they decide no result, but for models that read_shared knows.
MAY_BE_SET = MACHINE | {"dataset"}


class Parser(argparse.ArgumentParser):
    """prog: "ffvit train". about: the docstring of a command; its first sentence or paragraph says what it does."""

    def __init__(self, prog: str, about: str):
        super().__init__(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        if unknown := re.search(r"unrecognized arguments: (-\S+)", message):
            wrong = unknown[1].partition("=")[0]
            options = [name for action in self._actions for name in action.option_strings]
            raise InputError(f"{self.prog} has no option '{wrong}'{suggest(wrong, options)}")
        raise InputError(f"{message}; {self.prog} --help says more")


def path(text: str) -> Path:
    """Of an argument; an empty one, as an unset variable of the shell leaves it, would be the current folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError("the path is empty; leave the option out for its default")
    return Path(text)


def read_run(arguments: list[str], prog: str, about: str) -> tuple[Config, Path, argparse.Namespace]:
    """The run that the command line asks for. Raises InputError."""
    parser = Parser(prog, about)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--experiment", help="a name in experiments/, or the path of a .toml file")
    what.add_argument("--config", type=path, help="the config.json of a run")
    parser.add_argument("--model", help="a model of the experiment, or any name timm knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=path, help="default: runs/<experiment>/<model>-seed<seed>")
    parser.add_argument("--dry-run", action="store_true", help="measure some updates and say what the run will cost")
    parser.add_argument("--estimate", type=path, metavar="FILE", help="with --dry-run: write it down as JSON, too")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that win over the experiment's")
    options = parser.parse_intermixed_args(arguments)
    if options.experiment and not options.model:
        parser.error("--experiment needs --model")
    if options.estimate and not options.dry_run:
        parser.error("--estimate needs --dry-run")
    settings = merge(*map(parse_setting, options.settings))
    if fixed := {"experiment", "model", "seed"} & set(settings):
        raise InputError(
            f"give {', '.join('--' + name for name in sorted(fixed))}, not name=value, for the choice of a run"
        )
    if options.config:
        there = read_settings(options.config, "give the config.json or request.json of a run, or --experiment")
        config = config_from_dict(merge(with_defaults(there), settings))
    else:
        experiment = load_experiment(options.experiment)
        if options.model not in experiment.variants:
            from ffvit.evidence.subjects import need_model  # which takes seconds, for timm

            need_model(experiment, options.model)
        config = experiment.config(options.model, options.seed, **settings)
    return config, Path(os.path.relpath(options.run_dir or config.run_dir)), options


def add_shared(parser: Parser) -> None:
    """What ffvit missing and ffvit tune both take."""
    parser.add_argument("experiment", help="a name in experiments/")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the machine, or dataset=<local copy>")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; default: one per GPU, 2 without")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop with checkpoints; default: never")


def read_shared(options: argparse.Namespace) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and settings of the machine. Raises InputError for settings that decide a result, too."""
    if options.experiment.endswith(".toml"):
        raise InputError("give the name of a file in experiments/: of others, nothing is recorded in results/")
    if options.jobs < 0:
        raise InputError(f"--jobs must not be negative, got {options.jobs}")
    require_room("--jobs", options.jobs, 1, TRAINING_MB)
    if not options.minutes >= 0:  # nor nan
        raise InputError(f"--minutes must be a number from 0 on, got {options.minutes}")
    settings = merge(*map(parse_setting, options.settings))
    for name in sorted(settings.keys() - MAY_BE_SET):
        raise InputError(
            f"'{name}' decides a result: set it in the experiment's file. Here: {', '.join(sorted(MAY_BE_SET))}"
        )
    experiment = load_experiment(options.experiment)
    chosen = getattr(options, "models", []) or experiment.variants
    for model in experiment.variants.keys() & chosen:
        if other := differing(experiment.config(model).to_dict(), experiment.config(model, **settings).to_dict()):
            given = ", ".join(f"{name}={value}" for name, value in settings.items() if name != "dataset")
            raise InputError(
                f"{given} would make another run of {model} than {experiment.name} has ({', '.join(other)}): batch norms see a "
                "batch in num_processes x accumulation_steps parts, and the order of a stream is of its readers"
            )
    return experiment, settings
