"""Checkpoints: bit for bit, whole or not at all, every damage noticed, and nothing in them executed."""

import argparse
import hashlib
import io
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import struct
import tarfile
import tempfile
import time
import zipfile
from copy import copy as copy_of
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save, save_file
from timm.optim import create_optimizer_v2

from ffvit.models import weights
from ffvit.models.ff import PatchFeatureMixer
from ffvit.models.weights import AUTHOR_NAMES, load_strictly, load_weights, save_weights
from ffvit.system import files
from ffvit.system.errors import InputError
from ffvit.system.files import write_atomically
from ffvit.training import checkpoint
from ffvit.training.checkpoint import KEEP, MANIFEST, OPTIMIZER, load_state, save_state
from ffvit.training.manifest import find_state

SHAPE = dict(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)
FILES = ["ema.safetensors", MANIFEST, "model.safetensors", OPTIMIZER, "progress.json"]


def small_model(seed=0):
    torch.manual_seed(seed)
    return PatchFeatureMixer(**SHAPE)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def same(a, b):
    """Equal with all they hold, types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def stepped(seed=0, steps=2, **settings):
    """A model, its average, and an AdamW that has made some steps."""
    model, ema = small_model(seed), small_model(seed)
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 0.1 + 0.2, "betas": (0.8, 0.99), **settings})
    go_on(model, ema, optimizer, range(steps))
    return model, ema, optimizer


def go_on(model, ema, optimizer, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(6, 1, 8, 8, generator=generator)
        target = torch.randint(3, (6,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), target).backward()
        optimizer.step()
        for averaged, parameter in zip(ema.parameters(), model.parameters()):
            averaged.data.lerp_(parameter.data, 0.5)


def save_run(folder, update, model, ema, optimizer, progress=None):
    models = {"model": model.state_dict(), "ema": ema.state_dict()}
    return save_state(folder, update, models, optimizer.state_dict(), progress or {"update": update})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def reseal(path):
    """Make the manifest say what the files are: what someone who forges a checkpoint would do."""
    whole = {name: (path / name).read_bytes() for name in names(path) if name != MANIFEST}
    manifest = {k: {"sha256": hashlib.sha256(v).hexdigest(), "bytes": len(v)} for k, v in whole.items()}
    (path / MANIFEST).write_text(json.dumps(manifest))


def author_state(model):
    state = {}
    for key, value in model.state_dict().items():
        for theirs, ours in AUTHOR_NAMES:
            key = key.replace(ours, theirs)
        state[key] = value
    return state


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_between_any_two_steps_of_a_write_leaves_the_old_file_or_the_new_one(tmp_path):
    path, seen = tmp_path / "record.json", []

    def write_and_die_after(steps):
        left = itertools.count(steps, -1)

        def or_die(step):
            return lambda *a, **k: step(*a, **k) if next(left) > 0 else os.kill(os.getpid(), signal.SIGKILL)

        tempfile.mkstemp, os.fsync = or_die(tempfile.mkstemp), or_die(os.fsync)
        Path.write_bytes, Path.chmod, Path.replace = map(or_die, (Path.write_bytes, Path.chmod, Path.replace))
        write_atomically(path, "new")
        os._exit(0)

    for steps in itertools.count():
        write_atomically(path, "old")
        status = os.waitpid(fork(partial(write_and_die_after, steps)), 0)[1]
        seen.append(path.read_text())
        if status != signal.SIGKILL:
            break
    assert status == 0 and seen == ["old"] * 5 + ["new"]


def test_a_write_makes_its_folder_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "a" / "b" / "record.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_saved_weights_load_bit_for_bit(tmp_path):
    model = small_model(0)
    save_weights(tmp_path / "w.safetensors", model)
    assert same_weights(load_weights(small_model(1), tmp_path / "w.safetensors"), model)


def test_a_truncated_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="w.safetensors: cannot be read safely"):
        load_weights(small_model(), path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_text_file_is_no_checkpoint(tmp_path, name):
    (tmp_path / name).write_text("<html>404 Not Found</html>")
    with pytest.raises(InputError, match=f"{name}: cannot be read safely"):
        load_weights(small_model(), tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at .*nothing.pth"):
        load_weights(small_model(), tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"epoch": 3}, {"model": {"head.weight": 3}}])
def test_a_pickle_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        load_weights(small_model(), tmp_path / "w.pth")


@pytest.mark.parametrize(
    "change, trouble",
    [
        (lambda state: state | {"extra.weight": torch.zeros(2)}, "extra.weight is foreign"),
        (lambda state: {k: v for k, v in state.items() if k != "norm.bias"}, "norm.bias is missing"),
        (lambda state: state | {"head.bias": torch.zeros(4)}, r"head.bias is \(4,\), the model's \(3,\)"),
        (
            lambda state: state | {"head.bias": torch.ones(3).long()},
            "head.bias is torch.int64, the model's torch.float32",
        ),
    ],
)
def test_weights_of_another_model_are_refused_by_key_shape_and_type(tmp_path, change, trouble):
    model = small_model(0)
    save_file(change(model.state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=trouble):
        load_weights(model, tmp_path / "w.safetensors")
    assert same_weights(model, small_model(0))


SPOILT = {
    "NaN": float("nan"),
    "infinite": float("inf"),
    "minus infinite": float("-inf"),
    "too large for float32": 1e300,
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("name", ["ff_tiny_patch16_224", "vit_tiny_patch16_224", "lit_ti"])
def test_weights_that_are_not_finite_are_refused_by_key(tmp_path, name, suffix, kind):
    shape = dict(img_size=32, num_classes=3, in_chans=1) if name == "lit_ti" else SHAPE
    model = timm.create_model(name, **shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    spoilt = {key: value.double() if value.is_floating_point() else value for key, value in before.items()}
    spoilt["head.bias"][1] = SPOILT[kind]
    if suffix == "pth":
        torch.save({"model": spoilt, "epoch": 3}, tmp_path / "w.pth")
    else:
        save_file(spoilt, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=f"w.{suffix}: NaN or infinite numbers in head.bias: .*take other weights"):
        load_weights(model, tmp_path / f"w.{suffix}")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_of_many_weights_that_are_not_finite_three_are_named(tmp_path):
    save_file(
        {k: torch.full_like(v, torch.nan) for k, v in small_model().state_dict().items()}, tmp_path / "w.safetensors"
    )
    with pytest.raises(InputError, match=r"numbers in [\w.]+, [\w.]+, [\w.]+ and 30 more: "):
        load_weights(small_model(), tmp_path / "w.safetensors")


def deflated(path):
    state = small_model().state_dict() | {"more": torch.zeros(2**25)}
    torch.save(state, path.with_name("stored"))
    with (
        zipfile.ZipFile(path.with_name("stored")) as stored,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as new,
    ):
        for entry in stored.infolist():
            new.writestr(entry.filename, stored.read(entry))
    path.with_name("stored").unlink()


def many_times_one_part(path):
    """A zip whose table of contents names the same bytes again and again."""
    torch.save(small_model().state_dict(), path)
    with zipfile.ZipFile(path, "a") as archive:
        part = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(70_000_000 // part.file_size):
            copy = copy_of(part)
            copy.filename = f"archive/data/{1000 + number}"
            archive.filelist.append(copy)
        archive._didModify = True


def bytes_without_end(path, new=True):
    class Long:
        def __reduce__(self):
            return bytearray, (10**10,)

    torch.save({"model": {"norm.bias": Long()}}, path, _use_new_zipfile_serialization=new)


def tensors_without_end(path):
    torch.save(small_model().state_dict() | {f"{i}": torch.zeros(2**22) for i in range(6)}, path)


def sparse(path):
    path.touch()
    os.truncate(path, 10**12)


def long_header(path):
    path.write_bytes(with_header({f"a{i}": tensor(0, 0, (0,)) for i in range(50_000)}))


TOO_LARGE = {
    "deflated.pth": (deflated, "its part .* is compressed"),
    "overlapping.pth": (many_times_one_part, "it holds 7.* bytes, more than the"),
    "bytes.pth": (bytes_without_end, "it holds a bytearray"),
    "old_bytes.pth": (partial(bytes_without_end, new=False), "it holds a bytearray"),
    "tensors.pth": (tensors_without_end, "it holds 100,.* bytes, more than the"),
    "sparse.pth": (sparse, "it holds 1,000,000,000,000 bytes"),
    "sparse.safetensors": (sparse, "it holds 1,000,000,000,000 bytes"),
    "header.safetensors": (long_header, "its header has .* bytes, for a model of 33 tensors"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_file_that_would_take_far_more_memory_than_the_model_is_refused_before_it_is_unpacked(tmp_path, name):
    make, reason = TOO_LARGE[name]
    make(tmp_path / name)
    model, (reader, writer) = small_model(), os.pipe()

    def load():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            load_weights(model, tmp_path / name, sha256="0" * 64)
        except InputError as error:
            os.write(writer, f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before} {error}".encode())

    os.waitpid(fork(load), 0)
    os.close(writer)
    with open(reader) as pipe:
        grown_kb, _, message = pipe.read().partition(" ")
    assert re.search(f"{name}: cannot be read safely as a checkpoint .*{reason}.*; delete it", message)
    assert int(grown_kb) < 50_000


def test_a_checkpoint_with_an_optimizer_and_averages_is_not_too_large(tmp_path, monkeypatch):
    """What DeiT and others keep beside the weights: two moments, and averages."""
    monkeypatch.setattr(weights, "MOST_BESIDE", 2**17)  # or all that is kept of this small model would pass
    state = small_model().state_dict()
    others = {str(number): {k: v.clone() for k, v in state.items()} for number in range(4)}
    torch.save({"model": state, "others": others, "args": argparse.Namespace(x=1)}, tmp_path / "w.pth")
    load_weights(small_model(), tmp_path / "w.pth")
    torch.save({"model": state, "others": torch.zeros(2**16)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="more than the"):
        load_weights(small_model(), tmp_path / "w.pth")


def test_a_file_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_weights(small_model(), path, sha256=digest)
    with pytest.raises(InputError, match=f"sha256 is {digest}"):
        load_weights(small_model(), path, sha256="0" * 64)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    run = stepped()
    progress = {"history": [{"epoch": 1, "train_loss": 0.1 + 0.2}], "nothing": None}
    path = save_run(tmp_path, 2, *run, progress)
    assert path == tmp_path / "00000002" and names(path) == FILES
    assert find_state(tmp_path) == (path, [])

    models, optimizer_state, loaded_progress = load_state(path)
    assert same(loaded_progress, progress)
    assert same(optimizer_state, run[2].state_dict())
    resumed = stepped(seed=1, steps=1, lr=1.0)
    load_strictly(resumed[0], models["model"], path)
    load_strictly(resumed[1], models["ema"], path)
    resumed[2].load_state_dict(optimizer_state)
    go_on(*run, range(2, 4))
    go_on(*resumed, range(2, 4))
    assert same_weights(resumed[0], run[0]) and same_weights(resumed[1], run[1])
    assert same(resumed[2].state_dict(), run[2].state_dict())


@pytest.mark.parametrize("name", ["sgd", "lion", "lamb", "adabelief", "adafactor", "lookahead_radam"])
def test_the_state_of_every_optimiser_comes_back_as_it_was(tmp_path, name):
    model = small_model()
    optimizer = create_optimizer_v2(model, opt=name, lr=0.01, momentum=0.9)
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    loaded = load_state(save_state(tmp_path, 1, {"model": model.state_dict()}, optimizer.state_dict(), {}))[1]
    assert same(loaded, optimizer.state_dict())
    create_optimizer_v2(small_model(1), opt=name, lr=0.02, momentum=0.9).load_state_dict(loaded)


def test_a_learning_rate_that_is_a_tensor_and_shared_by_groups_comes_back(tmp_path):
    model, rate = small_model(), torch.tensor(0.1)
    groups = [{"params": [parameter], "lr": rate} for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(groups, capturable=False, foreach=False)
    assert same(load_state(save_state(tmp_path, 1, {}, optimizer.state_dict(), {}))[1], optimizer.state_dict())


def test_saving_copies_no_tensor_that_is_on_the_cpu_already(tmp_path, monkeypatch):
    written = {}
    monkeypatch.setattr(weights, "save_file", lambda tensors, path, metadata: (written.update(tensors), path.touch()))
    model = small_model()
    save_state(tmp_path, 1, {"model": model.state_dict()}, {}, {})
    own = model.state_dict()
    assert {k: v.data_ptr() for k, v in written.items()} == {k: v.data_ptr() for k, v in own.items()}


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run = stepped()
    for update in (5, 10, 99_999_999, 100_000_000):
        save_run(tmp_path, update, *run)
    assert names(tmp_path) == ["100000000", "99999999"] and KEEP == 2
    assert find_state(tmp_path)[0].name == "100000000"


def test_saving_over_a_damaged_checkpoint_replaces_it(tmp_path):
    run = stepped()
    path = save_run(tmp_path, 1, *run)
    (path / "model.safetensors").write_bytes(b"")
    save_run(tmp_path, 1, *run)
    assert find_state(tmp_path) == (path, []) and names(tmp_path) == ["00000001"]


def test_damaged_checkpoints_push_no_good_one_out(tmp_path):
    run = stepped()
    save_run(tmp_path, 1, *run)
    for update in (7, 8, 9):
        (tmp_path / f"{update:08d}").mkdir()
    save_run(tmp_path, 2, *run)
    assert names(tmp_path) == ["00000001", "00000002"]


def test_a_run_without_a_checkpoint_has_none_to_find(tmp_path):
    assert find_state(tmp_path / "nothing") == find_state(tmp_path) == (None, [])
    (tmp_path / ".00000001.new").mkdir()  # one that was being written
    assert find_state(tmp_path) == (None, [])


def truncations(content, pick):
    return [content[: pick.randrange(len(content))] for _ in range(20)]


def bit_flips(content, pick):
    flipped = []
    for _ in range(20):
        damaged = bytearray(content)
        damaged[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
        flipped.append(bytes(damaged))
    return flipped


@pytest.mark.parametrize("damage", [truncations, bit_flips])
@pytest.mark.parametrize("name", FILES)
def test_every_damage_is_noticed_and_the_checkpoint_before_it_found(tmp_path, name, damage):
    run = stepped()
    older, newer = save_run(tmp_path, 1, *run), save_run(tmp_path, 2, *run)
    content = (newer / name).read_bytes()
    for damaged in damage(content, random.Random(0)):
        (newer / name).write_bytes(damaged)
        found, (line,) = find_state(tmp_path)
        assert found == older
        assert line.startswith(f"{newer}: ") and (name if name != MANIFEST else "manifest") in line
    (newer / name).write_bytes(content)
    assert find_state(tmp_path) == (newer, [])


def test_damage_is_told_by_file_and_hash(tmp_path):
    run = stepped()
    save_run(tmp_path, 1, *run)
    newer = save_run(tmp_path, 2, *run, {"loss": 1})
    (newer / "progress.json").write_text('{"loss": 2}')
    line = find_state(tmp_path)[1][0]
    assert line.startswith(f"{newer}: progress.json: sha256 is ") and ", manifest says " in line


def test_where_no_checkpoint_is_whole_all_are_named_with_the_cure(tmp_path):
    run = stepped()
    older, newer = save_run(tmp_path, 1, *run), save_run(tmp_path, 2, *run)
    (older / "foreign").touch()
    (newer / "ema.safetensors").unlink()
    with pytest.raises(InputError) as raised:
        find_state(tmp_path)
    for words in (
        f"{older}: foreign: not in",
        f"{newer}: ema.safetensors: in the manifest only",
        "delete the folder to start",
    ):
        assert words in str(raised.value)


def fork(action):
    """Run an action in a child of this process; returns its id."""
    if child := os.fork():
        return child
    try:
        action()
    finally:
        os._exit(1)


def test_a_kill_between_any_two_steps_leaves_a_whole_checkpoint(tmp_path):
    run, found = stepped(), []

    def save_and_die_after(steps, folder):
        left = itertools.count(steps, -1)

        def or_die(step):
            return lambda *a, **k: step(*a, **k) if next(left) > 0 else os.kill(os.getpid(), signal.SIGKILL)

        weights.save_file, torch.save = or_die(weights.save_file), or_die(torch.save)
        os.fsync = or_die(os.fsync)
        shutil.rmtree, Path.rename = or_die(shutil.rmtree), or_die(Path.rename)
        save_run(folder, 3, *run)
        os._exit(0)

    for steps in itertools.count():
        folder = tmp_path / str(steps)
        save_run(folder, 1, *run)
        save_run(folder, 2, *run)
        status = os.waitpid(fork(partial(save_and_die_after, steps, folder)), 0)[1]
        path, damaged = find_state(folder)
        assert damaged == []
        found.append(int(path.name))
        if status != signal.SIGKILL:
            break
    assert status == 0 and found == sorted(found) and set(found) == {2, 3}
    assert names(folder) == ["00000002", "00000003"]


def test_all_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    sync, rename, done = files.sync, Path.rename, []
    for module in (files, checkpoint):
        monkeypatch.setattr(module, "sync", lambda path: (sync(path), done.append(path.name)))
    monkeypatch.setattr(Path, "rename", lambda path, to: (rename(path, to), done.append((path.name, to.name))))
    save_run(tmp_path, 1, *stepped())
    assert sorted(done[:5]) == FILES
    assert done[5:] == [".00000001.new", (".00000001.new", "00000001"), tmp_path.name]


def kill_while_saving(folder, kills, seed):
    """Kill that many children, each while it saves one checkpoint after the other, and check what is left each time."""
    pick, last, interrupted = random.Random(seed), 0, 0
    zeros = torch.zeros(200_000)

    def save_number(update):
        optimizer = {"state": {0: {"exp_avg": zeros}}, "param_groups": []}
        save_state(folder, update, {"model": {"weight": zeros + update}}, optimizer, {"update": update})

    save_number(last)
    for _ in range(kills):
        reader, writer = os.pipe()

        def save_on(first=last + 1, writer=writer):
            for update in itertools.count(first):
                save_number(update)
                os.write(writer, struct.pack("q", update))

        child = fork(save_on)
        os.close(writer)
        time.sleep(pick.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        with open(reader, "rb") as pipe:
            saved = max((number for (number,) in struct.iter_unpack("q", pipe.read())), default=last)
        interrupted += any(name.endswith(".new") for name in names(folder))

        path, damaged = find_state(folder)
        models, _, progress = load_state(path)
        assert damaged == [] and saved <= int(path.name) <= saved + 1
        assert progress["update"] == int(path.name)
        assert torch.equal(models["model"]["weight"], zeros + progress["update"])
        last = progress["update"]
    assert interrupted > kills / 10, f"only {interrupted} kills came while a checkpoint was being written"
    save_number(last + 1)
    assert names(folder) == [f"{last:08d}", f"{last + 1:08d}"]


def test_a_kill_at_any_moment_costs_at_most_one_interval(tmp_path):
    kill_while_saving(tmp_path, kills=10, seed=0)


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER, "progress.json"])
def test_a_full_disk_is_an_oserror_and_leaves_the_last_checkpoint(tmp_path, name):
    run = stepped()
    progress = {"text": "x" * 100_000 if name == "progress.json" else ""}
    path = save_run(tmp_path, 1, *run, progress)
    size = (path / name).stat().st_size

    def save_with_less_room():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))
        try:
            save_run(tmp_path, 2, *run, progress)
        except OSError as error:
            os._exit(0 if "too large" in str(error) else 2)

    assert os.waitpid(fork(save_with_less_room), 0)[1] == 0
    assert find_state(tmp_path) == (path, []) and names(tmp_path) == ["00000001"]


class Bomb:
    def __init__(self, sentinel: Path):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def pickled(path, bomb):
    path.write_bytes(pickle.dumps({"model": bomb}, protocol=2))


def zipped(path, bomb):
    torch.save({"model": {"norm.bias": bomb}}, path)


def legacy(path, bomb):
    torch.save({"model": {"norm.bias": bomb}}, path, _use_new_zipfile_serialization=False)


def in_a_namespace(path, bomb):
    torch.save({"model": small_model().state_dict(), "args": argparse.Namespace(deep=[{"er": bomb}])}, path)


def in_a_tar(path, bomb):
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(bomb, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def torchscript(path, bomb):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))


def outside_its_zip(path, bomb):
    torch.save(small_model().state_dict(), path)
    with zipfile.ZipFile(path) as archive:
        members = {Path(name).name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"../{bomb.sentinel.name}" if name == "data.pkl" else f"../{name}", content)


def without_memory(path, bomb):
    torch.save({k: v.to("meta") for k, v in small_model().state_dict().items()}, path)


def sparse(path, bomb):
    torch.save({k: v.to_sparse() for k, v in small_model().state_dict().items()}, path)


def numbered(path, bomb):
    torch.save(dict(enumerate(small_model().state_dict().values())), path)


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # of torch, for TorchScript and sparse tensors
@pytest.mark.parametrize(
    "forge",
    [
        pickled, zipped, legacy, in_a_namespace, in_a_tar, torchscript, outside_its_zip, without_memory, sparse, numbered,
    ],
)  # fmt: skip
def test_a_forged_pickle_is_refused_by_name_and_not_executed(tmp_path, forge):
    (tmp_path / "in").mkdir()
    path, sentinel = tmp_path / "in" / "w.pth", tmp_path / "executed"
    forge(path, Bomb(sentinel))
    model = small_model(1)
    with pytest.raises(InputError, match="w.pth: (cannot be read safely|holds no state dict)"):
        load_weights(model, path)
    assert names(tmp_path) == ["in"] and names(tmp_path / "in") == ["w.pth"]
    assert same_weights(model, small_model(1))


def with_header(header, data=bytes(8), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


FORGED_SAFETENSORS = {
    "a header longer than any file": with_header({"a": tensor(0, 4)}, length=2**63),
    "a header longer than the file": with_header({"a": tensor(0, 4)}, length=1000),
    "a header of nothing": with_header(b""),
    "a shape larger than its bytes": with_header({"a": tensor(0, 8, (2**62, 4))}),
    "bytes behind the end": with_header({"a": tensor(0, 4000, (1000,))}),
    "tensors one upon the other": with_header({"a": tensor(0, 8, (2,)), "b": tensor(4, 8)}),
    "an end before the start": with_header({"a": tensor(8, 0)}),
    "a type that is none": with_header({"a": tensor(0, 8, dtype="OBJECT")}),
    "NaN as metadata": with_header({"__metadata__": {"format": float("nan")}, "a": tensor(0, 8, (2,))}),
    "a list": with_header([tensor(0, 8)]),
    "a deep nest": with_header(b'{"a":' + b"[" * 100_000),
    "no tensors": save({}),
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("content", FORGED_SAFETENSORS.values(), ids=FORGED_SAFETENSORS.keys())
def test_a_forged_safetensors_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="w.safetensors: (cannot be read safely|the weights of another model)"):
        load_weights(small_model(), path)

    state = save_run(tmp_path / "checkpoints", 1, *stepped())
    (state / "model.safetensors").write_bytes(content)
    reseal(state)
    if content != save({}):  # which is a file as it should be
        with pytest.raises(InputError, match="model.safetensors: cannot be read safely.*delete .*00000001"):
            load_state(find_state(tmp_path / "checkpoints")[0])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[1]", "NaN", "", "\x00", '"text"'])
@pytest.mark.parametrize("name", ["progress.json", MANIFEST])
def test_a_forged_json_file_is_refused_by_name(tmp_path, name, text):
    path = save_run(tmp_path, 1, *stepped())
    (path / name).write_text(text)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        if name == "progress.json":
            reseal(path)
            load_state(path)
        find_state(tmp_path)


def with_a_bomb_in_its_state(path, bomb):
    state = stepped()[2].state_dict()
    state["state"][0]["step"] = bomb
    torch.save(state, path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # of torch, for TorchScript
@pytest.mark.parametrize(
    "forge", [with_a_bomb_in_its_state, pickled, zipped, legacy, in_a_tar, torchscript, outside_its_zip]
)
def test_a_forged_optimiser_state_is_refused_by_name_and_not_executed(tmp_path, forge):
    path, sentinel = save_run(tmp_path, 1, *stepped()), tmp_path / "executed"
    forge(path / OPTIMIZER, Bomb(sentinel))
    reseal(path)
    with pytest.raises(InputError, match="optimizer.pt: cannot be read safely.*delete .*00000001"):
        load_state(find_state(tmp_path)[0])
    assert names(tmp_path) == ["00000001"]


@pytest.mark.parametrize("state", [[], 3, {}, {"state": {}}, torch.zeros(3)])
def test_what_is_no_state_of_an_optimiser_is_refused_by_name(tmp_path, state):
    path = save_state(tmp_path, 1, {}, state, {})
    with pytest.raises(InputError, match="optimizer.pt: cannot be read safely.*no state of an optimizer"):
        load_state(path)


def test_a_manifest_leads_to_no_file_outside_its_folder(tmp_path):
    path = save_run(tmp_path / "checkpoints", 1, *stepped())
    outside = tmp_path / "outside"
    outside.write_bytes((path / "progress.json").read_bytes())
    manifest = json.loads((path / MANIFEST).read_text())
    for name in ("../../outside", str(outside)):
        (path / MANIFEST).write_text(json.dumps(manifest | {name: manifest["progress.json"]}))
        with pytest.raises(InputError, match="outside: in the manifest only"):
            find_state(tmp_path / "checkpoints")
    (path / MANIFEST).write_text(json.dumps(manifest))
    (path / "progress.json").unlink()
    (path / "progress.json").symlink_to(outside)
    with pytest.raises(InputError, match="progress.json: not a regular file"):
        find_state(tmp_path / "checkpoints")


def test_a_manifest_that_would_never_end_is_damage(tmp_path):
    path = save_run(tmp_path, 1, *stepped())
    for forge in (
        os.mkfifo,
        lambda file: file.symlink_to("/dev/zero"),
        lambda file: file.write_bytes(b" " * 2**21),
        Path.mkdir,
    ):
        (path / MANIFEST).unlink()
        forge(path / MANIFEST)
        with pytest.raises(InputError, match="00000001: manifest.json: ValueError"):
            find_state(tmp_path)


@pytest.mark.parametrize("name", ["0000000", "-0000001", "0000001.", "\u0660" * 8, "9" * 200])
def test_a_name_that_is_no_number_of_an_update_is_no_checkpoint(tmp_path, name):
    (tmp_path / name).mkdir()
    assert find_state(tmp_path) == (None, [])


def test_an_optimiser_state_that_is_more_than_its_file_is_refused(tmp_path):
    path = save_run(tmp_path, 1, *stepped())
    with zipfile.ZipFile(path / OPTIMIZER) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path / OPTIMIZER, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content + bytes(10**6) * name.endswith("/data/0"))
    reseal(path)
    with pytest.raises(InputError, match="optimizer.pt: cannot be read safely.*it holds more than its size"):
        load_state(find_state(tmp_path)[0])


def test_what_is_no_checkpoint_among_them_is_neither_removed_nor_written_over(tmp_path):
    run, others = stepped(), ["20240101/photo.png", "00000002/notes.txt", ".00000001.new/mine", ".1/x", "notes"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "00000007").symlink_to("20240101")
    for update in (2, 3, 4):
        save_run(tmp_path, update, *run)
    checkpoint.remove_all(tmp_path)
    left = sorted(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(others) and (tmp_path / "00000007").is_symlink()


def test_checkpoints_of_a_run_that_has_ended_go_with_their_folder(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for update in (1, 2):
        save_run(folder, update, *stepped())
    (folder / ".00000003.new").mkdir()  # of a kill, in the middle of what safetensors writes
    (folder / ".00000003.new/.tmpa1B2c3").touch()
    checkpoint.remove_all(folder)
    checkpoint.remove_all(folder)
    assert names(tmp_path) == []


def test_a_folder_that_is_gone_is_not_made_for_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_run(tmp_path / "gone/checkpoints", 1, *stepped())
    assert names(tmp_path) == []


def test_an_author_checkpoint_loads_with_its_namespace_and_every_key(tmp_path):
    model = small_model(0)
    args = argparse.Namespace(model="linear_tiny", drop=0.1, output_dir="out")
    content = {"model": author_state(model), "optimizer": {"state": {}}, "epoch": 299, "args": args}
    torch.save(content, tmp_path / "w.pth")
    assert same_weights(load_weights(small_model(1), tmp_path / "w.pth"), model)

    del content["model"]["blocks.1.mlp2.fc1.bias"]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"blocks.1.mix_patches.mix.fc1.bias is missing"):
        load_weights(small_model(1), tmp_path / "w.pth")


def test_the_authors_first_branch_is_over_features(tmp_path):
    state = author_state(small_model())
    assert state["blocks.0.mlp1.fc1.weight"].shape == (4 * 8, 8)
    assert state["blocks.0.mlp2.fc1.weight"].shape == (4 * 5, 5)
    assert state["blocks.0.norm2.weight"].shape == (5,)


def test_weights_of_a_timm_vit_keep_their_names(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", **SHAPE)
    save_weights(tmp_path / "w.safetensors", vit)
    assert load_file(tmp_path / "w.safetensors").keys() == vit.state_dict().keys()
    loaded = load_weights(timm.create_model("vit_tiny_patch16_224", **SHAPE), tmp_path / "w.safetensors")
    assert same_weights(loaded, vit)
