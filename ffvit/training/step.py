"""One update of a run: batch, loss, gradient, optimiser. Nothing random is stored: see ffvit.training.train."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import send_to_device

from ffvit.data.loader import Batch
from ffvit.training import optim, progress
from ffvit.training.run import Run


def make_update(run: Run, batches: Iterator[Batch], meter: progress.Meter) -> float:
    """One step of the optimiser, over config.batch_size images of all processes. Returns its learning rate."""
    config, accelerator, parts = run.config, run.accelerator, run.accumulation_steps
    lr = optim.set_rate(config, run.scheduler, run.epoch, run.update)
    for part in range(parts):
        with meter.waiting():
            images, target, bad = next(batches)
        run.bad_images["train"] += bad
        images, target = send_to_device((images, target), accelerator.device, non_blocking=True)
        _reseed(accelerator.device, config.seed, run.update, part, accelerator.process_index)
        last = part == parts - 1
        with contextlib.nullcontext() if last else accelerator.no_sync(run.model):
            with accelerator.autocast():
                loss = run.loss(run.model, Batch(images, target, bad)) / parts
            accelerator.backward(loss)
        run.loss_sum += loss.detach().float()  # read only when a line is due: reading waits for the GPU
    if config.clip_grad:
        accelerator.clip_grad_norm_(run.model.parameters(), config.clip_grad)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.ema:
        run.ema.update(run.raw_model)
    run.done += 1
    meter.updates += 1
    return lr


def _reseed(device: torch.device, *key: int) -> None:
    """Make the random numbers that follow a function of the key alone, so that none need be stored to go on."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes ten times as long on a machine without a GPU
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
