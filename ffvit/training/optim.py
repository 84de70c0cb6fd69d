"""A recipe's optimiser, learning rate and loss, each piece from timm."""

from collections.abc import Collection
from typing import Any

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ffvit.settings.config import Config

FUSED = ("adam", "adamw", "sgd")  # those of PyTorch that update all weights in one go, on a GPU several times faster


def peak_lr(config: Config) -> float:
    """Linear in the global batch (DeiT's rule, arXiv:2012.12877, section 6)."""
    return config.base_lr * config.batch_size / 512


def lowest_lr(config: Config) -> tuple[float, float]:
    """Learning rates at the start of the warm-up and at the end of the cosine."""
    scale = config.batch_size / 512 if config.scale_all_lr else 1
    return config.warmup_lr * scale, config.min_lr * scale


def create_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Decays parameters of two dimensions and more, but none that the model names in no_weight_decay().

    With offset_lr_ratio, weights of deformable offsets are a third group, as in LIT's code (arXiv:2105.14217): they decay,
    at a rate of their own, while their biases go with all others. The schedule brings every group to the same min_lr.
    """
    fits = config.optimizer in FUSED and config.device != "cpu"
    fused: dict[str, Any] = {"fused": True} if fits and torch.cuda.is_available() else {}
    return create_optimizer_v2(parameter_groups(config, model), opt=config.optimizer, lr=peak_lr(config), **fused)


def parameter_groups(config: Config, model: nn.Module) -> list[dict]:
    """Without and with decay; and, where they have a rate of their own, the weights of deformable offsets."""
    spared: Collection[str] = getattr(model, "no_weight_decay", tuple)()
    groups = param_groups_weight_decay(model, config.weight_decay, no_weight_decay_list=spared)
    offsets = [p for name, p in model.named_parameters() if name.endswith("conv_offset.weight")]
    if not offsets or config.offset_lr_ratio == 1:
        return groups
    theirs = {id(p) for p in offsets}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in theirs]
    decay = groups[-1]["weight_decay"]
    return [*groups, {"params": offsets, "weight_decay": decay, "lr": peak_lr(config) * config.offset_lr_ratio}]


def create_scheduler(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Scheduler:
    """Linear from warmup_lr, then the cosine, which the warm-up does not shift, down to min_lr."""
    warmup_lr, min_lr = lowest_lr(config)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
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


def create_loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    """What mixes a batch and smooths its labels, None without mixup and cutmix, and the loss to go with it."""
    if config.mixup or config.cutmix:
        mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)
        return mix, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(config.label_smoothing)
