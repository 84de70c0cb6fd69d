"""Which images of a dataset are in which split, and of which class: nothing is left out, shared or renamed without a word."""

import json
import os
import types
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from ffvit.data import sources
from ffvit.data.batches import eval_loader, train_batches
from ffvit.data.folders import SPLIT_NAMED, allowed_places, open_inside
from ffvit.data.images import content
from ffvit.data.splits import load_splits
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError

CAT_DOG = datasets.ClassLabel(names=["cat", "dog"])
NUMBER = datasets.Value("int64")
HELD_OUT = dict(test_fraction=0.2, validation_fraction=0.1)


def config(dataset, **settings):
    settings = dict(in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, batch_size=2, in_memory=False) | settings
    return load_experiment("digits").config(
        "ff",
        dataset=str(dataset),
        **{"epochs": 1, "warmup_epochs": 0, "augment": "image", "interpolation": "bicubic", **settings},
    )


def write(folder, *names):
    """A file at each path, different from all others; an image where its name says so."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpeg"):
            seed = list(str(file).encode())
            Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(file)
        else:
            file.write_text(name)
    return folder


def numbered(*folders, count=10):
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


def files(images):
    """Where they lie, below the folder called data."""
    rows = images.cast_column("image", datasets.Image(decode=False))["image"]
    return {row["path"].partition("/data/")[2] for row in rows}


def labelled(labels, kind=CAT_DOG, first=0):
    """Images of one grey each: first, first + 1, ..."""
    images = [Image.fromarray(np.full((4, 4, 3), first + i, np.uint8)) for i in range(len(labels))]
    features = datasets.Features(image=datasets.Image(), label=kind)
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features)


def parquet(folder, **splits):
    folder.mkdir(parents=True)
    for split, images in splits.items():
        images.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def test_a_thousand_files_are_a_thousand_images_whatever_they_are_called(tmp_path):
    folder = write(tmp_path, "car/0.JPEG")
    content = (folder / "car/0.JPEG").read_bytes()
    odd = ["x_bullet_train.JPEG", "test_drive.JPEG", "val-1.JPEG", "dev.JPEG", "n0 evaluation.Jpeg", "data[1]*.JPEG"]
    for i, name in enumerate([*odd, *(f"{i}.JPEG" for i in range(1, 1000 - len(odd)))]):
        file = folder / ("car", "train", "boat", "test")[i % 4] / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    splits = load_splits(config(folder, **HELD_OUT))
    assert splits.sizes == {"train": 700, "validation": 100, "test": 200}
    assert splits.classes == ["boat", "car", "test", "train"]


@pytest.mark.parametrize("word", SPLIT_NAMED)
def test_every_word_for_a_split_is_a_class_among_classes_and_a_split_among_splits(tmp_path, word):
    among_classes = write(tmp_path / "a/data", *numbered("boat", word, "car"))
    assert load_splits(config(among_classes, **HELD_OUT)).classes == sorted(["boat", word, "car"])
    split = SPLIT_NAMED[word]
    other, name = ("test", "train_split") if split == "train" else ("train", f"{split}_split")
    among_splits = write(tmp_path / "b/data", *numbered(f"{word.title()}/{word}", f"{word.title()}/cat"))
    write(among_splits, *numbered(f"{other}/{word}", f"{other}/cat"))
    own = {} if split == "train" else {name: split, **({"test_fraction": 0.1} if split == "validation" else {})}
    splits = load_splits(config(among_splits, **own))
    assert splits.classes == sorted([word, "cat"])
    assert {file.split("/")[0] for file in files(getattr(splits, split))} == {word.title()}
    assert {file.split("/")[0] for file in files(splits.train)} == {word.title() if split == "train" else "train"}


@pytest.mark.parametrize("around", ["data", "data/train-test", "test_images/data"])
def test_folders_that_only_wrap_the_others_change_nothing(tmp_path, around):
    inside = [*numbered("train/cat", "train/train"), *numbered("test/cat", "test/train", count=3)]
    plain, wrapped = write(tmp_path / "one/data", *inside), write(tmp_path / "two" / around, *inside)
    plain, wrapped = (load_splits(config(folder)) for folder in (plain, tmp_path / "two"))
    assert plain.sizes == wrapped.sizes == {"train": 18, "validation": 2, "test": 6}
    assert plain.classes == wrapped.classes == ["cat", "train"]


def test_hidden_files_and_what_systems_leave_behind_are_no_images(tmp_path):
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat", "test/dog"))
    write(folder, ".DS_Store", "train/.DS_Store", "train/cat/Thumbs.db", "train/cat/._0.png", ".git/train/cat/1.png")
    write(
        folder,
        "__MACOSX/train/cat/0.png",
        "train/.hidden/0.png",
        "README.md",
        "notes/train.txt",
        "test/dog/desktop.ini",
    )
    assert load_splits(config(folder)).sizes == {"train": 18, "validation": 2, "test": 20}


@pytest.mark.parametrize(
    "names, trouble",
    [
        (["train/cat/0.png", "train/dog/notes.txt"], "class folder 'train/dog' holds no image: fill it"),
        (["cat/0.png", "dog/photo.heic"], "class folder 'dog' holds no image"),
        (["train/0.png", "test/0.png"], "'train/0.png' is out of place: images lie in <class>/<image>"),
        (["train/cat/0.png", "train/1.png"], "'train/1.png' is out of place"),
        (["train/cat/0.png", "train/dog/more/1.png"], "'train/dog/more/1.png' is out of place"),
        (["0.png", "1.png"], "'0.png' is out of place"),
        (
            ["train/cat/0.png", "extra/cat/0.png"],
            r"'extra/cat/0.png' lies outside the splits \['train'\]: move it away",
        ),
        (["train/cat/0.png", "logo.png"], "'logo.png' lies outside the splits"),
        (["train/cat/0.png", "training/cat/1.png"], r"\['train', 'training'\] are all called after the train split"),
        (["train/cat/0.png", "train/dog/1.png"], r"no split 'test', it has \['train'\].*test_fraction=0.1 holds out"),
        (["cat/0.png", "dog/1.png"], "no split 'test'.*test_fraction=0.1 holds out"),
        (
            ["train/cat/0.png", "train/dog/1.png", "test/Cat/2.png"],
            "'test/Cat' is no class of the training.*mean 'cat'",
        ),
        (["train/cat/0.png", "train/cat/1.png", "test/cat/2.png"], "only one class, 'cat'"),
        (["notes.txt"], "holds no images, no parquet files and no save_to_disk"),
    ],
)
def test_a_folder_that_is_not_clearly_split_and_labelled_is_refused(tmp_path, names, trouble):
    with pytest.raises(InputError, match=trouble):
        load_splits(config(write(tmp_path, *names)))


def test_what_is_wrong_with_a_split_that_is_not_used_does_no_harm(tmp_path):
    """ImageNet as it is handed out: test images without class folders."""
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "val/cat", "val/dog", "test"))
    splits = load_splits(config(folder, validation_split="validation", test_fraction=0.25))
    assert splits.sizes == {"train": 15, "validation": 20, "test": 5}


def test_a_class_of_the_training_images_may_be_missing_among_the_test_images(tmp_path):
    folder = write(tmp_path, *numbered("train/a", "train/b", "train/c", "test/a", "test/c"))
    splits = load_splits(config(folder))
    assert splits.classes == ["a", "b", "c"] and set(splits.test["label"]) == {0, 2}


@pytest.mark.parametrize(
    "name", ["json", "text", "parquet", "imagefolder", "csv", "cifar10", "a/b/c", "hf://a/b", "x.png"]
)
def test_a_name_that_is_no_folder_and_no_id_of_the_hub_is_refused_and_nothing_is_scanned(tmp_path, monkeypatch, name):
    parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    write(tmp_path, "x.json", "x.txt", "x.csv", "x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"'{name}' is no folder, and no id of the hub, which has an owner"):
        load_splits(config(name))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name, belongs",
    [("train-00000-of-00002.parquet", ""), ("extra.parquet", "none"), ("more/test_train.parquet", "2")],
)
def test_every_parquet_file_of_a_folder_belongs_to_one_split(tmp_path, name, belongs, streaming):
    """datasets leaves out what it finds no split for, and shows what it finds two for in both."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part in ("train-00000-of-00001", "test-00000-of-00001"):
        labelled([0, 1] * 10).to_parquet(folder / f"{part}.parquet")
    (folder / name).parent.mkdir(exist_ok=True)
    labelled([0, 1] * 10).to_parquet(folder / name)
    write(folder, ".hidden/train.parquet")
    settings = config(folder, streaming=streaming, validation_split="test", allow_overlap=True)
    if belongs:
        with pytest.raises(
            InputError, match=f"{name.split('/')[-1]} belongs to {belongs} of the splits.*<split>-00000"
        ):
            load_splits(settings)
    else:
        assert load_splits(settings).sizes == {"train": 40, "validation": 20, "test": 20}


