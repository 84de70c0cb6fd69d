"""Notebook 14: what does a block cost at more tokens? By formula, and measured: time and memory, forward and backward.

The report (arXiv:2105.02723, section 3.5) says that the feed-forward layer over patches is quadratic in the sequence length
when its hidden width is a multiple of it, as usual, and can be linear when that width is fixed.
"""

import math
import multiprocessing
import resource
import statistics
import sys
import time
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from ffvit.evidence.drawing import COLORS, DASHES, MARKERS
from ffvit.evidence.statistics import LEVEL
from ffvit.models import cost
from ffvit.models.build import use_plain_attention
from ffvit.models.ff import Block

REPEATS = 5  # of each time, of which the median counts
FIT_FROM = 196  # tokens: with fewer, what starting an operation takes hides what it computes


class Kind(NamedTuple):
    """What mixes the patches of a block."""

    label: str
    patches: str
    hidden_dim: int | None = None  # of a feed-forward layer; None: four times the tokens
    fused: bool = True  # attention in one kernel, or by two products and a softmax


class Measurement(NamedTuple):
    """One kind of block at one length."""

    kind: Kind
    num_tokens: int
    macs: int  # of one image, forward
    seconds: float  # forward and backward
    peak_mb: float  # beside the weights


def kinds(hidden_dim: int) -> list[Kind]:
    """The four to compare. hidden_dim: the fixed width."""
    return [
        Kind("attention, step by step", "attention", fused=False),
        Kind("attention, one kernel", "attention"),
        Kind("feed-forward, width 4 N", "ff"),
        Kind(f"feed-forward, width {hidden_dim}", "ff", hidden_dim),
    ]


def measure(kind: Kind, num_tokens: int, embed_dim: int, num_heads: int, device: str = "cpu") -> Measurement:
    """Forward and backward of one image's tokens through one block, in fp32."""
    block = _block(kind, num_tokens, embed_dim, num_heads).to(device)
    x = torch.randn(1, num_tokens, embed_dim, device=device, requires_grad=True)
    block(x).sum().backward()  # kernels are chosen, memory is allotted
    times = []
    for _ in range(REPEATS):
        _settle(device)
        began = time.perf_counter()
        block(x).sum().backward()
        _settle(device)
        times.append(time.perf_counter() - began)
    peak_mb = (
        _peak_on_gpu_mb(block, x) if device != "cpu" else _peak_of_a_process_mb(kind, num_tokens, embed_dim, num_heads)
    )
    macs = cost.count_macs(block, (num_tokens, embed_dim))
    return Measurement(kind, num_tokens, macs, statistics.median(times), peak_mb)


def formula(kind: Kind, num_tokens: int, embed_dim: int) -> int:
    """Multiply-adds of a block: over patches, and 8 N D^2 of the feed-forward layer over features."""
    n, d = num_tokens, embed_dim
    over_patches = (
        4 * n * d * d + 2 * n * n * d if kind.patches == "attention" else 2 * n * (kind.hidden_dim or 4 * n) * d
    )
    return over_patches + 8 * n * d * d


def exponent(tokens: list[int], values: list[float]) -> tuple[float, float, float]:
    """The power of the number of tokens with which values grow, from FIT_FROM on, and its 95 % interval."""
    points = [(math.log(n), math.log(v)) for n, v in zip(tokens, values) if n >= FIT_FROM]
    fit = stats.linregress(*zip(*points))
    reach = stats.t.ppf((1 + LEVEL) / 2, len(points) - 2) * fit.stderr
    return float(fit.slope), float(fit.slope - reach), float(fit.slope + reach)


def table(measured: list[Measurement], embed_dim: int) -> pd.DataFrame:
    """A row a kind: the powers of the number of tokens, by formula and measured."""
    rows = []
    for kind in dict.fromkeys(m.kind for m in measured):
        mine = [m for m in measured if m.kind == kind]
        tokens = [m.num_tokens for m in mine]
        predicted = [formula(kind, n, embed_dim) for n in tokens]
        assert predicted == [m.macs for m in mine], f"{kind.label}: the formula does not count what the block does"
        last = mine[-1]
        rows.append(
            {
                "Patches mixed by": kind.label,
                "Multiply-adds grow as N to the": f"{exponent(tokens, predicted)[0]:.2f}",
                "Time grows as N to the": _interval(exponent(tokens, [m.seconds for m in mine])),
                "Memory grows as N to the": _interval(exponent(tokens, [m.peak_mb for m in mine])),
                f"At {last.num_tokens:,} tokens (ms)": f"{1000 * last.seconds:,.0f}",
                f"At {last.num_tokens:,} tokens (MB)": f"{last.peak_mb:,.0f}",
            }
        )
    return pd.DataFrame(rows)


def figure(measured: list[Measurement], embed_dim: int) -> Figure:
    """Multiply-adds, time and memory against the number of tokens; dashed: by formula, through the longest."""
    drawn, panels = plt.subplots(1, 3, figsize=(10.5, 3.9), layout="constrained")
    what = (("multiply-adds", [m.macs for m in measured]), ("ms", [1000 * m.seconds for m in measured]))
    for panel, (unit, values) in zip(panels, (*what, ("MB", [m.peak_mb for m in measured]))):
        for i, kind in enumerate(dict.fromkeys(m.kind for m in measured)):
            points = [(m.num_tokens, v) for m, v in zip(measured, values) if m.kind == kind]
            tokens, mine = map(np.array, zip(*points))
            look = dict(color=COLORS[i], marker=MARKERS[i], markersize=4, linestyle=DASHES[i], lw=1.4)
            panel.plot(tokens, mine, label=kind.label, **look)
        panel.set(xscale="log", yscale="log", xlabel="tokens N", ylabel=unit)
        panel.set_xticks(tokens, [f"{n:,}" for n in tokens], rotation=45)
        panel.minorticks_off()
        panel.grid(True)
    panels[0].set_title("Multiply-adds, forward")
    panels[1].set_title("Time, forward and backward")
    panels[2].set_title("Memory beside the weights")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return drawn


def _interval(found: tuple[float, float, float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*found)


def _block(kind: Kind, num_tokens: int, embed_dim: int, num_heads: int) -> Block:
    shape = dict(num_tokens=num_tokens, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=4.0, drop_rate=0.0)
    block = Block(
        kind.patches, "ff", True, patch_hidden_dim=kind.hidden_dim, patch_norm="tokens", drop_path=0.0, **shape
    )
    if not kind.fused:
        use_plain_attention(block)
    return block


def _settle(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _peak_on_gpu_mb(block: Block, x: torch.Tensor) -> float:
    block.zero_grad()
    x.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    block(x).sum().backward()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _peak_of_a_process_mb(*given) -> float:
    """In a process of its own: what a process has freed may stay with it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_here_mb, given)


def _peak_here_mb(kind: Kind, num_tokens: int, embed_dim: int, num_heads: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    small = _block(kind, 4, embed_dim, num_heads)
    small(torch.randn(1, 4, embed_dim)).sum().backward()  # libraries are loaded
    block, x = _block(kind, num_tokens, embed_dim, num_heads), torch.randn(1, num_tokens, embed_dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block(x).sum().backward()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 1e6
