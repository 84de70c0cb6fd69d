"""The search for each model's own settings: equal effort, never at an edge, on validation images."""

import math
import os
import re
import signal
import time

import pytest
from tracked import tracked

from ffvit.commands import missing, tune
from ffvit.evidence import records
from ffvit.launching import jobs
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.files import EXPERIMENTS

BEST_RATE = {"ff": 32e-3, "vit": 1e-3, "attention_only": 8e-3, "ff_attention": 8e-3}
SEARCHED = [name for name in tracked("experiments/*.toml") if load_experiment(name).tuning]


@pytest.fixture(scope="module")
def experiment():
    searched = {"settings": {"epochs": 8}, "base_lr": [4e-3, 8e-3], "weight_decay": [0.05, 0.2]}
    searched["crop_scale"] = [[0.5, 1.0], [0.8, 1.0]]
    return Experiment(**load_experiment("cifar10-small").model_dump() | {"tuning": searched})


def trained(config) -> dict:
    """A trial that is best at the model's rate of BEST_RATE, with small crops, and with the larger weight decay for ViT alone."""
    top1 = 60 - abs(math.log2(config.base_lr / BEST_RATE[config.name]))
    top1 += config.weight_decay if config.name == "vit" else -config.weight_decay
    return {"config": config.to_dict(), "history": [{"validation_top1_percent": top1 - config.crop_scale[0]}]}


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
    assert all(values["crop_scale"] == [0.5, 1.0] for values in found.values())


def test_no_model_is_best_at_an_edge_of_the_rates_and_all_get_the_same_trials(experiment):
    trials, found = whole_search(experiment)
    at_first_decay = [
        t["config"] for t in trials if t["config"]["weight_decay"] == 0.05 and t["config"]["crop_scale"][0] == 0.5
    ]
    rates = {m: sorted(c["base_lr"] for c in at_first_decay if c["name"] == m) for m in found}
    assert set(map(tuple, rates.values())) == {(5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3, 32e-3, 64e-3)}
    assert len(trials) == len(found) * (8 + 1 + 1)


def test_what_needs_a_whole_training_is_searched_at_full_length(experiment):
    at_length = Experiment(**experiment.model_dump() | {"tuning": experiment.tuning | {"full_length": ["crop_scale"]}})

    def trained_so_long(config):  # short trials are best without augmentation, long ones with
        made = trained(config)
        made["history"][-1]["validation_top1_percent"] += 2 * config.crop_scale[0] * (config.epochs == 8)
        return made

    trials: list[dict] = []
    while left := tune.search(at_length, trials).left:
        trials += map(trained_so_long, left)
    assert {t["config"]["epochs"] for t in trials} == {8, at_length.config("ff").epochs}
    whole = [t["config"] for t in trials if t["config"]["epochs"] != 8]
    found = tune.search(at_length, trials).found
    assert len(whole) == 2 * len(found) and {c["base_lr"] for c in whole} == {*BEST_RATE.values()}
    assert all(values["crop_scale"] == [0.5, 1.0] for values in found.values())
    names = {tune.name_of(at_length, at_length.config("ff", epochs=epochs)) for epochs in (8, 40)}
    assert len(names) == 2 and sum(name.endswith("-epochs40") for name in names) == 1


def test_variants_are_searched_too_and_go_on_each_by_itself():
    content = load_experiment("cifar10-small").model_dump()
    experiment = Experiment(**content | {"tuning": {"variants": True, "base_lr": [4e-3, 8e-3, 16e-3]}})
    best = {name: 8e-3 for name in experiment.variants} | {"ff_third": 64e-3, "vit": 4e-3}

    def trained(config):
        top1 = 60 - abs(math.log2(config.base_lr / best[config.name]))
        return {"config": config.to_dict(), "history": [{"validation_top1_percent": top1}]}

    trials: list[dict] = []
    while left := tune.search(experiment, trials).left:
        trials += map(trained, left)
    rates = {n: sorted(t["config"]["base_lr"] for t in trials if t["config"]["name"] == n) for n in experiment.variants}
    assert rates.pop("ff_third") == [4e-3, 8e-3, 16e-3, 32e-3, 64e-3, 128e-3]
    assert rates.pop("vit") == [2e-3, 4e-3, 8e-3, 16e-3]
    assert {*map(tuple, rates.values())} == {(4e-3, 8e-3, 16e-3)} and "attention_only_matched" in rates
    assert {name: own["base_lr"] for name, own in tune.search(experiment, trials).found.items()} == best
    assert "variants" not in tune.name_of(experiment, experiment.config("vit"))


