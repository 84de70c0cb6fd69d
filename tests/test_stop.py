"""A signal that asks a run to end comes in the middle of anything: it must not be taken for damaged input, nor get lost."""

import contextlib
import os
import pty
import signal
import subprocess
import sys

import datasets
import numpy as np
import PIL.ImageFile
import pytest
from PIL import Image

from ffvit.data.batches import eval_loader, train_batches
from ffvit.data.splits import load_splits
from ffvit.launching.children import Children
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import Stopped
from ffvit.system.lifetime import Stop

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def hangup_not_ignored():
    """As in a terminal, also where the tests were started by nohup, which a run respects."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same images in every kind of folder, others in each split."""
    root = tmp_path_factory.mktemp("images")
    parts = {}
    for part in ("train", "test"):
        rows = {"image": [Image.effect_noise((8, 8), 50) for _ in range(20)], "label": [0, 1] * 10}
        parts[part] = datasets.Dataset.from_dict(rows, datasets.Features(image=datasets.Image(), label=CLASSES))
        for i, image in enumerate(rows["image"]):
            file = root / "folder" / part / CLASSES.names[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        (root / "parquet").mkdir(exist_ok=True)
        parts[part].to_parquet(root / f"parquet/{part}.parquet")
    datasets.DatasetDict(parts).save_to_disk(root / "disk")
    return root


def config(folder, **settings):
    """Of a run that goes on without images that cannot be read."""
    settings = dict(in_memory=False, batch_size=4, bad_images="skip", interpolation="bilinear") | settings
    return load_experiment("digits").config(
        "ff",
        dataset=str(folder),
        **{"epochs": 1, "warmup_epochs": 0, "augment": "image", "interpolation": "bicubic", **settings},
    )


STREAM = dict(streaming=True, validation_split="test", allow_overlap=True)


@pytest.mark.parametrize("nth", [*range(1, 10), 16, 19])
@pytest.mark.parametrize(
    "way", [{}, dict(in_memory=True), dict(in_memory=True, augment="batch"), STREAM, dict(augment="batch")]
)
@pytest.mark.parametrize("use", ["train", "evaluate"])
def test_a_stop_while_an_image_is_decoded_is_no_bad_image(folders, monkeypatch, use, way, nth):
    settings = config(folders / "parquet", **way)
    decoded, load = [], PIL.ImageFile.ImageFile.load

    def stopped_while_loading(image):
        decoded.append(image)
        if len(decoded) == nth:
            signal.raise_signal(signal.SIGTERM)
        return load(image)

    splits = load_splits(settings)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", stopped_while_loading)
    with pytest.raises(Stopped, match="SIGTERM"), Stop() as stop, stop.at_once(Stopped):
        if use == "evaluate":
            list(eval_loader(splits.test, settings))
        else:
            batches = train_batches(splits, settings)
            for epoch in range(2):
                list(batches.epoch(epoch))
    assert len(decoded) == nth


@contextlib.contextmanager
def at_call(number, do):
    """Within this context, `do` is called when Python enters a function for the number-th time."""
    calls = [0]

    def count(frame, event, argument):
        if event == "call":
            calls[0] += 1
            if calls[0] == number:
                do()

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("share", np.linspace(0.02, 0.95, 12).round(2))
@pytest.mark.parametrize("kind", ["folder", "parquet", "disk", "stream"])
def test_a_stop_anywhere_in_opening_a_dataset_is_no_damaged_dataset(folders, tmp_path, monkeypatch, kind, share):
    settings = config(folders / kind) if kind != "stream" else config(folders / "parquet", **STREAM)

    def open_anew(cache):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / cache)
        load_splits(settings)

    open_anew("warm")
    with at_call(0, None) as calls:
        open_anew("count")
    asked = at_call(int(share * calls[0]), lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGTERM"), Stop() as stop, stop.at_once(Stopped), asked:
        open_anew("stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_what_asks_a_run_to_end_is_noted_and_kills_nothing(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        signal.raise_signal(number)
        assert stop.asked == number
        stop.acknowledge()
    assert signal.getsignal(number) == before


def test_nohup_keeps_a_run_from_ending_with_its_terminal(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop, Children().passing_signals():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


PRINTING = """
import os, sys, time
from ffvit.system.lifetime import Stop
with Stop() as stop:
    print("ready", flush=True)
    while not stop.asked:
        time.sleep(0.01)
    stop.acknowledge()
    print("to nowhere", flush=True)
    print("nor here", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write("saved")
"""


def test_a_terminal_that_closes_keeps_nothing_from_being_saved(tmp_path):
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", PRINTING, str(tmp_path / "file")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "file").read_text() == "saved"


SLOW = """
import os, signal, time
from ffvit.system.lifetime import Stop
with Stop() as stop:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(4)  # a checkpoint is written
    stop.acknowledge()
    os._exit(75)
"""


def test_a_run_by_itself_is_given_the_time_that_saving_takes_and_one_of_several_is_ended():
    runs = [
        subprocess.Popen([sys.executable, "-c", SLOW], env=os.environ | {"WORLD_SIZE": world}) for world in ("1", "2")
    ]
    assert [run.wait() for run in runs] == [75, 1]


def test_a_stop_that_a_library_swallows_comes_at_the_end():
    swallowing = contextlib.suppress(BaseException)  # as datasets does where it hashes
    with pytest.raises(Stopped, match="SIGUSR1"), Stop() as stop, stop.at_once(Stopped), swallowing:
        signal.raise_signal(signal.SIGUSR1)
