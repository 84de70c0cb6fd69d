"""How a table is shown, and written as csv, md and tex, with where its numbers come from."""

import html
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from ffvit.evidence import escape
from ffvit.evidence.measured import BLANK
from ffvit.system.files import write_atomically

FORMATS = (".csv", ".md", ".tex")
SHORT = 23  # letters: a cell of no more is shown in one line, such as 61.57 ± 10.71 (n=3)
LONG = 80  # letters: one of more is wide enough to read, and the table scrolls where it does not fit


def captioned(table: pd.DataFrame, caption: str) -> pd.DataFrame:
    """The table, which says what it is wherever it is shown."""
    table.attrs["caption"] = caption
    return table


def display(table: pd.DataFrame, caption: str = "") -> Styler:
    """A table as a notebook shows it: text to the left, no index. caption: in place of the table's own, see captioned()."""
    numbers = {c: "{:,}" for c in table.select_dtypes("int64")} | {c: "{:g}" for c in table.select_dtypes("float64")}
    left = {"text-align": "left", "vertical-align": "top"}
    styled = table.style.hide().format(numbers, na_rep=BLANK, escape="html").set_properties(**left)
    styled.map(_width)
    styled.format_index(axis="columns", escape="html").set_table_attributes('class="mathjax_ignore tex2jax_ignore"')
    above = {"text-align": "left", "caption-side": "top", "font-weight": "bold", "min-width": "22em"}
    looks = [{"selector": of, "props": list(look.items())} for of, look in (("th", left), ("caption", above))]
    said = escape.in_one_line(caption or table.attrs.get("caption", ""))
    return styled.set_table_styles(looks).set_caption(html.escape(said) or None)


def _width(cell: object) -> str:
    letters = len(str(cell))
    return "white-space: nowrap" if letters <= SHORT else "min-width: 15em" if letters > LONG else ""


def save(table: pd.DataFrame, *paths: Path, caption: str, source: str) -> None:
    """Write csv, md or tex files. source: where the numbers come from; a column of the csv, a note elsewhere."""
    reported = any("reported" in column.lower() for column in table)
    note = f"{f'Reported: as its authors print it ({BLANK}: blank there). ' if reported else ''}{source}"
    for path in paths:
        if path.suffix == ".csv":
            text = table.assign(Provenance=note).to_csv(index=False)
        elif path.suffix == ".md":
            cells = _escaped(table, escape.markdown).to_markdown(index=False, disable_numparse=True)
            text = f"**{escape.markdown(caption)}**\n\n{cells}\n\n{escape.markdown(note)}\n"
        else:
            cells = _escaped(table, escape.latex).to_latex(index=False, caption=escape.latex(caption))
            text = f"% {escape.in_one_line(note)}\n{cells}"
        write_atomically(path, text)


def _escaped(table: pd.DataFrame, escape: Callable[[str], str]) -> pd.DataFrame:
    """Its texts and the names of its columns."""
    texts = table.map(lambda cell: escape(cell) if isinstance(cell, str) else cell)
    return texts.set_axis([escape(str(column)) for column in table], axis="columns")