ROLES = {"train": "train", "validation": "validation", "test": "test"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("one, other", [("train", "test"), ("train", "validation"), ("validation", "test")])
def test_one_split_in_two_roles_is_refused_by_name_unless_it_is_allowed(tmp_path, one, other, streaming):
    folder = parquet(tmp_path / "data", **{name: labelled([0, 1] * 10) for name in ROLES})
    names = {f"{role}_split": name for role, name in (ROLES | {other: one}).items()}
    with pytest.raises(
        InputError, match=f"{one}_split and {other}_split are both '{one}'.*{other}_fraction.*allow_overlap"
    ):
        load_splits(config(folder, streaming=streaming, **names))
    splits = load_splits(config(folder, streaming=streaming, allow_overlap=True, **names))
    assert splits.sizes == dict.fromkeys(ROLES, 20)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_held_out_test_images_are_fixed_disjoint_and_of_all_classes(tmp_path, kind):
    if kind == "folder":
        folder = write(tmp_path / "data", *numbered("cat", "dog", "eel", "fox", count=25))
    else:
        folder = parquet(tmp_path / "data", train=labelled([0, 1, 2, 3] * 25, datasets.ClassLabel(names=[*"abcd"])))
    one, again = (load_splits(config(folder, seed=seed, **HELD_OUT)) for seed in (0, 1))
    fewer = load_splits(config(folder, max_train_images=20, **HELD_OUT))
    assert one.sizes == again.sizes == {"train": 70, "validation": 10, "test": 20}
    assert fewer.sizes == {"train": 20, "validation": 10, "test": 20}
    assert one.fingerprint == again.fingerprint

    def contents(images):
        return [np.asarray(image).tobytes() for image in images["image"]]

    parts = {name: contents(getattr(one, name)) for name in one.sizes}
    assert len(set().union(*parts.values())) == 100
    assert [contents(fewer.validation), contents(fewer.test)] == [parts["validation"], parts["test"]]
    assert np.bincount(one.test["label"]).tolist() == [5] * 4
    assert set(np.bincount(one.train["label"])) <= {17, 18}


def test_a_split_of_its_own_is_left_alone_where_test_images_are_held_out(tmp_path):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([-1] * 4))
    assert load_splits(config(folder, **HELD_OUT)).sizes == {"train": 14, "validation": 2, "test": 4}


