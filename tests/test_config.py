import json

import pytest
import torch
from tracked import tracked

from ffvit.models import from_config
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.given import config_from_dict, parse_setting, with_defaults
from ffvit.settings.recipes import RECIPES
from ffvit.system.errors import InputError
from ffvit.training.optim import lowest_lr, peak_lr

NAMES = tracked("experiments/*.toml")


def test_the_three_experiments_are_there():
    assert set(NAMES) >= {"digits", "cifar10", "imagenet"}


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_loads_and_gives_every_run_a_folder_of_its_own(name):
    experiment = load_experiment(name)
    run_ids = [config.run_id for config in experiment.configs()]
    assert len(run_ids) == sum(len(v.seeds) for v in experiment.variants.values()) == len(set(run_ids)) > 0
    assert {config.run_dir.parent.name for config in experiment.configs()} == {name}


# Those that say where: detection and segmentation.
DENSE = [name for name in NAMES if "classification" not in {c.task for c in load_experiment(name).configs()}]
LIT = [name for name in NAMES if "lit" in name.split("-") and name not in DENSE]
# Those that test one argument of the report, with the models that it is about.
ARGUMENTS = [
    *("definitions", "digits-ablations", "digits-attention-only", "digits-resolution"),
    *("cifar10-small-ablations", "cifar10-small-attention-only"),
]


@pytest.mark.parametrize("name", sorted({*NAMES} - {*LIT, *ARGUMENTS, *DENSE}))
def test_every_experiment_of_the_report_holds_the_cells_of_the_grid_and_the_ff_model(name):
    timm_names = {config.model for config in load_experiment(name).configs()}
    assert timm_names >= {
        "ff_tiny_patch16_224",
        "attention_only_tiny_patch16_224",
        "ff_attention_tiny_patch16_224",
    }


@pytest.mark.parametrize("name", sorted(set(LIT) - {"imagenet-lit"}))
def test_models_of_a_stage_experiment_differ_in_attention_and_merging_alone_and_have_several_seeds(name):
    experiment = load_experiment(name)
    alike = []
    for settings in (experiment.config(name).to_dict() for name in experiment.variants):
        varied = ("attention_stages", "deformable", "learn_offsets")
        shape = {k: v for k, v in settings["model_args"].items() if k not in varied}
        alike.append({k: v for k, v in settings.items() if k not in ("name", "label")} | {"model_args": shape})
    assert all(settings == alike[0] for settings in alike) and len(experiment.seeds) >= 3


@pytest.mark.parametrize("name", sorted(set(DENSE) - {"digits-scenes", "coco-lit", "ade20k-lit"}))
def test_layouts_under_a_head_differ_in_attention_and_in_the_rate_found_for_each_alone(name):
    experiment = load_experiment(name)
    for head in experiment.models:
        alike = []
        for variant in (v for v in experiment.variants.values() if head in (v.name, v.of)):
            settings = experiment.config(variant.name).to_dict()
            body = settings["model_args"]["backbone_args"]
            settings["model_args"]["backbone_args"] = {k: v for k, v in body.items() if k != "attention_stages"}
            alike.append({k: v for k, v in settings.items() if k not in ("name", "label", "base_lr")})
        assert len(alike) == 3 and all(settings == alike[0] for settings in alike) and len(experiment.seeds) >= 2


@pytest.mark.parametrize(
    "model, recipe, drop_path_rate",
    [("lit_ti", "lit_ti", 0.1), ("lit_s", "lit", 0.2), ("lit_m", "lit", 0.3), ("lit_b", "lit", 0.5)],
)
def test_lit_on_imagenet_is_trained_as_published(model, recipe, drop_path_rate):
    config = load_experiment("imagenet-lit").config(model)
    assert (config.recipe, config.batch_size, config.micro_batch(1), peak_lr(config)) == (recipe, 1024, 128, 1e-3)
    assert (config.epochs, config.total_epochs, config.weight_decay, config.optimizer) == (300, 300, 0.05, "adamw")
    assert lowest_lr(config) == (1e-6, 1e-5) and config.offset_lr_ratio == 0.01
    assert (config.mixup, config.cutmix, config.label_smoothing, config.random_erasing) == (0.8, 1.0, 0.1, 0.25)
    assert (config.auto_augment, config.hflip, config.crop_scale) == ("rand-m9-mstd0.5-inc1", 0.5, (0.08, 1.0))
    assert (config.interpolation, config.crop_pct, config.ema_decay) == ("bicubic", 0.875, 0)
    swin = (20, "late update", 5.0, 0)
    deit = (5, "epoch", 0.0, 3)
    ours = config.warmup_epochs, config.schedule_per, config.clip_grad, config.repeated_augmentation
    assert ours == (deit if model == "lit_ti" else swin)
    with torch.device("meta"):
        blocks = from_config.create(config, 10).blocks
    assert blocks[-1].drop_path.drop_prob == pytest.approx(drop_path_rate)  # the model's own


