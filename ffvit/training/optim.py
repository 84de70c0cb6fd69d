"""A recipe's optimiser and learning rate, each piece from timm."""

from collections.abc import Collection
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ffvit.settings.config import Config

FUSED = ("adam", "adamw", "sgd")  # those of PyTorch that update all weights in one go, several times faster


def peak_lr(config: Config) -> float:
    """Linear in the global batch (DeiT's rule, arXiv:2012.12877, section 6)."""
    return config.base_lr * config.batch_size / 512


def lowest_lr(config: Config) -> tuple[float, float]:
    """Learning rates at the start of the warm-up and at the end of the cosine."""
    scale = config.batch_size / 512 if config.scale_all_lr else 1
    return config.warmup_lr * scale, config.min_lr * scale


def create_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Decays parameters of two dimensions and more, but none that the model names in no_weight_decay(); unless the setting
    `decays` says otherwise, as recipes of detection do.

    With offset_lr_ratio, weights of deformable offsets are a third group, as in LIT's code (arXiv:2105.14217): they decay,
    at a rate of their own, while their biases go with all others. The schedule brings every group to the same min_lr.
    """
    fused: dict[str, Any] = {"fused": True} if config.optimizer in FUSED else {}
    return create_optimizer_v2(parameter_groups(config, model), opt=config.optimizer, lr=peak_lr(config), **fused)


def parameter_groups(config: Config, model: nn.Module) -> list[dict]:
    """Without and with decay; and, where they have a rate of their own, the weights of deformable offsets."""
    spared: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    if config.decays == "matrices":
        groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=spared)
    else:
        groups = _groups_by_name(config, model)
    offsets = [p for name, p in model.named_parameters() if name.endswith("conv_offset.weight")]
    if not offsets or config.offset_lr_ratio == 1:
        return groups
    theirs = {id(p) for p in offsets}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    decay = groups[-1]["weight_decay"]
    return [*groups, {"params": offsets, "weight_decay": decay, "lr": peak_lr(config) * config.offset_lr_ratio}]


def _groups_by_name(config: Config, model: nn.Module) -> list[dict]:
    """Decay for all parameters, or for all but norms and tables of relative positions, as mmdetection's configurations say."""
    spared = ("norm", "relative_position_bias_table") if config.decays == "all but norms" else ()
    kinds: tuple[list, list] = ([], [])
    for name, parameter in model.named_parameters():
        kinds[not any(part in name for part in spared)].append(parameter)
    decays = (0.0, config.weight_decay)
    return [{"params": kind, "weight_decay": decay} for kind, decay in zip(kinds, decays) if kind]


def create_scheduler(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Scheduler:
    """Linear from warmup_lr, then as `schedule` says, which the warm-up does not shift.

    "cosine" and "poly", of power 0.9, go down to min_lr; "multistep" has a tenth of the rate after each of decay_epochs
    (timm's: from the last update of that epoch on).
    """
    warmup_lr, min_lr = lowest_lr(config)
    warmup_epochs = config.warmup_updates / updates_per_epoch if config.warmup_updates else config.warmup_epochs
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=config.schedule,
        num_epochs=config.epochs,
        decay_milestones=[*config.decay_epochs],
        decay_rate=0.9 if config.schedule == "poly" else 0.1,
        warmup_epochs=warmup_epochs,  # type: ignore[arg-type]  # of updates, a part of one
        warmup_lr=warmup_lr,
        min_lr=min_lr,
        cooldown_epochs=config.cooldown_epochs,
        step_on_epochs=config.schedule_per == "epoch",
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler


def set_rate(config: Config, scheduler: Scheduler, epoch: int, update: int) -> float:
    """Set the learning rates of an update, and return that of the first group. epoch, update: of the whole run, from 0."""
    if config.schedule_per == "epoch":
        scheduler.step(max(0, epoch - 1))  # DeiT's habit, see ffvit.settings.recipes.deit
    elif config.schedule_per == "late update":
        scheduler.step_update(max(0, update - 1))  # Swin's: after an update, with its index
    else:
        scheduler.step_update(update)
    return scheduler.optimizer.param_groups[0]["lr"]