def test_nothing_held_out_leaves_nothing_to_train_on(tmp_path):
    with pytest.raises(InputError, match="validation_fraction: 1 of 1 images"):
        load_splits(
            config(parquet(tmp_path / "data", train=labelled([0, 1])), test_fraction=0.5, validation_fraction=0.4)
        )


TEN = [str(i) for i in range(10)]


@pytest.mark.parametrize("way", ["parquet", "stream", "save_to_disk"])
@pytest.mark.parametrize(
    "names, trouble",
    [
        (TEN[::-1], "class 0 is 9, of the training images it is 0"),
        ([*TEN[:8], "9", "8"], "class 8 is 9, of the training images it is 8"),
        (TEN[:9], "class 9 is none, of the training images it is 9"),
        ([*TEN, "ten"], "class 10 is ten, of the training images it is none"),
    ],
)
@pytest.mark.parametrize("split", ["test", "validation"])
def test_files_that_number_their_classes_differently_are_refused(tmp_path, names, trouble, split, way):
    kinds = {name: datasets.ClassLabel(names=names if name == split else TEN) for name in ROLES}
    labels = [i % 9 for i in range(40)]
    splits = {name: labelled(labels, kind, 40 * i) for i, (name, kind) in enumerate(kinds.items())}
    if way == "save_to_disk":
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    else:
        parquet(tmp_path / "data", **splits)
    with pytest.raises(InputError, match=f"{split}.*: {trouble}: the same classes in the same order"):
        load_splits(config(tmp_path / "data", validation_split="validation", streaming=way == "stream"))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_one_split_that_number_their_classes_differently_are_refused(tmp_path, streaming):
    others = dict(test=labelled([0, 1], first=50), validation=labelled([0, 1], first=60))
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), **others)
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    other = labelled([0, 1] * 10, datasets.ClassLabel(names=["dog", "cat"]))
    other.to_parquet(folder / "train-00001-of-00002.parquet")
    settings = config(folder, validation_split="validation", streaming=streaming)
    with pytest.raises(
        InputError, match="train-00001-of-00002.parquet: class 0 is dog, of the training images it is cat"
    ):
        train_batches(load_splits(settings), settings)


