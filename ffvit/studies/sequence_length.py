"""Notebook 14: what does a block cost at more tokens? By formula, and measured: time and memory, forward and backward.

The report (arXiv:2105.02723, section 3.5) says that the feed-forward layer over patches is quadratic in the sequence length
when its hidden width is a multiple of it, as usual, and can be linear when that width is fixed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from scipy import stats

from ffvit.evidence.drawing import COLORS, DASHES, MARKERS
from ffvit.evidence.seed_statistics import LEVEL
from ffvit.studies.block_costs import REPEATS, Kind, Measurement, Shape, check_device, kept_mb, macs, peak_mb
from ffvit.system import provenance
from ffvit.system.errors import InputError

AS_PREDICTED = "as predicted"
FIT_FROM = 196  # tokens: with fewer, what starting an operation takes hides what it computes
FEWEST = 3  # lengths for a power with an interval
APART = 0.1  # powers that are predicted nearer to one another are not told apart
# What grows: by formula, and measured.
COSTS: dict[str, tuple[Callable[[Kind, int, Shape], float], Callable[[Measurement], float]]] = {
    "multiply-adds": (macs, lambda m: m.macs),
    "time, as multiply-adds": (macs, lambda m: m.seconds),
    "memory kept": (kept_mb, lambda m: m.kept_mb),
    "peak of memory": (peak_mb, lambda m: m.peak_mb),
}


def check(tokens: list, shape: Shape, device: str) -> None:
    """Raise InputError for what cannot be measured, or would decide no power, before anything is measured."""
    if wrong := [n for n in tokens if not isinstance(n, int) or n < 1]:
        raise InputError(f"tokens: give whole numbers from 1 on, got {wrong[0]!r}")
    _require_lengths(tokens)
    if min(shape) < 1 or shape.embed_dim % shape.num_heads:
        raise InputError(
            f"num_heads={shape.num_heads} does not divide embed_dim={shape.embed_dim}: heads share the features in "
            "equal parts, such as 192 among 3"
        )
    check_device(device)


def exponent(tokens: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """The power of the number of tokens with which values grow, from FIT_FROM on, and its 95 % interval.

    Raises InputError where there are fewer than FEWEST lengths to find it by.
    """
    _require_lengths(tokens)
    points = [(math.log(n), math.log(v)) for n, v in zip(tokens, values) if n >= FIT_FROM]
    fit = stats.linregress(*zip(*points))
    reach = stats.t.ppf((1 + LEVEL) / 2, len(points) - 2) * fit.stderr
    return float(fit.slope), float(fit.slope - reach), float(fit.slope + reach)


def powers(measured: list[Measurement], shape: Shape) -> pd.DataFrame:
    """Four rows a kind: with which power of the tokens its costs grow, by formula and measured."""
    by_kind = _by_kind(measured)
    predicted = {
        what: {kind: _power_of(formula, kind, mine, shape) for kind, mine in by_kind}
        for what, (formula, _) in COSTS.items()
    }
    rows = []
    for kind, mine in by_kind:
        for what, (_, value) in COSTS.items():
            power, low, high = exponent([m.num_tokens for m in mine], [value(m) for m in mine])
            rows.append(
                {
                    "Patches mixed by": kind.label,
                    "Grows": what,
                    "Predicted power of N": f"{predicted[what][kind]:.2f}",
                    "Measured": f"{power:.2f}",
                    "95 % interval": f"{low:.2f} to {high:.2f}",
                    "Found": _found(predicted[what][kind], power, low, high, [*predicted[what].values()]),
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
            "Kept (MB)": f"{m.kept_mb:,.2f}",
            "Peak by formula (MB)": f"{peak_mb(m.kind, m.num_tokens, shape):,.1f}",
            "Peak (MB)": f"{m.peak_mb:,.1f}",
        }
        for m in measured
    )


def summary(measured: list[Measurement], shape: Shape) -> str:
    """How many powers are as predicted, and which are not; then the longest sequence: costs as multiples of the fixed width's."""
    rows = powers(measured, shape).to_dict("records")
    others = [row for row in rows if row["Found"] != AS_PREDICTED]
    said = [f"{len(rows) - len(others)} of {len(rows)} powers are as predicted."]
    said += [
        f"{row['Patches mixed by']}, {row['Grows']}: {row['Found']} ({row['Measured']}, 95 % {row['95 % interval']}; predicted "
        f"{row['Predicted power of N']})."
        for row in others
    ]
    *wider, (fixed, mine) = _by_kind(measured)
    least = max(mine, key=lambda m: m.num_tokens)
    said.append(f"At {least.num_tokens:,} tokens, beside {fixed.label}:")
    for kind, theirs in wider:
        m = max(theirs, key=lambda m: m.num_tokens)
        said.append(
            f"{kind.label}: {m.macs / least.macs:.1f} times the multiply-adds, {m.seconds / least.seconds:.1f} times the "
            f"time, {m.kept_mb / least.kept_mb:.1f} times the memory kept, {m.peak_mb / least.peak_mb:.1f} times the peak"
        )
    return "\n".join(said)


