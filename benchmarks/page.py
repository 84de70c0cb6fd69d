"""What the README and docs/ show of records, models, notebooks and benchmarks: `make readme` puts it there again.

Each generated part has a place of its own in one page, between <!-- name --> and <!-- end of name -->. A benchmark gives
its rows to `write`, which keeps them as benchmarks/<name>.csv, as a page that says where they come from, and in docs/.
`make readme` also counts again what the published models cost (ffvit/evidence/counted.csv), and draws benchmarks/speed.png.
"""

import csv
import dataclasses
import datetime
import io
import json
import subprocess
from pathlib import Path

import pandas as pd
import torch

from ffvit.evidence import counted, escape
from ffvit.evidence.belonging import belonging
from ffvit.evidence.measured import NOT_RUN, everything, measured
from ffvit.evidence.notebook_metadata import Notebook, load_notebooks
from ffvit.evidence.records import load_records
from ffvit.evidence.reported import reported
from ffvit.models.cost import exact_costs
from ffvit.settings.experiment import load_experiment
from ffvit.studies import architecture, how_far, ledger, lit_stages, study_tables, where
from ffvit.studies.finding import MODEL
from ffvit.studies.report_results import WORDS
from ffvit.system import provenance
from ffvit.system.files import ROOT, write_atomically

# The experiments whose records are shown.
STUDY, STAGES, SCENES = "cifar10-small", "digits-lit", "digits-scenes"
# Small ones, whose ledgers have what the study has not.
ARGUMENTS = (
    "digits-ablations",
    "digits-resolution",
    "digits-attention-only",
    "definitions",
    "cifar10-small-attention-only",
)
DENSE = ("nuclei", "bccd", "aerial")  # experiments of real images whose scores say where
FIRST_ARGUMENT = "13_convolutions"  # the notebooks from here on, by number, are about the report's arguments
PLACES = {
    "findings": "README.md",
    "notebooks": "README.md",
    "arguments": "docs/study.md",
    "where": "docs/lit.md",
    "claims": "docs/claims.md",
    "claims elsewhere": "docs/claims.md",
    "faults": "docs/faults.md",
    "aims": "docs/speed.md",
    "cores": "docs/speed.md",
    "cost": "docs/speed.md",
    "images": "docs/speed.md",
    "overhead": "docs/speed.md",
    "pyramids": "docs/speed.md",
    "same_recipe": "docs/speed.md",
    "speed": "docs/speed.md",
    "startup": "docs/speed.md",
    "steps": "docs/speed.md",
    "lit": "docs/lit.md",
    "stages": "docs/lit.md",
    "study": "docs/study.md",
    "how-far": "docs/how-far.md",
}
SIZES = ["224 x 224", "512 x 512", "800 x 1344"]  # of images through pyramids.py
# Of a benchmark's columns, those that docs/ shows; the others are in its own page.
SHOWN = {
    "cores": [
        *("machine", "model", "batch", "one run on all cores (images/s)", "a run a core (images/s)"),
        *("times", "lowest to highest"),
    ],
    "faults": ["fault", "must show", "shown"],
    "images": ["photographs", "way", "machine", "images/s", "times timm", "times timm, photographs as they are"],
    "overhead": [
        *("machine", "case", "bare loop (s)", "ours (s)"),
        *("time, ours / bare", "lowest to highest", "memory, ours / bare"),
    ],
    "pyramids": ["machine", "what", "model", *(f"{size} ({unit})" for size in SIZES for unit in ("ms", "MB"))],
    "same_recipe": ["seed", "image, top-1 (%)", "batch, top-1 (%)", "difference"],
    "speed": [
        *("machine", "model", "step", "form", "run", "precision"),
        *("images/s", "times published", "share of the limit", "peak memory (GB)"),
    ],
    "startup": ["machine", "what", "budget (s)", "it took (s)", "lowest to highest", "within"],
    "steps": [
        *("machine", "batch", "cell", "waiting, on the device", "lowest to highest, on the device"),
        *("waiting, one by one", "lowest to highest, one by one", "images/s, on the device", "images/s, one by one"),
    ],
}
FILL_IN = "make benchmark DEVICE=cuda"
BLANK = f"not yet: {FILL_IN}"  # in the column "measured"


def write(name: str, title: str, rows: list[dict[str, str]], note: str) -> None:
    """benchmarks/<name>.csv and <name>.md with all columns, and in docs/ those of SHOWN."""
    folder = ROOT / "benchmarks"
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]))
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / f"{name}.csv", text.getvalue())
    write_atomically(folder / f"{name}.md", f"# {title}\n\n{markdown(rows)}\n{note}\n\n{origin(name)}\n")
    show(name, of_benchmark(name))


