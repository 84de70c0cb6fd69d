"""Start training as a process of its own, the same way from a notebook, the pipeline and a test.

A subprocess of `accelerate launch` and not accelerate's notebook_launcher: that one forks, ignores the precision
asked for and runs two processes on a CPU as two unrelated copies.
"""

import contextlib
import getpass
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ffvit.checkpoint import write_atomically
from ffvit.config import Config
from ffvit.train import TrainingError


def launch(config: Config, run_dir: Path | None = None, on_line: Callable[[str], None] = print) -> None:
    """Train a run in `accelerate launch`; every line it prints goes to on_line and to log.txt in its folder.

    Raises TrainingError with the last lines of the log, and the command that goes on with the run.
    """
    run_dir = Path(os.path.relpath(run_dir or config.run_dir))  # no home folder in outputs
    request = run_dir / "request.json"  # not config.json: that one belongs to the run that is there already, if any
    write_atomically(request, json.dumps(config.to_dict(), indent=1))
    train = ["-m", "ffvit.train", "--config", str(request), "--run-dir", str(run_dir)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *_flags(config), *train]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if config.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    last_lines: deque[str] = deque(maxlen=20)
    with _own_gpus(config, environment), open(run_dir / "log.txt", "a") as log:
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            for line in process.stdout:
                log.write(line)
                log.flush()
                last_lines.append(line)
                on_line(line.rstrip("\n"))
            process.wait()
        except BaseException:
            # An interrupted cell must not leave training behind; the launcher passes no signal on, its group gets it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
    if process.returncode:
        again = " ".join([os.path.relpath(sys.executable), *command[1:]])
        if "ACCELERATE_USE_CPU" in environment:
            again = f"ACCELERATE_USE_CPU=true {again}"
        raise TrainingError(
            f"training ended with exit code {process.returncode}; its last lines:\n{''.join(last_lines)}"
            f"The log is {run_dir / 'log.txt'}. To go on after the last whole epoch:\n{again}"
        )


def _flags(config: Config) -> list[str]:
    """Every choice explicit: accelerate must not ask the machine's own configuration."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // config.num_processes))
    flags = (
        f"--num_machines=1 --num_processes={config.num_processes} --num_cpu_threads_per_process={threads} "
        f"--mixed_precision={config.mixed_precision} --dynamo_backend=no"
    ).split()
    if config.num_processes > 1:
        # Also on CPUs: with --cpu, accelerate starts a single process whatever number is asked for. Port 0: a free one.
        return [*flags, "--multi_gpu", "--main_process_port=0"]
    return [*flags, "--cpu"] if config.device == "cpu" else flags


@contextlib.contextmanager
def _own_gpus(config: Config, environment: dict[str, str]) -> Iterator[None]:
    """Give the run GPUs that no other run started here has, while there are any.

    Snakemake counts GPUs but assigns none, so runs started side by side would all take the first.
    """
    with contextlib.ExitStack() as held:
        visible = environment.get("CUDA_VISIBLE_DEVICES")  # a scheduler's choice
        known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
        free: list[str] = []
        for name in known if config.device != "cpu" else []:
            file = f"ffvit-{getpass.getuser()}-gpu-{name.replace('/', '-')}.lock"
            with contextlib.suppress(Timeout):
                if len(free) < config.num_processes:
                    held.enter_context(FileLock(Path(tempfile.gettempdir()) / file, timeout=0))
                    free.append(name)
        if len(free) == config.num_processes:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(free)
        yield
