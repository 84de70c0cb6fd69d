import argparse
import copy
import email.message
import io
import json
import pickle
import time
import urllib.error
import zipfile
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import Attention, Mlp, resample_abs_pos_embed
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

import ffvit  # noqa: F401  registers the models
from ffvit.models import ff, from_config, mixing
from ffvit.models.cost import count_macs, count_parameters
from ffvit.models.ff import PatchFeatureMixer
from ffvit.models.mixing import MlpOverTokens
from ffvit.models.weights import AUTHOR_NAMES, load_weights
from ffvit.system.errors import InputError

PARAMETERS = {
    "ff_tiny_patch16_224": 7_676_332,
    "ff_base_patch16_224": 61_943_020,
    "ff_large_patch32_224": 206_363_576,
    "attention_only_tiny_patch16_224": 4_039_360,
    "ff_attention_tiny_patch16_224": 5_998_276,
}
BASELINES = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_base_patch16_224": 86_567_656,
    "vit_large_patch32_224": 306_535_400,
}
REGISTERED = [n for n in timm.list_models() if timm.model_entrypoint(n).__module__ == ff.__name__]
CELLS = [(patches, features) for patches in ("ff", "attention") for features in ("ff", "attention")]
SMALL = dict(img_size=16, patch_size=4, in_chans=1, num_classes=5, embed_dim=12, depth=2, num_heads=2)


def on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=1000)


def test_every_registered_model_has_a_pinned_parameter_count():
    assert set(REGISTERED) == set(PARAMETERS)


@pytest.mark.parametrize("name, parameters", (PARAMETERS | BASELINES).items())
def test_parameter_count_is_exactly(name, parameters):
    assert count_parameters(on_meta(name)) == parameters


@pytest.mark.parametrize("name, millions", [("ff_tiny", 7.7), ("ff_base", 62), ("ff_large", 206)])
def test_ff_models_have_the_millions_of_parameters_of_table_1(name, millions):
    (full_name,) = [n for n in PARAMETERS if n.startswith(name)]
    digits = 1 if millions < 10 else 0
    assert round(PARAMETERS[full_name] / 1e6, digits) == millions


def test_the_fourth_cell_counts_what_its_formula_says():
    n, d, patch, classes = 14 * 14 + 1, 192, 16, 1000
    embedding = 3 * patch * patch * d + d + d + n * d  # convolution, class token, positions of patches and class
    attention_over_features = 2 * n + (3 * n * n + 3 * n) + (n * n + n)  # norm, qkv, projection
    ff_over_patches = 2 * n + (4 * n * n + 4 * n) + (4 * n * n + n)
    head = 2 * d + d * classes + classes
    formula = embedding + 12 * (attention_over_features + ff_over_patches) + head
    assert count_parameters(on_meta("ff_attention_tiny_patch16_224")) == formula


@pytest.mark.parametrize(
    "name, patches, features, d, depth, patch",
    [
        ("deit_tiny_patch16_224", "attention", "ff", 192, 12, 16),
        ("ff_tiny_patch16_224", "ff", "ff", 192, 12, 16),
        ("attention_only_tiny_patch16_224", "attention", "attention", 192, 12, 16),
        ("ff_attention_tiny_patch16_224", "ff", "attention", 192, 12, 16),
        ("ff_base_patch16_224", "ff", "ff", 768, 12, 16),
        ("ff_large_patch32_224", "ff", "ff", 1024, 24, 32),
    ],
)
def test_multiply_adds_equal_their_closed_form(name, patches, features, d, depth, patch):
    grid = 224 // patch
    n = grid * grid + 1
    patch_embed = grid * grid * d * 3 * patch * patch
    mixing = {
        ("features", "ff"): n * (d * 4 * d + 4 * d * d),
        ("patches", "ff"): d * (n * 4 * n + 4 * n * n),
        ("patches", "attention"): n * d * 3 * d + 2 * n * n * d + n * d * d,  # qkv, both products, projection
        ("features", "attention"): d * n * 3 * n + 2 * d * d * n + d * n * n,
    }
    head = d * 1000
    formula = patch_embed + depth * (mixing["patches", patches] + mixing["features", features]) + head
    model = on_meta(name)
    assert ff.cell(model) == {"patches": patches, "features": features}
    assert count_macs(model, (3, 224, 224)) == formula


