import argparse
import math
import sys
import types

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from ffvit.models import lit
from ffvit.models.cost import count_macs, count_parameters
from ffvit.models.lit import (
    DeformableConv,
    DeformableMerging,
    GlobalAttention,
    RelativeLIT,
    relative_position_index,
)
from ffvit.models.weights import load_weights, save_weights
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError
from ffvit.training import optim

PARAMETERS = {"lit_ti": 19_886_272, "lit_s": 27_973_720, "lit_m": 49_372_264, "lit_b": 87_292_384}
MACS = {"lit_ti": 3_613_743_104, "lit_s": 4_076_614_656, "lit_m": 8_592_454_656, "lit_b": 15_027_531_776}
# Patches, positions and class token, then stage and merging in turn, final norm, head.
PARAMETERS_OF_PARTS = {
    "lit_ti": [3264, 389_888, 198_720, 35_208, 1_054_208, 168_904, 7_397_760, 667_144, 9_457_152, 1024, 513_000],
    "lit_s": [4896, 0, 148_800, 77_384, 592_512, 302_216, 10_699_272, 1_194_248, 14_183_856, 1536, 769_000],
    "lit_m": [4896, 0, 148_800, 77_384, 592_512, 302_216, 32_097_816, 1_194_248, 14_183_856, 1536, 769_000],
    "lit_b": [6528, 0, 263_936, 135_944, 1_052_160, 534_024, 56_952_864, 2_116_616, 25_203_264, 2048, 1_025_000],
}
WIDTHS = {"lit_ti": [64, 128, 320, 512], "lit_b": [128, 256, 512, 1024]}
WIDTHS["lit_s"] = WIDTHS["lit_m"] = [96, 192, 384, 768]
DEPTHS = {"lit_ti": [3, 4, 6, 3], "lit_s": [2, 2, 6, 2], "lit_m": [2, 2, 18, 2], "lit_b": [2, 2, 18, 2]}
HEADS = {"lit_ti": [5, 8], "lit_s": [12, 24], "lit_m": [12, 24], "lit_b": [16, 32]}  # of stages 3 and 4
LINEAGES = ["lit_ti", "lit_s"]
MERGINGS = [{"deformable": True}, {"learn_offsets": False}, {"deformable": False}]
SMALL = dict(
    img_size=32,
    patch_size=2,
    in_chans=1,
    num_classes=5,
    embed_dims=(4, 8, 12, 16),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
    drop_path_rate=0.0,
)


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def small(name, **kwargs):
    return timm.create_model(name, **SMALL | kwargs)


def randomised(model):
    """Biases, norms, statistics and offsets too, so that a swapped or forgotten one shows."""
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
        nn.init.normal_(tensor, std=0.3)
    for module in model.modules():
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def official_shapes(name, full_msa=False):
    """Keys and shapes of the official checkpoint, written out from its layout. full_msa: of pvt_full_msa.pth, like lit_ti's."""
    shapes = {}
    widths = WIDTHS[name]

    def both(key, *weight):
        shapes[f"{key}.weight"], shapes[f"{key}.bias"] = weight, weight[:1]

    for s, (width, depth) in enumerate(zip(widths, DEPTHS[name]), 1):
        ratio = 8 if name == "lit_ti" and s < 3 else 4
        for i in range(depth):
            block = f"block{s}.{i}" if name == "lit_ti" else f"layers.{s - 1}.blocks.{i}"
            both(f"{block}.norm2", width)
            both(f"{block}.mlp.fc1", ratio * width, width)
            both(f"{block}.mlp.fc2", width, ratio * width)
            if s >= 3 or full_msa:
                both(f"{block}.norm1", width)
                both(f"{block}.attn.qkv", 3 * width, width)
                both(f"{block}.attn.proj", width, width)
                if name != "lit_ti":
                    tokens, offsets = {3: (14 * 14, 27 * 27), 4: (7 * 7, 13 * 13)}[s]
                    shapes[f"{block}.attn.relative_position_bias_table"] = (offsets, HEADS[name][s - 3])
                    shapes[f"{block}.attn.relative_position_index"] = (tokens, tokens)
        if s > 1 and full_msa:
            both(f"patch_embed{s}.proj", width, widths[s - 2], 2, 2)
            both(f"patch_embed{s}.norm", width)
        elif s > 1:
            merging = f"patch_embed{s}" if name == "lit_ti" else f"layers.{s - 2}.downsample"
            both(f"{merging}.dconv", width, widths[s - 2], 2, 2)
            both(f"{merging}.dconv.conv_offset", 8, widths[s - 2], 2, 2)
            both(f"{merging}.norm_layer", width)
            shapes[f"{merging}.norm_layer.running_mean"] = shapes[f"{merging}.norm_layer.running_var"] = (width,)
            shapes[f"{merging}.norm_layer.num_batches_tracked"] = ()
    patch_embed = "patch_embed1" if name == "lit_ti" else "patch_embed"
    both(f"{patch_embed}.proj", widths[0], 3, 4, 4)
    both(f"{patch_embed}.norm", widths[0])
    both("norm", widths[3])
    both("head", 1000, widths[3])
    if name == "lit_ti":
        shapes["cls_token"] = (1, 1, 512)
        for s, tokens in enumerate((56 * 56, 28 * 28, 14 * 14, 7 * 7 + 1), 1):
            shapes[f"pos_embed{s}"] = (1, tokens, widths[s - 1])
    return shapes


