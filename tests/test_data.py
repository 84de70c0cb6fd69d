import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ffvit.config import InputError, load_experiment
from ffvit.data import eval_loader, load_splits, train_loader

CLASSES = datasets.ClassLabel(names=["cat", "dog"])
NUMBER = datasets.Value("int64")


def config(**settings):
    return load_experiment("digits").config("ff", epochs=1, warmup_epochs=0, **settings)


def colour(folder, **settings):
    return config(dataset=str(folder), in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, **settings)


def picture(number, mode="RGB"):
    pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def split(count, labels=None, kind=CLASSES, image="image", label="label"):
    columns = {
        image: [picture(i) for i in range(count)],
        label: [i % 2 for i in range(count)] if labels is None else labels,
    }
    return datasets.Dataset.from_dict(columns, datasets.Features({image: datasets.Image(), label: kind}))


def save(folder, train, test=None):
    datasets.DatasetDict(train=train, test=train if test is None else test).save_to_disk(folder)
    return folder


def pixels(images):
    return [np.asarray(image).tobytes() for image in images["image"]]


def test_no_digit_of_the_test_split_is_trained_or_validated_on():
    splits = load_splits(config())
    parts = {name: pixels(getattr(splits, name)) for name in splits.sizes}
    assert sum(len(part) for part in parts.values()) == 1797
    assert len(set().union(*parts.values())) == 1797
    assert len(parts["test"]) == 360
    assert [len(set(getattr(splits, name)["label"])) for name in parts] == [10, 10, 10]


def test_the_split_does_not_depend_on_the_seed():
    one, two = (load_splits(config(seed=seed, max_train_images=200, max_eval_images=50)) for seed in (0, 1))
    assert one.sizes == two.sizes == {"train": 200, "validation": 50, "test": 50}
    assert all(pixels(getattr(one, name)) == pixels(getattr(two, name)) for name in one.sizes)
    assert one.fingerprint == two.fingerprint


def test_the_fingerprint_changes_with_one_label_and_with_one_image(tmp_path):
    labels = [0, 1] * 10
    same, again = (load_splits(colour(save(tmp_path / n, split(20, labels)))).fingerprint for n in "ab")
    other_label = load_splits(colour(save(tmp_path / "c", split(20, labels), split(20, [1, *labels[1:]])))).fingerprint
    images = split(20, labels).to_dict()
    images["image"][3] = split(30)[29]["image"]
    changed = datasets.Dataset.from_dict(images, split(2).features)
    other_image = load_splits(colour(save(tmp_path / "d", split(20, labels), changed))).fingerprint
    assert same == again
    assert len({same, other_label, other_image}) == 3