@pytest.mark.parametrize("patches, features", CELLS)
def test_multiply_adds_are_the_same_with_and_without_memory(patches, features):
    with torch.device("meta"):
        without = PatchFeatureMixer(patches=patches, features=features, **SMALL)
    model = PatchFeatureMixer(patches=patches, features=features, **SMALL).train()
    assert count_macs(model, (1, 16, 16)) == count_macs(without, (1, 16, 16))
    assert model.training


@pytest.mark.parity("the report's author's model")
@pytest.mark.parametrize("name", ["ff_p16_dim32_depth2", "ff_p32_dim48_depth3"])
def test_logits_equal_those_of_the_authors_model(shared, name):
    config = json.loads((shared / "parity" / "configs.json").read_text())[name]
    shape = {k: config[k] for k in ("patch_size", "embed_dim", "depth", "mlp_ratio", "num_classes")}
    model = PatchFeatureMixer(position_grid=config["pos_embed_grid"][0], **shape).eval()
    load_weights(model, shared / "parity" / f"{name}.pth")
    x = torch.linspace(-2, 2, 2 * 3 * 224 * 224).reshape(2, 3, 224, 224).sin() * 1.5
    expected = load_file(shared / "parity" / f"{name}.logits.safetensors")["logits"]
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=0)
    assert count_parameters(model) == config["parameters"]
    assert model.num_tokens == config["num_tokens"]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("patches, features", CELLS)
def test_gradients_reach_every_parameter(patches, features, checkpointing):
    torch.manual_seed(0)
    model = PatchFeatureMixer(patches=patches, features=features, **SMALL)
    model.set_grad_checkpointing(checkpointing)
    model(torch.randn(3, 1, 16, 16)).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parity("timm's ViT")
def test_the_vit_cell_computes_what_timms_vit_computes():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **SMALL).eval()
    for parameter in vit.parameters():  # biases and norms too, so that a swapped one shows
        torch.nn.init.normal_(parameter, std=0.2)
    theirs = vit.state_dict()
    positions = theirs.pop("pos_embed")
    names = {".norm1.": ".mix_patches.norm.", ".attn.": ".mix_patches.mix.", ".norm2.": ".mix_features.norm."}
    names |= {".mlp.": ".mix_features.mix."}
    ours = {}
    for key, value in theirs.items():
        for their_name, our_name in names.items():
            key = key.replace(their_name, our_name)
        ours[key] = value
    ours["pos_encoding.cls_pos_embed"] = positions[:, :1]
    ours["pos_encoding.pos_embed"] = positions[:, 1:].transpose(1, 2).reshape(1, 12, 4, 4)
    cell = PatchFeatureMixer(patches="attention", features="ff", patches_first=True, **SMALL).eval()
    cell.load_state_dict(ours)
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(cell(x), vit(x))


