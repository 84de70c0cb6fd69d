"""One process of a training, as `ffvit train`, `accelerate launch -m ffvit worker ...` or a cluster starts it, with the
options of `ffvit train`.

Exit codes: 0 finished, 2 an error that is named, 75 stopped by SIGTERM or SIGUSR1 with a checkpoint written.
"""

import argparse
import json
import os
from pathlib import Path

from ffvit.commands.arguments import Parser
from ffvit.settings.config import Config, config_from_dict, merge, parse_setting, with_defaults
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError
from ffvit.system.files import write_atomically


def parse(arguments: list[str], prog: str, about: str) -> tuple[Config, Path, argparse.Namespace]:
    """The run that the command line asks for. Raises InputError."""
    parser = Parser(prog, about)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--experiment", help="a name in experiments/, or the path of a .toml file")
    what.add_argument("--config", type=Path, help="the config.json of a run")
    parser.add_argument("--model", help="a model of the experiment, or any name timm knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="default: runs/<experiment>/<model>-seed<seed>")
    parser.add_argument("--dry-run", action="store_true", help="measure some updates and say what the run will cost")
    parser.add_argument("--estimate", type=Path, metavar="FILE", help="with --dry-run: write it down as JSON, too")
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
        config = config_from_dict(merge(with_defaults(json.loads(options.config.read_text())), settings))
    else:
        config = load_experiment(options.experiment).config(options.model, options.seed, **settings)
    return config, Path(os.path.relpath(options.run_dir or config.run_dir)), options


def main(arguments: list[str]) -> int:
    config, run_dir, options = parse(arguments, "ffvit worker", __doc__)
    from ffvit.training.run import train  # and torch: --help and a wrong argument are answered without

    estimate = train(config, run_dir, options.dry_run)
    if options.estimate and int(os.environ.get("RANK", 0)) == 0:
        write_atomically(options.estimate, json.dumps(estimate))
    return 0
