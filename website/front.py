"""The front page, and the pages of what is written by hand: docs/, benchmarks/ and the changelog."""

import inspect
import re
from collections.abc import Iterator
from functools import partial

from ffvit.settings.experiment import load_experiment
from ffvit.settings.recipes import RECIPES
from ffvit.system.files import ROOT
from website import chapters
from website.cells import figure
from website.chapters import Chapter
from website.ledger_pages import count, ledger_page
from website.places import page_of, relink
from website.record_pages import Run, picture

README = ROOT / "README.md"


def pages(runs: dict[str, list[Run]], story: list[Chapter]) -> Iterator[tuple[str, str]]:
    for file in sorted([*ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md"), ROOT / "CHANGELOG.md"]):
        path, home = str(file.relative_to(ROOT)), str(file.parent.relative_to(ROOT))
        place = partial(chapters.place, story, None)
        text = relink(file.read_text(encoding="utf-8"), home, page_of(path), place)
        alone = "" if home == "docs" else "---\norphan: true\n---\n"
        yield page_of(path), alone + (_with_contents(text) if path == "docs/index.md" else text)
    yield "docs/recipes.md", _recipes()
    yield "index.md", _front(runs, story)


def _with_contents(text: str) -> str:
    names = [*dict.fromkeys(re.findall(r"\]\(([\w-]+)\.md\)", text)), "recipes"]
    row = "| [recipes](recipes.md) | Which settings belong together, and what is to be expected of them? |\n"
    listed = "".join(f"{name}\n" for name in names)
    return f"{text.rstrip()}\n{row}\n```{{toctree}}\n:hidden:\n:maxdepth: 1\n\n{listed}```\n"


def _recipes() -> str:
    text = (
        "# Recipes\n\nNamed settings that experiments build on, and what to expect of them, as "
        "{py:mod}`ffvit.settings.recipes` has them.\n"
    )
    for name, recipe in RECIPES.items():
        given = ", ".join(f"{key}={value!r}" for key, value in recipe().items())
        text += f"\n## {name}\n\n```text\n{inspect.cleandoc(recipe.__doc__ or '')}\n```\n\nIts settings: `{given}`\n"
    return text


def _front(runs: dict[str, list[Run]], story: list[Chapter]) -> str:
    """The README's picture and findings, the study to point at, and where to go on."""
    readme = README.read_text(encoding="utf-8")
    [(source, alt)] = re.findall(r'<img src="(figures/[^"]+)"[^>]*alt="([^"]+)"', readme)[:1]
    study = load_experiment(source.split("/")[1])
    question = readme.partition("## The report's question\n\n")[2].partition("\n\n<img")[0]
    findings = readme.partition("<!-- findings -->\n")[2].partition("<!-- end of findings -->")[0]
    findings = relink(findings, ".", "index.md", partial(chapters.place, story, study))
    verdicts = "".join(f"<li><b>{number}</b> {verdict}</li>" for verdict, number in count(study).items())
    told = {chapter.notebook.name: chapter for chapter in reversed(story)}
    listed = "".join(f"1. [{c.notebook.question}]({c.page})\n" for c in reversed(told.values()))
    return f"""# Do you even need attention?

{question.rstrip(":")}. What becomes of that stands here: every table, figure and number is made from recorded runs.

{figure(ROOT / source, " ".join(alt.split()))}
## What was found

```{{raw}} html
<ul class="verdicts">{verdicts}</ul>
```

Verdicts on the report's numbers and claims, [one by one]({ledger_page(study)}).

{findings}
## The runs, one by one

Each point is a run of [{study.name}](experiments/{study.name}.md), and leads to its record.

{picture(study, runs[study.name], "index.md")}
## The story, chapter by chapter

{listed}
## Where to go on

- [Experiments and records](experiments/index.md): every run with its settings, curve, machine and commit.
- [Look inside](look/index.md): the weights over patches, and what attends to what, with a hand on it.
- [Documentation](docs/index.md): how the study is made, how to train on your own images, what a run survives.
- [Reference](api/ffvit.md): the library, from its docstrings.

```{{toctree}}
:hidden:

Chapters <chapters/index>
Claims <{ledger_page(study).removesuffix(".md")}>
Records <experiments/index>
Look inside <look/index>
Docs <docs/index>
Reference <api/ffvit>
```
"""
