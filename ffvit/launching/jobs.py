"""Runs side by side: trained, scored, told of in one line for the whole, and stopped in order."""

import contextlib
import json
import math
import os
import shutil
import statistics
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from ffvit.launching.children import Children, watched
from ffvit.launching.forecast import (
    BESIDES_S,
    Pace,
    clock,
    count_macs,
    epoch_s,
    pace_of,
    paces_here,
    side_by_side_s,
    spoken,
)
from ffvit.launching.launch import RUNS_PER_GPU, estimate, train_run
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.machine import threads_each

LINE_EVERY_S = 30
REWRITTEN_EVERY_S = 5  # in a terminal
CLEAR = "\r\x1b[K"  # a terminal's line


@dataclass
class Job:
    """One run: to be trained, if it is not, and scored."""

    name: str
    config: Config
    folder: Path
    environment: dict[str, str]
    scoring: tuple[str, ...] = ()  # options of ffvit score
    is_trained: bool = False
    began: float = math.nan  # time.monotonic(), as `ended`: the clock may be set meanwhile
    ended: float = math.nan
    epochs_before: int = 0  # made by an earlier call
    expected_s: float = math.nan  # an epoch, by what was known before it began
    error: str = ""

    def __post_init__(self):
        self.folder = Path(os.path.relpath(self.folder))  # no home folder in outputs

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def is_under_way(self) -> bool:
        return not math.isnan(self.began) and math.isnan(self.ended)

    @property
    def epochs(self) -> list[float]:
        """Seconds of each epoch that is made."""
        try:
            return [float(epoch["seconds"]) for epoch in json.loads((self.folder / "history.json").read_bytes())]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return []

    @property
    def epochs_here(self) -> list[float]:
        """The same, of those made since it began."""
        return [] if math.isnan(self.began) else self.epochs[self.epochs_before :]

    @property
    def idle_s(self) -> float:
        """Seconds since its last epoch, or since it began."""
        since = time.monotonic() - self.began
        with contextlib.suppress(OSError):
            since = min(since, max(0.0, time.time() - (self.folder / "history.json").stat().st_mtime))
        return since

    @property
    def where(self) -> str:
        """How far it is: "ff-seed0 epoch 3/30"."""
        made, all_of_them = len(self.epochs), self.config.total_epochs
        return f"{self.name} " + (f"epoch {made + 1}/{all_of_them}" if made < all_of_them else "is scored")


def environment(config: Config, jobs: int, gpus: int) -> dict[str, str]:
    """What the processes of a run find set, where so many runs share the machine."""
    threads = threads_each(jobs * config.num_processes)
    runs_per_gpu = math.ceil(jobs / gpus) if gpus else 1
    return {"OMP_NUM_THREADS": str(threads), **os.environ, RUNS_PER_GPU: str(runs_per_gpu)}


def carry_out(job: Job, children: Children) -> str:
    """Train and score. Returns what scoring told. Raises Stopped, and TrainingError or InputError for what failed."""
    if not job.is_trained:
        train_run(children, job.config, job.folder, job.environment, lambda line: None)
    command = [*watched(), "ffvit", "score", *job.scoring, str(job.folder)]
    ended = children.run(command, job.environment, job.log)
    if ended.stopped:
        raise Stopped(ended.why)
    if ended.code:
        raise TrainingError(f"scoring ended with exit code {ended.code}:\n{ended.why}")
    return ended.lines[-1]


class Outlook:
    """How far jobs are and how long they will still take, by what was known before and by what they took so far.

    done: how many of the whole were made before. later: how many more will follow, at least.
    """

    def __init__(self, jobs: list[Job], side_by_side: int, known: list[Pace], done: int = 0, later: int = 0):
        self.jobs, self.side_by_side, self.done, self.later = jobs, side_by_side, done, later
        self.scaled = []  # models that nothing was measured of
        for job in jobs:
            seconds = epoch_s(job.config, known)
            if seconds is None and known:
                self.scaled.append(job.config.name)
                with contextlib.suppress(Exception):  # a model that cannot be made: its run will say so
                    seconds = epoch_s(job.config, known, count_macs(job.config, known[0].classes))
            job.expected_s = seconds or math.nan

    def __str__(self) -> str:
        """The whole in one line."""
        recorded = self.done + sum(not math.isnan(job.ended) and not job.error for job in self.jobs)
        under_way = [job.where for job in self.jobs if job.is_under_way]
        return f"{recorded} of {self.done + len(self.jobs) + self.later} recorded; {', '.join(under_way)}; left: {self.left()}"

    def left(self) -> str:
        """ "3 h 20 min, until 02:10" """
        seconds = self.left_s()
        if math.isnan(seconds):
            return "not known yet"
        return f"{'at least ' if self.later else ''}{spoken(seconds)}, until {clock(seconds)}"

    def left_s(self) -> float:
        """Seconds until all is done; nan while that cannot be known."""
        ended = [job for job in self.jobs if not math.isnan(job.ended) and not job.error]
        besides_s = statistics.mean([job.ended - job.began - sum(job.epochs_here) for job in ended] or [BESIDES_S])

        def left_of(job: Job) -> float:
            seconds = besides_s
            if not job.is_trained:
                seconds += (job.config.total_epochs - len(job.epochs)) * job.expected_s * self._pace(job)
            return max(0.0, seconds - job.idle_s) if job.is_under_way else seconds

        waiting = [left_of(job) for job in self.jobs if math.isnan(job.began)]
        usual = statistics.mean(job.config.total_epochs * job.expected_s * self._pace(job) for job in self.jobs)
        later = [usual + besides_s] * self.later
        under_way = [left_of(job) for job in self.jobs if job.is_under_way]
        return side_by_side_s([*waiting, *later], self.side_by_side, under_way)

    def _pace(self, job: Job) -> float:
        """How much longer epochs take than was expected: those of this model, else of any."""
        known = [other for other in self.jobs if not math.isnan(other.expected_s)]
        for others in ([other for other in known if other.config.name == job.config.name], known):
            if expected := sum(len(other.epochs_here) * other.expected_s for other in others):
                return sum(sum(other.epochs_here) for other in others) / expected
        return 1.0


