"""Notebooks as chapters: a page for each experiment that has one, as executed here, or with the figures that came along."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ffvit.evidence.escape import markdown
from ffvit.evidence.notebook_metadata import Notebook, load_notebooks
from ffvit.settings.experiment import Experiment
from ffvit.system.files import FIGURES, RUNS
from website.cells import shown
from website.places import link, page_of, relink

HEADING = re.compile(r"^#+ (.+)$", re.M)


@dataclass(frozen=True)
class Chapter:
    notebook: Notebook
    experiment: Experiment | None  # None: it depends on none, or was run for none
    executed: Path | None  # None: shown with the tables and figures that are there

    @property
    def page(self) -> str:
        return f"chapters/{self.notebook.name}/{self.experiment.name if self.experiment else 'index'}.ipynb"

    @property
    def files(self) -> list[Path]:
        """The tables and figures that it makes, where they are there."""
        return [file for name in self.notebook.files(self.experiment) if (file := FIGURES / name).is_file()]


def load_chapters(experiments: list[Experiment]) -> list[Chapter]:
    """In reading order; of a notebook, in the order of the experiments."""
    return [chapter for notebook in load_notebooks() for chapter in _of(notebook, experiments)]


def _of(notebook: Notebook, experiments: list[Experiment]) -> list[Chapter]:
    if not notebook.needs:
        return [Chapter(notebook, None, _executed(notebook, "*"))]
    chapters = [Chapter(notebook, e, _executed(notebook, e.name)) for e in experiments if notebook.fits(e)]
    shown = [c for c in chapters if c.executed or any((FIGURES / f).is_file() for f in notebook.files(c.experiment))]
    return shown or [Chapter(notebook, None, None)]


def _executed(notebook: Notebook, experiment: str) -> Path | None:
    """As the pipeline names it: of an experiment, of a model, or of a run. Of several the first; of any experiment, the newest."""
    name = notebook.name
    for pattern in (f"{name}.ipynb", f"{name}-*.ipynb", f"*/{name}.ipynb"):
        if found := sorted(RUNS.glob(f"{experiment}/{pattern}")):
            return max(found, key=lambda file: file.stat().st_mtime) if experiment == "*" else found[0]
    return None


def place(chapters: list[Chapter], experiment: Experiment | None, path: str) -> str | None:
    """The chapter of a notebook, or of a file in figures/; for the same experiment where there is one."""
    of = [c for c in chapters if f"notebooks/{c.notebook.path.name}" == path]
    of += [c for c in chapters if path in [f"figures/{file}" for file in c.notebook.files(c.experiment)]]
    return next((c.page for c in of if c.experiment == experiment), of[0].page if of else None)


def pages(chapters: list[Chapter]) -> Iterator[tuple[str, str]]:
    """Name and content of the chapters, and of their contents."""
    names = list(dict.fromkeys(c.notebook.name for c in chapters))
    yield "chapters/index.md", _contents(chapters, names)
    for chapter in chapters:
        content = json.loads((chapter.executed or chapter.notebook.path).read_text(encoding="utf-8"))
        cells, heading = [], ""
        for cell in content["cells"]:
            if cell["cell_type"] == "markdown" and (found := HEADING.findall("".join(cell["source"]))):
                heading = f"{chapter.notebook.question} {found[-1]}"
            cells.append(shown(cell, chapter.files, _origin(content) if chapter.executed else "", heading))
        for cell in cells:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink(
                    cell["source"], "notebooks", chapter.page, partial(place, chapters, chapter.experiment)
                )
        title, _, rest = cells[0]["source"].partition("\n")
        bar = _bar(chapters, names, chapter)
        cells[0]["source"] = f"{title}\n\n{bar}\n{_said(chapters, chapter, content)}\n{rest}"
        cells.append({"cell_type": "markdown", "id": "onwards", "metadata": {}, "source": bar})
        about: dict[str, Any] = {"kernelspec": content["metadata"]["kernelspec"], "language_info": {"name": "python"}}
        if chapter not in _firsts(chapters):
            about["orphan"] = True  # the table of contents has each notebook once
        page = {"nbformat": 4, "nbformat_minor": 5, "metadata": about, "cells": cells}
        yield chapter.page, json.dumps(page, indent=1)


def _origin(content: dict) -> str:
    """Of what an executed notebook draws and no file has: when, and with which parameters."""
    ran = content["metadata"].get("papermill", {})
    given = [f"{name} = {value}" for name, value in ran.get("parameters", {}).items()]
    on = f" on {ran['end_time'][:10]}" if ran.get("end_time") else ""
    return f"Drawn as the notebook was executed{on}, with {', '.join(given) or 'its own parameters'}."


def _contents(chapters: list[Chapter], names: list[str]) -> str:
    rows = []
    for name in names:
        mine = [c for c in chapters if c.notebook.name == name]
        shown = " · ".join(f"[{_shown_for(c)}]({link('chapters/index.md', c.page)})" for c in mine)
        question = f"[{name}]({link('chapters/index.md', mine[0].page)})"
        rows.append(f"| {question} | {markdown(mine[0].notebook.question)} | {shown} |\n")
    listed = "".join(f"{link('chapters/index.md', first.page).removesuffix('.ipynb')}\n" for first in _firsts(chapters))
    return (
        "# Chapters\n\nThe notebooks in reading order, each for every experiment that it was run for.\n\n"
        f"| chapter | question | shown for |\n| --- | --- | --- |\n{''.join(rows)}\n"
        f"```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{listed}```\n"
    )


def _shown_for(chapter: Chapter) -> str:
    if chapter.experiment:
        return chapter.experiment.name
    return "not run here" if chapter.notebook.needs else "once for all"


def _firsts(chapters: list[Chapter]) -> list[Chapter]:
    return list({c.notebook.name: c for c in reversed(chapters)}.values())[::-1]


def _bar(chapters: list[Chapter], names: list[str], chapter: Chapter) -> str:
    """Previous and next, for the same experiment where it has that chapter."""
    i = names.index(chapter.notebook.name)
    near = {"← {}": names[i - 1] if i else None, "{} →": names[i + 1] if i + 1 < len(names) else None}
    links = ["[all chapters](../index.md)"]
    for words, name in near.items():
        if name and (target := place(chapters, chapter.experiment, f"notebooks/{name}.ipynb")):
            links.insert(0 if "←" in words else 2, f"[{words.format(name)}]({link(chapter.page, target)})")
    return f":::{{container}} chapter-bar\n{' '.join(links)}\n:::\n"


def _said(chapters: list[Chapter], chapter: Chapter, content: dict) -> str:
    """For which experiment it is, which others there are, and how it was run."""
    text = ""
    if chapter.experiment:
        same = [c for c in chapters if c.notebook == chapter.notebook and c.experiment]
        others = " ".join(
            f"**{c.experiment.name}**" if c == chapter else f"[{c.experiment.name}]({link(chapter.page, c.page)})"
            for c in same
            if c.experiment
        )
        about = link(chapter.page, page_of(f"experiments/{chapter.experiment.name}.toml"))
        text = f":::{{container}} experiments\n{others}\n:::\n\n[{markdown(chapter.experiment.title)}]({about}). "
    if chapter.executed:
        ran = content["metadata"].get("papermill", {})
        when = f" on {ran['end_time'][:10]}, in {ran['duration']:.0f} s" if ran.get("end_time") else ""
        return f"{text}Executed by the pipeline{when}; the outputs are as it left them.\n"
    make = f"make reproduce EXPERIMENT={chapter.experiment.name}" if chapter.experiment else "make reproduce"
    return (
        f"{text}Not executed on this machine: the tables and figures are those that came with the project, and what the "
        f"notebook prints is left out. `{make}` executes it.\n"
    )