def test_an_unknown_setting_is_refused_with_a_close_one():
    with pytest.raises(InputError, match="'epoch' is no setting of a run; did you mean 'epochs'"):
        load_experiment("digits").config("ff", epoch=3)


def test_an_unknown_recipe_is_refused_with_a_close_one():
    with pytest.raises(InputError, match="recipe 'diet' is unknown; did you mean 'deit'"):
        load_experiment("digits").config("ff", recipe="diet")


def test_an_unknown_experiment_is_refused_with_a_close_one():
    with pytest.raises(InputError, match="experiment 'digit' is unknown; did you mean 'digits'"):
        load_experiment("digit")


def test_a_name_like_no_other_is_answered_with_all_that_are_known():
    with pytest.raises(InputError) as refused:
        load_experiment("zzz")
    assert all(name in str(refused.value) for name in NAMES)


MINE = """
title = "Mine"
scope = "digits"
about = "A smaller model."
seeds = [0, 1]
[models.ff]
label = "FF only"
model = "ff_tiny_patch16_224"
model_args = { depth = 4 }
[settings]
recipe = "small_images"
dataset = "digits"
img_size = 8
model_args = { patch_size = 2 }
in_chans = 1
mean = [0.3]
std = [0.4]
"""


@pytest.mark.parametrize(
    "old, new, trouble",
    [
        ("[models.ff]", "[models.ff", "not valid TOML"),
        ("scope =", "scop =", "'scop' is no part of an experiment; did you mean 'scope'"),
        ("scope =", "scop =", "needs 'scope'"),
        ('scope = "digits"', 'scope = ""', "scope must"),
        ('scope = "digits"', 'scope = "a\\nb"', "scope must be in one line, without control characters, got 'a.nb'"),
        ('title = "Mine"', 'title = "a\\u001b[2J"', "title must be in one line, without control characters"),
        (
            'label = "FF only"',
            'label = "a\\u2028b"',
            "models.ff: label must be in one line, without control characters",
        ),
        (
            "[settings]",
            "[compare.x]\ntitle = 't'\nvary.s = [{ name = '', label = \"a\\rb\", set = {} }]\n[settings]",
            "vary.s: label must be in one line",
        ),
        ("[settings]", '[compare.x]\ntitle = "a\\tb"\nvary.epochs = [8]\n[settings]', "compare.x.title must be in one"),
        ('title = "Mine"', "title = 3", "title must be a valid string, got 3"),
        (
            'title = "Mine"',
            'title = "Mine"\nname = "x"',
            "'name' is no part of an experiment: it is called as its file",
        ),
        ('label = "FF only"', 'label = "FF only"\nseeds = []', "seeds must not be empty"),
        ("model_args = { depth = 4 }", "model_args = 4", "model_args must be a table"),
        ("model_args = { depth = 4 }", "depth = 4", "'depth' is an argument of the model: write model_args = { depth"),
        ("model_args = { depth = 4 }", "epoch = 4", "'epoch' is no setting of a run; did you mean 'epochs'"),
        ('label = "FF only"', "", r"models.ff: needs a label"),
        ('label = "FF only"', "label = 3", r"models.ff: label must be a text, got 3"),
        ('model = "ff_tiny_patch16_224"', "", r"models.ff: needs a model"),
        ('model = "ff_tiny_patch16_224"', "model = 3", "model must be a valid string, got 3"),
        ("[models.ff]", "[models.'f/f']", "letters, digits"),
        ("seeds = [0, 1]", "seeds = 3", "seeds must be a valid list, got 3"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds must differ"),
        ("seeds = [0, 1]", "seeds = [0]\nmodels = []", "not valid TOML|models must be"),
        ('recipe = "small_images"', 'recipe = ["deit"]', "recipe"),
        (
            "[settings]",
            "[models.other]\nlabel = 'FF only'\nmodel = 'x'\n[settings]",
            "more than one is called 'FF only'",
        ),
        ("[settings]", "[compare.x]\ntitle = 't'\n[settings]", "compare.x: needs vary or change"),
        (
            "[settings]",
            "[compare.x]\ntitle = 't'\nvary.epoch = [1]\n[settings]",
            "vary.epoch: no setting of a run; did you",
        ),
        (
            "[settings]",
            "[compare.x]\ntitle = 't'\nmodels = ['f']\nvary.epochs = [1]\n[settings]",
            "no model 'f'; did you",
        ),
        (
            "[settings]",
            "[compare.x]\ntitle = 't'\nagainst.epochs = '7'\nvary.epochs = [8]\n[settings]",
            "against.epochs must",
        ),
        ("seeds = [0, 1]", "seeds = [0, 1]\nplanned = [['ff', 'vit']]", "planned: there is no model 'vit'"),
        ("[settings]", "[tuned]\nvit = { base_lr = 0.1 }\n[settings]", "tuned: there is no model 'vit'"),
        ("[settings]", "[tuning]\nvariants = ['vit']\n[settings]", "tuning.variants: there is no model 'vit'"),
        (
            "[settings]",
            "[tuned]\nff = { base_rl = 0.1 }\n[settings]",
            "'base_rl' is no setting of a run; did you mean 'base_lr'",
        ),
    ],
)
def test_a_mistake_in_an_experiment_file_is_reported_when_it_is_read(tmp_path, old, new, trouble):
    path = tmp_path / "mine.toml"
    path.write_text(MINE.replace(old, new))
    with pytest.raises(InputError, match=trouble):
        load_experiment(path)


@pytest.mark.parametrize("name", ["{seed}", "x: y", "a b", "-x", ".x", "a\nb", "$(touch f)", "x" * 101])
def test_an_experiment_file_of_a_name_that_no_folder_should_have_is_refused_by_name(tmp_path, name):
    (tmp_path / f"{name}.toml").write_text(MINE)
    with pytest.raises(InputError, match="name it by letters, digits, '_', '-' and '.'") as refused:
        load_experiment(tmp_path / f"{name}.toml")
    assert repr(f"{name}.toml")[1:-1] in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mine", "007", "a.b-c_d", "größe"])
def test_an_experiment_file_may_be_called(tmp_path, name):
    (tmp_path / f"{name}.toml").write_text(MINE)
    assert load_experiment(tmp_path / f"{name}.toml").name == name


@pytest.mark.parametrize("content", ["a = " + "[" * 10**5, "#" * (2**20 + 1)])
def test_an_experiment_file_too_deep_or_too_long_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "mine.toml").write_text(content)
    with pytest.raises(InputError, match="mine.toml: not valid TOML: .*(recursion|are more than)") as refused:
        load_experiment(tmp_path / "mine.toml")
    assert "\n" not in str(refused.value)


