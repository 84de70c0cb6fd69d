"""Notebook 14: what does a block cost at more tokens? By formula, and measured: time and memory, forward and backward.

The report (arXiv:2105.02723, section 3.5) says that the feed-forward layer over patches is quadratic in the sequence length
when its hidden width is a multiple of it, as usual, and can be linear when that width is fixed.
"""

import contextlib
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ffvit.evidence.drawing import COLORS, DASHES, MARKERS
from ffvit.evidence.seed_statistics import LEVEL
from ffvit.models import cost
from ffvit.models.ff import Block
from ffvit.models.from_config import use_plain_attention
from ffvit.system import provenance
from ffvit.system.errors import InputError

REPEATS = 3  # of each time, of which the least counts: what else the machine does only adds
FIT_FROM = 196  # tokens: with fewer, what starting an operation takes hides what it computes
FEWEST = 3  # lengths for a power with an interval
MB, FLOAT = 1e6, 4  # bytes


class Kind(NamedTuple):
    """What mixes the patches of a block; its features are mixed by a feed-forward layer of width 4 D."""

    label: str
    patches: str
    hidden_dim: int | None = None  # of a feed-forward layer; None: four times the tokens
    fused: bool = True  # attention in one kernel, or by two products and a softmax


class Shape(NamedTuple):
    """Of a block, whatever the number of tokens."""

    embed_dim: int
    num_heads: int


class Measurement(NamedTuple):
    """One kind of block at one length, for the tokens of one image in single precision."""

    kind: Kind
    num_tokens: int
    macs: int  # forward
    seconds: float  # forward and backward: on a CPU of one core's work, so that other processes hardly matter
    kept_mb: float  # between the two
    peak_mb: float  # in the two, gradients of the weights included


def kinds(hidden_dim: int) -> list[Kind]:
    """The four to compare. hidden_dim: the fixed width."""
    return [
        Kind("attention, step by step", "attention", fused=False),
        Kind("attention, one kernel", "attention"),
        Kind("feed-forward, width 4 N", "ff"),
        Kind(f"feed-forward, width {hidden_dim}", "ff", hidden_dim),
    ]


def macs(kind: Kind, num_tokens: int, shape: Shape) -> int:
    """Multiply-adds of a block, forward: over patches, and 8 N D^2 of the feed-forward layer over features."""
    n, d = num_tokens, shape.embed_dim
    over_patches = 4 * n * d * d + 2 * n * n * d if kind.patches == "attention" else 2 * n * _width(kind, n) * d
    return over_patches + 8 * n * d * d


def kept_mb(kind: Kind, num_tokens: int, shape: Shape) -> float:
    """What a block keeps for its backward pass.

    10 N D of the features' branch: its normed tokens, 4 hidden units before and after GELU, the sum. Over patches: normed
    tokens and sum, and for feed-forward H D hidden units before and after GELU; for attention queries, keys, values
    and output, and where it goes step by step also scaled queries, and of each head N^2 weights.
    """
    n, d = num_tokens, shape.embed_dim
    over_patches = 2 * n * d
    if kind.patches == "ff":
        over_patches += 2 * _width(kind, n) * d
    else:
        over_patches += 4 * n * d if kind.fused else 5 * n * d + shape.num_heads * n * n
    return (10 * n * d + over_patches) * FLOAT / MB


def measure(kind: Kind, num_tokens: int, shape: Shape, device: str = "cpu") -> Measurement:
    """Forward and backward of one image's tokens through one block. Raises InputError for a device that cannot tell its memory."""
    if torch.device(device).type not in ("cpu", "cuda"):
        raise InputError(f"device '{device}': memory is measured on cpu and cuda only")
    block = _block(kind, num_tokens, shape).to(device)
    x = torch.randn(1, num_tokens, shape.embed_dim, device=device, requires_grad=True)
    times = []
    with _one_thread():
        clock = time.process_time if device == "cpu" else time.perf_counter
        for _ in range(1 + REPEATS):
            _clear(block, x)
            began = clock()
            _both_ways(block, x)
            times.append(clock() - began)
    watched = _watched_on_cpu if device == "cpu" else _watched_on_gpu
    _clear(block, x)
    kept, _ = watched(lambda: block(x))
    _, peak = watched(lambda: _both_ways(block, x))
    counted = cost.count_macs(block, (num_tokens, shape.embed_dim))
    return Measurement(kind, num_tokens, counted, min(times[1:]), kept, peak)  # in the first, kernels are chosen


