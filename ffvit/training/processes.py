"""The processes of a run: checked as they start, and what they share besides gradients: sums, buffers, and when to stop."""

from pathlib import Path
from typing import cast

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import nn

from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.machine import LOADING_MB, require_room


def create_accelerator(config: Config, run_dir: Path) -> Accelerator:
    """What this process computes on and with whom. Raises InputError where the machine has not what the settings ask for."""
    require_room("num_workers", config.num_workers, 1, LOADING_MB)  # the other processes may be on other machines
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device='cuda', but PyTorch finds no CUDA GPU: set device='auto' or 'cpu', or check nvidia-smi"
        )
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device='mps', but PyTorch finds no Apple GPU: set device='auto' or 'cpu'")
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("mixed_precision='fp16' needs a CUDA GPU: set 'bf16' or 'no'")
    available = sorted(str(t) for t in get_available_trackers())
    if config.tracker and config.tracker not in available:
        cure = "install its package" if config.tracker in LOGGER_TYPE_TO_CLASS else "accelerate does not know it"
        raise InputError(f"tracker '{config.tracker}': {cure}; there are {available}")
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        cpu=config.device == "cpu",
        log_with=config.tracker or None,
        project_dir=run_dir,
    )
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"{accelerator.num_processes} processes were started, num_processes={config.num_processes}: give accelerate "
            "launch and ffvit worker the same number"
        )
    return accelerator


def total(value: float, accelerator: Accelerator) -> float:
    """The sum over all processes."""
    return accelerator.reduce(torch.tensor(value, device=accelerator.device), "sum").item()


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: batch norms keep means of what their own process saw."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def cpu_group() -> torch.distributed.ProcessGroup | None:
    """The processes of the run, to agree through the CPU: on the GPU that would wait for the work queued there."""
    if not torch.distributed.is_initialized():
        return None
    return cast(torch.distributed.ProcessGroup, torch.distributed.new_group(backend="gloo"))  # all are members


def highest(number: int, group: torch.distributed.ProcessGroup | None) -> int:
    """The highest number that any process of the group gives."""
    if not group:
        return number
    shared = torch.tensor(number)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=group)
    return int(shared)