def test_a_name_that_no_file_can_have_is_an_unknown_experiment():
    with pytest.raises(InputError, match="is unknown"):
        load_experiment("x" * 5000)


def test_an_experiment_of_ones_own_is_named_after_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    assert [config.run_dir.parts[-2:] for config in load_experiment(path).configs()] == [
        ("mine", "ff-seed0"),
        ("mine", "ff-seed1"),
    ]


@pytest.mark.parametrize(
    "name, value",
    [
        ("epochs", "3"),
        ("epochs", 3.0),
        ("epochs", True),
        ("base_lr", "1e-3"),
        ("base_lr", True),
        ("in_memory", 1),
        ("in_memory", "true"),
        ("device", None),
        ("dataset", 3),
        ("recipe", 3),
        ("mean", 0.5),
        ("mean", ["0.5"]),
        ("crop_scale", [0.3]),
        ("crop_scale", [0.3, 0.5, 1.0]),
    ],
)
def test_an_ill_typed_value_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name):
        load_experiment("digits").config("ff", **{name: value})


def test_an_int_is_accepted_for_a_float_and_a_list_for_a_tuple():
    config = load_experiment("digits").config("ff", base_lr=1, crop_scale=[1, 1])
    assert (config.base_lr, config.crop_scale) == (1.0, (1.0, 1.0))
    assert {type(v) for v in (config.base_lr, *config.crop_scale)} == {float}