def exponent(tokens: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """The power of the number of tokens with which values grow, from FIT_FROM on, and its 95 % interval.

    Raises InputError where there are fewer than FEWEST lengths to find it by.
    """
    points = [(math.log(n), math.log(v)) for n, v in zip(tokens, values) if n >= FIT_FROM]
    if len(points) < FEWEST:
        raise InputError(f"tokens: a power takes {FEWEST} lengths of {FIT_FROM} tokens or more, got {list(tokens)}")
    fit = stats.linregress(*zip(*points))
    reach = stats.t.ppf((1 + LEVEL) / 2, len(points) - 2) * fit.stderr
    return float(fit.slope), float(fit.slope - reach), float(fit.slope + reach)


def powers(measured: list[Measurement], shape: Shape) -> pd.DataFrame:
    """Three rows a kind: with which power of the tokens its costs grow, by formula and measured."""
    rows = []
    for kind, mine in _by_kind(measured):
        tokens = [m.num_tokens for m in mine]
        by_macs = exponent(tokens, [macs(kind, n, shape) for n in tokens])[0]
        by_kept = exponent(tokens, [kept_mb(kind, n, shape) for n in tokens])[0]
        for what, predicted, values in (
            ("multiply-adds", by_macs, [float(m.macs) for m in mine]),
            ("time, as multiply-adds", by_macs, [m.seconds for m in mine]),
            ("memory kept", by_kept, [m.kept_mb for m in mine]),
        ):
            power, low, high = exponent(tokens, values)
            rows.append(
                {
                    "Patches mixed by": kind.label,
                    "Grows": what,
                    "Predicted power of N": f"{predicted:.2f}",
                    "Measured": f"{power:.2f}",
                    "95 % interval": f"{low:.2f} to {high:.2f}",
                    "Found": _found(predicted, power, low, high),
                }
            )
    return pd.DataFrame(rows)


def at_lengths(measured: list[Measurement], shape: Shape) -> pd.DataFrame:
    """A row a kind and length, with the formulas' values beside what was counted and measured."""
    return pd.DataFrame(
        {
            "Patches mixed by": m.kind.label,
            "Tokens": f"{m.num_tokens:,}",
            "Multiply-adds by formula (M)": f"{macs(m.kind, m.num_tokens, shape) / 1e6:,.1f}",
            "Counted (M)": f"{m.macs / 1e6:,.1f}",
            "Time (ms)": f"{1000 * m.seconds:,.1f}",
            "Memory kept by formula (MB)": f"{kept_mb(m.kind, m.num_tokens, shape):,.2f}",
            "Measured (MB)": f"{m.kept_mb:,.2f}",
            "Peak with gradients (MB)": f"{m.peak_mb:,.1f}",
        }
        for m in measured
    )


def summary(measured: list[Measurement]) -> str:
    """What the longest sequence says: each kind's costs as multiples of the fixed width's."""
    *others, (fixed, mine) = _by_kind(measured)
    least = mine[-1]
    told = []
    for kind, theirs in others:
        m = theirs[-1]
        told.append(
            f"{kind.label}: {m.macs / least.macs:.1f} times the multiply-adds, {m.seconds / least.seconds:.1f} times the "
            f"time, {m.kept_mb / least.kept_mb:.1f} times the memory kept, {m.peak_mb / least.peak_mb:.1f} times the peak"
        )
    return f"At {least.num_tokens:,} tokens, beside {fixed.label}:\n" + "\n".join(told)


def figure(measured: list[Measurement], shape: Shape) -> Figure:
    """Multiply-adds, time and memory against the number of tokens. Lines: by formula, of time from mark to mark."""
    drawn, panels = plt.subplots(1, 3, figsize=(10.5, 4.2), layout="constrained")
    for i, (kind, mine) in enumerate(_by_kind(measured)):
        tokens = [m.num_tokens for m in mine]
        shown = (
            ([macs(kind, n, shape) / 1e6 for n in tokens], [m.macs / 1e6 for m in mine]),
            ([1000 * m.seconds for m in mine], [1000 * m.seconds for m in mine]),
            ([kept_mb(kind, n, shape) for n in tokens], [m.kept_mb for m in mine]),
        )
        look: Any = dict(color=COLORS[i], marker=MARKERS[i], markersize=5, linestyle="none")
        for panel, (line, marks) in zip(panels, shown):
            panel.plot(tokens, line, color=COLORS[i], linestyle=DASHES[i], lw=1.3)
            panel.plot(tokens, marks, **look)
        panels[0].plot([], [], **look | dict(linestyle=DASHES[i]), label=kind.label)
    for panel, title, unit in zip(
        panels,
        ("Multiply-adds, forward", "Time, forward and backward", "Memory kept for backward"),
        ("millions", "ms", "MB"),
    ):
        panel.set(xscale="log", yscale="log", xlabel="tokens N", ylabel=unit, title=title)
        panel.set_xticks(tokens, [f"{n:,}" for n in tokens], rotation=45)
        panel.minorticks_off()
        panel.grid(True)
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return drawn


def source(shape: Shape, device: str) -> str:
    """Where the numbers come from."""
    hardware, versions = provenance.hardware(torch.device(device), 1), provenance.versions()
    where = hardware["gpu"] or hardware["cpu"]
    return (
        f"Counted and measured on one block of {shape.embed_dim} features and {shape.num_heads} heads, one image, fp32, on "
        f"{where}, torch {versions['torch']}. Time: {'of one core, ' if device == 'cpu' else ''}the least of {REPEATS}. "
        "Memory: what was allocated for tensors beside the weights and the input."
    )


def _width(kind: Kind, num_tokens: int) -> int:
    return kind.hidden_dim or 4 * num_tokens


def _found(predicted: float, power: float, low: float, high: float) -> str:
    if low <= predicted <= high or abs(power - predicted) < 0.005:
        return "as predicted"
    return f"{'higher' if power > predicted else 'lower'} than predicted"


def _by_kind(measured: list[Measurement]) -> list[tuple[Kind, list[Measurement]]]:
    return [(kind, [m for m in measured if m.kind == kind]) for kind in dict.fromkeys(m.kind for m in measured)]


def _block(kind: Kind, num_tokens: int, shape: Shape) -> Block:
    block = Block(
        kind.patches,
        "ff",
        patches_first=True,
        patch_hidden_dim=kind.hidden_dim,
        patch_norm="tokens",
        drop_path=0.0,
        num_tokens=num_tokens,
        mlp_ratio=4.0,
        drop_rate=0.0,
        **shape._asdict(),
    )
    if not kind.fused:
        use_plain_attention(block)
    return block


def _clear(block: Block, x: Tensor) -> None:
    """Take the gradients away: their memory is to be allocated while it is watched."""
    block.zero_grad()
    x.grad = None


def _both_ways(block: Block, x: Tensor) -> None:
    block(x).sum().backward()
    if x.device.type != "cpu":
        torch.accelerator.synchronize()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for one another would be counted as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _watched_on_gpu(run: Callable[[], Tensor | None]) -> tuple[float, float]:
    """MB that what is returned holds in the end, and at most in between, beside what was there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = run()
    found = torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    del kept
    return found[0] / MB, found[1] / MB


def _watched_on_cpu(run: Callable[[], Tensor | None]) -> tuple[float, float]:
    """The same, by torch's record of what it allocated and freed for tensors.

    The process's own size would not do: what it has freed may stay with it.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of itself on stderr
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            kept = run()
        recorded.export_chrome_trace(str(file))
        events = [e for e in json.loads(file.read_bytes())["traceEvents"] if e.get("name") == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    allocated = np.array(list(itertools.accumulate(changes)))
    del kept
    return allocated[-1] / MB, allocated.max() / MB
