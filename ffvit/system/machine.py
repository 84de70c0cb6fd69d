"""What this machine can take, and what its processor and its C library can do."""

import ctypes
import os
from pathlib import Path

import psutil

from ffvit.system.errors import InputError

A_CORE = 8  # processes, at most: more of them only wait for one another
TRAINING_MB, LOADING_MB = 500, 100  # of memory, roughly the least that a process takes which trains, or decodes images
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES, MOST_OF_OLDER = 2**30, 2**25  # older glibcs refuse more than the second as M_MMAP_THRESHOLD


def require_room(setting: str, given: int, processes_each: int, mb: int) -> None:
    """Raise InputError, with the number that fits, where this machine cannot hold the processes that a setting asks for.

    Each of the `given` stands for so many processes, which take so much memory (MB).
    """
    cores, memory_mb = os.cpu_count() or 1, psutil.virtual_memory().total / 1e6
    fit = max(1, int(min(A_CORE * cores, memory_mb // mb) // processes_each))
    if given > fit:
        raise InputError(
            f"{setting}={given} are too many processes for {cores} cores and {memory_mb / 1000:,.0f} GB of memory: "
            f"{setting}={fit} fit"
        )


def threads_each(processes: int) -> int:
    """Threads for each of so many processes that share this machine's cores."""
    return max(1, (os.cpu_count() or 1) // processes)


def keep_memory() -> bool:
    """Have this process, and those it forks, keep the memory that they free for what they allot next.

    Left alone, glibc gives large blocks back to the system and takes them again page by page: on a CPU, the memory of every
    update. Returns whether glibc took it; another C library stays as it is, and one that the environment tells what to keep.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not os.environ.keys().isdisjoint(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")):
        return False
    mapped = mallopt(M_MMAP_THRESHOLD, KEPT_BYTES) or mallopt(M_MMAP_THRESHOLD, MOST_OF_OLDER)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def multiplies_bf16() -> bool:
    """Whether this processor has instructions of its own for products of bf16: AVX-512's, or AMX."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:  # no Linux
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)