def test_the_order_of_the_branches_changes_the_output():
    torch.manual_seed(0)
    first, second = (PatchFeatureMixer(patches_first=order, **SMALL).eval() for order in (False, True))
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 1, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(first(x), second(x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_features_come_first_except_in_the_attention_only_model(name):
    patches_first = name == "attention_only_tiny_patch16_224"
    for block in timm.create_model(name, **SMALL).blocks:
        assert (block.branches[0] is block.mix_patches) == patches_first


@pytest.mark.parametrize("patches, features", CELLS)
def test_the_norm_of_a_transposed_branch_has_a_weight_for_every_token(patches, features):
    model = PatchFeatureMixer(patches=patches, features=features, **SMALL)
    n, d = 4 * 4 + 1, 12
    for block in model.blocks:
        assert block.mix_patches.norm.weight.shape == ((n,) if patches == "ff" else (d,))
        assert block.mix_features.norm.weight.shape == ((d,) if features == "ff" else (n,))


def test_ff_vit_rejects_another_resolution():
    model = timm.create_model("ff_tiny_patch16_224", embed_dim=6, depth=1)
    with pytest.raises(InputError, match=r"expected 197 tokens.*got 257 .*256x256"):
        model(torch.zeros(1, 3, 256, 256))


def test_images_need_not_be_square():
    model = PatchFeatureMixer(**SMALL | {"img_size": (8, 16)})
    assert model.num_tokens == 2 * 4 + 1
    assert model(torch.zeros(1, 1, 8, 16)).shape == (1, 5)


def test_an_image_that_does_not_divide_into_patches_is_refused():
    with pytest.raises(InputError, match="img_size 225 is not divisible by patch_size 16"):
        PatchFeatureMixer(img_size=225, patch_size=16)


@pytest.mark.parametrize("axis", ["patches", "features"])
def test_an_unknown_way_of_mixing_is_refused(axis):
    with pytest.raises(InputError, match=f"{axis}='conv'"):
        PatchFeatureMixer(**SMALL, **{axis: "conv"})


@pytest.mark.parametrize("name", PARAMETERS)
def test_timms_keywords_take_effect(name):
    model = timm.create_model(name, **SMALL, mlp_ratio=2.5, drop_rate=0.3, drop_path_rate=0.2)
    assert model.num_tokens == 4 * 4 + 1
    assert model.patch_embed.proj.weight.shape == (12, 1, 4, 4)
    assert model.head.weight.shape == (5, 12)
    assert [block.drop_path.drop_prob for block in model.blocks] == pytest.approx([0, 0.2])
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {n for n, p in rates.items() if p != 0.3} == {n for n in rates if n.endswith("attn_drop")}
    # Branches whose layer knows neither heads nor a ratio leave them unread: N = 197 is prime, so one head.
    for block in model.blocks:
        for branch in block.branches:
            if isinstance(branch.mix, Attention):
                assert branch.mix.num_heads == (1 if branch.transposed else 2)
            else:
                assert branch.mix.fc1.out_features == int(2.5 * branch.mix.fc1.in_features)


@pytest.mark.parametrize("name", PARAMETERS)
def test_dropout_is_off_in_evaluation_and_on_in_training(name):
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL, drop_rate=0.5, drop_path_rate=0.5)
    x = torch.randn(4, 1, 16, 16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_reset_classifier_changes_the_number_of_classes(name):
    model = timm.create_model(name, **SMALL)
    x = torch.zeros(2, 1, 16, 16)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model(x).shape == (2, 12)
    with pytest.raises(InputError, match="class token"):
        model.reset_classifier(3, global_pool="avg")


PUBLISHED = "ff_tiny_patch16_224", "ff_base_patch16_224"


def test_timm_lists_the_published_weights():
    assert timm.list_pretrained("ff_*") == sorted(f"{name}.in1k" for name in PUBLISHED)


@pytest.mark.parametrize("name", [n for n in PARAMETERS if n not in PUBLISHED])
def test_pretrained_weights_that_were_never_published_are_refused(name):
    with pytest.raises(InputError, match=f"no weights of {name} were published"):
        timm.create_model(name, pretrained=True)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The folder of torch's hub, empty, and no network."""

    def fail(url, *_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("error", [urllib.error.URLError("no network"), ConnectionResetError("reset")])
def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(monkeypatch, hub, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(InputError) as raised:
        timm.create_model("ff_tiny_patch16_224", pretrained=True)
    assert "lukemelas/do-you-even-need-attention/releases/download/v0.0.1/linear-tiny-checkpoint.pth" in str(
        raised.value
    )
    assert str(hub / "linear-tiny-checkpoint.pth") in str(raised.value)


def test_a_download_that_breaks_off_leaves_no_file(monkeypatch, hub):
    class BreaksOff(io.BytesIO):
        def info(self):
            return email.message.Message()

        def read(self, size=-1):
            if self.tell():
                raise ConnectionResetError("broke off")
            return super().read(10)

    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub.parent))
    monkeypatch.setattr(torch.hub, "urlopen", lambda request: BreaksOff(bytes(100)))
    with pytest.raises(InputError, match="could not download .*broke off"):
        timm.create_model("ff_tiny_patch16_224", pretrained=True)
    assert list(hub.iterdir()) == []


def author_file(model, path, **changes):
    """A training checkpoint of the report's author, with a model's weights under his names."""
    state = {}
    for key, value in (model.state_dict() | changes).items():
        for theirs, ours in AUTHOR_NAMES:
            key = key.replace(ours, theirs)
        state[key] = value
    torch.save({"model": state, "epoch": 299, "args": argparse.Namespace(drop=0.1)}, path)


def test_an_author_checkpoint_put_in_place_by_hand_is_loaded(hub):
    trained = timm.create_model("ff_tiny_patch16_224")
    author_file(trained, hub / "linear-tiny-checkpoint.pth")
    loaded = timm.create_model("ff_tiny_patch16_224", pretrained=True).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.state_dict().items())
    fewer = timm.create_model("ff_tiny_patch16_224.in1k", pretrained=True, num_classes=7, in_chans=1)
    loaded = fewer.state_dict()
    assert loaded.pop("head.weight").shape == (7, 192) and loaded.pop("head.bias").shape == (7,)
    grey = loaded.pop("patch_embed.proj.weight")
    torch.testing.assert_close(grey, trained.patch_embed.proj.weight.sum(dim=1, keepdim=True))
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.items())


