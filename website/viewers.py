"""A page to look inside trained models with a hand on it: the weights over patches, and what attends to what."""

import html
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ffvit.evidence.escape import markdown
from ffvit.evidence.notebook_metadata import load_notebook
from ffvit.settings.experiment import Experiment
from ffvit.system.files import NOTEBOOKS, RESULTS, ROOT, RUNS
from website.chapters import Chapter
from website.places import link

DATA = ROOT / "build/look"
CHAPTER = load_notebook(NOTEBOOKS / "18_patch_mixer.ipynb")  # which shows the same as pictures
PAGE = "look/index.md"
NO_IMAGES = "The images that attention is averaged over were not on this machine when this was made; the weights were."


def refresh(experiments: list[Experiment]) -> None:
    """Read weights again where they are newer than what was read: this machine's, and those that came with the project.

    What fails is told, and left out.
    """
    for experiment in (e for e in experiments if CHAPTER.fits(e)):
        name, file = experiment.name, DATA / f"{experiment.name}.json"
        weights = [*RUNS.glob(f"{name}/*/last.safetensors"), *RESULTS.glob(f"{name}/weights/*.safetensors")]
        if not weights or (file.exists() and file.stat().st_mtime > max(w.stat().st_mtime for w in weights)):
            continue
        command = [sys.executable, "-m", "website.look", name, str(file)]
        offline = os.environ | {"HF_HUB_OFFLINE": "1"}  # a website is no reason to fetch a data set
        done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True)  # noqa: S603  # this Python
        print(done.stdout, end="")
        if done.returncode:
            print(f"no viewer of {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)


def pages(experiments: list[Experiment], story: list[Chapter]) -> Iterator[tuple[str, str]]:
    text = (
        "# Look inside\n\nTwo ways to mix patches, of models trained here or kept with the project. Choose a layer and a hidden unit, and see "
        "which patches it takes from and gives to; or choose a head of attention, and point at a patch to see what it attends "
        "to. Blue is above zero, orange below, each map on its own scale.\n"
    )
    fitting = [e for e in experiments if CHAPTER.fits(e)]
    for experiment in sorted(fitting, key=lambda e: not (DATA / f"{e.name}.json").exists()):
        text += f"\n## {markdown(experiment.title)}\n\n"
        chapter = next((c for c in story if c.notebook.name == CHAPTER.name and c.experiment == experiment), None)
        if chapter:
            text += f"As pictures, with what they say: [{CHAPTER.name}]({link(PAGE, chapter.page)}).\n\n"
        file = DATA / f"{experiment.name}.json"
        if file.exists():
            text += _viewer(experiment, file)
        else:
            text += (
                f"The weights are not here: `make reproduce EXPERIMENT={experiment.name}` trains the models, and "
                "`make site` then makes this viewer.\n"
            )
    yield PAGE, text


def _viewer(experiment: Experiment, file: Path) -> str:
    text = file.read_text(encoding="utf-8")
    data, name = text.replace("<", "\\u003c"), html.escape(experiment.name)
    images = "" if "attention" in json.loads(text) else f"{NO_IMAGES}\n\n"
    return (
        f"{images}"
        f'```{{raw}} html\n<div class="viewer" data-name="{name}"><script type="application/json">{data}</script>'
        "<p>The viewer needs JavaScript.</p></div>\n```\n"
    )