# The architecture, counted


def test_every_registered_lit_has_a_pinned_parameter_count():
    registered = {n for n in timm.list_models() if timm.model_entrypoint(n).__module__ == lit.__name__}
    assert registered == set(PARAMETERS) == set(lit.VARIANTS)


@pytest.mark.parametrize("name, entries", {"lit_ti": 190, "lit_s": 171, "lit_m": 339, "lit_b": 339}.items())
def test_keys_and_shapes_are_those_of_the_official_checkpoints(name, entries):
    state = on_meta(name).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == official_shapes(name)
    assert len(state) == entries
    integers = {key.split(".")[-1] for key, value in state.items() if value.dtype == torch.int64}
    assert integers == {"num_batches_tracked"} | ({"relative_position_index"} if name != "lit_ti" else set())


def test_keys_and_shapes_of_the_pvt_with_attention_everywhere_are_those_of_its_checkpoint():
    state = on_meta("lit_ti", attention_stages=(1, 2, 3, 4), deformable=False).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == official_shapes("lit_ti", full_msa=True)
    assert len(state) == 217


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_exactly_that_of_every_part(name):
    model = on_meta(name)
    stages = [sum(p.numel() for p in stage.parameters()) for stage in model.stages]
    mergings = [count_parameters(merging) for merging in model.mergings]
    positions = sum(p.numel() for n, p in model.named_parameters() if n.startswith(("pos_embed", "cls_token")))
    parts = [count_parameters(model.patch_embed), positions, stages[0]]
    parts += [count for pair in zip(mergings, stages[1:]) for count in pair]
    parts += [count_parameters(model.norm), count_parameters(model.head)]
    assert parts == PARAMETERS_OF_PARTS[name]
    assert sum(parts) == count_parameters(model) == PARAMETERS[name]


@pytest.mark.parametrize("name, millions", {"lit_ti": 19, "lit_s": 27, "lit_m": 48, "lit_b": 86}.items())
def test_the_published_millions_leave_out_the_classifier_and_round_down(name, millions):
    model = on_meta(name)
    assert (count_parameters(model) - count_parameters(model.head)) // 10**6 == millions


@pytest.mark.parametrize("name", MACS)
def test_multiply_adds_are_exactly(name):
    assert count_macs(on_meta(name), (3, 224, 224)) == MACS[name]


@pytest.mark.parity("the counts that LIT's official code prints")
@pytest.mark.parametrize(
    "name, official", {"lit_s": 4_081_669_692, "lit_m": 8_599_316_028, "lit_b": 15_036_676_156}.items()
)
def test_the_official_count_differs_by_norms_biases_and_two_slips(name, official):
    model = on_meta(name)
    tokens = [math.prod(grid) for grid in model.grids]

    def norms(part):  # one multiply-add an element
        return sum(m.weight.numel() for m in part.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d)))

    norm = tokens[0] * norms(model.patch_embed) + sum(n * norms(stage) for n, stage in zip(tokens, model.stages))
    norm += sum(n * norms(merging) for n, merging in zip(tokens[1:], model.mergings))
    norm += norms(model.norm) * tokens[0] // 16  # first slip: four times 49 tokens
    convs = [merging.dconv for merging in model.mergings]
    offsets = sum(
        n * 4 * (4 * c.in_channels) for n, c in zip(tokens[1:], convs)
    )  # second: 12 outputs of the offsets, not 8
    biases = sum(n * (12 + c.out_channels) for n, c in zip(tokens[1:], convs))
    assert count_macs(model, (3, 224, 224)) + norm + offsets + biases == official


@pytest.mark.parametrize(
    "stages, macs, parameters",
    [
        ((), 2.820, 14_262_208),
        ((4,), 2.985, 17_417_152),
        ((3, 4), 3.614, 19_886_272),
        ((2, 3, 4), 4.449, 20_151_488),
        ((1, 2, 3, 4), 8.379, 20_201_792),
    ],
)
def test_attention_in_more_stages_of_lit_ti_costs(stages, macs, parameters):
    model = on_meta("lit_ti", attention_stages=stages)
    assert count_parameters(model) == parameters
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 3) == macs
    with_attention = {s for s, blocks in enumerate(model.stages, 1) if any(block.attn for block in blocks)}
    assert with_attention == set(stages)


@pytest.mark.parametrize("stages, macs, parameters", [((1, 2, 3, 4), 8.376, 20_185_384), ((3, 4), 3.611, 19_869_864)])
def test_plain_merging_makes_lit_ti_a_pyramid_vision_transformer_that_costs(stages, macs, parameters):
    model = on_meta("lit_ti", attention_stages=stages, deformable=False)
    assert count_parameters(model) == parameters
    assert round(count_macs(model, (3, 224, 224)) / 1e9, 3) == macs