def test_published_weights_load_into_a_model_of_another_size_in_one_call(hub):
    trained = timm.create_model("ff_tiny_patch16_224")
    author_file(trained, hub / "linear-tiny-checkpoint.pth")
    loaded = timm.create_model("ff_tiny_patch16_224", pretrained=True, img_size=288)
    trained.set_input_size(288)
    assert loaded.num_tokens == 18 * 18 + 1
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items())
    with pytest.raises(InputError, match="img_size 290 is not divisible by patch_size 16"):
        timm.create_model("ff_tiny_patch16_224", pretrained=True, img_size=290)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, for sparse tensors
@pytest.mark.parametrize("num_classes", [1000, 7])
@pytest.mark.parametrize(
    "changes, trouble",
    [
        ({"extra": torch.zeros(2)}, "extra is foreign"),
        ({"norm.bias": torch.zeros(3)}, r"norm.bias is \(3,\), the model's \(192,\)"),
        ({"blocks.1.mix_patches.mix.fc1.bias": torch.zeros(788).to_sparse()}, "holds no state dict of tensors"),
    ],
)
def test_published_weights_must_fit_in_all_but_the_classifier(hub, changes, trouble, num_classes):
    author_file(timm.create_model("ff_tiny_patch16_224"), hub / "linear-tiny-checkpoint.pth", **changes)
    with pytest.raises(InputError, match=f"linear-tiny-checkpoint.pth: .*{trouble}"):
        timm.create_model("ff_tiny_patch16_224", pretrained=True, num_classes=num_classes)


@pytest.mark.parametrize("depth", [11, 13])
def test_weights_that_are_missing_or_too_many_are_named(hub, depth):
    author_file(timm.create_model("ff_tiny_patch16_224", depth=depth), hub / "linear-tiny-checkpoint.pth")
    with pytest.raises(InputError, match="blocks.1[12].*is (missing|foreign).*and 9 more"):
        timm.create_model("ff_tiny_patch16_224", pretrained=True, num_classes=7)


