"""The cells of a notebook as a page shows them: each picture with its caption, what it is to those who cannot see it, and its origin."""

import ast
import html
import re
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from ffvit.evidence.escape import markdown
from ffvit.system.files import ROOT

STUDIES = ROOT / "ffvit/studies"
PICTURE = ("image/png", "image/svg+xml")


def shown(cell: dict, files: list[Path], origin: str, heading: str) -> dict:
    """A cell without traces of papermill. files: the tables and figures that its notebook makes; what it draws is shown
    from there, where it is sharper and says where it comes from; of a notebook that was not executed, its tables too.
    origin: of pictures that no file has, in words; empty: not executed. heading: above the cell, its words where no docstring
    has any.
    """
    kept: dict[str, Any] = {"cell_type": cell["cell_type"], "metadata": {}, "source": "".join(cell["source"])}
    kept["id"] = cell["id"]
    if cell["cell_type"] != "code":
        return kept
    names = _names(kept["source"])
    mine = [
        next((f for f in files if f.stem == name and f.suffix == s), None) for name in names for s in (".svg", ".png")
    ]
    # A figure in both forms is shown once, as SVG.
    pictures = list({file.stem: file for file in reversed(mine) if file}.values())[::-1]
    caption = _caption(kept["source"], heading)
    if origin:
        outputs = [_output(output, caption, pictures) for output in cell["outputs"]]
        kept["metadata"] = _of_bare_pictures(outputs, caption, origin)
    else:
        tables = [file.read_text(encoding="utf-8") for file in files if file.stem in names and file.suffix == ".md"]
        outputs = [_markdown(text) for text in tables + [figure(file, caption) for file in pictures]]
    return kept | {"execution_count": cell.get("execution_count"), "outputs": outputs}


def figure(file: Path, caption: str) -> str:
    """A picture in Markdown, with its origin from the file's own metadata."""
    width = ""
    if file.suffix == ".svg":
        described = re.search(r"<(dc:description|desc)>(.*?)</\1>", file.read_text(encoding="utf-8"), re.S)
        origin = html.unescape(described[2]) if described else ""
    else:
        with Image.open(file) as image:
            origin = str(image.info.get("Description", ""))
            width = f":width: {image.width // 2}px\n"  # drawn with 200 points an inch, for screens that have them
    said = f"{caption}\n\n{markdown(origin)}" if origin else caption
    return f"```{{figure}} /{file.relative_to(ROOT)}\n:alt: {caption}\n{width}\n{said}\n```\n"


def _names(source: str) -> list[str]:
    """The strings in a cell, as names of files."""
    strings = [node.value for node in ast.walk(ast.parse(_python(source))) if isinstance(node, ast.Constant)]
    return [Path(text).stem for text in strings if isinstance(text, str) and text and "\n" not in text]


def _caption(source: str, heading: str) -> str:
    """What the docstring of the drawing function says, of the last one that a cell names."""
    drawing = _drawing()
    names = [ast.unparse(node) for node in ast.walk(ast.parse(_python(source))) if isinstance(node, ast.Attribute)]
    return next((drawing[name] for name in reversed(names) if name in drawing), heading)


@cache
def _drawing() -> dict[str, str]:
    """First paragraph of the docstring of the functions that draw, by module and name, such as one_run.confusion."""
    found = {}
    for file in sorted(STUDIES.glob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns).endswith("Figure"):
                said = (ast.get_docstring(node) or node.name.replace("_", " ")).partition("\n\n")[0]
                found[f"{file.stem}.{node.name}"] = " ".join(said.split()).rstrip(".") + "."
    return found


def _python(source: str) -> str:
    """Without the lines that IPython reads by itself."""
    return "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))


def _output(output: dict, caption: str, pictures: list[Path]) -> dict:
    """As it is, but for a picture that has a file: a cell draws them in the order in which it names them."""
    if pictures and not output.get("data", {}).keys().isdisjoint(PICTURE):
        return _markdown(figure(pictures.pop(0), caption))
    return output


def _of_bare_pictures(outputs: list[dict], caption: str, origin: str) -> dict:
    """What myst-nb shall say of pictures that no file has."""
    bare = [output for output in outputs if not output.get("data", {}).keys().isdisjoint(PICTURE)]
    said = {"image": {"alt": caption}, "figure": {"caption": f"{markdown(caption)}\n\n{markdown(origin)}"}}
    return {"mystnb": said} if bare else {}


def _markdown(text: str) -> dict:
    return {"output_type": "display_data", "data": {"text/markdown": text}, "metadata": {}}
