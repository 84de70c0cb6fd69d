"""A recipe's optimiser, learning rate and loss, each piece from timm."""

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from ffvit.config import Config

FUSED = ("adam", "adamw", "sgd")  # those of PyTorch that update all weights in one go, on a GPU several times faster


def create_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Decays parameters of two dimensions and more, but none that the model names in no_weight_decay()."""
    # Not of a model in parts: with fused=True, torch 2.15 does not bring back the state of such a one as it was.
    fits = config.optimizer in FUSED and config.device != "cpu" and config.parallel == "ddp"
    fused = {"fused": True} if fits and torch.cuda.is_available() else {}
    return create_optimizer_v2(model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, **fused)


def create_scheduler(config: Config, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> Scheduler:
    """Linear from warmup_lr, then the cosine, which the warm-up does not shift, down to min_lr."""
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        cooldown_epochs=config.cooldown_epochs,
        step_on_epochs=config.schedule_per == "epoch",
        updates_per_epoch=updates_per_epoch,
    )
    return scheduler


def set_rate(config: Config, scheduler: Scheduler, epoch: int, update: int) -> float:
    """Set the learning rate of an update, and return it. epoch, update: of the whole run, from 0."""
    if config.schedule_per == "epoch":
        scheduler.step(max(0, epoch - 1))  # DeiT's habit, see ffvit.recipes.deit
    else:
        scheduler.step_update(update)
    return scheduler.optimizer.param_groups[0]["lr"]


def create_loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    """What mixes a batch and smooths its labels, None without mixup and cutmix, and the loss to go with it."""
    if config.mixup or config.cutmix:
        mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)
        return mix, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(config.label_smoothing)