def measure(jobs: list[Job], side_by_side: int, children: Children) -> list[Pace]:
    """Try some updates of the first models, as many side by side as runs will be. Those that fail are left out."""
    firsts: dict[str, Job] = {}
    for job in sorted(jobs, key=lambda job: job.config.max_train_images > 0):  # of all images, others are scaled
        if not job.is_trained:
            firsts.setdefault(job.config.name, job)

    def try_out(job: Job) -> list[Pace]:
        try:
            return [pace_of(estimate(children, job.config, job.environment, lambda line: None))]
        except Stopped:
            raise
        except (InputError, TrainingError):  # its run will say so
            return []

    tried = list(firsts.values())[:side_by_side]
    if not tried:
        return []
    say(f"how long will it take? Some updates of {' and '.join(job.name for job in tried)} will tell")
    with ThreadPoolExecutor(len(tried)) as pool:
        return [found for founds in pool.map(try_out, tried) for found in founds]


def run(
    jobs: list[Job], side_by_side: int, deadline: float, children: Children, outlook: Outlook
) -> tuple[list[Job], int]:
    """Run jobs until all have ended, the deadline (of time.monotonic) has passed, or the children are asked to stop.

    Returns the jobs that failed, and how many are left to go on with.
    """
    failed, left = [], 0
    shown_at, stopping = time.monotonic(), False
    with ThreadPoolExecutor(side_by_side) as pool:
        waiting = {pool.submit(_start, job, children): job for job in jobs}
        try:
            while waiting:
                ended = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done
                time_is_up = time.monotonic() > deadline
                if not stopping and (children.asked or time_is_up):
                    stopping = True
                    why = "asked to stop" if children.asked else "the time is up"
                    say(f"{why}: the runs write their checkpoints; Ctrl-C{' again' * children.asked} ends them at once")
                    children.stop()
                for future in ended:
                    job = waiting.pop(future)
                    try:
                        say(f"{job.name}: {future.result()}")
                    except Stopped:
                        left += 1
                    except Exception as error:
                        job.error = f"{job.name}: {_in_one_line(error, job.log)}"
                        failed.append(job)
                        say(f"error: {job.error}")
                if (
                    waiting
                    and not stopping
                    and time.monotonic() - shown_at > (REWRITTEN_EVERY_S if _rewrites() else LINE_EVERY_S)
                ):
                    shown_at = time.monotonic()
                    say(str(outlook), to_be_rewritten=True)
        except BaseException:
            children.stop()
            raise
    return failed, left


def _start(job: Job, children: Children) -> str:
    if children.asked:
        raise Stopped("before it began")
    job.epochs_before, job.began = len(job.epochs), time.monotonic()
    say(f"{job.name}: begins")
    try:
        return carry_out(job, children)
    finally:
        job.ended = time.monotonic()


def _in_one_line(error: Exception, log: Path) -> str:
    """The error that a process told, or the whole message; and where to read more."""
    lines = str(error).splitlines()
    told = [line for line in lines if line.startswith("error")]
    return f"{told[-1] if told else ' '.join(lines)}; the log is {log}"


def say(line: str, to_be_rewritten: bool = False) -> None:
    """Print a line with the time; where it is to be rewritten and a terminal can, the next one takes its place."""
    line = f"{time.strftime('%H:%M:%S')}  {line}"
    if not _rewrites():
        line = f"{line}\n"
    elif to_be_rewritten:
        line = f"{CLEAR}{line[: shutil.get_terminal_size().columns - 1]}"
    else:
        line = f"{CLEAR}{line}\n"
    print(line, end="", flush=True)  # in one piece: threads say something, too


def _rewrites() -> bool:
    return sys.stdout.isatty()


def slots(jobs: int) -> tuple[int, int]:
    """How many runs go side by side, where --jobs asks for so many, and how many GPUs there are."""
    import torch

    gpus = torch.cuda.device_count()
    return jobs or gpus or 2, gpus


def outlook(
    experiment: Experiment, jobs: list[Job], side_by_side: int, children: Children, done: int = 0, later: int = 0
) -> Outlook:
    """Say how long jobs will take, measured first where nothing is known of this machine. Raises Stopped."""
    known = paces_here(experiment) or measure(jobs, side_by_side, children)
    looked = Outlook(jobs, side_by_side, known, done, later)
    scaled = ", ".join(dict.fromkeys(looked.scaled))
    how = f", as epochs took here{f'; {scaled} by multiply-adds' if scaled else ''}" if known else ""
    say(f"time for all of them: {looked.left()}{how}")
    return looked