def test_names_in_some_files_only_are_refused_where_the_labels_lose_them(tmp_path):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10, NUMBER), test=labelled([0, 1]))
    with pytest.raises(
        InputError, match="test-00000-of-00001.parquet: class 0 is cat, of the training images it is none"
    ):
        load_splits(config(folder))


def test_files_written_without_names_may_stand_beside_others(tmp_path):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1], NUMBER))
    table = pyarrow.parquet.read_table(folder / "test-00000-of-00001.parquet").replace_schema_metadata(None)
    pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    assert load_splits(config(folder)).test["label"][:] == [0, 1]


@pytest.mark.parametrize(
    "train, test, trouble",
    [
        ([1, 2, 3] * 8, [0, 1, 2], "train split: 3 different labels from 1 to 3.*number classes 0, 1, 2.*ClassLabel"),
        ([0, 1, 3] * 8, [0, 1, 3], "3 different labels from 0 to 3"),
        ([0, 1, 9_000_000] * 8, [0, 1], "3 different labels from 0 to 9000000"),
        ([0, 1, 2] * 8, [1, 2, 3], "test split: 1 labels outside the 3 classes, the first 3 at index 2"),
        ([0] * 20, [0], "only one class, '0'"),
    ],
)
def test_numbers_without_names_that_are_not_0_to_n_are_refused(tmp_path, train, test, trouble):
    folder = parquet(tmp_path / "data", train=labelled(train, NUMBER), test=labelled(test, NUMBER))
    with pytest.raises(InputError, match=trouble):
        load_splits(config(folder))


STREAM = dict(streaming=True, validation_split="test", allow_overlap=True)


def unembedded(folder, layout, paths):
    """A dataset of 20 training images, and test images of which a table holds the paths alone."""
    features = datasets.Features(image=datasets.Image(), label=CAT_DOG)
    rows = {
        "image": [{"bytes": None, "path": str(path)} for path in paths],
        "label": [i % 2 for i in range(len(paths))],
    }
    if layout == "parquet":
        parquet(folder, train=labelled([0, 1] * 10))
        columns = [pyarrow.array(rows["image"], features.arrow_schema.field(0).type), pyarrow.array(rows["label"])]
        table = pyarrow.Table.from_arrays(columns, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, folder / "test-00000-of-00001.parquet")
    else:
        held = labelled(rows["label"])
        datasets.DatasetDict(train=labelled([0, 1] * 10), test=held).save_to_disk(folder)
        table = datasets.Dataset.from_dict(rows, features).data.table
        [file] = (folder / "test").glob("*.arrow")
        with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return folder


def bad_images(settings, streamed=False):
    """(row, file, reason) of a test split, or of the first epoch of a stream."""
    splits = load_splits(settings)
    loader = train_batches(splits, settings).epoch(0) if streamed else eval_loader(splits.test, settings)
    return [tuple(bad) for batch in loader for bad in batch.bad]


def folder_of(folder, **splits):
    for split, images in splits.items():
        for i, row in enumerate(images):
            file = folder / split / CAT_DOG.names[row["label"]] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            row["image"].save(file)


LAYOUTS = {
    "folder": folder_of,
    "parquet": parquet,
    "save_to_disk": lambda folder, **splits: datasets.DatasetDict(splits).save_to_disk(folder),
}


