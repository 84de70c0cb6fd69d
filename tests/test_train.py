"""Training: it learns, stops and goes on exactly, and bad input costs nothing."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from ffvit import checkpoint, train
from ffvit import launch as launch_module
from ffvit.config import InputError, load_experiment
from ffvit.launch import launch
from ffvit.train import TrainingError


def digits(model="ff", **settings):
    return load_experiment("digits").config(model, **{"epochs": 2, "warmup_epochs": 0, "device": "cpu", **settings})


def history(run_dir):
    return json.loads((run_dir / "training.json").read_text())["history"]


def test_one_epoch_on_digits_learns(tmp_path):
    train.train(digits(epochs=1), tmp_path)
    assert history(tmp_path)[0]["validation_top1_percent"] > 20  # chance is 10


def test_finished_run_leaves_weights_and_facts_and_no_state(tmp_path):
    config = digits(epochs=1, max_train_images=128, ema_decay=0.9)
    train.train(config, tmp_path)
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


def test_interrupted_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    config = digits(epochs=3, max_train_images=256, mixup=0.8, drop_path_rate=0.1, ema_decay=0.9, schedule_per="epoch")
    train.train(config, tmp_path / "whole")

    save = checkpoint.save_training_state
    monkeypatch.setattr(
        checkpoint, "save_training_state", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt))[0]
    )
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / "pieces")
    monkeypatch.undo()
    train.train(config, tmp_path / "pieces")

    for name in ("last.safetensors", "ema.safetensors"):
        whole, pieces = load_file(tmp_path / "whole" / name), load_file(tmp_path / "pieces" / name)
        assert all(torch.equal(whole[k], pieces[k]) for k in whole)
    assert [e["train_loss"] for e in history(tmp_path / "whole")] == [
        e["train_loss"] for e in history(tmp_path / "pieces")
    ]


def test_finished_run_is_not_trained_again(tmp_path, capsys):
    config = digits(epochs=1, max_train_images=64)
    train.train(config, tmp_path)
    before = (tmp_path / "last.safetensors").stat().st_mtime_ns
    train.train(config, tmp_path)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "last.safetensors").stat().st_mtime_ns == before


def test_folder_of_another_run_is_left_alone(tmp_path):
    train.train(digits(epochs=1, max_train_images=64), tmp_path)
    with pytest.raises(InputError, match=r"other settings \(seed is 0, asked 1"):
        train.train(digits(epochs=1, max_train_images=64, seed=1), tmp_path)


def test_nan_stops_the_run_and_keeps_the_last_good_epoch(tmp_path, monkeypatch):
    evaluate, calls = train.evaluate, []

    def poisoned(model, *arguments):
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).data.fill_(float("nan"))
        return evaluate(model, *arguments)

    monkeypatch.setattr(train, "evaluate", poisoned)
    with pytest.raises(TrainingError, match="validation loss is nan in epoch 2; the state after epoch 1 is kept"):
        train.train(digits(epochs=3, max_train_images=64), tmp_path)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "state.safetensors").values())
    assert not (tmp_path / "training.json").exists()


def test_nan_in_the_training_loss_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match="training loss is nan"):
        train.train(digits(max_train_images=256, base_lr=1e12), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no CUDA GPU: set device='auto'"):
        train.train(digits(device="cuda"), tmp_path)


def test_full_disk_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(train.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="checkpoints need"):
        train.train(digits(), tmp_path)


def test_wrong_number_of_processes_is_an_error(tmp_path):
    with pytest.raises(InputError, match="1 processes were started, num_processes=2"):
        train.train(digits(num_processes=2), tmp_path)


def test_two_processes_see_the_losses_of_one(tmp_path):
    settings = dict(epochs=1, max_train_images=256, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    launch(digits(**settings), tmp_path / "one", on_line=lambda line: None)
    launch(digits(**settings, num_processes=2), tmp_path / "two", on_line=lambda line: None)
    one, two = history(tmp_path / "one")[0], history(tmp_path / "two")[0]
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)


def test_failed_training_tells_its_error_and_how_to_go_on(tmp_path):
    with pytest.raises(TrainingError, match="error: .*no such folder") as failure:
        launch(digits(dataset="./nowhere"), tmp_path, on_line=lambda line: None)
    assert re.search(
        r"accelerate.commands.launch .* -m ffvit.train --config \S+request.json --run-dir", str(failure.value)
    )
    assert "no such folder" in (tmp_path / "log.txt").read_text()


def start(run_dir, *more):
    command = [
        sys.executable,
        "-m",
        "ffvit.train",
        "--experiment",
        "digits",
        "--model",
        "ff",
        "--run-dir",
        str(run_dir),
    ]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_training_ends_when_the_process_that_started_it_is_gone(tmp_path):
    parent = subprocess.Popen(["sleep", "600"])
    child = start(tmp_path, "--parent", str(parent.pid), "epochs=10000")
    child.stdout.readline()  # it is under way
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert child.wait(timeout=10) != 0


def test_killed_run_goes_on_when_started_again(tmp_path):
    first = start(tmp_path, "epochs=3")
    while not (tmp_path / "state.safetensors").exists():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.kill()
    first.wait()
    output = start(tmp_path, "epochs=3").communicate(timeout=120)[0]
    assert "going on after epoch" in output and "finished" in output
    assert [e["epoch"] for e in history(tmp_path)] == [1, 2, 3]


def test_run_in_progress_is_not_trained_by_a_second_process(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(InputError, match="being trained by another process"):
        train.train(digits(), tmp_path)


def test_runs_started_side_by_side_take_different_gpus(monkeypatch):
    monkeypatch.setattr(launch_module.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, third = {}, {}, {}
    gpu, cpu = digits(device="auto"), digits(device="cpu")
    own = launch_module._own_gpus
    with own(gpu, first), own(gpu, second), own(gpu, third), own(cpu, {}):
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        assert third == {}  # none is left: it shares, as accelerate would choose


def test_runs_keep_to_the_gpus_a_scheduler_gave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    first, second = {"CUDA_VISIBLE_DEVICES": "5,7"}, {"CUDA_VISIBLE_DEVICES": "5,7"}
    with launch_module._own_gpus(digits(device="auto"), first), launch_module._own_gpus(digits(device="auto"), second):
        assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["5", "7"]


def test_interrupted_cell_leaves_no_training_behind(tmp_path):
    def interrupt(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch(digits(epochs=10000), tmp_path, on_line=interrupt)
    with FileLock(tmp_path / ".lock", timeout=10):  # nobody trains it any more
        assert not (tmp_path / "training.json").exists()


def test_resumed_run_keeps_where_it_began(tmp_path, monkeypatch):
    save = checkpoint.save_training_state
    monkeypatch.setattr(
        checkpoint, "save_training_state", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt))[0]
    )
    with pytest.raises(KeyboardInterrupt):
        train.train(digits(max_train_images=64), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(train.provenance, "git_state", lambda: {"commit": "later", "dirty": True})
    train.train(digits(max_train_images=64), tmp_path)
    facts = json.loads((tmp_path / "training.json").read_text())
    assert facts["git"]["commit"] != "later" and [r["git"]["commit"] for r in facts["resumed"]] == ["later"]


def test_unknown_model_or_optimizer_is_told_before_images_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(train.data, "load_splits", None)
    for settings, message in (
        ({"model": "ff_tinny_patch16_224"}, "unknown to timm"),
        ({"optimizer": "adamww"}, "unknown to timm"),
    ):
        with pytest.raises(InputError, match=message):
            train.train(dataclasses.replace(digits(), **settings), tmp_path)
