"""What a notebook says of itself, in its metadata under "ffvit": the pipeline, the tests and the README go by it.

A new notebook is one new file. Nothing here needs torch or a plot, so that the pipeline knows at once what there is to do.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, fields
from fnmatch import fnmatch
from functools import cache, cached_property
from pathlib import Path

from ffvit.settings.experiment import Experiment
from ffvit.settings.headline import HEADLINES
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import NOTEBOOKS, ROOT

NEEDS = ("images", "weights", "records", "trials")  # of an experiment; a notebook that needs none depends on none
PARTS = ("compare", "tuning")  # of an experiment's file, that it may leave out
DECIDE = ("models", "evidence", "studies")  # the packages that decide what is shown, besides the records
# From ffvit.a import b, (b, c); or import ffvit.a.b.
IMPORT = re.compile(r"^\s*(?:from (ffvit\.[.\w]*) import (\([^)]*\)|.*)|import (ffvit\.[.\w]*))", re.M)


@dataclass(frozen=True, kw_only=True)
class Notebook:
    path: Path
    gives: str  # in words, for the README
    needs: list[str]  # some of NEEDS
    # table.csv goes to figures/<experiment>/table.csv; folder/table.csv, which depends on no experiment, to figures/folder/.
    makes: list[str] = field(default_factory=list)
    # The same, where the experiment's file has this part.
    makes_where: dict[str, list[str]] = field(default_factory=dict)
    scores: bool = False  # whether the pipeline scores the runs of these tasks by it
    # For which experiments it is: those with such a task and model (a pattern of timm's names) ...
    tasks: list[str] = field(default_factory=lambda: ["classification"])
    models: str = "*"
    varies: str = ""  # ... in which this axis is compared ...
    unless_all: dict = field(default_factory=dict)  # ... and not all of which have one of these settings ...
    experiments: list[str] = field(default_factory=list)  # ... of these names, where no setting tells; empty: of any.

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def question(self) -> str:
        return self.sources[0].splitlines()[0].removeprefix("# ")

    def fits(self, experiment: Experiment) -> bool:
        """Whether the pipeline runs this notebook for an experiment."""
        configs = (experiment.config(name) for name in experiment.variants)
        mine = [vars(c) | c.model_args for c in configs if c.task in self.tasks and fnmatch(c.model, self.models)]
        left_out = (all(config.get(key) == value for config in mine) for key, value in self.unless_all.items())
        axes = {axis for comparison in experiment.compare.values() for axis in comparison.vary}
        named = not self.experiments or experiment.name in self.experiments
        return named and bool(mine) and not any(left_out) and (not self.varies or self.varies in axes)

    def files(self, experiment: Experiment | None) -> list[str]:
        """What it makes of an experiment, as paths in figures/."""
        more = (names for part, names in self.makes_where.items() if getattr(experiment, part, None))
        made = [*self.makes, *(name for names in more for name in names)]
        return [name if "/" in name or not experiment else f"{experiment.name}/{name}" for name in made]

    @cached_property
    def sources(self) -> list[str]:
        return ["".join(cell["source"]) for cell in json.loads(self.path.read_text(encoding="utf-8"))["cells"]]

    @property
    def cells(self) -> str:
        """Hash of its sources: saving it in JupyterLab, with outputs or without, changes nothing."""
        return hashlib.sha256("\0".join(self.sources).encode()).hexdigest()

    @property
    def code(self) -> str:
        """Hash of the files that decide what it shows: those of DECIDE that it imports, and that they import in turn."""
        found, new = set(), _imported("\n".join(self.sources))
        while new:
            found |= new
            new = set().union(*map(_imported_by, new)) - found
        # reported.py goes with reported.csv.
        files = sorted(file for path in found for file in path.parent.glob(f"{path.stem}.*"))
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def load_notebook(path: Path) -> Notebook:
    """Raises InputError, naming the notebook, for metadata that is missing or says what nobody reads."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["metadata"]["ffvit"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{path}: no notebook that says in metadata.ffvit what it makes ({error!r})") from None
    known = {f.name for f in fields(Notebook)} - {"path"}
    for key in said:
        if key not in known:
            raise InputError(f"{path}: metadata.ffvit says '{key}'{suggest(key, known)}")
    if missing := {"gives", "needs"} - said.keys():
        raise InputError(f"{path}: metadata.ffvit does not say {sorted(missing)}")
    notebook = Notebook(path=path, **said)
    for need in notebook.needs:
        if need not in NEEDS:
            raise InputError(f"{path}: metadata.ffvit needs '{need}'{suggest(need, NEEDS)}")
    for task in notebook.tasks:
        if task not in HEADLINES:
            raise InputError(f"{path}: metadata.ffvit is for the task '{task}'{suggest(task, HEADLINES)}")
    for part in notebook.makes_where:
        if part not in PARTS:
            raise InputError(f"{path}: metadata.ffvit makes files where '{part}'{suggest(part, PARTS)}")
    if homeless := [name for name in notebook.makes if "/" not in name and not notebook.needs]:
        raise InputError(f"{path}: metadata.ffvit makes {homeless} of no experiment: name a folder, <folder>/<file>")
    return notebook


def load_notebooks(folder: Path = NOTEBOOKS) -> list[Notebook]:
    return [load_notebook(path) for path in sorted(folder.glob("*.ipynb"))]


@cache
def _imported_by(path: Path) -> set[Path]:
    return _imported(path.read_text(encoding="utf-8"))


def _imported(source: str) -> set[Path]:
    """The files of DECIDE that a text of Python, with IPython's magics or without, imports."""
    found = set()
    for module, names, whole in IMPORT.findall(source):
        for name in (whole or module, *(f"{module}.{name}" for name in re.findall(r"\w+", names))):
            package, *file = name.split(".")[1:]
            path = ROOT.joinpath("ffvit", package, *file).with_suffix(".py")
            if package in DECIDE and path.is_file():
                found.add(path)
    return found
