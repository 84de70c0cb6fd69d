"""How a table is shown, and written as csv, md and tex, with where its numbers come from."""

from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from ffvit.evidence.measured import BLANK
from ffvit.system.files import write_atomically

FORMATS = (".csv", ".md", ".tex")


def display(table: pd.DataFrame) -> Styler:
    """A table as a notebook shows it: text to the left, no index."""
    numbers = {c: "{:,}" for c in table.select_dtypes("int64")} | {c: "{:g}" for c in table.select_dtypes("float64")}
    left = {"text-align": "left", "vertical-align": "top"}
    styled = table.style.hide().format(numbers, na_rep=BLANK).set_properties(**left)
    return styled.set_table_styles([{"selector": "th", "props": list(left.items())}])


def save(table: pd.DataFrame, *paths: Path, caption: str, source: str) -> None:
    """Write csv, md or tex files. source: where the numbers come from; a column of the csv, a note elsewhere."""
    reported = any("reported" in column.lower() for column in table)
    note = f"{f'Reported: as its authors print it ({BLANK}: blank there). ' if reported else ''}{source}"
    for path in paths:
        if path.suffix == ".csv":
            text = table.assign(Provenance=note).to_csv(index=False)
        elif path.suffix == ".md":
            text = f"**{caption}**\n\n{table.to_markdown(index=False, disable_numparse=True)}\n\n{note}\n"
        else:
            text = f"% {note}\n{table.to_latex(index=False, escape=True, caption=caption)}"
        write_atomically(path, text)
