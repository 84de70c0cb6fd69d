"""Tokens that become alike: the residual, the theorem's bound, and what is said of the three readings."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch import nn

import ffvit.models  # noqa: F401, registers the models
from ffvit.data.loader import Batch
from ffvit.evidence.measured import everything
from ffvit.evidence.records import load_records
from ffvit.settings.experiment import load_experiment
from ffvit.studies import rank_collapse, token_residuals
from ffvit.studies.token_residuals import Bound, Depths
from ffvit.system.errors import InputError

SHAPE = dict(img_size=16, patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=3, num_heads=3)
READINGS = ["attention", "attention_over_tokens", "attention_unprojected"]


def small(std=0.02, **kwargs):
    torch.manual_seed(0)
    model = timm.create_model("attention_only_tiny_patch16_224", **SHAPE | kwargs)
    for name, parameter in model.named_parameters():
        if "qkv" in name or "proj.weight" in name:
            nn.init.normal_(parameter, std=std)
    return model


def batches(size=6, scale=1.0):
    images = scale * torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return [Batch(part, torch.zeros(len(part), dtype=int), []) for part in images.split(size)]


def test_the_residual_is_what_sets_tokens_apart():
    alike = torch.ones(5, 1) @ torch.randn(1, 4)
    apart = torch.randn(5, 4)
    assert token_residuals.residual(alike).abs().max() < 1e-6
    assert torch.allclose(token_residuals.residual(apart + alike), token_residuals.residual(apart), atol=1e-6)
    assert token_residuals.relative_residual(torch.zeros(5, 4).double()) == 0


def test_the_norm_is_the_root_of_the_largest_column_sum_times_the_largest_row_sum():
    x = torch.tensor([[1.0, -2.0], [3.0, 0.0], [0.0, 4.0]])
    assert token_residuals.composite_norm(x) == math.sqrt(6 * 4)


def test_the_means_residual_is_at_most_twice_the_smallest():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator).double()
    mean = token_residuals.composite_norm(token_residuals.residual(x))
    others = x - torch.randn(2000, 1, 5, generator=generator).double()
    assert mean <= 2 * token_residuals.composite_norm(others).min()


@pytest.mark.parametrize("features", READINGS)
@pytest.mark.parametrize("std", [0.02, 0.06])
def test_attention_over_tokens_alone_stays_under_the_bound(features, std):
    found = token_residuals.theorem(small(std, features=features), batches())
    assert found.holds
    seen = np.isfinite(found.measured)
    assert seen[:2].all()
    for bound in (found.from_start, found.from_last):
        assert (found.measured <= bound + math.log10(2))[seen].all()
    assert len(found.measured) == 1 + (2 if features == "attention_over_tokens" else 1) * SHAPE["depth"]


def test_a_bound_that_is_broken_and_scores_too_far_apart_are_told():
    assert not token_residuals.theorem(small(3.0), batches(scale=10)).holds
    line = np.array([0.0, -3.0])
    assert rank_collapse._under(Bound(line, line, line, True)) == "yes"
    assert rank_collapse._under(Bound(line, line, line - 1, False)) == "no; its condition on the scores fails"
    assert rank_collapse._under(Bound(np.array([0.0, np.nan]), line, line, True)) == "yes"
    assert rank_collapse._under(Bound(line, -line, line, True)) == "yes, for one layer; the theorem's own line rises"


def test_the_bound_is_the_theorems_by_its_formula():
    model = small(features="attention_over_tokens", num_heads=1, depth=1)
    found = token_residuals.theorem(model, batches(1))
    betas = []
    for branch in model.blocks[0].branches:
        query, key, value = branch.mix.qkv.weight.view(3, 12, 12)
        scores, values = query.t() @ key, value.t() @ branch.mix.proj.weight.t()
        betas.append((scores.abs().sum(dim=0).max() * token_residuals.composite_norm(values)).item())
    factor = 4 * math.sqrt(17) * max(betas) / math.sqrt(12)
    expected = factor ** ((3**2 - 1) / 2) * (10 ** found.measured[0]) ** (3**2)
    assert found.from_start[2] == pytest.approx(math.log10(expected))


@pytest.mark.parametrize("features", READINGS)
def test_depths_follow_the_model_and_leave_the_skip_connections_out(features):
    model = small(features=features, patch_norm="channels")
    found = token_residuals.by_depth(model, batches(4))
    assert [len(line) for line in found] == [SHAPE["depth"] + 1] * 2
    assert found.with_skips[0] == found.without_skips[0] > 0.1
    assert found.with_skips[-1] > rank_collapse.ALIKE
    images = torch.cat([batch.images for batch in batches()]).double()
    seen = []
    model.norm.register_forward_hook(lambda _module, given, _output: seen.append(given[0]))
    model(images)
    assert token_residuals.relative_residual(seen[0]).mean().item() == pytest.approx(found.with_skips[-1])


def test_two_attentions_over_tokens_without_skips_make_all_tokens_alike():
    found = token_residuals.by_depth(small(features="attention_over_tokens"), batches())
    assert found.without_skips[-1] < rank_collapse.ALIKE < found.with_skips[-1]


def test_what_cannot_be_followed_is_refused():
    with pytest.raises(InputError, match="models of this library only"):
        token_residuals.by_depth(timm.create_model("vit_tiny_patch16_224", **SHAPE), batches())
    ff = timm.create_model("ff_tiny_patch16_224", **SHAPE)
    with pytest.raises(InputError, match="no attention over tokens"):
        token_residuals.theorem(ff, batches())
    unread = [batch._replace(target=batch.target - 1) for batch in batches()]
    for measure in (token_residuals.by_depth, token_residuals.theorem):
        with pytest.raises(InputError, match="no image to look at can be read"):
            measure(small(), unread)


def test_predictions_are_judged_by_the_numbers():
    experiment = load_experiment("digits-attention-only")
    collapsed, apart = (
        Depths(np.array([1.0, 0.9]), np.array([1.0, 1e-9])),
        Depths(np.array([1.0, 0.9]), np.array([1.0, 0.5])),
    )
    depths = {"over_tokens": collapsed, "unprojected": apart, "ff": apart}
    table = rank_collapse.residuals(experiment, depths, depths, {})
    said = pd.Series(table.iloc[:, 5].values, index=zip(table["Reading"], table["Weights"]))
    assert said["twice over the tokens", "trained"] == "as predicted"
    assert said["over the transposed map, unprojected", "trained"] == "contradicted"
    assert said["FF only", "trained"] == "as predicted"  # of it, the opposite was predicted


@pytest.mark.parametrize(
    "points, said",
    [
        ([9.0, 10.0, 11.0], "as the report says"),
        ([0.0, 0.2, 0.1], "contradicted"),
        ([0.0, 20.0, 1.0], "undecided"),
        ([9.0], "undecided: no interval"),
        ([], ""),
    ],
)
def test_a_reading_behaves_as_the_report_says_by_its_interval(points, said):
    assert rank_collapse._as_the_report(points, rank_collapse.close()) == said


def test_the_conclusion_has_a_line_a_prediction():
    experiment = load_experiment("digits-attention-only")
    line = np.array([0.0, -3.0])
    bounds = {"over_tokens, trained": Bound(line, line, line, True), "other": Bound(line, line, line - 1, False)}
    depths = {
        "over_tokens": Depths(np.array([1.0, 0.9]), np.array([1.0, 1e-9])),
        "ff": Depths(np.array([1.0, 0.9]), np.array([1.0, 0.5])),
    }
    records = [r for r in load_records("digits-attention-only") if r["config"]["name"] in depths]
    for record in records:
        record["results"]["top1_percent"] = (
            99.0 if record["config"]["name"] == "ff" else 90.0 - record["config"]["seed"]
        )
    found = everything(experiment, records)
    told = rank_collapse.conclusion(
        experiment, found, depths, {"over_tokens": depths["ff"], "ff": depths["ff"]}, bounds
    )
    assert told.splitlines() == [
        "Attention over tokens alone is under the bound in 1 of 2 cases. The theorem's own line, from the first layer's input, "
        "falls in 2 of them; where it rises, only that for one layer can be broken. The proof's condition on the scores holds in 1.",
        "Alike after the last block, where skip connections are left out: twice over the tokens, trained. What was predicted "
        "of that is contradicted in 1 of 4 cases: twice over the tokens, untrained.",
        "Points lacking to FF only, more than 5 by the report: twice over the tokens +10.00 (n=3), as the report says. "
        "Lacks least: twice over the tokens; expected: twice over the tokens.",
    ]
    told = rank_collapse.conclusion(experiment, {}, {"ff": depths["ff"]}, {"ff": depths["ff"]}, {})
    assert "the tokens of no model" in told and told.endswith("there is nothing to say.")
    assert "contradicted in 0 of 2 cases." in told


def test_what_stays_near_one_is_drawn_on_a_linear_axis_and_what_vanishes_on_a_logarithmic_one():
    experiment = load_experiment("digits-attention-only")
    depths = {"ff": Depths(np.array([1.0, 0.9]), np.array([1.0, 1e-12]))}
    left, right = rank_collapse.depth_figure(experiment, depths, depths).axes
    assert (left.get_yscale(), left.get_ylim()) == ("linear", (0, 1.2))
    assert right.get_yscale() == "log" and min(right.lines[0].get_ydata()) == rank_collapse.FLOOR
    plt.close("all")
