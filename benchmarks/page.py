"""How a benchmark is written down: as CSV, as a page that says where it comes from, and in the README.

`make readme` puts what comes from records into the README: the grid of the study, the stages of LIT and the claims ledger.
"""

import csv
import datetime
import io

import torch

from ffvit.evidence.measured import measured
from ffvit.evidence.records import load_records
from ffvit.evidence.reported import reported
from ffvit.settings.experiment import load_experiment
from ffvit.studies import claims, stages
from ffvit.studies.report import WORDS
from ffvit.system import provenance
from ffvit.system.files import ROOT, write_atomically

# The experiments whose records the README shows.
STUDY, STAGES = "cifar10-cpu", "cifar10-lit-cpu"


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    git, machine, versions = provenance.git_state(), provenance.hardware(device), provenance.versions()
    commit = f"{(git['commit'] or 'unknown')[:10]}{', with changes' if git['dirty'] else ''}"
    return (
        f"Made by `python benchmarks/{name}.py` on {datetime.date.today()} at commit {commit}; {machine['cpu_cores']} cores "
        f"of {machine['cpu']}, {machine['gpu'] or 'no GPU'}; {', '.join(f'{package} {version}' for package, version in versions.items())}."
    )


def from_records() -> dict[str, str]:
    """What the README shows of records and of what is counted on models, by the name of its place there."""
    experiment, records = load_experiment(STUDY), load_records(STUDY)
    found = measured(experiment, records)
    rows = [
        {
            "patches mixed by": WORDS[m.patches],
            "features mixed by": WORDS[m.features],
            "parameters": f"{m.parameters:,}",
            "multiply-adds": f"{m.macs:,}",
            f"{experiment.scope}: top-1 (%)": str(m),
        }
        for m in found.values()
    ]
    ledger = claims.ledger(experiment, records)
    return {
        "study": markdown(rows),
        "lit": markdown(lit_rows()),
        "stages": markdown(stage_rows()),
        "claims": f"**{claims.summary(ledger)}**\n\n{claims.compact(ledger)}",
    }


def lit_rows() -> list[dict[str, str]]:
    rows = []
    for name, (label, layout) in stages.PUBLISHED.items():
        exact, printed = stages.costs(layout), reported(stages.IMAGENET, name, "top1", stages.PAPER)
        known = f"`{name}`" if name == layout.model else f"{label} ({stages.words(layout.stages)}, plain merging)"
        rows.append(
            {
                "model": known,
                "parameters": f"{exact.parameters:,}",
                "multiply-adds": f"{exact.macs:,}",
                "ImageNet top-1, reported (%)": f"{printed.value:.1f}",
            }
        )
    return rows


def stage_rows() -> list[dict[str, str]]:
    experiment = load_experiment(STAGES)
    table = stages.measured_table(experiment, load_records(STAGES))
    table["Top-1 (%)"] = table.pop(f"{experiment.scope} top-1 (%)")
    wide = table.pivot(index="Attention in", columns="Merging", values=["Multiply-adds", "Top-1 (%)"])
    return [
        {
            "attention in": place,
            **{
                f"{merging} merging: {what}": wide.loc[place, (column, merging)]
                for merging in ("deformable", "plain")
                for what, column in (("multiply-adds", "Multiply-adds"), ("top-1 (%)", "Top-1 (%)"))
            },
        }
        for place in dict.fromkeys(table["Attention in"])
    ]


def show(name: str, text: str) -> None:
    """Put it between <!-- name --> and <!-- end of name --> in the README."""
    readme = ROOT / "README.md"
    before, begin, rest = readme.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise ValueError(f"{readme}: the lines <!-- {name} --> and <!-- end of {name} --> are missing")
    write_atomically(readme, f"{before}{begin}{text}{end}{after}")


if __name__ == "__main__":
    for place, text in from_records().items():
        show(place, text)
