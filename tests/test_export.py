"""A model that is handed on: what is in its folder, that it is the model that was scored, and what is refused."""

import json
import shutil
from pathlib import Path

import PIL.Image
import pytest
import timm
import timm.data
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, RepoUrl
from made import OF_FF, OF_LIT, classifier, made_run
from safetensors.torch import load_file

from ffvit.__main__ import main
from ffvit.data.images import eval_transform
from ffvit.evidence import export as exporting
from ffvit.evidence.export import export, push
from ffvit.models import from_config
from ffvit.models.weights import load_weights
from ffvit.settings.experiment import load_experiment
from ffvit.settings.given import config_from_dict
from ffvit.system import files
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS

DIGITS, SCENES = load_experiment("digits"), load_experiment("digits-scenes")
NAMES = [*timm.list_models(module="ff"), *timm.list_models(module="lit"), "vit_tiny_patch16_224"]
OTHERS = {"stem": "conv", "patch_norm": "channels", "global_pool": "avg", "pos_embed": "none", "patch_hidden_dim": 7}


def scored(run: Path) -> torch.nn.Module:
    """The model of a run, as scoring loads it."""
    config = config_from_dict(json.loads((run / "config.json").read_text()))
    classes = json.loads((run / "record.json").read_text())["dataset"]["classes"]
    return load_weights(from_config.create(config, classes), run / "last.safetensors").eval()


def loaded(folder: Path, **more) -> torch.nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **more).eval()


def images(side: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parity("timm's loader")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_classification_model_comes_back_bit_for_bit(name, tmp_path):
    run = classifier(tmp_path, name)
    model = loaded(export(run, tmp_path / "out", "apache-2.0"))
    assert torch.equal(model(images(32)), scored(run)(images(32)))
    fresh = timm.create_model(f"local-dir:{tmp_path / 'out'}").eval()
    assert not torch.equal(fresh(images(32)), scored(run)(images(32)))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "record.json"),
    ]


@pytest.mark.parametrize(("argument", "value"), OTHERS.items())
@torch.no_grad()
def test_a_model_of_another_shape_than_its_names_comes_back(argument, value, tmp_path):
    run = classifier(tmp_path, model_args=OF_FF | {argument: value})
    assert torch.equal(loaded(export(run, tmp_path / "out", "mit"))(images(32)), scored(run)(images(32)))


@pytest.mark.parametrize("merging", [{"deformable": False}, {"learn_offsets": False}, {"attention_stages": [1, 4]}])
@torch.no_grad()
def test_lit_of_other_stages_and_mergings_comes_back(merging, tmp_path):
    run = classifier(tmp_path, "lit_ti", OF_LIT | merging)
    assert torch.equal(loaded(export(run, tmp_path / "out", "mit"))(images(32)), scored(run)(images(32)))


@torch.no_grad()
def test_grey_images_are_the_models_own_and_another_size_or_channel_is_adapted_as_timm_does(tmp_path):
    run = classifier(tmp_path, in_chans=1, mean=(0.3,), std=(0.4,), img_size=16)
    folder = export(run, tmp_path / "out", "mit")
    assert torch.equal(loaded(folder)(images(16, 1)), scored(run)(images(16, 1)))
    larger = scored(run)
    larger.set_input_size(32)
    assert torch.equal(loaded(folder, img_size=32)(images(32, 1)), larger(images(32, 1)))
    assert loaded(folder, in_chans=3)(images(16)).shape == (2, 10)
    assert loaded(folder, num_classes=3)(images(16, 1)).shape == (2, 3)


@pytest.mark.parametrize("name", SCENES.variants)
@torch.no_grad()
def test_detectors_and_segmentation_find_the_same_in_the_folder_that_they_found_in_the_run(name, tmp_path):
    record = json.loads((RESULTS / f"digits-scenes/{name}-seed0.json").read_text())
    run = made_run(tmp_path, SCENES.config(name), record)
    given = [images(64)[0]] if name != "semantic_fpn" else images(64)
    found, wanted = loaded(export(run, tmp_path / "out", "mit"))(given), scored(run)(given)
    if name == "semantic_fpn":
        assert torch.equal(found, wanted)
    else:
        assert found[0].keys() == wanted[0].keys() and len(wanted[0]["boxes"])
        assert all(torch.equal(found[0][key], wanted[0][key]) for key in wanted[0])
    with pytest.raises(InputError, match="the weights of another model"):
        loaded(tmp_path / "out", num_classes=3)


@pytest.mark.parity("timm's transforms")
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_timm_prepares_an_image_by_the_exported_settings_as_our_evaluation_does(interpolation, tmp_path):
    run = classifier(tmp_path, interpolation=interpolation, crop_pct=0.8)
    model = loaded(export(run, tmp_path / "out", "mit"))
    image = PIL.Image.effect_noise((61, 47), 90).convert("RGB")
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    ours = eval_transform(config_from_dict(json.loads((run / "config.json").read_text())))
    assert torch.equal(theirs(image), ours(image))
    assert model.pretrained_cfg["label_names"] == [str(digit) for digit in range(10)]


