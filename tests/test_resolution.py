"""Another image size: weights load into it in one call, training starts from them, and what cannot be carried over is refused."""

import copy
import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import ffvit.models  # noqa: F401  # registers the models
from ffvit.commands.missing import waves
from ffvit.evidence.measured import everything
from ffvit.launching.jobs import Job
from ffvit.models import from_config
from ffvit.models.ff import PatchFeatureMixer
from ffvit.models.resample import grid_of
from ffvit.models.weights import load_weights, save_weights
from ffvit.settings.experiment import load_experiment
from ffvit.settings.same_run import differing
from ffvit.studies import resolution
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS
from ffvit.training.train import train

SMALL = dict(patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


def small(name="ff_tiny_patch16_224", img_size=16, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, img_size=img_size, **SMALL | options).eval()


def resized(model, img_size):
    model = copy.deepcopy(model)
    model.set_input_size(img_size)
    return model


def same_state(first, second):
    return all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(first.state_dict().values(), second.state_dict().values())
    )


@pytest.mark.parametrize("new", [24, 8, (16, 32), (24, 16)])
@pytest.mark.parametrize(
    "name, options",
    [
        ("ff_tiny_patch16_224", {}),
        ("ff_tiny_patch16_224", dict(patch_hidden_dim=5)),
        ("ff_tiny_patch16_224", dict(pos_embed="none", global_pool="avg", stem="conv")),
        ("ff_tiny_patch16_224", dict(position_grid=3)),
        ("ff_tiny_patch16_224", dict(patches="attention", features="attention_unprojected")),
        ("vit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
    ids=str,
)
def test_weights_of_another_size_load_in_one_call(name, options, new, tmp_path):
    trained = small(name, **options)
    save_weights(tmp_path / "w.safetensors", trained)
    loaded = load_weights(small(name, new, seed=1, **options), tmp_path / "w.safetensors")
    assert same_state(loaded, resized(trained, new if isinstance(new, tuple) else (new, new)))
    sides = new if isinstance(new, tuple) else (new, new)
    x = torch.randn(2, 1, *sides)
    torch.testing.assert_close(loaded(x), resized(trained, sides)(x))
    assert loaded.patch_embed.grid_size == (sides[0] // 4, sides[1] // 4)


def test_an_image_that_is_not_square_tells_its_shape_by_its_positions(tmp_path):
    trained = small(img_size=(8, 32))  # 2 x 8 patches, as many as 4 x 4
    save_weights(tmp_path / "w.safetensors", trained)
    loaded = load_weights(small(img_size=16, seed=1), tmp_path / "w.safetensors")
    assert same_state(loaded, resized(trained, 16))


def test_patches_whose_places_nothing_tells_are_refused(tmp_path):
    save_weights(tmp_path / "w.safetensors", small(img_size=(8, 12), pos_embed="none"))
    model = small(img_size=16, pos_embed="none", seed=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="w.safetensors: weights of 6 patches are no square, and no map of positions"):
        load_weights(model, tmp_path / "w.safetensors")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("patches, position_map, grid", [(16, None, (4, 4)), (16, (2, 8), (2, 8)), (9, (4, 4), (3, 3))])
def test_the_grid_of_patches_is_that_of_the_positions_or_a_square(patches, position_map, grid):
    assert grid_of(patches, position_map) == grid


def test_an_authors_checkpoint_of_224_px_loads_into_a_model_of_288(shared):
    file = shared / "parity/ff_p16_dim32_depth2.pth"
    shape = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_classes": 10}
    theirs = load_weights(PatchFeatureMixer(**shape), file)
    loaded = load_weights(PatchFeatureMixer(img_size=288, **shape), file)
    assert loaded.num_tokens == 18 * 18 + 1
    assert loaded.blocks[1].mix_patches.mix.fc1.weight.shape == (4 * 197, 18 * 18 + 1)
    assert same_state(loaded, resized(theirs, 288))
    assert loaded(torch.zeros(1, 3, 288, 288)).shape == (1, 10)


def test_a_width_that_was_asked_for_is_no_others(tmp_path):
    save_weights(tmp_path / "w.safetensors", small())
    with pytest.raises(InputError, match=r"patch_hidden_dim=68\): blocks.0.mix_patches.mix.fc1.weight is \(68, 17\)"):
        load_weights(small(img_size=24, patch_hidden_dim=5), tmp_path / "w.safetensors")


def test_attention_along_the_tokens_is_refused_at_another_size(tmp_path):
    name = "attention_only_tiny_patch16_224"
    save_weights(tmp_path / "w.safetensors", small(name))
    with pytest.raises(InputError, match="w.safetensors: attention over features has a width of as many tokens"):
        load_weights(small(name, 24), tmp_path / "w.safetensors")


def test_a_file_of_absurdly_many_patches_takes_no_memory(tmp_path):
    state = small().state_dict() | {"blocks.0.mix_patches.mix.fc1.weight": torch.zeros(1, 3001**2 + 1)}
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="the weights of another model"):
        load_weights(small(), tmp_path / "w.safetensors")


def test_weights_along_the_patches_that_are_not_finite_are_refused_by_name(tmp_path):
    state = small().state_dict()
    state["blocks.1.mix_patches.norm.weight"][3] = torch.nan
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="NaN or infinite numbers in blocks.1.mix_patches.norm.weight"):
        load_weights(small(img_size=24), tmp_path / "w.safetensors")


def digits(model="ff", seed=0, **settings):
    small = {"epochs": 1, "warmup_epochs": 0, "device": "cpu", "max_train_images": 128}
    return load_experiment("digits-resolution").config(model, seed, **small | settings)


@pytest.mark.parametrize("model, img_size", [("ff", 12), ("vit", 16), ("ff", 8)])
def test_training_begins_with_the_weights_of_a_file(model, img_size, tmp_path):
    """At a rate of nothing, it also ends with them."""
    first = from_config.create(digits(model), 10)
    save_weights(tmp_path / "first.safetensors", first)
    still = dict(base_lr=0.0, min_lr=0.0, warmup_lr=0.0)
    train(
        digits(model, img_size=img_size, initial_weights=str(tmp_path / "first.safetensors"), **still), tmp_path / "run"
    )
    ended = load_file(tmp_path / "run/last.safetensors")
    begun = resized(first, (img_size, img_size)).state_dict()
    assert all(torch.allclose(ended[key], value, atol=1e-6) for key, value in begun.items())
    facts = json.loads((tmp_path / "run/training.json").read_text())
    assert len(facts["initial_weights_sha256"]) == 64
    assert facts["config"]["initial_weights"] == "first.safetensors"  # no path of this machine


def test_training_starts_from_the_run_of_the_same_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path)
    config = digits("ff_img_size12_resampled", seed=1)
    assert config.initial_file == tmp_path / "digits-resolution/ff-seed1/last.safetensors"
    with pytest.raises(InputError, match="starts from the weights of ff-seed1.*--model ff --seed 1"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists()
    config.initial_file.parent.mkdir(parents=True)
    save_weights(config.initial_file, from_config.create(digits("ff"), 10))
    train(config, tmp_path / "run")
    assert (tmp_path / "run/training.json").exists()


def test_weights_that_would_change_the_models_shape_are_refused_with_the_setting_to_give(tmp_path):
    save_weights(tmp_path / "w.safetensors", small())
    with pytest.raises(InputError, match=r"is \(68, 37\), by the settings \(148, 37\): set .* patch_hidden_dim = 68"):
        from_config.start_from(small(img_size=24), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"initial_weights": "a b"}, "initial_weights must be a file .* or a model of the experiment, got 'a b'"),
        ({"initial_weights": "ff"}, "initial_weights: 'ff' cannot start from itself"),
    ],
)
def test_initial_weights_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        digits("ff", **settings)


