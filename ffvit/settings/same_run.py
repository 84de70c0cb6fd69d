"""When two runs are the same: one rule for training, records, status and pipeline.

Two runs are the same if the settings that decide the result are alike. Where the code that decides it has changed, data,
training, its task, what builds a model, or the model's own file and its parts, the pipeline trains again, and status says that a
record is of older code; the record stays valid. Of the code, comments, docstrings, imports, annotations and messages are
left out, and in which file and where in it a statement stands, so that rewording and moving train nothing again.
"""

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ffvit.settings.config import MACHINE
from ffvit.settings.given import with_defaults

# from ffvit.models.mixing import Branch, and from ffvit.data.dense import columns, maps; also within a function.
PART = re.compile(r"^ *from ffvit\.(models|tasks|data\.dense)(?:\.(\w+) import| import ([\w, ]+))", re.M)
READING = {"models.weights", "models.exported"}  # parts of a model's file that decide nothing: how weights are read
LIBRARY = Path(__file__).parent.parent
# Where the images lie, what a set of settings is called, and which of several alike runs it is.
NO_MATTER = MACHINE | {"dataset", "recipe", "seed"}
# What is taken of a dataset: with these alike, two runs of an experiment have the same images.
IMAGES = (
    *("train_split", "validation_split", "validation_fraction", "test_split", "test_fraction"),
    *("max_train_images", "max_eval_images", "image_column", "label_column", "streaming"),
    "task",  # semantic segmentation has a class more, the background
)


def deciding(values: dict) -> dict:
    """The settings that decide a result, from those of a run as they were written down, today or earlier."""
    values = with_defaults(values)
    kept = {name: value for name, value in values.items() if name not in NO_MATTER}
    merges = values["model"].startswith("lit_") and values["model_args"].get("deformable", True)
    if merges or values["task"] != "classification":
        # Batch norms see a part of a batch at a time; how many parts there are is then no matter of the machine.
        kept["parts"] = values["num_processes"] * values["accumulation_steps"]
    kept["initial_weights"] = Path(values["initial_weights"]).name  # where a file lies is no part of a run
    if values["streaming"]:  # a stream's order is of its readers
        kept |= {name: values[name] for name in ("num_workers", "num_processes", "accumulation_steps")}
    return kept


def differing(first: dict, second: dict) -> list[str]:
    """The settings in which two runs differ so that they are not the same run."""
    one, other = (deciding(values) | {"seed": with_defaults(values)["seed"]} for values in (first, second))
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


def images_of(values: dict) -> tuple:
    """What a run takes of its dataset: the settings of IMAGES, from those that were written down."""
    values = with_defaults(values)
    return tuple(values[name] for name in IMAGES)


def code_of(settings: dict) -> str:
    """Fingerprint of the code that decides the result of a run, by its settings; timm's own models are timm's."""
    named = {settings["model"], settings.get("model_args", {}).get("backbone", "")}
    return _code_of(frozenset(named), settings.get("task", "classification"))


@cache
def _code_of(models: frozenset[str], task: str) -> str:
    files = [*(LIBRARY / "data").glob("*.py"), *(LIBRARY / "training").glob("*.py"), LIBRARY / "models/from_config.py"]
    files += [LIBRARY / "tasks/task.py", *_with_parts([LIBRARY / f"tasks/{task}.py"])]
    statements = {text for file in {*files, *_with_parts(_files_of(models))} for text in _bare(file)}
    return hashlib.sha256("\n".join(sorted(statements)).encode()).hexdigest()[:16]


def _files_of(models: Iterable[str]) -> list[Path]:
    """The files that make models of these names, and those that they name as their backbones."""
    texts = {file: file.read_text(encoding="utf-8") for file in (LIBRARY / "models").glob("*.py")}
    made_in = {name: file for file, text in texts.items() for name in re.findall(r"^def (\w+)\(", text, re.M)}
    own = [made_in[name] for name in models if name in made_in]
    named = {name for file in own for name in re.findall(r'"(\w+)"', texts[file])}
    return [*own, *(made_in[name] for name in named if name in made_in)]


def _with_parts(files: list[Path]) -> set[Path]:
    """These files and those that they are made of: of a model, and of a task's data. How weights are read is no part of it."""
    found: set[Path] = set()
    while files:
        found |= {*files}
        texts = [file.read_text(encoding="utf-8") for file in files]
        named = [
            (room, name)
            for text in texts
            for room, *names in PART.findall(text)
            for name in re.findall(r"\w+", ",".join(names))
        ]
        parts = {f"{room}.{name}" for room, name in named} - READING
        paths = [LIBRARY / f"{part.replace('.', '/')}.py" for part in sorted(parts)]
        files = [path for path in paths if path not in found and path.is_file()]
    return found


@cache
def _bare(file: Path) -> list[str]:
    """Its statements, each by itself: moving one to another file changes nothing."""
    return [_spelled(node) for node in _Bare().visit(ast.parse(file.read_text(encoding="utf-8"))).body]


def _spelled(node: object) -> str:
    """A syntax tree as text, the same by every Python: ast.dump also tells of fields that are empty, newer ones of more."""
    if isinstance(node, list):
        return f"[{','.join(map(_spelled, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, getattr(node, name, None)) for name in node._fields)
    return f"{type(node).__name__}({','.join(f'{n}={_spelled(v)}' for n, v in fields if v is not None and v != [])})"


class _Bare(ast.NodeTransformer):
    """Code without what only people read."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return ast.Pass() if isinstance(node.value, ast.Constant) else self.generic_visit(node)  # a docstring

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Raise()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        # A message is of several words; f"pos_embed{stage}" is a name, and decides.
        words = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
        return ast.Constant("") if " " in words else self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        return None

    visit_ImportFrom = visit_Import

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        bare = ast.Assign([node.target], node.value) if node.value else ast.Pass()
        return self.generic_visit(bare)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)