def test_a_damaged_or_unsafe_download_is_refused_by_name(hub):
    path = hub / "linear-tiny-checkpoint.pth"
    author_file(timm.create_model("ff_tiny_patch16_224"), path)
    whole, compressed = path.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**6))
    for content in (
        whole[: len(whole) // 2],
        compressed.getvalue(),
        b"",
        b"<html>404 Not Found</html>",
        pickle.dumps({"model": print}, protocol=2),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="linear-tiny-checkpoint.pth: cannot be loaded.*delete the file"):
            timm.create_model("ff_tiny_patch16_224", pretrained=True)


def test_an_unknown_model_is_refused_with_a_close_name(digits_config):
    with pytest.raises(InputError, match="did you mean 'ff_tiny_patch16_224'"):
        from_config.create(replace(digits_config, model="ff_tinny_patch16_224"), 10)


@pytest.mark.parametrize("name", ["ff_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_create_refuses_an_image_that_the_models_own_patches_do_not_divide(digits_config, name):
    with pytest.raises(InputError, match="img_size 40 is not divisible by.*16"):
        from_config.create(replace(digits_config, model=name, img_size=40, model_args={}), 10)


@pytest.mark.parametrize("name", ["attention_only_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_create_refuses_a_width_that_the_heads_do_not_divide(digits_config, name):
    with pytest.raises(InputError, match="num_heads"):
        from_config.create(
            replace(digits_config, model=name, model_args=dict(patch_size=2, embed_dim=66, num_heads=4)), 10
        )


def test_create_refuses_a_setting_that_the_model_does_not_take(digits_config):
    with pytest.raises(InputError, match="resnet18.*cannot have the shape"):
        from_config.create(replace(digits_config, model="resnet18"), 10)


def variant(**options):
    torch.manual_seed(0)
    return PatchFeatureMixer(**SMALL | options)


@pytest.mark.parametrize(
    "option",
    [
        *(dict(patch_norm=norm) for norm in ("channels", "none")),
        *(dict(stem=stem) for stem in ("conv", "frozen")),
        *(dict(features=features) for features in ("attention_over_tokens", "attention_unprojected")),
        dict(global_pool="avg"),
        dict(global_pool="avg", pos_embed="none"),
        dict(pos_embed="none"),
        dict(weight_init="default"),
        dict(patch_hidden_dim=7),
    ],
    ids=str,
)
def test_what_the_report_leaves_open_can_be_trained(option):
    model = variant(**option)
    model(torch.randn(3, 1, 16, 16)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    frozen = ["patch_embed.proj.weight", "patch_embed.proj.bias"] if option.get("stem") == "frozen" else []
    assert without == frozen


def test_other_readings_of_attention_only_have_the_parameters_they_should():
    with torch.device("meta"):
        count = {
            features: count_parameters(timm.create_model("attention_only_tiny_patch16_224", features=features))
            for features in ff.CHOICES["features"]
        }
    n = 197
    assert count["attention"] == 4_039_360 and count["attention_over_tokens"] == 3_945_640
    # No projections along the tokens: neither qkv nor the one after, with their biases.
    assert count["attention_unprojected"] == 4_039_360 - 12 * (4 * n * n + 4 * n)


def test_attention_without_projections_is_attention_whose_projections_are_the_identity():
    branch = ff.Branch("features", "attention", num_tokens=9, embed_dim=6, num_heads=1, mlp_ratio=4, drop_rate=0)
    plain = ff.Branch("features", "attention_unprojected", 9, 6, 1, 4, 0)
    with torch.no_grad():
        branch.mix.qkv.weight.copy_(torch.eye(9).repeat(3, 1))
        branch.mix.proj.weight.copy_(torch.eye(9))
        branch.mix.qkv.bias.zero_(), branch.mix.proj.bias.zero_()
    x = torch.randn(2, 9, 6)
    torch.testing.assert_close(plain(x), branch(x))


def test_a_fixed_hidden_width_over_patches_makes_cost_linear_in_tokens():
    def mixing(side, **width):
        with torch.device("meta"):
            model = PatchFeatureMixer(img_size=4 * side, patch_size=4, global_pool="avg", depth=1, **width)
        return count_macs(model.blocks[0].mix_patches, (side * side, 192))

    assert mixing(14, patch_hidden_dim=64) == 192 * 2 * 64 * 196
    assert [mixing(2 * side, patch_hidden_dim=64) / mixing(side, patch_hidden_dim=64) for side in (7, 14)] == [4, 4]
    assert [mixing(2 * side) / mixing(side) for side in (7, 14)] == [16, 16]  # four times the tokens


def test_a_frozen_stem_keeps_its_first_weights():
    model = variant(stem="frozen")
    before = model.patch_embed.proj.weight.clone()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1.0, weight_decay=0.1)
    model(torch.randn(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    assert torch.equal(model.patch_embed.proj.weight, before)
    assert torch.equal(before, variant().patch_embed.proj.weight)  # as a trained one begins


def test_a_convolutional_stem_gives_a_token_for_each_patch_and_sees_beyond_it():
    model = variant(stem="conv").eval()
    x = torch.zeros(1, 1, 16, 16, requires_grad=True)
    tokens = model.patch_embed(x)
    assert tokens.shape == (1, 16, 12)
    tokens[0, 5].sum().backward()
    rows = x.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert rows.min() < 4 and rows.max() >= 7  # of token 5 the patch has rows 4 to 7
    with pytest.raises(InputError, match="patch_size 6x6 is no square of a power of 2"):
        PatchFeatureMixer(img_size=12, patch_size=6, stem="conv")


@pytest.mark.parametrize("patches", ["ff", "attention"])
def test_without_positions_only_feed_forward_layers_know_where_patches_are(patches):
    model = variant(patches=patches, global_pool="avg", pos_embed="none").eval()
    x = torch.randn(1, 1, 16, 16)
    turned = torch.cat([x[..., 4:], x[..., :4]], dim=-1)  # the same patches in other places
    assert torch.allclose(model(x), model(turned), atol=1e-6) == (patches == "attention")


def test_norm_over_channels_is_mixers():
    branch = variant(patch_norm="channels").blocks[0].mix_patches
    x = torch.randn(2, 17, 12)
    expected = branch.mix(F.layer_norm(x, (12,), eps=1e-6).transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(branch(x), expected)


def test_pytorchs_own_initial_weights_are_kept_where_asked_for():
    assert variant().blocks[0].mix_features.mix.fc1.bias.abs().sum() == 0
    assert variant(weight_init="default").blocks[0].mix_features.mix.fc1.bias.abs().sum() > 0


@pytest.mark.parametrize("name", ff.CHOICES)
def test_an_option_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(InputError, match=f"{name}='magic': choose one of '{ff.CHOICES[name][0]}'"):
        variant(**{name: "magic"})


def test_a_width_over_patches_is_refused_where_no_layer_has_it():
    with pytest.raises(InputError, match="patch_hidden_dim=8 is a width of the feed-forward layer over patches"):
        variant(patches="attention", patch_hidden_dim=8)


RESAMPLED = [
    dict(),
    dict(patch_norm="channels", global_pool="avg"),
    dict(patches="attention"),
    dict(stem="conv", pos_embed="none"),
    dict(patches="attention", features="attention_unprojected"),
    dict(position_grid=3),
]


@pytest.mark.parametrize("option", RESAMPLED, ids=str)
def test_a_model_resampled_to_its_own_size_is_the_same(option):
    model, x = variant(**option).eval(), torch.randn(2, 1, 16, 16)
    before = model(x)
    model.set_input_size(16)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("size", [(24, 24), (8, 16), (32, 20)])
@pytest.mark.parametrize("option", RESAMPLED, ids=str)
def test_a_resampled_model_takes_images_of_the_new_size_and_learns(option, size):
    model = variant(**option)
    model.set_input_size(size)
    model(torch.randn(2, 1, *size)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(InputError, match="fixed length"):
        model(torch.zeros(1, 1, 16, 16))


def test_what_is_the_same_everywhere_in_an_image_stays_so_at_another_size():
    """Of weights that are maps without structure, an image of one colour has the same logits at any size."""
    model = variant(pos_embed="none", global_pool="avg").eval()
    with torch.no_grad():
        for block in model.blocks:
            mlp = block.mix_patches.mix
            mlp.fc1.weight.copy_(mlp.fc1.weight.mean(dim=1, keepdim=True))
            mlp.fc2.weight.copy_(mlp.fc2.weight.mean(dim=0, keepdim=True))
    before = model(torch.ones(1, 1, 16, 16))
    model.set_input_size((24, 40))
    torch.testing.assert_close(model(torch.ones(1, 1, 24, 40)), before)


@pytest.mark.parity("timm")
def test_positions_are_resampled_as_timm_does_it():
    ours = variant(patches="attention")
    stored = ours.pos_encoding.pos_embed.detach().flatten(2).transpose(1, 2)
    expected = resample_abs_pos_embed(stored, [6, 5], [4, 4], num_prefix_tokens=0)
    ours.set_input_size((24, 20))
    torch.testing.assert_close(ours.pos_encoding.pos_embed.flatten(2).transpose(1, 2), expected)


@pytest.mark.parametrize(
    "option, size, told",
    [
        (dict(), dict(img_size=18), "img_size 18 is not divisible by patch_size 4"),
        (dict(), dict(patch_size=8), "patch_size 8: weights of patches of 4 px"),
        (dict(features="attention"), dict(img_size=32), "train it at this size"),
    ],
)
def test_a_size_that_a_model_cannot_have_is_refused_and_leaves_it_as_it_is(option, size, told):
    model = variant(**option).eval()
    x = torch.randn(1, 1, 16, 16)
    before = model(x)
    with pytest.raises(InputError, match=told):
        model.set_input_size(**size)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("name", ["ff_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_patches_as_high_as_the_image_make_a_sequence_of_its_columns(name):
    shape = SMALL | dict(img_size=12, patch_size=[12, 2], num_heads=3)
    model = timm.create_model(name, **shape).eval()
    assert model.patch_embed.grid_size == (1, 6)
    images = torch.randn(1, 1, 12, 12, requires_grad=True)
    model.patch_embed(images)[0, 4].sum().backward()  # the fifth token takes columns 8 and 9 whole, and no other
    assert images.grad[0, 0].abs().sum(dim=0).nonzero().flatten().tolist() == [8, 9]


def test_patches_that_are_no_squares_are_named_with_both_sides():
    with pytest.raises(InputError, match="img_size 12 is not divisible by patch_size 12x5"):
        PatchFeatureMixer(img_size=12, patch_size=(12, 5))
    with pytest.raises(InputError, match="stem='conv' .* patch_size 4x2 is no square of a power of 2"):
        PatchFeatureMixer(img_size=12, patch_size=(4, 2), stem="conv")
    model = PatchFeatureMixer(**SMALL | dict(img_size=12, patch_size=(12, 2)))
    with pytest.raises(InputError, match=r"expected 7 tokens \(image 12x12, patch 12x2\), got 13 \(image 12x24\)"):
        model(torch.zeros(1, 1, 12, 24))
    model.set_input_size((12, 24))
    assert model(torch.zeros(1, 1, 12, 24)).shape == (1, 5)


def test_hidden_units_that_are_filled_in_change_nothing():
    torch.manual_seed(time.time_ns() % 2**32)
    mlp, x = MlpOverTokens(17, 68).double(), torch.randn(3, 5, 17, dtype=torch.float64)
    plain = Mlp.forward(mlp, x)
    torch.testing.assert_close(mlp(x), plain)
    with torch.autocast("cpu", torch.bfloat16):
        weight1, bias1, weight2 = mixing._aligned(mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight)
    assert (len(weight1), len(bias1), weight2.shape[1]) == (72, 72, 72)
    filled_in = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, mlp.fc2.bias)
    torch.testing.assert_close(filled_in, plain)


def test_in_bf16_mixing_patches_is_as_near_to_fp64_as_timms_layer_is():
    torch.manual_seed(time.time_ns() % 2**32)
    mlp, x = MlpOverTokens(197, 788), torch.randn(2, 64, 197)
    exact = Mlp.forward(copy.deepcopy(mlp).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ours, timms = mlp(x), Mlp.forward(mlp, x)
    errors = [(y.double() - exact).square().mean().sqrt() for y in (ours, timms)]
    assert 0 < errors[0] < 1.5 * errors[1]
