"""Pages of code: a module with what it offers and its source, and any other file of the repository that a page leads to."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pygments
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_by_name, get_lexer_for_filename
from pygments.util import ClassNotFound

from ffvit.evidence.escape import markdown
from ffvit.system.files import ROOT, write_atomically
from website.places import link, linked_files, page_of

HIGHLIGHTED = ROOT / "build/highlighted"
PYTHON = ("Snakefile",)  # files of Python whose names do not say so
Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def modules() -> Iterator[tuple[str, str]]:
    """The API reference: a page for each module and package of the library."""
    files = sorted((ROOT / "ffvit").rglob("*.py"))
    for file in files:
        name, page = _module(file), page_of(str(file.relative_to(ROOT)))
        inner = [f for f in files if f != file and _module(f).rpartition(".")[0] == name]
        below = [
            f"- [{_title(_module(f))}]({link(page, page_of(str(f.relative_to(ROOT))))}): {_about(f)}\n" for f in inner
        ]
        listed = "".join(f"{_module(f)}\n" for f in inner)
        text = f"# {_title(name)}\n\n```{{py:module}} {name}\n```\n\n"
        if inner:
            text += (
                f"{_said(ast.parse(file.read_text()))}\n\n{''.join(below)}\n```{{toctree}}\n:hidden:\n\n{listed}```\n\n"
            )
        if not inner or file.stat().st_size:
            text += f"{_offered(file)}\n## Source\n\n{_source(file)}"
        yield page, text


def files(pages: dict[str, str]) -> Iterator[tuple[str, str]]:
    """A page for each file and folder that pages link to and that has no other."""
    for path in sorted(set(linked_files(pages))):
        page, there = f"files/{path}.md", ROOT / path
        if there.is_dir():
            names = sorted(f.name for f in there.iterdir() if not f.name.startswith((".", "__")))
            yield page, f"---\norphan: true\n---\n# {path}/\n\n{', '.join(f'`{name}`' for name in names)}\n"
        else:
            yield page, f"---\norphan: true\n---\n# {path}\n\n{_source(there)}"


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _title(module: str) -> str:
    return module.replace("_", "\\_")


def _about(file: Path) -> str:
    return markdown((ast.get_docstring(ast.parse(file.read_text())) or "a package").partition("\n")[0])


def _source(file: Path) -> str:
    """With an anchor for each line, such as L-12. What was highlighted once is kept: it is most of the time of the pages."""
    text = file.read_text(encoding="utf-8")
    kept = HIGHLIGHTED / hashlib.sha256(f"{pygments.__version__} {file.name} {text}".encode()).hexdigest()
    if not kept.is_file():
        write_atomically(kept, _highlighted(file.name, text))
    return f"````{{raw}} html\n{kept.read_text(encoding='utf-8')}\n````\n"


def _highlighted(name: str, text: str) -> str:
    try:
        lexer = get_lexer_by_name("python") if name in PYTHON else get_lexer_for_filename(name)
    except ClassNotFound:
        lexer = TextLexer()
    return highlight(text, lexer, HtmlFormatter(lineanchors="L", linenos="inline"))


def _offered(file: Path) -> str:
    """What the module says of itself, and its public classes, functions and constants with their docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = _qualified(tree, _module(file))
    text = f"{_said(tree)}\n\n"
    for node in tree.body:
        if isinstance(node, Named) and not node.name.startswith("_"):
            text += _described(node, names)
    return text


def _described(node: Named, names: dict[str, str], inside: bool = False) -> str:
    """A directive of Sphinx's Python domain."""
    body = f"{_said(node)}\n\n"
    if isinstance(node, ast.ClassDef):
        kind, signature = "class", node.name
        for inner in node.body:
            if isinstance(inner, Named) and not inner.name.startswith("_"):
                body += _described(inner, names, inside=True)
            elif isinstance(inner, ast.AnnAssign) and not ast.unparse(inner.target).startswith("_"):
                value = f"\n:value: {ast.unparse(inner.value)}" if inner.value and inner.simple else ""
                of = _linked(inner.annotation, names)
                body += f"```{{py:attribute}} {ast.unparse(inner.target)}\n:type: {of}{value}\n```\n"
    else:
        given = ast.unparse(_linked_arguments(node.args, names))
        returns = f" -> {_linked(node.returns, names)}" if node.returns else ""
        marks = [ast.unparse(mark) for mark in node.decorator_list]
        signature = f"{node.name}({given}){returns}"
        kind = "method" if inside else "function"
        if any("property" in mark for mark in marks):
            kind, signature = (
                "property",
                node.name + (f"\n:type: {_linked(node.returns, names)}" if node.returns else ""),
            )
        elif "classmethod" in marks or "staticmethod" in marks:
            signature += f"\n:{marks[0]}:"
    fence = "`" * (5 if isinstance(node, ast.ClassDef) else 4)
    where = f'<a class="to-source" href="#L-{node.lineno}">source</a>'
    return f"{fence}{{py:{kind}}} {signature}\n\n{where}\n\n{body}{fence}\n\n"


def _said(node: Named | ast.Module) -> str:
    """A docstring as Markdown: its paragraphs, and what is set in columns or indented as it is."""
    blocks = []
    for block in (ast.get_docstring(node) or "").split("\n\n"):
        lines = block.splitlines()
        if block.startswith("- "):
            blocks.append("\n".join(map(_in_markdown, lines)))
        elif any(line.startswith(" ") or ":  " in line for line in lines):
            blocks.append(f"```text\n{block}\n```")
        else:
            blocks.append(_in_markdown(" ".join(lines)))
    return "\n\n".join(blocks)


def _in_markdown(text: str) -> str:
    """Code in backticks as it is, and the rest as text."""
    parts = text.split("`")
    return "`".join(part if i % 2 else markdown(part) for i, part in enumerate(parts))


def _qualified(tree: ast.Module, module: str) -> dict[str, str]:
    """Full name of the library's classes and types that a module knows, so that annotations become links."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ffvit"):
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    return found | {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}


def _linked(annotation: ast.expr, names: dict[str, str]) -> str:
    text = ast.unparse(_Qualify(names).visit(annotation))
    return text.strip("'\"") if isinstance(annotation, ast.Constant) else text


def _linked_arguments(arguments: ast.arguments, names: dict[str, str]) -> ast.arguments:
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg) and argument.annotation:
            argument.annotation = _Qualify(names).visit(argument.annotation)
    return arguments


class _Qualify(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id))
