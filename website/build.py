"""`python -m website.build`: put the pages together in build/site, and let Sphinx make site/ of them, without a network."""

import os
import re
import shutil
import sys
import time
from pathlib import Path

from filelock import FileLock

from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.system.errors import InputError
from ffvit.system.files import EXPERIMENTS, ROOT
from website import chapters, current, front, ledger_pages, record_pages, sources, viewers
from website.current import SITE

SOURCE, DOCTREES, LOCK = (ROOT / "build" / name for name in ("site", "doctrees", "site.lock"))
PICTURE = re.compile(r"/((?:benchmarks|figures|results)/[^\s)\\]+\.(?:png|svg))")
BUILDERS = min(4, os.cpu_count() or 1)


def load_experiments() -> list[Experiment]:
    return [load_experiment(file.stem) for file in sorted(EXPERIMENTS.glob("*.toml"), key=lambda f: f.stem)]


def pages() -> dict[str, str]:
    """Content of every page, by its name. Raises InputError for an experiment or record that is damaged."""
    experiments = load_experiments()
    runs = {experiment.name: record_pages.load_runs(experiment) for experiment in experiments}
    story = chapters.load_chapters(experiments)
    found = dict(front.pages(runs, story))
    found |= dict(chapters.pages(story))
    found |= dict(ledger_pages.pages(experiments, runs, story))
    found |= dict(record_pages.pages(experiments, runs, story))
    found |= dict(viewers.pages(experiments, story))
    found |= dict(sources.modules())
    return found | dict(sources.files(found))


def put(pages: dict[str, str], source: Path) -> None:
    """Into Sphinx's source folder, with the pictures that they show. What is the same stays, so that it is not read again."""
    for file in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        if str(file.relative_to(source)) not in pages:
            file.unlink()
    for name, text in pages.items():
        file = source / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for name in {name for text in pages.values() for name in PICTURE.findall(text)}:
        ours, theirs = source / name, ROOT / name
        if not ours.is_file() or ours.read_bytes() != theirs.read_bytes():
            ours.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(theirs, ours)


def main() -> int:
    try:
        from sphinx.cmd.build import main as sphinx
    except ImportError:
        print("error: no site without Sphinx: make setup installs what requirements.lock names", file=sys.stderr)
        return 2
    LOCK.parent.mkdir(exist_ok=True)
    with FileLock(LOCK):  # a pipeline that ends meanwhile waits for its turn
        began, made_of = time.time(), current.made_of()
        if current.is_current():
            print("nothing has changed: open site/index.html")
            return 0
        try:
            viewers.refresh(load_experiments())
            made = pages()
        except InputError as error:
            print(f"error: no site: {error}", file=sys.stderr)
            return 2
        put(made, SOURCE)
        current.MARK.unlink(missing_ok=True)  # until all of it is there
        folders = [ROOT / "website", "-d", DOCTREES, SOURCE, SITE]
        arguments = ["-q", "-j", str(BUILDERS), "-c", *map(str, folders)]
        if code := sphinx(arguments):
            return code
        current.mark(made_of)
    print(f"{len(made)} pages in {time.time() - began:.0f} s: open site/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
