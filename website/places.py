"""Where a file of the repository is found on the site, and links that lead there.

Pages are named as Sphinx reads them, by a path in its source folder with the suffix, such as docs/study.md.
"""

import os.path
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ffvit.system.files import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
PICTURES = (".png", ".svg")
SHOWN_AS_THEY_ARE = ("docs", "benchmarks")  # folders whose Markdown are pages
Place = Callable[[str], str | None]  # of a path in the repository that a kind of page knows


def page_of(path: str) -> str:
    """The page of a file or folder that has no better one: what is in it."""
    file = Path(path)
    if path == "README.md":
        return "index.md"
    if path == "notebooks":
        return "chapters/index.md"
    if path == "CHANGELOG.md" or (file.suffix == ".md" and file.parts[0] in SHOWN_AS_THEY_ARE):
        return path
    if file.parts[0] == "ffvit" and file.suffix in ("", ".py"):
        return f"api/{'.'.join(file.with_suffix('').parts).removesuffix('.__init__')}.md"
    if file.parts[0] in ("experiments", "figures", "results"):
        name = file.parts[1] if len(file.parts) > 1 else "index"
        return f"experiments/{name.removesuffix('.toml')}.md"
    return f"files/{path}.md"


def relink(text: str, home: str, page: str, *places: Place) -> str:
    """Markdown with its links to files of the repository made links to pages.

    home: the folder that the text was written for, such as docs. page: where it stands now. places: asked in turn for a
    better page than page_of.
    """

    def one(match: re.Match) -> str:
        target, _, anchor = match[1].partition("#")
        path = posixpath.normpath(posixpath.join(home, target))
        if not target or "://" in target or not (ROOT / path).exists():
            return match[0]
        if path.endswith(PICTURES):
            return f"](/{path})"
        found = next(filter(None, (place(path) for place in places)), None) or page_of(path)
        return f"]({link(page, found)}{anchor and f'#{anchor}'})"

    return LINK.sub(one, text)


def link(page: str, target: str) -> str:
    """From one page to another."""
    return os.path.relpath(target, posixpath.dirname(page) or ".")


def linked_files(pages: dict[str, str]) -> Iterator[str]:
    """The files and folders of the repository that pages link to at files/."""
    for page, text in pages.items():
        for match in LINK.finditer(text):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), match[1].partition("#")[0]))
            if path.startswith("files/"):
                yield path.removeprefix("files/").removesuffix(".md")