def test_lit_s_with_attention_in_an_early_stage_has_biases_for_its_map():
    model = on_meta("lit_s", attention_stages=(2, 3, 4))
    assert model.layers[1]["blocks"][0].attn.relative_position_bias_table.shape == (55 * 55, 6)
    assert count_parameters(model) == PARAMETERS["lit_s"] + 2 * (4 * 192 * 192 + 6 * 192 + 55 * 55 * 6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_first_two_stages_have_no_attention(name):
    stages = on_meta(name).stages
    parts = [{key.split(".")[1] for key in stage.state_dict()} for stage in stages]
    assert parts == [{"norm2", "mlp"}] * 2 + [{"norm1", "attn", "norm2", "mlp"}] * 2


@pytest.mark.parametrize(
    "name, last, step", [("lit_ti", 0.1, 15), ("lit_s", 0.2, 11), ("lit_m", 0.3, 23), ("lit_b", 0.5, 23)]
)
def test_drop_path_rises_in_equal_steps_over_all_blocks(name, last, step):
    rates = [block.drop_path.drop_prob for block in on_meta(name).blocks]
    assert rates == pytest.approx([last * i / step for i in range(step + 1)])
    assert all(sum(isinstance(m, DropPath) for m in block.modules()) == 1 for block in on_meta(name).blocks)


# Deformable token merging


def test_without_offsets_deformable_merging_is_a_strided_convolution():
    torch.manual_seed(0)
    conv, x = (
        DeformableConv(6, 10),
        torch.randn(5, 6, 7, 9),
    )  # odd: 3x4 windows; the official operator refuses batches of 5
    expected = F.conv2d(x, conv.weight, conv.bias, stride=2)
    assert expected.shape == (5, 10, 3, 4)
    torch.testing.assert_close(conv(x), expected, atol=1e-5, rtol=0)
    merging = DeformableMerging(6, 10).eval()
    expected = F.gelu(merging.norm_layer(F.conv2d(x, merging.dconv.weight, merging.dconv.bias, stride=2)))
    torch.testing.assert_close(merging(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channel, sampled", [(0, [4, 6, 12, 14]), (1, [1, 3, 9, 11])])
def test_even_offset_channels_move_a_tap_down_and_odd_ones_to_the_right(channel, sampled):
    conv = DeformableConv(1, 1)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 0, 0] = 1
        conv.bias.zero_()
        conv.conv_offset.bias[channel] = 1
    assert conv(torch.arange(16.0).reshape(1, 1, 4, 4)).flatten().tolist() == sampled


def sampled_by_hand(image, y, x):
    """Bilinear, with zeros outside. image: (C, H, W)."""
    height, width = image.shape[1:]
    value = torch.zeros(len(image), dtype=image.dtype)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(y - row)) * (1 - abs(x - column)) * image[:, row, column]
    return value


def test_deformable_convolution_equals_a_loop_over_its_taps():
    torch.manual_seed(0)
    conv, x = DeformableConv(2, 3).double(), torch.randn(1, 2, 6, 8, dtype=torch.float64)
    nn.init.normal_(conv.conv_offset.weight, std=1.5)  # far out of the map, too
    offset = conv.conv_offset(x)[0].detach()
    assert offset.std() > 2
    expected = conv.bias.detach()[:, None, None].repeat(1, 3, 4)
    for i in range(3):
        for j in range(4):
            for k, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
                y, x_ = 2 * i + a + offset[2 * k, i, j].item(), 2 * j + b + offset[2 * k + 1, i, j].item()
                expected[:, i, j] += conv.weight[:, :, a, b].detach() @ sampled_by_hand(x[0], y, x_)
    torch.testing.assert_close(conv(x)[0], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", LINEAGES)
def test_offsets_are_zero_at_first_and_learn_from_the_first_step(name):
    torch.manual_seed(0)
    model = small(name)
    offsets = {n: p for n, p in model.named_parameters() if "conv_offset" in n}
    assert len(offsets) == 6 and not any(p.any() for p in offsets.values())
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert all(p.grad.any() for p in offsets.values())


@pytest.mark.parametrize("name", LINEAGES)
def test_offsets_held_at_zero_change_no_other_weight_at_the_start(name):
    states = []
    for learn_offsets in (True, False):
        torch.manual_seed(0)
        states.append(small(name, learn_offsets=learn_offsets).state_dict())
    learned, held = states
    assert {key for key in learned if key not in held} == {key for key in learned if "conv_offset" in key}
    assert all(torch.equal(value, learned[key]) for key, value in held.items())


@pytest.mark.parametrize("autocast", [False, True])
def test_held_at_zero_and_not_yet_moved_offsets_give_the_same_output_and_gradients(autocast):
    torch.manual_seed(1)
    x, found = torch.randn(5, 7, 9, 6), []  # odd: a last row and column are left out
    for learn_offsets in (True, False):
        torch.manual_seed(0)
        merging, given = DeformableMerging(6, 10, learn_offsets), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = merging(given)
        assert y.dtype == torch.float32
        (y.sin() / y.numel()).sum().backward()
        found.append([y, given.grad, merging.dconv.weight.grad, *merging.norm_layer.buffers()])
    for learned, held in zip(*found):
        torch.testing.assert_close(held, learned, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LINEAGES)
def test_offsets_held_at_zero_stay_there_whatever_is_learned(name):
    torch.manual_seed(0)
    model, x = small(name, learn_offsets=False), torch.randn(4, 1, 32, 32)
    optimizer = optim.create_optimizer(load_experiment("imagenet-lit").config(name, base_lr=1.5e-3), model)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 3e-3]  # no third: there are no offset weights
    before = [merging.dconv.weight.clone() for merging in model.mergings]
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    for merging, start in zip(model.mergings, before):
        conv, tokens = merging.dconv, torch.randn(2, merging.dconv.in_channels, 6, 6)
        assert not torch.equal(conv.weight, start)
        assert torch.equal(conv(tokens), F.conv2d(tokens, conv.weight, conv.bias, stride=2))
    assert not any("offset" in key for key in model.state_dict())


def test_deformable_convolution_is_in_fp32_under_autocast(monkeypatch):
    torch.manual_seed(0)
    seen = []

    def recording(*tensors, **kwargs):
        assert not torch.is_autocast_enabled("cpu")
        seen.extend(t.dtype for t in tensors)
        return deform_conv2d(*tensors, **kwargs)

    monkeypatch.setattr(lit, "deform_conv2d", recording)
    conv, x = DeformableConv(6, 10), torch.randn(2, 6, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x.bfloat16())
        assert conv.conv_offset(x).dtype == torch.bfloat16  # and nothing outside of it
    assert y.dtype == torch.float32 and seen == [torch.float32] * 4
    torch.testing.assert_close(y, F.conv2d(x.bfloat16().float(), conv.weight, conv.bias, stride=2))
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16  # a model that is all bf16 stays so


@pytest.mark.parametrize("merging", MERGINGS)
@pytest.mark.parametrize("name", LINEAGES)
def test_training_runs_under_autocast(name, merging):
    torch.manual_seed(0)
    model = small(name, **merging)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(4, 1, 32, 32)).square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# Positions