def test_caller_beats_model_beats_experiment_beats_recipe_beats_default():
    experiment = Experiment(
        name="x",
        title="x",
        scope="x",
        about="x",
        seeds=[0],
        models={"m": dict(label="m", model="ff_tiny_patch16_224", model_args=dict(depth=3), epochs=30)},
        settings=dict(
            recipe="small_images", dataset="digits", epochs=20, hflip=0.25, model_args=dict(depth=2, embed_dim=12)
        ),
    )
    config = experiment.config("m", epochs=40)
    assert config.epochs == 40
    assert config.model_args == {"depth": 3, "embed_dim": 12}
    assert config.hflip == 0.25
    assert config.base_lr == RECIPES["small_images"]()["base_lr"]
    assert config.interpolation == "bicubic"


def test_the_callers_seed_beats_one_in_the_file():
    digits = load_experiment("digits")
    seeded = Experiment(**digits.model_dump() | {"settings": digits.settings | {"seed": 5}})
    assert seeded.config("ff", 1).seed == 1


def test_any_timm_model_gets_the_experiments_settings():
    experiment = load_experiment("digits")
    config = experiment.config("mixer_s16_224")
    assert (config.model, config.run_id) == ("mixer_s16_224", "mixer_s16_224-seed0")
    assert config.epochs == experiment.config("ff").epochs


