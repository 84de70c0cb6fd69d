"""Maps over patches: what they measure, whose they are, and what is shown where."""

import math
import os
from dataclasses import replace

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import ffvit.models  # noqa: F401, registers the models
from ffvit.data.loader import Batch
from ffvit.evidence import interactive
from ffvit.settings.experiment import load_experiment
from ffvit.studies import patch_maps, patch_mixer, trained_models
from ffvit.studies.patch_maps import frequency, spread
from ffvit.system.errors import InputError
from ffvit.training.train import train

SHAPE = dict(img_size=16, patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=2, num_heads=3)


def small(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **SHAPE).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def batches(size):
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return [Batch(part, torch.zeros(len(part), dtype=int), []) for part in images.split(size)]


# Spread and frequency


def test_a_map_of_one_patch_reaches_nowhere_and_two_reach_half_their_distance():
    single, pair = np.zeros((4, 6)), np.zeros((4, 6))
    single[1, 2] = 3.0
    pair[1, 1] = pair[1, 5] = 0.5
    assert spread(single) == 0
    assert spread(pair) == pytest.approx(2.0)


def test_the_same_weight_everywhere_has_the_spread_of_a_uniform_distribution():
    grid = (4, 6)
    assert patch_maps.without_order(grid)[0] == pytest.approx(math.sqrt((4**2 - 1 + 6**2 - 1) / 12))


def test_frequency_is_that_of_a_wave_whatever_its_height_and_mean():
    columns = np.arange(8)
    waves = np.stack([7 + 3 * np.cos(2 * np.pi * columns * k / 8) * np.ones((8, 1)) for k in (1, 2, 4)])
    assert frequency(waves) == pytest.approx([1 / 8, 2 / 8, 4 / 8])
    checkerboard = (np.indices((8, 8)).sum(axis=0) % 2).astype(float)
    assert frequency(checkerboard) == pytest.approx(math.hypot(0.5, 0.5))
    assert np.isnan(frequency(np.ones((8, 8))))


def test_noise_has_the_frequency_of_a_map_without_order():
    noise = np.random.default_rng(0).normal(size=(2000, 5, 5))
    assert frequency(noise).mean() == pytest.approx(patch_maps.without_order((5, 5))[1], rel=0.02)


# Whose maps


def test_what_a_unit_takes_is_how_its_input_depends_on_each_patch():
    model = small("ff_tiny_patch16_224")
    branch, units = model.blocks[1].mix_patches, patch_maps.units_of(model)[1]
    seen = []
    branch.mix.act.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))  # (hidden, features)
    normed = torch.randn(1, 17, 12, requires_grad=True)
    branch.norm.forward = lambda x: x * branch.norm.weight  # the part of it that belongs to a token
    branch(normed)
    seen[0][7, 5].backward()  # unit 8 of feature 6
    assert units.taken[7].ravel() == pytest.approx(normed.grad[0, 1:, 5].numpy(), rel=1e-5)
    assert units.given[7].ravel() == pytest.approx(branch.mix.fc2.weight[1:, 7].detach().numpy())
    assert units.taken.shape == units.given.shape == (68, 4, 4)


def test_the_strongest_units_come_first():
    taken, given = np.ones((3, 2, 2)), np.ones((3, 2, 2))
    taken[1] *= 5
    given[2] *= 9
    assert patch_maps.Units(taken, given).strongest.tolist() == [2, 1, 0]


def test_attention_is_the_mean_over_images_whatever_their_batches_and_leaves_nothing_behind():
    model = small("vit_tiny_patch16_224")
    fused = model.blocks[0].attn.fused_attn
    together, apart = (patch_maps.attention_of(model, batches(size)) for size in (6, 1))
    assert [maps.shape for maps in together] == [(3, 16, 4, 4)] * 2
    for a, b in zip(together, apart):
        assert a.sum(axis=(-2, -1)) == pytest.approx(np.ones((3, 16)))
        assert a == pytest.approx(b, abs=1e-6)
    assert not any(module._forward_hooks for module in model.modules())
    assert model.blocks[0].attn.fused_attn == fused


def test_models_without_such_maps_are_refused():
    with pytest.raises(InputError, match="no feed-forward layer over patches"):
        patch_maps.units_of(small("vit_tiny_patch16_224"))
    with pytest.raises(InputError, match="no attention over patches"):
        patch_maps.attention_of(small("ff_tiny_patch16_224"), batches(6))
    with pytest.raises(InputError, match="digits-attention-only needs a model that is FF only, and a ViT"):
        patch_mixer.subjects(load_experiment("digits-attention-only"))
    assert patch_mixer.subjects(load_experiment("digits")) == ("ff", "vit")


def test_untrained_is_the_very_model_that_a_run_began_with(tmp_path):
    still = dict(base_lr=0.0, warmup_lr=0.0, min_lr=0.0, weight_decay=0.0, epochs=1, warmup_epochs=0)
    config = replace(load_experiment("digits").config("ff", 3, max_train_images=64), **still)
    train(config, tmp_path)
    state = torch.random.get_rng_state()
    before = trained_models.untrained(config, 10).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    begun = load_file(tmp_path / "last.safetensors")
    assert begun.keys() == before.keys()
    assert all(torch.equal(begun[key], before[key]) for key in begun)


# What is shown


