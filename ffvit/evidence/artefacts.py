"""What a notebook shows and keeps: one call opens the evidence, one shows a table or a figure and writes its files.

The files are those that the notebook declares, see ffvit.evidence.notebook_metadata: what it does not declare is an error here,
what it declares and does not make is one of the pipeline and the tests.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import IPython.display
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ffvit.evidence import drawing, tables
from ffvit.evidence.belonging import in_use, trials_of
from ffvit.evidence.measured import Measured, measured, sources
from ffvit.evidence.notebook_metadata import Notebook, load_notebook
from ffvit.evidence.records import load_own, load_records, load_trials
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import FIGURES, NOTEBOOKS, RESULTS

FORMATS = tables.FORMATS + drawing.FORMATS
WIDTH = 120  # of a printed line: a notebook breaks longer ones in the middle of a word


@dataclass(frozen=True, kw_only=True)
class Story:
    """The evidence of a notebook, and where its tables and figures go."""

    notebook: Notebook
    figures_dir: Path
    experiment: Experiment | None = None
    records: list[dict]
    trials: list[dict]
    found: dict[str, Measured]  # of the grid
    source: str  # a sentence on where its numbers come from

    def makes(self, name: str) -> bool:
        """Whether a table or figure belongs to this experiment."""
        return bool(self._files(name, FORMATS))

    def table(self, table: pd.DataFrame, name: str, caption: str, source: str = "") -> None:
        """Show a table, and write it in the formats declared. source: in place of the story's own."""
        tables.save(table, *self.files(name, tables.FORMATS), caption=caption, source=source or self.source)
        IPython.display.display(tables.display(table, caption))

    def figure(self, figure: Figure, name: str, source: str = "") -> None:
        """Show a figure, and write it in the formats declared. source: in place of the story's own."""
        drawing.save(figure, *self.files(name, drawing.FORMATS), source=source or self.source)
        IPython.display.display(figure)
        plt.close(figure)

    def say(self, text: str) -> None:
        """Print what was found, in lines that fit."""
        print(_filled(text))

    def files(self, name: str, formats: tuple[str, ...] = FORMATS) -> list[Path]:
        """The files declared for a table or figure. Raises InputError where there is none."""
        files = self._files(name, formats)
        if not files:
            known = {Path(file).stem for file in self.notebook.files(self.experiment)}
            raise InputError(
                f"{self.notebook.path.name} does not declare '{name}' as {' or '.join(formats)} in its metadata, "
                f"ffvit.makes{suggest(name, known)}"
            )
        return files

    def _files(self, name: str, formats: tuple[str, ...]) -> list[Path]:
        made = [Path(file) for file in self.notebook.files(self.experiment)]
        own = f"{self.experiment.name}/{name}" if self.experiment and "/" not in name else name
        return [self.figures_dir / file for file in made if str(file.with_suffix("")) == own and file.suffix in formats]


def open_story(notebook: str, experiment: str = "", results_dir: str = "", figures_dir: str = "") -> Story:
    """Open what a notebook declares to need of an experiment, and say what that is.

    notebook: its name, such as "04_table1". results_dir: the records in a folder; empty: those in results/ and this
    machine's own. figures_dir: empty: figures/.
    """
    declared = load_notebook(NOTEBOOKS / f"{notebook}.ipynb")
    opened = load_experiment(experiment) if experiment else None
    if opened and not any(config.task in declared.tasks for config in opened.configs()):
        raise InputError(
            f"{notebook} is for {', '.join(declared.tasks)}, {experiment} is not: 23_where compares others"
        )
    if results_dir and not Path(results_dir).is_dir():
        raise InputError(f"results_dir: there is no folder '{results_dir}'; empty is results/")
    records, trials, found = [], [], {}
    if opened and "records" in declared.needs:
        records = records_in_use(opened, results_dir)
        found = measured(opened, records)
    if opened and "trials" in declared.needs:
        trials = trials_of(opened, load_trials(opened.name, Path(results_dir or RESULTS)))
    if opened:
        print(opened.about)
    if "records" in declared.needs:
        print(_filled(sources(found)))
    return Story(
        notebook=declared,
        figures_dir=Path(figures_dir or FIGURES),
        experiment=opened,
        records=records,
        trials=trials,
        found=found,
        source=sources(found),
    )


def records_in_use(experiment: Experiment, results_dir: str = "") -> list[dict]:
    """What tables and figures show of an experiment: the records in a folder; empty: those in results/ and this machine's own."""
    own = [] if results_dir else load_own(experiment.name)
    return in_use(experiment, load_records(experiment.name, Path(results_dir or RESULTS)), own)


def _filled(text: str) -> str:
    lines = (textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join(lines)