def experiment(**models):
    entries = {name: {"label": name, "model": "ff_tiny_patch16_224", **own} for name, own in models.items()}
    return dict(title="x", scope="x", about="x", seeds=[0, 1], models=entries, settings={"dataset": "digits"})


@pytest.mark.parametrize(
    "models, message",
    [
        ({"a": {"initial_weights": "b"}, "bb": {}}, "a: initial_weights: there is no model 'b'; did you mean 'bb'"),
        ({"a": {"initial_weights": "b"}, "b": {"seeds": [0]}}, "a: initial_weights: 'b' has no seed 1"),
        ({"a": {"initial_weights": "b"}, "b": {"initial_weights": "a"}}, "initial_weights go in a circle: a, b, a"),
    ],
)
def test_an_experiment_whose_runs_have_nothing_to_start_from_is_refused(models, message, tmp_path):
    content = experiment(**models)
    lines = [f"{key} = {json.dumps(content[key])}" for key in ("title", "scope", "about", "seeds")]
    for name, entry in content["models"].items():
        lines += [f"[models.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in entry.items())]
    lines += ["[settings]", 'dataset = "digits"']
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        load_experiment(tmp_path / "mine.toml")


def test_a_variant_starts_from_the_model_that_it_varies():
    found = load_experiment("digits-resolution")
    starts = {name: found.config(name).initial_weights for name, v in found.variants.items() if v.comparison}
    assert {name.partition("_")[0] for name, first in starts.items() if first == "vit"} == {"vit"}
    assert {first for name, first in starts.items() if name.endswith("_anew")} == {""}
    assert {first for name, first in starts.items() if name.startswith("ff") and not name.endswith("_anew")} == {"ff"}


def test_runs_wait_for_those_whose_weights_they_start_from(tmp_path):
    configs = load_experiment("digits-resolution").configs()
    jobs = [Job(c.run_id, c, tmp_path / c.run_id, {}) for c in reversed(configs)]
    first, second = waves(jobs)
    assert {job.config.initial_weights for job in first} == {""} and len(first) + len(second) == len(configs)
    for job in first:
        job.is_trained = True
    assert [len(wave) for wave in waves(jobs)] == [len(configs)]


def test_where_a_file_of_weights_lies_is_no_part_of_a_run():
    here, there, other = (digits(initial_weights=name).to_dict() for name in ("/a/w.pth", "/b/w.pth", "/a/v.pth"))
    assert differing(here, there) == []
    assert differing(here, other) == ["initial_weights"]


def test_the_rate_of_fine_tuning_is_among_the_best_of_each_model_on_validation_images():
    found = load_experiment("digits-resolution")
    chosen = {found.config(v.name).base_lr for v in found.of("resolution") if v.values["training"] == "tuned"}
    for model in found.compare["rates"].models:
        files = [RESULTS / f"digits-resolution/{v.name}-seed0.json" for v in found.of("rates") if v.of == model]
        scores = {}
        for record in map(json.loads, map(Path.read_text, files)):
            scores[record["config"]["base_lr"]] = record["history"][-1]["validation_top1_percent"]
        assert chosen <= {rate for rate, score in scores.items() if score == max(scores.values())}, model


# The notebook's study.
RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
STUDY = load_experiment("digits-resolution")


def recorded(**top1):
    """Records of models of the experiment, a value a seed."""
    records = []
    for name, values in top1.items():
        for seed, value in enumerate(values):
            config = STUDY.config(name, seed)
            record = copy.deepcopy(RECORDED) | {"run_id": config.run_id, "config": config.to_dict()}
            record["results"]["top1_percent"] = value
            records.append(record)
    return records


FOUND = recorded(
    ff=[99, 98, 98.5], vit=[90, 91, 92],
    ff_img_size12_resampled=[60, 58, 59], vit_img_size12_resampled=[70, 80, 60],
    ff_img_size12_tuned=[98.9, 98.0, 98.4], vit_img_size12_tuned=[80, 81, 82.5],
)  # fmt: skip


def verdicts(records):
    table = resolution.predictions_table(STUDY, records)
    return dict(zip(table.iloc[:, 0], table["Found"]))


def test_predictions_are_judged_by_their_intervals():
    found = verdicts(FOUND)
    assert found["FF only, 12 px: resampling costs accuracy"] == "holds"  # 39, 40, 39.5 points
    assert found["FF only, 12 px: fine-tuning gives it back"] == "holds"  # 0.1, 0, 0.1
    assert found["ViT, 12 px: fine-tuning gives it back"] == "does not hold"  # 10, 10, 9.5
    assert found["ViT, 12 px: resampling costs accuracy"] == "undecided"  # 20, 11, 32: from -5 on
    assert found["12 px: FF only loses more by resampling than ViT"] == "undecided"  # 19, 29, 7.5
    assert set(list(found.values())[4:6]) | {found["16 px: FF only loses more by resampling than ViT"]} >= {"not run"}


def test_one_seed_decides_nothing():
    found = verdicts([r for r in FOUND if r["config"]["seed"] == 0])
    assert set(found.values()) == {"undecided", "not run"}


def test_the_table_has_what_was_measured_and_says_what_was_not():
    table = resolution.accuracy_table(STUDY, FOUND)
    assert table["Model"].tolist() == ["FF only", "FF only", "ViT", "ViT"]
    assert table["Image"].tolist() == ["12 px", "16 px", "12 px", "16 px"]
    assert table["Resampled"].tolist() == ["59.00 ± 1.00 (n=3)", "not run", "70.00 ± 10.00 (n=3)", "not run"]
    assert set(table["Trained anew"]) == {"not run"}


def test_the_summary_tells_what_became_of_each_model_and_which_predictions_hold():
    told = resolution.summary(STUDY, FOUND).splitlines()
    assert told[:3] == [
        "FF only to 12 px: 98.50 % trained, 59.00 % resampled, 98.43 % fine-tuned.",
        "ViT to 12 px: 91.00 % trained, 70.00 % resampled, 81.17 % fine-tuned.",
        "2 of 10 predictions hold.",
    ]
    assert told[3] == "Does not hold: ViT, 12 px: fine-tuning gives it back." and len(told) == 6
    assert resolution.summary(STUDY, []).startswith("0 of 10 predictions hold.\nNot run: FF only, 12 px")


def test_the_ledger_has_what_fine_tuning_at_the_largest_size_leaves_of_a_point():
    (prediction,) = resolution.PREDICTIONS
    largest = recorded(ff_img_size16_tuned=[97, 97.5, 98.5])
    assert prediction.points(STUDY, everything(STUDY, FOUND + largest)) == {0: -1, 1: 0.5, 2: 1}
    assert prediction.points(STUDY, everything(STUDY, FOUND)) == {}
    assert prediction.points(load_experiment("digits"), {}) == {}


def test_parameters_grow_as_predicted_in_one_call():
    table = resolution.in_one_call("ff_tiny_patch16_224", 256)
    assert table["Parameters, predicted"].tolist() == table["Parameters"].tolist()
    assert table["Tokens"].tolist() == ["197", "257"] and set(table["Hidden units over patches"]) == {"788"}


@pytest.mark.parametrize(
    "model, img_size, message",
    [
        ("ff_tiny_patch16_224", 224, "img_size=224 is the size that ff_tiny_patch16_224 has: choose another, such as 288"),
        ("ff_tiny_patch16_224", 290, "img_size=290 is not divisible by the patch size 16 .* such as 288"),
        ("ff_tiny_patch16_224", 225, "img_size=225 is not divisible by the patch size 16 .* such as 240"),
        ("ff_tiny_patch16_224", 0, "img_size=0 is not divisible by the patch size 16 .* such as 16"),
        ("vit_tiny_patch16_224", 288, "'vit_tiny_patch16_224' has no feed-forward layer over patches.*ff_tiny_patch16_224"),
        ("attention_only_tiny_patch16_224", 288, "has no feed-forward layer over patches"),
        ("ff_tinny_patch16_224", 288, "unknown to timm; did you mean 'ff_tiny_patch16_224'"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_to_another_size_is_refused_before_any_work(model, img_size, message):
    resolution.check("ff_tiny_patch16_224", 288)
    with pytest.raises(InputError, match=message):
        resolution.check(model, img_size)


def test_the_refusal_names_both_sizes_and_a_cure_and_an_image_that_fits_has_none():
    said = resolution.refusal(small(), 24)
    assert "16" in said and "24" in said and "set_input_size" in said
    with pytest.raises(AssertionError, match="images of 16 px were accepted"):
        resolution.refusal(small(), 16)