def figure(measured: list[Measurement], shape: Shape) -> Figure:
    """Multiply-adds, time and memory against the number of tokens. Lines: by formula, of time from mark to mark."""
    drawn, axes = plt.subplots(2, 2, figsize=(9.6, 7.4), layout="constrained")
    for i, (kind, mine) in enumerate(_by_kind(measured)):
        tokens = [m.num_tokens for m in mine]
        shown = (
            ([macs(kind, n, shape) / 1e6 for n in tokens], [m.macs / 1e6 for m in mine]),
            ([1000 * m.seconds for m in mine], [1000 * m.seconds for m in mine]),
            ([kept_mb(kind, n, shape) for n in tokens], [m.kept_mb for m in mine]),
            ([peak_mb(kind, n, shape) for n in tokens], [m.peak_mb for m in mine]),
        )
        look: Any = dict(color=COLORS[i], marker=MARKERS[i], markersize=5, linestyle="none")
        for panel, (line, marks) in zip(axes.flat, shown):
            panel.plot(tokens, line, color=COLORS[i], linestyle=DASHES[i], lw=1.3)
            panel.plot(tokens, marks, **look)
        axes[0, 0].plot([], [], **look | dict(linestyle=DASHES[i]), label=kind.label)
    for panel, title, unit in zip(
        axes.flat,
        ("Multiply-adds, forward", "Time, forward and backward", "Memory kept for backward", "Peak, with gradients"),
        ("millions", "ms", "MB", "MB"),
    ):
        panel.set(xscale="log", yscale="log", xlabel="tokens N", ylabel=unit, title=title)
        panel.set_xticks(tokens, [f"{n:,}" for n in tokens], rotation=45)
        panel.minorticks_off()
        panel.grid(True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
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


def _power_of(formula: Callable, kind: Kind, mine: list[Measurement], shape: Shape) -> float:
    tokens = [m.num_tokens for m in mine]
    return exponent(tokens, [formula(kind, n, shape) for n in tokens])[0]


def _found(predicted: float, power: float, low: float, high: float, of_all: list[float]) -> str:
    """of_all: the power that is predicted of each kind."""
    if not low <= predicted <= high and abs(power - predicted) >= 0.005:
        return f"{'higher' if power > predicted else 'lower'} than predicted"
    others = [p for p in of_all if abs(p - predicted) > APART]
    return "undecided" if any(low <= p <= high for p in others) else AS_PREDICTED


def _require_lengths(tokens: Sequence[int]) -> None:
    if len({n for n in tokens if n >= FIT_FROM}) < FEWEST:
        raise InputError(f"tokens: a power takes {FEWEST} lengths of {FIT_FROM} tokens or more, got {list(tokens)}")


def _by_kind(measured: list[Measurement]) -> list[tuple[Kind, list[Measurement]]]:
    return [(kind, [m for m in measured if m.kind == kind]) for kind in dict.fromkeys(m.kind for m in measured)]
