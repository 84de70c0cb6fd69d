"""The search for each model's own settings: equal effort, never at an edge, on validation images."""

import math

import pytest

from ffvit.commands import tune
from ffvit.evidence import records
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.system.files import EXPERIMENTS

BEST_RATE = {"ff": 32e-3, "vit": 1e-3, "attention_only": 8e-3, "ff_attention": 8e-3}
SEARCHED = sorted(p.stem for p in EXPERIMENTS.glob("*.toml") if "\n[tuning]\n" in p.read_text())


@pytest.fixture(scope="module")
def experiment():
    searched = {"settings": {"epochs": 8}, "base_lr": [4e-3, 8e-3], "weight_decay": [0.05, 0.2]}
    return Experiment(**load_experiment("cifar10-small").model_dump() | {"tuning": searched})


def trained(config) -> dict:
    """A trial that is best at the model's rate of BEST_RATE, and with the larger weight decay for ViT alone."""
    top1 = 60 - abs(math.log2(config.base_lr / BEST_RATE[config.name]))
    top1 += config.weight_decay if config.name == "vit" else -config.weight_decay
    return {"config": config.to_dict(), "history": [{"validation_top1_percent": top1}]}


def whole_search(experiment) -> tuple[list[dict], dict]:
    trials = []
    while True:
        left, made, _, found = tune.search(experiment, trials)
        assert made == len(trials)
        if not left:
            return trials, found
        trials += [trained(config) for config in left]


def test_each_model_gets_its_own_best_settings(experiment):
    _, found = whole_search(experiment)
    assert {model: values["base_lr"] for model, values in found.items()} == BEST_RATE
    assert {model for model, values in found.items() if values["weight_decay"] == 0.2} == {"vit"}


def test_no_model_is_best_at_an_edge_of_the_rates_and_all_get_the_same_trials(experiment):
    trials, found = whole_search(experiment)
    at_first_decay = [t["config"] for t in trials if t["config"]["weight_decay"] == 0.05]
    rates = {m: sorted(c["base_lr"] for c in at_first_decay if c["name"] == m) for m in found}
    assert set(map(tuple, rates.values())) == {(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3)}
    assert len(trials) == len(found) * (8 + 1)


def test_interrupted_search_makes_no_trial_twice(experiment):
    left = tune.search(experiment, []).left
    again = tune.search(experiment, [trained(left[0])]).left
    assert [c.to_dict() for c in again] == [c.to_dict() for c in left[1:]]
    assert len({tune.name_of(experiment, config) for config in left}) == len(left)


@pytest.mark.parametrize("name", SEARCHED)
def test_models_train_with_the_settings_that_their_trials_found(name):
    experiment = load_experiment(name)
    left, _, _, found = tune.search(experiment, records.load_trials(name))
    if left:
        pytest.skip(f"{len(left)} trials of {name} are still to be made")
    for name, variant in experiment.variants.items():
        config, own = experiment.config(name).to_dict(), found[variant.of or name]
        assert {setting: config[setting] for setting in own} == own, name