def test_grey_palette_cmyk_and_rgb_files_become_rgb_tensors(tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i, (mode, suffix) in enumerate([("L", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "jpg")]):
                picture(i, mode).save(folder / f"{i}.{suffix}")
    settings = colour(tmp_path, batch_size=2, validation_fraction=0.25)
    splits = load_splits(settings)
    assert {image.mode for image in splits.test["image"]} == {"L", "P", "CMYK", "RGB"}
    assert torch.cat([x for x, _ in eval_loader(splits.test, settings)]).shape == (8, 3, 8, 8)
    assert torch.cat([x for x, _ in train_loader(splits, settings)[0]]).shape == (6, 3, 8, 8)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_colour_and_grey_models_both_read_grey_images(in_chans):
    settings = config(in_chans=in_chans, mean=[0.3] * in_chans, std=[0.4] * in_chans, max_train_images=64)
    images, labels = next(iter(train_loader(load_splits(settings), settings)[0]))
    assert images.shape == (64, in_chans, 8, 8)
    assert labels.dtype == torch.int64


def test_parquet_image_folder_and_save_to_disk_give_the_same_images(tmp_path):
    whole = datasets.DatasetDict(train=split(20), test=split(8))
    whole.save_to_disk(tmp_path / "disk")
    for part, images in whole.items():
        (tmp_path / "parquet").mkdir(exist_ok=True)
        images.to_parquet(tmp_path / "parquet" / f"{part}-00000-of-00001.parquet")
        for i, row in enumerate(images):
            folder = tmp_path / "folder" / part / CLASSES.names[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            row["image"].save(folder / f"{i:02}.png")
    found = [load_splits(colour(tmp_path / kind)) for kind in ("disk", "parquet", "folder")]
    assert [splits.sizes for splits in found] == [{"train": 18, "validation": 2, "test": 8}] * 3
    assert [splits.classes for splits in found] == [["cat", "dog"]] * 3
    assert found[0].fingerprint == found[1].fingerprint
    images = [sorted(zip(pixels(splits.test), splits.test["label"])) for splits in found]
    assert images[0] == images[1] == images[2]


def test_the_columns_may_have_other_names(tmp_path):
    folder = save(tmp_path / "data", split(20, image="img", label="fine"))
    assert load_splits(colour(folder)).test.column_names == ["image", "label"]


def with_two_labels(count):
    images = split(count)
    return images.add_column("coarse", images["label"][:]).cast_column("coarse", CLASSES)


@pytest.mark.parametrize(
    "train, settings, cure",
    [
        (lambda: split(20).remove_columns("image"), {}, "no image column.*image_column"),
        (lambda: split(20).remove_columns("label"), {}, "no label column.*label_column"),
        (lambda: with_two_labels(20), {}, "more than one label column.*label_column"),
        (lambda: split(20), {"image_column": "img"}, r"no column 'img', it has \['image', 'label'\]"),
        (lambda: split(20), {"label_column": "fine"}, r"no column 'fine', it has"),
        (lambda: split(20), {"image_column": "label"}, "'label' holds no images"),
        (lambda: split(4, list("abab"), datasets.Value("string")), {}, "not class numbers; save it as a ClassLabel"),
        (
            lambda: split(4, list("abab"), datasets.Value("large_string")),
            {},
            "not class numbers; save it as a ClassLabel",
        ),
        (lambda: split(4, [0.2, 1.7, 0.2, 1.7], datasets.Value("float32")), {}, "'label'"),
        (lambda: split(4, [0, -1, 0, 1], CLASSES), {}, "1 labels outside the 2 classes, the first -1 at index 1"),
        (lambda: split(4, [-1] * 4, NUMBER), {}, "all -1 is unlabelled, choose another"),
        (lambda: split(20), {"test_split": "validation"}, r"no split 'validation', it has \['test', 'train'\]"),
        (lambda: split(20), {"train_split": "training"}, "no split 'training'.*set train_split"),
        (lambda: split(1), {}, "validation_fraction"),
        (lambda: split(4), {"validation_fraction": 0.9}, "validation_fraction"),
    ],
)
def test_images_that_cannot_be_used_are_refused_with_the_cure(tmp_path, train, settings, cure):
    folder = save(tmp_path / "data", train())
    with pytest.raises(InputError, match=cure):
        load_splits(colour(folder, **settings))


def test_a_test_label_outside_the_training_classes_is_refused(tmp_path):
    folder = save(tmp_path / "data", split(20, kind=NUMBER), split(4, [0, 1, 1, 2], NUMBER))
    with pytest.raises(InputError, match="test split: 1 labels outside the 2 classes, the first 2 at index 3"):
        load_splits(colour(folder))


def test_splits_that_number_their_classes_differently_are_refused(tmp_path):
    """Their labels would be counted as other classes without a word, and every accuracy would be wrong."""
    folder = save(tmp_path / "data", split(20), split(4, kind=datasets.ClassLabel(names=["dog", "cat"])))
    with pytest.raises(InputError, match="cat"):
        load_splits(colour(folder))


@pytest.mark.parametrize("layout", ["parquet", "save_to_disk"])
def test_an_empty_split_is_refused(tmp_path, layout):
    if layout == "parquet":
        split(20).to_parquet(tmp_path / "train.parquet")
        split(0).to_parquet(tmp_path / "test.parquet")
    else:
        save(tmp_path, split(20), split(0))
    with pytest.raises(InputError, match="empty"):
        load_splits(colour(tmp_path))


def test_a_missing_folder_is_refused_without_asking_the_hub(tmp_path):
    with pytest.raises(InputError, match="nothing': there is no such folder"):
        load_splits(colour(tmp_path / "nothing"))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be opened.*local folder"):
        load_splits(colour(tmp_path))


def test_a_hub_id_out_of_reach_is_refused_with_the_ways_out():
    with pytest.raises(InputError, match="'nobody/nothing' cannot be opened.*hf auth login.*local folder"):
        load_splits(config(dataset="nobody/nothing"))


# Without augmentation, so that an image is the same whichever process reads it.
PLAIN = dict(batch_size=32, max_train_images=330, crop_scale=[1, 1], crop_ratio=[1, 1], in_memory=False)


@pytest.mark.parametrize("repeats", [0, 3])
def test_the_batches_of_two_processes_together_are_the_batch_of_one(repeats):
    one = config(**PLAIN, repeated_augmentation=repeats)
    two = config(**PLAIN, repeated_augmentation=repeats, num_processes=2)
    splits = load_splits(one)
    loaders = [train_loader(splits, one), train_loader(splits, two, rank=0), train_loader(splits, two, rank=1)]
    for epoch in range(2):
        for _, sampler in loaders:
            sampler.set_epoch(epoch)
        batches = list(zip(*(loader for loader, _ in loaders), strict=True))
        assert len(batches) == (256 if repeats else 330) // 32  # DeiT's sampler keeps whole 256s
        for whole, first, second in batches:
            for i in range(2):
                assert torch.equal(whole[i], torch.stack([first[i], second[i]], dim=1).flatten(0, 1))


def order(settings, epoch):
    splits = load_splits(settings)
    loader, sampler = train_loader(splits, settings)
    sampler.set_epoch(epoch)
    return torch.cat([labels for _, labels in loader]).tolist()


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else():
    assert order(config(**PLAIN), 0) == order(config(**PLAIN), 0)
    assert order(config(**PLAIN), 0) != order(config(**PLAIN), 1)
    assert order(config(**PLAIN), 0) != order(config(**PLAIN, seed=1), 0)


def test_an_epoch_shows_no_image_twice():
    settings = config(**PLAIN)
    _, sampler = train_loader(load_splits(settings), settings)
    assert len(set(sampler)) == len(list(sampler)) == 330


def test_repeated_augmentation_shows_an_image_three_times_in_a_batch():
    settings = config(**PLAIN, repeated_augmentation=3)
    _, sampler = train_loader(load_splits(settings), settings)
    first = list(sampler)[:30]
    assert {first.count(index) for index in first} == {3}


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [7, 97])
def test_every_image_is_evaluated_exactly_once(count, processes):
    images = split(count, labels=list(range(count)), kind=NUMBER)
    settings = colour("unused", num_processes=processes, batch_size=6)
    seen = [label for r in range(processes) for _, labels in eval_loader(images, settings, r) for label in labels]
    assert sorted(map(int, seen)) == list(range(count))


def test_too_few_images_for_one_batch_are_refused():
    settings = config(max_train_images=63)
    with pytest.raises(InputError, match="63 training images do not fill one batch of 64: lower batch_size"):
        train_loader(load_splits(settings), settings)


def test_cifar10_loads_with_the_columns_of_the_hub(shared):
    settings = colour(shared / "data" / "cifar10", img_size=32, max_train_images=64, max_eval_images=32)
    splits = load_splits(settings)
    assert splits.sizes == {"train": 64, "validation": 32, "test": 32}
    assert splits.classes[:3] == ["airplane", "automobile", "bird"]
    assert next(iter(train_loader(splits, settings)[0]))[0].shape == (64, 3, 32, 32)


def test_real_imagenet_files_load_at_full_size(shared):
    folder = str(shared / "data" / "imagenet-sample")
    own = {"dataset": folder, "test_split": "validation", "validation_split": "validation", "num_workers": 0}
    settings = load_experiment("imagenet").config("ff_tiny", batch_size=2, max_train_images=4, max_eval_images=3, **own)
    splits = load_splits(settings)
    assert len(splits.classes) == 1000
    assert next(iter(train_loader(splits, settings)[0]))[0].shape == (2, 3, 224, 224)
    assert [len(x) for x, _ in eval_loader(splits.test, settings)] == [2, 1]


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    splits = load_splits(load_experiment("digits").config("ff"))
    pixels = np.concatenate([np.stack(getattr(splits, name)["image"][:]) for name in splits.sizes])
    assert sorted(p.tobytes() for p in pixels) == sorted(
        np.round(image / 16 * 255).astype(np.uint8).tobytes() for image in load_digits().images
    )


def test_the_folder_of_a_dataset_is_only_read(tmp_path):
    folder = save(tmp_path / "data", split(20))
    before = sorted(folder.rglob("*"))
    load_splits(colour(folder, max_train_images=4, max_eval_images=2))
    assert sorted(folder.rglob("*")) == before
