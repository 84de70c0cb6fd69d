import argparse
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.optim import create_optimizer_v2

from ffvit.checkpoint import (
    AUTHOR_NAMES,
    load_training_state,
    load_weights,
    save_training_state,
    save_weights,
    write_atomically,
)
from ffvit.config import InputError
from ffvit.models import PatchFeatureMixer

SHAPE = dict(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


def small_model(seed=0):
    torch.manual_seed(seed)
    return PatchFeatureMixer(**SHAPE)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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
    ],
)
def test_weights_of_another_model_are_refused_by_key_and_shape(tmp_path, change, trouble):
    model = small_model(0)
    save_file(change(model.state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=trouble):
        load_weights(model, tmp_path / "w.safetensors")
    assert same_weights(model, small_model(0))


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_checkpoint_that_would_run_code_is_refused_unrun(tmp_path, save):
    target = tmp_path / "executed"
    save({"model": {"norm.bias": Bomb(target)}}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="cannot be read safely"):
        load_weights(small_model(), tmp_path / "w.pth")
    assert not target.exists()


def test_a_file_with_another_hash_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small_model())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load_weights(small_model(), path, sha256=digest)
    with pytest.raises(InputError, match=f"sha256 is {digest}"):
        load_weights(small_model(), path, sha256="0" * 64)


def test_training_goes_on_from_a_saved_state_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    images, target = torch.randn(4, 6, 1, 8, 8), torch.randint(3, (4, 6))

    def start(seed):
        model, ema = small_model(seed), small_model(seed)
        return model, ema, torch.optim.AdamW(model.parameters(), lr=0.01 * (seed + 1), betas=(0.8, 0.99))

    def steps(model, ema, optimizer, which):
        for i in which:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[i]), target[i]).backward()
            optimizer.step()
            for averaged, parameter in zip(ema.parameters(), model.parameters()):
                averaged.data.lerp_(parameter.data, 0.5)

    model, ema, optimizer = start(0)
    steps(model, ema, optimizer, [0, 1])
    progress = {"history": [{"epoch": 1, "train_loss": 0.1 + 0.2}]}
    save_training_state(tmp_path / "state.safetensors", {"model": model, "ema": ema}, optimizer, progress)
    steps(model, ema, optimizer, [2, 3])

    resumed, resumed_ema, resumed_optimizer = start(1)
    saved = {"model": resumed, "ema": resumed_ema}
    assert load_training_state(tmp_path / "state.safetensors", saved, resumed_optimizer) == progress
    steps(resumed, resumed_ema, resumed_optimizer, [2, 3])
    assert same_weights(resumed, model)
    assert same_weights(resumed_ema, ema)


@pytest.mark.parametrize("name", ["sgd", "lion", "lamb", "adabelief"])
def test_the_state_of_other_optimisers_can_be_saved_too(tmp_path, name):
    model = small_model()
    optimizer = create_optimizer_v2(model, opt=name, lr=0.01, momentum=0.9)
    model(torch.zeros(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    save_training_state(tmp_path / "state.safetensors", {"model": model}, optimizer, {})
    load_training_state(tmp_path / "state.safetensors", {"model": small_model(1)}, optimizer)


def test_a_truncated_training_state_is_refused(tmp_path):
    model, path = small_model(), tmp_path / "state.safetensors"
    optimizer = torch.optim.AdamW(model.parameters())
    save_training_state(path, {"model": model}, optimizer, {})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="not a whole training state.*delete it"):
        load_training_state(path, {"model": model}, optimizer)


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