@pytest.mark.parametrize(
    "layout, first", [("folder", 0), ("parquet", 0), ("parquet", 1), ("save_to_disk", 0), ("save_to_disk", 1)]
)
def test_splits_that_hold_the_same_images_are_refused_unless_it_is_allowed(tmp_path, layout, first):
    """With the same labels, or with others; in folders, other labels would be other paths and another order."""
    same = labelled([(first + i) % 2 for i in range(20)])
    LAYOUTS[layout](tmp_path / "data", train=labelled([0, 1] * 10), test=same)
    with pytest.raises(InputError, match="are the same( file)?: .*allow_overlap=true"):
        load_splits(config(tmp_path / "data"))
    allowed = load_splits(config(tmp_path / "data", allow_overlap=True))
    assert allowed.sizes == {"train": 18, "validation": 2, "test": 20}


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_with_the_same_images_in_other_files_are_refused(tmp_path, streaming):
    splits = dict(train=labelled([0, 1] * 10), validation=labelled([0, 1] * 10, first=50), test=labelled([0, 1]))
    folder = parquet(tmp_path / "data", **splits)
    splits["train"].to_parquet(folder / "test-00000-of-00001.parquet", batch_size=4)  # other row groups, another file
    settings = config(folder, validation_split="validation", streaming=streaming)
    with pytest.raises(InputError, match="its train images and its test images are the same: .*allow_overlap=true"):
        load_splits(settings)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_parquet_file_among_those_of_two_splits_is_refused(tmp_path, streaming):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), validation=labelled([0, 1], first=50))
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    for name in ("train-00001-of-00002", "test-00000-of-00001"):
        labelled([0, 1] * 5, first=30).to_parquet(folder / f"{name}.parquet")
    settings = config(folder, validation_split="validation", streaming=streaming)
    with pytest.raises(
        InputError, match="train-00001.* of split 'train' and test-00000.* of split 'test' are the same file"
    ):
        load_splits(settings)


def test_splits_with_as_many_other_images_or_with_none_that_is_there_are_no_copies(tmp_path):
    folder = parquet(tmp_path / "a", train=labelled([0, 1] * 10), test=labelled([0, 1] * 10, first=20))
    assert load_splits(config(folder)).sizes == {"train": 18, "validation": 2, "test": 20}
    folder = unembedded(tmp_path / "b", "parquet", [tmp_path / f"b/{i}.png" for i in range(20)])
    assert len(load_splits(config(folder, train_split="test", test_split="train")).test) == 20


def card(folder, text):
    (folder / "README.md").write_text(f"---\n{text}\n---\n")
    return folder


CONFIG = (
    "configs:\n- config_name: default\n  data_files:\n"
    "  - split: train\n    path: {0}train*\n  - split: test\n    path: {0}test*"
)
SECOND = "\n- config_name: other\n  data_files: '*.parquet'"


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "text, named",
    [
        (CONFIG.format("../secret/"), r"\.\./secret/train\*"),
        (CONFIG.format("more/../../secret/"), r"more/\.\./\.\./secret/train\*"),
        (CONFIG.format("/etc/"), r"/etc/train\*"),
        (CONFIG.format("file:///etc/"), r"file:///etc/train\*"),
        (CONFIG.format("zip://a::"), r"zip://a::train\*"),
        (CONFIG.format("../secret/") + SECOND, r"\.\./secret/train\*"),
        ("configs:\n- config_name: default\n  data_dir: ../secret" + SECOND, r"\.\./secret"),
        ("configs:\n- config_name: default\n  data_files: /**", r"/\*\*"),
    ],
)
def test_a_dataset_card_that_leads_out_of_its_folder_is_refused_before_anything_is_looked_for_there(
    tmp_path, monkeypatch, text, named, streaming, file
):
    parquet(tmp_path / "secret", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    (folder / file).write_text(text if file.endswith("yaml") else f"---\n{text}\n---\n")
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda _: pytest.fail("it was looked for"))
    with pytest.raises(InputError, match=f"{file} names '{named}', outside the folder.*move the files"):
        load_splits(config(folder, **(STREAM if streaming else {})))


