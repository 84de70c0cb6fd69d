"""Train and score what `ffvit status` lists as missing, without notebooks and Snakemake: on a machine of one's own over
some nights, or on one that has only what training needs, or that is lent for minutes.

`ffvit missing cifar10 --jobs 4 --minutes 9` trains the runs that have no record, four side by side, and scores each when
it is finished. Before it begins it says how long all will take, and then every half minute how far they are. When the
time is up, or on Ctrl-C or a signal, the runs write their checkpoints and stop, and the same command goes on.

Exit codes: 0 all the runs chosen are recorded, 2 a run failed or an argument is wrong, 75 stopped with runs left.
"""

import os
import sys
import time
from pathlib import Path

from ffvit.commands.arguments import Parser, add_shared, read_shared
from ffvit.commands.status import DONE, IMAGES, RECORDED, TRAINED, UNSCORED, standings
from ffvit.launching.children import Children
from ffvit.launching.jobs import Job, environment, outlook, run, say, slots
from ffvit.settings.config import Config
from ffvit.settings.experiment import GRID, Experiment
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import RESULTS, RUNS
from ffvit.system.lifetime import STOPPED


def chosen_runs(
    experiment: Experiment, models: list[str], seeds: list[int], part: str, **settings: object
) -> list[Config]:
    """The runs of an experiment that are of these models, seeds and this part; an empty one leaves nothing out.

    Raises InputError for a model or part that the experiment does not have.
    """
    if part and part not in (known := [name or GRID for name in experiment.parts()]):
        raise InputError(f"{experiment.name} has no part '{part}'{suggest(part, known)}")
    for name in models:
        if "=" in name:
            raise InputError(f"'{name}' stands among the models: give it before --models")
        if name not in experiment.variants:
            raise InputError(f"{experiment.name} has no model '{name}'{suggest(name, experiment.variants)}")
    chosen = [
        experiment.config(config.name, config.seed, **settings)
        for config in experiment.configs()
        if (not models or config.name in models)
        and (not seeds or config.seed in seeds)
        and part in ("", experiment.variants[config.name].comparison or GRID)
    ]
    if not chosen:
        raise InputError(f"{experiment.name} has no run of these models, seeds and part: see ffvit status")
    return chosen


def waves(jobs: list[Job]) -> list[list[Job]]:
    """The jobs in groups, one after the other: a run that starts from another's weights comes after that."""
    found, left = [], jobs
    while left:
        names = {job.name for job in left if not job.is_trained}
        found.append([job for job in left if job.config.first_run not in names])
        left = [job for job in left if job.config.first_run in names]
    return found


def main(arguments: list[str]) -> int:
    parser = Parser("ffvit missing", __doc__)
    add_shared(parser)
    parser.add_argument("--models", nargs="+", default=[], help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="only these")
    parser.add_argument("--part", default="", help="only this comparison; grid: the grid")
    parser.add_argument("--record", action="store_true", help="put the records into results/, to be committed")
    options = parser.parse_intermixed_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    experiment, settings = read_shared(options)
    configs = chosen_runs(experiment, options.models, options.seeds, options.part, **settings)
    enough = (RECORDED,) if options.record else DONE
    folders = (Path(os.path.relpath(folder)) for folder in (RESULTS, RUNS))  # no home folder in outputs
    stands = {s.config.run_id: s for s in standings(experiment, *folders)}
    for c in configs:
        if stands[c.run_id].state == IMAGES:  # it would be found trained, and be in no table
            raise InputError("; ".join(stands[c.run_id].problems))
    left = [(c, state) for c in configs if (state := stands[c.run_id].state) not in enough]
    done = len(configs) - len(left)
    if not left:
        say(f"0 of {len(configs)} runs are missing")
        return 0

    children = Children()
    with children.passing_signals():
        side_by_side, gpus = slots(options.jobs)
        where = f"on {gpus} GPU" if gpus else "on the CPU"
        say(f"{len(left)} of {len(configs)} runs are missing; {side_by_side} side by side {where}")
        jobs = [
            Job(
                c.run_id,
                c,
                c.run_dir,
                environment(c, side_by_side, gpus),
                scoring=("--record",) if options.record else (),
                is_trained=state in (UNSCORED, TRAINED),
            )
            for c, state in left
        ]
        failed: list[Job] = []
        stopped, later = 0, len(jobs)
        for wave in waves(jobs):
            later -= len(wave)
            looked = outlook(experiment, wave, side_by_side, children, done, later)
            failed_here, stopped = run(wave, side_by_side, deadline, children, looked)
            failed, done = failed + failed_here, done + len(wave)
            if stopped:
                stopped += later
                break
    for job in failed:
        print(f"error: {job.error}", file=sys.stderr)
    if stopped:
        say(f"{stopped} runs are left: the same command goes on")
    return 2 if failed else STOPPED if stopped else 0
