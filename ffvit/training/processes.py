"""What several processes of a run share: a model in parts (FSDP), and when to stop.

FSDP is torch's own fully_shard, block by block: accelerate's plugin turns into DDP on CPUs without a word.
"""

from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from ffvit.models import weights

WHOLE = StateDictOptions(full_state_dict=True)


def shard(model: nn.Module) -> nn.Module:
    """Split weights, gradients and the state of the optimiser, to be made after this, among the processes."""
    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def state_dict(model: nn.Module) -> dict[str, Tensor]:
    """All of a model, also of one of which each process holds a part. All processes call this."""
    return get_model_state_dict(model, options=WHOLE) if isinstance(model, FSDPModule) else model.state_dict()


def optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    if isinstance(model, FSDPModule):
        return get_optimizer_state_dict(model, optimizer, options=WHOLE)
    return optimizer.state_dict()


def load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """The inverse of state_dict. path: where the state comes from, for the message if it does not fit."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, state, options=WHOLE)
    else:
        weights.load_strictly(model, state, path)


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    if isinstance(model, FSDPModule):
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE)
    else:
        optimizer.load_state_dict(state)


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