def test_relative_positions_are_counted_row_by_row():
    stage3, stage4 = relative_position_index((14, 14)), relative_position_index((7, 7))
    assert set(stage3.diagonal().tolist()) == {364} and set(stage4.diagonal().tolist()) == {84}
    assert (stage3[0, -1], stage3[-1, 0], stage3.sum()) == (0, 728, 13_983_424)
    assert (stage4[-1, 0], stage4.sum()) == (168, 201_684)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 1)])
def test_the_bias_of_two_tokens_is_the_tables_entry_for_their_offset(grid):
    attention = GlobalAttention(8, 2, 0.0, grid)
    nn.init.normal_(attention.relative_position_bias_table)
    n = math.prod(grid)
    by_index = attention.relative_position_bias_table[attention.relative_position_index.flatten()]
    assert torch.equal(attention.bias(grid), by_index.view(n, n, 2).permute(2, 0, 1)[None])


def test_positions_of_another_map_are_resampled_from_the_stored_ones():
    attention = GlobalAttention(8, 2, 0.0, (7, 7))
    nn.init.normal_(attention.relative_position_bias_table)
    table = attention.relative_position_bias_table.T.reshape(1, 2, 13, 13)
    larger = F.interpolate(table, (9, 17), mode="bicubic", align_corners=False)[0].flatten(1)
    index = relative_position_index((5, 9))
    torch.testing.assert_close(attention.bias((5, 9))[0], larger[:, index], atol=1e-6, rtol=0)

    model = small("lit_ti")
    tokens = torch.zeros(1, 4 * 6, 8)
    stored = model.pos_embed2.transpose(1, 2).reshape(1, 8, 8, 8)
    expected = F.interpolate(stored, (4, 6), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.add_positions(1, tokens, (4, 6)), expected)
    # As many tokens in another shape are other positions: the official detectors overlook it.
    assert not torch.allclose(model.add_positions(1, torch.zeros(1, 64, 8), (4, 16)), model.pos_embed2)
    assert torch.equal(model.add_positions(1, torch.zeros(1, 64, 8), (8, 8)), model.pos_embed2)


@pytest.mark.parametrize("name", LINEAGES)
def test_positions_matter_and_learn_at_any_size(name):
    torch.manual_seed(0)
    model, x = randomised(small(name)), torch.randn(2, 1, 51, 38)
    before = model(x)
    before.square().sum().backward()
    positions = [p for n, p in model.named_parameters() if n.startswith("pos_embed") or n.endswith("bias_table")]
    assert positions and all(p.grad.any() for p in positions)
    with torch.no_grad():
        for parameter in positions:
            parameter.copy_(parameter.flip(-2))
    assert not torch.allclose(model(x), before, atol=1e-3)


# The model