def by_layer(spread, untrained_spread):
    """Two layers, whose frequencies are lower than those of three untrained seeds."""
    lower, higher = np.full(2, 0.1), np.full((3, 2), 0.3)
    return patch_maps.ByLayer(np.array(spread), lower, np.array(untrained_spread), higher)


SEEDS = [[2.0, 2.1], [2.1, 2.0], [2.2, 2.2]]  # of two layers


def test_numbers_of_maps_are_by_layer_and_seed():
    far, near = np.ones((2, 4, 4)), np.zeros((2, 4, 4))
    near[:, 1, 1] = 1.0
    local, flat = patch_maps.Units(near, near), patch_maps.Units(far, far)
    found = patch_maps.measured([local, flat], [[flat, local]] * 3)
    assert found.spread == pytest.approx([0.0, math.sqrt(2.5)])
    assert found.untrained_spread == pytest.approx(np.array([[math.sqrt(2.5), 0.0]] * 3))
    assert found.frequency.shape == (2,) and found.untrained_frequency.shape == (3, 2)


@pytest.mark.parametrize(
    "spread, said",
    [(1.9, "as predicted"), (2.0, "no difference"), (2.15, "no difference"), (2.3, "contradicted")],
)
def test_a_difference_is_one_where_it_is_beyond_the_untrained_seeds(spread, said):
    table = patch_mixer.table({patch_mixer.FF: by_layer([spread, 1.0], SEEDS)})
    assert table["Found"].tolist() == [said, *["as predicted"] * 3]
    assert table["Untrained, 3 seeds"].tolist()[:2] == ["2.000 to 2.200", "2.000 to 2.200"]


@pytest.mark.parametrize(
    "spread, said, ends",
    [
        ([1.0, 1.5], "as predicted", "in the first is as predicted."),
        ([1.5, 1.45], "no difference", "in the first is not shown: untrained seeds differ by as much."),
        ([1.5, 1.0], "contradicted", "in the first is contradicted."),
    ],
)
def test_that_attention_reaches_farther_with_depth_is_judged_too(spread, said, ends):
    found = {patch_mixer.ATTENTION: by_layer(spread, SEEDS)}
    last = patch_mixer.table(found).iloc[-1]
    assert (last["Layer"], last["Untrained, 3 seeds"], last["Found"]) == ("last − first", "−0.100 to +0.100", said)
    assert ends in patch_mixer.conclusion(found, (4, 4))
    assert "last − first" not in set(patch_mixer.table({patch_mixer.FF: found[patch_mixer.ATTENTION]})["Layer"])


def test_the_conclusion_counts_layers_and_leaves_out_those_without_a_difference():
    told = patch_mixer.conclusion({patch_mixer.FF: by_layer([2.1, 2.3], SEEDS)}, (4, 4))
    assert (
        "training made the maps more local in 0 of 2 layers (less so in 1, no different in 1) and smoother in" in told
    )
    assert "smoother in 2 of 2 layers; the first layer reaches 2.10 patches, the last 2.30" in told


def test_untrained_seeds_begin_with_the_runs_own_and_differ():
    config = load_experiment("digits").config("ff", 3)
    first, *others = (model.state_dict() for model in patch_mixer.untrained(config, 10))
    own = trained_models.untrained(config, 10).state_dict()
    name = "blocks.0.mix_patches.mix.fc1.weight"
    assert torch.equal(first[name], own[name]) and len(others) == 38
    assert not any(torch.equal(first[name], other[name]) for other in others)


def test_the_layers_are_drawn_with_the_range_of_untrained_seeds():
    figure = patch_mixer.layers_figure({patch_mixer.FF: by_layer([1.0, 1.5], SEEDS)}, (4, 4))
    panel = figure.axes[0]
    trained, mean = panel.lines[1:]
    assert list(trained.get_ydata()) == [1.0, 1.5] and mean.get_ydata() == pytest.approx([2.1, 2.1])
    low, high = panel.collections[0].get_datalim(panel.transData).intervaly
    assert (low, high) == pytest.approx((2.0, 2.2))
    plt.close(figure)


@pytest.mark.parametrize("by_hand", [False, True])
def test_sliders_are_for_jupyterlab_and_a_picture_for_everyone_else(by_hand, monkeypatch):
    plt.close("all")
    shown, drawn = [], []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setitem(os.environ, "JPY_SESSION_NAME", "/notebooks/18_patch_mixer.ipynb")
    if not by_hand:
        monkeypatch.delenv("JPY_SESSION_NAME")
    units = patch_maps.units_of(small("ff_tiny_patch16_224"))

    def draw(layer, unit):
        drawn.append((layer, unit))
        return patch_mixer.unit_figure(units, layer, unit)

    interactive.explore(draw, lambda: patch_mixer.layer_figure(units, 2), layer=2, unit=68)
    assert drawn == ([(1, 1)] if by_hand else [])
    assert [type(each).__name__ for each in shown][-1] == ("VBox" if by_hand else "Figure")
    if by_hand:
        row, _ = shown[-1].children
        row.children[0].value = 2
        assert drawn[-1] == (2, 1)
        assert [slider.max for slider in row.children] == [2, 68]
    assert not plt.get_fignums()


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="layer 3: this model has layers 1 to 2"):
        patch_mixer.layer_figure(patch_maps.units_of(small("ff_tiny_patch16_224")), 3)
