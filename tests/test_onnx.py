"""A model as ONNX: onnxruntime computes what PyTorch does, for one image and for many, deformable mergings included."""

import importlib.util
import json

import pytest
import torch
from made import OF_LIT, classifier, made_run

from ffvit.__main__ import main
from ffvit.evidence import onnx_export
from ffvit.evidence.onnx_export import export_onnx
from ffvit.evidence.scoring import load_model
from ffvit.settings.experiment import load_experiment
from ffvit.settings.given import config_from_dict
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS

SCENES = load_experiment("digits-scenes")
NEEDS = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx_export.NEEDED),
    reason="needs the optional packages of ONNX: pip install -e '.[onnx]'",
)
CELLS = [
    "ff_tiny_patch16_224",
    "vit_tiny_patch16_224",
    "attention_only_tiny_patch16_224",
    "ff_attention_tiny_patch16_224",
]


def computed(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(
        session.run(None, {"images": images.numpy()})[0]
    ), session.get_modelmeta().custom_metadata_map


def scored(run):
    config = config_from_dict(json.loads((run / "config.json").read_text()))
    return load_model(config, run / "last.safetensors", 10, "cpu")


@pytest.mark.parity("onnxruntime")
@NEEDS
@pytest.mark.parametrize("name", [*CELLS, "lit_ti", "lit_s"])
@torch.inference_mode()
def test_logits_are_pytorchs_for_any_number_of_images(name, tmp_path):
    run = classifier(tmp_path, name)  # of random offsets, where it has some
    export_onnx(run, tmp_path / "model.onnx", dynamic_batch=True)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    logits, told = computed(tmp_path / "model.onnx", images)
    assert torch.allclose(logits, scored(run)(images), atol=1e-4)
    assert logits.std() > 100 * 1e-4  # so that it says something
    assert json.loads(told["classes"]) == [str(digit) for digit in range(10)] and json.loads(told["mean"]) == [
        0.4,
        0.5,
        0.6,
    ]


@NEEDS
def test_a_fixed_batch_is_of_one_image(tmp_path, capsys):
    run = classifier(tmp_path)
    assert main(["export", str(run), "--onnx", "--to", str(tmp_path / "model.onnx")]) == 0
    assert "onnxruntime's logits differ from PyTorch's by" in capsys.readouterr().out
    logits, _ = computed(tmp_path / "model.onnx", torch.zeros(1, 3, 32, 32))
    assert logits.shape == (1, 10)
    with pytest.raises(Exception, match="Got: 2 Expected: 1"):
        computed(tmp_path / "model.onnx", torch.zeros(2, 3, 32, 32))


@NEEDS
def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    run = classifier(tmp_path, "lit_ti", OF_LIT | {"deformable": False})
    for found in (2e-4, float("nan")):
        monkeypatch.setattr(onnx_export, "_difference", lambda *_, found=found: found)
        with pytest.raises(InputError, match="differ by"):
            export_onnx(run, tmp_path / "model.onnx", dynamic_batch=False)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]


def test_without_its_packages_the_error_says_how_to_have_them(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "NEEDED", ("onnx_that_is_not_there",))
    with pytest.raises(InputError, match=r"needs onnx_that_is_not_there: .*pip install -e '\.\[onnx\]'"):
        export_onnx(classifier(tmp_path), tmp_path / "model.onnx", dynamic_batch=False)


@NEEDS
def test_what_is_there_other_tasks_and_options_that_do_not_go_together_are_refused(tmp_path, capsys):
    run = classifier(tmp_path)
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export_onnx(run, tmp_path / "model.onnx", dynamic_batch=False)
    record = json.loads((RESULTS / "digits-scenes/retinanet-seed0.json").read_text())
    with pytest.raises(InputError, match="only classification"):
        export_onnx(made_run(tmp_path, SCENES.config("retinanet"), record), tmp_path / "d.onnx", dynamic_batch=False)
    for more in (["--dynamic-batch"], ["--onnx", "--push", "me/model"]):
        assert main(["export", str(run), "--to", str(tmp_path / "x"), *more]) == 2
    assert not (tmp_path / "x").exists()
