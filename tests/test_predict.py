"""ffvit predict: the numbers of an evaluation and of the notebooks, for any image file, whatever else lies beside it."""

import csv
import io
import json
import os

import numpy as np
import PIL.Image
import pytest
import timm
from made import classifier, made_run

from ffvit.__main__ import main
from ffvit.evidence.export import export
from ffvit.evidence.opened import open_model
from ffvit.evidence.scoring import load_model
from ffvit.settings.experiment import load_experiment
from ffvit.studies import predicted
from ffvit.studies.own_images import pictures, say
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS
from ffvit.tasks.task import task_of

DIGITS, SCENES = load_experiment("digits"), load_experiment("digits-scenes")


@pytest.fixture(scope="module")
def scenes():
    return task_of(SCENES.config("mask_rcnn", max_train_images=4, max_eval_images=3)).load_splits()


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    record = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
    return made_run(tmp_path_factory.mktemp("runs"), DIGITS.config("ff"), record)


def scene_run(folder, name):
    record = json.loads((RESULTS / f"digits-scenes/{name}-seed0.json").read_text())
    return made_run(folder, SCENES.config(name), record)


@pytest.fixture
def noise(tmp_path):
    """A picture in colour that is not a square."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def table(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_classes_and_probabilities_are_those_of_the_evaluation(digits_run, tmp_path, capsys):
    config = DIGITS.config("ff")
    task = task_of(config)
    splits = task.load_splits()
    for row in range(12):
        splits.test[row]["image"].save(tmp_path / f"{row:02}.png")
    model = load_model(config, digits_run / "last.safetensors", 10, "cpu")
    found = task.evaluate(model, task.eval_batches(splits, "test"), 10)
    assert main(["predict", str(tmp_path), "--model", str(digits_run), "--top", "1"]) == 0
    rows = table(capsys.readouterr().out)
    assert [splits.classes.index(row["class"]) for row in rows] == found.predictions[:12].tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(found.confidences[:12].tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_boxes_are_those_of_the_notebooks_own_image(name, scenes, tmp_path, noise, capsys):
    noise.save(tmp_path / "mine.png")
    run, config = scene_run(tmp_path, name), SCENES.config(name)
    model = load_model(config, run / "last.safetensors", 10, "cpu")
    mine = predicted.own(str(tmp_path / "mine.png"), scenes, config)
    [wanted] = predicted.look(model, mine, [0], least=0.02)
    assert (
        main(
            [
                "predict",
                str(tmp_path / "mine.png"),
                "--model",
                str(run),
                "--score",
                "0.02",
                "--csv",
                str(tmp_path / "t.csv"),
            ]
        )
        == 0
    )
    rows = table((tmp_path / "t.csv").read_text())
    assert len(rows) == len(wanted.said["boxes"]) > 0
    boxes = [[float(row[key]) for key in ("x1", "y1", "x2", "y2")] for row in rows]
    assert np.allclose(boxes, wanted.said["boxes"], atol=1e-5)
    assert [float(row["score"]) for row in rows] == pytest.approx(wanted.said["scores"].tolist(), abs=1e-6)
    if name == "mask_rcnn":
        assert [int(row["mask_pixels"]) for row in rows] == wanted.said["masks"].sum(dim=(1, 2)).tolist()


def test_shares_and_map_are_those_of_the_notebooks_own_image(tmp_path, noise, capsys):
    splits = task_of(SCENES.config("semantic_fpn", max_train_images=4, max_eval_images=3)).load_splits()
    (tmp_path / "pictures").mkdir()
    noise.save(tmp_path / "pictures/mine.png")
    run, config = scene_run(tmp_path, "semantic_fpn"), SCENES.config("semantic_fpn")
    model = load_model(config, run / "last.safetensors", 11, "cpu")
    [wanted] = predicted.look(model, predicted.own(str(tmp_path / "pictures/mine.png"), splits, config), [0])
    given = ["predict", str(tmp_path / "pictures"), "--model", str(run), "--to", str(tmp_path / "maps")]
    assert main(given) == 0
    shares = {row["class"]: float(row["share"]) for row in table(capsys.readouterr().out)}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    for number, name in enumerate(splits.classes):
        assert shares.get(name, 0) == pytest.approx((wanted.said == number).mean(), abs=1e-6)
    assert (np.asarray(PIL.Image.open(tmp_path / "maps/mine.png.png")) == wanted.said).all()


def test_an_exported_folder_says_what_its_run_says(digits_run, tmp_path, noise, capsys):
    noise.save(tmp_path / "mine.png")
    folder = export(digits_run, tmp_path / "out", "mit")
    said = []
    for model in (digits_run, folder, f"local-dir:{folder}"):
        assert main(["predict", str(tmp_path / "mine.png"), "--model", str(model)]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] == said[2] and said[0].count("%") == 5


def saved(folder, image):
    """The same picture in the ways that files come; and what a reader must refuse."""
    grey = np.asarray(image.convert("L"))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    image.save(folder / "plain.png")
    image.transpose(PIL.Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=turned)
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(180)])
    image.convert("CMYK").save(folder / "cmyk.tif")
    PIL.Image.fromarray(grey).save(folder / "grey.png")
    PIL.Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    PIL.Image.new("RGB", (1, 1)).save(folder / "one_pixel.png")
    content = (folder / "plain.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    PIL.Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    PIL.Image.new("L", (100_000, 1)).save(folder / "line.png")
    return ["cut.png", "empty.png", "huge.png", "line.png", "text.jpg"]


@pytest.mark.parametrize("task", ["classification", "detection", "semantic_segmentation"])
def test_bad_files_are_named_and_the_others_go_on(task, tmp_path, noise, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image, and not called one")
    bad = saved(folder, noise)
    runs = {"detection": "retinanet", "semantic_segmentation": "semantic_fpn"}
    run = scene_run(tmp_path, runs[task]) if task in runs else classifier(tmp_path)
    code = main(["predict", str(folder), "--model", str(run), "--score", "0", "--top", "3"])
    out, err = capsys.readouterr()
    named = {line.partition(":")[0] for line in err.splitlines()[:-1]}
    assert code == 1 and {str(folder / name) for name in bad} <= named
    assert f"{len(named)} of 12 files could not be read" in err and "notes" not in err
    rows: dict = {}
    for row in table(out):
        rows.setdefault(row.pop("file").removeprefix(f"{folder}/"), []).append(row)
    assert rows["turned.png"] == rows["plain.png"]
    assert rows["grey16.png"] == rows["grey.png"]
    assert {"animated.gif", "cmyk.tif", "one_pixel.png"} <= rows.keys()


def test_a_file_that_is_not_there_and_a_pipe_are_bad_files(tmp_path, digits_run, noise, capsys):
    noise.save(tmp_path / "mine.png")
    os.mkfifo(tmp_path / "pipe")
    given = [str(tmp_path / name) for name in ("gone.png", "pipe", "mine.png")]
    assert main(["predict", *given, "--model", str(digits_run)]) == 1
    out, err = capsys.readouterr()
    assert "gone.png: No such file" in err and "pipe: it is no regular file" in err and "mine.png:" in out


def test_the_numbers_do_not_depend_on_the_pictures_beside(digits_run, tmp_path, noise):
    noise.save(tmp_path / "a.png")
    noise.rotate(90).save(tmp_path / "b.png")
    opened = open_model(str(digits_run))
    alone = say(opened, tmp_path / "a.png", 10, 0.5)
    say(opened, tmp_path / "b.png", 10, 0.5)
    assert say(opened, tmp_path / "a.png", 10, 0.5) == alone and len(alone.rows) == 10


def test_a_name_of_timms_has_imagenets_classes(monkeypatch, tmp_path, noise):
    made = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: made(name, pretrained=False))
    opened = open_model("ff_tiny_patch16_224")
    assert len(opened.classes) == 1000 and "goldfish" in opened.classes[1]
    assert (opened.config.img_size, opened.config.crop_pct, opened.config.interpolation) == (224, 0.875, "bicubic")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: made(name, num_classes=0))
    with pytest.raises(InputError, match="features and no classes"):
        open_model("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ff_tinny_patch16_224", "did you mean 'ff_tiny_patch16_224'"),
        ("no/such/folder", "is no folder"),
        ("attention_only_tiny_patch16_224", "no weights of .* were published"),
        ("local-dir:/no/such/folder", "cannot be had with its weights"),
    ],
)
def test_what_is_no_model_is_told_with_what_to_do(given, told):
    with pytest.raises(InputError, match=told):
        open_model(given)


@pytest.mark.parametrize("gone", ["config.json", "training.json", "last.safetensors"])
def test_a_run_that_is_not_whole_is_refused(gone, tmp_path):
    run = classifier(tmp_path)
    (run / gone).unlink()
    with pytest.raises(InputError, match=gone if gone == "last.safetensors" else "run"):
        open_model(str(run))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--to", "maps"], "maps of semantic models"),
        (["--top", "0"], "--top must be"),
        (["--score", "2"], "--score must be"),
        (["--modell", "x"], "did you mean '--model'"),
    ],
)
def test_options_that_mean_nothing_are_refused(more, told, digits_run, tmp_path, noise, capsys):
    noise.save(tmp_path / "mine.png")
    assert main(["predict", str(tmp_path / "mine.png"), "--model", str(digits_run), *more]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no image files"):
        pictures([tmp_path])