def test_what_a_dataset_card_leads_to_in_another_way_is_refused_file_by_file(tmp_path, monkeypatch):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    parquet(tmp_path / "secret", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    monkeypatch.setattr(sources, "_check_card", lambda *_: None)
    with pytest.raises(InputError, match="secret/train.*parquet is not read: it lies outside the dataset's folder"):
        load_splits(config(card(folder, CONFIG.format("../secret/") + SECOND)))


def test_a_dataset_card_chooses_among_the_files_of_its_folder(tmp_path):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    parquet(folder / "other", train=labelled([0, 1] * 20), test=labelled([0, 1] * 2))
    for place in ("other/", f"{folder}/other/"):
        card(folder, CONFIG.format(place) + SECOND)
        assert load_splits(config(folder, **STREAM)).sizes == {"train": 40, "validation": 4, "test": 4}
        assert load_splits(config(folder)).sizes == {"train": 36, "validation": 4, "test": 4}


@pytest.mark.parametrize(
    "path", ["/etc/train.parquet", "file:///etc/a.parquet", "zip://a.parquet::/etc/a.zip", "s3://a/b"]
)
def test_a_dataset_of_the_hub_that_names_files_of_this_machine_is_refused(monkeypatch, path):
    files = {"train": ["hf://datasets/a/b@1/train.parquet", path]}
    builder = types.SimpleNamespace(config=types.SimpleNamespace(data_files=files), builder_configs=[1])
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda _: builder)
    for settings in ({}, STREAM):
        with pytest.raises(InputError, match=f"names '{path}', which is not on the hub"):
            load_splits(config("a/b", **settings))


def test_images_of_a_dataset_of_the_hub_are_read_below_the_caches_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    allowed = allowed_places("a/b")
    for name in ("cache/x.png", "y.png"):
        write(tmp_path, name)
    assert content({"bytes": None, "path": str(tmp_path / "cache/x.png")}, allowed)
    for path in (tmp_path / "y.png", tmp_path / "cache/../y.png", f"{tmp_path}/cache-2/x.png"):
        with pytest.raises(OSError, match="outside"):
            content({"bytes": None, "path": str(path)}, allowed)


@pytest.mark.parametrize("value", ["../secret/data.arrow", "{}/secret/data.arrow"])
@pytest.mark.parametrize("whole", [True, False])
def test_what_save_to_disk_wrote_names_no_files_elsewhere(tmp_path, value, whole):
    train = labelled([0, 1] * 10)
    train.save_to_disk(tmp_path / "secret")
    (whole and train or datasets.DatasetDict(train=train, test=labelled([0, 1]))).save_to_disk(tmp_path / "data")
    state = tmp_path / "data" / ("" if whole else "test") / "state.json"
    named = value.format(tmp_path) if whole else value.replace("../", "../../").format(tmp_path)
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": [{"filename": named}]}))
    with pytest.raises(InputError, match="secret/data.arrow is not read: it lies outside the dataset's folder"):
        load_splits(config(tmp_path / "data", **HELD_OUT))


def test_what_save_to_disk_wrote_names_no_splits_elsewhere(tmp_path):
    both = datasets.DatasetDict(train=labelled([0, 1] * 10), test=labelled([0, 1]))
    for name in ("data", "secret"):
        both.save_to_disk(tmp_path / name)
    (tmp_path / "data/dataset_dict.json").write_text(json.dumps({"splits": ["train", "../secret/test"]}))
    with pytest.raises(InputError, match=r"secret/test/state.json is not read: it lies outside"):
        load_splits(config(tmp_path / "data", test_split="../secret/test"))


ELSEWHERE = (
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "../secret.png",
    "{}/secret.png",
    "{}/data/../secret.png",
    "",
)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("layout", ["parquet", "stream", "save_to_disk"])
def test_a_row_that_names_a_file_elsewhere_is_a_bad_image(tmp_path, monkeypatch, layout, workers):
    write(tmp_path, "secret.png")
    monkeypatch.chdir(write(tmp_path / "here", "0.png"))
    paths = [path.format(tmp_path) for path in ELSEWHERE]
    folder = unembedded(tmp_path / "data", "parquet" if layout == "stream" else layout, paths)
    write(folder, "own.png")
    settings = dict(bad_images="skip", num_workers=workers)
    if layout == "stream":
        labelled([0, 1] * 10).to_parquet(folder / "validation-00000-of-00001.parquet")
        own = dict(train_split="test", test_split="train", validation_split="validation", batch_size=1, streaming=True)
        with pytest.raises(InputError, match="7 training images one after the other cannot be read.*outside"):
            bad_images(config(folder, **settings, **own, allow_overlap=True), streamed=True)
        return
    found = bad_images(config(folder, **settings))
    assert [bad[:2] for bad in found] == [(i, Path(path).name) for i, path in enumerate(paths)]
    assert all("outside the dataset's folder" in reason for _, _, reason in found[:-1]) and "no file" in found[-1][2]
    with pytest.raises(InputError, match=r"row 0 \(passwd\).*outside the dataset's folder.*move it into the folder"):
        bad_images(config(folder))


