"""Training: it learns, stops and goes on exactly, and bad input costs nothing."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from ffvit.commands.arguments import read_run
from ffvit.data.batches import eval_loader
from ffvit.data.splits import load_splits
from ffvit.launching.launch import _own_gpus, launch
from ffvit.models import build, weights
from ffvit.settings.experiment import load_experiment
from ffvit.system import lifetime
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.lifetime import STOPPED
from ffvit.training import checkpoint, memory, run, start
from ffvit.training.evaluate import evaluate
from ffvit.training.manifest import find_state
from ffvit.training.optim import peak_lr
from ffvit.training.run import train


def digits(model="ff", **settings):
    return load_experiment("digits").config(
        model,
        **{
            "epochs": 2,
            "warmup_epochs": 0,
            "device": "cpu",
            "augment": "image",
            "interpolation": "bicubic",
            **settings,
        },
    )


def lit(model="lit_ti", depths=(1, 1, 2, 1), **settings):
    shape = {"embed_dims": [8, 16, 16, 16], "depths": list(depths), "num_heads": [1, 1, 2, 2]}
    small = {"epochs": 2, "warmup_epochs": 0, "device": "cpu", "max_train_images": 256, "model_args": shape}
    config = load_experiment("digits-lit").config("all", **{**small, **settings})
    return dataclasses.replace(config, model=model)


# What LIT-S is trained with, unlike LIT-Ti.
SWIN = dict(model="lit_s", schedule_per="late update", scale_all_lr=True, clip_grad=5.0)


def history(run_dir):
    return json.loads((run_dir / "training.json").read_text())["history"]


def test_one_epoch_on_digits_learns(tmp_path):
    train(digits(epochs=1), tmp_path)
    assert history(tmp_path)[0]["validation_top1_percent"] > 20  # chance is 10


def test_finished_run_leaves_weights_and_facts_and_no_state(tmp_path):
    config = digits(epochs=1, max_train_images=128, ema_decay=0.9)
    train(config, tmp_path)
    assert {
        "config.json",
        "history.json",
        "training.json",
        "last.safetensors",
        "best.safetensors",
        "ema.safetensors",
    } == {p.name for p in tmp_path.iterdir() if not p.name.startswith(".")}
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["model"]["parameters"] > 0 and facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["dataset"]["images"]["train"] == 128


@pytest.mark.parametrize(
    "make, way",
    [(digits, {}), (digits, dict(augment="batch", interpolation="bilinear")), (lit, {}), (lit, SWIN)],
    ids=["image", "batch", "lit_ti", "lit_s"],
)
def test_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, make, way):
    usual = dict(epochs=3, max_train_images=256, mixup=0.8, drop_path_rate=0.1, ema_decay=0.9, schedule_per="epoch")
    config = make(**{**usual, **way}, checkpoint_every=2)  # of the four updates of an epoch
    train(config, tmp_path / "whole")

    save = checkpoint.save_state
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt))[0])
        for _ in range(4):
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "pieces")
    train(config, tmp_path / "pieces")

    for name in ("last.safetensors", "ema.safetensors"):
        whole, pieces = load_file(tmp_path / "whole" / name), load_file(tmp_path / "pieces" / name)
        assert all(torch.equal(whole[k], pieces[k]) for k in whole)
    assert [e["train_loss"] for e in history(tmp_path / "whole")] == [
        e["train_loss"] for e in history(tmp_path / "pieces")
    ]


def test_run_that_left_out_checkpoints_goes_on_from_an_older_one_to_the_same_weights(tmp_path, monkeypatch):
    config = digits(epochs=3, max_train_images=128, checkpoint_seconds=3600.0)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "finish", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "pieces")
    assert [path.name for path in (tmp_path / "pieces" / "checkpoints").iterdir()] == ["00000002"]  # after epoch 1
    train(config, tmp_path / "pieces")
    whole, pieces = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "pieces"))
    assert all(torch.equal(whole[k], pieces[k]) for k in whole)


def test_finished_run_is_not_trained_again(tmp_path, capsys):
    config = digits(epochs=1, max_train_images=64)
    train(config, tmp_path)
    before = (tmp_path / "last.safetensors").stat().st_mtime_ns
    train(config, tmp_path)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == before


def test_folder_of_another_run_is_left_alone(tmp_path):
    train(digits(epochs=1, max_train_images=64), tmp_path)
    with pytest.raises(InputError, match=r"other settings \(seed is 0, asked 1"):
        train(digits(epochs=1, max_train_images=64, seed=1), tmp_path)


def test_nan_stops_the_run_and_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    evaluate, calls = run.evaluate, []

    def poisoned(model, *arguments):
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).data.fill_(float("nan"))
        return evaluate(model, *arguments)

    monkeypatch.setattr(run, "evaluate", poisoned)
    with pytest.raises(TrainingError, match="validation loss is nan in epoch 2, by update 2; the last good checkpoint"):
        train(digits(epochs=3, max_train_images=64), tmp_path)
    states, _, _ = checkpoint.load_state(find_state(tmp_path / "checkpoints")[0])
    assert all(torch.isfinite(t).all() for t in states["model"].values())
    assert not (tmp_path / "training.json").exists()


def test_nan_in_the_training_loss_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="is (nan|inf) in epoch"):
        train(digits(max_train_images=256, base_lr=1e12), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no CUDA GPU: set device='auto'"):
        train(digits(device="cuda"), tmp_path)


def test_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="checkpoints need"):
        train(digits(), tmp_path)


def test_wrong_number_of_processes_is_an_error(tmp_path):
    with pytest.raises(InputError, match="1 processes were started, num_processes=2"):
        train(digits(num_processes=2), tmp_path)


def test_failed_training_tells_its_error_and_how_to_go_on(tmp_path):
    with pytest.raises(TrainingError, match="error: .*no such folder") as failure:
        launch(digits(dataset="./nowhere"), tmp_path, on_line=lambda line: None)
    assert re.search(r"-m ffvit train --config \S+request.json --run-dir", str(failure.value))
    assert "no such folder" in (tmp_path / "log.txt").read_text()


def started(run_dir, *more):
    command = [
        sys.executable,
        "-m",
        "ffvit",
        "worker",
        "--experiment",
        "digits",
        "--model",
        "ff",
        "--run-dir",
        str(run_dir),
    ]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.machine
@pytest.mark.parametrize("wait", [0.5, 12], ids=["while_importing", "while_training"])
def test_training_ends_when_the_process_that_started_it_is_gone(tmp_path, wait):
    parent = subprocess.Popen(["sleep", "600"])
    command = [lifetime.__file__, str(parent.pid), "ffvit", "worker", "--experiment", "digits", "--model", "ff"]
    child = subprocess.Popen([sys.executable, *command, "--run-dir", str(tmp_path), "epochs=10000"])
    time.sleep(wait)
    parent.send_signal(signal.SIGKILL)  # and nobody collects it
    assert child.wait(timeout=5) != 0
    parent.wait()


@pytest.mark.machine
def test_killed_run_goes_on_when_started_again(tmp_path):
    first = started(tmp_path, "epochs=3")
    while not find_state(tmp_path / "checkpoints")[0]:
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.kill()
    first.wait()
    output = started(tmp_path, "epochs=3").communicate(timeout=120)[0]
    assert "going on after update" in output and "finished" in output
    assert [e["epoch"] for e in history(tmp_path)] == [1, 2, 3]


def test_run_in_progress_is_not_trained_by_a_second_process(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="being trained by another process"):
        train(digits(), tmp_path)


def test_runs_started_side_by_side_take_different_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, third = {}, {}, {}
    gpu, cpu = digits(device="auto"), digits(device="cpu")
    own = _own_gpus
    with own(gpu, first), own(gpu, second), own(gpu, third), own(cpu, {}):
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        assert third == {}  # none is left: it shares, as accelerate would choose


def test_runs_keep_to_the_gpus_a_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    first, second = {"CUDA_VISIBLE_DEVICES": "5,7"}, {"CUDA_VISIBLE_DEVICES": "5,7"}
    with _own_gpus(digits(device="auto"), first), _own_gpus(digits(device="auto"), second):
        assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["5", "7"]


def test_more_processes_than_gpus_are_refused_with_what_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    eight = load_experiment("imagenet-lit").config("lit_ti")
    cure = "needs as many GPUs, found 2: set num_processes=2; accumulation_steps=4"
    with pytest.raises(InputError, match=cure), _own_gpus(eight, {}):
        pass
    with _own_gpus(dataclasses.replace(eight, device="cpu"), {}):
        pass


def test_interrupted_cell_leaves_no_training_behind(tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(digits(epochs=10000), tmp_path, on_line=interrupt)
    with FileLock(tmp_path / ".lock", timeout=10):  # nobody trains it any more
        assert not (tmp_path / "training.json").exists()


def test_resumed_run_keeps_where_it_began(tmp_path, monkeypatch):
    save = checkpoint.save_state
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt))[0])
        with pytest.raises(KeyboardInterrupt):
            train(digits(max_train_images=64), tmp_path)
    monkeypatch.setattr(start.provenance, "git_state", lambda: {"commit": "later", "dirty": True})
    train(digits(max_train_images=64), tmp_path)
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["git"]["commit"] != "later" and [r["git"]["commit"] for r in facts["resumed"]] == ["later"]


def test_what_is_unknown_is_told_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(start, "load_splits", None)
    in_batches = dict(augment="batch", interpolation="bilinear", in_chans=3, mean=[0.5] * 3, std=[0.5] * 3)
    for settings, message in (
        ({"model": "ff_tinny_patch16_224"}, "unknown to timm"),
        ({"optimizer": "adamww"}, "unknown to timm"),
        (in_batches | {"auto_augment": "original"}, "auto_augment 'original'"),
    ):
        with pytest.raises(InputError, match=message):
            train(dataclasses.replace(digits(), **settings), tmp_path)


def quiet(line):
    pass


def test_lit_trains_in_half_precision_too(tmp_path):
    config = lit(epochs=1, depths=[1, 1, 1, 1])
    train(config, tmp_path / "single")
    launch(dataclasses.replace(config, mixed_precision="bf16"), tmp_path / "half", on_line=quiet)
    single, half = history(tmp_path / "single")[0], history(tmp_path / "half")[0]
    assert half["train_loss"] == pytest.approx(single["train_loss"], rel=1e-2)
    assert half["train_loss"] != single["train_loss"]


@pytest.mark.machine
@pytest.mark.parametrize("options", [{"grad_checkpointing": True}, {"compile": True}])
def test_options_of_memory_and_speed_change_no_result_of_lit(tmp_path, options):
    if "compile" in options and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    config = lit("lit_s", epochs=1, depths=[1, 1, 1, 1])
    train(config, tmp_path / "plain")
    train(dataclasses.replace(config, **options), tmp_path / "option")
    plain, option = history(tmp_path / "plain")[0], history(tmp_path / "option")[0]
    for name in ("train_loss", "validation_loss"):
        assert option[name] == pytest.approx(plain[name], rel=1e-4)


@pytest.mark.parametrize("options", [{"accumulation_steps": 4}, {"grad_checkpointing": True}, {"compile": True}])
def test_options_of_memory_and_speed_change_no_result_beyond_rounding(tmp_path, options):
    if "compile" in options and not shutil.which("g++"):
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    config = digits(epochs=1, max_train_images=320, model_args=dict(depth=1, embed_dim=16), ema_decay=0.9)
    train(config, tmp_path / "plain")
    train(dataclasses.replace(config, **options), tmp_path / "option")
    plain, option = history(tmp_path / "plain")[0], history(tmp_path / "option")[0]
    for name in ("train_loss", "validation_loss"):
        assert option[name] == pytest.approx(plain[name], rel=1e-5)


@pytest.mark.machine
def test_two_processes_see_every_loss_of_one_over_fifty_updates(tmp_path):
    settings = dict(epochs=50, max_train_images=64, max_eval_images=10)  # one update an epoch, so each has its loss
    launch(digits(**settings), tmp_path / "one", on_line=quiet)
    launch(digits(**settings, num_processes=2), tmp_path / "two", on_line=quiet)
    for one, two in zip(history(tmp_path / "one"), history(tmp_path / "two"), strict=True):
        assert two["lr"] == one["lr"]
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert len(history(tmp_path / "two")) == 50


@pytest.mark.machine
def test_two_processes_with_batch_norms_go_on_after_a_stop_to_the_same_weights(tmp_path):
    config = lit(num_processes=2, ema_decay=0.9)
    launch(config, tmp_path / "whole", on_line=quiet)

    def stop_once(line):
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped by"):
        launch(config, tmp_path / "pieces", on_line=stop_once, pass_signals=True)
    launch(config, tmp_path / "pieces", on_line=quiet)
    for name in ("last.safetensors", "ema.safetensors"):
        whole, pieces = (load_file(tmp_path / folder / name) for folder in ("whole", "pieces"))
        assert all(torch.allclose(whole[k], pieces[k], atol=1e-5) for k in whole)
    assert json.loads((tmp_path / "pieces" / "training.json").read_text())["resumed"]


@pytest.mark.machine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_cluster_that_asks_for_its_machine_gets_it_and_the_run_goes_on_later(tmp_path, number):
    first = started(tmp_path, "max_train_images=640", "num_workers=1", "epochs=400")
    while not find_state(tmp_path / "checkpoints")[0]:
        time.sleep(0.05)
    first.send_signal(number)
    output = first.communicate(timeout=20)[0]
    assert first.returncode == STOPPED == 75 and f"stopped by {number.name}" in output
    path, damaged = find_state(tmp_path / "checkpoints")
    assert f"after update {int(path.name)}" in output and not damaged


@pytest.mark.machine
def test_lit_is_scored_by_the_statistics_that_are_saved_though_each_process_has_its_own(tmp_path):
    config = lit(num_processes=2)
    launch(config, tmp_path, on_line=quiet)
    model = build.create(config, 10)
    weights.load_weights(model, tmp_path / "last.safetensors")
    alone = dataclasses.replace(config, num_processes=1)
    score = evaluate(model, eval_loader(load_splits(alone).validation, alone), 10)
    assert history(tmp_path)[-1]["validation_loss"] == pytest.approx(score.loss, rel=1e-5)


def test_offsets_of_lit_learn_at_a_rate_of_their_own(tmp_path):
    config = lit(epochs=3)
    train(config, tmp_path)
    state = load_file(tmp_path / "last.safetensors")
    moved = {
        kind: [v.abs().max() for k, v in state.items() if f"conv_offset.{kind}" in k] for kind in ("weight", "bias")
    }
    # AdamW moves a weight by about the rate an update, and here are 12.
    assert len(moved["weight"]) == 3 and all(0 < m <= 12 * peak_lr(config) / 100 for m in moved["weight"])
    assert max(moved["bias"]) > 12 * peak_lr(config) / 100


@pytest.mark.machine
def test_a_run_may_go_on_with_another_number_of_processes(tmp_path):
    config = digits(epochs=3, max_train_images=320, drop_path_rate=0.0)
    train(config, tmp_path / "whole")

    def stop_once(line):
        if line.startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        two = dataclasses.replace(config, num_processes=2)
        launch(two, tmp_path / "pieces", on_line=stop_once, pass_signals=True)
    launch(config, tmp_path / "pieces", on_line=quiet)
    for whole, pieces in zip(history(tmp_path / "whole"), history(tmp_path / "pieces"), strict=True):
        assert pieces["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-4)


def test_dry_run_says_what_a_run_costs_and_leaves_nothing(tmp_path, capsys):
    train(digits(epochs=1000), tmp_path / "run", dry_run=True)
    told = capsys.readouterr().out
    assert re.search(
        r"estimate: 20,000 updates of \d+ ms and 1000 validations of .* process-hours, until 20\d\d-", told
    )
    assert not (tmp_path / "run").exists()


def out_of_memory_above(count, monkeypatch):
    create = build.create

    def creating(config, num_classes):
        model = create(config, num_classes)
        forward = model.forward

        def limited(images):
            if images.device.type != "meta" and len(images) > count:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(images)

        model.forward = limited
        return model

    monkeypatch.setattr(build, "create", creating)


def test_out_of_memory_names_the_batch_to_try_and_keeps_the_recipe(tmp_path, monkeypatch):
    out_of_memory_above(16, monkeypatch)
    with pytest.raises(TrainingError, match="64 images at a time.*accumulation_steps=2: 32 images.*still 64 an update"):
        train(digits(epochs=1, max_train_images=128), tmp_path)


def test_accumulation_steps_0_finds_the_largest_part_that_fits(tmp_path, monkeypatch, capsys):
    out_of_memory_above(16, monkeypatch)
    train(digits(epochs=1, max_train_images=128, accumulation_steps=0), tmp_path)
    assert "accumulation_steps is 4: 16 images at a time fit" in capsys.readouterr().out


def test_nothing_fits_is_told_with_what_else_helps(tmp_path, monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(TrainingError, match="smallest part of a batch too; grad_checkpointing=true"):
        train(digits(epochs=1, max_train_images=128, accumulation_steps=0), tmp_path)


def test_tensorboard_shows_the_curves(tmp_path):
    train(digits(epochs=1, max_train_images=128, tracker="tensorboard"), tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name, cure", [("aim", "install its package"), ("tensorbord", "accelerate does not know it")])
def test_a_tracker_that_is_not_there_is_told(tmp_path, name, cure):
    with pytest.raises(InputError, match=cure):
        train(digits(tracker=name), tmp_path)


def test_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, monkeypatch, capsys):
    save = checkpoint.save_state
    config = digits(max_train_images=256)

    def save_twice(*arguments):
        save(*arguments)
        if arguments[1] == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_state", save_twice)
    config = dataclasses.replace(config, checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path)
    monkeypatch.undo()
    newest = tmp_path / "checkpoints" / "00000004" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    train(config, tmp_path)
    told = capsys.readouterr().out
    assert re.search(r"damaged, and passed over: .*00000004.*model.safetensors", told)
    assert "going on after update 2 of epoch 1/2" in told


def test_full_disk_while_saving_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    save = checkpoint.save_state

    def full(*arguments):
        if arguments[1] > 4:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save_state", full)
    with pytest.raises(TrainingError, match="update 8 cannot be written: .*No space left.*Make room"):
        train(digits(max_train_images=256), tmp_path)
    assert find_state(tmp_path / "checkpoints")[0].name == "00000004"


def test_settings_may_stand_among_the_options():
    config, run_dir, options = read_run(
        ["--experiment", "digits", "epochs=3", "--model", "ff", "--run-dir", "x", "batch_size=32"], "ffvit train", ""
    )
    assert (config.epochs, config.batch_size) == (3, 32)
