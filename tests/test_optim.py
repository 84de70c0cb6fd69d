"""The recipe to the letter: rates, parameter groups, losses, averaged weights and parts of batches, against formulas."""

import math

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.utils import ModelEmaV3
from torch import nn

from ffvit import models, optim
from ffvit.config import load_experiment


def imagenet(model="ff_tiny", **settings):
    return load_experiment("imagenet").config(model, **settings)


def rate(config, when, per_epoch=1):
    """The learning rate in closed form. when: epochs, or updates of which `per_epoch` make an epoch."""
    peak = config.base_lr * config.batch_size / 512
    warmup, whole = config.warmup_epochs * per_epoch, config.epochs * per_epoch
    if when < warmup:
        return config.warmup_lr + (peak - config.warmup_lr) * when / warmup
    if when >= whole:
        return config.min_lr
    return config.min_lr + (peak - config.min_lr) * (1 + math.cos(math.pi * when / whole)) / 2


def stepped(config, per_epoch, first_update=0):
    """The rate of every update that a run makes from first_update on."""
    weights = [nn.Parameter(torch.zeros(2, 2))]
    optimizer = torch.optim.AdamW(weights, lr=config.lr)
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
    assert imagenet().lr == imagenet(num_processes=8).lr == imagenet(accumulation_steps=8).lr == 1e-3
    assert imagenet(batch_size=512).lr == 5e-4


def names_by_decay(model, config):
    optimizer = optim.create_optimizer(config, model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g["weight_decay"]: {names[id(p)] for p in g["params"]} for g in optimizer.param_groups}
    assert set().union(*groups.values()) == set(names.values())
    return groups


@pytest.mark.parametrize("name", ["ff_tiny", "attention_only", "ff_attention", "deit_tiny"])
def test_matrices_decay_and_vectors_biases_and_tokens_do_not(name):
    config = imagenet(name, depth=2)
    model = models.create(config, 10)
    groups = names_by_decay(model, config)
    parameters = dict(model.named_parameters())
    spared = {n for n, p in parameters.items() if p.ndim <= 1 or n.endswith(".bias") or n in model.no_weight_decay()}
    assert groups == {0.0: spared, 0.05: set(parameters) - spared}


def test_positions_of_the_reports_model_decay_as_the_authors_did():
    groups = names_by_decay(models.create(imagenet(depth=1), 10), imagenet(depth=1))
    assert {"pos_encoding.pos_embed", "pos_encoding.cls_pos_embed"} <= groups[0.05]
    assert "cls_token" in groups[0.0]


def test_the_optimizer_is_deits():
    optimizer = optim.create_optimizer(imagenet(depth=1), nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert tuple(optimizer.defaults["betas"]) == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_loss_of_a_mixed_batch_is_timms():
    config = imagenet()
    images, target, logits = torch.randn(8, 3, 16, 16), torch.arange(8), torch.randn(8, 10)
    mix, criterion = optim.create_loss(config, 10)
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
    mix, criterion = optim.create_loss(imagenet(mixup=0.0, cutmix=0.0), 10)
    logits, target = torch.randn(8, 10), torch.arange(8)
    smooth = torch.full((8, 10), 0.1 / 10).scatter_(1, target[:, None], 0.9 + 0.1 / 10)
    assert mix is None
    assert torch.allclose(criterion(logits, target), -(smooth * logits.log_softmax(dim=1)).sum(dim=1).mean())


def test_averaged_weights_follow_deits_formula_from_the_first_update():
    model = nn.Linear(3, 2)
    average, expected = ModelEmaV3(model, decay=0.9), model.weight.detach().clone()
    for _ in range(5):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        average.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    assert torch.allclose(average.module.weight, expected)


def test_on_a_gpu_all_weights_are_updated_in_one_go(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model = torch.nn.Linear(2, 2)

    def fused(**settings):
        config = load_experiment("digits").config("ff", **settings)
        return bool(optim.create_optimizer(config, model).param_groups[0].get("fused"))

    assert fused() and fused(optimizer="sgd")
    assert not fused(device="cpu") and not fused(optimizer="lamb")
    assert not fused(parallel="fsdp", num_processes=2)
