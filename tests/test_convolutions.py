"""Notebook 13: the network is rebuilt from convolutions alone, a difference is seen, and receptive fields are where they are."""

import numpy as np
import pytest
import torch
from torch import nn

from ffvit.data.loader import Batch
from ffvit.models.ff import PatchFeatureMixer
from ffvit.settings.experiment import load_experiment
from ffvit.studies import convolutions
from ffvit.system.errors import InputError
from ffvit.training.train import train

SMALL = dict(img_size=16, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


def small(**options):
    torch.manual_seed(0)
    return PatchFeatureMixer(**SMALL | options)


def batches(images=4):
    x = torch.randn(images, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return [Batch(x, torch.zeros(images, dtype=torch.long), [])]


def test_the_rebuilt_network_has_no_linear_layer_in_its_blocks_and_as_many_weights():
    model = small()
    rebuilt = convolutions.as_convolutions(model)
    assert not any(isinstance(module, nn.Linear) for module in rebuilt.blocks.modules())
    assert sum(isinstance(module, nn.Conv1d) for module in rebuilt.blocks.modules()) == 2 * 2 * 2
    assert sum(p.numel() for p in rebuilt.parameters()) == sum(p.numel() for p in model.parameters())


def test_a_convolution_over_patches_is_as_long_as_the_row_and_has_one_channel():
    first, second = convolutions.as_convolutions(small()).blocks[0].mix_patches.mix.convs
    assert (first.in_channels, first.kernel_size) == (1, (17,)) and second.kernel_size == (1,)
    over_features = convolutions.as_convolutions(small()).blocks[0].mix_features.mix.convs
    assert {conv.kernel_size for conv in over_features} == {(1,)} and over_features[0].in_channels == 8


def test_outputs_and_gradients_are_the_same_to_rounding():
    table = convolutions.equality("small", small(), batches()[0].images)
    assert set(table["Found"]) == {"the same, to rounding"} and len(table) == 3
    assert max(map(float, table["Outputs differ by"])) < 1e-12


@pytest.mark.parametrize("branch", ["mix_features", "mix_patches"])
def test_a_weight_that_differs_by_a_millionth_is_seen(branch, monkeypatch):
    rebuild = convolutions.as_convolutions

    def bent(model):
        rebuilt = rebuild(model)
        with torch.no_grad():
            getattr(rebuilt.blocks[0], branch).mix.convs[0].weight.mul_(1 + 1e-6)
        return rebuilt

    monkeypatch.setattr(convolutions, "as_convolutions", bent)
    found = convolutions.equality("small", small(), batches()[0].images)["Found"].tolist()
    assert found[0 if branch == "mix_features" else 1] == found[2] == "not the same"


def test_a_model_that_mixes_no_patches_sees_its_own_alone():
    model = small()
    for block in model.blocks:
        nn.init.zeros_(block.mix_patches.mix.fc2.weight)
    field = convolutions.receptive_field(model, batches())
    assert field.shape == (16, 16) and np.argwhere(field > 0).min() == 8 and np.argwhere(field > 0).max() == 11
    assert convolutions.reach(field, 4)["own"] == pytest.approx(100)
    assert (convolutions.receptive_field(small(), batches()) > 0).all()


def test_padding_of_a_batch_counts_for_nothing():
    [batch] = batches()
    padded = batch._replace(target=torch.tensor([0, 0, -1, -1]))
    half = Batch(batch.images[:2], batch.target[:2], [])
    np.testing.assert_allclose(
        convolutions.receptive_field(small(), [padded]), convolutions.receptive_field(small(), [half])
    )


def test_reach_of_what_is_known():
    even = convolutions.reach(np.ones((16, 16)), 4)
    assert even["own"] == pytest.approx(100 / 16)
    corner = np.zeros((16, 16))
    corner[0, 0] = 1
    assert convolutions.reach(corner, 4) == {"own": 0, "distance": pytest.approx(9.5 * 2**0.5)}


def test_the_summary_says_what_does_not_count_and_who_looks_near():
    near = np.ones((16, 16))
    near[8:12, 8:12] = 9
    blind = np.ones((16, 16))
    blind[8:12, 8:12] = 0
    told = convolutions.receptive_fields_summary({"near": near, "blind": blind}, 4).splitlines()
    assert told[0].startswith(
        "near: every pixel counts; 6.0 times its share on the own patch, and it looks nearer than even"
    )
    assert told[1].startswith("blind: 16 pixels do not count; 0.0 times") and "no nearer than even" in told[1]


def test_receptive_fields_are_of_the_runs_that_an_experiment_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path)
    experiment = load_experiment("digits")
    config = experiment.config("ff", epochs=1, warmup_epochs=0, device="cpu", max_train_images=64)
    train(config, config.run_dir)
    fields, source = convolutions.receptive_fields(experiment, ["ff"], max_eval_images=8)
    assert fields.keys() == {"FF only"} and fields["FF only"].shape == (8, 8)
    assert "of run ff-seed0 of digits" in source
    assert "trained here" in source
    _, source = convolutions.receptive_fields(experiment, ["vit"], max_eval_images=8)
    assert "of run vit-seed0 of digits, recorded, kept with the project" in source
    lit = load_experiment("digits-lit")
    with pytest.raises(InputError, match="all-seed0 holds no run; train it first"):
        convolutions.receptive_fields(lit, ["all"])
