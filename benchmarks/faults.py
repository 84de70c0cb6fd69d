"""Break training in every way we know, and see that it goes on, or ends as it should: `make faults`, on 2 CPU cores.

FAULTS, near the end, is the table. Each fault is a function that yields, for every time it was tried, what went wrong,
or "". A row counts what was yielded and nothing else: a fault that ends early or hangs is not shown. The whole table is
measured in one call, and only then written, beside this file.

Training is broken from outside, without a line in the library for it: `worker` runs `ffvit worker` with some of its
functions wrapped. Where fresh interpreters are not the point, processes are forked from this one, which has imported
everything, computed nothing and started no thread.
"""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # read when the libraries are imported

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import pickle
import random
import re
import resource
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import matplotlib.pyplot as plt
import numpy as np
import page
import pandas
import psutil
import pyarrow.parquet
import torch
from PIL import Image
from safetensors.torch import save, save_file

from ffvit.__main__ import main as ffvit
from ffvit.data.batches import eval_loader
from ffvit.data.splits import first_images, load_splits
from ffvit.evidence import drawing, escape, tables
from ffvit.evidence.belonging import belonging
from ffvit.evidence.records import load_records, write_record
from ffvit.launching import launch as launcher
from ffvit.models import from_config
from ffvit.models.weights import load_weights
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError
from ffvit.system.files import ROOT, write_atomically
from ffvit.system.lifetime import STOPPED
from ffvit.tasks.classification import evaluate
from ffvit.training import checkpoint
from ffvit.training import train as trainer
from ffvit.training.manifest import find_state
from ffvit.training.processes import create_accelerator

HERE = Path(__file__).resolve()
BOUND_S = 40 * 60  # of the whole table
NOTE = "That a GPU is free again shows here only as: no process of the run is left."
MARK = "FFVIT_FAULT"  # in the environment of a command, and so of all that it starts
UPDATES = 10  # an epoch, of 320 images
LAUNCH = (sys.executable, "-m", "ffvit", "train")
PORT = 29500  # torch's usual one


# Processes


def fork(action: Callable[[], int | None], log: str) -> int:
    """Run an action in a child that leads a session of its own and prints into a file. Returns the child's id."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.setsid()
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = action() or 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, timeout_s: float = 180) -> int | None:
    """A child's exit code, negative for a signal. One that takes longer is killed with all its children: None."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    kill([*psutil.Process(child).children(recursive=True), psutil.Process(child)])
    os.waitpid(child, 0)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def in_ranks(world: int, action: Callable[[], int | None]) -> int | None:
    """Run an action in each of `world` processes that know of one another, in this one if it is alone."""
    if world == 1:
        return action()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for rank in range(world):
        if not os.fork():
            of_rank = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            os.environ |= {name: str(number) for name, number in of_rank.items()} | {"MASTER_ADDR": "127.0.0.1"}
            try:
                os._exit(action() or 0)
            finally:
                os._exit(1)
    return max(os.wait()[1] for _ in range(world)) and 1