def measured_before(name: str) -> list[dict[str, str]]:
    """The rows of a benchmark's csv that are not blank."""
    csv_file = ROOT / "benchmarks" / f"{name}.csv"
    old = list(csv.DictReader(csv_file.open(newline=""))) if csv_file.exists() else []
    return [row for row in old if row["measured"] != BLANK]


def of_other_machines(name: str, new: list[dict[str, str]]) -> list[dict[str, str]]:
    """What a benchmark's csv says of machines that none of the new rows is of."""
    return [row for row in measured_before(name) if row["machine"] not in {row["machine"] for row in new}]


def with_blanks(rows: list[dict[str, str]], cases: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows, and a blank one for each case of a GPU that is not among them, which says by which command it is filled in.

    cases: the columns that name them.
    """
    gpus = sorted({row["machine"] for row in rows if row["machine"].startswith("GPU")}) or ["GPU: any"]
    blanks = [
        dict.fromkeys(rows[0], "") | case | {"machine": gpu, "measured": BLANK}
        for gpu in gpus
        for case in cases
        if not any(row["machine"] == gpu and case.items() <= row.items() for row in rows)
    ]
    return rows + blanks


def markdown(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by_machine(rows: list[dict[str, str]]) -> str:
    """A table for each machine, under its name: a column that says the same in every row makes a page too wide to read."""
    tables: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        without = {column: cell for column, cell in row.items() if column != "machine"}
        tables.setdefault(row.get("machine", ""), []).append(without)
    return "\n".join(f"**{machine}**\n\n" * bool(machine) + markdown(table) for machine, table in tables.items())


def origin(name: str) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    git, machine, versions = provenance.git_state(), provenance.hardware(device), provenance.versions()
    commit = f"{(git['commit'] or 'unknown')[:10]}{', with changes' if git['dirty'] else ''}"
    return (
        f"Made by `python benchmarks/{name}.py` on {datetime.date.today()} at commit {commit}; {machine['cpu_cores']} cores "
        f"of {machine['cpu']}, {machine['gpu'] or 'no GPU'}; {', '.join(f'{package} {version}' for package, version in versions.items())}."
    )


def generated() -> dict[str, str]:
    """Every generated part, by the name of its place."""
    import aims  # here: benchmarks, which import this file for `write`, need none of what they need
    import cost

    table, *others = (ledger.ledger(load_experiment(name), load_records(name)) for name in (STUDY, *ARGUMENTS))
    measured_there = ledger.elsewhere(table, dict(zip(ARGUMENTS, others)))
    return {
        "findings": findings(table),
        "notebooks": markdown(notebook_rows("notebooks")),
        "arguments": markdown(notebook_rows("arguments", "../")),
        "where": where_text(),
        "claims": f"**{ledger.summary(table)}**\n\n{ledger.compact(table)}",
        "claims elsewhere": measured_there,
        "lit": markdown(lit_rows()),
        "stages": stages_text(),
        "study": study_text(),
        "how-far": how_far_text(),
        "aims": by_machine(aims.rows()),
        "cost": cost.text(),
        **{name: of_benchmark(name) for name in SHOWN},
    }


def of_benchmark(name: str) -> str:
    """The rows that are not blank, and how many are."""
    with open(ROOT / "benchmarks" / f"{name}.csv", newline="") as file:
        every = list(csv.DictReader(file))
    rows = [{column: row[column] for column in SHOWN[name]} for row in every if row.get("measured") != BLANK]
    blank = len(every) - len(rows)
    left = f" {blank} of its rows, of a GPU, are blank until `{FILL_IN}` fills them in." * (blank > 0)
    return (
        f"{by_machine(rows)}\nAll of it, with how it was made: [benchmarks/{name}.md](../benchmarks/{name}.md).{left}\n"
    )


def findings(table: pd.DataFrame) -> str:
    """The grid of the study, its differences, and the score of its ledger."""
    experiment = load_experiment(STUDY)
    records = belonging(experiment, load_records(STUDY))
    name = f"[{escape.markdown(experiment.title)}](experiments/{STUDY}.toml)"
    itself = table["Scale"] == MODEL
    judged = (
        f"Of the report's numbers and claims, [the ledger](docs/claims.md) has {score(table[itself])}\n"
        f"on the models themselves; of those that need training, {score(table[~itself])}.\n"
    )
    if not records:
        return (
            f"The study {name} is not recorded yet.\n"
            "The picture above is of handwritten digits ([numbers](figures/digits/attention_only.md)),\n"
            f"which are no evidence for the report's claims.\n\n{judged}"
        )
    rows = [
        {
            "patches mixed by": WORDS[m.patches],
            "features mixed by": WORDS[m.features],
            "parameters": f"{m.parameters:,}",
            "multiply-adds": f"{m.macs:,}",
            "top-1 (%)": str(m),
        }
        for m in measured(experiment, records).values()
    ]
    points = f"{experiment.scope} top-1 (points)"
    differences = [
        f"- {escape.markdown(row['Difference'])}: {row[points]}"
        + (f", 95 % interval {row['95 % interval']}" if row["p"] else "")
        # "better" or "worse" is said of the first model, which the line begins with.
        + f": {row['What the seeds show'].removeprefix(row['Difference'].partition(' − ')[0]).strip()}.\n"
        for row in study_tables.pairs(experiment, records).to_dict("records")
        if row["Kind"] == "planned"
    ]
    counted = (
        f"{name}: {len(records)} of {len(experiment.configs())} runs recorded, each model at its own best settings."
    )
    planned = f"Differences in points, as planned before the runs ([all of it](figures/{STUDY}/pairs.md)):\n\n{''.join(differences)}"
    return f"{counted}\n\n{markdown(rows)}\n{planned}\n{judged}"


def score(table: pd.DataFrame) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in ledger.counts(table).items() if number)


def notebook_rows(about: str, folder: str = "") -> list[dict[str, str]]:
    """Of the notebooks "notebooks", the first ones, "arguments" or "where"; folder: where they are, seen from the page."""

    def kind(n: Notebook) -> str:
        if "classification" not in n.tasks:
            return "where"
        return "arguments" if n.name >= FIRST_ARGUMENT else "notebooks"

    return [
        {"notebook": f"[{n.name}]({folder}notebooks/{n.path.name})", "question": n.question, "gives": n.gives}
        for n in load_notebooks()
        if kind(n) == about
    ]


def where_text() -> str:
    """The notebooks of detection and segmentation, what was measured on scenes of digits, and where attention helps on photographs."""
    experiment = load_experiment(SCENES)
    records = belonging(experiment, load_records(SCENES))
    table = where.table(experiment, records)
    shown = table[[c for c in table if c not in ("Part", "Head", "Training images", "95 % interval", *where.LAST)]]
    name = f"[{escape.markdown(experiment.title)}](../experiments/{SCENES}.toml)"
    return (
        f"{markdown(notebook_rows('where', '../'))}\n{name}, {len(records)} of {len(experiment.configs())} runs recorded, test images:\n\n"
        f"{markdown(shown.astype(str).to_dict('records'))}\n"
        f"![The score of each head on validation scenes of digits, by epoch](../figures/{SCENES}/dense_curves.png)\n\n"
        "On photographs, each model at the rate that its trials found: the score on test images by the stages that have attention,\n"
        f"and whether two predictions hold, the first by less than {where.MARGIN:g} point (95 % intervals: notebook 23):\n\n{on_photographs()}"
    )


def on_photographs() -> str:
    """Each head on each set of photographs by attention's stages, what became of the predictions, and models to be read seed by seed."""
    rows, astray = [], []
    for name in DENSE:
        experiment = load_experiment(name)
        records = belonging(experiment, load_records(name))
        found = everything(experiment, records)
        labels = study_tables.headlines(experiment, experiment.variants)
        link = f"[{name}](../experiments/{name}.toml)"
        verdicts = where.predicted(experiment, records)
        for head, layouts in where.by_head(experiment).items():
            of_head = verdicts[verdicts["Head"] == head]
            rows.append(
                {
                    "images": link,
                    "head": head,
                    "score": labels[next(iter(layouts))],
                    **{where.layout_words(at): str(found.get(model, NOT_RUN)) for model, at in layouts.items()},
                    **dict(zip(of_head["Claim"], of_head["Found"])),
                }
            )
        astray += [f"- {link}, {escape.markdown(sentence)}\n" for sentence in where.apart(experiment, records)]
    return markdown(rows) + (f"\nTo be read seed by seed:\n\n{''.join(astray)}" if astray else "")


def lit_rows() -> list[dict[str, str]]:
    rows = []
    for name, (label, layout) in lit_stages.PUBLISHED.items():
        exact, printed = lit_stages.costs(layout), reported(lit_stages.IMAGENET, name, "top1", lit_stages.PAPER)
        known = f"`{name}`" if name == layout.model else f"{label} ({lit_stages.words(layout.stages)}, plain merging)"
        rows.append(
            {
                "model": known,
                "parameters": f"{exact.parameters:,}",
                "multiply-adds": f"{exact.macs:,}",
                "ImageNet top-1, reported (%)": f"{printed.value:.1f}",
            }
        )
    return rows


def stages_text() -> str:
    experiment = load_experiment(STAGES)
    table = lit_stages.measured_table(experiment, load_records(STAGES))
    table["Top-1 (%)"] = table.pop(f"{experiment.scope} top-1 (%)")
    wide = table.pivot(index="Attention in", columns="Merging", values=["Multiply-adds", "Top-1 (%)"])
    rows = [
        {
            "attention in": place,
            **{
                f"{merging} merging: {what}": wide.loc[place, (column, merging)]
                for merging in dict.fromkeys(table["Merging"])
                for what, column in (("multiply-adds", "Multiply-adds"), ("top-1 (%)", "Top-1 (%)"))
            },
        }
        for place in dict.fromkeys(table["Attention in"])
    ]
    folder = f"../figures/{STAGES}"
    return (
        f"{experiment.title} ([experiments/{STAGES}.toml](../experiments/{STAGES}.toml)):\n\n{markdown(rows)}\n"
        f"![Accuracy by the stages that have attention, and against multiply-adds]({folder}/stages.png)\n\n"
        f"All its [tables and figures]({folder}). Its rate is that of a recipe: no trial was made for it.\n"
    )


def study_text() -> str:
    experiment = load_experiment(STUDY)
    what = f"The study shown in the README is [{STUDY}](../experiments/{STUDY}.toml)"
    if not belonging(experiment, load_records(STUDY)):
        return f"{what}. It is not recorded yet.\n"
    folder = f"../figures/{STUDY}"
    return (
        f"{what}: all its [tables and figures]({folder}), what was [tried]({folder}/trials.md) to choose its settings among\n"
        f"them.\n\n![{experiment.title}: accuracy against what it costs]({folder}/accuracy_by_cost.png)\n"
    )


def how_far_text() -> str:
    """What tests hold against others' code, what was recorded and how large, and what never was."""
    listed = subprocess.run(["git", "ls-files", "experiments/*.toml"], cwd=ROOT, capture_output=True, text=True)  # noqa: S607
    # What a person adds is theirs, and not on the project's pages.
    names = sorted(Path(line).stem for line in listed.stdout.splitlines() or (ROOT / "experiments").glob("*.toml"))
    with open(ROOT / "benchmarks/speed.csv", newline="") as file:
        machines = sorted({row["machine"] for row in csv.DictReader(file) if row["images/s"]})
    tables = [how_far.parity(ROOT / "tests"), how_far.sizes(names), how_far.circumstances(names)]
    held, recorded, ways = (markdown(table.astype(str).to_dict("records")) for table in tables)
    return (
        f"## Held against code that is not ours\n\n{held}\n"
        f"## Recorded, and how large\n\nThe largest of each experiment's recorded runs.\n\n{recorded}\n"
        f"## Ways to train\n\n{ways}\n"
        f"Steps alone, not whole runs, [were timed](speed.md) on: {', '.join(machines)}.\n"
    )


def counted_again() -> str:
    """The content of ffvit/evidence/counted.csv, counted on the models themselves."""
    wanted: list[tuple[str, dict]] = [(name, {}) for name in architecture.models_of_the_report()]
    layouts = [layout for _, layout in lit_stages.PUBLISHED.values()]
    layouts += [
        lit_stages.Layout("lit_ti", stages, merging) for merging in lit_stages.MERGINGS for stages in lit_stages.PLACES
    ]
    wanted += [(layout.model, layout.model_args) for layout in dict.fromkeys(layouts)]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    columns = [field.name for field in dataclasses.fields(counted.Counted)]
    table.writerow(["model", "model_args", *columns])
    for name, model_args in wanted:
        exact = exact_costs(name, **model_args)
        table.writerow([name, json.dumps(model_args), *(exact[column] for column in columns)])
    return text.getvalue()


def show(name: str, text: str) -> None:
    """Put a generated part in its place."""
    page = ROOT / PLACES[name]
    before, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end of {name} -->\n")
    if not begin or not end:
        raise ValueError(f"{page}: the lines <!-- {name} --> and <!-- end of {name} --> are missing")
    write_atomically(page, f"{before}{begin}{text}{end}{after}")


if __name__ == "__main__":
    import picture

    picture.draw()
    write_atomically(counted.CSV, counted_again())
    for name, text in generated().items():
        show(name, text)