def test_each_value_is_tried_with_every_seed_and_judged_by_the_mean():
    content = load_experiment("cifar10-small").model_dump()
    experiment = Experiment(**content | {"tuning": {"seeds": [0, 2], "base_lr": [4e-3, 8e-3, 16e-3, 32e-3]}})
    top1 = {0: {16e-3: 90.0, 8e-3: 80.0}, 2: {16e-3: 10.0, 8e-3: 70.0}}  # the best with seed 0 goes astray with seed 2

    def trained(config):
        return {
            "config": config.to_dict(),
            "history": [{"validation_top1_percent": top1[config.seed].get(config.base_lr, 40.0)}],
        }

    left = tune.search(experiment, []).left
    assert len(left) == 8 * len(experiment.main_variants) and {config.seed for config in left} == {0, 2}
    names = [tune.name_of(experiment, config) for config in left if config.name == "ff"]
    assert names[:2] == ["ff-base_lr0.004", "ff-base_lr0.004-seed2"] and len({*names}) == 8
    half = tune.search(experiment, [trained(config) for config in left if config.seed == 0]).left
    assert {config.seed for config in half} == {2}
    now = tune.search(experiment, [trained(config) for config in left])
    assert not now.left and {values["base_lr"] for values in now.found.values()} == {8e-3}


def test_a_search_of_named_variants_is_of_those_alone():
    content = load_experiment("cifar10-small").model_dump()
    experiment = Experiment(**content | {"tuning": {"variants": ["ff_third", "vit_third"], "base_lr": [4e-3, 8e-3]}})
    left = tune.search(experiment, []).left
    assert [config.name for config in left] == ["ff_third", "ff_third", "vit_third", "vit_third"]


def test_a_rate_at_the_edge_that_ties_with_the_best_is_not_the_end(experiment):
    def level(config):  # as good from 0.008 to 0.128
        top1 = 50.0 if 0.008 <= config.base_lr <= 0.128 else 40.0
        return {"config": config.to_dict(), "history": [{"validation_top1_percent": top1}]}

    trials = []
    while left := tune.search(experiment, trials).left:
        trials += [level(config) for config in left]
    rates = {t["config"]["base_lr"] for t in trials}
    assert (min(rates), max(rates)) == (0.004, 0.256)


def test_rates_that_are_all_alike_end_the_search_in_words(experiment):
    trials = []
    with pytest.raises(InputError, match=r"ff: each of the rates .* has the same score, 7: trials so short"):
        while True:
            left = tune.search(experiment, trials).left
            trials += [{"config": c.to_dict(), "history": [{"validation_top1_percent": 7.0}]} for c in left]
            assert len(trials) < 100


def test_a_number_is_the_same_setting_however_it_is_written(experiment):
    config = experiment.config("ff").to_dict()
    as_floats = config | {"model_args": {name: float(value) for name, value in config["model_args"].items()}}
    assert tune.key(config) == tune.key(as_floats) != tune.key(config | {"base_lr": 0.3})


@pytest.mark.parametrize(
    "tuning, said",
    [
        ({"base_lr": 0.1}, "tuning.base_lr must be a valid list, got 0.1"),
        ({"base_lr": []}, "tuning.base_lr must not be empty"),
        ({"base_lr": [0.1], "seeds": []}, "tuning.seeds must not be empty"),
        ({"base_lr": [0.1], "seeds": [0, 0]}, "tuning.seeds must differ"),
        ({"base_lr": [0.1], "baze_lr": [0.1]}, "tuning: 'baze_lr' is no setting of a run"),
        ({"base_lr": [0.1], "full_length": ["crop"]}, "tuning: 'crop' is no setting of a run"),
    ],
)
def test_a_mistake_in_what_is_searched_is_named_when_the_file_is_read(tmp_path, tuning, said):
    text = (EXPERIMENTS / "digits.toml").read_text().partition("[tuning]")[0]
    file = tmp_path / "mine.toml"
    file.write_text(text + "[tuning]\n" + "".join(f"{name} = {value}\n" for name, value in tuning.items()))
    with pytest.raises(InputError, match=re.escape(said)):
        load_experiment(file)