def marked(mark: str, name: str = MARK) -> list[psutil.Process]:
    """The processes with this in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or is somebody else's
            if process.environ().get(name) == mark:
                found.append(process)
    return found


def command(*words, log: str) -> tuple[subprocess.Popen, str]:
    """Start a command in a session of its own. Returns it, and the mark of all that it starts."""
    mark, words = secrets.token_hex(8), [str(word) for word in words]
    with open(log, "a") as file:
        environment = os.environ | {MARK: mark}
        return subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True), mark


def until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# Training with a fault in it


def digits(**settings) -> Config:
    small = dict(epochs=3, warmup_epochs=0, batch_size=32, max_train_images=320, max_eval_images=64, device="cpu")
    small |= dict(augment="image", interpolation="bicubic")
    return load_experiment("digits").config("ff", **small | settings)


def streamed(**settings) -> Config:
    """Digits in parquet files of different sizes: of two processes one owns 238 images, the other 86."""

    def write() -> None:
        splits = load_splits(digits(max_train_images=324))
        ends = np.cumsum([130, 66, 68, 20, 40])
        for number, (begin, end) in enumerate(zip([0, *ends], ends)):
            file = f"stream/train-{number:05}-of-00005.parquet"
            splits.train.select(range(begin, end)).to_parquet(file, batch_size=16)
        splits.validation.to_parquet("stream/validation.parquet")
        splits.test.to_parquet("stream/test.parquet")

    Path("stream").mkdir()
    if wait(fork(write, "stream.txt")) != 0:
        raise RuntimeError(f"the parquet files could not be written: {last_line('stream.txt')}")
    stream = dict(streaming=True, in_memory=False, max_train_images=0, validation_split="validation", shuffle_buffer=64)
    return digits(dataset=str(Path("stream").resolve()), **stream | settings)


def arguments(config: Config, run_dir: str) -> list[str]:
    """Of `ffvit train` and `ffvit worker`."""
    Path(f"{run_dir}.json").write_text(json.dumps(config.to_dict()))
    return ["--config", f"{run_dir}.json", "--run-dir", run_dir]


def start(config: Config, run_dir: str, **broken) -> int:
    """Train in forked processes, which print into <run_dir>.txt. Returns the id of the one that waits for all."""
    words = arguments(config, run_dir)
    return fork(lambda: in_ranks(config.num_processes, lambda: worker(broken, words)), f"{run_dir}.txt")


def start_launcher(config: Config, run_dir: str, **broken) -> int:
    """`ffvit train`, of which only this process is forked: training starts in fresh interpreters."""
    words, usual = arguments(config, run_dir), launcher._launcher

    def main() -> int:
        os.environ["PYTHONPATH"] = str(HERE.parent)
        # This module comes before the word "worker" in the command of every process.
        launcher._launcher = lambda config: [*usual(config), HERE.stem, "worker", json.dumps(broken)]
        return ffvit(["train", *words])

    return fork(main, f"{run_dir}.txt")


def worker(broken: dict, words: list[str]) -> int:
    """`ffvit worker` in this process, told what to break.

    broken: kind, at which update, in which rank (if not given: all); trace: where to note every update.
    """
    rank = int(os.environ.get("RANK", 0))
    make_update, finish = trainer.make_update, trainer.finish

    def note(**facts) -> None:
        if "trace" in broken:
            with open(f"{broken['trace']}-{rank}.jsonl", "a") as file:
                file.write(json.dumps(facts) + "\n")

    def update(run, batches, meter) -> float:
        number, images = run.update + 1, []
        kind = broken.get("kind") if number == broken.get("update") and rank == broken.get("rank", rank) else None

        def taken(batch):
            images.append(sha256([batch.images, batch.target]))
            return batch._replace(images=batch.images * math.nan) if kind == "nan" else batch

        lr = make_update(run, map(taken, batches), meter)
        note(
            update=number,
            images=images,
            rates=[group["lr"] for group in run.optimizer.param_groups],
            random_state=random_state(),
        )
        if kind:
            Path("broken").write_text(str(time.monotonic()))
        match kind:
            case "kill":
                run.accelerator.wait_for_everyone()  # to have noted the update
                os.killpg(0, signal.SIGKILL)
            case "raise":
                raise RuntimeError("broken on purpose")
            case "kill data worker":
                os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            case "full disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return lr

    def finish_too(run) -> None:
        measured = ("images_per_s", "data_wait_percent", "seconds", "cpu_seconds")
        history = [{name: v for name, v in epoch.items() if name not in measured} for epoch in run.history]
        states = {"model": run.raw_model.state_dict(), "ema": run.ema and run.ema.module.state_dict()}
        states |= {"optimizer": run.optimizer.optimizer.state_dict()}
        hashes = {name: sha256(state) for name, state in states.items()}
        note(update="end", history=history, random_state=random_state(), **hashes)
        finish(run)

    trainer.make_update, trainer.finish = update, finish_too
    return ffvit(["worker", *words])


def random_state() -> str:
    return sha256([random.getstate(), np.random.get_state(), torch.get_rng_state()])


def sha256(value) -> str:
    """Of tensors, arrays and numbers in any nest, bit for bit."""
    digest = hashlib.sha256()

    def add(value) -> None:
        match value:
            case torch.Tensor() | np.ndarray():
                plain = np.asarray(value)
                digest.update(f"{plain.dtype} {plain.shape}".encode() + plain.tobytes())
            case dict():
                add(sorted(value.items(), key=lambda item: repr(item[0])))
            case list() | tuple():
                digest.update(f"{len(value)} items".encode())
                for item in value:
                    add(item)
            case _:
                digest.update(repr(value).encode())

    add(value)
    return digest.hexdigest()


def trace(run_dir: str, rank: int) -> list[dict]:
    file = Path(f"{run_dir}-{rank}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def newest_checkpoint(run_dir: str) -> int | None:
    path, _ = find_state(Path(run_dir) / "checkpoints")
    return path and int(path.name)


def last_line(file: str) -> str:
    lines = Path(file).read_text().splitlines()
    return next((line for line in lines if line.startswith("error")), (lines or [""])[-1])


# Faults


def killed_at_updates(count: int, streaming: bool, ranks: int) -> Iterator[str]:
    every, total, pick = 2, 3 * UPDATES, random.Random(f"{streaming} {ranks}")
    settings = dict(num_processes=ranks, mixup=0.8, drop_path_rate=0.1, ema_decay=0.99, checkpoint_every=every)
    settings |= dict(num_workers=int(streaming == (ranks == 1)))
    config = streamed(**settings) if streaming else digits(**settings)
    files = [f"{name}.safetensors" for name in ("last", "best", "ema")]
    whole = wait(start(config, "whole", trace="whole"))
    for number, first in enumerate(pick.sample(range(1, total), count), 1):
        # The last run is killed twice, and all of it happens in fresh interpreters.
        last = number == count > 1
        kills, name = [first, pick.randint(first, total - 1)] if last else [first], f"run{number}"
        begin = start_launcher if last else start
        codes = [wait(begin(config, name, trace=name, kind="kill", update=k)) for k in [*kills, None]]
        ends, begins = [*kills, total], [0, *((k - 1) // every * every for k in kills)]  # at the checkpoint before it
        made = [update for begin, end in zip(begins, ends) for update in range(begin + 1, end + 1)]
        problem = "" if whole == codes[-1] == 0 and all(codes[:-1]) else f"exit codes {whole}, {codes}"
        for rank in range(ranks):
            right, found = trace("whole", rank), trace(name, rank)
            if [line["update"] for line in found] != [*made, "end"]:
                problem += f" rank {rank} made other updates;"
            if odd := [line["update"] for line in found if line not in right]:
                problem += f" rank {rank}: {odd} are not the uninterrupted run's;"
        if not problem and any(Path("whole", f).read_bytes() != Path(name, f).read_bytes() for f in files):
            problem = "the files of weights differ"
        yield f"killed after {kills}: {problem}; {last_line(f'{name}.txt')}" if problem else ""


def killed_while_saving(count: int) -> Iterator[str]:
    pick, folder, zeros, last, half_written = random.Random(0), Path("checkpoints"), torch.zeros(500_000), 0, 0

    def save_number(update: int) -> None:
        optimizer = {"state": {0: {"exp_avg": zeros + update}}, "param_groups": []}
        checkpoint.save_state(folder, update, {"model": {"weight": zeros + update}}, optimizer, {"update": update})
        write_atomically(Path("saved"), str(update))

    def save_on() -> None:
        for update in itertools.count(last + 1):
            save_number(update)

    save_number(last)
    for number in range(1, count + 1):
        child = fork(save_on, "saving.txt")
        time.sleep(pick.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        code, before = wait(child), max(last, int(Path("saved").read_text()))
        half_written += any(path.name.endswith(".new") for path in folder.iterdir())
        path, damaged = find_state(folder)
        weights, optimizer, progress = checkpoint.load_state(path)
        last = progress["update"]
        tensors = weights["model"]["weight"], optimizer["state"][0]["exp_avg"]
        whole = int(path.name) == last and all(torch.equal(tensor, zeros + last) for tensor in tensors)
        fine = code == -signal.SIGKILL and whole and not damaged and before <= last <= before + 1
        if number == count and half_written < count / 10:  # kills that missed the writing would show nothing
            fine = False
        yield "" if fine else f"{path} after {before}, {damaged}; {half_written} of {number} kills while writing"


def damaged(count: int) -> Iterator[str]:
    wait(start(digits(ema_decay=0.99, checkpoint_every=2), "run", kind="kill", update=5))
    older, newer = sorted(Path("run/checkpoints").iterdir())
    pick = random.Random(0)
    for file in sorted(newer.iterdir()):
        content = file.read_bytes()
        for number in range(count // 5):
            wrong = bytearray(content)
            if number % 2:
                del wrong[pick.randrange(len(wrong)) :]
            else:
                wrong[pick.randrange(len(wrong))] ^= 1 << pick.randrange(8)
            file.write_bytes(wrong)
            found, told = find_state(older.parent)
            named = len(told) == 1 and (file.stem if file.stem == "manifest" else file.name) in told[0]
            yield "" if found == older and named else f"{file.name}: {found}, {told}"
        file.write_bytes(content)


def stopped(count: int, number: signal.Signals) -> Iterator[str]:
    for attempt in range(count):
        name, ranks, log = f"run{attempt}", 1 + attempt % 2, Path(f"run{attempt}.txt")
        words = [*LAUNCH, *arguments(digits(epochs=30, num_processes=ranks), name)]
        process, _ = command(*words, log=log)
        until(partial(newest_checkpoint, name), 120)
        time.sleep(random.Random(attempt).uniform(0, 0.5))
        process.send_signal(number)
        code = process.wait(60)
        told, kept = re.search(r"^stopped by SIG\w+ after update (\d+)", log.read_text(), re.M), newest_checkpoint(name)
        again = command(*words, log=log)[0].wait(180)
        fine = code == STOPPED and told and kept == int(told[1])
        fine = fine and again == 0 and "\ngoing on after update" in log.read_text()
        yield "" if fine else f"{ranks} ranks: exit {code}, {told and told[0]}, checkpoint {kept}, then exit {again}"


def ends_after_kill(process: subprocess.Popen, mark: str, run_dir: Path, victim: Callable) -> str:
    """Kill one process of a run under way, and watch the others end. Returns what went wrong."""

    def others() -> list[psutil.Process]:
        return [other for other in marked(mark) if other.pid != process.pid]

    try:
        until(lambda: process.poll() is not None or (run_dir / "history.json").exists(), 120)
        next(other for other in marked(mark) if victim(other)).kill()
        killed = time.monotonic()
        left = [] if until(lambda: not others(), 5) else [other.cmdline() for other in others()]
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0, killed + 10 - time.monotonic()))
        told = "-m ffvit train --config" in (run_dir / "log.txt").read_text()
        fine = not left and process.poll() and told
        return (
            "" if fine else f"left after 5 s {left}, after 10 s exit code {process.poll()}, told how to go on: {told}"
        )
    finally:
        kill(marked(mark))
        process.wait()


def notebook_killed(count: int, program: str) -> Iterator[str]:
    for attempt in range(count):
        run = Path(f"run{attempt}").resolve()
        settings = ["-p", "run_dir", run, "-p", "epochs", 100000, "-p", "device", "cpu", "-k", "python3"]
        words = ["-m", "papermill", ROOT / "notebooks/02_train.ipynb", f"{run}.ipynb", *settings, "--no-progress-bar"]
        process, mark = command(sys.executable, *words, log=f"{run}.txt")
        yield ends_after_kill(process, mark, run, lambda other: program in other.cmdline())


ENDLESS = """
title = "One run that does not end"
scope = "small"
about = "It is killed."
seeds = [0]
models.ff = { label = "FF only", model = "ff_tiny_patch16_224" }

