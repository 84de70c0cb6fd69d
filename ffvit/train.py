"""Train one model: `accelerate launch -m ffvit.train --experiment digits --model ff`, on a laptop or many GPUs.

The run's folder receives config.json at the start; history.json, the weights (last, best, ema) and the training
state after every epoch, each written atomically; and training.json last of all: where it is missing, the run is not
finished, and the same command goes on after the last whole epoch. `python -m ffvit.record <folder>` then scores the
test split and writes the record.

Random numbers are drawn anew from (seed, epoch, process) at the start of every epoch, so an epoch is the same
whether the run came to it in one go or after an interruption.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import resource
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from filelock import FileLock, Timeout
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from ffvit import checkpoint, data, models, provenance
from ffvit.config import Config, InputError, config_from_dict, load_experiment, parse_setting
from ffvit.evaluate import evaluate

LOG_EVERY_S = 10
FREE_SETTINGS = {"device", "num_workers", "label"}  # may differ when a run goes on: they change no result


class TrainingError(RuntimeError):
    """Training cannot go on. The message says what happened, what is kept, and what to try."""


def train(config: Config, run_dir: Path) -> None:
    """Run, or go on with, one training run. Raises InputError and TrainingError."""
    accelerator = _accelerator(config)
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".lock", timeout=0)  # freed by the system when the process ends, however it ends
    try:
        with lock if accelerator.is_main_process else contextlib.nullcontext():
            _train(config, run_dir, accelerator)
    except Timeout:
        raise InputError(
            f"{run_dir} is being trained by another process: wait for it, or choose another folder"
        ) from None


def _train(config: Config, run_dir: Path, accelerator: Accelerator) -> None:
    state_file, finished_file = run_dir / "state.safetensors", run_dir / "training.json"
    device, rank = accelerator.device, accelerator.process_index
    say = accelerator.print
    if _already_finished(config, run_dir):
        return say(f"{run_dir} is finished; delete it to train again")

    models.check(config)
    set_seed(config.seed)
    splits = data.load_splits(config)
    model = models.create(config, len(splits.classes))
    parameters = models.count_parameters(model)
    _check_disk(run_dir, parameters, config)
    if accelerator.is_main_process:
        checkpoint.write_atomically(run_dir / "config.json", json.dumps(config.to_dict(), indent=1))
    facts = _facts(config, splits, model, device)

    loader, sampler = data.train_loader(splits, config, rank)
    validation = data.eval_loader(splits.validation, config, rank)
    optimizer = create_optimizer_v2(model, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay)
    # Scheduler and loaders stay outside prepare(): accelerate would step the one once per process and shard the others
    # a second time.
    ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay else None
    if ema:
        ema.to(device)
    raw_model = model
    model, optimizer = accelerator.prepare(model, optimizer)
    saved = {"model": raw_model} | ({"ema": ema.module} if ema else {})
    history: list[dict] = []
    if state_file.exists():
        progress = checkpoint.load_training_state(state_file, saved, optimizer)
        history = progress["history"]
        facts = progress["facts"] | {"resumed": [*progress["facts"].get("resumed", []), _circumstances(config, device)]}
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(progress["scaler"])
        say(f"going on after epoch {len(history)} of {config.total_epochs}, from {state_file}")
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        cooldown_epochs=config.cooldown_epochs,
        step_on_epochs=config.schedule_per == "epoch",
        updates_per_epoch=len(loader),
    )
    mix, criterion = _loss(config, len(splits.classes))
    say(
        f"{config.label} ({config.model}): {parameters:,} parameters, {len(splits.train):,} images, {len(loader)} updates of "
        f"{config.batch_size} images per epoch, {config.total_epochs} epochs, {config.num_processes} x {device.type}"
    )

    for epoch in range(len(history), config.total_epochs):
        set_seed(int(np.random.SeedSequence([config.seed, epoch, rank]).generate_state(1)[0]))
        sampler.set_epoch(epoch)
        began = last_log = time.monotonic()
        loss_sum = torch.zeros((), device=device)
        model.train()
        for step, (images, target) in enumerate(loader):
            update = epoch * len(loader) + step
            scheduler.step(epoch) if config.schedule_per == "epoch" else scheduler.step_update(update)
            images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
            if mix:
                images, target = mix(images, target)
            with accelerator.autocast():
                loss = criterion(model(images), target)
            accelerator.backward(loss)
            if config.clip_grad:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            if ema:
                ema.update(raw_model, step=update)
            loss_sum += loss.detach().float()  # read only when a line is due: reading waits for the GPU
            if time.monotonic() - last_log > LOG_EVERY_S:
                last_log = time.monotonic()
                _require_finite(loss_sum.item(), "training loss", epoch, run_dir)
                say(_step_line(config, epoch, step + 1, len(loader), loss_sum.item() / (step + 1), last_log - began))
        train_loss = accelerator.reduce(loss_sum, "mean").item() / len(loader)
        _require_finite(train_loss, "training loss", epoch, run_dir)
        train_s = time.monotonic() - began
        # The raw model: DDP's forward would wait for ranks that have no batch left.
        score = evaluate(
            raw_model, validation, len(splits.classes), device, partial(accelerator.reduce, reduction="sum")
        )
        _require_finite(score.loss, "validation loss", epoch, run_dir)
        history.append(
            {
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "validation_loss": score.loss,
                "validation_top1_percent": score.top1_percent,
                "validation_top5_percent": score.top5_percent,
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_s": len(loader) * config.batch_size / train_s,
                "seconds": time.monotonic() - began,
            }
        )
        say(_epoch_line(config, history))
        if accelerator.is_main_process:
            progress = {
                "history": history,
                "facts": facts,
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
            }
            _save(run_dir, saved, optimizer, progress, last=epoch + 1 == config.total_epochs)

    if accelerator.is_main_process:
        facts |= {
            "history": history,
            "duration_s": sum(e["seconds"] for e in history),
            "peak_memory_mb": _peak_memory_mb(device),
        }
        checkpoint.write_atomically(finished_file, json.dumps(facts, indent=1))
        state_file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    say(f"finished. Score the test split and write the record: python -m ffvit.record {run_dir}")
    accelerator.end_training()


def _accelerator(config: Config) -> Accelerator:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device='cuda', but PyTorch finds no CUDA GPU: set device='auto' or 'cpu', or check nvidia-smi"
        )
    if config.device == "mps" and not torch.backends.mps.is_available():
        raise InputError("device='mps', but PyTorch finds no Apple GPU: set device='auto' or 'cpu'")
    if config.mixed_precision == "fp16" and (config.device == "cpu" or not torch.cuda.is_available()):
        raise InputError("mixed_precision='fp16' needs a CUDA GPU: set 'bf16' or 'no'")
    accelerator = Accelerator(mixed_precision=config.mixed_precision, cpu=config.device == "cpu")
    if accelerator.num_processes != config.num_processes:
        raise InputError(
            f"{accelerator.num_processes} processes were started, num_processes={config.num_processes}: give accelerate "
            "launch and ffvit.train the same number"
        )
    return accelerator


def _already_finished(config: Config, run_dir: Path) -> bool:
    """Whether the folder holds this very run, finished. Raises InputError where it holds another one."""
    if (run_dir / "config.json").exists() and any(
        (run_dir / f).exists() for f in ("state.safetensors", "training.json")
    ):
        there = json.loads((run_dir / "config.json").read_text())
        asked = config.to_dict()
        differ = [k for k in asked if there.get(k) != asked[k] and k not in FREE_SETTINGS]
        if differ:
            shown = ", ".join(f"{k} is {there.get(k)!r}, asked {asked[k]!r}" for k in differ[:3])
            raise InputError(
                f"{run_dir} holds a run with other settings ({shown}): choose another folder, or delete it"
            )
    return (run_dir / "training.json").exists()


def _check_disk(run_dir: Path, parameters: int, config: Config) -> None:
    """Weights (last, best, ema) and the state (model, two moments, ema), and the state once more while it is replaced."""
    copies = 2 + 2 * 3 + (3 if config.ema_decay else 0)
    needed = 4 * parameters * copies
    if (free := shutil.disk_usage(run_dir).free) < needed:
        raise InputError(f"{run_dir}: checkpoints need {needed / 1e6:,.0f} MB, {free / 1e6:,.0f} MB are free")


def _facts(config: Config, splits: data.Splits, model: nn.Module, device: torch.device) -> dict:
    """What the record says of a run besides its numbers, as it was at the start."""
    local = Path(config.dataset).expanduser().is_dir()
    return {
        "run_id": config.run_id,
        # A local folder's path is its owner's business; the fingerprint says which images they were.
        "config": config.to_dict() | ({"dataset": Path(config.dataset).resolve().name} if local else {}),
        "model": {
            "name": config.model,
            "parameters": models.count_parameters(model),
            "macs": models.count_macs(model, (config.in_chans, config.img_size, config.img_size)),
            **models.cell(model),
        },
        "dataset": {"fingerprint": splits.fingerprint, "images": splits.sizes, "classes": len(splits.classes)},
        **_circumstances(config, device),
    }


def _circumstances(config: Config, device: torch.device) -> dict:
    """When, where and with which code the run starts, or goes on."""
    return {
        "started_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device, config.num_processes),
        "versions": provenance.versions(),
        "git": provenance.git_state(),
    }


def _loss(config: Config, num_classes: int) -> tuple[Mixup | None, nn.Module]:
    if config.mixup or config.cutmix:
        mix = Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=num_classes)
        return mix, SoftTargetCrossEntropy()
    return None, LabelSmoothingCrossEntropy(config.label_smoothing)


def _save(run_dir: Path, saved: dict[str, nn.Module], optimizer, progress: dict, last: bool) -> None:
    history = progress["history"]
    if history[-1] is max(history, key=lambda e: e["validation_top1_percent"]):
        checkpoint.save_weights(run_dir / "best.safetensors", saved["model"])
    checkpoint.write_atomically(run_dir / "history.json", json.dumps(history, indent=1))
    if last:
        checkpoint.save_weights(run_dir / "last.safetensors", saved["model"])
        if "ema" in saved:
            checkpoint.save_weights(run_dir / "ema.safetensors", saved["ema"])
    else:
        checkpoint.save_training_state(run_dir / "state.safetensors", saved, optimizer, progress)


def _require_finite(value: float, what: str, epoch: int, run_dir: Path) -> None:
    if not math.isfinite(value):
        kept = f"the state after epoch {epoch} is kept in {run_dir}" if epoch else "there is no whole epoch to keep"
        raise TrainingError(
            f"{what} is {value} in epoch {epoch + 1}; {kept}. Try a lower base_lr, more warmup_epochs, "
            "clip_grad=1, or mixed_precision='no'"
        )


def _step_line(config: Config, epoch: int, step: int, steps: int, loss: float, seconds: float) -> str:
    left = (config.total_epochs - epoch - step / steps) * seconds * steps / step
    return (
        f"epoch {epoch + 1}/{config.total_epochs}  step {step}/{steps}  loss {loss:.3f}  "
        f"{step * config.batch_size / seconds:,.0f} images/s  {_duration(left)} left"
    )


def _epoch_line(config: Config, history: list[dict]) -> str:
    now = history[-1]
    left = (config.total_epochs - len(history)) * now["seconds"]
    return (
        f"epoch {now['epoch']}/{config.total_epochs}  loss {now['train_loss']:.3f}  validation loss "
        f"{now['validation_loss']:.3f}  top-1 {now['validation_top1_percent']:.2f} %  lr {now['lr']:.1e}  "
        f"{now['images_per_s']:,.0f} images/s  {_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def _peak_memory_mb(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def _end_with(parent: int) -> None:
    """End this process soon after `parent` is gone: a killed notebook kernel leaves its children behind."""

    def watch():
        while True:
            time.sleep(1)
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="accelerate launch -m ffvit.train", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--experiment", help="a name in experiments/, or the path of a .toml file")
    what.add_argument("--config", type=Path, help="the config.json of a run")
    parser.add_argument("--model", help="a model of the experiment, or any name timm knows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, help="default: runs/<experiment>/<model>-seed<seed>")
    parser.add_argument("--parent", type=int, help="end when this process ends")
    parser.add_argument("settings", nargs="*", metavar="name=value", help="settings that win over the experiment's")
    options = parser.parse_args(arguments)
    if options.experiment and not options.model:
        parser.error("--experiment needs --model")
    if options.parent:
        _end_with(options.parent)
    try:
        settings = dict(parse_setting(s) for s in options.settings)
        if fixed := {"experiment", "model", "seed"} & set(settings):
            raise InputError(
                f"give {', '.join('--' + name for name in sorted(fixed))}, not name=value, for the choice of a run"
            )
        if options.config:
            config = config_from_dict(json.loads(options.config.read_text()) | settings)
        else:
            config = load_experiment(options.experiment).config(options.model, options.seed, **settings)
        train(config, Path(os.path.relpath(options.run_dir or config.run_dir)))
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
