import gc
import io
import itertools
import multiprocessing
import os
import random
import re
import resource
import struct
import zlib
from collections import Counter
from dataclasses import replace

import datasets
import fsspec
import numpy as np
import PIL.ImageFile
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ffvit.data import embedded, kept_pixels, resident
from ffvit.data.batches import eval_loader, train_batches
from ffvit.data.images import decode, read
from ffvit.data.loader import AugmentedImages, EpochOrder, Images
from ffvit.data.splits import first_images, load_splits
from ffvit.data.stream import ParquetStream, StreamedImages
from ffvit.settings.experiment import load_experiment
from ffvit.studies import samples
from ffvit.system.errors import InputError

CLASSES = datasets.ClassLabel(names=["cat", "dog"])
NUMBER = datasets.Value("int64")


def config(**settings):
    return load_experiment("digits").config(
        "ff", **{"epochs": 1, "warmup_epochs": 0, "augment": "image", "interpolation": "bicubic", **settings}
    )


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
    """Without test images of their own, the training images twice: as many would be refused as the same."""
    test = datasets.concatenate_datasets([train, train]) if test is None else test
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder)
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
    images = split(20, labels).to_dict()
    images["image"][3] = split(30)[29]["image"]
    changed = datasets.Dataset.from_dict(images, split(2).features)
    tests = [split(20, labels), split(20, labels), split(20, [1, *labels[1:]]), changed]
    found = [load_splits(colour(save(tmp_path / str(i), split(30), test))).fingerprint for i, test in enumerate(tests)]
    same, again, other_label, other_image = found
    assert same == again
    assert len({same, other_label, other_image}) == 3


def test_the_fingerprint_of_the_digits_is_that_of_the_records():
    """What every record in results/ says of them: a change here would make all of them those of other images."""
    assert load_splits(load_experiment("digits").config("ff")).fingerprint == "6bf8f15ad56789e3"


def test_grey_palette_cmyk_and_rgb_files_become_rgb_tensors(tmp_path):
    for first, part in enumerate(("train", "test")):
        for label in ("cat", "dog"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i, (mode, suffix) in enumerate([("L", "png"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "jpg")]):
                picture(4 * first + i, mode).save(folder / f"{i}.{suffix}")
    settings = colour(tmp_path, batch_size=2, validation_fraction=0.25)
    splits = load_splits(settings)
    assert {image.mode for image in splits.test["image"]} == {"L", "P", "CMYK", "RGB"}
    assert torch.cat([batch.images for batch in eval_loader(splits.test, settings)]).shape == (8, 3, 8, 8)
    assert torch.cat([batch.images for batch in train_batches(splits, settings).epoch(0)]).shape == (6, 3, 8, 8)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_colour_and_grey_models_both_read_grey_images(in_chans):
    settings = config(in_chans=in_chans, mean=[0.3] * in_chans, std=[0.4] * in_chans, max_train_images=64)
    batch = next(train_batches(load_splits(settings), settings).epoch(0))
    assert batch.images.shape == (64, in_chans, 8, 8)
    assert batch.target.dtype == torch.int64


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
    with pytest.raises(InputError, match="holds no images, no parquet files and no save_to_disk"):
        load_splits(colour(tmp_path))


def test_a_hub_id_out_of_reach_is_refused_with_the_ways_out():
    with pytest.raises(InputError, match="'nobody/nothing' cannot be opened.*hf auth login.*local folder"):
        load_splits(config(dataset="nobody/nothing"))


# Small, with augmentation that draws from all three generators: crops, RandAugment, erasing.
AUGMENTED = dict(
    in_memory=False, batch_size=24, max_train_images=107, auto_augment="rand-m9-mstd0.5", random_erasing=0.5
)


# The same on the device, many at once.
RESIDENT = dict(
    in_memory=True, augment="batch", auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.0, interpolation="bilinear"
)


# Cropped one by one, the rest on the device.
ON_DEVICE = dict(augment="batch", auto_augment="rand-m9-mstd0.5-inc1", interpolation="bicubic")


def augmented(**settings):
    return config(in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, **AUGMENTED | settings)


def batches(splits, settings, epoch=0, first_update=0, accumulation_steps=1, rank=0):
    """The images and labels of a process, by update."""
    of_process = train_batches(splits, settings, accumulation_steps, rank)
    found = list(of_process.epoch(epoch, first_update))
    assert len(found) == (len(of_process) - first_update) * accumulation_steps
    return [
        [torch.cat(parts) for parts in list(zip(*found[i : i + accumulation_steps]))[:2]]
        for i in range(0, len(found), accumulation_steps)
    ]


def same(one, two):
    return len(one) == len(two) and all(torch.equal(x, y) for a, b in zip(one, two) for x, y in zip(a, b))


@pytest.mark.parametrize("way", [{}, RESIDENT, ON_DEVICE], ids=["image", "batch, in memory", "batch"])
@pytest.mark.parametrize("repeats", [0, 3])
@pytest.mark.parametrize("accumulation_steps", [1, 2, 4])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_global_batch_is_the_same_for_any_processes_and_accumulation_steps(
    processes, accumulation_steps, repeats, way, monkeypatch
):
    monkeypatch.setattr(resident, "AT_ONCE", 40)
    alone = augmented(repeated_augmentation=repeats, **way)
    splits = load_splits(alone)
    several = augmented(repeated_augmentation=repeats, num_processes=processes, **way)
    for epoch in range(2):
        of_ranks = [batches(splits, several, epoch, 0, accumulation_steps, rank) for rank in range(processes)]
        together = [[torch.stack(x, dim=1).flatten(0, 1) for x in zip(*ranks)] for ranks in zip(*of_ranks, strict=True)]
        assert len(together) == 107 // 24
        assert same(together, batches(splits, alone, epoch))


@pytest.mark.parametrize(
    "way",
    [dict(num_workers=0), dict(num_workers=2), RESIDENT | dict(random_erasing=0.5), ON_DEVICE | dict(num_workers=2)],
    ids=["0", "2", "batch, in memory", "batch, 2"],
)
@pytest.mark.parametrize("repeats", [0, 3])
def test_an_epoch_goes_on_at_any_update_as_if_never_interrupted(repeats, way, monkeypatch):
    monkeypatch.setattr(resident, "AT_ONCE", 40)
    settings = augmented(repeated_augmentation=repeats, num_processes=2, **way)
    splits = load_splits(settings)
    of_process = train_batches(splits, settings, accumulation_steps=2, rank=1)
    whole = list(of_process.epoch(1))
    for first in range(len(of_process) + 1):
        random.seed(first), np.random.seed(first), torch.manual_seed(first)
        assert same([b[:2] for b in of_process.epoch(1, first)], [b[:2] for b in whole[2 * first :]])


def test_an_interrupted_epoch_reads_no_row_before_its_first_update(monkeypatch):
    settings = augmented()
    keys = []
    monkeypatch.setattr(AugmentedImages, "__getitem__", lambda self, key: keys.append(key) or (torch.zeros(1), 0, []))
    list(train_batches(load_splits(settings), settings).epoch(5, first_update=3))
    assert [key[:2] for key in keys] == [(5, position) for position in range(3 * 24, 4 * 24)]


def test_the_number_of_workers_and_what_was_drawn_before_change_nothing():
    splits = load_splits(augmented())
    alone = batches(splits, augmented())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert same(alone, batches(splits, augmented(num_workers=2)))
    assert same(alone, batches(splits, augmented(in_memory=True)))
    assert same(batches(splits, augmented(**ON_DEVICE)), batches(splits, augmented(**ON_DEVICE, num_workers=2)))


def test_images_augmented_on_the_device_differ_from_timms_in_their_random_numbers_alone():
    # Nothing random is left: what remains is decoding, resizing and normalising.
    plain = dict(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], hflip=0.0, auto_augment="", random_erasing=0.0)
    one_by_one = augmented(**plain)
    splits = load_splits(one_by_one)
    found = [batches(splits, replace(one_by_one, augment=augment)) for augment in ("image", "batch")]
    for (theirs, labels), (ours, own_labels) in zip(*found, strict=True):
        assert torch.equal(labels, own_labels)
        assert (theirs - ours).abs().max() <= 2.01 / 255 / 0.5


