"""Numbers that papers publish, as data: reported.csv, checked whenever it is read. A blank stays blank."""

import csv
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ffvit.system.errors import InputError

CSV = Path(__file__).with_name("reported.csv")
UNITS = {
    "parameters": "million",
    "macs": "giga",
    "top1": "percent",
    "box_ap": "percent",
    "mask_ap": "percent",
    "miou": "percent",
    "epochs": "epochs",
    "num_tokens": "tokens",
}
# "report": the FF-only report itself; "paper": another one; "readme": the README of a paper's official code.
SOURCES = ("report", "paper", "readme")


@dataclass(frozen=True)
class Reported:
    paper: str
    place: str  # in the source: a table, a section, or what was measured
    model: str  # timm's name for it, or one of our own where timm has none
    metric: str
    value: float | None  # None: the source leaves it blank
    printed: str  # the value's digits, as they stand in the file: 4.0 is not 4
    unit: str
    source: str  # one of SOURCES
    note: str

    @property
    def number(self) -> float:
        """The value of what is no blank."""
        if self.value is None:
            raise ValueError(f"{self.metric} of {self.model} is blank in {self.place} of {self.paper}")
        return self.value


COLUMNS = {field.name for field in fields(Reported)} - {"printed"}


def load_reported(path: Path = CSV) -> list[Reported]:
    """Every row of the file. Raises InputError with the line for a wrong unit, source or number, or one given twice."""
    rows: list[Reported] = []
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for cells in reader:
            where = f"{path.name}, line {reader.line_num}"
            if set(cells) != COLUMNS or None in cells.values():
                raise InputError(f"{where}: needs the columns {', '.join(sorted(COLUMNS))}")
            if UNITS.get(cells["metric"]) != cells["unit"]:
                raise InputError(f"{where}: metric '{cells['metric']}' in '{cells['unit']}'; known: {UNITS}")
            if cells["source"] not in SOURCES:
                raise InputError(f"{where}: source '{cells['source']}'; known: {', '.join(SOURCES)}")
            try:
                value = float(cells["value"]) if cells["value"] else None
            except ValueError:
                value = math.nan
            if value is not None and (
                not math.isfinite(value) or value < 0 or cells["unit"] == "percent" and value > 100
            ):
                raise InputError(f"{where}: '{cells['value']}' is no value in {cells['unit']}")
            given: dict[str, Any] = cells | {"value": value, "printed": cells["value"]}
            row = Reported(**given)
            if any(
                (r.paper, r.place, r.model, r.metric) == (row.paper, row.place, row.model, row.metric) for r in rows
            ):
                raise InputError(f"{where}: {row.metric} of {row.model} is given twice for {row.paper}, {row.place}")
            rows.append(row)
    return rows


def reported(place: str, model: str, metric: str, paper: str = "arXiv:2105.02723") -> Reported:
    """One number, or KeyError where the sources are silent."""
    for row in load_reported():
        if (row.paper, row.place, row.model, row.metric) == (paper, place, model, metric):
            return row
    raise KeyError(f"reported.csv has no {metric} of {model} in {place} of {paper}")
