"""How a benchmark is written down: as CSV, as a page that says where it comes from, and in the README."""

import csv
import datetime
import io

import torch

from ffvit import provenance
from ffvit.checkpoint import write_atomically
from ffvit.config import ROOT


def write(name: str, title: str, rows: list[dict[str, str]], note: str, in_readme: list[str]) -> None:
    """benchmarks/<name>.csv and <name>.md with all columns, and those named in_readme in the README's own place for it."""
    folder = ROOT / "benchmarks"
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / f"{name}.csv", text.getvalue())
    page = f"# {title}\n\n{markdown(rows)}\n{note}\n\n{origin(name)}\n"
    write_atomically(folder / f"{name}.md", page)
    shown = markdown([{column: row[column] for column in in_readme} for row in rows])
    show(name, f"{shown}\nAll of it, with how it was made: [benchmarks/{name}.md](benchmarks/{name}.md).\n")


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def origin(name: str) -> str:
    git, machine, versions = provenance.git_state(), provenance.hardware(torch.device("cpu")), provenance.versions()
    commit = f"{(git['commit'] or 'unknown')[:10]}{', with changes' if git['dirty'] else ''}"
    return (
        f"Made by `python benchmarks/{name}.py` on {datetime.date.today()} at commit {commit}; {machine['cpu_cores']} cores "
        f"of {machine['cpu']}, no GPU; {', '.join(f'{package} {version}' for package, version in versions.items())}."
    )


def show(name: str, text: str) -> None:
    """Put it between <!-- name --> and <!-- end of name --> in the README."""
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise ValueError(f"{readme}: the lines <!-- {name} --> and <!-- end of {name} --> are missing")
    write_atomically(readme, f"{before}{begin}{text}{end}{after}")