def test_values_that_are_words_name_a_trial(experiment):
    worded = Experiment(**experiment.model_dump() | {"tuning": {"optimizer": ["adamw", "lamb"]}})
    assert tune.name_of(worded, worded.config("ff", optimizer="lamb")) == "ff-optimizerlamb"


def test_settings_that_make_another_run_are_refused_before_any_is_begun(monkeypatch):
    monkeypatch.setattr(tune, "slots", lambda jobs: pytest.fail("a trial would begin"))
    for command in (tune, missing):
        with pytest.raises(InputError, match=r"accumulation_steps=2 would make another run of .* \(parts\)"):
            command.main(["nuclei", "accumulation_steps=2"])


def test_interrupted_search_makes_no_trial_twice(experiment):
    left = tune.search(experiment, []).left
    again = tune.search(experiment, [trained(left[0])]).left
    assert [c.to_dict() for c in again] == [c.to_dict() for c in left[1:]]
    assert len({tune.name_of(experiment, config) for config in left}) == len(left)


@pytest.fixture
def command(experiment, tmp_path, monkeypatch):
    """ffvit tune, of which each trial is made by the function given instead of by training; and the trials there are."""
    made = []
    monkeypatch.setattr(tune, "read_shared", lambda options: (experiment, {}))
    monkeypatch.setattr(tune, "slots", lambda jobs: (2, 0))
    monkeypatch.setattr(tune, "outlook", lambda experiment, jobs_, *rest: jobs.Outlook(jobs_, 2, []))
    monkeypatch.setattr(tune, "RUNS", tmp_path)
    monkeypatch.setattr(tune.records, "load_trials", lambda name: list(made))

    def run(make=lambda job, children: None) -> int:
        def carry_out(job, children):
            make(job, children)
            made.append(trained(job.config))
            return "trial"

        monkeypatch.setattr(jobs, "carry_out", carry_out)
        return tune.main(["cifar10-small"])

    return run, made


def test_stopped_search_goes_on_by_the_same_command_and_makes_no_trial_twice(command, experiment, capsys):
    run, made = command

    def ctrl_c(job, children):
        if len(made) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            while not children.asked:
                time.sleep(0.01)
        if children.asked:
            raise Stopped("stopped")

    assert run(ctrl_c) == 75
    assert "the search is not complete: the same command goes on" in capsys.readouterr().out
    assert 5 <= len(made) < 8  # of the first eight
    assert run() == 0
    trials, found = whole_search(experiment)
    assert sorted(tune.key(t["config"]) for t in made) == sorted(tune.key(t["config"]) for t in trials)
    told = capsys.readouterr().out
    assert all(f"{model}: base_lr = {values['base_lr']}" in told for model, values in found.items())


def test_failed_trial_is_told_and_ends_the_search_once_the_others_of_its_round_are_made(command, capsys):
    run, made = command

    def nan(job, children):
        if job.name == "ff-base_lr0.004-weight_decay0.05-crop_scale0.5-1":
            raise TrainingError("training ended with exit code 2:\nerror: training loss of process 0 is nan")

    assert run(nan) == 2
    assert (
        "error: ff-base_lr0.004-weight_decay0.05-crop_scale0.5-1: error: training loss of process 0 is nan"
        in capsys.readouterr().err
    )
    assert len(made) == 7 and {t["config"]["base_lr"] for t in made} == {4e-3, 8e-3}  # no further round


@pytest.mark.parametrize("name", SEARCHED)
def test_models_train_with_the_settings_that_their_trials_found(name):
    experiment = load_experiment(name)
    left, _, _, found = tune.search(experiment, records.load_trials(name))
    if left:
        pytest.skip(f"{len(left)} trials of {name} are still to be made")
    assert found.keys() <= experiment.variants.keys()
    for name, variant in experiment.variants.items():
        config, own = experiment.config(name).to_dict(), found.get(name) or found.get(variant.of or name, {})
        assert {setting: config[setting] for setting in own} == own, name
