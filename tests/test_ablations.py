"""Notebooks 16 and 17: one thing is changed at a time, every prediction is judged by its interval, every gap is of two accuracies."""

import copy
import json

import matplotlib.pyplot as plt
import pytest
import timm
import torch
from tracked import tracked

import ffvit.models  # noqa: F401  # registers the models
from ffvit.evidence.measured import NOT_RUN, everything
from ffvit.models import from_config
from ffvit.settings.experiment import load_experiment
from ffvit.studies import ablations, predictions, size_and_data
from ffvit.studies.finding import CONTRADICTED, NOT_COMPARABLE, REPRODUCED, Finding
from ffvit.studies.predictions import FAILS, HOLDS, UNDECIDED
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, RESULTS

RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
FILES = [n for n in tracked("experiments/*.toml") if "stem" in load_experiment(n).compare]
SMALL = load_experiment("digits-ablations")
CLAIMS = {p.claim: p for p in (*ablations.PREDICTIONS, *size_and_data.PREDICTIONS)}
ALL = {"digits": 1077, "uoft-cs/cifar10": 45_000}  # training images
EMBEDDING = "Patch embedding explains more of ViT's strength than attention does"
POSITIONS = "Attention needs positions more than a feed-forward layer over patches, which has a weight for each place"
FIXED_WIDTH = "A hidden width over patches that does not grow with them, taken to save cost, costs accuracy"


def made(experiment=SMALL, train=100.0, **top1):
    """Records of some models, a value a seed: those of digits, rewritten. train: top-1 of the training images."""
    records = []
    for name, values in top1.items():
        for seed, value in enumerate(values):
            config, record = experiment.config(name, seed), copy.deepcopy(RECORDED)
            record |= {"run_id": config.run_id, "config": config.to_dict()}
            record["model"]["patches"] = config.model_args.get("patches", "ff")
            record["model"]["parameters"] = 10 * config.model_args["embed_dim"] ** 2
            record["dataset"]["images"]["train"] = config.max_train_images or ALL[config.dataset]
            record["dataset"]["fingerprint"] = f"of{config.max_train_images}"
            record["results"]["top1_percent"] = value
            if train is not None:
                record["results"]["train"] = {"images": 9, "loss": 0.1, "top1_percent": train}
            records.append(record)
    return records


def points(claim, **top1):
    records = made(**top1)
    return [*CLAIMS[claim].points(SMALL, everything(SMALL, records)).values()]


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


# One thing at a time


@pytest.mark.parametrize("name", FILES)
def test_every_variant_has_what_its_line_names_changed_and_nothing_else(name):
    experiment = load_experiment(name)
    together = {"crop_scale", "crop_ratio", "hflip", "auto_augment", "mixup", "cutmix"}  # augmentation
    for variant in (v for v in experiment.variants.values() if v.comparison):
        what = predictions.changed(experiment, variant).keys()
        if "max_train_images" in what:  # as many updates take other numbers of epochs
            assert what == {"max_train_images", "epochs", "warmup_epochs"}, variant.name
        else:
            assert len(what) == 1 or what <= together, variant.name