[settings]
recipe = "small_images"
dataset = "digits"
img_size = 8
in_chans = 1
mean = [0.305]
std = [0.376]
model_args = { patch_size = 2, embed_dim = 64, depth = 3, num_heads = 4 }
epochs = 100000
"""


def pipeline_killed(count: int) -> Iterator[str]:
    for attempt in range(count):
        project = Path(f"project{attempt}").resolve()
        for part in ("ffvit", "notebooks", "workflow", "experiments"):
            shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
        (project / "experiments/small.toml").write_text(ENDLESS)
        process, mark = command(sys.executable, project / "workflow/run.py", "reproduce", "small", log=f"{project}.txt")
        yield ends_after_kill(
            process, mark, project / "runs/small/ff-seed0", lambda other, top=process.pid: other.pid == top
        )


def rank_killed(count: int) -> Iterator[str]:
    for attempt in range(count):
        name, rank = f"run{attempt}", str(attempt % 2)
        words = arguments(digits(epochs=100000, num_processes=2), name)
        process, mark = command(*LAUNCH, *words, log=f"{name}.txt")
        yield ends_after_kill(process, mark, Path(name), lambda other, rank=rank: other.environ().get("RANK") == rank)


def fails_in_one_rank(count: int, cause: str, ranks=(0, 1), **broken) -> Iterator[str]:
    config = digits(num_processes=2, num_workers=1, checkpoint_every=2)
    for attempt in range(count):
        name, rank = f"run{attempt}", ranks[attempt % len(ranks)]
        code = wait(start_launcher(config, name, rank=rank, update=14, **broken))
        took = time.monotonic() - float(Path("broken").read_text())
        told = re.search(rf"^error.*process {rank}\b.*({cause})", Path(name, "log.txt").read_text(), re.M)
        kept = newest_checkpoint(name)
        fine = code and took < 60 and told and kept and kept >= 12
        yield "" if fine else f"rank {rank}: exit {code} after {took:.0f} s, {told and told[0]}, checkpoint {kept}"


def uneven_shards(count: int) -> Iterator[str]:
    config = streamed(num_processes=2)
    for attempt in range(count):
        name = f"run{attempt}"
        code = wait(start_launcher(config, name, trace=name))
        updates = [sum(line["update"] != "end" for line in trace(name, rank)) for rank in range(2)]
        yield "" if code == 0 and updates == [30, 30] else f"exit {code}, updates {updates}: {last_line(f'{name}.txt')}"


def pairs(count: int) -> Iterator[str]:
    config = digits(epochs=1, max_train_images=64, num_processes=2)
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # by somebody else: as good
            taken.bind(("127.0.0.1", PORT))
            taken.listen()
        socket.create_connection(("127.0.0.1", PORT), timeout=5).close()
        for attempt in range(count):
            names = [f"run{attempt}a", f"run{attempt}b"]
            codes = [wait(child) for child in [start_launcher(config, name) for name in names]]
            fine = codes == [0, 0] and all(Path(name, "training.json").exists() for name in names)
            yield "" if fine else f"exit codes {codes}: {[last_line(f'{name}.txt') for name in names]}"


def encode(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    file = io.BytesIO()
    (Image.frombytes(mode, pixels.shape[1::-1], pixels.tobytes()) if mode else Image.fromarray(pixels)).save(
        file, kind, **options
    )
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
GREY, DEEP = PIXELS[..., 0], PIXELS[..., 0].astype(np.uint16) * 256 + PIXELS[..., 1]
NO_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"  # promises 65,535 entries and has none
SMALL = encode(np.zeros((1, 1), np.uint8), "PNG")
ODD = {  # file, and the pixels it must become
    "png_in_truth.jpg": (encode(PIXELS, "PNG"), PIXELS),
    "cmyk.tif": (encode(np.dstack([255 - PIXELS, 0 * GREY]), "TIFF", "CMYK"), PIXELS),
    "broken_exif.png": (encode(PIXELS, "PNG", exif=NO_EXIF), PIXELS),
    "grey.png": (encode(GREY, "PNG"), np.dstack([GREY] * 3)),
    "16_bits.png": (encode(DEEP, "PNG"), np.dstack([GREY] * 3)),
}
BAD = {
    "truncated.jpg": encode(PIXELS, "JPEG")[:-60],
    "empty.png": b"",
    "text.jpg": b"<html>404: not found</html>",
    "bomb.png": SMALL.replace(struct.pack(">II", 1, 1), struct.pack(">II", 30000, 30000)),
}


def with_file(folder: Path, split: str, name: str, content: bytes, **settings) -> Config:
    """A run on a folder of images of two classes, one of them this file."""
    for where, label, number in itertools.product(("train", "validation", "test"), "01", range(8)):
        file = folder / where / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        shift = number + 8 * int(label) + 16 * ("train", "validation", "test").index(where)  # no two splits alike
        file.write_bytes(encode(np.roll(PIXELS, shift), "PNG"))
    (folder / split / "1" / name).write_bytes(content)
    colour = dict(in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3, in_memory=False, validation_split="validation")
    small = dict(epochs=1, batch_size=8, max_train_images=0, max_eval_images=0)
    return digits(dataset=str(folder.resolve()), **colour | small | settings)


def trained(config: Config, run_dir: str) -> tuple[int | None, dict]:
    """The exit code of a run, and the bad images that it recorded, as (index, file)."""
    code, file = wait(start(config, run_dir)), Path(run_dir, "training.json")
    bad = json.loads(file.read_text())["bad_images"] if code == 0 else {}
    return code, {split: [(image["index"], image["file"]) for image in found] for split, found in bad.items()}


def odd_images(count: int) -> Iterator[str]:
    for split, (name, (content, pixels)) in itertools.product(("train", "validation"), ODD.items()):
        config, run = with_file(Path(f"{split}-{name}"), split, name, content), f"run-{split}-{name}"
        images = [np.asarray(image) for image, _ in first_images(getattr(load_splits(config), split), config, 99)]
        code, bad = trained(config, run)
        fine = len(images) == 17 and any(np.array_equal(image, pixels) for image in images)
        fine = fine and code == 0 and bad == {"train": [], "validation": []}
        yield "" if fine else f"{split}, {name}: exit {code}, {bad}, {last_line(f'{run}.txt')}"


def bad_images(count: int) -> Iterator[str]:
    cases = itertools.product(BAD.items(), ("train", "validation"), ("refuse", "skip"))
    for (name, content), split, choice in itertools.islice(cases, count):
        run, folder = f"run-{split}-{choice}-{name}", Path(f"{split}-{choice}-{name}")
        code, bad = trained(with_file(folder, split, name, content, bad_images=choice), run)
        if choice == "refuse":
            lines = [line for line in Path(f"{run}.txt").read_text().splitlines() if line.startswith("error")]
            fine = code == 2 and any(name in line for line in lines)
        else:
            row = sorted(folder.glob(f"{split}/*/*")).index(folder / split / "1" / name)  # the order of the paths
            fine = bad == {"train": [], "validation": []} | {split: [(row, name)]}
        yield "" if fine else f"{run}: exit {code}, {bad}: {last_line(f'{run}.txt')}"


class Bomb:
    """What leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {Path('executed').resolve()}",)


