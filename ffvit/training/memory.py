"""What a run takes of memory and disk, and how a batch that does not fit is cut into parts that do."""

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from timm.utils import ModelEmaV3

from ffvit.models import from_config
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.tasks.task import Task
from ffvit.training import checkpoint
from ffvit.training.optim import create_optimizer


def accumulation_steps(config: Config, task: Task, num_classes: int, accelerator: Accelerator) -> int:
    """What the settings say; for 0 the fewest parts of a batch that fit in memory, tried on a model of the same shape.

    Raises MemoryError where not even the smallest part fits.
    """
    if config.accumulation_steps:
        return config.accumulation_steps
    share = config.batch_size // config.num_processes
    for parts in _ways_to_divide(config):
        fits = torch.tensor(float(_fits(task, num_classes, share // parts, accelerator)), device=accelerator.device)
        if accelerator.reduce(fits, "mean").item() == 1:  # in every process
            accelerator.print(f"accumulation_steps is {parts}: {share // parts} images at a time fit in memory")
            return parts
    raise MemoryError(advice(config))


def is_exhausted(error: RuntimeError) -> bool:
    """Whether an error of PyTorch says that memory has run out."""
    return should_reduce_batch_size(error)


def advice(config: Config) -> str:
    """What to do where memory has run out, without changing the recipe."""
    now = max(1, config.accumulation_steps)
    share = config.batch_size // config.num_processes
    cures = "grad_checkpointing=true and mixed_precision='bf16' need less memory"
    more = next((parts for parts in _ways_to_divide(config) if parts > now), None)
    if not more or not config.accumulation_steps:
        return f"out of memory, with the smallest part of a batch too; {cures}"
    return (
        f"out of memory with {share // now} images at a time in each of {config.num_processes} processes. Set "
        f"accumulation_steps={more}: {share // more} images at a time and still {config.batch_size} an update, at the "
        "same learning rate, so the recipe stays the same, but for batch norms, of which LIT's deformable mergings have "
        f"some; accumulation_steps=0 finds the number by itself. {cures}"
    )


def disk_mb(config: Config, parameters: int) -> float:
    """Weights (last, best, ema), and the checkpoints kept and the one being written (model, two moments, ema)."""
    ema = bool(config.ema_decay)
    return 4 * parameters * (2 + ema + (checkpoint.KEEP + 1) * (3 + ema)) / 1e6


def check_disk(run_dir: Path, config: Config, parameters: int) -> None:
    needed, free = disk_mb(config, parameters), shutil.disk_usage(run_dir).free / 1e6
    if free < needed:
        raise InputError(f"{run_dir}: checkpoints need {needed:,.0f} MB, {free:,.0f} MB are free")


def _ways_to_divide(config: Config) -> list[int]:
    """Into how many equal parts a process can cut its share of a batch; even ones where mixup pairs images."""
    share, pair = config.batch_size // config.num_processes, 2 if config.mixup or config.cutmix else 1
    return [parts for parts in range(1, share + 1) if share % (parts * pair) == 0]


def _fits(task: Task, num_classes: int, count: int, accelerator: Accelerator) -> bool:
    """Whether an update of `count` images fits in memory, beside all else that a run holds there."""
    try:
        _try_update(task, num_classes, count, accelerator)
        return True
    except RuntimeError as error:
        if not is_exhausted(error):
            raise
        return False
    finally:
        clear_device_cache(garbage_collection=True)


def _try_update(task: Task, num_classes: int, count: int, accelerator: Accelerator) -> None:
    config, device = task.config, accelerator.device
    model = from_config.create(config, num_classes).to(device).train()
    if config.grad_checkpointing:
        cast(Any, model).set_grad_checkpointing(True)  # timm's models have it
    averaged = ModelEmaV3(model).to(device) if config.ema_decay else None
    optimizer = create_optimizer(config, model)
    with accelerator.autocast():
        loss = task.create_loss(num_classes)(model, task.probe(count, device))
    loss.backward()
    optimizer.step()
    del averaged  # held until here for the memory it takes