def test_the_card_says_what_the_record_says(tmp_path):
    run = classifier(tmp_path, dataset="someone/pictures")
    record = json.loads((run / "record.json").read_text())
    folder = export(run, tmp_path / "out", "cc-by-4.0")
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "cc-by-4.0" and front["datasets"] == ["someone/pictures"]
    [metric] = front["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == record["results"]["top1_percent"]
    assert f"{record['results']['top1_percent']:.2f} | not known here" in text  # no run of digits: other settings
    assert "no other run is known here" in text
    assert record["dataset"]["fingerprint"] in text and "someone/pictures" in text
    assert json.loads((folder / "record.json").read_text()) == record
    assert ModelCard(text).data.pipeline_tag == "image-classification"


def test_the_card_of_an_experiments_run_has_the_spread_over_its_recorded_seeds(tmp_path):
    recorded = [json.loads((RESULTS / f"digits/ff-seed{seed}.json").read_text()) for seed in (0, 1, 2)]
    run = made_run(tmp_path, DIGITS.config("ff"), recorded[0])
    text = (export(run, tmp_path / "out", "mit") / "README.md").read_text()
    percent = [r["results"]["top1_percent"] for r in recorded]
    mean = sum(percent) / 3
    spread = (sum((p - mean) ** 2 for p in percent) / 2) ** 0.5
    assert f"| top-1 (%) | {percent[0]:.2f} | {mean:.2f} ± {spread:.2f} (n=3) |" in text
    assert DIGITS.about.split(".")[0] in text


def test_what_is_there_is_never_written_over(tmp_path, capsys):
    run = classifier(tmp_path)
    for there in ("file", "folder"):
        place = tmp_path / there
        place.write_text("mine") if there == "file" else place.mkdir()
        assert main(["export", str(run), "--to", str(place)]) == 2
        assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("gone", "told"),
    [("record.json", "ffvit score"), ("training.json", "no finished run"), ("config.json", "holds no run")],
)
def test_a_run_that_is_not_finished_and_scored_is_refused_with_what_to_do(gone, told, tmp_path):
    run = classifier(tmp_path)
    (run / gone).unlink()
    with pytest.raises(InputError, match=told):
        export(run, tmp_path / "out", "mit")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", ["record.json", "training.json", "config.json", "last.safetensors"])
def test_a_damaged_run_is_refused_and_leaves_nothing(damaged, tmp_path):
    run = classifier(tmp_path)
    content = (run / damaged).read_bytes()
    (run / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=damaged):
        export(run, tmp_path / "out", "mit")
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name]


def test_the_record_of_another_training_is_refused(tmp_path):
    run = classifier(tmp_path)
    facts = json.loads((run / "training.json").read_text())
    (run / "training.json").write_text(json.dumps(facts | {"started_at": "later"}))
    with pytest.raises(InputError, match="of another training .*started_at"):
        export(run, tmp_path / "out", "mit")


def test_a_kill_at_any_file_leaves_nothing_of_that_name(tmp_path, monkeypatch):
    run = classifier(tmp_path)
    written = []

    def killed_at_the_third(path, content):
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        files.write_atomically(path, content)

    monkeypatch.setattr(exporting, "write_atomically", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "out", "mit")
    assert not (tmp_path / "out").exists() and not written[0].exists()


class Hub:
    """What huggingface_hub is asked for, kept in a folder instead of sent."""

    def __init__(self, store: Path):
        self.store = store
        self.private = None

    def create_repo(self, _api, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.private = private
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, _api, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.store / repo_id)

    def download(self, repo_id, filename, **_):
        return str(self.store / repo_id / filename)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: hub.create_repo(*args, **kwargs))
    monkeypatch.setattr(HfApi, "upload_folder", lambda *args, **kwargs: hub.upload_folder(*args, **kwargs))
    for module in ("timm.models._hub", "ffvit.models.exported"):
        monkeypatch.setattr(f"{module}.hf_hub_download", hub.download)
    return hub


@torch.no_grad()
def test_what_is_pushed_comes_back_from_the_hub_as_the_model_that_was_scored(hub, tmp_path, capsys):
    run = classifier(tmp_path)
    assert main(["export", str(run), "--to", str(tmp_path / "out"), "--push", "me/ff", "--private"]) == 0
    assert "huggingface.co/me/ff" in capsys.readouterr().out and hub.private
    model = timm.create_model("hf-hub:me/ff", pretrained=True).eval()
    assert torch.equal(model(images(32)), scored(run)(images(32)))


@torch.no_grad()
def test_a_detector_comes_back_from_the_hub(hub, tmp_path):
    record = json.loads((RESULTS / "digits-scenes/retinanet-seed0.json").read_text())
    run = made_run(tmp_path, SCENES.config("retinanet"), record)
    push(export(run, tmp_path / "out", "mit"), "me/retinanet", private=False)
    [found], [wanted] = (
        m([images(64)[0]]) for m in (timm.create_model("hf-hub:me/retinanet", pretrained=True).eval(), scored(run))
    )
    assert torch.equal(found["boxes"], wanted["boxes"]) and len(wanted["boxes"])


def test_a_refused_upload_keeps_the_folder_and_says_how_to_send_it(hub, tmp_path, monkeypatch):
    folder = export(classifier(tmp_path), tmp_path / "out", "mit")

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(InputError, match=r"me/ff was not sent \(no route to host\).*hf auth login"):
        push(folder, "me/ff", private=False)
    assert len(load_file(folder / "model.safetensors"))


def test_weights_of_a_folder_that_were_damaged_are_named(tmp_path):
    folder = export(classifier(tmp_path), tmp_path / "out", "mit")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="model.safetensors"):
        loaded(folder)