def reference(state, name, x):
    """The logits of a small model, from its state dict and the formulas of the paper; only whole sizes."""
    heads = SMALL["num_heads"]
    eps = 1e-6 if name == "lit_ti" else 1e-5

    def norm(key, x, eps=eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{key}.weight"], state[f"{key}.bias"], eps)

    def linear(key, x):
        return x @ state[f"{key}.weight"].T + state[f"{key}.bias"]

    first = "patch_embed1" if name == "lit_ti" else "patch_embed"
    x = F.conv2d(x, state[f"{first}.proj.weight"], state[f"{first}.proj.bias"], stride=2)
    x = norm(f"{first}.norm", x.permute(0, 2, 3, 1), 1e-5).permute(0, 3, 1, 2)
    for s in range(4):
        if s:
            key = f"patch_embed{s + 1}" if name == "lit_ti" else f"layers.{s - 1}.downsample"
            offset = F.conv2d(x, *(state[f"{key}.dconv.conv_offset.{part}"] for part in ("weight", "bias")), stride=2)
            x = deform_conv2d(x, offset, state[f"{key}.dconv.weight"], state[f"{key}.dconv.bias"], stride=2)
            shift, scale, mean, variance = (
                state[f"{key}.norm_layer.{part}"][:, None, None]
                for part in ("bias", "weight", "running_mean", "running_var")
            )
            x = F.gelu((x - mean) / (variance + 1e-5).sqrt() * scale + shift)
        height, width = x.shape[2:]
        tokens = x.flatten(2).transpose(1, 2)
        if name == "lit_ti":
            if s == 3:
                tokens = torch.cat([state["cls_token"].expand(len(x), -1, -1), tokens], 1)
            tokens = tokens + state[f"pos_embed{s + 1}"]
        for i in range(SMALL["depths"][s]):
            block = f"block{s + 1}.{i}" if name == "lit_ti" else f"layers.{s}.blocks.{i}"
            if s >= 2:
                n, dim = tokens.shape[1:]
                qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
                q, k, v = (
                    part.reshape(len(x), n, heads[s], dim // heads[s]).transpose(1, 2) for part in qkv.split(dim, -1)
                )
                logits = q @ k.transpose(2, 3) / math.sqrt(dim // heads[s])
                if name != "lit_ti":
                    index = state[f"{block}.attn.relative_position_index"]
                    logits = logits + state[f"{block}.attn.relative_position_bias_table"][index].permute(2, 0, 1)
                mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(tokens.shape)
                tokens = tokens + linear(f"{block}.attn.proj", mixed)
            hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
            tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
        x = tokens[:, -height * width :].transpose(1, 2).reshape(len(x), -1, height, width)
    tokens = norm("norm", tokens)
    return linear("head", tokens[:, 0] if name == "lit_ti" else tokens.mean(1))


@pytest.mark.parametrize("name", LINEAGES)
def test_logits_equal_the_formulas(name):
    torch.manual_seed(0)
    model, x = randomised(small(name)).double(), torch.randn(3, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = reference(model.state_dict(), name, x)
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)
        assert expected.std(dim=0).min() > 1e-2  # images differ


@pytest.mark.parametrize("name", LINEAGES)
def test_an_image_of_224_pixels_gives_1000_logits_and_offsets_at_every_merging(name):
    model, offsets = timm.create_model(name).eval(), []
    for merging in model.mergings:
        merging.dconv.conv_offset.register_forward_hook(lambda m, x, y: offsets.append(tuple(y.shape)))
    with torch.inference_mode():
        assert model(torch.randn(2, 3, 224, 224)).shape == (2, 1000)
    assert offsets == [(2, 8, 28, 28), (2, 8, 14, 14), (2, 8, 7, 7)]
    assert count_macs(model, (3, 224, 224)) == MACS[name]  # as without memory


def test_the_class_token_of_lit_ti_enters_in_the_fourth_stage():
    model, lengths = on_meta("lit_ti"), []
    for stage in model.stages:
        stage[0].register_forward_hook(lambda m, x, y: lengths.append(y.shape[1]))
    assert model.forward_features(torch.zeros(1, 3, 224, 224, device="meta")).shape == (1, 50, 512)
    assert lengths == [3136, 784, 196, 50]
    norms = {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert norms.pop("patch_embed1.norm") == 1e-5 and set(norms.values()) == {1e-6}


def test_logits_depend_on_every_pixel_also_without_attention():
    for name, stages in [(name, stages) for name in LINEAGES for stages in [(), (3,), (4,)]]:
        torch.manual_seed(0)
        model = randomised(small(name, attention_stages=stages, deformable=False))  # moved taps may pass some pixels by
        x = torch.randn(1, 1, 32, 32, requires_grad=True)
        model(x).square().sum().backward()
        assert x.grad.all()


def test_lit_s_pools_by_the_mean_after_the_final_norm():
    model = randomised(small("lit_s"))
    tokens = model.forward_features(torch.randn(2, 1, 32, 32))
    assert tokens.shape == (2, 4, 16) and model.pool(torch.arange(3.0).reshape(1, 3, 1)) == 1
    assert {m.eps for m in on_meta("lit_s").modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


@pytest.mark.parity("LIT's official code, read")
@pytest.mark.parametrize("name", LINEAGES)
def test_weights_start_as_in_the_official_code(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    for key, tensor in model.named_parameters():
        module = model.get_submodule(key.rpartition(".")[0])
        if isinstance(module, nn.Linear) and key.endswith("weight") or "pos_embed" in key or "bias_table" in key:
            assert abs(tensor.std().item() - 0.02) < 0.002, key
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (tensor == float(key.endswith("weight"))).all(), key
        elif "conv_offset" in key or isinstance(module, nn.Linear):
            assert not tensor.any(), key
        elif isinstance(module, (nn.Conv2d, DeformableConv)):
            fan_in = math.prod(module.weight.shape[1:])
            assert 0.9 < tensor.abs().max() * math.sqrt(fan_in) <= 1, key


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("merging", MERGINGS)
@pytest.mark.parametrize("stages", [(), (4,), (1, 2, 3, 4)])
@pytest.mark.parametrize("name", LINEAGES)
def test_gradients_reach_every_parameter_of_lit(name, stages, merging, checkpointing):
    torch.manual_seed(0)
    model = randomised(small(name, attention_stages=stages, **merging)).train()
    model.set_grad_checkpointing(checkpointing)
    model(torch.randn(4, 1, 32, 48)).square().sum().backward()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set()


@pytest.mark.parametrize("name", LINEAGES)
@pytest.mark.parametrize(
    "img_size, patch_size, sides", [(32, 2, [16, 8, 4, 2]), (32, 4, [8, 4, 2, 1]), (8, 1, [8, 4, 2, 1])]
)
def test_small_images_have_four_stages_too(name, img_size, patch_size, sides):
    model = small(name, img_size=img_size, patch_size=patch_size, in_chans=3, num_classes=10, drop_rate=0.1)
    assert model.grids == [(side, side) for side in sides]
    assert model(torch.randn(2, 3, img_size, img_size)).shape == (2, 10)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.0, 0.1}  # attention's own stays 0


@pytest.mark.parametrize(
    "name, size, sides",
    [
        *[(name, (160, 224), [(40, 56), (20, 28), (10, 14), (5, 7)]) for name in LINEAGES],
        ("lit_s", (131, 150), [(33, 38), (16, 19), (8, 9), (4, 4)]),  # padded to patches
        ("lit_ti", (131, 150), [(32, 37), (16, 18), (8, 9), (4, 4)]),  # cut to patches
        ("lit_ti", (448, 448), [(112, 112), (56, 56), (28, 28), (14, 14)]),  # the official detectors fail here
    ],
)
def test_features_only_gives_four_maps_of_any_image(name, size, sides):
    with torch.device("meta"):
        backbone = timm.create_model(name, features_only=True)
        maps = backbone(torch.zeros(2, 3, *size))
    assert [tuple(m.shape) for m in maps] == [(2, width, *side) for width, side in zip(WIDTHS[name], sides)]
    assert backbone.feature_info.channels() == WIDTHS[name]
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    # Without head and final norm, and in LIT-Ti without class token: the official detectors' backbone.
    left_out = {"lit_ti": 513_000 + 1024 + 512, "lit_s": 769_000 + 1536}[name]
    assert count_parameters(backbone) == PARAMETERS[name] - left_out


def test_padding_and_cutting_leave_the_rest_of_the_image_as_it_is():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 19, 21)
    padded, cut = randomised(small("lit_s")), randomised(small("lit_ti"))
    with torch.inference_mode():
        assert torch.equal(padded(x), padded(F.pad(x, (0, 1, 0, 1))))
        assert torch.equal(cut(x), cut(x[:, :, :18, :20]))


@pytest.mark.parametrize("name", LINEAGES)
def test_maps_are_those_that_the_classifier_sees(name):
    torch.manual_seed(0)
    model, x = randomised(small(name)), torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
        (last,) = model.forward_intermediates(x, [-1], norm=True, output_fmt="NHWC", intermediates_only=True)
        assert torch.equal(last.flatten(1, 2), features[:, -4:])
        assert torch.equal(model.forward_intermediates(x, 2, intermediates_only=True)[0], maps[2])
        early, _ = model.forward_intermediates(x, [0, 2], intermediates_only=True)
        assert torch.equal(early, maps[0])
    with pytest.raises(InputError, match="NCHW or NHWC"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", LINEAGES)
def test_lit_is_deterministic_in_evaluation_and_not_in_training(name):
    torch.manual_seed(0)
    model, x = small(name, drop_path_rate=0.5), torch.randn(8, 1, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_variant_learns_a_batch_by_heart_and_its_offsets_leave_zero_at_their_own_rate(name):
    torch.manual_seed(0)
    variant = lit.VARIANTS[name][1]  # an eighth as wide
    shape = {key: variant[key] for key in ("depths", "num_heads", "mlp_ratios")}
    shape |= dict(embed_dims=tuple(width // 8 for width in variant["embed_dims"]))
    model = small(name, **shape)
    images, labels = torch.randn(8, 1, 32, 32), torch.arange(8) % 5
    config = load_experiment("imagenet-lit").config(name, base_lr=1.5e-3)  # of 512 images, so 3e-3
    optimizer = optim.create_optimizer(config, model)
    assert [group["lr"] for group in optimizer.param_groups] == [3e-3, 3e-3, 3e-5]
    for _ in range(40):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert all(3e-5 <= merging.dconv.conv_offset.weight.abs().max() <= 40 * 3e-5 for merging in model.mergings)


@pytest.mark.parametrize("name, pooling", [("lit_ti", "token"), ("lit_s", "avg")])
def test_reset_classifier_changes_the_number_of_lits_classes(name, pooling):
    model, x = small(name).eval(), torch.zeros(2, 1, 32, 32)
    model.reset_classifier(3, pooling)
    assert model(x).shape == (2, 3) and model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    with pytest.raises(InputError, match=f"this model's is '{pooling}'"):
        model.reset_classifier(3, "max")


# What a person may get wrong


@pytest.mark.parametrize(
    "shape, message",
    [
        (dict(depths=(1, 2, 3)), r"depths=\(1, 2, 3\): one for each of the four stages"),
        (dict(depths=3), "depths=3: one for each of the four stages"),
        (dict(depths=(1, 2, 3, 0)), r"depths=\(1, 2, 3, 0\): one for each of the four stages, none of them 0 or less"),
        (dict(attention_stages=(0, 4)), r"attention_stages=\(0, 4\): the stages are 1, 2, 3 and 4"),
        (dict(num_heads=(1, 2, 5, 4)), "stage 3: 5 heads do not divide 12"),
        (dict(deformable=False, learn_offsets=False), "learn_offsets=False: plain merging has no offsets"),
        (dict(img_size=(16, 14)), "16x14 pixels is too small: 8x8 patches of 2x2"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(InputError, match=message):
        small("lit_s", **shape)


@pytest.mark.parametrize("name", LINEAGES)
def test_an_image_too_small_for_three_mergings_is_refused(name):
    with pytest.raises(InputError, match="16x12 pixels is too small"):
        small(name)(torch.zeros(1, 1, 16, 12))


class CfgNode(dict):
    """As yacs' own: a dict with attributes."""


CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"


def in_containers(state):
    yield "bare", state
    yield "detection", {"state_dict": state, "meta": {"epoch": 12}}
    yield "distributed", {"model": {f"module.{key}": value for key, value in state.items()}}
    yield "lit_ti", {"model": state, "epoch": 299, "args": argparse.Namespace(model="lit_ti"), "global_step": 3000}
    settings = CfgNode(MODEL=CfgNode(NAME="lit_s"), TAG="default")
    settings.__dict__["__immutable__"] = True
    yield "lit_s", {"model": state, "max_accuracy": 81.5, "epoch": 299, "config": settings}


@pytest.mark.parity("the names and shapes of LIT's official files")
@pytest.mark.parametrize("name", LINEAGES)
def test_official_checkpoints_load_in_every_container(monkeypatch, tmp_path, name):
    yacs = types.ModuleType("yacs.config")
    yacs.CfgNode = CfgNode
    trained = randomised(small(name))
    for container, content in in_containers(trained.state_dict()):
        with monkeypatch.context() as patch:  # yacs is there where it is written, not where it is read
            patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
            patch.setitem(sys.modules, "yacs.config", yacs)
            torch.save(content, tmp_path / f"{container}.pth")
        loaded = load_weights(small(name), tmp_path / f"{container}.pth").state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())
    save_weights(tmp_path / "ours.safetensors", trained)
    loaded = load_weights(small(name), tmp_path / "ours.safetensors").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())


def test_another_variants_checkpoint_is_refused_by_its_name(monkeypatch, tmp_path):
    shapes = {"lit_s": (4, 8, 12, 16), "lit_b": (8, 16, 24, 32)}
    for name, dims in shapes.items():
        monkeypatch.setitem(lit.VARIANTS, name, (RelativeLIT, dict(SMALL, embed_dims=dims)))
    torch.save(timm.create_model("lit_b").state_dict(), tmp_path / "lit.pth")
    with pytest.raises(InputError) as raised:
        load_weights(timm.create_model("lit_s"), tmp_path / "lit.pth")
    assert "lit.pth: the weights of another model (its blocks are those of lit_b): " in str(raised.value)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("shape", [{}, dict(img_size=384, attention_stages=(4,), deformable=False, num_classes=7)])
def test_a_checkpoint_tells_which_variant_it_is_of(name, shape):
    assert on_meta("lit_s").variant_of(on_meta(name, **shape).state_dict()) == name


@pytest.mark.parametrize("name", LINEAGES)
@pytest.mark.parametrize(
    "shape, told",
    [
        (dict(attention_stages=(4,)), "0.norm1.weight is missing"),
        (dict(deformable=False), "dconv.weight is missing"),
        (dict(learn_offsets=False), "dconv.conv_offset.weight is missing"),
        (dict(num_classes=7), r"head.weight is \(7, 16\), the model's \(5, 16\)"),
        (dict(depths=(1, 1, 1, 1)), "1.norm1.weight is missing"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused_by_what_differs(tmp_path, name, shape, told):
    torch.save(small(name, **shape).state_dict(), tmp_path / "lit.pth")
    with pytest.raises(InputError, match=f"lit.pth: the weights of another model: .*{told}"):
        load_weights(small(name), tmp_path / "lit.pth")


@pytest.mark.parametrize("name", LINEAGES)
@pytest.mark.parametrize("sizes", [(32, 48), (48, 32), (64, 32)])
def test_weights_of_another_image_size_are_resampled_each_stage_to_its_own_map(tmp_path, name, sizes):
    theirs, ours = (small(name, img_size=size).eval() for size in sizes)
    torch.save(theirs.state_dict(), tmp_path / "lit.pth")
    images = torch.randn(2, 1, sizes[1], sizes[1])
    with torch.no_grad():
        # A model resamples its positions in every forward pass; one that loads them does it once.
        wanted = theirs(images)
        assert torch.allclose(load_weights(ours, tmp_path / "lit.pth")(images), wanted, atol=1e-5)
        theirs.set_input_size(sizes[1])
        assert torch.allclose(theirs(images), wanted, atol=1e-5)
    assert theirs.grids == ours.grids and theirs.img_size == (sizes[1], sizes[1])
    shapes = {key: value.shape for key, value in small(name, img_size=sizes[1]).state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    with pytest.raises(InputError, match="patch_size 3: weights of patches of 2 px"):
        ours.set_input_size(sizes[1], patch_size=3)


def test_indices_of_large_maps_are_not_kept_and_a_file_may_hold_them_or_not(tmp_path):
    assert not [key for key in on_meta("lit_s", img_size=800).state_dict() if key.endswith("_index")]
    model = small("lit_s")
    state = model.state_dict()
    without = {key: value for key, value in state.items() if not key.endswith("_index")}
    assert 0 < len(without) < len(state)
    torch.save(without, tmp_path / "without.pth")
    torch.save(state | {"layers.0.blocks.0.attn.relative_position_index": torch.zeros(9)}, tmp_path / "more.pth")
    for file in ("without.pth", "more.pth"):
        loaded = load_weights(small("lit_s"), tmp_path / file).state_dict()
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", LINEAGES)
@torch.no_grad()
def test_output_norms_are_of_the_stages_asked_for(name):
    model = small(name, output_norms=(2, 4)).eval()
    nn.init.normal_(model.norm1.weight)
    images = torch.randn(1, 1, 32, 32)
    normed = model.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
    logits, model.output_norms = model(images), set()
    plain = model.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
    for stage, norm in enumerate([nn.Identity(), model.norm1, nn.Identity(), model.norm3]):
        assert torch.equal(normed[stage], norm(plain[stage]))
    assert torch.equal(model(images), logits)  # the head reads nothing of them
    body = timm.create_model(name, **SMALL, features_only=True, output_norms=(1, 2), out_indices=(1, 2, 3))
    left = [key for key in body.model.state_dict() if key.startswith("norm")]
    assert left == ["norm1.weight", "norm1.bias"]  # of what is given out


def test_output_norms_of_lit_s_count_what_its_official_detector_has():
    def parameters(**kwargs):
        return sum(p.numel() for p in on_meta("lit_s", img_size=800, features_only=True, **kwargs).parameters())

    assert parameters(output_norms=(2, 3, 4)) - parameters() == 2 * (192 + 384 + 768)
    with pytest.raises(InputError, match=r"output_norms=\(5,\): the stages are 1, 2, 3 and 4"):
        on_meta("lit_s", output_norms=(5,))


def test_a_truncated_checkpoint_is_refused_and_changes_nothing(tmp_path):
    model = small("lit_s")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    torch.save(model.state_dict(), tmp_path / "lit.pth")
    content = (tmp_path / "lit.pth").read_bytes()
    (tmp_path / "lit.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="lit.pth: cannot be read safely"):
        load_weights(model, tmp_path / "lit.pth")
    part = dict(list(before.items())[:20])
    torch.save({"model": part}, tmp_path / "part.pth")
    with pytest.raises(InputError, match="is missing; and "):
        load_weights(model, tmp_path / "part.pth")
    foreign = {"norm.weight": torch.ones(()), "pos_embed4": torch.ones(3), "block1.0.norm2.weight": torch.ones(())}
    torch.save(foreign, tmp_path / "foreign.pth")
    with pytest.raises(InputError, match="foreign.pth: the weights of another model"):
        load_weights(model, tmp_path / "foreign.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", LINEAGES)
def test_official_weights_put_in_place_by_hand_are_loaded(monkeypatch, tmp_path, name):
    def fail(url, *_, **__):
        raise ConnectionResetError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    shape = {key: value for key, value in SMALL.items() if key != "img_size"} | dict(num_classes=1000)
    with pytest.raises(InputError, match=f"could not download .*LIT/releases/download/v1.0/{name}.pth") as raised:
        timm.create_model(name, pretrained=True, **shape)
    place = str(raised.value).partition("put it at ")[2]
    trained = timm.create_model(name, **shape)
    torch.save(trained.state_dict(), place)
    fewer = timm.create_model(name, pretrained=True, **shape | dict(num_classes=5)).state_dict()
    backbone = timm.create_model(name, pretrained=True, features_only=True, **shape).model.state_dict()
    for state in (fewer, backbone):
        assert all(torch.equal(v, trained.state_dict()[k]) for k, v in state.items() if not k.startswith("head"))
    assert fewer["head.weight"].shape == (5, 16) and "head.weight" not in backbone
    resampled = timm.create_model(name, pretrained=True, img_size=32, **shape)
    trained.set_input_size(32)
    assert all(torch.equal(v, resampled.state_dict()[k]) for k, v in trained.state_dict().items())
