"""What this machine can take."""

import os

import psutil

from ffvit.system.errors import InputError

A_CORE = 8  # processes, at most: more of them only wait for one another
TRAINING_MB, LOADING_MB = 500, 100  # of memory, roughly the least that a process takes which trains, or decodes images


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
