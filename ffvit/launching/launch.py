"""Train a run in processes of its own, the same way from a notebook, the pipeline and the shell.

Not by accelerate's notebook_launcher: that one forks, ignores the precision asked for and runs two processes on a CPU
as two unrelated copies.
"""

import contextlib
import json
import math
import os
import shlex
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ffvit.launching.children import Children, watched
from ffvit.settings import run_folder
from ffvit.settings.config import Config
from ffvit.system.errors import InputError, Stopped, TrainingError, in_words
from ffvit.system.files import read_object, write_atomically
from ffvit.system.machine import LOADING_MB, TRAINING_MB, multiplies_bf16, require_room, threads_each

FASTER = 0.95  # of the time, or less: steps differ by some 5 % from one run to the next
RUNS_PER_GPU = "FFVIT_RUNS_PER_GPU"  # how many runs share a GPU; a variable of the environment, so that kernels have it


def launch(
    config: Config,
    run_dir: Path | None = None,
    on_line: Callable[[str], None] = print,
    dry_run: bool = False,
    pass_signals: bool = False,
) -> dict | None:
    """Train a run in processes of its own; every line they print goes to on_line and to log.txt in its folder.

    dry_run: measure instead, return what the run will cost, see estimate(), and say where bf16 would take less time.
    pass_signals: let Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP end the run in order instead of this process; a notebook's
    kernel answers them itself.
    Raises Stopped where a signal ended the run in order, TrainingError where anything else did, with the last lines of
    the log and the command that goes on.
    """
    children = Children()
    with children.passing_signals() if pass_signals else contextlib.nullcontext():
        if dry_run:
            found = estimate(children, config, os.environ, on_line)
            offer_bf16(children, config, found, on_line)
            return found
        train_run(children, config, run_dir or config.run_dir, os.environ, on_line)
    return None


