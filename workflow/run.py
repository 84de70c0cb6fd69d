"""`python workflow/run.py reproduce digits`: start the pipeline, once at a time, on the machine as it is or a cluster."""

import argparse
import contextlib
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

gc.set_threshold(100_000)  # nearly all that is made here stays: to look for garbage every 700 objects slows the start

from filelock import FileLock, Timeout  # noqa: E402
from snakemake import cli  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the library beside this file, also in a copy of the project that nobody installed

from ffvit.launching.forecast import forecast  # noqa: E402
from ffvit.settings.experiment import load_experiment  # noqa: E402
from ffvit.system import provenance  # noqa: E402
from ffvit.system.errors import InputError, in_words  # noqa: E402
from ffvit.system.machine import TRAINING_MB, require_room, threads_each  # noqa: E402


def snakemake(arguments: list[str]) -> int:
    """Snakemake's exit code. It runs in this very process: who kills it kills the pipeline."""
    try:
        cli.main(arguments)
    except SystemExit as end:  # the only way out of it
        return end.code


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Leave no job behind: a SIGKILL of this process alone would let its notebooks train on unseen."""
    name = str(os.getpid())
    command = [sys.executable, str(ROOT / "workflow/guard.py"), name]
    # Ctrl-C is not for the guard.
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):  # noqa: S603  # a file beside this one
        os.environ["FFVIT_PIPELINE"] = name
        yield


def on_this_machine(jobs: int, runs_per_gpu: int, settings: dict[str, str]) -> list[str]:
    """Snakemake's arguments for jobs side by side here; adds to the settings what they may take."""
    gpus = len(provenance.gpus())
    places = gpus * runs_per_gpu
    jobs = jobs or places or (os.cpu_count() or 1) + 1  # while a kernel starts, it waits
    threads = threads_each(jobs)
    settings |= {"gpus": str(gpus), "runs_per_gpu": str(runs_per_gpu), "threads": str(threads)}
    os.environ["FFVIT_RUNS_PER_GPU"] = str(runs_per_gpu)  # for ffvit train, which chooses the GPU
    return ["--cores", str(jobs * threads), "--resources", f"gpu={places}"]


def make_site() -> None:
    """The website, where it does not show what is here now: a minute the first time, then seconds."""
    from website import current

    if not current.is_current():
        if not current.SITE.exists():
            print("The website; the first time it takes a minute", flush=True)
        # What it cannot show it says; tables and figures are there all the same.
        subprocess.run([sys.executable, "-m", "website.build"], cwd=ROOT)  # noqa: S603  # a file of this project


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("reproduce", "figures"))
    parser.add_argument("experiment", help="a name in experiments/, or the path of a .toml file")
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="runs side by side; default: all that GPUs take, one more than cores without",
    )
    parser.add_argument("--runs-per-gpu", type=int, default=1, help="small runs that share a GPU of this machine")
    parser.add_argument("--dataset", default="", help="a local copy of the experiment's images")
    parser.add_argument("--profile", default="", help="slurm, or a profile folder of your own; default: this machine")
    parser.add_argument("snakemake", nargs="*", help="further arguments for Snakemake, after --")
    options = parser.parse_intermixed_args()

    os.chdir(ROOT)
    for output in (sys.stdout, sys.stderr):
        output.reconfigure(errors="backslashreplace")  # where a locale has no letter for what a name has
    try:
        experiment = load_experiment(options.experiment)
        if options.jobs < 0:
            raise InputError(f"--jobs must not be negative, got {options.jobs}")
        if not options.profile:  # a cluster has what a job asks for
            require_room("--jobs", options.jobs, 1, TRAINING_MB)
            require_room("--runs-per-gpu", options.runs_per_gpu, 1, TRAINING_MB)
        for folder in ("runs", "figures"):
            Path(folder, experiment.name).mkdir(parents=True, exist_ok=True)
    except (InputError, OSError) as error:
        print(f"error: {in_words(error) if isinstance(error, OSError) else error}", file=sys.stderr)
        return 2
    profiles = ROOT / "workflow/profiles"
    profile = next(
        (p for p in (profiles / options.profile, ROOT / options.profile) if (p / "config.yaml").exists()), ""
    )
    if options.profile and not profile:
        known = ", ".join(sorted(p.name for p in profiles.iterdir() if p.name != "default"))
        print(f"error: no profile '{options.profile}'; known: {known}, or a folder with config.yaml", file=sys.stderr)
        return 2
    if options.runs_per_gpu < 1 or (profile and options.runs_per_gpu > 1):
        why = "a cluster gives every job GPUs of its own" if profile else "give a whole number from 1 on"
        print(f"error: --runs-per-gpu {options.runs_per_gpu}: {why}", file=sys.stderr)
        return 2

    os.environ["FFVIT_DATASET"] = options.dataset
    os.environ["PYTHONUTF8"] = "1"  # of notebooks, whatever the locale
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # As a list: Snakemake would take a bare name for a number or YAML.
    settings = {"experiment": json.dumps([options.experiment]), "train": "yes" if options.task == "reproduce" else "no"}
    arguments = ["--nolock", "--directory", str(ROOT)]
    if profile:
        # A scheduler gives a job what it asks for, and keeps it when this process is gone.
        arguments += ["--profile", str(profile), *(["--jobs", str(options.jobs)] if options.jobs else [])]
    else:
        arguments += on_this_machine(options.jobs, options.runs_per_gpu, settings)
    arguments += ["--forceall"] if options.task == "figures" else []
    arguments += [*options.snakemake, "--config", *(f"{name}={value}" for name, value in settings.items())]
    if options.task == "reproduce" and not profile:
        at_once = options.jobs or len(provenance.gpus()) * options.runs_per_gpu or os.cpu_count() or 1
        if told := forecast(experiment, at_once):
            print(f"{told}; Ctrl-C at any moment: the same command goes on")
    # The system frees this lock when the process dies, however it dies; Snakemake's own would outlive a kill.
    try:
        with FileLock("runs/.pipeline.lock", timeout=0), contextlib.nullcontext() if profile else guarded():
            code = snakemake(arguments)
    except Timeout:
        print("error: the pipeline already runs in this folder; wait for it, or use another clone", file=sys.stderr)
        return 2
    if code == 0:
        print(
            f"Tables and figures are in figures/{experiment.name}/, the runs of this machine in runs/{experiment.name}/."
        )
        compared = ROOT / "figures" / experiment.name / "reproduction.md"
        if options.task == "reproduce" and compared.exists():
            print(compared.read_text(encoding="utf-8").splitlines()[0].strip("*"))
        if options.task == "reproduce" and not options.snakemake:
            sys.stdout.flush()
            make_site()
    return code


if __name__ == "__main__":
    sys.exit(main())
