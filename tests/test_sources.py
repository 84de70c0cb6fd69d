"""Which images of a dataset are in which split, and of which class: nothing is left out, shared or renamed without a word."""

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from ffvit.data.batches import TrainBatches
from ffvit.data.folders import SPLIT_NAMED
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


def labelled(labels, kind=CAT_DOG):
    images = [Image.fromarray(np.full((4, 4, 3), i, np.uint8)) for i in range(len(labels))]
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
    splits = {name: labelled([i % 9 for i in range(40)], kind) for name, kind in kinds.items()}
    if way == "save_to_disk":
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    else:
        parquet(tmp_path / "data", **splits)
    with pytest.raises(InputError, match=f"{split}.*: {trouble}: the same classes in the same order"):
        load_splits(config(tmp_path / "data", validation_split="validation", streaming=way == "stream"))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_one_split_that_number_their_classes_differently_are_refused(tmp_path, streaming):
    folder = parquet(tmp_path / "data", train=labelled([0, 1] * 10), test=labelled([0, 1]), validation=labelled([0, 1]))
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")
    other = labelled([0, 1] * 10, datasets.ClassLabel(names=["dog", "cat"]))
    other.to_parquet(folder / "train-00001-of-00002.parquet")
    settings = config(folder, validation_split="validation", streaming=streaming)
    with pytest.raises(
        InputError, match="train-00001-of-00002.parquet: class 0 is dog, of the training images it is cat"
    ):
        TrainBatches(load_splits(settings), settings)


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
