"""What a run says while it goes: speed, waiting, memory, time left."""

import contextlib
import datetime
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import torch

from ffvit.settings.config import Config
from ffvit.settings.headline import HEADLINES

LINE_EVERY_S = 10


@dataclass
class Meter:
    """Times the updates that this process makes in one epoch."""

    spent_s: float = 0.0  # by the same epoch, before an interruption
    spent_cpu_s: float = 0.0  # the same, of processor time, by all processes
    began: float = field(default_factory=time.monotonic)
    began_cpu: float = field(default_factory=lambda: processor_s())
    last_line: float = field(default_factory=time.monotonic)
    wait_s: float = 0.0  # for data. Work queued on a GPU goes on meanwhile, so this is the most it can have cost
    updates: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def epoch_s(self) -> float:
        return self.spent_s + self.seconds

    @property
    def epoch_cpu_s(self) -> float:
        """Of processor time. Unlike the clock's, it does not grow with what else the machine does."""
        return self.spent_cpu_s + processor_s() - self.began_cpu

    @property
    def wait_percent(self) -> float:
        return 100 * self.wait_s / max(self.seconds, 1e-9)

    @property
    def update_s(self) -> float:
        return self.seconds / max(self.updates, 1)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.wait_s += time.monotonic() - began

    def line_is_due(self) -> bool:
        due = time.monotonic() - self.last_line > LINE_EVERY_S
        if due:
            self.last_line = time.monotonic()
        return due


def step_line(config: Config, epoch: int, done: int, per_epoch: int, loss: float, meter: Meter, memory_mb: int) -> str:
    left = ((config.total_epochs - epoch) * per_epoch - done) * meter.update_s
    return (
        f"epoch {epoch + 1}/{config.total_epochs}  step {done}/{per_epoch}  loss {loss:.3f}  "
        f"{config.batch_size / meter.update_s:,.0f} images/s  data wait {meter.wait_percent:.0f} %  "
        f"{memory_mb:,} MB  {duration(left)} left"
    )


def epoch_line(config: Config, history: list[dict], memory_mb: int) -> str:
    now, headline = history[-1], HEADLINES[config.task]
    left = (config.total_epochs - len(history)) * now["seconds"]
    loss = f"validation loss {now['validation_loss']:.3f}  " if "validation_loss" in now else ""
    return (
        f"epoch {now['epoch']}/{config.total_epochs}  loss {now['train_loss']:.3f}  {loss}"
        f"{headline.label.removesuffix(' (%)')} {now[f'validation_{headline.name}']:.2f} %  lr {now['lr']:.1e}  "
        f"{now['images_per_s']:,.0f} images/s  data wait {now['data_wait_percent']:.0f} %  {memory_mb:,} MB  "
        f"{duration(left)} left"
    )


def processor_s() -> float:
    """Seconds that this process and those it started (loaders, compilers) have computed so far, on all cores."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile, and counts among its parent's children
            times = process.cpu_times()
            total += times.user + times.system
            total += getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0.0)  # Linux, macOS
    return total


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(min(seconds, 1e13))))


def peak_memory_mb(device: torch.device) -> int:
    """Of the GPU if there is one, of this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
