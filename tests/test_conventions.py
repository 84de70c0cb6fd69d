"""timm's conventions, which other libraries count on: every model that is registered keeps them by being registered."""

import pytest
import timm
import torch
import torch.fx
from timm.models import group_modules, group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from ffvit.models import lit
from ffvit.system.errors import InputError

LIT = [*lit.VARIANTS]
NAMES = [name for name in timm.list_models(module="ff") + timm.list_models(module="lit")]
SMALL = dict(img_size=32, num_classes=5)
SHAPE = {name: dict(patch_size=8, embed_dim=16, depth=4, num_heads=2) for name in NAMES} | {
    name: dict(patch_size=4, embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), num_heads=(1, 1, 2, 2)) for name in LIT
}
IMAGES = torch.randn(2, 3, 32, 32)


def small(name: str, **more) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **SMALL | SHAPE[name] | more).eval()


def test_the_registry_has_models_of_both_families():
    assert set(LIT) < set(NAMES) and {"ff_tiny_patch16_224", "attention_only_tiny_patch16_224"} < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_intermediates_are_maps_of_what_the_model_computes_anyway(name):
    model = small(name)
    tokens, maps = model.forward_intermediates(IMAGES)
    assert torch.equal(tokens, model.forward_features(IMAGES)) and len(maps) == len(model.feature_info) == 4
    for info, image in zip(model.feature_info, maps):
        side = 32 // info["reduction"]
        assert image.shape == (2, info["num_chs"], side, side)
    [last] = model.forward_intermediates(IMAGES, indices=1, norm=True, intermediates_only=True)
    side = last.shape[-1]
    assert torch.allclose(last.flatten(2).transpose(1, 2), tokens[:, -side * side :], atol=1e-6)
    [second] = model.forward_intermediates(IMAGES, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(second, maps[1])
    with pytest.raises(InputError, match="output_fmt='HWC'"):
        model.forward_intermediates(IMAGES, output_fmt="HWC")


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_only_gives_the_same_maps_and_says_what_they_are(name):
    body = timm.create_model(name, features_only=True, out_indices=(1, 3), **SMALL | SHAPE[name]).eval()
    whole = small(name)
    whole.load_state_dict(body.model.state_dict(), strict=False)
    maps = body(IMAGES)
    assert [image.shape[1] for image in maps] == body.feature_info.channels()
    assert [32 // image.shape[2] for image in maps] == body.feature_info.reduction()
    for given, wanted in zip(maps, whole.forward_intermediates(IMAGES, indices=[1, 3], intermediates_only=True)):
        assert torch.allclose(given, wanted, atol=1e-6) or name == "lit_ti"  # which leaves out its class token then


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_pruned_model_gives_the_maps_asked_for_and_has_fewer_weights(name):
    model = small(name)
    wanted = model.forward_intermediates(IMAGES, indices=[0, 1], intermediates_only=True)
    before = sum(p.numel() for p in model.parameters())
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert sum(p.numel() for p in model.parameters()) < before
    maps = model.forward_intermediates(IMAGES, indices=[0, 1], intermediates_only=True)
    assert all(map(torch.equal, maps, wanted))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_head_can_be_left_out_as_timm_leaves_it_out(name):
    model = small(name)
    features = model.forward_features(IMAGES)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.num_features) and torch.equal(model.head(pooled), model(IMAGES))
    without = small(name, num_classes=0)
    assert without(IMAGES).shape == pooled.shape
    unpooled = small(name, num_classes=0, global_pool="")
    assert torch.equal(unpooled(IMAGES), unpooled.forward_features(IMAGES))
    model.reset_classifier(0, "")
    assert torch.equal(model(IMAGES), features) and model.num_classes == 0
    model.reset_classifier(7)
    assert model(IMAGES).shape == (*features.shape[:2], 7)  # still without a pool
    with pytest.raises(InputError, match="global_pool='max'"):
        model.reset_classifier(7, "max")


@pytest.mark.parametrize("name", NAMES)
def test_groups_have_every_parameter_once_in_the_order_of_depth(name):
    model = small(name)
    groups = group_parameters(model, model.group_matcher())
    names = [name for of_group in groups.values() for name in of_group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert any("patch_embed" in name for name in groups[0]) and "head.weight" in groups[max(groups)]
    assert len(group_modules(model, model.group_matcher())) > 3
    rates = [group["lr_scale"] for group in param_groups_layer_decay(model, layer_decay=0.5)]
    assert min(rates) < max(rates) == 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_is_traced_and_computes_the_same(name):
    model = small(name)
    traced = torch.fx.symbolic_trace(model)
    assert torch.allclose(traced(IMAGES[:1]), model(IMAGES[:1]), atol=1e-6)  # batches of another size than it saw, too
    with pytest.raises(InputError, match="fixed length|too small"):
        traced(torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_model_is_exported_and_computes_the_same(name):
    model = small(name)
    exported = torch.export.export(model, (IMAGES,)).module()
    assert torch.allclose(exported(IMAGES), model(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["ff_tiny_patch16_224", "attention_only_tiny_patch16_224", "ff_attention_tiny_patch16_224", "lit_ti"]
)
def test_a_model_is_one_graph_for_the_compiler_under_autocast(name):
    model = small(name).train()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            compiled = torch.compile(model, backend="eager", fullgraph=True)  # which fails where it would break off
            assert torch.allclose(compiled(IMAGES).float(), model(IMAGES).float(), atol=0.05)
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("name", ["lit_ti", "lit_s"])
@torch.no_grad()
def test_lit_is_a_backbone_of_segmentation_models_pytorch_as_it_is(name):
    smp = pytest.importorskip("segmentation_models_pytorch", reason="it is not installed, and nothing else needs it")
    model = smp.FPN(f"tu-{name}", encoder_weights=None, classes=3).eval()
    assert model(torch.randn(1, 3, 64, 96)).shape == (1, 3, 64, 96)
