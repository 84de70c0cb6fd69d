"""The recipe to the letter: rates, parameter groups, losses, averaged weights and parts of batches, against formulas."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn

from ffvit.models import from_config
from ffvit.settings.experiment import load_experiment
from ffvit.tasks.classification import create_loss
from ffvit.training import optim


def imagenet(model="ff_tiny", **settings):
    return load_experiment("imagenet").config(model, **settings)


def rate(config, when, per_epoch=1, peak_ratio=1):
    """The learning rate in closed form. when: epochs, or updates of which `per_epoch` make an epoch."""
    peak = config.base_lr * config.batch_size / 512 * peak_ratio
    warmup, whole = config.warmup_epochs * per_epoch, config.epochs * per_epoch
    scale = config.batch_size / 512 if config.recipe == "lit" else 1  # Swin's habit
    start, floor = config.warmup_lr * scale, config.min_lr * scale
    if when < warmup:
        return start + (peak - start) * when / warmup
    if when >= whole:
        return floor
    return floor + (peak - floor) * (1 + math.cos(math.pi * when / whole)) / 2


def stepped(config, per_epoch, first_update=0):
    """The rate of every update that a run makes from first_update on."""
    weights = [nn.Parameter(torch.zeros(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=optim.peak_lr(config))
    scheduler = optim.create_scheduler(config, optimizer, per_epoch)
    updates = range(first_update, config.total_epochs * per_epoch)
    return {u: optim.set_rate(config, scheduler, u // per_epoch, u) for u in updates}


def test_every_epoch_of_deit_has_the_rate_of_the_epoch_before():
    config = imagenet()
    rates = stepped(config, per_epoch=1)
    assert len(rates) == 310
    for epoch, lr in rates.items():
        assert abs(lr - rate(config, max(0, epoch - 1))) <= 1e-12
    assert rates[0] == rates[1] == 1e-6  # DeiT's first two epochs
    assert rates[6] == pytest.approx(1e-3, rel=1e-3)  # 5e-4 x 1024 / 512, where the cosine stands after 5 epochs
    assert rates[301] == rates[309] == 1e-5


@pytest.mark.parametrize("first_update", [0, 1, 37, 299])
@pytest.mark.parametrize("processes, parts", [(1, 1), (2, 1), (2, 4), (8, 2)])
def test_every_update_has_the_rate_of_the_closed_form_however_the_batch_is_divided(processes, parts, first_update):
    config = imagenet(
        schedule_per="update", epochs=28, cooldown_epochs=2, num_processes=processes, accumulation_steps=parts
    )
    for update, lr in stepped(config, per_epoch=10, first_update=first_update).items():
        assert abs(lr - rate(config, update, per_epoch=10)) <= 1e-12


def test_the_rate_follows_the_global_batch_and_not_how_it_is_divided():
    for config in (imagenet(), imagenet(num_processes=8), imagenet(accumulation_steps=8)):
        assert optim.peak_lr(config) == 1e-3
    assert optim.peak_lr(imagenet(batch_size=512)) == 5e-4


def names_by_decay(model, config):
    optimizer = optim.create_optimizer(config, model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert set().union(*groups.values()) == set(names.values())
    return groups


@pytest.mark.parametrize("name", ["ff_tiny", "attention_only", "ff_attention", "deit_tiny"])
def test_matrices_decay_and_vectors_biases_and_tokens_do_not(name):
    config = imagenet(name, model_args=dict(depth=2))
    model = from_config.create(config, 10)
    groups = names_by_decay(model, config)
    parameters = dict(model.named_parameters())
    spared = {n for n, p in parameters.items() if p.ndim <= 1 or n.endswith(".bias") or n in model.no_weight_decay()}
    assert groups == {0.0: spared, 0.05: set(parameters) - spared}


@pytest.mark.parity("the report's author's settings")
def test_positions_of_the_reports_model_decay_as_the_authors_did():
    groups = names_by_decay(
        from_config.create(imagenet(model_args=dict(depth=1)), 10), imagenet(model_args=dict(depth=1))
    )
    assert {"pos_encoding.pos_embed", "pos_encoding.cls_pos_embed"} <= groups[0.05]
    assert "cls_token" in groups[0.0]


def lit(name, **settings):
    return load_experiment("imagenet-lit").config(name, **settings)


@pytest.mark.parametrize(
    "name, spared, decayed, offsets",
    [
        ("lit_ti", (119, 58_304), (59, 19_811_584), (3, 16_384)),
        ("lit_s", (106, 121_432), (45, 27_830_784), (3, 21_504)),
        ("lit_m", (214, 286_312), (93, 49_064_448), (3, 21_504)),
        ("lit_b", (214, 381_408), (93, 86_882_304), (3, 28_672)),
    ],
)
def test_lits_offset_weights_have_a_rate_of_their_own_and_all_groups_the_official_sizes(name, spared, decayed, offsets):
    with torch.device("meta"):
        model = from_config.create(lit(name), 1000)
    optimizer = optim.create_optimizer(lit(name), model)
    counts = [(len(g["params"]), sum(p.numel() for p in g["params"])) for g in optimizer.param_groups]
    assert counts == [spared, decayed, offsets]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.05, 0.05]
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1e-3, 1e-5]
    groups = {n: i for i, g in enumerate(optimizer.param_groups) for n, p in model.named_parameters() if is_in(p, g)}
    assert {n for n, i in groups.items() if i == 2} == {n for n in groups if n.endswith("conv_offset.weight")}
    assert {i for n, i in groups.items() if n.endswith("conv_offset.bias")} == {0}  # the whole rate, and no decay
    assert {i for n, i in groups.items() if n.startswith("pos_embed")} <= {1}
    assert {i for n, i in groups.items() if n.startswith("cls_token") or "bias_table" in n} == {0}


def is_in(parameter, group):
    return any(parameter is p for p in group["params"])


def test_with_offsets_at_the_whole_rate_there_is_no_third_group():
    with torch.device("meta"):
        model = from_config.create(lit("lit_ti"), 10)
    assert len(optim.create_optimizer(lit("lit_ti", offset_lr_ratio=1), model).param_groups) == 2


@pytest.mark.parametrize("name, per_epoch", [("lit_ti", 1), ("lit_s", 4)])
def test_after_the_warm_up_offsets_of_lit_stay_at_1e_5(name, per_epoch):
    config = lit(name)
    rates = rates_of_offsets(config, per_epoch)
    for step, lr in rates.items():
        late = max(0, step - 1)  # DeiT is an epoch late, Swin an update
        assert abs(lr - rate(config, late, per_epoch, peak_ratio=0.01)) <= 1e-12
    assert rates[0] == rates[1] == 1e-6
    for epoch in (10, 150, 299):
        if epoch >= config.warmup_epochs:
            assert rates[epoch * per_epoch + (per_epoch > 1)] == pytest.approx(1e-5, rel=1e-9)


def rates_of_offsets(config, per_epoch):
    with torch.device("meta"):
        model = from_config.create(config, 10)
    scheduler = optim.create_scheduler(config, optim.create_optimizer(config, model), per_epoch)
    rates = {}
    for update in range(config.total_epochs * per_epoch):
        optim.set_rate(config, scheduler, update // per_epoch, update)
        rates[update] = scheduler.optimizer.param_groups[2]["lr"]
    return rates


def test_at_half_the_batch_lit_tis_offsets_go_up_to_the_floor_and_lit_ss_floor_comes_down():
    rates = rates_of_offsets(lit("lit_ti", batch_size=512), per_epoch=1)
    assert rates[6] == pytest.approx(5e-6, rel=0.01) and rates[299] == pytest.approx(1e-5, rel=0.01)
    assert optim.lowest_lr(lit("lit_s", batch_size=512)) == (5e-7, 5e-6)
    assert rates_of_offsets(lit("lit_s", batch_size=512), per_epoch=2)[599] == pytest.approx(5e-6)


def test_every_update_of_lit_s_has_swins_rate_and_an_epochs_first_one_is_late():
    config = lit("lit_s", epochs=30)
    for update, lr in stepped(config, per_epoch=10).items():
        assert abs(lr - rate(config, max(0, update - 1), per_epoch=10)) <= 1e-12


@pytest.mark.parity("DeiT's settings")
def test_the_optimizer_is_deits():
    optimizer = optim.create_optimizer(imagenet(model_args=dict(depth=1)), nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parity("timm")
def test_the_loss_of_a_mixed_batch_is_timms():
    config = imagenet()
    images, target, logits = torch.randn(8, 3, 16, 16), torch.arange(8), torch.randn(8, 10)
    mix, criterion = create_loss(config, 10)
    reference = Mixup(
        mixup_alpha=0.8, cutmix_alpha=1.0, prob=1, switch_prob=0.5, mode="batch", label_smoothing=0.1, num_classes=10
    )
    for seed in range(5):  # mixup and cutmix both come up
        np.random.seed(seed)
        ours = mix(images.clone(), target)
        np.random.seed(seed)
        theirs = reference(images.clone(), target)
        assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
        assert criterion(logits, ours[1]) == SoftTargetCrossEntropy()(logits, theirs[1])
        by_hand = -(theirs[1] * logits.log_softmax(dim=1)).sum(dim=1).mean()
        assert torch.allclose(criterion(logits, ours[1]), by_hand)


def test_without_mixing_labels_are_smoothed_by_the_loss():
    mix, criterion = create_loss(imagenet(mixup=0.0, cutmix=0.0), 10)
    logits, target = torch.randn(8, 10), torch.arange(8)
    smooth = torch.full((8, 10), 0.1 / 10).scatter_(1, target[:, None], 0.9 + 0.1 / 10)
    assert mix is None
    assert torch.allclose(criterion(logits, target), -(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean())


@pytest.mark.parity("DeiT's formula")
def test_averaged_weights_follow_deits_formula_from_the_first_update():
    model = nn.Linear(3, 2)
    average, expected = ModelEmaV3(model, decay=0.9), model.weight.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    assert torch.allclose(average.module.weight, expected)


def test_all_weights_are_updated_in_one_go_where_pytorch_can():
    model = torch.nn.Linear(2, 2)

    def fused(**settings):
        config = load_experiment("digits").config("ff", **settings)
        return bool(optim.create_optimizer(config, model).param_groups[0].get("fused"))

    assert fused() and fused(optimizer="sgd") and not fused(optimizer="lamb")


def coco(**settings):
    config = load_experiment("coco-lit").config("retinanet_lit_ti")
    return dataclasses.replace(config, **settings)


def rates_of(config, per_epoch):
    scheduler = optim.create_scheduler(
        config, torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=optim.peak_lr(config)), per_epoch
    )
    return [optim.set_rate(config, scheduler, u // per_epoch, u) for u in range(config.epochs * per_epoch)]


def test_detection_has_mmdetections_rates_a_warm_up_of_500_updates_and_two_steps():
    rates = rates_of(coco(), per_epoch=1000)
    assert (
        rates[0] == 1e-7 and rates[250] == pytest.approx(1e-7 + (1e-4 - 1e-7) / 2) and rates[500] == pytest.approx(1e-4)
    )
    assert (
        rates[7998] == pytest.approx(1e-4)
        and rates[8000] == pytest.approx(1e-5)
        and rates[11000] == pytest.approx(1e-6)
    )


def test_segmentation_has_mmsegmentations_rates_a_power_of_09_down_to_1e6():
    config = load_experiment("ade20k-lit").config("semantic_fpn_lit_ti")
    rates = rates_of(config, per_epoch=10)
    whole = config.epochs * 10
    expected = [1e-6 + (1e-4 - 1e-6) * (1 - u / whole) ** 0.9 for u in range(whole)]
    assert rates == pytest.approx(expected)


def test_which_parameters_decay_is_as_the_official_configurations_say():
    model = nn.ModuleDict({"linear": nn.Linear(2, 2), "norm1": nn.LayerNorm(2)})
    model.register_parameter("relative_position_bias_table", nn.Parameter(torch.zeros(3, 2)))
    decaying = {}
    for decays in ("matrices", "all but norms", "all"):
        groups = optim.parameter_groups(coco(decays=decays), model)
        own = {id(p): name for name, p in model.named_parameters()}
        decaying[decays] = {own[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}
        assert sum(len(group["params"]) for group in groups) == len(own)
    assert decaying["matrices"] == {"linear.weight", "relative_position_bias_table"}  # which a model's own list spares
    assert decaying["all but norms"] == {"linear.weight", "linear.bias"} and decaying["all"] == set(own.values())
