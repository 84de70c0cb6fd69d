"""Where a LIT looks: the published geometry of offsets, and mean attention without keeping the maps."""

import json
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from ffvit.data.loader import Batch
from ffvit.evidence.records import open_run
from ffvit.models.lit import AbsoluteLIT
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import lit_attention, lit_offsets, lit_views, trained_models
from ffvit.studies.lit_attention import MeanAttention
from ffvit.system.errors import InputError
from ffvit.system.files import ROOT
from ffvit.training.train import train

SMALL = dict(
    img_size=32,
    patch_size=2,
    in_chans=1,
    num_classes=5,
    embed_dims=(8, 16, 24, 32),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 3, 4),
    mlp_ratios=(2, 2, 2, 2),
)
ALL = dict(attention_stages=(1, 2, 3, 4))


def small(name="lit_ti", **kwargs):
    """With attention and offsets that depend on the image, in double precision."""
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL | kwargs).double()
    for key, parameter in model.named_parameters():
        if "qkv.weight" in key or "conv_offset" in key:
            nn.init.normal_(parameter, std=0.5)
    return model


def batches(count, size, unread=(), side=32):
    """Batches of up to `size` of `count` images, the same whatever the size."""
    images = torch.randn(count, 1, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([-1 if i in unread else 0 for i in range(count)])
    return [Batch(*part, []) for part in zip(images.split(size), target.split(size))]


def random_moves(grid, std=2.0):
    random = np.random.default_rng(0)
    return [random.normal(scale=std, size=(8, grid[0] >> s, grid[1] >> s)) for s in (1, 2, 3)]


def published(moves, row, column, patch_size, img_size):
    """The official script, point by point, but for moving pixels to [1, 222]; real positions beside whole ones."""
    points = [(float(row), float(column))]
    for move in reversed(moves):
        taps = []
        for point in points:
            y, x = round(point[0]), round(point[1])  # Python rounds half to even, too
            if not (0 <= y < move.shape[1] and 0 <= x < move.shape[2]):
                continue
            for k in range(4):
                taps.append((2 * y + k // 2 + move[2 * k, y, x], 2 * x + k % 2 + move[2 * k + 1, y, x]))
        points = taps
    pixels = [(patch_size * y + patch_size / 2, patch_size * x + patch_size / 2) for y, x in points]
    return [(y, x) for y, x in pixels if 0 <= round(y) < img_size[0] and 0 <= round(x) < img_size[1]]


def kept(points):
    return points[~np.isnan(points).any(axis=-1)]


# Offsets


def test_offsets_are_those_that_the_mergings_use():
    model = timm.create_model("lit_ti", depths=(1, 1, 1, 1)).eval()
    for merging in model.mergings:
        nn.init.normal_(merging.dconv.conv_offset.bias)
    moves = lit_offsets.offsets(model, torch.zeros(2, 3, 224, 224))
    assert [tuple(m.shape) for m in moves] == [(2, 8, 28, 28), (2, 8, 14, 14), (2, 8, 7, 7)]
    for merging, move in zip(model.mergings, moves):  # their weights are zero
        assert torch.equal(move, merging.dconv.conv_offset.bias[:, None, None].expand(2, 8, *move.shape[2:]))


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_no_hooks_mode_or_statistics_behind(training):
    model = small(**ALL).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lit_offsets.offsets(model, batches(2, 2)[0].images)
    lit_attention.mean_attention(model, batches(2, 2))
    assert all(module.training == training and not module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "model",
    [lambda: small(deformable=False), lambda: small(learn_offsets=False), lambda: timm.create_model("test_vit")],
)
def test_a_model_without_offsets_is_refused(model):
    with pytest.raises(InputError, match="mergings have no offsets: choose a LIT with deformable=true"):
        lit_offsets.offsets(model(), torch.zeros(1, 3, 32, 32))


def test_without_offsets_each_token_of_lit_ti_has_the_64_middles_of_its_patches():
    points = lit_offsets.trace([np.zeros((8, side, side)) for side in (28, 14, 7)], 4, (224, 224))
    assert points.shape == (7, 7, 64, 2)
    for row in range(7):
        for column in range(7):
            expected = {(32 * row + y, 32 * column + x) for y in range(2, 32, 4) for x in range(2, 32, 4)}
            assert set(map(tuple, points[row, column])) == expected


@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("grid", [(8, 8), (9, 15), (16, 8)])
def test_without_offsets_no_point_is_dropped_whatever_patch_and_map(grid, patch_size):
    img_size = patch_size * grid[0], patch_size * grid[1]
    points = lit_offsets.trace(random_moves(grid, std=0), patch_size, img_size)
    assert points.shape == (grid[0] // 8, grid[1] // 8, 64, 2)
    rows, columns = (8 * (side // 8) for side in grid)  # an odd last row or column is in no token
    middles = {(patch_size * (y + 0.5), patch_size * (x + 0.5)) for y in range(rows) for x in range(columns)}
    assert set(map(tuple, points.reshape(-1, 2))) == middles


@pytest.mark.parity("LIT's published script, read")
@pytest.mark.parametrize(
    "grid, patch_size, img_size",
    [((56, 56), 4, (224, 224)), ((16, 16), 2, (32, 32)), ((37, 23), 4, (150, 93)), ((9, 31), 6, (54, 190))],
)
def test_traces_are_those_of_the_published_script(grid, patch_size, img_size):
    moves = random_moves(grid)
    points = lit_offsets.trace([torch.from_numpy(m) for m in moves], patch_size, img_size)
    numbers = []
    for row in range(points.shape[0]):
        for column in range(points.shape[1]):
            expected = published(moves, row, column, patch_size, img_size)
            np.testing.assert_allclose(kept(points[row, column]), np.reshape(expected, (-1, 2)))
            numbers.append(len(expected))
    assert 0 < sum(numbers) < 64 * len(numbers)  # some are dropped


def test_points_outside_of_a_map_and_of_the_image_are_dropped():
    moves = random_moves((56, 56), std=0)
    moves[2][0, 3, 3] = -7  # tap 0 goes from row 6 to -1: all its 16 points
    moves[0][3, 0, 27] = 0.25  # tap 1 goes a pixel to the right, from 222 to 223
    moves[0][7, 0, 27] = 0.5  # tap 3 goes to 224, outside
    points = lit_offsets.trace(moves, 4, (224, 224))
    assert len(kept(points[3, 3])) == 48 and len(kept(points[0, 6])) == 63
    assert kept(points[0, 6])[:, 1].max() == 223
    assert np.isnan(points).any(axis=-1).sum() == 17


def test_a_point_half_way_between_two_tokens_belongs_to_the_even_one():
    moves = random_moves((16, 16), std=0)
    moves[2][0] = 0.5  # tap 0 is at row 0.5 and 2.5: both of row 0 and 2
    points = lit_offsets.trace(moves, 2, (32, 32))
    np.testing.assert_array_equal(points, lit_offsets.trace(random_moves((16, 16), std=0), 2, (32, 32)))


# Attention


def probabilities(model, images):
    """The maps of all images at once, from queries and keys, by stage and block."""
    found, hooks = {}, []
    for s, stage in enumerate(model.stages, 1):
        for b, block in enumerate(stage, 1):

            def keep(attention, inputs, key=(s, b)):
                tokens, grid = inputs
                q, k, _ = attention.qkv(tokens).unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
                logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
                found[key] = (logits + (attention.bias(grid) if attention.grid else 0)).softmax(dim=3)

            hooks += [block.attn.register_forward_pre_hook(keep)] if block.attn else []
    with torch.no_grad():
        model.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name, extra", [("lit_ti", 1), ("lit_s", 0)])
def test_mean_attention_is_the_mean_of_all_maps(name, extra):
    model = small(name, **ALL)
    found = lit_attention.mean_attention(model, batches(7, 3))
    at_once = probabilities(model, torch.cat([b.images for b in batches(7, 3)]))
    assert list(found.maps) == list(at_once) == [(1, 1), (2, 1), (3, 1), (3, 2), (4, 1)]
    assert found.images == 7 and found.grids == {1: (16, 16), 2: (8, 8), 3: (4, 4), 4: (2, 2)}
    for (stage, block), maps in found.maps.items():
        tokens = math.prod(found.grids[stage]) + extra * (stage == 4)
        assert maps.shape == (stage, tokens, tokens)
        np.testing.assert_allclose(maps, at_once[stage, block].mean(dim=0), atol=1e-12)
        np.testing.assert_allclose(maps.sum(axis=2), 1, atol=1e-12)


def test_only_the_stages_with_attention_have_maps():
    assert {stage for stage, _ in lit_attention.mean_attention(small(), batches(1, 1)).maps} == {3, 4}


def test_mean_attention_does_not_depend_on_batches_or_unread_images():
    model = small(**ALL)
    whole = lit_attention.mean_attention(model, batches(6, 6))
    for size in (1, 4):
        parts = lit_attention.mean_attention(model, batches(6, size))
        for key, maps in whole.maps.items():
            np.testing.assert_allclose(parts.maps[key], maps, atol=1e-12)
    first, *_, last = batches(6, 1)
    without = lit_attention.mean_attention(model, batches(6, 4, unread=(1, 2, 3, 4)))
    few = lit_attention.mean_attention(model, [first, last])
    assert without.images == few.images == 2
    for key, maps in few.maps.items():
        np.testing.assert_allclose(without.maps[key], maps, atol=1e-12)


def test_a_large_batch_is_seen_in_parts_whose_maps_fit(monkeypatch):
    model, seen = small(**ALL), []
    drop = model.stages[0][0].attn.attn_drop
    drop.register_forward_hook(lambda _module, _input, maps: seen.append(len(maps)))
    monkeypatch.setattr(lit_attention, "MOST_BYTES", 3 * 4 * (16 * 16 + 1) ** 2)  # three images of stage 1, the largest
    assert lit_attention.mean_attention(model, batches(8, 8)).images == 8
    assert seen == [3, 3, 2]
    monkeypatch.setattr(lit_attention, "MOST_BYTES", 1)
    lit_attention.mean_attention(model, batches(2, 2))
    assert seen[3:] == [1, 1]


def test_an_error_leaves_the_model_as_it_was():
    def broken():
        yield from batches(2, 2)
        raise OSError("the disk is gone")

    model = small(**ALL).train()
    attentions = [block.attn for block in model.blocks]
    attentions[0].fused_attn, attentions[1].fused_attn = False, True
    with pytest.raises(OSError):
        lit_attention.mean_attention(model, broken())
    assert [a.fused_attn for a in attentions[:2]] == [False, True]
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model", [lambda: small(attention_stages=()), lambda: timm.create_model("test_vit")])
def test_a_model_without_attention_of_a_lit_is_refused(model):
    with pytest.raises(InputError, match="no attention to look at: choose a LIT with attention_stages"):
        lit_attention.mean_attention(model(), batches(1, 1))


def test_images_of_which_none_can_be_read_are_refused():
    config = load_experiment("digits").config("ff")
    for look in (lit_attention.mean_attention, lambda *args: lit_offsets.offsets_figure(*args, config)):
        with pytest.raises(InputError, match="no image to look at can be read"):
            look(
                small(),
                batches(2, 2, unread=(0, 1)) if look is lit_attention.mean_attention else batches(1, 1, (0,))[0],
            )


@pytest.mark.parametrize("stage, grid, index", [(1, 56, 1260), (2, 28, 294), (3, 14, 92), (4, 7, 17)])
def test_queries_are_the_published_ones(stage, grid, index):
    row, column = lit_attention.query_cell(stage, (grid, grid))
    assert grid * row + column == index


@pytest.mark.parametrize(
    "stage, grid, cell",
    [
        (1, (8, 8), (3, 4)),
        (2, (4, 4), (1, 2)),
        (3, (2, 2), (0, 1)),
        (4, (1, 1), (0, 0)),
        (1, (112, 28), (44, 14)),
        (4, (4, 14), (1, 6)),
    ],
)
def test_queries_of_other_maps_are_in_proportion(stage, grid, cell):
    assert lit_attention.query_cell(stage, grid) == cell


def test_the_class_tokens_row_and_column_are_left_out_without_renormalising():
    maps = np.arange(2 * 50 * 50, dtype=float).reshape(2, 50, 50)
    attention = MeanAttention({(4, 1): maps}, {4: (7, 7)}, patch_size=4, images=1)
    np.testing.assert_array_equal(lit_attention.query_row(attention, 4, 1), maps[:, 18, 1:].reshape(2, 7, 7))  # 17 + 1


def test_a_query_row_without_class_token_is_that_of_the_map():
    maps = np.arange(14**4, dtype=float).reshape(1, 196, 196)
    attention = MeanAttention({(3, 2): maps}, {3: (14, 14)}, patch_size=4, images=1)
    np.testing.assert_array_equal(lit_attention.query_row(attention, 3, 2), maps[:, 92].reshape(1, 14, 14))


def one_stage(maps, stage, grid):
    row = lit_attention.attention_distance(MeanAttention({(stage, 1): maps}, {stage: grid}, 4, 1)).iloc[0]
    return {column: float(value) if "(px)" in column else value for column, value in row.items()}


def test_distance_of_uniform_attention_is_the_mean_over_pairs_of_tokens():
    height, width, pixels = 3, 5, 4 * 2  # stage 2 of patches of 4 pixels
    cells = [(y, x) for y in range(height) for x in range(width)]
    mean = np.mean([pixels * math.hypot(a[0] - b[0], a[1] - b[1]) for a in cells for b in cells])
    row = one_stage(np.full((2, 15, 15), 1 / 15), 2, (height, width))
    assert row["mean distance (px)"] == row["uniform attention (px)"] == round(mean, 2)


def test_distance_of_attention_to_oneself_is_none_and_to_the_next_token_its_size():
    row = one_stage(np.stack([np.eye(4), np.eye(4)[::-1]]), 1, (1, 4))
    assert (row["lowest head (px)"], row["highest head (px)"]) == (0, 4 * (3 + 1 + 1 + 3) / 4)
    assert row["mean distance (px)"] == row["highest head (px)"] / 2
    assert row["tokens"] == "1 x 4" and row["heads"] == 2


def test_distance_leaves_out_what_the_class_token_gets():
    maps = np.zeros((1, 5, 5))
    maps[:, :, 0], maps[:, 1:, 1:] = 0.75, 0.25 * np.eye(4)[::-1]
    assert one_stage(maps, 4, (2, 2))["mean distance (px)"] == round(math.sqrt(2) * 32, 2)


# Pictures


def words(figure):
    return [text for text in (t.get_text() for t in figure.findobj(plt.Text)) if text]


@pytest.mark.parametrize("side, patch_size, tokens", [(8, 1, 1), (32, 2, 4), (64, 2, 4)])
def test_offsets_are_drawn_on_the_images_as_the_model_sees_them(side, patch_size, tokens):
    config = replace(load_experiment("digits").config("ff"), label="LIT, small")
    model = small(img_size=side, patch_size=patch_size)
    (batch,) = batches(6, 6, unread=(0,), side=side)
    figure = lit_offsets.offsets_figure(model, batch, config)
    traces = lit_offsets.trace([m[0] for m in lit_offsets.offsets(model, batch.images[1:2])], patch_size, (side, side))
    assert len(figure.axes) == 4
    panel = figure.axes[0]
    assert panel.images[0].get_extent() == [0, side, side, 0]
    seen = batch.images[1, 0].numpy() * config.std[0] + config.mean[0]
    np.testing.assert_allclose(panel.images[0].get_array(), seen.clip(0, 1), atol=1e-12)
    drawn = [kept(np.ma.filled(points.get_offsets(), np.nan)) for points in panel.collections]
    assert len(drawn) == len(panel.patches) == tokens
    corner = panel.patches[0].get_xy()
    row, column = (int(c) // (8 * patch_size) for c in corner[::-1])
    np.testing.assert_allclose(drawn[0], kept(traces[row, column])[:, ::-1], atol=1e-3)
    assert "LIT, small" in words(figure)[0]
    plt.close(figure)


@pytest.mark.parametrize("heads, columns, more", [((1, 2, 3, 4), 4, False), ((1, 2, 3, 16), 8, True)])
def test_attention_is_drawn_by_stage_and_head(heads, columns, more):
    attention = lit_attention.mean_attention(small(num_heads=heads, **ALL), batches(2, 2))
    figure = lit_attention.attention_figure(attention, "PVT")
    assert len(figure.axes) == 4 * columns
    titles = [panel.get_title(loc="left") for panel in figure.axes if panel.images]
    shown = [(s, h) for s, count in enumerate(heads, 1) for h in range(1, min(count, 8) + 1)]
    assert titles == [f"stage {s}, head {h}" for s, h in shown]
    third = lit_attention.query_row(attention, 3, 2)  # the last block
    np.testing.assert_array_equal(figure.axes[2 * columns].images[0].get_array(), third[0])
    (title,) = [text for text in words(figure) if "mean over 2 images" in text]
    assert ("the first" in title) == more and "class token, in stage 4, is left out" in title
    plt.close(figure)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    shape = dict(model_args=dict(embed_dims=[8, 16, 24, 32], num_heads=[1, 2, 3, 4]))
    config = load_experiment("digits-lit").config("all", epochs=1, warmup_epochs=0, max_train_images=128, **shape)
    train(replace(config, device="cpu", max_eval_images=64), folder)
    return folder


def test_a_picture_says_whose_weights_it_shows(run_dir, tmp_path, monkeypatch):
    told = trained_models.source(run_dir / "last.safetensors")
    assert told.startswith("Weights: last.safetensors of run all-seed0 of digits-lit, trained here, commit ")
    facts = json.loads((run_dir / "training.json").read_text())
    recorded = facts | {"git": {"commit": "0123456789abcdef", "dirty": False}}
    monkeypatch.setattr(trained_models, "load_records", lambda experiment: [recorded])
    told = trained_models.source(run_dir / "last.safetensors")  # the same weights: the picture is the recorded run's
    assert told.startswith("Weights: last.safetensors of run all-seed0 of digits-lit, recorded, commit 0123456789, on ")
    given = "Weights: lit_ti.pth, a file that was given; not trained here."
    assert trained_models.source(tmp_path / "lit_ti.pth") == given
    assert trained_models.source("https://example.org/lit_ti.pth") == given


def test_a_runs_model_comes_with_as_many_of_its_test_images_as_asked_for(run_dir):
    config = open_run(run_dir)[0]
    model, loader = trained_models.prepare(config, run_dir / "last.safetensors", max_eval_images=100, batch_size=64)
    assert isinstance(model, AbsoluteLIT) and [len(batch.images) for batch in loader] == [64, 36]
    with pytest.raises(InputError, match=r"head.weight is \(10, 32\), the model's \(7, 32\)"):
        trained_models.prepare(config, run_dir / "last.safetensors", num_classes=7)
    with pytest.raises(InputError, match="'there_is_none' is no folder, and no id of the hub"):
        trained_models.prepare(config, run_dir / "last.safetensors", dataset="there_is_none")
    with pytest.raises(InputError, match="'data_set'"):
        trained_models.prepare(config, run_dir / "last.safetensors", data_set="digits")


@pytest.mark.machine
def test_the_notebook_makes_its_pictures_and_its_table_of_official_files_and_any_folder(tmp_path):
    shape = dict(img_size=64, embed_dims=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 4])
    everywhere = dict(attention_stages=(1, 2, 3, 4), deformable=False)
    for name, layout in {"lit_ti": {}, "pvt_full_msa": everywhere}.items():
        torch.save(timm.create_model("lit_ti", **shape, **layout).state_dict(), tmp_path / f"{name}.pth")
    for i in range(8):
        file = tmp_path / f"images/{'cat' if i % 2 else 'dog'}/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((80, 70), 50).convert("RGB").save(file)
    parameters = dict(
        experiment="imagenet-lit",
        figures_dir=str(tmp_path / "out"),
        checkpoint=str(tmp_path / "lit_ti.pth"),
        attention_checkpoint=str(tmp_path / "pvt_full_msa.pth"),
        num_classes=1000,
        dataset=str(tmp_path / "images"),
        settings=shape | dict(validation_split="", test_split="train"),
    )
    notebook, output = ROOT / "notebooks/11_visualise.ipynb", tmp_path / "out.ipynb"
    papermill.execute_notebook(notebook, output, parameters, kernel_name="python3", progress_bar=False, cwd=ROOT)
    made = tmp_path / "out/imagenet-lit"
    assert {file.stem for file in made.iterdir()} == {"attention_distance", "attention_maps", "offsets"}
    assert "pvt_full_msa.pth, a file that was given; not trained here" in (made / "attention_distance.md").read_text()


@pytest.mark.parametrize(
    "name, subjects",
    [
        ("digits-lit", ("stages34", "all_plain")),
        ("cifar10-small-lit", ("stages34", "all_plain")),
        ("imagenet-lit", ("lit_ti", "pvt_msa")),
    ],
)
def test_unless_told_otherwise_the_papers_models_are_looked_at(name, subjects):
    assert lit_views.subjects(load_experiment(name)) == subjects


def test_what_comes_closest_is_looked_at_where_the_papers_models_are_not():
    def with_only(attention, merging):
        whole = load_experiment("cifar10-lit").model_dump()
        axes = whole["compare"]["stages"]["vary"]
        for axis, names in {"attention": attention, "merging": merging}.items():
            axes[axis] = [value for value in axes[axis] if value["name"] in names]
        whole["compare"]["stages"]["against"] = {}
        return Experiment(**whole)

    assert lit_views.subjects(with_only(["none", "stages234"], ["", "plain"])) == ("none", "stages234_plain")
    assert lit_views.subjects(with_only(["none", "all"], ["zero", "", "plain"])) == ("none", "all_plain")
    with pytest.raises(InputError, match="cifar10-lit has no LIT with deformable merging whose offsets learn"):
        lit_views.subjects(with_only(["none", "stage4"], ["zero", "plain"]))
