"""Training: it learns, stops and goes on exactly, and bad input costs nothing."""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from ffvit.commands.arguments import read_run
from ffvit.data.batches import eval_loader
from ffvit.data.splits import load_splits
from ffvit.launching import launch as launching
from ffvit.launching.launch import _own_gpus, launch
from ffvit.models import from_config, weights
from ffvit.settings import run_folder
from ffvit.settings.experiment import load_experiment
from ffvit.system import lifetime, machine
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.files import ROOT, RUNS
from ffvit.system.lifetime import STOPPED
from ffvit.tasks import classification
from ffvit.tasks.classification import evaluate
from ffvit.training import checkpoint, memory, start
from ffvit.training import train as trainer
from ffvit.training.manifest import find_state
from ffvit.training.optim import peak_lr
from ffvit.training.processes import create_accelerator
from ffvit.training.resume import go_on_from_checkpoint
from ffvit.training.train import train


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


# The rest of the augmentation in batches, on the device, erasing too.
ERASED = dict(augment="batch", in_memory=False, random_erasing=0.5)


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
    [(digits, {}), (digits, dict(augment="batch", interpolation="bilinear")), (digits, ERASED), (lit, {}), (lit, SWIN)],
    ids=["image", "batch, in memory", "batch", "lit_ti", "lit_s"],
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
        patch.setattr(trainer, "finish", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
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
    evaluate, calls = classification.evaluate, []

    def poisoned(model, *arguments):
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).data.fill_(float("nan"))
        return evaluate(model, *arguments)

    monkeypatch.setattr(classification, "evaluate", poisoned)
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


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


HUGGING_FACE = {
    "config.json": '{"model_type": "vit"}',
    "training.json": "{}",
    "checkpoints/00000001/model.safetensors": "",
}