def test_a_run_abandoned_within_an_epoch_leaves_nothing_behind_in_its_workers():
    settings = augmented(num_workers=2)
    of_process = train_batches(load_splits(settings), settings)
    next(of_process.epoch(0))
    assert same([b[:2] for b in of_process.epoch(1)], batches(load_splits(settings), augmented(), epoch=1))


def test_an_image_is_augmented_anew_each_time():
    settings = augmented(repeated_augmentation=3)
    images = train_batches(load_splits(settings), settings)
    first = next(images.epoch(0)).images
    assert len({image.numpy().tobytes() for image in torch.cat([first, next(images.epoch(1)).images])}) == 48


def order(settings, epoch, rank=0, count=107):
    of_process = EpochOrder(count, settings, rank)
    of_process.begin(epoch, range(len(of_process.order) // settings.batch_size))
    return [row for _, _, row in of_process]


def test_the_order_changes_with_epoch_and_seed_and_with_nothing_else():
    assert order(augmented(), 0) == order(augmented(num_workers=2), 0)
    assert order(augmented(), 0) != order(augmented(), 1)
    assert order(augmented(), 0) != order(augmented(seed=1), 0)


def test_an_epoch_shows_no_image_twice():
    assert len(set(order(augmented(), 0))) == 107 // 24 * 24


@pytest.mark.parity("DeiT's rule")
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("count", [256, 300, 515])
def test_repeated_augmentation_follows_deits_rule(count, processes):
    """DeiT's samplers.py: every image three times in a row, dealt to the processes, whole 256s of the images kept."""
    settings = config(batch_size=64, repeated_augmentation=3, num_processes=processes)
    for epoch in range(2):
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()
        thrice = [row for row in shuffled for _ in range(3)]
        thrice += thrice[: -len(thrice) % processes]
        kept = count // 256 * 256 // processes
        for rank in range(processes):
            assert order(settings, epoch, rank, count) == thrice[rank::processes][:kept]


@pytest.mark.parametrize("way", [{}, RESIDENT], ids=["image", "batch"])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [7, 97])
def test_every_image_is_evaluated_exactly_once(count, processes, way):
    images = split(count, labels=list(range(count)), kind=NUMBER)
    settings = colour("unused", num_processes=processes, batch_size=6, **way)
    seen = [label for r in range(processes) for batch in eval_loader(images, settings, r) for label in batch.target]
    assert sorted(map(int, seen)) == list(range(count))


def test_images_on_the_device_are_scored_as_those_of_the_loader_to_the_last_bit(tmp_path):
    folder = shards(tmp_path / "data", with_files(37, {}), [37])
    one_by_one = colour(folder, validation_split="test", allow_overlap=True, interpolation="bilinear", crop_pct=0.875)
    on_device = replace(one_by_one, **RESIDENT)
    found = [
        [batch[:2] for batch in eval_loader(load_splits(settings).train, settings)]
        for settings in (one_by_one, on_device)
    ]
    assert same(*found)


def test_bad_images_on_the_device_are_named_once_and_the_next_one_stands_in(tmp_path):
    folder = shards(tmp_path / "data", with_files(37, {3: b"", 18: b"x", 19: b"x", 36: b"x"}), [37])
    settings = colour(folder, validation_split="test", allow_overlap=True, bad_images="skip", batch_size=4, **RESIDENT)
    splits = load_splits(settings)
    batches = list(train_batches(splits, settings).epoch(0))
    assert sorted(image.index for batch in batches for image in batch.bad) == [3, 18, 19, 36]
    rows = EpochOrder(37, settings, 0)
    rows.begin(0, range(9))
    labels = splits.train["label"]
    stand_in = {3: 4, 18: 20, 19: 20, 36: 0}
    assert torch.cat([batch.target for batch in batches]).tolist() == [
        labels[stand_in.get(row, row)] for _, _, row in rows
    ]
    scored = list(eval_loader(splits.train, replace(settings, num_processes=2), rank=1))
    assert sorted(image.index for batch in scored for image in batch.bad) == [3, 19]
    assert sum((batch.target < 0).sum() for batch in scored) == 2
    with pytest.raises(InputError, match=r"row 3 .*bad_images='skip'"):
        train_batches(splits, replace(settings, bad_images="refuse"))


def test_images_that_do_not_fit_on_the_device_are_refused_before_any_is_read(tmp_path):
    settings = colour("unused", **RESIDENT | dict(img_size=10_000))
    with pytest.raises(InputError, match=r"take 480\.0 GB, .* are free; set in_memory=false"):
        eval_loader(split(1).select([0] * 1600), settings)


def test_too_few_images_for_one_batch_are_refused():
    settings = config(max_train_images=63)
    with pytest.raises(InputError, match="63 training images do not fill one batch of 64: lower batch_size"):
        train_batches(load_splits(settings), settings)


def test_cifar10_loads_with_the_columns_of_the_hub(shared):
    settings = colour(shared / "data" / "cifar10", img_size=32, max_train_images=64, max_eval_images=32)
    splits = load_splits(settings)
    assert splits.sizes == {"train": 64, "validation": 32, "test": 32}
    assert splits.classes[:3] == ["airplane", "automobile", "bird"]
    assert next(train_batches(splits, settings).epoch(0)).images.shape == (64, 3, 32, 32)


def test_real_imagenet_files_load_at_full_size(shared):
    folder = str(shared / "data" / "imagenet-sample")
    own = {"dataset": folder, "test_split": "validation", "validation_split": "validation", "num_workers": 0}
    settings = load_experiment("imagenet").config("ff_tiny", batch_size=2, max_train_images=4, max_eval_images=3, **own)
    splits = load_splits(settings)
    assert len(splits.classes) == 1000
    for way in ("image", "batch"):  # DeiT's recipe as it is, either way
        images = next(train_batches(splits, replace(settings, augment=way)).epoch(0)).images
        assert images.shape == (2, 3, 224, 224) and images.dtype == torch.float32
    assert [len(batch.images) for batch in eval_loader(splits.test, settings)] == [2, 1]


def test_definitions_are_texts_of_five_kinds_each_of_them_once():
    splits = load_splits(load_experiment("definitions").config("ff"))
    assert splits.sizes == {"train": 5760, "validation": 640, "test": 1600}
    assert splits.fingerprint == "ebcbfc57043f6293"  # that of the records
    assert np.bincount(splits.test["label"]).tolist() == [320] * 5
    texts = [np.asarray(image).tobytes() for part in (splits.train, splits.test) for image in part["image"]]
    assert len(set(texts)) == len(texts) == 7360


def test_training_sees_a_text_as_it_is():
    settings = load_experiment("definitions").config("ff", max_train_images=64, max_eval_images=32)
    splits = load_splits(settings)
    stored = {np.asarray(image).tobytes() for image in splits.train["image"]}
    [batch] = train_batches(splits, settings).epoch(0)
    assert {image.mul(255).byte().numpy().tobytes() for image in batch.images} == stored


def test_a_text_is_an_image_of_its_symbols_in_their_places():
    image = embedded.text_image("a cat" + " z" * 40)
    assert image.shape == (64, 64)
    assert image.sum(axis=0).tolist() == [255] * 64  # one symbol a place, and those beyond 64 are left out
    read = "".join(embedded.SYMBOLS[row] for row in image.argmax(axis=0))
    assert read == ("a cat" + " z" * 40)[:64]
    assert embedded.text_image("it")[:, 2:].max() == 0  # where a text has ended, nothing stands


@pytest.mark.parity("scikit-learn")
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


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = np.random.default_rng(1).integers(0, 65536, (6, 8), dtype=np.uint16)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(RGB), "PNG", exif=exif)


