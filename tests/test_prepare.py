"""Photographs made smaller once: the same bytes however it was interrupted, nothing written over, what is damaged refused."""

import io
import json
import multiprocessing
import os
import signal
import time

import datasets
import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image

from ffvit.__main__ import main as ffvit
from ffvit.data import prepare, shards
from ffvit.data.batches import train_batches
from ffvit.data.images import decode
from ffvit.data.splits import load_splits
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError

CLASSES = datasets.ClassLabel(names=["cat", "dog"])
SMALL = (20, 30)  # pixels of the second image, which is smaller than asked


def photograph(number, size=(60, 90)):
    rough = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def source(folder, count=21, bad=()):
    """A folder of parquet files, its training and its test images."""
    features = datasets.Features(photo=datasets.Image(), label=CLASSES)
    contents = [encoded(photograph(i, SMALL if i == 1 else (60, 90))) for i in range(count + 6)]
    rows = [
        {"photo": {"bytes": b"x" if i in bad else c, "path": f"{i}.png"}, "label": i % 2}
        for i, c in enumerate(contents)
    ]
    folder.mkdir()
    for name, part in (("train", rows[:count]), ("test", rows[count:])):
        datasets.Dataset.from_list(part, features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def command(dataset, folder, *more):
    return ffvit(["prepare", str(dataset), "--to", str(folder), "--short-side", "32", "--jobs", "2", *more])


@pytest.fixture(autouse=True)
def many_shards(monkeypatch):
    monkeypatch.setattr(shards, "ROWS", 4)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return source(tmp_path_factory.mktemp("photographs") / "there")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config(folder, **settings):
    given = dict(epochs=1, warmup_epochs=0, in_chans=3, mean=[0.5] * 3, std=[0.5] * 3, in_memory=False, batch_size=4)
    more = dict(augment="batch", interpolation="bicubic", img_size=24, dataset=str(folder))
    return load_experiment("digits").config("ff", **given | more | settings)


def test_images_come_out_smaller_with_their_labels_and_small_ones_as_they_were(photographs, tmp_path, capsys):
    assert command(photographs, tmp_path / "small") == 0
    told = capsys.readouterr().out
    assert "27 images take about 0.0 MB and 0:00:0" in told and "with 2 processes" in told
    assert "27 images in 8 shards" in told and f"dataset={tmp_path / 'small'}" in told
    read = datasets.load_dataset(str(tmp_path / "small")).cast_column("image", datasets.Image(decode=False))
    assert {name: len(split) for name, split in read.items()} == {"train": 21, "test": 6}
    assert read["train"].features["label"].names == ["cat", "dog"]
    for i, row in enumerate(read["train"]):
        assert row["label"] == i % 2
        image = decode(row["image"], None)
        if i == 1:
            assert row["image"]["bytes"] == encoded(photograph(1, SMALL)) and row["image"]["path"] == "1.png"
            continue
        assert image.format == "JPEG" and image.size == (32, 48) and row["image"]["path"] == f"{i}.jpg"
        smaller = photograph(i).resize((32, 48), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(image, float) - np.asarray(smaller, float)).mean() < 4


@pytest.mark.parametrize("streaming", [False, True])
def test_training_reads_them_in_the_ordinary_way(photographs, tmp_path, streaming):
    command(photographs, tmp_path / "small")
    settings = config(
        tmp_path / "small", **dict(streaming=True, validation_split="test", allow_overlap=True) if streaming else {}
    )
    splits = load_splits(settings)
    assert splits.classes == ["cat", "dog"] and len(splits.test) == 6
    images = [batch.images for batch in train_batches(splits, settings).epoch(0)]
    assert len(images) == len(splits.train) // 4 and images[0].shape == (4, 3, 24, 24)


def killed_after(shards_made, photographs, folder):
    """Prepare in a process that is killed, with its own, once so many shards are in the index."""

    def slowly():
        make = prepare.Preparation.shard
        prepare.Preparation.shard = lambda *given: (time.sleep(0.3), make(*given))[1]
        command(photographs, folder)

    process = multiprocessing.get_context("fork").Process(target=slowly)
    process.start()
    made = 0
    while made < shards_made:
        time.sleep(0.02)
        if (folder / "index.json").exists():
            made = len(json.loads((folder / "index.json").read_text())["shards"])
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not psutil.wait_procs(children, timeout=20)[1]


def test_killed_half_way_and_gone_on_with_it_is_the_same_to_the_byte(photographs, tmp_path, capfd):
    command(photographs, tmp_path / "whole")
    killed_after(3, photographs, tmp_path / "pieces")
    with pytest.raises(
        InputError, match=r"interrupted: \d of 8 shards are there; start the same `ffvit prepare` again"
    ):
        load_splits(config(tmp_path / "pieces"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces/data").glob("*.parquet")}
    listed = json.loads((tmp_path / "pieces/index.json").read_text())["shards"]
    (tmp_path / "pieces/data/.train-00004-of-00006.parquet.half").write_bytes(b"half")
    assert command(photographs, tmp_path / "pieces") == 0
    assert f"{len(listed)} of 8 shards are there" in capfd.readouterr().out
    assert files(tmp_path / "pieces") == files(tmp_path / "whole")
    again = [path for path, ns in before.items() if path.stat().st_mtime_ns != ns]
    assert not {str(path.relative_to(tmp_path / "pieces")) for path in again} & set(listed)


def test_the_number_of_processes_changes_no_byte(photographs, tmp_path):
    command(photographs, tmp_path / "two")
    command(photographs, tmp_path / "one", "--jobs", "1")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_what_is_there_is_compared_with_its_checksums_and_not_made_again(photographs, tmp_path, capsys):
    command(photographs, tmp_path / "small")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert command(photographs, tmp_path / "small") == 0
    assert "is whole: each of its 8 shards has its checksum" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "shorter":
        content = content[:-1]
    else:
        content[len(content) // 3] ^= 0xFF
    file.write_bytes(content)


def test_a_damaged_shard_is_refused_with_file_and_cure_and_the_cure_helps(photographs, tmp_path, capsys):
    folder = tmp_path / "small"
    command(photographs, folder)
    whole, shard = files(folder), folder / "data/train-00002-of-00006.parquet"
    damage(shard, "shorter")
    with pytest.raises(InputError, match=r"train-00002-of-00006.parquet is damaged, of .* bytes.*delete that file"):
        load_splits(config(folder))
    shard.write_bytes(whole["data/train-00002-of-00006.parquet"])
    damage(shard, "flipped")
    assert command(photographs, folder) == 2
    assert "train-00002-of-00006.parquet is damaged, by its checksum: delete that file" in capsys.readouterr().err
    streamed = config(folder, streaming=True, validation_split="test", allow_overlap=True)
    with pytest.raises(InputError, match=r"train-00002-of-00006.parquet' cannot be opened: .*checksum"):
        list(train_batches(load_splits(streamed), streamed).epoch(0))
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00002-of-00006.parquet is missing: start the same"):
        load_splits(config(folder))
    assert command(photographs, folder) == 0
    assert files(folder) == whole


def test_a_bad_file_is_named_and_refused_or_left_out(tmp_path, capsys):
    there = source(tmp_path / "there", bad=(5, 22))
    assert command(there, tmp_path / "small") == 2
    said = capsys.readouterr().err
    assert ("row 5 (5.png) holds no" in said or "row 1 (22.png) holds no" in said) and "bad_images='skip'" in said
    assert command(there, tmp_path / "small", "bad_images=skip") == 0  # goes on
    told = capsys.readouterr().out
    assert "left out: row 5 (5.png): it is no image of a known format" in told and "left out: row 1 (22.png)" in told
    assert "25 images in 8 shards" in told
    assert load_splits(config(tmp_path / "small", validation_fraction=0.3)).sizes["test"] == 5


def test_what_lies_in_the_folder_is_never_written_over(photographs, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("mine")
    assert command(photographs, tmp_path / "mine") == 2
    assert "holds something else, which is not written over: give an empty or a new folder" in capsys.readouterr().err
    assert files(tmp_path / "mine") == {"letter.txt": b"mine"}
    assert command(photographs, tmp_path / "mine/letter.txt") == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    command(photographs, tmp_path / "small")
    before = files(tmp_path / "small")
    for more, what in (
        (["--quality", "70"], "quality: 90 there, 70 asked"),
        (["--split", "train"], "prepared otherwise"),
    ):
        assert command(photographs, tmp_path / "small", *more) == 2
        assert what in capsys.readouterr().err
    assert files(tmp_path / "small") == before


def test_two_at_once_are_refused(photographs, tmp_path, capsys):
    (tmp_path / "small").mkdir()
    with FileLock(tmp_path / "small/.preparing"):
        assert command(photographs, tmp_path / "small") == 2
    assert "is being prepared by another process: wait for it, or give another --to" in capsys.readouterr().err


def test_no_room_is_told_before_anything_is_made(photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert command(photographs, tmp_path / "small") == 2
    assert "0.0 MB are free: make room, or give a --to elsewhere" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    "more, message",
    [
        (["--short-side", "8"], "--short-side must be from 16"),
        (["--quality", "0"], "--quality must be from 1 to 100"),
        (["--jobs", "0"], "--jobs must be 1 or more"),
        (["epochs=3"], "'epochs' is nothing that ffvit prepare takes; known: allow_overlap, bad_images"),
        (["--split", "dev"], "has no split 'dev'"),
        (["image_column=picture"], "has no column 'picture'"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_cure(photographs, tmp_path, capsys, more, message):
    assert ffvit(["prepare", str(photographs), "--to", str(tmp_path / "small"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_a_class_folder_and_an_index_of_others_are_read_as_ever(tmp_path):
    for name, first in (("cat", 0), ("dog", 10)):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for i in range(first, first + 5):
            photograph(i).save(tmp_path / "folder" / name / f"{i}.png")
    assert command(tmp_path / "folder", tmp_path / "small") == 0
    assert load_splits(config(tmp_path / "small", test_fraction=0.2)).classes == ["cat", "dog"]
    there = source(tmp_path / "there")
    (there / "index.json").write_text("[]")
    assert load_splits(config(there)).sizes["test"] == 6
