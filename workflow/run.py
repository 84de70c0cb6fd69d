"""`python workflow/run.py reproduce digits`: start the pipeline, once at a time, on the machine as it is."""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent


def gpu_count() -> int:
    """GPUs that runs may use, without importing torch: this must answer at once when there is nothing to do."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return len([d for d in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if d.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def call(command: list[str], environment: dict[str, str]) -> int:
    """Run it to its end; on Ctrl-C, which it receives too, wait until it has stopped its jobs."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        return 130


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=("reproduce", "figures"))
    parser.add_argument("experiment", help="a name in experiments/, or the path of a .toml file")
    parser.add_argument("--jobs", type=int, default=0, help="runs side by side; default: one per GPU, 2 without")
    parser.add_argument("--dataset", default="", help="a local copy of the experiment's images")
    parser.add_argument("snakemake", nargs="*", help="further arguments for Snakemake, after --")
    options = parser.parse_args()

    file = Path(
        options.experiment if options.experiment.endswith(".toml") else f"experiments/{options.experiment}.toml"
    )
    if not (ROOT / file).is_file():
        known = ", ".join(sorted(p.stem for p in (ROOT / "experiments").glob("*.toml")))
        print(f"error: there is no experiment '{options.experiment}'; known: {known}", file=sys.stderr)
        return 2
    try:
        content = tomllib.loads((ROOT / file).read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        print(f"error: {file}: not valid TOML: {error}", file=sys.stderr)
        return 2
    if missing := {"title", "scope", "about", "seeds", "models", "settings"} - set(content):
        print(f"error: {file}: {', '.join(sorted(missing))} missing", file=sys.stderr)
        return 2
    gpus = gpu_count()
    jobs = options.jobs or gpus or 2
    threads = max(1, (os.cpu_count() or 1) // jobs)
    (ROOT / "runs").mkdir(exist_ok=True)
    settings = {
        "experiment": file,
        "gpus": gpus,
        "threads": threads,
        "train": "yes" if options.task == "reproduce" else "no",
    }
    command = [sys.executable, "-m", "snakemake", "--nolock", "--directory", str(ROOT)]
    command += ["--cores", str(jobs * threads), "--resources", f"gpu={gpus}"]
    command += ["--forceall"] if options.task == "figures" else []
    command += [*options.snakemake, "--config", *(f"{name}={value}" for name, value in settings.items())]
    environment = {
        **os.environ,
        "FFVIT_DATASET": options.dataset,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    # The system frees this lock when the process dies, however it dies; Snakemake's own would outlive a kill.
    lock = FileLock(ROOT / "runs" / ".pipeline.lock", timeout=0)
    try:
        with lock:
            code = call(command, environment)
    except Timeout:
        print("error: the pipeline already runs in this folder; wait for it, or use another clone", file=sys.stderr)
        return 2
    if code == 0:
        print(f"Tables and figures are in figures/{file.stem}/, the records in results/{file.stem}/.")
    return code


if __name__ == "__main__":
    sys.exit(main())