def save_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(pickle.dumps(Bomb()))
            archive.addfile(entry, io.BytesIO(pickle.dumps(Bomb())))


def save_zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, pickle.dumps(Bomb()))


def save_program(path: Path) -> None:
    path.write_text(f"open({str(Path('executed').resolve())!r}, 'w')\n")


def save_foreign_types(folder: Path) -> None:
    """What save_to_disk writes, with a module in place of a type."""
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}], "_split": None}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"image": {"_type": "os"}}}))
    (folder / "a.arrow").write_bytes(pickle.dumps(Bomb()))


HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 4], "data_offsets": [0, 8]}}).encode()
# From a path and a good state dict.
CHECKPOINTS = {
    "a pickle that runs a command": lambda path, state: path.write_bytes(pickle.dumps({"model": Bomb()})),
    "torch's zip of it": lambda path, state: torch.save({"model": Bomb()}, path),
    "torch's old file of it": lambda path, state: torch.save([Bomb()], path, _use_new_zipfile_serialization=False),
    "a namespace with it": lambda path, state: torch.save({"args": argparse.Namespace(deep=[Bomb()]), **state}, path),
    "a tar with it": lambda path, state: save_tar(path, ["sys_info", "pickle", "storages", "tensors"]),
    "a zip that leaves its folder": lambda path, state: save_zip(
        path, ["a/data.pkl", "../executed", "a/../../executed"]
    ),
    "safetensors with too long a header": lambda path, state: path.write_bytes(struct.pack("<Q", 2**62) + save(state)),
    "with too large a shape": lambda path, state: path.write_bytes(struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)),
    "with wrong shapes": lambda path, state: save_file({k: tensor[None].clone() for k, tensor in state.items()}, path),
    "with foreign keys": lambda path, state: save_file(state | {"__reduce__": torch.zeros(1)}, path),
}
# From an empty folder.
DATASETS = {
    "a folder with a loading script": lambda folder: save_program(folder / f"{folder.name}.py"),
    "parquet that is a pickle": lambda folder: (folder / "train.parquet").write_bytes(pickle.dumps(Bomb())),
    "a tar of pickles": lambda folder: save_tar(folder / "train.tar", ["0.png", "0.pickle", "0.pth", "../executed"]),
    "types that are modules": save_foreign_types,
}


