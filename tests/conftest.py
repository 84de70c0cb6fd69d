import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported

import datasets
import matplotlib
import pytest
import torch

from ffvit.settings.experiment import load_experiment
from ffvit.system.files import ROOT

matplotlib.use("Agg")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session", autouse=True)
def one_thread_and_no_traces_at_home(tmp_path_factory):
    torch.set_num_threads(1)
    cache = tmp_path_factory.mktemp("huggingface")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setenv("HF_DATASETS_CACHE", str(cache))  # for processes that a test starts
        datasets.disable_progress_bars()
        yield


@pytest.fixture(scope="session")
def shared():
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared (parity checkpoints and real images), which is not part of the project")
    return folder


@pytest.fixture
def digits_config():
    return load_experiment("digits").config("ff", epochs=1, warmup_epochs=0, augment="image", interpolation="bicubic")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
