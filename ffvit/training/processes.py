"""What the processes of a run share besides gradients: buffers, and when to stop."""

import torch
import torch.distributed
from torch import nn


def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's buffers: batch norms keep means of what their own process saw."""
    if torch.distributed.is_initialized():
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def cpu_group() -> torch.distributed.ProcessGroup | None:
    """The processes of the run, to agree through the CPU: on the GPU that would wait for the work queued there."""
    return torch.distributed.new_group(backend="gloo") if torch.distributed.is_initialized() else None


def highest(number: int, group: torch.distributed.ProcessGroup | None) -> int:
    """The highest number that any process of the group gives."""
    if not group:
        return number
    shared = torch.tensor(number)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX, group=group)
    return int(shared)
