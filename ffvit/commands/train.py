"""Start training in processes of its own, the same way from a notebook, the pipeline and the shell:
`python -m ffvit train --experiment imagenet --model ff_base num_processes=8`, with the options of ffvit worker.

Not by accelerate's notebook_launcher: that one forks, ignores the precision asked for and runs two processes on a CPU
as two unrelated copies. Exit codes are those of ffvit worker, whatever number of processes.
"""

import contextlib
import getpass
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from ffvit.commands.worker import parse
from ffvit.settings.config import Config
from ffvit.system import lifetime
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.files import write_atomically
from ffvit.system.lifetime import SIGNALS, STOPPED
from ffvit.training.run import STOPPED_BY

RUNS_PER_GPU = "FFVIT_RUNS_PER_GPU"  # how many runs share a GPU; a variable of the environment, so that kernels have it
# On CPUs, glibc gives the memory of every update back to the system and takes it again, page by page.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}


def launch(
    config: Config,
    run_dir: Path | None = None,
    on_line: Callable[[str], None] = print,
    dry_run: bool = False,
    pass_signals: bool = False,
) -> None:
    """Train a run in processes of its own; every line they print goes to on_line and to log.txt in its folder.

    pass_signals: let SIGTERM and SIGUSR1 end the run in order instead of this process; a notebook's kernel answers
    them itself.
    Raises Stopped where a signal ended the run in order, TrainingError where anything else did, with the last lines of
    the log and the command that goes on.
    """
    run_dir = Path(os.path.relpath(run_dir or config.run_dir))  # no home folder in outputs
    if dry_run:
        with tempfile.TemporaryDirectory() as folder:
            return _launch(config, Path(folder), on_line, pass_signals, "--dry-run")
    _launch(config, run_dir, on_line, pass_signals)


def _launch(config: Config, run_dir: Path, on_line: Callable[[str], None], pass_signals: bool, *options: str) -> None:
    request = run_dir / "request.json"  # not config.json: that one belongs to the run that is there already, if any
    write_atomically(request, json.dumps(config.to_dict(), indent=1))
    run = ["--config", str(request), "--run-dir", str(run_dir)]
    again = shlex.join([os.path.relpath(sys.executable), "-m", "ffvit", "train", *run])
    environment = {**_environment(config), **os.environ, "PYTHONUNBUFFERED": "1"}
    last_lines: deque[str] = deque(maxlen=20)
    told: list[str] = []  # by the run itself, of its end; its launcher buries that under its own traceback
    asked: list[int] = []  # signals that were passed on
    with _own_gpus(config, environment), open(run_dir / "log.txt", "a") as log:
        log.write(f"to go on with this run after an interruption: {again}\n")
        process = subprocess.Popen(
            [sys.executable, *_launcher(config), "ffvit", "worker", *run, *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            with _passing_signals_on(process.pid, asked) if pass_signals else contextlib.nullcontext():
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    last_lines.append(line)
                    if line.startswith((STOPPED_BY, "error")):
                        told.append(line)
                    on_line(line.rstrip("\n"))
                process.wait()
        except BaseException:
            # An interrupted cell must not leave training behind; the launcher passes no signal on, its group gets it.
            _signal_group(process.pid, signal.SIGTERM)
            process.wait()
            raise
        finally:
            _signal_group(process.pid, signal.SIGKILL)  # whoever is left when the launcher is gone
    text = "".join(told or last_lines)
    before_it_listened = asked and process.returncode and not told
    if before_it_listened or any(line.startswith(STOPPED_BY) for line in told):
        raise Stopped(f"{text}To go on:\n{again}")
    if process.returncode:
        raise TrainingError(
            f"training ended with exit code {process.returncode}:\n{text}"
            f"The log is {run_dir / 'log.txt'}. To go on from the last whole checkpoint:\n{again}"
        )


def _launcher(config: Config) -> list[str]:
    """How Python starts the run, so that each of its processes ends with this one.

    Every choice is explicit: accelerate must not ask the machine's own configuration.
    """
    watched = [lifetime.__file__, str(os.getpid())]
    if config.num_processes == 1:
        return watched  # accelerate's launcher would only start this one process, after a second or two
    return [
        *watched,
        "accelerate.commands.launch",
        "--multi_gpu",  # on CPUs too: with --cpu, accelerate starts a single process whatever number is asked for
        "--num_machines=1",
        f"--num_processes={config.num_processes}",
        f"--mixed_precision={config.mixed_precision}",
        "--dynamo_backend=no",
        "--main_process_port=0",  # a free one
        *watched,
    ]


def _environment(config: Config) -> dict[str, str]:
    """What the processes of a run find set, if nobody set it before."""
    threads = str(max(1, (os.cpu_count() or 1) // config.num_processes))
    on_cpu = config.device == "cpu" or config.device == "auto" and not torch.accelerator.is_available()
    processor = {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
    return {"OMP_NUM_THREADS": threads, **processor, **KEEP_MEMORY}


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


@contextlib.contextmanager
def _passing_signals_on(leader: int, asked: list[int]) -> Iterator[None]:
    """What asks this process to stop asks the run, and is noted in `asked`."""

    def pass_on(number: int, _frame) -> None:
        asked.append(number)
        _signal_group(leader, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_gpus(config: Config, environment: dict[str, str]) -> Iterator[None]:
    """Give the run GPUs, or a place on one, that no other run started here has, while there are any.

    Snakemake counts GPUs but assigns none, so runs started side by side would all take the first. A run of one process
    takes one of the places of a GPU, and of every GPU the first one before a second; a run of several takes GPUs whole.
    Raises InputError for more processes than there are GPUs.
    """
    places = range(_runs_per_gpu(environment))
    visible = environment.get("CUDA_VISIBLE_DEVICES")  # a scheduler's choice
    known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    on_gpus = config.device != "cpu" and torch.cuda.is_available()
    if on_gpus and len(known) < config.num_processes:
        raise InputError(
            f"num_processes={config.num_processes} needs as many GPUs, found {len(known)}: set num_processes={len(known)}; "
            f"accumulation_steps={math.ceil(config.num_processes / len(known))} then leaves about as many images at a time"
        )
    choices = [(gpu, [place]) for place in places for gpu in known]
    if config.num_processes > 1:
        choices = [(gpu, places) for gpu in known]
    own: list[str] = []
    with contextlib.ExitStack() as held:
        for gpu, wanted in choices if config.device != "cpu" else []:
            if len(own) < config.num_processes:
                with contextlib.suppress(Timeout), contextlib.ExitStack() as all_or_none:
                    for place in wanted:
                        name = f"ffvit-{getpass.getuser()}-gpu-{gpu.replace('/', '-')}-place-{place}.lock"
                        all_or_none.enter_context(FileLock(Path(tempfile.gettempdir()) / name, timeout=0))
                    held.enter_context(all_or_none.pop_all())
                    own.append(gpu)
        if len(own) == config.num_processes:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        yield


def _runs_per_gpu(environment: dict[str, str]) -> int:
    given = environment.get(RUNS_PER_GPU, "1")
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"the environment's {RUNS_PER_GPU} must be a whole number from 1 on, got '{given}'")
    return int(given)


def main(arguments: list[str] | None = None) -> int:
    try:
        config, run_dir, options = parse(arguments, "ffvit train")
        launch(config, run_dir, dry_run=options.dry_run, pass_signals=True)
    except Stopped:
        return STOPPED
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:  # what happened is on the screen already
        print("\n".join(str(error).splitlines()[-2:]), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
