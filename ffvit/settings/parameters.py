"""What notebooks need besides the library: parameters that are checked before any work.

Papermill only warns of a parameter the notebook does not have, and runs with the default; it also passes
`true` on as a string. So every notebook begins with its annotated parameters, and `check_parameters()`.
"""

import ast
from typing import Literal, get_args, get_origin

from IPython import get_ipython

from ffvit.settings.config import SETTINGS
from ffvit.system.errors import InputError, suggest
from ffvit.system.machine import keep_memory

TYPES = {t.__name__: t for t in (str, int, float, bool, dict, list)}
INJECTED = "# Parameters"  # papermill's first line in the cell it adds


def check_parameters() -> None:
    """Stop the notebook for a parameter it does not have, or one of the wrong type. Call it right after the parameters.

    Its kernel keeps the memory that it frees, as `ffvit` does.
    """
    keep_memory()
    namespace = get_ipython().user_ns
    check(namespace["In"], namespace)


def check(cells: list[str], values: dict) -> None:
    """cells: sources in the order they ran; the newest with annotations only declares. Raises InputError."""
    declared: dict[str, str] = {}
    defaults: dict[str, str] = {}
    injected: set[str] = set()
    for source in cells:
        try:
            statements = ast.parse(source).body
        except SyntaxError:  # an IPython magic
            continue
        annotated = [s for s in statements if isinstance(s, ast.AnnAssign)]
        if annotated and len(annotated) == len(statements):
            declared = {ast.unparse(s.target): ast.unparse(s.annotation) for s in annotated}
            defaults = {ast.unparse(s.target): ast.unparse(s.value) for s in annotated if s.value}
            injected = set()
        elif source.startswith(INJECTED):
            injected |= {ast.unparse(t) for s in statements if isinstance(s, ast.Assign) for t in s.targets}
    for name in sorted(injected - set(declared)):
        raise InputError(f"this notebook has no parameter '{name}'{suggest(name, declared)}")
    for name, kind in declared.items():
        value, wanted = values[name], TYPES[kind]
        allowed = (int, float) if wanted is float else wanted
        if not isinstance(value, allowed) or (isinstance(value, bool) and wanted is not bool):
            raise InputError(f"parameter '{name}' must be {kind}, got {value!r} ({type(value).__name__})")
        if value == [] and defaults.get(name) != "[]":
            raise InputError(
                f"parameter '{name}' is empty: give at least one, or leave it out for {defaults.get(name)}"
            )
        setting = SETTINGS[name].annotation if name in SETTINGS else None
        if value and get_origin(setting) is Literal and value not in get_args(setting):
            known = ", ".join(map(repr, get_args(setting)))
            raise InputError(f"parameter '{name}' must be one of {known}, got {value!r}")


def chosen(**settings) -> dict:
    """The settings that were given: those that are not 0, empty or None, which stand for the experiment's own."""
    return {name: value for name, value in settings.items() if value}