@pytest.mark.parametrize(
    "settings, trouble",
    [
        (dict(batch_size=64, num_processes=3), "batch_size 64.*num_processes 3"),
        (dict(mixup=0.8, batch_size=6, num_processes=2), "even, got 3"),
        (dict(cutmix=1.0, batch_size=7), "even, got 7"),
        (dict(offset_lr_ratio=-1), "offset_lr_ratio must be greater than or equal to 0, got -1"),
        (dict(epochs=0), "epochs must be greater than or equal to 1, got 0"),
        (dict(epochs=10**30), "epochs must be less than"),
        (dict(img_size=10**6), "img_size must be less than"),
        (dict(weight_decay=float("inf")), "weight_decay must be a finite number"),
        (dict(mixup=float("inf")), "mixup must be a finite number"),
        (dict(crop_pct=float("inf")), "crop_pct must be"),
        (dict(mean=[float("nan")]), "mean must be a finite number"),
        (dict(auto_augment="random"), "auto_augment must be a policy of timm's"),
        (dict(validation_fraction=1e-9), "validation_fraction of at least 0.001"),
        (dict(label=""), "label must"),
        (dict(epochs=2, warmup_epochs=2), r"warmup_epochs \(2\) must be fewer than epochs \(2\)"),
        (dict(seed=-1), "seed must be greater than or equal to 0, got -1"),
        (dict(base_lr=float("nan")), "base_lr"),
        (dict(base_lr=float("inf")), "base_lr"),
        (dict(drop_rate=1.0), "drop_rate must be less than 1"),
        (dict(hflip=1.5), "hflip"),
        (dict(random_erasing=-0.1), "random_erasing"),
        (dict(crop_pct=0.0), "crop_pct"),
        (dict(device="gpu"), "device must be 'auto'"),
        (dict(in_chans=3), "mean and std must have in_chans = 3"),
        (dict(std=[0.0]), "std must be positive"),
        (dict(validation_fraction=0.0), "give validation_split"),
        (dict(train_split=""), "train_split is empty"),
        (dict(test_split=""), "give test_split, or a test_fraction"),
        (dict(test_fraction=1.0), "test_fraction must be less than 1"),
        (dict(test_fraction=0.5, validation_fraction=0.5), "0.5 and test_fraction 0.5 leave nothing to train on"),
        (
            dict(streaming=True, validation_split="dev", in_memory=False, augment="image", score_train=True),
            "scores none of them: set score_train=false",
        ),
        (dict(test_fraction=0.1, streaming=True, validation_split="dev"), "streaming holds nothing out.*test_split"),
        (
            dict(augment="batch", interpolation="bicubic"),
            "in memory bilinearly.*interpolation='bilinear', or in_memory=false",
        ),
        (
            dict(augment="batch", interpolation="nearest"),
            "set interpolation='bilinear' or 'bicubic', or augment='image'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, trouble):
    with pytest.raises(InputError, match=trouble):
        load_experiment("digits").config("ff", **settings)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("epochs=3", {"epochs": 3}),
        ("base_lr=1e-3", {"base_lr": 0.001}),
        ("model_args.depth=2", {"model_args": {"depth": 2}}),
        ("in_memory=true", {"in_memory": True}),
        ("dataset=uoft-cs/cifar10", {"dataset": "uoft-cs/cifar10"}),
        ("dataset=/data/a=b", {"dataset": "/data/a=b"}),
        ('name="3"', {"name": "3"}),
        ("mean=[0.5, 0.5]", {"mean": [0.5, 0.5]}),
        ("auto_augment=", {"auto_augment": ""}),
        ("model_args.stem=conv", {"model_args": {"stem": "conv"}}),
    ],
)
def test_a_setting_from_the_shell_is_read_as(text, expected):
    assert parse_setting(text) == expected


def test_a_setting_from_the_shell_needs_an_equals_sign():
    with pytest.raises(InputError, match="name=value"):
        parse_setting("epochs")


OLDER = {"embed_dim": 12, "depth": None, "deformable": False, "attention_stages": [1], "parallel": "ddp"}


def test_a_config_of_earlier_is_read_in_todays_form(digits_config):
    values = {k: v for k, v in digits_config.to_dict().items() if k not in ("model_args", "test_fraction")}
    config = config_from_dict(values | OLDER)
    assert config.model_args == {"embed_dim": 12, "deformable": False, "attention_stages": [1]}
    assert config.test_fraction == 0
    with pytest.raises(InputError, match="parallel"):  # a run in parts, of which there is no more
        config_from_dict(values | OLDER | {"parallel": "fsdp"})


@pytest.mark.parametrize("name", NAMES)
def test_a_config_survives_json(name):
    for config in load_experiment(name).configs():
        assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_setting_removed_since_is_passed_over_at_its_only_remaining_value(digits_config):
    written = digits_config.to_dict()
    assert config_from_dict(written | {"parallel": "ddp"}) == digits_config
    assert with_defaults(written | {"parallel": "ddp"}) == written
    with pytest.raises(InputError, match="parallel.*no settings of a run"):
        config_from_dict(written | {"parallel": "fsdp"})


def test_a_config_of_another_version_is_refused(digits_config):
    with pytest.raises(InputError, match="momentum"):
        config_from_dict(digits_config.to_dict() | {"momentum": 0.9})
    without_model = {k: v for k, v in digits_config.to_dict().items() if k != "model"}
    with pytest.raises(InputError, match="model"):
        config_from_dict(without_model)


@pytest.mark.parity("DeiT's settings")
def test_the_deit_recipe_is_the_published_one():
    config = Config(experiment="x", name="m", label="m", model="m", dataset="x", recipe="deit", **RECIPES["deit"]())
    published = {
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "base_lr": 5e-4,
        "batch_size": 128 * 8,
        "schedule_per": "epoch",
        "epochs": 300,
        "min_lr": 1e-5,
        "cooldown_epochs": 10,
        "warmup_epochs": 5,
        "warmup_lr": 1e-6,
        "clip_grad": 0.0,
        "drop_path_rate": 0.1,
        "drop_rate": 0.0,
        "ema_decay": 0.99996,
        "label_smoothing": 0.1,
        "mixup": 0.8,
        "cutmix": 1.0,
        "img_size": 224,
        "crop_scale": (0.08, 1.0),
        "crop_ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "interpolation": "bicubic",
        "random_erasing": 0.25,
        "repeated_augmentation": 3,
        "crop_pct": 224 / 256,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "seed": 0,
    }
    assert {name: getattr(config, name) for name in published} == published


def test_imagenet_is_trained_with_the_deit_recipe_and_dropout_for_tiny_only():
    experiment = load_experiment("imagenet")
    ff_base = experiment.config("ff_base")
    assert {name: getattr(ff_base, name) for name in RECIPES["deit"]()} == RECIPES["deit"]()
    assert {n: experiment.config(n).drop_rate for n in ("ff_tiny", "ff_base", "ff_large")} == {
        "ff_tiny": 0.1,
        "ff_base": 0.0,
        "ff_large": 0.0,
    }


def test_the_attention_only_run_of_imagenet_ends_at_100_epochs():
    assert load_experiment("imagenet").config("attention_only").total_epochs == 100


@pytest.mark.parametrize("batch_size, lr", [(1024, 1e-3), (512, 5e-4), (64, 6.25e-5)])
def test_the_learning_rate_is_linear_in_the_global_batch(batch_size, lr):
    assert peak_lr(load_experiment("imagenet").config("ff_base", batch_size=batch_size)) == pytest.approx(lr, rel=1e-12)