@pytest.mark.parametrize(
    "files",
    [
        HUGGING_FACE,
        {"history.json": "[]"},
        {"checkpoints/20240101/photo.png": ""},
        {"request.json": '{"url": ""}'},
        {"config.json": "[1]"},
        {"config.json": '{"exper'},
        {"notes.txt": "of years"},
    ],
    ids=lambda files: next(iter(files)),
)
@pytest.mark.parametrize("way", [train, launch])
def test_folder_that_holds_something_else_is_refused_and_left_as_it_is(tmp_path, files, way):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="give the run a new or empty folder"):
        way(digits(), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("place", ["/", ROOT, RUNS, ROOT.parent, "a file", "a link to nothing"])
def test_place_that_is_no_folder_for_a_run_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    Path("a file").touch()
    Path("a link to nothing").symlink_to("nothing")
    with pytest.raises(InputError, match="is no folder"):
        launch(digits(), Path(place))


@pytest.mark.parametrize("option", ["--run-dir", "--config"])
def test_an_empty_path_is_refused_and_not_taken_for_the_current_folder(option):
    with pytest.raises(InputError, match=f"argument {option}: the path is empty"):
        read_run(["--experiment", "digits", "--model", "ff", option, ""], "ffvit train", "")


def test_finished_run_removes_its_own_checkpoints_and_nothing_else(tmp_path, monkeypatch):
    config, make_update = digits(max_train_images=128), trainer.make_update
    others = {"notes.txt": "of years", "20240101/photo.png": "png", "00000009/mine.txt": "text", ".2024/x": ""}

    def put_something_there(run, *rest):
        make_update(run, *rest)
        for name, text in others.items() if run.update == 3 else ():
            (tmp_path / "checkpoints" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "checkpoints" / name).write_text(text)

    monkeypatch.setattr(trainer, "make_update", put_something_there)
    train(config, tmp_path)
    left = {name: text for name, text in contents(tmp_path / "checkpoints").items() if text is not None}
    assert left == {name: text.encode() for name, text in others.items()}
    assert json.loads((tmp_path / "training.json").read_text())["history"]


def move(folder):
    folder.rename(folder.with_name("elsewhere"))


def replace(folder):
    move(folder)
    folder.mkdir()
    (folder / ".lock").touch()


def empty(folder):
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.name.startswith(".") or path.unlink()


@pytest.mark.parametrize("last", [False, True], ids=["at the next checkpoint", "at the end"])
@pytest.mark.parametrize("change", [shutil.rmtree, move, replace, empty])
def test_folder_that_goes_while_a_run_is_trained_ends_it_and_is_not_made_anew(tmp_path, monkeypatch, change, last):
    def changing(step, when):
        def changed(run, *rest):
            if when(run):
                change(tmp_path / "run")
                monkeypatch.undo()
            return step(run, *rest)

        return changed

    if last:
        monkeypatch.setattr(trainer, "finish", changing(trainer.finish, lambda run: True))
    else:
        monkeypatch.setattr(trainer, "make_update", changing(trainer.make_update, lambda run: run.update == 2))
    with pytest.raises(TrainingError, match="run has been deleted, moved or replaced while .* up to update"):
        train(digits(max_train_images=128), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock", ".start.lock"}


@pytest.mark.parametrize("lock", [".lock", ".start.lock"])
def test_a_run_that_is_refused_because_another_is_under_way_changes_nothing(tmp_path, monkeypatch, lock):
    (tmp_path / "log.txt").write_text("of the first\n")
    (tmp_path / "request.json").write_text(json.dumps(digits().to_dict()))
    (tmp_path / ".lock").touch()
    (tmp_path / ".start.lock").touch()
    monkeypatch.setattr(run_folder, "ORPHAN_S", 0.1)
    before = contents(tmp_path)
    with FileLock(tmp_path / lock):
        for way in (launch, train):
            with pytest.raises(InputError, match="being trained by another process"):
                way(digits(seed=1), tmp_path)
    assert contents(tmp_path) == before


def test_what_a_launcher_has_started_trains_under_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv(run_folder.BY_LAUNCHER, "1")
    with FileLock(tmp_path / ".start.lock"):
        train(digits(epochs=1, max_train_images=64), tmp_path)


@pytest.mark.machine
def test_of_two_runs_started_into_one_folder_one_is_trained_and_the_other_told(tmp_path):
    command = [sys.executable, "-m", "ffvit", "train", "--experiment", "digits", "--model", "ff", "--run-dir", tmp_path]
    small = ["epochs=2", "warmup_epochs=0", "max_train_images=64", "device=cpu"]
    runs = []
    for seed in "01":
        runs.append(subprocess.Popen([*command, "--seed", seed, *small], stderr=subprocess.PIPE, text=True))
        time.sleep(0.5)
    told = [run.communicate()[1] for run in runs]
    won, lost = sorted((0, 1), key=lambda seed: runs[seed].returncode)
    assert [runs[won].returncode, runs[lost].returncode] == [0, 2]
    assert told[lost].startswith("error:") and "being trained by another process" in told[lost]
    for name in ("config.json", "request.json"):
        assert json.loads((tmp_path / name).read_text())["seed"] == won
    assert (tmp_path / "log.txt").read_text().count("to go on with this run") == 1


def test_a_refused_start_leaves_what_the_log_names_to_go_on_with(tmp_path, monkeypatch):
    train(digits(epochs=1, max_train_images=64), tmp_path)
    request = json.dumps(digits(epochs=1, max_train_images=64).to_dict(), indent=1)
    (tmp_path / "request.json").write_text(request)
    with pytest.raises(InputError, match="seed is 0, asked 1"):
        launch(digits(epochs=1, max_train_images=64, seed=1), tmp_path)
    monkeypatch.setattr(launching, "_launcher", lambda config: ["-c", "raise SystemExit('error: refused')"])
    with pytest.raises(TrainingError, match="refused"):
        launch(digits(epochs=1, max_train_images=64, dataset="elsewhere"), tmp_path, on_line=quiet)
    assert (tmp_path / "request.json").read_text() == request


@pytest.fixture
def images(tmp_path):
    """A function that writes a folder of images, some of the digits', turned so often."""
    splits = load_splits(digits(max_train_images=200, max_eval_images=50))

    def write(turned=0):
        for part in ("train", "test"):
            rows = getattr(splits, part)
            if turned:
                rows = rows.map(lambda row: {"image": row["image"].rotate(90 * turned)}, features=rows.features)
            rows.to_parquet(tmp_path / f"images/{part}.parquet")
        return str(tmp_path / "images")

    (tmp_path / "images").mkdir()
    return write


def test_images_changed_after_training_began_are_refused_and_put_back_the_run_goes_on(tmp_path, monkeypatch, images):
    config = digits(dataset=images(), max_train_images=0, batch_size=32)
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "score_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "pieces")
    images(turned=1)
    before = contents(tmp_path / "pieces")
    with pytest.raises(InputError, match="its images are not those that .*pieces began with .*: put those back"):
        train(config, tmp_path / "pieces")
    assert contents(tmp_path / "pieces") == before
    images()
    train(config, tmp_path / "pieces")
    whole, pieces = (tmp_path / name / "last.safetensors" for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


FORGED = {
    "history": ["x", [{"epoch": "x"}], [{"epoch": 1, "seconds": float("nan")}], [{"epoch": 10**400}], [{"epoch": 7}], {}],
    "done": [-1, 10**30, 1.5, True, None, 0],
    "seconds": [-1.0, float("inf"), "1"],
    "cpu_seconds": [None],
    "loss_sums": [[], [float("nan")], ["1"], 3],
    "bad_images": [None, {"train": [1]}, {"elsewhere": []}],
    "weights_sha256": [{"last.safetensors": 1}],
    "facts": [None, {}, {"config": 1}, {"config": {}, "dataset": []}, {"config": {"name": 1}, "dataset": {"fingerprint": ""}}],
    "scaler": [1],
}  # fmt: skip


def test_progress_that_no_run_writes_is_refused_by_name_and_kept(tmp_path, monkeypatch):
    config = digits(max_train_images=128)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "score_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    path, _ = find_state(tmp_path / "checkpoints")
    states, optimizer, saved = checkpoint.load_state(path)
    begun = start.set_up(config, tmp_path, create_accelerator(config, tmp_path))
    for name, values in FORGED.items():
        for value in values:
            monkeypatch.setattr(
                checkpoint, "load_state", lambda path, k=name, v=value: (states, optimizer, saved | {k: v})
            )
            with pytest.raises(InputError, match=r"progress.json: .*; delete .*00000002 to go on from an older"):
                go_on_from_checkpoint(begun)
    for parts in (({}, optimizer), (states, {"state": {}, "param_groups": []})):
        monkeypatch.setattr(checkpoint, "load_state", lambda path, parts=parts: (*parts, saved))
        with pytest.raises(InputError, match="00000002"):
            go_on_from_checkpoint(begun)
    assert find_state(tmp_path / "checkpoints")[0] == path


def test_checkpoint_of_another_run_is_no_start_for_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "score_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train(digits(max_train_images=64, seed=seed), tmp_path / str(seed))
    shutil.rmtree(tmp_path / "0/checkpoints/00000001")
    (tmp_path / "1/checkpoints/00000001").rename(tmp_path / "0/checkpoints/00000001")
    with pytest.raises(InputError, match="progress.json: of a run with another seed"):
        train(digits(max_train_images=64), tmp_path / "0")


@pytest.mark.parametrize(
    "name, text",
    [("training.json", "[]"), ("training.json", "{"), ("training.json", "{}"), ("config.json", '{"seed": 3}')],
)
def test_a_damaged_file_of_a_finished_run_is_named_with_the_cure(tmp_path, name, text):
    train(digits(epochs=1, max_train_images=64), tmp_path)
    (tmp_path / name).write_text(text)
    for way in (train, launch):
        with pytest.raises(InputError, match=f"{name} does not hold .*(delete this file|put a good copy back)"):
            way(digits(epochs=1, max_train_images=64), tmp_path)


def fail_at(monkeypatch, number):
    """Let the disk be full when something is written for the number-th time. Returns how often that was tried."""
    calls = [0]

    def or_full(step):
        def call(*arguments, **options):
            calls[0] += 1
            if calls[0] == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return step(*arguments, **options)

        return call

    steps = [(tempfile, "mkstemp"), (weights, "save_file"), (torch, "save"), (os, "fsync"), (shutil, "rmtree")]
    steps += [(Path, name) for name in ("mkdir", "write_text", "write_bytes", "rename", "replace", "chmod")]
    for where, name in steps:
        monkeypatch.setattr(where, name, or_full(getattr(where, name)))
    return calls


@pytest.mark.machine
def test_a_disk_that_is_full_at_any_write_ends_the_run_by_name_and_it_goes_on_to_the_same_weights(
    tmp_path, monkeypatch
):
    config = digits(max_train_images=64, ema_decay=0.9)
    with monkeypatch.context() as patch:
        calls = fail_at(patch, 0)
        train(config, tmp_path / "whole")
    for number in range(4, calls[0] + 1, 7):  # the first make the folder
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            fail_at(patch, number)
            with contextlib.suppress(TrainingError):
                train(config, folder)
                assert number > calls[0] - 10 and (folder / "training.json").exists()  # while checkpoints were removed
        train(config, folder)
        for name in ("last.safetensors", "ema.safetensors"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_kill_left_half_written_is_removed_when_the_run_goes_on(tmp_path):
    for name in (".last.safetensors.a1b2c3_4", ".config.json.a1b2c3_4"):
        (tmp_path / name).touch()
    train(digits(epochs=1, max_train_images=64), tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.endswith("a1b2c3_4")]


def test_settings_no_machine_can_hold_are_refused_before_anything_is_made(tmp_path):
    for settings, message in (
        ({"model_args": {"depth": 10**9}}, "model_args.depth must be from 0 to 300, got 1000000000"),
        ({"model_args": {"depths": [1, 10**9]}}, "model_args.depths.1 must be from 0 to 300"),
        ({"model_args": {"embed_dim": 10**9}}, "model_args.embed_dim must be from 0 to 1,000,000"),
        ({"model_args": {"embed_dim": -4}}, "model_args.embed_dim must be from 0 to 1,000,000, got -4"),
        ({"model_args": {"embed_dim": 0}}, "has nothing in .*: make the widths in model_args larger than 0"),
        ({"model_args": {"mlp_ratio": 0}}, "model_args.mlp_ratio must be larger than 0, got 0"),
        ({"model_args": {"mlp_ratio": float("inf")}}, "model_args.mlp_ratio must be a finite number"),
        ({"model_args": {"drop": object()}}, "model_args.drop must be a number, text or truth value"),
        ({"img_size": 10**6}, "img_size must be less than or equal to 10000"),
        ({"img_size": 10**4}, r"has [\d,]+ parameters by img_size and model_args: they take [\d,]+ GB"),
        ({"num_workers": 1000}, r"num_workers=1000 are too many processes .*: num_workers=\d+ fit"),
        ({"num_processes": 1000, "batch_size": 1000}, r"num_processes=1000 are too many .*: num_processes=\d+ fit"),
    ):
        with pytest.raises(InputError, match=message):
            config = digits(**settings)
            (launch if "num" in message else train)(config, tmp_path)
        assert {path.name for path in tmp_path.iterdir()} <= {".lock", ".start.lock"}


def test_a_machine_without_a_temporary_folder_is_told(monkeypatch):
    nowhere = FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: (_ for _ in ()).throw(nowhere))
    with pytest.raises(InputError, match="No usable temporary directory found: set TMPDIR to a folder with room"):
        launch(digits(), dry_run=True)


@pytest.fixture
def locks(tmp_path, monkeypatch):
    """Where the locks of GPUs are."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "ffvit"


def test_locks_of_gpus_are_in_a_folder_of_the_users_own(locks, tmp_path, monkeypatch):
    with _own_gpus(digits(device="auto"), {}):
        assert stat.S_IMODE(locks.stat().st_mode) == 0o700 and len(list(locks.iterdir())) == 1
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with _own_gpus(digits(device="auto"), {}):
        assert len(list((tmp_path / "home/.cache/ffvit").iterdir())) == 1


def test_folder_of_locks_that_others_have_a_hand_in_is_refused(locks, tmp_path, monkeypatch):
    def refused(match):
        with pytest.raises(InputError, match=match), _own_gpus(digits(device="auto"), {}):
            pass

    locks.symlink_to(tmp_path)
    refused("ffvit, for the locks of GPUs, is a link or somebody else's folder: remove it")
    locks.unlink()
    locks.mkdir()
    monkeypatch.setattr(launching.os, "getuid", lambda: 12345)
    refused("is a link or somebody else's folder")
    locks.rmdir()
    locks.touch()
    refused("no folder for the locks of GPUs: .*; set XDG_RUNTIME_DIR to a folder of your own")


def test_runs_started_side_by_side_take_different_gpus(monkeypatch, locks):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    first, second, third = {}, {}, {}
    gpu, cpu = digits(device="auto"), digits(device="cpu")
    own = _own_gpus
    with own(gpu, first), own(gpu, second), own(gpu, third), own(cpu, {}):
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        assert third == {}  # none is left: it shares, as accelerate would choose


def test_runs_keep_to_the_gpus_a_scheduler_gave(monkeypatch, locks):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    first, second = {"CUDA_VISIBLE_DEVICES": "5,7"}, {"CUDA_VISIBLE_DEVICES": "5,7"}
    with _own_gpus(digits(device="auto"), first), _own_gpus(digits(device="auto"), second):
        assert [first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]] == ["5", "7"]


def test_more_processes_than_gpus_are_refused_with_what_fits(monkeypatch, locks):
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
    monkeypatch.setattr(classification, "load_splits", None)
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
        assert option[name] == pytest.approx(plain[name], rel=3e-4)


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
    model = from_config.create(config, 10)
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


@pytest.mark.parametrize(
    "settings, epoch_s, has_it, told",
    [
        ({}, {"no": 20.0, "bf16": 12.0}, True, "mixed_precision=bf16 would take 0.60 of the time: 12.0 s an epoch, not 20.0"),
        ({}, {"no": 20.0, "bf16": 19.5}, True, None),  # as much as two dry runs differ
        ({}, {"no": 20.0, "bf16": TrainingError("not in bf16")}, True, None),
        ({}, {"no": 20.0}, False, None),
        ({"mixed_precision": "bf16"}, {"bf16": 12.0}, True, None),
    ],
)  # fmt: skip
def test_dry_run_on_a_cpu_says_where_bf16_takes_less_time(monkeypatch, settings, epoch_s, has_it, told):
    def estimate(children, config, environment, on_line):
        on_line(f"estimate in {config.mixed_precision}")
        if isinstance(found := epoch_s[config.mixed_precision], Exception):
            raise found
        return {"hardware": {"device": "cpu"}, "epoch_s": found}

    monkeypatch.setattr(launching, "estimate", estimate)
    monkeypatch.setattr(launching, "multiplies_bf16", lambda: has_it)
    config, lines = digits(**settings), []
    found = launch(config, on_line=lines.append, dry_run=True)
    assert found["epoch_s"] == epoch_s[config.mixed_precision]
    assert lines == [f"estimate in {config.mixed_precision}", *([told] if told else [])]


def test_dry_run_on_a_gpu_is_one_dry_run(monkeypatch):
    monkeypatch.setattr(launching, "multiplies_bf16", lambda: True)
    monkeypatch.setattr(launching, "estimate", lambda *_: {"hardware": {"device": "cuda"}, "epoch_s": 1.0})
    lines: list[str] = []
    launch(digits(), on_line=lines.append, dry_run=True)
    assert not lines


@pytest.mark.parametrize(
    "flags, has_it",
    [("fma avx512_bf16", True), ("amx_bf16 amx_tile", True), ("avx512f avx2", False), (None, False)],
)
def test_a_processor_that_multiplies_bf16_is_found_by_its_flags(monkeypatch, flags, has_it):
    def read(self, **_):
        if flags is None:
            raise FileNotFoundError(self)
        return f"processor : 0\nflags : fpu {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert machine.multiplies_bf16() == has_it


def out_of_memory_above(count, monkeypatch):
    create = from_config.create

    def creating(config, num_classes):
        model = create(config, num_classes)
        forward = model.forward

        def limited(images):
            if images.device.type != "meta" and len(images) > count:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(images)

        model.forward = limited
        return model

    monkeypatch.setattr(from_config, "create", creating)


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