def test_a_row_that_names_no_file_by_its_path_is_a_bad_image(tmp_path):
    folder = unembedded(
        tmp_path / "data", "parquet", [tmp_path / "data/a\0.png", tmp_path / "data", tmp_path / "data/b"]
    )
    reasons = [reason for _, _, reason in bad_images(config(folder, bad_images="skip"))]
    assert len(reasons) == 3 and "null byte" in reasons[0] and "outside" in reasons[1] and "No such" in reasons[2]


def test_a_row_may_name_a_file_of_its_folder(tmp_path, monkeypatch):
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    paths = [tmp_path / "data/images/0.png", tmp_path / "linked/images/1.png"]
    unembedded(tmp_path / "data", "parquet", paths)
    write(tmp_path / "data", "images/0.png", "images/1.png")
    monkeypatch.chdir(tmp_path)
    for dataset in (tmp_path / "linked", "linked", "./linked/", "data/../linked"):
        assert bad_images(config(dataset)) == []
    assert [bad[:2] for bad in bad_images(config("data", bad_images="skip"))] == [(1, "1.png")]


def test_class_folders_and_images_may_be_links_as_imagenets_are(tmp_path):
    write(tmp_path / "elsewhere", *numbered("cat", "dog", "test/cat"))
    folder = write(tmp_path / "data", *numbered("test/cat"))
    (folder / "train").mkdir()
    for name in ("cat", "dog"):
        (folder / "train" / name).symlink_to(tmp_path / "elsewhere" / name)
    (folder / "test/cat/10.png").symlink_to("../../../elsewhere/test/cat/0.png")
    (tmp_path / "linked").symlink_to(folder)
    for root in (folder, tmp_path / "linked"):
        assert load_splits(config(root)).sizes == {"train": 18, "validation": 2, "test": 11}
        assert bad_images(config(root)) == []


@pytest.mark.parametrize(
    "links", [{"train/cat/up": ".."}, {"train/all": "/"}, {"a/x": "../b", "b/y": "../a"}, {"train/x": "."}]
)
def test_a_folder_linked_into_itself_is_refused_at_once(tmp_path, links):
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat", "a", "b"))
    for link, target in links.items():
        (folder / link).symlink_to(target)
    with pytest.raises(InputError, match="is a link to a folder that it lies in itself: take it away"):
        load_splits(config(folder))


def test_pipes_devices_and_broken_links_are_bad_images(tmp_path):
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat"))
    os.mkfifo(folder / "test/cat/a.png")
    links = {"b": "/dev/zero", "c": "/proc/self/environ", "d": "nothing", "e": "e.png", "f": "0.png"}
    for name, target in links.items():
        (folder / f"test/cat/{name}.png").symlink_to(target)
    found = {file[0]: reason for _, file, reason in bad_images(config(folder, bad_images="skip"))}
    reasons = {"a": "no regular file", "b": "no regular file", "c": "empty", "d": "No such file", "e": "symbolic links"}
    assert found.keys() == reasons.keys() and all(reasons[name] in found[name] for name in reasons)


@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml", "dataset_infos.json"])
def test_a_pipe_in_the_place_of_a_dataset_card_is_refused(tmp_path, name):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match=f"{name} is not read: it is no regular file"):
        load_splits(config(folder))