def malicious(count: int) -> Iterator[str]:
    model = from_config.create(digits(), 10)
    for number, (kind, forge) in enumerate((CHECKPOINTS | DATASETS).items()):
        suffix = ".safetensors" if "safetensors" in kind or kind.startswith("with") else ".pth"
        path = Path(f"forged{number}{suffix if kind in CHECKPOINTS else ''}").resolve()
        try:
            if kind in CHECKPOINTS:
                forge(path, model.state_dict())
                load_weights(model, path)
            else:
                path.mkdir()
                forge(path)
                load_splits(digits(dataset=str(path)))
            problem = "no error"
        except Exception as error:
            fine = isinstance(error, InputError) and path.name in str(error)
            problem = "" if fine else f"{type(error).__name__}: {error}"
        problem = "it was executed" if list(Path.cwd().parent.rglob("executed")) else problem
        yield f"{kind}: {problem}" if problem else ""


def save_parquet(folder: Path, split: str, labels: list[int], names: list[str] | None = None, shift: int = 0) -> None:
    """A split of small images, one a label. names: of the classes; None: bare numbers. shift: makes other images."""
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    images = [Image.fromarray(np.roll(GREY, i + shift)) for i in range(len(labels))]
    features = datasets.Features(image=datasets.Image(), label=kind)
    split_of = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    folder.mkdir(parents=True, exist_ok=True)
    split_of.to_parquet(folder / f"{split}-00000-of-00001.parquet")


def save_linked_rows(folder: Path, path: str) -> None:
    """Parquet rows that name a file in place of holding one."""
    rows = {"image": [{"bytes": None, "path": path}] * 20, "label": [0, 1] * 10}
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["a", "b"]))
    table = datasets.Dataset.from_dict(rows, features).cast_column("image", datasets.Image(decode=False))
    pyarrow.parquet.write_table(table.data.table, folder / "train-00000-of-00001.parquet")


TEN = [str(digit) for digit in range(10)]
LABELS = list(range(10)) * 4
# From a folder whose train split is written: what is wrong with its test split, or its images.
WRONG_IMAGES: dict[str, Callable[[Path], None]] = {
    "classes in another order": lambda folder: save_parquet(folder, "test", LABELS, TEN[::-1], 7),
    "a class of another case": lambda folder: save_parquet(folder, "test", LABELS, ["Zero", *TEN[1:]], 7),
    "a class more": lambda folder: save_parquet(folder, "test", LABELS, [*TEN, "10"], 7),
    "the same images again": lambda folder: save_parquet(folder, "test", LABELS, TEN),
    "labels from 1 on": lambda folder: [save_parquet(folder, s, [n + 1 for n in LABELS], None, 7) for s in SPLITS],
    "labels with gaps": lambda folder: [save_parquet(folder, s, [n * 10**6 for n in LABELS], None, 7) for s in SPLITS],
    "rows that name a file elsewhere": lambda folder: save_linked_rows(folder, "/etc/passwd"),
    "rows that name a device": lambda folder: save_linked_rows(folder, "/dev/zero"),
    "a card that names files elsewhere": lambda folder: write_card(folder, "../elsewhere/*.parquet"),
}
SPLITS = ("train", "test")
# Files that are no image of a known range or of a bearable size.
WRONG_FILES = {
    "float.tif": encode(PIXELS[..., 0].astype(np.float32) / 255, "TIFF"),
    "32_bits.tif": encode(PIXELS[..., 0].astype(np.int32), "TIFF"),
    "wide.png": encode(np.zeros((1, 65535), np.uint8), "PNG"),
    "tall.jpg": encode(np.zeros((65500, 1), np.uint8), "JPEG"),
}


def write_card(folder: Path, files: str) -> None:
    save_parquet(folder.parent / "elsewhere", "train", LABELS, TEN)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: '{files}'\n---\n")


def wrong_images(count: int) -> Iterator[str]:
    for number, (kind, spoil) in enumerate(WRONG_IMAGES.items()):
        folder = Path(f"folder{number}").resolve()
        save_parquet(folder, "train", LABELS, TEN)
        spoil(folder)
        held_out = {} if list(folder.glob("test*")) else dict(test_split="", test_fraction=0.1)
        try:
            config = digits(dataset=str(folder), max_train_images=0, max_eval_images=0, validation_split="", **held_out)
            first_images(load_splits(config).train, config, 1)
            yield f"{kind}: no error"
        except InputError as error:
            yield "" if folder.name in str(error) else f"{kind}: {error}"
    for name, content in WRONG_FILES.items():
        config = with_file(Path(name), "train", name, content, img_size=224)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            first_images(load_splits(config).train, config, 99)
            yield f"{name}: no error"
        except InputError as error:
            taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
            yield "" if name in str(error) and taken < 300 else f"{name}: {taken:.0f} MB, {error}"


