"""A run before its first update: every part of it, and what its record says of it."""

import datetime
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3, random_seed
from torch import nn

from ffvit.data.splits import Splits
from ffvit.models import cost, ff, from_config
from ffvit.settings.config import Config
from ffvit.settings.same_run import code_of
from ffvit.system import provenance
from ffvit.system.errors import InputError
from ffvit.system.files import sha256_of
from ffvit.tasks.task import task_of
from ffvit.training import memory, optim, processes
from ffvit.training.run import Run


def set_up(config: Config, run_dir: Path, accelerator: Accelerator, keep: bool = True) -> Run:
    """Every part of a run at its start. keep: whether anything will be written. Nothing is, here."""
    device = accelerator.device
    task = task_of(config)
    from_config.check(config)
    task.check()
    random_seed(config.seed)
    splits = task.load_splits()
    for remark in task.remarks(splits):
        accelerator.print(remark)
    num_classes = len(splits.classes)
    raw_model = from_config.create(config, num_classes)
    if config.initial_file:
        _start_from(raw_model, config)
    if device.type == "cpu" and config.mixed_precision == "bf16":
        from_config.use_plain_attention(raw_model)
    if keep and accelerator.is_main_process:
        memory.check_disk(run_dir, config, cost.count_parameters(raw_model))
    facts = _facts(config, splits, raw_model, device)
    parts = memory.accumulation_steps(config, task, num_classes, accelerator)
    batches = task.train_batches(splits, parts, accelerator.process_index, device)
    scored_alike = task_of(replace(config, accumulation_steps=parts))
    validation = scored_alike.eval_batches(splits, "validation", accelerator.process_index, device)
    if config.grad_checkpointing:
        cast(Any, raw_model).set_grad_checkpointing(True)  # timm's models have it
    ema = ModelEmaV3(raw_model, decay=config.ema_decay) if config.ema_decay else None
    if ema:
        ema.to(device)
    # Scores come from the raw model, as they do when the weights are evaluated later.
    compiled = torch.compile(raw_model) if config.compile else raw_model
    # Scheduler and loaders stay outside prepare(): accelerate would step the one once per process and shard the others
    # a second time.
    model, optimizer = accelerator.prepare(compiled, optim.create_optimizer(config, raw_model))
    return Run(
        config=config,
        task=task,
        run_dir=run_dir,
        accelerator=accelerator,
        num_classes=num_classes,
        batches=batches,
        validation=validation,
        accumulation_steps=parts,
        raw_model=raw_model,
        model=model,
        cpu_group=processes.cpu_group(),
        ema=ema,
        optimizer=optimizer,
        scheduler=optim.create_scheduler(config, optimizer, len(batches)),
        loss=task.create_loss(num_classes),
        facts=facts,
        loss_sum=torch.zeros((), device=device),
    )


def _start_from(model: nn.Module, config: Config) -> None:
    file = cast(Path, config.initial_file)
    if config.first_run and not file.is_file():
        raise InputError(
            f"{config.run_id} starts from the weights of {config.first_run}, and there are none at {os.path.relpath(file)}: "
            f"train that first, by ffvit train --experiment {config.experiment} --model {config.initial_weights} --seed {config.seed}"
        )
    from_config.start_from(model, file)


def _facts(config: Config, splits: Splits, model: nn.Module, device: torch.device) -> dict:
    """What the record says of a run besides its numbers, as it was at the start."""
    local = Path(config.dataset).expanduser().is_dir()
    of_a_file = config.initial_file and not config.first_run
    return {
        "run_id": config.run_id,
        "code": code_of(config.to_dict()),
        # A local path is its owner's business; the fingerprint says which images they were, the hash which weights.
        "config": config.to_dict()
        | ({"dataset": Path(config.dataset).resolve().name} if local else {})
        | ({"initial_weights": Path(config.initial_weights).name} if of_a_file else {}),
        "model": {
            "name": config.model,
            "parameters": cost.count_parameters(model),
            "macs": cost.count_macs(model, (config.in_chans, config.img_size, config.img_size)),
            **ff.cell(model),
        },
        **({"initial_weights_sha256": sha256_of(config.initial_file)} if config.initial_file else {}),
        "dataset": {
            "fingerprint": splits.fingerprint,
            "images": splits.sizes,
            "classes": len(splits.classes),
            "class_names": splits.classes,
        },
        **circumstances(config, device),
    }


def circumstances(config: Config, device: torch.device) -> dict:
    """When, where and with which code the run starts, or goes on."""
    return {
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device, config.num_processes),
        "versions": provenance.versions(),
        "git": provenance.git_state(),
    }
