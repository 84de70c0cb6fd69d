"""Run what `python -m ffvit status` lists as missing, without notebooks and Snakemake: for a machine that has only what
training needs, or that is lent for minutes.

`python -m ffvit missing cifar10 --jobs 4 --minutes 9` trains the runs that have no record, four side by side, and scores
each when it is finished. When the time is up, or on Ctrl-C, SIGTERM or SIGUSR1, the runs write their checkpoints and
stop, and the same command goes on.

Exit codes: 0 all the runs chosen are recorded, 2 a run failed or an argument is wrong, 75 stopped with runs left.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import torch

from ffvit.commands.status import RECORDED, UNSCORED, standing
from ffvit.commands.train import RUNS_PER_GPU
from ffvit.settings.config import MACHINE, Config, merge, parse_setting
from ffvit.settings.experiment import GRID, Experiment, load_experiment
from ffvit.system import lifetime
from ffvit.system.errors import InputError, suggest
from ffvit.system.lifetime import SIGNALS, STOPPED

LOG = "missing.log"  # in the folder of a run: what its processes say
MAY_BE_SET = MACHINE | {"dataset"}  # the machine's, and where the images lie: they decide no result


class Job:
    """Commands of this library that follow one another, for one run. One process at a time."""

    def __init__(self, run_id: str, folder: Path, commands: list[list[str]], environment: dict[str, str]):
        self.run_id = run_id
        self.folder = Path(os.path.relpath(folder))  # no home folder in outputs
        self.commands = deque(commands)
        self.environment = environment
        self.told: list[str] = []  # by the process that ended last

    def start(self) -> None:
        """Start the next command; it ends with this process, however this one ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / LOG, "a") as log:
            self._told_from = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, lifetime.__file__, str(os.getpid()), *self.commands.popleft()],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then asks for checkpoints
            )

    def has_ended(self) -> bool:
        if self.process.poll() is None:
            return False
        with open(self.folder / LOG) as log:
            log.seek(self._told_from)
            self.told = log.read().splitlines()
        return True

    @property
    def was_stopped(self) -> bool:
        """By a signal: with a checkpoint, or before there was anything to keep."""
        return self.process.returncode in (STOPPED, -signal.SIGTERM)

    @property
    def error(self) -> str:
        last = [line for line in self.told if line.startswith("error")] or self.told or ["it said nothing"]
        return f"{self.run_id}: exit code {self.process.returncode}: {last[-1]}; the log is {self.folder / LOG}"


def job(config: Config, state: str, settings: list[str], environment: dict[str, str]) -> Job:
    """What a run still needs: training and scoring, or scoring alone."""
    run = ["--experiment", config.experiment, "--model", config.name, "--seed", str(config.seed), *settings]
    commands = [["ffvit", "train", *run], ["ffvit", "score", os.path.relpath(config.run_dir)]]
    return Job(config.run_id, config.run_dir, commands[1:] if state == UNSCORED else commands, environment)


def environment(config: Config, jobs: int, gpus: int) -> dict[str, str]:
    """What the processes of a run find set, where so many runs share the machine."""
    threads = max(1, (os.cpu_count() or 1) // (jobs * config.num_processes))
    runs_per_gpu = math.ceil(jobs / gpus) if gpus else 1
    return {"OMP_NUM_THREADS": str(threads), **os.environ, RUNS_PER_GPU: str(runs_per_gpu), "PYTHONUNBUFFERED": "1"}


def check_settings(settings: dict[str, object]) -> None:
    for name in sorted(settings.keys() - MAY_BE_SET):
        raise InputError(
            f"'{name}' decides a result: set it in the experiment's file. Here: {', '.join(sorted(MAY_BE_SET))}"
        )


def choose(experiment: Experiment, models: list[str], seeds: list[int], part: str, **settings: object) -> list[Config]:
    """The runs of an experiment that are of these models, seeds and this part; an empty one leaves nothing out.

    Raises InputError for a model that the experiment does not have, and for a setting that decides a result.
    """
    check_settings(settings)
    for name in models:
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
        raise InputError(f"{experiment.name} has no run of these models, seeds and part: see python -m ffvit status")
    return chosen


def run(waiting: deque[Job], side_by_side: int, deadline: float, asked: list[int]) -> tuple[list[Job], int]:
    """Run jobs until all have ended, the deadline (of time.monotonic) has passed, or a signal is in `asked`.

    Returns the jobs that failed, and how many are left to go on with.
    """
    active: list[Job] = []
    failed: list[Job] = []
    left, stopping = 0, False
    while active or (waiting and not stopping):
        if not stopping and (asked or time.monotonic() > deadline):
            stopping = True
            say(f"{'asked to stop' if asked else 'the time is up'}: {len(active)} runs write their checkpoints")
            for job in active:
                job.process.terminate()
        while waiting and len(active) < side_by_side and not stopping:
            active.append(waiting.popleft())
            say(f"{active[-1].run_id}: begins")
            active[-1].start()
        for job in [job for job in active if job.has_ended()]:
            if job.process.returncode == 0 and job.commands and not stopping:
                job.start()
                continue
            active.remove(job)
            if job.process.returncode == 0 and not job.commands:
                say(f"{job.run_id}: {job.told[-1]}")
            elif job.process.returncode == 0 or job.was_stopped:
                left += 1
            else:
                failed.append(job)
                say(f"error: {job.error}")
        time.sleep(0.2)
    return failed, left + len(waiting)


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ffvit missing", description=__doc__.splitlines()[0])
    parser.add_argument("experiment", help="a name in experiments/")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="of the machine, or dataset=<local copy>")
    parser.add_argument("--models", nargs="+", default=[], help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="only these")
    parser.add_argument("--part", default="", help="only this comparison; grid: the grid")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; default: one per GPU, 2 without")
    parser.add_argument("--minutes", type=float, default=math.inf, help="then stop with checkpoints; default: never")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    try:
        if options.experiment.endswith(".toml"):
            raise InputError("give the name of a file in experiments/: of others, nothing is recorded in results/")
        experiment = load_experiment(options.experiment)
        settings = merge(*map(parse_setting, options.settings))
        configs = choose(experiment, options.models, options.seeds, options.part, **settings)
        if options.jobs < 0:
            raise InputError(f"--jobs must not be negative, got {options.jobs}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    gpus = torch.cuda.device_count()
    side_by_side = options.jobs or gpus or 2
    states = [standing(config).state for config in configs]
    waiting = deque(
        job(config, state, options.settings, environment(config, side_by_side, gpus))
        for config, state in zip(configs, states)
        if state != RECORDED
    )
    where = f"on {gpus} GPU" if gpus else "on the CPU"
    say(f"{len(waiting)} of {len(configs)} runs are missing; {side_by_side} side by side {where}")
    asked: list[int] = []
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, lambda number, _: asked.append(number))
    failed, left = run(waiting, side_by_side, deadline, asked)
    for job in failed:
        print(f"error: {job.error}", file=sys.stderr)
    if left:
        say(f"{left} runs are left: the same command goes on")
    return 2 if failed else STOPPED if left else 0


if __name__ == "__main__":
    sys.exit(main())