def weights_no_numbers(count: int) -> Iterator[str]:
    model = from_config.create(digits(), 10)
    for kind, value in (("nan", math.nan), ("inf", math.inf)):
        state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        state["head.weight"][0, 0] = value
        for path in (Path(f"{kind}.safetensors"), Path(f"{kind}.pth")):
            save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
            try:
                load_weights(model, path)
                yield f"{path}: no error"
            except InputError as error:
                yield "" if path.name in str(error) and "head.weight" in str(error) else f"{path}: {error}"


def in_results(record: dict, **changed) -> dict:
    return record | {"results": record["results"] | changed}


# From a true record of FF only, seed 0: what is written, and the file that takes it.
RECORDS: dict[str, tuple[Callable[[dict], dict], str]] = {
    "a copy under another name": (lambda r: r, "ff-seed7.json"),
    "seed 0 as seed 7": (lambda r: r | {"run_id": "ff-seed7", "config": r["config"] | {"seed": 7}}, "ff-seed7.json"),
    "another model's": (
        lambda r: r | {"run_id": "vit-seed0", "config": r["config"] | {"name": "vit"}},
        "vit-seed0.json",
    ),
    "another experiment's": (lambda r: r | {"config": r["config"] | {"experiment": "imagenet"}}, "ff-seed0.json"),
    "top-1 of 150": (lambda r: in_results(r, top1_percent=150.0), "ff-seed0.json"),
    "top-1 of -5": (lambda r: in_results(r, top1_percent=-5.0), "ff-seed0.json"),
    "top-1 that is true": (lambda r: in_results(r, top1_percent=True), "ff-seed0.json"),
    "top-1 unlike its confusion matrix": (lambda r: in_results(r, top1_percent=50.0), "ff-seed0.json"),
    "a mistake left out": (
        lambda r: in_results(r, mistakes=r["results"]["mistakes"].partition(" ")[2]),
        "ff-seed0.json",
    ),
    "more images than there are": (lambda r: in_results(r, images=361), "ff-seed0.json"),
    "an epoch left out": (lambda r: r | {"history": r["history"][:-1]}, "ff-seed0.json"),
    "no settings": (lambda r: r | {"config": []}, "ff-seed0.json"),
}


def wrong_records(count: int) -> Iterator[str]:
    for number, (kind, (edited, name)) in enumerate(RECORDS.items()):
        results = Path(f"results{number}")
        shutil.copytree(ROOT / "results/digits", results / "digits", ignore=shutil.ignore_patterns("trials"))
        record = json.loads((results / "digits/ff-seed0.json").read_text())
        (results / "digits" / name).write_text(json.dumps(edited(record)))
        try:
            load_records("digits", results)
            yield f"{kind}: no error"
        except InputError as error:
            yield "" if name in str(error) else f"{kind}: {error}"


def other_runs(count: int) -> Iterator[str]:
    """True records that are not of the experiment they are put into."""
    digits_toml = (ROOT / "experiments/digits.toml").read_text()
    recorded = load_records("digits")
    theirs = digits_toml.replace('scope = "digits"', 'scope = "ImageNet"').replace("embed_dim = 64", "embed_dim = 32")
    Path("digits.toml").write_text(theirs)
    found = belonging(load_experiment("digits.toml"), recorded)
    yield f"{len(found)} of another shape are shown as ImageNet's" if found else ""
    own = [r | {"trained_here": True, "dataset": r["dataset"] | {"fingerprint": "other"}} for r in recorded[:3]]
    found = belonging(load_experiment("digits"), [*recorded, *own])
    yield "" if found == recorded else f"{len(found) - len(recorded)} of a reader's own images are among the records"


# Files that lie about their size, by name: from a path and a good state dict.
BOMBS: dict[str, Callable] = {
    "deflated.pth": lambda path, state: save_deflated(path, state),
    "bytes_without_end.pth": lambda path, state: torch.save({"model": {"norm.bias": Endless()}}, path),
    "long_header.safetensors": lambda path, state: path.write_bytes(struct.pack("<Q", 2**33) + bytes(100)),
}
# What a file of a run may hold that no run writes.
NO_RUNS = {"a list": "[]", "half a file": '{"config": ', "no text": "\x00", "another program's": '{"model": 1}'}
TEXTS = ("<img src=x onerror=alert(1)>", "a | b `c` *d*", "\\frac{%s} & # $x", "$\\frac$ ends\nhere {seed} {0}")
NAMES = ("{seed}.toml", "x: y.toml", "a b'$(touch executed).toml")


class Endless:
    def __reduce__(self):
        return bytearray, (10**10,)


def save_deflated(path: Path, state: dict) -> None:
    torch.save(state | {"more": torch.zeros(2**26)}, "plain.pth")
    with zipfile.ZipFile("plain.pth") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))


