"""Notebook 14: what one block costs at a number of tokens, by formula, and measured: time and memory, forward and backward."""

import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ffvit.models import cost
from ffvit.models.ff import Block
from ffvit.models.from_config import use_plain_attention
from ffvit.system.errors import InputError

REPEATS = 3  # of each time, of which the least counts: what else the machine does only adds
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
    peak_mb: float  # the most in the two, gradients of the weights included


def kinds(hidden_dim: int) -> list[Kind]:
    """The four to compare. hidden_dim: the fixed width. Raises InputError for none."""
    if hidden_dim < 1:
        raise InputError(f"hidden_dim={hidden_dim}: the fixed width takes at least 1 hidden unit, such as 384")
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


def peak_mb(kind: Kind, num_tokens: int, shape: Shape) -> float:
    """What a block holds at most in the two passes, beside its weights and its input.

    The largest of some moments of the backward pass, which goes through the features' branch first. At each there are
    what is still kept, gradients of tokens and hidden units, and those of all weights so far: they stay.
    """
    n, d, h = num_tokens, shape.embed_dim, _width(kind, num_tokens)
    kept = kept_mb(kind, n, shape) * MB / FLOAT
    moments = [
        kept + 4 * n * d + 4 * d * d,  # features, second matrix: all that was kept, and gradients of 4 hidden units
        kept - 4 * n * d + 8 * d * d,  # first matrix: instead of 10 N D, normed tokens and 5 N D of gradients
    ]
    if kind.patches == "ff":
        moments += [
            8 * d * d + h * n + 3 * h * d + 2 * n * d,  # patches, second matrix: hidden units and gradients
            8 * d * d + 2 * h * n + h * d + 3 * n * d,  # first matrix: the gradients of all weights are there
        ]
    else:
        moments.append(12 * d * d + 6 * n * d)  # queries, keys and values: the same
        if not kind.fused:  # softmax: of each head N^2 weights, their gradients, and those of the scores
            moments.append(9 * d * d + 3 * shape.num_heads * n * n + 7 * n * d)
    return max(moments) * FLOAT / MB


def check_device(device: str) -> None:
    """Raise InputError for a device that is not there, or cannot tell its memory."""
    if device not in ("cpu", "cuda"):
        raise InputError(f"device '{device}': memory is measured on cpu and cuda only; set device='cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda', but PyTorch finds no CUDA GPU: set device='cpu', or check nvidia-smi")


def measure(kind: Kind, num_tokens: int, shape: Shape, device: str = "cpu") -> Measurement:
    """Forward and backward of one image's tokens through one block. Raises InputError as check_device does."""
    check_device(device)
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


def _width(kind: Kind, num_tokens: int) -> int:
    return 4 * num_tokens if kind.hidden_dim is None else kind.hidden_dim


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