def with_broken_exif():
    return encode(Image.fromarray(RGB), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")


def palette(**options):
    image = Image.fromarray(GREY // 16, "P")
    image.putpalette([value for grey in range(16) for value in (grey, 2 * grey, 255 - grey)])
    return encode(image, "PNG", **options)


def tiff(pixels, data=None, fields=()):
    """An uncompressed grey TIFF of these values; of other bytes or other fields where they are given."""
    (height, width), kind = pixels.shape, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    data = pixels.tobytes() if data is None else data
    all_fields = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 273: None, 277: 1, 278: height}
    all_fields = sorted((all_fields | {279: len(data), 339: kind} | dict(fields)).items())
    begin = 8 + 2 + 12 * len(all_fields) + 4  # of the data
    listed = [struct.pack("<HHII", key, 4, 1, begin if value is None else value) for key, value in all_fields]
    return struct.pack("<2sHIH", b"II", 42, 8, len(listed)) + b"".join(listed) + bytes(4) + data


def tiled(side, data):
    """A TIFF of 8 x 6 pixels that are the corner of a tile of side x side."""
    return tiff(GREY, data, {259: 8, 322: side, 323: side, 324: None, 325: len(data)})


PALETTE = np.stack([GREY // 16, 2 * (GREY // 16), 255 - GREY // 16], axis=-1)
ODD = {
    "16-bit grey PNG": (encode(Image.fromarray(DEEP), "PNG"), DEEP // 256),
    "16-bit grey TIFF": (encode(Image.fromarray(DEEP), "TIFF"), DEEP // 256),
    "16-bit grey TIFF of another writer": (tiff(DEEP), DEEP // 256),
    "16-bit grey JPEG 2000": (encode(Image.fromarray(DEEP), "JPEG2000"), DEEP // 256),
    "12-bit grey PGM": (b"P5 8 6 4095 " + (DEEP // 16).astype(">u2").tobytes(), DEEP // 256),
    "16-bit grey PGM": (b"P5 8 6 65535 " + DEEP.astype(">u2").tobytes(), DEEP // 256),
    "grey": (encode(Image.fromarray(GREY), "PNG"), GREY),
    "grey with transparency": (encode(Image.fromarray(np.stack([GREY, 255 - GREY], -1), "LA"), "PNG"), GREY),
    "colour with transparency": (encode(Image.fromarray(np.dstack([RGB, GREY]), "RGBA"), "PNG"), RGB),
    "palette": (palette(), PALETTE),
    "palette with transparency": (palette(transparency=bytes(range(16))), PALETTE),
    "black and white": (encode(Image.fromarray(GREY > 127), "PNG"), (GREY > 127) * 255),
    "CMYK": (encode(Image.fromarray(np.dstack([255 - RGB, 0 * GREY]), "CMYK"), "TIFF"), RGB),
    "animation": (encode(Image.fromarray(GREY), "GIF", save_all=True, append_images=[Image.new("L", (8, 6))]), GREY),
    "mirrored by EXIF": (turned(2), RGB[:, ::-1]),
    "upside down by EXIF": (turned(3), RGB[::-1, ::-1]),
    "flipped by EXIF": (turned(4), RGB[::-1]),
    "transposed by EXIF": (turned(5), RGB.transpose(1, 0, 2)),
    "turned right by EXIF": (turned(6), np.rot90(RGB, -1)),
    "turned and flipped by EXIF": (turned(7), RGB[::-1, ::-1].transpose(1, 0, 2)),
    "turned left by EXIF": (turned(8), np.rot90(RGB)),
    "EXIF of no sense": (turned(99), RGB),
    "broken EXIF": (with_broken_exif(), RGB),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_odd_files_decode_to_the_right_pixels(kind, mode):
    content, expected = ODD[kind]
    expected = np.asarray(expected, np.uint8)
    expected = expected if expected.ndim == 3 else np.dstack([expected] * 3)
    found = decode({"bytes": content, "path": "a.jpg"}, mode)  # whatever its name says
    assert found.mode == mode
    assert (np.asarray(found) == np.asarray(Image.fromarray(expected).convert(mode))).all()


def png_of(width, height, pixels=b""):
    """The head of a picture that would take width x height bytes, and the pixels that there are."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


UNKNOWN = "which of its values are black and white is not known .* save it with 8 bits"
BAD = {
    "truncated": (encode(Image.fromarray(RGB), "JPEG")[:-60], "[Tt]runcated"),
    "only a head": (encode(Image.fromarray(RGB), "PNG")[:40], ""),
    "empty": (b"", "the file is empty"),
    "text": (b"<html>404: not found</html>", "no image of a known format"),
    "a bomb": (png_of(30000, 30000), "exceeds limit"),
    "perhaps a bomb": (png_of(10000, 10000), "exceeds limit"),
    "elsewhere": (None, "lies outside the dataset's folder"),
    "whole numbers of 32 bits": (tiff(DEEP.astype(np.int32)), UNKNOWN),
    "whole numbers of 32 bits without sign": (tiff(DEEP.astype(np.uint32)), UNKNOWN),
    "16 bits with sign": (tiff(DEEP.astype(np.int16)), UNKNOWN),
    "broken numbers": (tiff((DEEP / 65535).astype(np.float32)), UNKNOWN),
    "broken numbers in a PFM": (b"Pf\n8 6\n-1.0\n" + (DEEP / 65535).astype(np.float32).tobytes(), UNKNOWN),
    "12 bits, which Pillow does not scale": (tiff(DEEP, bytes(72), {258: 12}), UNKNOWN),
    "16 bits with white as 0": (tiff(DEEP, fields={262: 0}), UNKNOWN),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n", "it is a program"),
    "a huge tile": (tiled(2**15, b""), "its tiles have more than 89,478,485 pixels"),
}


def with_files(count, files):
    """Pictures of which some rows hold other files."""
    images = [{"bytes": encode(picture(i), "PNG"), "path": f"{i}.png"} for i in range(count)]
    for row, content in files.items():
        images[row] = {"bytes": content, "path": f"/home/someone/{row}.png"}
    features = datasets.Features(image=datasets.Image(), label=CLASSES)
    return datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]}, features)


def skipping(folder="unused", **settings):
    return colour(folder, bad_images="skip", **settings)


@pytest.mark.parametrize("kind, workers", [*((kind, 0) for kind in BAD), ("empty", 1)])
def test_a_bad_file_is_refused_with_its_row_name_and_reason(kind, workers):
    content, reason = BAD[kind]
    images = with_files(4, {2: content})
    with pytest.raises(InputError, match=rf"row 2 \(2.png\).*{reason}.*bad_images='skip'") as refusal:
        list(eval_loader(images, colour("unused", batch_size=2, num_workers=workers)))
    assert "\n" not in str(refusal.value)
    assert "home" not in str(refusal.value)


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_skipped_and_listed(kind):
    content, reason = BAD[kind]
    settings = skipping(batch_size=2)
    found = list(eval_loader(with_files(4, {2: content}), settings))
    assert torch.cat([batch.target for batch in found]).tolist() == [0, 1, -1, 1]
    assert (found[1].images[0] == 0).all()
    [bad] = [bad for batch in found for bad in batch.bad]
    assert bad[:2] == (2, "2.png")
    assert re.search(reason, bad.reason)


def peak_mb(action):
    """By how much an action raises the memory of a process, in a child that ends without an answer, and its result."""
    reader, writer = os.pipe()
    if not (child := os.fork()):
        before, result = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, ""
        try:
            result = str(action())
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
        finally:
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            os.write(writer, f"{(after - before) // 1024} {result}".encode())
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        grown, _, result = pipe.read().partition(" ")
    os.waitpid(child, 0)
    return int(grown), result


WIDE, HIGH = png_of(65535, 1, bytes(65536)), encode(Image.new("L", (1, 65500)), "JPEG")
LONG = "resized to a short side of 256, it would have 4,29.*cut it into pieces"
HUGE = {
    "271 bytes, very wide": (WIDE, LONG),
    "very high": (HIGH, LONG),
    "a tile": (tiled(2**15, zlib.compress(bytes(2**24))), "its tiles"),
    "900 million pixels": (png_of(30000, 30000, bytes(2**24)), "exceeds limit"),
}


@pytest.mark.parametrize("kind", HUGE)
def test_an_image_that_would_take_gigabytes_takes_a_few_megabytes_and_is_bad(kind):
    file, reason = HUGE[kind]
    settings = colour("unused", img_size=224, crop_pct=0.875, bad_images="skip")
    grown, result = peak_mb(lambda: list(eval_loader(with_files(1, {0: file}), settings))[0].bad[0].reason)
    assert re.search(reason, result)
    assert grown < 100


def test_a_long_image_is_good_where_it_is_not_resized_to_many_pixels():
    square, panorama = png_of(9, 9, bytes(90)), encode(Image.new("L", (2000, 200)), "PNG")
    for file, settings in [(WIDE, {"img_size": 8}), (panorama, {"img_size": 224}), (square, {"img_size": 10_000})]:
        assert isinstance(read({"bytes": file, "path": ""}, 0, "", colour("unused", **settings), ()), Image.Image)


def test_a_file_longer_than_any_image_is_not_read(tmp_path):
    for name, size in {"a.png": 10**11, "b.png": 0}.items():
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    grown, result = peak_mb(lambda: decode({"bytes": None, "path": str(tmp_path / "a.png")}, "RGB"))
    assert "OSError: the file has 100,000,000,000 bytes" in result and grown < 100
    with pytest.raises(OSError, match="the file is empty"):
        decode({"bytes": None, "path": str(tmp_path / "b.png")}, "RGB")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_that_ends_the_process_or_prints_is_one_that_fails(monkeypatch, workers):
    def leave(image):
        print("leaving")
        raise SystemExit("leaving")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", leave)
    [batch] = eval_loader(with_files(2, {}), skipping(batch_size=2, num_workers=workers))
    assert [bad.reason for bad in batch.bad] == ["leaving", "leaving"]


@pytest.mark.parametrize("streaming", [False, True])
def test_no_worker_outlives_the_error_that_it_met(tmp_path, streaming):
    """They ignore the signal by which Python ends its children when it exits, and it would wait for them for ever."""
    folder = shards(tmp_path / "data", with_files(20, dict.fromkeys(range(20), b"x")), [20])
    settings = replace(streamed(folder, num_workers=1), streaming=streaming)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(InputError, match="no image of a known format"):
            list(train_batches(load_splits(settings), settings).epoch(0))
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_a_row_without_any_file_is_a_bad_image():
    with pytest.raises(OSError, match="there is no file"):
        decode(None, "RGB")
    with pytest.raises(OSError, match="there is no file"):
        decode({"bytes": None, "path": None}, "RGB")


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_in_training_the_next_row_that_can_be_read_stands_in(tmp_path, workers, in_memory):
    damaged, whole = with_files(20, {3: b"", 4: b"x", 19: b""}), with_files(20, {})
    standing_in = list(range(20))
    standing_in[3], standing_in[4], standing_in[19] = 5, 5, 0
    one_split = dict(validation_split="train", test_split="train", allow_overlap=True)
    settings = skipping(batch_size=20, **one_split, num_workers=workers, in_memory=in_memory)
    found, expected = (
        next(
            train_batches(load_splits(replace(settings, dataset=str(save(tmp_path / name, images)))), settings).epoch(0)
        )
        for name, images in {"damaged": damaged, "mended": whole.select(standing_in)}.items()
    )
    assert same([found[:2]], [expected[:2]])
    assert expected.bad == []
    assert {bad[:2] for bad in found.bad} == {(3, "3.png"), (4, "4.png"), (19, "19.png")}


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Where pixels are kept, of few images too."""
    monkeypatch.setattr(kept_pixels, "LEAST", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache/ffvit"


@pytest.fixture
def decoded(monkeypatch):
    """How many images were decoded."""
    rows = []
    read = Images.read
    monkeypatch.setattr(Images, "read", lambda images, row: rows.append(row) or read(images, row))
    return rows


def test_small_images_are_decoded_once_and_kept_for_the_next_run(kept, decoded):
    images, settings = with_files(9, {}), colour("unused", **RESIDENT)
    first = resident.ResidentImages(images, settings, "cpu", range(1, 9, 2))
    again = resident.ResidentImages(images, settings, "cpu", range(1, 9, 2))
    assert decoded == [1, 3, 5, 7]
    assert torch.equal(first.pixels, again.pixels) and first.target.tolist() == again.target.tolist() == [1, 1, 1, 1]
    assert again.pixels.dtype == torch.uint8 and len(again.pixels.unique()) > 100


@pytest.mark.parametrize(
    "images, changed",
    [
        (with_files(5, {4: encode(picture(7), "PNG")}), {}),
        (with_files(5, {}).select([1, 0, 2, 3, 4]), {}),
        (with_files(5, {}), {"img_size": 16}),
        (with_files(5, {}), {"crop_pct": 0.5}),
        (with_files(5, {}), {"in_chans": 1, "mean": [0.5], "std": [0.5], "auto_augment": ""}),
    ],
    ids=["another file", "another order", "another size", "another crop", "grey"],
)
def test_kept_pixels_are_of_the_very_images_and_settings(kept, decoded, images, changed):
    settings = colour("unused", **RESIDENT)
    other = replace(settings, **changed)
    resident.ResidentImages(with_files(5, {}), settings, "cpu")
    found = resident.ResidentImages(images, other, "cpu")
    assert len(decoded) == 10 and len(list(kept.iterdir())) == 2
    assert torch.equal(found.pixels, resident.ResidentImages(images, other, "cpu").pixels)
    assert len(decoded) == 10


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_kept_pixels_are_decoded_again_and_mended(kept, decoded, damage):
    images, settings = with_files(5, {}), colour("unused", **RESIDENT)
    whole = resident.ResidentImages(images, settings, "cpu")
    (file,) = kept.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[:-100] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    found = resident.ResidentImages(images, settings, "cpu")
    assert len(decoded) == 10 and torch.equal(found.pixels, whole.pixels) and file.read_bytes() == content


@pytest.mark.parametrize("case", ["a bad image", "few images", "no folder to write into"])
def test_where_pixels_cannot_be_kept_each_run_decodes_them(kept, decoded, case):
    images = with_files(5, {2: b"x"} if case == "a bad image" else {}).select(range(3 if case == "few images" else 5))
    if case == "no folder to write into":
        kept.parent.write_bytes(b"")
    for _ in range(2):
        found = resident.ResidentImages(images, skipping(**RESIDENT), "cpu")
    assert len(decoded) == 2 * len(images) and not kept.exists()
    assert found.target.tolist() == [0, 1, -1 if case == "a bad image" else 0, 1, 0][: len(images)]


def shards(folder, images, sizes, rows_per_group=4):
    """A folder of parquet files: the images in as many training files as sizes, and the first four as test split."""
    folder.mkdir()
    ends = np.cumsum(sizes)
    for i, (size, end) in enumerate(zip(sizes, ends)):
        table = images.select(range(end - size, end)).flatten_indices().data.table
        file = folder / f"train-{i:05}-of-{len(sizes):05}.parquet"
        pyarrow.parquet.write_table(table, file, row_group_size=rows_per_group)
    images.select(range(4)).to_parquet(folder / "test.parquet")
    return folder


UNEVEN = [17, 5, 11, 3, 1]  # files: one process of two gets 29 rows, the other 8


def streamed(folder, **settings):
    given = (
        dict(in_memory=False, batch_size=8, shuffle_buffer=6, auto_augment="rand-m9-mstd0.5", random_erasing=0.5)
        | settings
    )
    return colour(folder, streaming=True, validation_split="test", allow_overlap=True, **given)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("stream") / "uneven", with_files(37, {}), UNEVEN)


@pytest.mark.parametrize("way", [{}, ON_DEVICE], ids=["image", "batch"])
@pytest.mark.parametrize("workers, parts", [(0, 2), (2, 1)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_goes_on_at_any_update_as_if_never_interrupted(uneven, rank, workers, parts, way):
    settings = streamed(uneven, num_processes=2, num_workers=workers, **way)
    of_process = train_batches(load_splits(settings), settings, parts, rank)
    whole = [batch[:2] for epoch in range(3) for batch in of_process.epoch(epoch)]
    assert len(of_process) == 37 // 8
    assert len(whole) == 3 * len(of_process) * parts  # on both processes, however uneven their files
    for epoch in range(3):
        for first in range(len(of_process)):
            begin, end = parts * (epoch * 4 + first), parts * (epoch + 1) * 4
            random.seed(first), np.random.seed(first), torch.manual_seed(first)
            assert same([batch[:2] for batch in of_process.epoch(epoch, first)], whole[begin:end])


def places(settings, stream=0, streams=1, rank=0, first=0):
    """(number of the file, row in it) of a stream's rows, without end."""
    images = StreamedImages(load_splits(settings).train, settings, 1, rank)
    for group, row, _ in images.rows(stream, streams, first):
        yield images.source.files.index(group.file), group.first_row + row


def take(count, iterator):
    return list(itertools.islice(iterator, count))


def test_a_stream_shows_each_row_once_before_any_again(uneven):
    every = [(file, row) for file, size in enumerate(UNEVEN) for row in range(size)]
    found = take(3 * 37, places(streamed(uneven)))
    passes = [found[i : i + 37] for i in (0, 37, 74)]
    assert [sorted(one) for one in passes] == [every] * 3
    assert len({tuple(one) for one in [*passes, every]}) == 4  # each time in another order


@pytest.mark.parametrize("streams", [2, 3, 7])  # there are three row groups
def test_the_workers_of_a_process_divide_the_rows_of_its_files(uneven, streams):
    settings = streamed(uneven, num_processes=2)
    mine = {(file, row) for file in (1, 3) for row in range(UNEVEN[file])}
    seen = Counter(place for stream in range(streams) for place in take(400, places(settings, stream, streams, rank=1)))
    assert set(seen) == mine
    assert min(seen.values()) > 0.7 * max(seen.values())


@pytest.mark.parametrize("first", [0, 7, 36, 37, 75])
def test_a_stream_that_goes_on_reads_only_the_window_it_is_in(uneven, monkeypatch, first):
    settings = streamed(uneven)
    window_begins = first // 37 * 37 + first % 37 // 6 * 6  # windows of 6 rows, anew with each pass of 37
    whole = take(3 * 37, places(settings))
    images = StreamedImages(load_splits(settings).train, settings, 1, 0)
    groups, read = [], ParquetStream.read
    monkeypatch.setattr(ParquetStream, "read", lambda self, group: groups.append(group) or read(self, group))
    group, row, _ = next(images.rows(0, 1, first))
    assert (images.source.files.index(group.file), group.first_row + row) == whole[first]
    window = whole[window_begins : min(window_begins + 6, first // 37 * 37 + 37)]
    of_row = {
        (images.source.files.index(group.file), group.first_row + row): group
        for group in images.groups
        for row in range(group.num_rows)
    }
    assert set(groups) == {of_row[place] for place in window}


def test_bad_images_of_a_stream_are_refused_or_skipped_alike_however_it_is_interrupted(tmp_path):
    folder = shards(tmp_path / "data", with_files(37, {3: b"", 18: b"x", 19: b"x"}), UNEVEN)
    settings = streamed(folder, bad_images="skip", num_workers=2)
    images = train_batches(load_splits(settings), settings)
    whole = [batch for epoch in range(3) for batch in images.epoch(epoch)]
    for update in range(len(whole)):
        epoch, first = divmod(update, len(images))
        found = next(images.epoch(epoch, first))
        assert same([found[:2]], [whole[update][:2]])
        assert found.bad == whole[update].bad
    bad = {image for batch in whole for image in batch.bad}
    first, second = "train-00000-of-00005.parquet", "train-00001-of-00005.parquet"
    assert {image[:2] for image in bad} == {(3, first), (1, second), (2, second)}
    assert all(batch.images.flatten(1).std(dim=1).min() > 0 for batch in whole)
    refusing = streamed(folder, num_workers=0)
    with pytest.raises(InputError, match=r"row \d+ \(train-0000\d-of-00005.parquet\).*bad_images='skip'"):
        for _ in range(3):
            list(train_batches(load_splits(refusing), refusing).epoch(0))


@pytest.mark.parametrize("way", [dict(streaming=False), {}, dict(streaming=False, **RESIDENT)])
def test_a_dataset_without_one_whole_image_is_refused(tmp_path, way):
    folder = shards(tmp_path / "data", with_files(20, dict.fromkeys(range(20), b"x")), [20])
    settings = replace(streamed(folder, bad_images="skip"), **way)
    with pytest.raises(InputError, match="20 training images one after the other cannot be read"):
        list(train_batches(load_splits(settings), settings).epoch(0))


def test_only_the_files_of_the_splits_in_use_are_read(tmp_path, monkeypatch):
    folder = shards(tmp_path / "data", with_files(37, {}), UNEVEN)
    (folder / "validation.parquet").write_bytes(b"damaged")
    groups, read = [], ParquetStream.read
    monkeypatch.setattr(ParquetStream, "read", lambda self, group: groups.append(group) or read(self, group))
    splits = load_splits(streamed(folder))
    assert splits.sizes == {"train": 37, "validation": 4, "test": 4}
    assert {group.file for group in groups} <= set(splits.train.files)
    assert sum(group.num_rows for group in groups) <= 64 + 4  # of the training images those in the fingerprint


def test_the_fingerprint_of_a_stream_is_of_its_content(tmp_path):
    folders = [
        shards(tmp_path / name, with_files(37, files), UNEVEN) for name, files in zip("abc", ({}, {}, {5: b"x"}))
    ]
    one, again, other = (load_splits(streamed(folder)).fingerprint for folder in folders)
    assert one == again != other


def unnamed(images):
    return images.cast_column("label", NUMBER)


@pytest.mark.parametrize(
    "images, settings, cure",
    [
        (lambda: with_files(37, {}), {"num_processes": 8}, "8 processes cannot share 5 parquet files: save it in more"),
        (lambda: unnamed(with_files(37, {})), {}, "names no classes.*class_encode_column"),
        (lambda: with_files(37, {}), {"train_split": "training"}, "no split 'training'.*set train_split"),
        (lambda: with_files(37, {}), {"image_column": "img"}, "no column 'img'"),
        (lambda: with_files(37, {}), {"batch_size": 40}, "37 training images do not fill one batch of 40"),
    ],
)
def test_a_stream_that_cannot_be_used_is_refused_with_the_cure(tmp_path, images, settings, cure):
    settings = streamed(shards(tmp_path / "data", images(), UNEVEN), **settings)
    with pytest.raises(InputError, match=cure):
        train_batches(load_splits(settings), settings)


@pytest.mark.parametrize(
    "place, cure",
    [
        pytest.param(
            slice(4, 300), r"train-00002\S+ cannot be opened: .*put a whole one in its place", id="of its images"
        ),
        pytest.param(slice(-300, -8), "cannot be opened: .*or a local folder", id="of its table of contents"),
    ],
)
def test_a_damaged_parquet_file_is_refused(tmp_path, place, cure):
    folder = shards(tmp_path / "data", with_files(37, {}), UNEVEN)
    content = bytearray((file := sorted(folder.glob("train-*"))[2]).read_bytes())
    content[place] = b"\xff" * len(content[place])
    file.write_bytes(content)
    settings = streamed(folder)
    with pytest.raises(InputError, match=cure):
        list(train_batches(load_splits(settings), settings).epoch(0))


def test_only_parquet_is_streamed(tmp_path):
    for dataset in (save(tmp_path / "data", split(20)), "digits"):
        with pytest.raises(InputError, match="not made of parquet files.*to_parquet.*streaming=false"):
            load_splits(streamed(dataset))


def test_a_stream_of_addresses_is_that_of_files_and_the_hubs_count_of_rows_is_trusted(uneven):
    settings = streamed(uneven)
    here = load_splits(settings).train
    memory = fsspec.filesystem("memory")
    memory.put([str(file) for file in here.files], [f"/{i}.parquet" for i in range(5)])
    counted = datasets.DatasetInfo(splits=datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=1000)}))
    there = ParquetStream([f"memory://{i}.parquet" for i in range(5)], counted, settings)
    assert list(there) == list(here)
    assert there.file_sizes() == here.file_sizes()
    assert (len(here), len(there)) == (37, 1000)


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_of_samples_leave_out_what_cannot_be_read(tmp_path, streaming):
    folder = shards(tmp_path / "data", with_files(37, {1: b"x"}), UNEVEN)
    settings = replace(streamed(folder, bad_images="skip"), streaming=streaming)
    figure = samples.figure(load_splits(settings), settings, count=4)
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes[:4]]
    assert [image.tobytes() for image in shown] == [np.asarray(picture(i)).tobytes() for i in (0, 2, 3, 4)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_label_outside_the_classes_is_refused(tmp_path, workers):
    images = with_files(8, {}).cast_column("label", NUMBER).to_dict()
    images["label"][5] = -1
    images = datasets.Dataset.from_dict(images, datasets.Features(image=datasets.Image(), label=CLASSES))
    settings = streamed(shards(tmp_path / "data", images, [8]), num_workers=workers)
    with pytest.raises(InputError, match=r"^train-00000-of-00001.parquet, row 5: label -1 is outside the 2 classes$"):
        for epoch in range(2):
            list(train_batches(load_splits(settings), settings).epoch(epoch))


def test_real_imagenet_files_are_the_same_images_from_a_folder_from_parquet_and_from_a_stream(tmp_path, shared):
    source = shared / "data" / "imagenet-sample"
    own = dict(dataset=str(source), test_split="validation", validation_split="validation", num_workers=0)
    settings = load_experiment("imagenet").config("ff_tiny", **own)
    plain = load_splits(settings)
    images = plain.train.cast_column("image", datasets.Image(decode=False))
    shards(tmp_path / "stream", images, [70, 30, 50], rows_per_group=16)
    for i, row in enumerate(images):
        folder = tmp_path / "folder" / "train" / plain.classes[row["label"]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.JPEG").write_bytes(row["image"]["bytes"])
    stream = replace(settings, dataset=str(tmp_path / "stream"), streaming=True, repeated_augmentation=0)
    stream = load_splits(replace(stream, test_split="test", validation_split="test"))
    folder = replace(settings, dataset=str(tmp_path / "folder"), test_split="train", validation_split="train")
    found = [
        sorted((splits.classes[label], image.tobytes()) for image, label in first_images(splits.train, config, 150))
        for splits, config in ((plain, settings), (load_splits(folder), folder), (stream, settings))
    ]
    assert len(stream.train) == len(found[0]) == 150
    assert found[0] == found[1] == found[2]