def refused(action: Callable[[], object], name: str) -> str:
    """What went wrong where a file of this name is to be refused by it, with no more than 300 MB taken."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        action()
    except InputError as error:
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
        return "" if name in str(error) and taken < 300 else f"{name}: {taken:.0f} MB, {error}"
    except Exception as error:
        return f"{name}: {type(error).__name__}: {error}"
    return f"{name}: no error"


def put_everywhere(text: str) -> str:
    """What went wrong where a text is shown in a page, in Markdown, in TeX and in a figure."""
    table = pandas.DataFrame({text: [text, "plain"]})
    files = [Path("table.md"), Path("table.tex")]
    tables.save(table, *files, caption=text, source=text)
    page, markdown, tex = tables.display(table).to_html(), files[0].read_text(), files[1].read_text()
    figure, panel = plt.subplots()
    panel.set_title(escape.drawn(text))
    drawing.save(figure, Path("figure.svg"), source=text)
    plt.close(figure)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    problems = {
        "a tag in the page": "<img" in page,
        "a tag in Markdown": "<img" in markdown,
        "a further cell in Markdown": any(len(re.findall(r"(?<!\\)\|", row)) != 2 for row in rows),
        "a further row in Markdown": len(rows) != 4,
        "a command in TeX": bool(re.search(r"\\frac|(?<!\\)[$#&]", tex.partition("\n")[2])),
        "a comment that ends in TeX": not tex.partition("\n")[2].startswith("\\begin{table}"),
    }
    return "; ".join(problem for problem, there in problems.items() if there)


def hostile_files(count: int) -> Iterator[str]:
    model = from_config.create(digits(), 10)
    for name, forge in BOMBS.items():
        forge(Path(name), model.state_dict())
    for name in BOMBS:
        yield refused(lambda name=name: load_weights(model, Path(name)), name)
    for file, (kind, content) in itertools.product(("config.json", "training.json"), NO_RUNS.items()):
        run_dir = Path(f"{file} {kind}".replace("'", ""))
        run_dir.mkdir()
        good = {"config.json": digits().to_dict(), "training.json": {"run_id": "ff-seed0"}}
        for other in good:
            (run_dir / other).write_text(content if other == file else json.dumps(good[other]))
        yield refused(lambda run_dir=run_dir: write_record(run_dir, None, ""), file)
    for text in TEXTS:
        yield put_everywhere(text)
    for name in NAMES:
        Path(name).write_text((ROOT / "experiments/digits.toml").read_text())
        told = subprocess.run(
            [sys.executable, "-m", "ffvit", "status", name], capture_output=True, text=True, timeout=120
        )
        ended = told.returncode == 0 or told.returncode == 2 and name.partition(".")[0] in told.stderr
        fine = ended and "Traceback" not in told.stderr and not list(Path.cwd().rglob("executed"))
        yield "" if fine else f"{name}: exit code {told.returncode}, {told.stderr[-200:]}"


SIZES, RANKS, BATCHES = (1, 7, 97, 997), (1, 2, 3), (1, 5, 64)


def evaluation(count: int) -> Iterator[str]:
    def score(ranks: int) -> None:
        images = load_splits(digits(max_train_images=max(SIZES))).train
        for size, batch in itertools.product(SIZES, BATCHES):
            config = digits(num_processes=ranks, batch_size=batch * ranks)
            accelerator = create_accelerator(config, Path())
            torch.manual_seed(0)
            loader = eval_loader(images.select(range(size)), config, accelerator.process_index)
            found = evaluate(from_config.create(config, 10), loader, 10, accelerator.device, accelerator.reduce)
            facts = dict(size=size, ranks=ranks, batch=batch, images=found.images, loss=found.loss)
            facts |= dict(percent=[found.top1_percent, found.top5_percent], confusion=found.confusion.tolist())
            if accelerator.is_main_process:
                with open("scores.jsonl", "a") as file:
                    file.write(json.dumps(facts) + "\n")

    for ranks in RANKS:
        wait(fork(lambda ranks=ranks: in_ranks(ranks, lambda: score(ranks)), "log.txt"))
    scores = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    alone = {found["size"]: found for found in scores if (found["ranks"], found["batch"]) == (1, 64)}
    for found in scores:
        one = alone[found["size"]]
        fine = found["images"] == found["size"] and math.isclose(found["loss"], one["loss"], rel_tol=1e-6)
        yield "" if fine and all(found[name] == one[name] for name in ("percent", "confusion")) else str(found)


# The table


class Fault(NamedTuple):
    name: str
    how: str
    must_show: str
    count: int
    quick_count: int  # of the quick form; 0: left out
    tries: Callable[[int], Iterator[str]]  # of a count; works in a folder of its own


EXACT = (
    "killed after each of 10 random updates of 3 epochs and started again; the last run twice, in fresh interpreters",
    "bit for bit the uninterrupted run's: every update's images, rates and random state; final weights, average, "
    "optimiser, losses and random state",
)
STOP = (
    "sent to `ffvit train` while it trains, 2 times with 1 rank and 2 times with 2",
    "a checkpoint of the very update reached, exit code 75; the same command goes on from it and finishes",
)
GONE = "after 5 s no process of the run is left; after 10 s what started it has failed; its log says how to go on"
NAMED = "within 60 s it fails and names rank and cause; the last good checkpoint is whole"
# fmt: off
FAULTS = [
    Fault("SIGKILL, map-style, 1 rank", *EXACT, 10, 1, partial(killed_at_updates, streaming=False, ranks=1)),
    Fault("SIGKILL, map-style, 2 ranks", *EXACT, 10, 1, partial(killed_at_updates, streaming=False, ranks=2)),
    Fault("SIGKILL, streaming, 1 rank", *EXACT, 10, 1, partial(killed_at_updates, streaming=True, ranks=1)),
    Fault("SIGKILL, streaming, 2 ranks", *EXACT, 10, 1, partial(killed_at_updates, streaming=True, ranks=2)),
    Fault("SIGKILL while saving", "a process that saves one checkpoint after the other, killed after a random time",
          "a whole checkpoint, at most one interval old", 100, 10, killed_while_saving),
    Fault("Damaged checkpoint", "20 truncations and 20 flipped bits of each of its 5 files, the manifest included",
          "the file is named, and the checkpoint before it found", 200, 20, damaged),
    Fault("SIGTERM", *STOP, 4, 0, partial(stopped, number=signal.SIGTERM)),
    Fault("SIGUSR1", *STOP, 4, 0, partial(stopped, number=signal.SIGUSR1)),
    Fault("Kernel killed", "SIGKILL of the kernel while notebooks/02_train.ipynb trains", GONE, 2, 0,
          partial(notebook_killed, program="ipykernel_launcher")),
    Fault("Papermill killed", "SIGKILL of papermill while notebooks/02_train.ipynb trains", GONE, 2, 0,
          partial(notebook_killed, program="papermill")),
    Fault("Pipeline killed", "SIGKILL of workflow/run.py while a small experiment trains", GONE, 2, 0, pipeline_killed),
    Fault("One rank killed", "SIGKILL of rank 0 of 2, and of rank 1, 2 times each", GONE, 4, 0, rank_killed),
    Fault("Exception in one rank", "raised after update 14 in rank 0 of 2, and in rank 1", NAMED, 2, 0,
          partial(fails_in_one_rank, kind="raise", cause="broken on purpose")),
    Fault("NaN in one rank", "in the images of update 14 of rank 0 of 2, and of rank 1", NAMED, 2, 0,
          partial(fails_in_one_rank, kind="nan", cause="is nan")),
    Fault("Data worker killed", "SIGKILL after update 14, that of rank 0 of 2, and of rank 1", NAMED, 2, 0,
          partial(fails_in_one_rank, kind="kill data worker", cause="DataLoader worker.*(killed|exited)")),
    Fault("Disk full while saving", "2 ranks, of which no file may grow beyond 100 kB after update 14", NAMED, 2, 0,
          partial(fails_in_one_rank, kind="full disk", cause="cannot be written", ranks=(0,))),
    Fault("Uneven shards", "streaming; of 5 parquet files rank 0 owns 238 rows, rank 1 86; 160 an epoch for each",
          "30 updates of 3 epochs in both ranks, and the run finishes", 2, 0, uneven_shards),
    Fault("Two runs at once", f"20 pairs of runs of 2 ranks, started together while port {PORT} is taken",
          "both of every pair finish", 20, 0, pairs),
    Fault("Odd image files", f"{', '.join(ODD)}; in training, then in validation",
          "the right pixels, none listed as bad, and the run finishes", 2 * len(ODD), 0, odd_images),
    Fault("Bad image files", f"{', '.join(BAD)}; in training, then in validation; bad_images='refuse', then 'skip'",
          "refused by name; or skipped, and listed by index and name", 4 * len(BAD), 4, bad_images),
    Fault("Malicious files", f"as checkpoint: {', '.join(CHECKPOINTS)}; as dataset: {', '.join(DATASETS)}",
          "nothing in them is executed, and the error names the file", 14, 14, malicious),
    Fault("Wrong images", f"a dataset with {', '.join(WRONG_IMAGES)}; {', '.join(WRONG_FILES)}",
          "refused by name, within 300 MB", len(WRONG_IMAGES) + len(WRONG_FILES), 0, wrong_images),
    Fault("Weights that are no numbers", "nan, inf; as safetensors and as pth", "refused by file and key", 4, 4,
          weights_no_numbers),
    Fault("Wrong records", f"a record of digits: {', '.join(RECORDS)}", "refused by the name of its file",
          len(RECORDS), len(RECORDS), wrong_records),
    Fault("Records of other runs", "digits' records in an experiment file of that name for ImageNet at another shape; "
          "runs of a reader's own images among them", "neither is in a table", 2, 2, other_runs),
    Fault("Hostile files", f"weights: {', '.join(BOMBS)}; config.json and training.json that hold {', '.join(NO_RUNS)}; "
          f"{len(TEXTS)} labels that mean something to HTML, Markdown, TeX and matplotlib, in each; experiment files called "
          f"{', '.join(NAMES)}", "refused by name, within 300 MB; a text is shown as it is, a file's name is taken or refused",
          len(BOMBS) + 2 * len(NO_RUNS) + len(TEXTS) + len(NAMES), 0, hostile_files),
    Fault("Evaluation in parts", f"{SIZES} images, by {RANKS} ranks, in batches of {BATCHES}",
          "every image counts once; accuracy, confusion and loss are those of one rank", 36, 36, evaluation),
]
# fmt: on


def measure(fault: Fault, count: int, deadline: float) -> dict:
    """A row of the table. The fault is tried in a child, and in a folder of its own."""
    print(f"{fault.name}: ", end="", flush=True)
    began, folder = time.monotonic(), Path(tempfile.mkdtemp())

    def tries() -> None:
        os.chdir(folder)
        for problem in fault.tries(count):
            with open("seen.jsonl", "a") as file:
                file.write(json.dumps(problem) + "\n")

    code = wait(fork(tries, f"{folder}.txt"), max(1, deadline - began))
    file = folder / "seen.jsonl"
    seen = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    problems = [problem for problem in seen if problem]
    if code != 0 or len(seen) != count:
        problems.append("the 40 minutes are over" if code is None else f"it broke off: {last_line(f'{folder}.txt')}")
    shown = f"{seen.count('')} of {count}"
    if problems and len(seen) == seen.count("") >= count:
        shown += ", then it broke off"
    seconds = f"{time.monotonic() - began:.0f}"
    print("\n    ".join([f"{shown}, {seconds} s", *problems]), flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    texts = {"fault": fault.name, "how it is made": fault.how, "must show": fault.must_show}
    return texts | {"shown": shown, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="faults with these letters in their name; nothing is written")
    parser.add_argument("--quick", action="store_true", help="some faults, a few times each; nothing is written")
    options = parser.parse_args()
    chosen = [f for f in FAULTS if options.only.lower() in f.name.lower() and (f.quick_count or not options.quick)]
    deadline = time.monotonic() + BOUND_S
    with tempfile.TemporaryDirectory(prefix="ffvit-faults-", ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        tempfile.tempdir = folder
        os.environ |= {"TMPDIR": folder, "HF_DATASETS_CACHE": f"{folder}/huggingface", "XDG_CACHE_HOME": folder}
        datasets.config.HF_DATASETS_CACHE = Path(folder, "huggingface")
        datasets.disable_progress_bars()
        try:
            counts = [fault.quick_count if options.quick else fault.count for fault in chosen]
            rows = [measure(fault, count, deadline) for fault, count in zip(chosen, counts)]
        finally:
            kill([*psutil.Process().children(recursive=True), *marked(folder, "TMPDIR")])
    if not (options.only or options.quick):
        page.write("faults", "Faults, and what was seen", rows, NOTE)
    return 0 if rows and all(row["shown"] == f"{count} of {count}" for row, count in zip(rows, counts)) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        code = worker(json.loads(sys.argv[2]), sys.argv[5:])  # the third and fourth are ffvit worker
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # as ffvit worker does
    sys.exit(main())