@pytest.mark.parametrize("name", FILES)
def test_runs_with_other_numbers_of_images_have_as_many_updates(name):
    experiment = load_experiment(name)
    updates = {}
    for variant in experiment.variants.values():
        c = experiment.config(variant.name)
        updates[variant.name] = c.epochs * ((c.max_train_images or ALL[c.dataset]) // c.batch_size)
    usual = updates["ff"]
    assert all(abs(number - usual) <= 0.04 * usual for number in updates.values()), updates


@pytest.mark.parametrize("name", FILES)
def test_every_variant_of_an_experiment_can_be_made(name):
    experiment = load_experiment(name)
    for variant in experiment.variants:
        from_config.check(experiment.config(variant))


@pytest.mark.parametrize("name", FILES)
def test_every_prediction_finds_its_runs_in_the_experiment(name):
    experiment = load_experiment(name)
    found = everything(experiment, made(experiment, **dict.fromkeys(experiment.variants, [50.0, 51.0])))
    missed = {claim for claim, p in CLAIMS.items() if len(p.points(experiment, found)) != 2}
    assert missed == (set() if "patch_width" in experiment.compare else {FIXED_WIDTH})


def test_a_line_of_the_picture_is_an_ablation_of_both_models_and_size_and_data_are_none():
    shown = {line.words: [*line.variants] for line in ablations.lines(SMALL)}
    assert shown["convolutional stem"] == ["ff", "vit"]
    assert shown["LayerNorm over channels"] == ["ff"]  # ViT's is over channels as it is
    assert shown["order of the branches, turned round"] == ["ff", "vit"]
    assert not [words for words in shown if "wide" in words or "images" in words]


def test_without_positions_vit_sees_a_bag_of_patches_and_ff_does_not():
    torch.manual_seed(0)
    images = torch.randn(2, 1, 8, 8)
    shuffled = images.unflatten(3, (4, 2))[:, :, :, [2, 0, 3, 1]].flatten(3)  # columns of patches
    change = {}
    for name in ("ff_unplaced", "vit_unplaced", "vit"):
        config = SMALL.config(name)
        model = timm.create_model(config.model, num_classes=10, img_size=8, in_chans=1, **config.model_args).eval()
        with torch.inference_mode():
            change[name] = (model(images) - model(shuffled)).abs().max().item()
    assert change["vit_unplaced"] < 1e-5 < 1e-3 < min(change["ff_unplaced"], change["vit"])


# Predictions


@pytest.mark.parametrize(
    "values, verdict",
    [
        ([1.0, 2.0, 3.0], UNDECIDED),  # 2 ± 2.48
        ([2.0, 2.5, 3.0], HOLDS),
        ([-2.0, -2.5, -3.0], FAILS),
        ([1.0, 1.0, 1.0], UNDECIDED),  # without a spread there is no interval
        ([5.0], UNDECIDED),
    ],
)
def test_a_prediction_is_judged_by_its_interval(values, verdict):
    assert predictions.judge(values) == verdict


def test_what_carries_more_than_attention_is_what_costs_vit_more_than_ff_costs_it():
    ff, vit, frozen = [79.0, 82.0], [80.0, 84.0], [70.0, 75.0]
    by_hand = [
        (v - f) - (v - a) for a, v, f in zip(ff, vit, frozen)
    ]  # lost without the part, less lost without attention
    assert points(EMBEDDING, ff=ff, vit=vit, vit_frozen=frozen) == pytest.approx(by_hand) == [9.0, 7.0]


def test_what_costs_vit_nothing_carries_nothing_however_good_ff_is():
    assert points(EMBEDDING, ff=[90.0, 91.0], vit=[80.0, 84.0], vit_frozen=[80.5, 83.0]) == [-0.5, 1.0]


def test_fewer_images_in_fewer_updates_are_no_test_of_the_number_of_images():
    study = load_experiment("cifar10-small")
    found = everything(study, made(study, ff=[73.0, 74.0], ff_third=[64.0, 65.0]))
    assert {"ff", "ff_third"} <= found.keys() and CLAIMS["More images help: FF"].points(study, found) == {}


def test_positions_are_dearer_to_one_model_by_the_difference_of_two_differences():
    lost = points(POSITIONS, ff=[90.0, 91.0], ff_unplaced=[89.0, 91.5], vit=[80.0, 84.0], vit_unplaced=[60.0, 65.0])
    assert lost == pytest.approx([20.0 - 1.0, 19.0 + 0.5])


def test_the_largest_and_smallest_of_what_was_tried_are_found():
    found = everything(SMALL, made(ff=[90.0], ff_width16=[70.0], ff_width192=[88.0]))
    cell = predictions.FF
    assert predictions.with_most(cell, "embed_dim")(SMALL, found).name == "ff_width192"
    assert predictions.with_least(cell, "embed_dim")(SMALL, found).name == "ff_width16"
    assert predictions.with_most(cell, "depth")(SMALL, found) is None
    assert points("Large models get worse when images are few: FF", ff=[90.0], ff_width192=[88.0]) == [2.0]


def test_all_images_are_more_than_any_number_of_them():
    found = everything(SMALL, made(ff=[97], ff_images128=[94], ff_images1077=[99]))
    cell = predictions.FF
    assert predictions.with_least(cell, "max_train_images")(SMALL, found).name == "ff_images128"
    assert predictions.with_most(cell, "max_train_images")(SMALL, found).name == "ff_images1077"
    assert points("More images help: FF", ff=[97, 98], ff_images128=[94, 95], ff_images1077=[99, 99]) == [3, 3]


def test_a_prediction_without_its_runs_is_not_run():
    table = predictions.table(CLAIMS.values(), SMALL, everything(SMALL, made(ff=[90.0, 91.0])))
    assert set(table["The prediction"]) == {NOT_RUN} and len(table) == len(CLAIMS)


def test_prediction_and_measurement_stand_side_by_side_and_the_summary_counts_them():
    runs = dict(
        ff=[90.0, 91.0, 92.0], vit=[80.0, 84.0, 82.0], vit_frozen=[70.0, 70.4, 71.9], vit_unaugmented=[81.0, 83.0, 82.5]
    )
    table = predictions.table(ablations.PREDICTIONS[:4], SMALL, everything(SMALL, made(**runs)))
    assert list(table["The prediction"]) == [HOLDS, UNDECIDED, HOLDS, UNDECIDED]
    assert table["digits: left less right (points)"][0] == "+11.23 (n=3)"
    told = predictions.summary(table["Claim"], table["The prediction"])
    explains = "Augmentation explains more of ViT's strength than attention does"
    assert told == f"2 of 4 predictions hold.\nUndecided: {explains}; Augmentation helps ViT."


@pytest.mark.parametrize(
    "first, second, verdict",
    [
        ([5, -1, -1.1], [-0.9, 5, 5], UNDECIDED),  # the lower of each seed's two would be below zero in every seed
        ([5, 5.1, 5.2], [1, 1.1, 1.2], HOLDS),
        ([5, 5.1, 5.2], [-1, 9, 9], UNDECIDED),
        ([-9, 5, 5], [-1, -1.1, -1.2], FAILS),
        ([5, 5.1, 5.2], [3], UNDECIDED),
        ([5, 5.1, 5.2], [], None),
    ],
)
def test_two_inequalities_are_judged_by_the_one_that_decides(first, second, verdict):
    one, other = (lambda *_, values=values: dict(enumerate(values)) for values in (first, second))
    for points in (predictions.both(one, other)(), predictions.both(other, one)()):
        assert (predictions.judge([*points.values()]) if points else None) == verdict


def test_one_difference_is_taken_off_another_of_the_same_seed():
    assert predictions.beyond(lambda: {0: 1.0, 1: 2.0}, lambda: {1: 0.5, 2: 9.0})() == {1: 1.5}


@pytest.mark.parametrize(
    "scope, frozen, verdict",
    [
        ("digits", [70.0, 70.4], NOT_COMPARABLE),
        ("CIFAR-10, small models", [70.0, 70.4], REPRODUCED),
        ("CIFAR-10, small models", [99.0, 99.4], CONTRADICTED),
        ("CIFAR-10, small models", [90.0, 91.4], NOT_COMPARABLE),
    ],
)
def test_the_ledger_judges_a_prediction_where_images_can_carry_it(scope, frozen, verdict):
    experiment = SMALL.model_copy(update={"scope": scope})
    found = everything(experiment, made(experiment, ff=[90.0, 90.5], vit=[91.0, 92.0], vit_frozen=frozen))
    finding = predictions.check(CLAIMS[EMBEDDING], experiment, found)
    assert (finding.verdict, finding.scale, finding.seeds) == (verdict, scope, "2")
    assert finding.note.startswith("A(FF) > A(ViT, frozen random embedding) and A(ViT) > A(ViT, frozen")
    assert predictions.check(CLAIMS[POSITIONS], experiment, found).verdict == Finding().verdict


# Tables and figures


def test_an_effect_is_a_variant_less_the_model_as_it_is_seed_by_seed():
    table = ablations.table(SMALL, made(ff=[90.0, 91.0], ff_conv=[92.0, 92.0], vit=[80.0, 81.0]))
    [row] = table[(table["Model"] == "FF only") & (table["One thing changed"] == "convolutional stem")].to_dict(
        "records"
    )
    assert row["digits top-1 (points)"] == "+1.50 (n=2)" and row["digits top-1 (%)"] == "92.00 ± 0.00 (n=2)"
    others = table[table["One thing changed"] != "convolutional stem"]
    assert set(others["What the seeds show"]) == {NOT_RUN}


def test_the_picture_has_a_line_an_ablation_and_shows_every_seed_whatever_its_interval():
    figure = ablations.effects(
        SMALL, made(ff=[90.0, 91.0], ff_conv=[92.0, 97.0], vit=[80.0, 81.0], vit_conv=[70.0, 79.0])
    )
    [panel] = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [line.words for line in ablations.lines(SMALL)]
    drawn = {round(x, 6) for line in panel.lines if line.get_marker() == "." for x in line.get_xdata()}
    assert drawn == {2.0, 6.0, -10.0, -2.0}
    low, high = panel.get_xlim()
    assert low < min(drawn) and max(drawn) < high < 30  # the interval of two seeds reaches to 29.4


def test_the_strongest_effects_are_told_model_by_model():
    told = ablations.strongest(SMALL, made(ff=[90.0, 91.0], ff_conv=[92.0, 93.0], ff_frozen=[80.0, 81.5], vit=[80.0]))
    assert told.startswith(
        "FF only: worst with frozen random embedding (−9.75 points), best with convolutional stem (+2.00)."
    )
    assert "by Holm's correction over all of them: FF only with frozen random embedding." in told
    assert ablations.strongest(SMALL, []) == "Nothing was run."


def test_the_gap_is_top1_of_training_images_less_that_of_test_images():
    table = size_and_data.table(SMALL, made(train=99.5, ff=[90.0, 91.0], ff_width16=[80.0], ff_images1077=[97.0]))
    rows = {(row["Against"], row["Which"]): row for row in table.to_dict("records") if row["Model"] == "FF only"}
    assert rows["size", "as it is"]["Gap (points)"] == "+9.00 (n=2)"
    assert rows["size", "16 wide"]["Gap (points)"] == "+19.50 (n=1)"
    assert rows["data", "all 1,077 images"]["Training images"] == "1,077"
    assert [which for of, which in rows if of == "data"] == [
        "as it is",
        "all 1,077 images",
        "128 images",
    ]  # not run: last


def test_runs_whose_training_images_were_not_scored_have_no_gap():
    records = made(train=None, ff=[90.0, 91.0], ff_width16=[80.0, 81.0], ff_width192=[91.0, 91.5])
    table = size_and_data.table(SMALL, records)
    assert set(table[table["Params"] != ""]["Training top-1 (%)"]) == {size_and_data.UNKNOWN}
    assert CLAIMS["The gap grows with size: FF"].points(SMALL, everything(SMALL, records)) == {}
    assert len(size_and_data.figure(SMALL, records).axes) == 4


# What does not exist


def test_an_ablation_that_does_not_exist_is_named_with_the_nearest(tmp_path):
    text = (EXPERIMENTS / "digits-ablations.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text.replace("[tuned]", "[tuned]\nff_conf.base_lr = 0.1"))
    with pytest.raises(InputError, match="mine.toml: tuned: there is no model 'ff_conf'; did you mean 'ff_conv'"):
        load_experiment(file)
    file.write_text(text.replace('stem = "conv"', 'stem = "konv"'))
    with pytest.raises(InputError, match="stem='konv': choose one of 'linear', 'conv', 'frozen'"):
        from_config.check(load_experiment(file).config("ff_conv"))
    file.write_text(text.replace('stem = "conv"', 'stm = "conv"'))
    with pytest.raises(InputError, match="cannot have the shape that the settings give it: .*'stm'"):
        from_config.check(load_experiment(file).config("ff_conv"))