def estimate(
    children: Children, config: Config, environment: Mapping[str, str], on_line: Callable[[str], None]
) -> dict:
    """Make some updates of a run, and leave no trace: what its record would say at its start, and "epoch_s" (seconds)."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise InputError(f"{in_words(error)}: set TMPDIR to a folder with room") from None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "estimate.json"
        train_run(children, config, Path(folder), environment, on_line, "--dry-run", "--estimate", str(file))
        return read_object(file, "an estimate", "see what training said")


def offer_bf16(children: Children, config: Config, found: dict, on_line: Callable[[str], None]) -> None:
    """Say so where a run on a CPU takes less time in bf16, by a second dry run. found: what the first one has found."""
    on_cpu = found["hardware"]["device"] == "cpu"
    if not (on_cpu and config.mixed_precision == "no" and multiplies_bf16()):
        return
    try:
        in_bf16 = estimate(children, replace(config, mixed_precision="bf16"), os.environ, lambda line: None)
    except (InputError, TrainingError):  # a run that cannot be trained in it
        return
    share = in_bf16["epoch_s"] / found["epoch_s"]
    if share < FASTER:
        on_line(
            f"mixed_precision=bf16 would take {share:.2f} of the time: {in_bf16['epoch_s']:,.1f} s an epoch, not "
            f"{found['epoch_s']:,.1f}"
        )


def train_run(
    children: Children,
    config: Config,
    run_dir: Path,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    *options: str,
) -> None:
    """Train a run to its end as one of these children. Raises what launch() raises."""
    run_dir = Path(os.path.relpath(run_dir))  # no home folder in outputs
    request, log = run_dir / "request.json", run_dir / "log.txt"
    run = ["--config", str(request), "--run-dir", str(run_dir)]
    again = shlex.join([os.path.relpath(sys.executable), "-m", "ffvit", "train", *run])
    of_its_own = {**_environment(config), **environment, run_folder.BY_LAUNCHER: "1"}
    with run_folder.started(run_dir, config), _own_gpus(config, of_its_own):
        require_room("num_processes", config.num_processes, 1, TRAINING_MB)
        require_room("num_workers", config.num_workers, config.num_processes, LOADING_MB)
        with _requested(config, request), open(log, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"to go on with this run after an interruption: {again}\n")
            file.flush()
            try:
                ended = children.run([*_launcher(config), "ffvit", "worker", *run, *options], of_its_own, log, on_line)
            except OSError as error:  # its log cannot be written, or whoever reads its lines is gone
                raise TrainingError(f"{in_words(error)}\nTo go on from the last whole checkpoint:\n{again}") from None
    if ended.stopped:
        raise Stopped(f"{ended.why}\nTo go on:\n{again}")
    if ended.code:
        raise TrainingError(
            f"training ended with exit code {ended.code}:\n{ended.why}\n"
            f"The log is {log}. To go on from the last whole checkpoint:\n{again}"
        )


@contextlib.contextmanager
def _requested(config: Config, request: Path) -> Iterator[None]:
    """Write what is asked for. Where the run that is there has refused it, what was asked for before is put back: its log
    names this file to go on with.

    Not config.json: that one is the run's, and written when it begins, or goes on.
    """
    folder, mark = request.parent, run_folder.mark_of(request.parent)
    before, accepted = (request.read_bytes() if request.exists() else None), folder / "config.json"
    write_atomically(request, json.dumps(config.to_dict(), indent=1))
    try:
        yield
    finally:
        is_there = run_folder.mark_of(folder) == mark and accepted.exists()
        if before and is_there and accepted.read_bytes() != request.read_bytes():
            write_atomically(request, before)


def _launcher(config: Config) -> list[str]:
    """How Python starts the run, so that each of its processes ends with this one.

    Every choice is explicit: accelerate must not ask the machine's own configuration.
    """
    if config.num_processes == 1:
        return watched()  # accelerate's launcher would only start this one process, after a second or two
    return [
        *watched(),
        "accelerate.commands.launch",
        "--multi_gpu",  # on CPUs too: with --cpu, accelerate starts a single process whatever number is asked for
        "--num_machines=1",
        f"--num_processes={config.num_processes}",
        f"--mixed_precision={config.mixed_precision}",
        "--dynamo_backend=no",
        "--main_process_port=0",  # a free one
        *watched(),
    ]


def _environment(config: Config) -> dict[str, str]:
    """What the processes of a run find set, if nobody set it before."""
    import torch

    on_cpu = config.device == "cpu" or config.device == "auto" and not torch.accelerator.is_available()
    processor = {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
    return {"OMP_NUM_THREADS": str(threads_each(config.num_processes)), **processor}


@contextlib.contextmanager
def _own_gpus(config: Config, environment: dict[str, str]) -> Iterator[None]:
    """Give the run GPUs, or a place on one, that no other run started here has, while there are any.

    Snakemake counts GPUs but assigns none, so runs started side by side would all take the first. A run of one process
    takes one of the places of a GPU, and of every GPU the first one before a second; a run of several takes GPUs whole.
    Raises InputError for more processes than there are GPUs.
    """
    import torch

    places = range(_runs_per_gpu(environment))
    visible = environment.get("CUDA_VISIBLE_DEVICES")  # a scheduler's choice
    known = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    on_gpus = config.device != "cpu" and torch.cuda.is_available()
    if on_gpus and len(known) < config.num_processes:
        raise InputError(
            f"num_processes={config.num_processes} needs as many GPUs, found {len(known)}: set num_processes={len(known)}; "
            f"accumulation_steps={math.ceil(config.num_processes / len(known))} then leaves about as many images at a time"
        )
    choices: list[tuple[str, Sequence[int]]] = [(gpu, [place]) for place in places for gpu in known]
    if config.num_processes > 1:
        choices = [(gpu, places) for gpu in known]
    own: list[str] = []
    with contextlib.ExitStack() as held:
        for gpu, wanted in choices if config.device != "cpu" else []:
            if len(own) < config.num_processes:
                with contextlib.suppress(Timeout), contextlib.ExitStack() as all_or_none:
                    folder = _folder_of_locks()
                    for place in wanted:
                        name = f"{socket.gethostname()}-gpu-{gpu.replace('/', '-')}-place-{place}.lock"
                        all_or_none.enter_context(FileLock(folder / name, timeout=0))
                    held.enter_context(all_or_none.pop_all())
                    own.append(gpu)
        if len(own) == config.num_processes:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        yield


def _folder_of_locks() -> Path:
    """This user's own folder for locks of this machine's GPUs. Raises InputError where somebody else could have a hand in it."""
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "none")
    usable = runtime.is_absolute() and runtime.is_dir() and os.access(runtime, os.W_OK)
    parent = runtime if usable else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = parent / "ffvit"
    cure = "set XDG_RUNTIME_DIR to a folder of your own"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InputError(
                f"{folder}, for the locks of GPUs, is a link or somebody else's folder: remove it, or {cure}"
            )
        folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home is known
        raise InputError(f"no folder for the locks of GPUs: {error}; {cure}") from None
    return folder


def _runs_per_gpu(environment: dict[str, str]) -> int:
    given = environment.get(RUNS_PER_GPU, "1")
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"the environment's {RUNS_PER_GPU} must be a whole number from 1 on, got '{given}'")
    return int(given)