@pytest.mark.parametrize("name", ["dataset_dict.json", "test/state.json", "test/data-00000-of-00001.arrow"])
def test_a_pipe_in_the_place_of_a_saved_file_is_refused(tmp_path, name):
    datasets.DatasetDict(train=labelled([0, 1] * 10), test=labelled([0, 1])).save_to_disk(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is not read: it is no regular file"):
        load_splits(config(tmp_path))


NAMES = "dataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype: {}"
DOG_CAT = NAMES.format("\n      class_label:\n        names:\n          '0': dog\n          '1': cat")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "text, trouble",
    [
        (DOG_CAT, "parquet: class 0 is cat, of the training images it is dog.*card"),
        (NAMES.format("int64"), "none|no class"),
    ],
)
def test_a_dataset_card_with_other_class_names_than_the_files_is_refused(tmp_path, text, trouble, streaming):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    with pytest.raises(InputError, match=trouble):
        load_splits(config(card(folder, text), **(STREAM if streaming else {})))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["", "test", "test/cat", "test/cat/0.png", "test-0.parquet", "README.md"])
def test_what_may_not_be_read_is_refused_by_name(tmp_path, name):
    folder = tmp_path / "data"
    if name.startswith("test/") or name in ("", "test"):
        write(folder, *numbered("train/cat", "train/dog", "test/cat"))
    else:
        card(parquet(folder, train=labelled([0, 1] * 10), test=labelled([0, 1])), "license: mit")
        (folder / "test-00000-of-00001.parquet").rename(folder / "test-0.parquet")
    mode = (folder / name).stat().st_mode
    (folder / name).chmod(0)
    try:
        shown = name if (folder / name).is_dir() else Path(name).name
        with pytest.raises(InputError, match=f"({shown}.*Permission denied|Permission denied.*{shown})"):
            bad_images(config(folder))
    finally:
        (folder / name).chmod(mode)


def test_a_folder_that_cannot_be_listed_is_refused_and_not_taken_for_an_empty_one(tmp_path, monkeypatch):
    folder, scandir = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat", "test/dog")), os.scandir

    def denied(path):
        if str(path).endswith("test/dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match="Permission denied: '.*test/dog'"):
        load_splits(config(folder))


def test_an_image_that_vanishes_after_it_was_listed_is_a_bad_image(tmp_path):
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat"))
    settings = config(folder, bad_images="skip")
    splits = load_splits(settings)
    (folder / "test/cat/3.png").unlink()
    bad = [bad for batch in eval_loader(splits.test, settings) for bad in batch.bad]
    assert [image[:2] for image in bad] == [(3, "3.png")] and "No such file" in bad[0].reason


@pytest.mark.parametrize("step, settings", [("_check_files", {}), ("_check_files", STREAM), ("check_copies", {})])
def test_a_parquet_file_that_vanishes_is_named(tmp_path, monkeypatch, step, settings):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]))
    gone, then = folder / "test-00000-of-00001.parquet", getattr(sources, step)
    monkeypatch.setattr(sources, step, lambda *given: (gone.unlink(), then(*given)))
    with pytest.raises(InputError, match=gone.name):
        load_splits(config(folder, **settings))


def test_many_empty_class_folders_are_named_by_one_of_them(tmp_path):
    folder = write(tmp_path, *numbered("train/cat", "train/dog", "test/cat"))
    for i in range(3000):
        (folder / f"train/c{i}").mkdir()
    with pytest.raises(InputError, match=r"class folder 'train/c\d+' holds no image: fill it, or take it away$"):
        load_splits(config(folder))


def test_an_unknown_class_among_many_is_told_in_one_short_line(tmp_path):
    folder = write(tmp_path, *(f"train/{i:03}/0.png" for i in range(300)), "test/elephant/0.png")
    with pytest.raises(
        InputError, match="'test/elephant' is no class of the training images, which have 300"
    ) as raised:
        load_splits(config(folder))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    "name", ["~nosuchuser/x", "/" + "a" * 300, "./" + "a/" * 3000, "a" * 5000, "a\0b", "/etc/passwd"]
)
def test_an_odd_name_is_no_folder(name):
    with pytest.raises(InputError, match="there is no such folder|is no folder, and no id of the hub"):
        load_splits(config(name))


def test_a_path_is_checked_as_it_is_opened(tmp_path):
    """As text "link/../x" lies in the folder; the system would go up from where the link leads."""
    folder = write(tmp_path / "data", "x.png")
    write(tmp_path / "far", "x.png", "away/y.png")
    (folder / "link").symlink_to(tmp_path / "far/away")
    with open_inside(f"{folder}/link/../x.png", allowed_places(str(folder))) as opened:
        assert opened.read() == (folder / "x.png").read_bytes()
