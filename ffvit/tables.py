"""The tables: reported beside measured, never one for the other, and each file says where its numbers come from.

A dash is a blank in the report; "not run" is ours; an empty cell does not apply.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import timm
import torch
from pandas.io.formats.style import Styler

from ffvit import checkpoint, models
from ffvit.config import Experiment, InputError
from ffvit.record import deciding, origin
from ffvit.reported import load_reported, reported

BLANK, NOT_RUN = "–", "not run"

# Table 1 of the report, row by row: size, family, timm's name.
TABLE1 = (
    ("Tiny, P=16", "ViT", "vit_tiny_patch16_224"),
    ("Tiny, P=16", "DeiT", "deit_tiny_patch16_224"),
    ("Tiny, P=16", "FF only", "ff_tiny_patch16_224"),
    ("Base, P=16", "ViT", "vit_base_patch16_224"),
    ("Base, P=16", "DeiT", "deit_base_patch16_224"),
    ("Base, P=16", "FF only", "ff_base_patch16_224"),
    ("Large, P=32", "ViT", "vit_large_patch32_224"),
    ("Large, P=32", "DeiT", "deit_large_patch32_224"),  # a blank row of the report; timm has no such model
    ("Large, P=32", "FF only", "ff_large_patch32_224"),
)
# The 2x2 grid at tiny size: what mixes patches, what mixes features, timm's name, where the report gives a number.
GRID = (
    ("attention", "ff", "deit_tiny_patch16_224", "Table 1"),
    ("ff", "ff", "ff_tiny_patch16_224", "Table 1"),
    ("attention", "attention", "attention_only_tiny_patch16_224", "Section 3.4"),
    ("ff", "attention", "ff_attention_tiny_patch16_224", None),
)
WORDS = {"ff": "feed-forward", "attention": "attention"}


@dataclass(frozen=True)
class Measured:
    """What the records of one model of an experiment say together."""

    name: str
    label: str
    model: str
    patches: str | None
    features: str | None
    parameters: int
    macs: int
    top1_percent: list[float]  # one value a seed
    run_ids: list[str]
    origin: str
    commits: list[str]
    hardware: list[str]
    records: list[dict]  # by seed

    @property
    def mean(self) -> float:
        return statistics.mean(self.top1_percent)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.top1_percent) if len(self.top1_percent) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread} (n={len(self.top1_percent)})"


def measured(experiment: Experiment, records: list[dict], part: str = "grid") -> dict[str, Measured]:
    """Records by model of a part of the experiment, in its order; models without records are left out."""
    found = {}
    for name, entry in experiment.models.items():
        if experiment.part(name) != part:
            continue
        mine = sorted((r for r in records if r["config"]["name"] == name), key=lambda r: r["config"]["seed"])
        for r in mine[1:]:
            if deciding(r["config"]) != deciding(mine[0]["config"]):
                raise InputError(
                    f"{r['run_id']} and {mine[0]['run_id']} of {experiment.name} have different settings and make no "
                    "mean: run the pipeline again, or remove one from results/"
                )
        if mine:
            found[name] = Measured(
                name=name,
                label=entry["label"],
                model=entry["model"],
                patches=mine[0]["model"]["patches"],
                features=mine[0]["model"]["features"],
                parameters=mine[0]["model"]["parameters"],
                macs=mine[0]["model"]["macs"],
                top1_percent=[r["results"]["top1_percent"] for r in mine],
                run_ids=[r["run_id"] for r in mine],
                origin=" and ".join(sorted({origin(r) for r in mine})),
                commits=sorted({commit(r) for r in mine}),
                hardware=sorted({machine(r) for r in mine}),
                records=mine,
            )
    return found


def sources(found: dict[str, Measured]) -> str:
    """One sentence on where the measured numbers of a table or figure come from."""
    if not found:
        return "Reported numbers only: nothing was run."
    rows = found.values()
    commits = sorted({c for m in rows for c in m.commits})
    hardware = sorted({h for m in rows for h in m.hardware})
    origins = sorted({m.origin for m in rows})
    runs = [r for m in rows for r in m.run_ids]
    return (
        f"Measured: {' and '.join(origins)}, {len(runs)} runs ({', '.join(runs)}), commit {', '.join(commits)}, "
        f"on {', '.join(hardware)}."
    )


def models_table() -> pd.DataFrame:
    """Exact parameters and multiply-adds of every model at 224 px and 1000 classes, beside the report's numbers."""
    names = [row[2] for row in TABLE1] + [row[2] for row in GRID if row[2] not in {r[2] for r in TABLE1}]
    printed = {r.model: r for r in load_reported() if r.metric == "parameters"}
    rows = []
    for name in names:
        exact = exact_costs(name)
        rows.append(
            {
                "model": name,
                "patches": exact["patches"],
                "features": exact["features"],
                "parameters": exact["parameters"],
                "parameters_reported_millions": printed[name].value if name in printed else None,
                "macs": exact["macs"],
                "note": printed[name].note if name in printed else "",
            }
        )
    table = pd.DataFrame(rows).dropna(subset=["parameters"])
    return table.astype({"parameters": "int64", "macs": "int64"})


def exact_costs(name: str) -> dict:
    """Parameters and multiply-adds counted on the model itself, without giving it memory; None where timm has none."""
    if not timm.is_model(name):
        return dict(parameters=None, macs=None, patches=None, features=None)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=1000)
    macs = models.count_macs(model, (3, 224, 224))
    return dict(parameters=models.count_parameters(model), macs=macs, **models.cell(model))


def table1(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """The report's Table 1 and, in columns and rows of their own, what this experiment measured."""
    imagenet = {m.model: m for m in found.values()} if experiment.scope == "ImageNet" else {}
    ours = f"{experiment.scope} top-1 measured (%)"
    rows = []
    for size, family, name in TABLE1:
        printed = {metric: reported("Table 1", name, metric) for metric in ("parameters", "top1")}
        exact = exact_costs(name)["parameters"]
        rows.append(
            {
                "Size": size,
                "Model": family,
                "Params reported": BLANK
                if printed["parameters"].value is None
                else f"{printed['parameters'].value:g}M",
                "Params exact": "" if exact is None else f"{exact:,}",
                "ImageNet top-1 reported (%)": BLANK
                if printed["top1"].value is None
                else f"{printed['top1'].value:.1f}",
                "ImageNet top-1 measured (%)": str(imagenet.get(name, NOT_RUN)) if exact else "",
                "Note": "; ".join(p.note for p in printed.values() if p.note),
            }
        )
    table = pd.DataFrame(rows)
    if experiment.scope != "ImageNet":
        own = [
            {
                "Size": experiment.scope,
                "Model": entry["label"],
                ours: str(found.get(name, NOT_RUN)),
                "Params exact": f"{found[name].parameters:,}" if name in found else "",
            }
            for name, entry in experiment.models.items()
            if experiment.part(name) == "grid"
        ]
        table = pd.concat([table, pd.DataFrame(own)], ignore_index=True)
        table.insert(6, ours, table.pop(ours))
    return table.fillna("")


def in_cell(
    experiment: Experiment, found: dict[str, Measured], patches: str, features: str, name: str
) -> Measured | None:
    """What was measured for a cell of the grid; of ImageNet's several sizes, the tiny model `name`."""
    fits = [m for m in found.values() if (m.patches, m.features) == (patches, features)]
    if experiment.scope == "ImageNet":
        fits = [m for m in fits if m.model == name]
    return fits[0] if fits else None


def grid_table(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """The 2x2 grid: the report's ImageNet numbers at tiny size, and this experiment's in their own column."""
    ours = f"{experiment.scope} top-1 measured (%)"
    rows = []
    for patches, features, name, place in GRID:
        printed = reported(place, name, "top1") if place else None
        mine = in_cell(experiment, found, patches, features, name)
        reading = reported(place, name, "parameters").note if place == "Section 3.4" else ""
        rows.append(
            {
                "Patches mixed by": WORDS[patches],
                "Features mixed by": WORDS[features],
                "Model (tiny)": name,
                "Params exact (tiny)": f"{exact_costs(name)['parameters']:,}",
                "ImageNet top-1 reported (%)": f"{printed.value:.1f}" if printed else "never run",
                ours: str(mine) if mine else NOT_RUN,
                f"Params exact ({experiment.scope})": f"{mine.parameters:,}" if mine else "",
                "Note": "; ".join(filter(None, [printed.note, reading]))
                if printed
                else "The report leaves this cell open",
            }
        )
    return pd.DataFrame(rows)


def display(table: pd.DataFrame) -> Styler:
    """A table as a notebook shows it: text to the left, no index."""
    numbers = {c: "{:,}" for c in table.select_dtypes("int64")} | {c: "{:g}" for c in table.select_dtypes("float64")}
    left = {"text-align": "left", "vertical-align": "top"}
    styled = table.style.hide().format(numbers, na_rep=BLANK).set_properties(**left)
    return styled.set_table_styles([{"selector": "th", "props": list(left.items())}])


def save(table: pd.DataFrame, stem: Path, formats: tuple[str, ...], caption: str, source: str) -> None:
    """Write a table as csv, md and tex. source: where its numbers come from; a column of the csv, a note elsewhere."""
    reported = any("reported" in column.lower() for column in table)
    note = f"{f'Reported: as its authors print it ({BLANK}: blank there). ' if reported else ''}{source}"
    if "csv" in formats:
        checkpoint.write_atomically(stem.with_suffix(".csv"), table.assign(Provenance=note).to_csv(index=False))
    if "md" in formats:
        text = f"**{caption}**\n\n{table.to_markdown(index=False, disable_numparse=True)}\n\n{note}\n"
        checkpoint.write_atomically(stem.with_suffix(".md"), text)
    if "tex" in formats:
        body = table.to_latex(index=False, escape=True, caption=caption)
        checkpoint.write_atomically(stem.with_suffix(".tex"), f"% {note}\n{body}")


def commit(record: dict) -> str:
    """The code that a run was made with, its first ten digits."""
    git = record["git"]
    return f"{(git['commit'] or 'unknown')[:10]}{' with changes' if git['dirty'] else ''}"


def machine(record: dict) -> str:
    """Where a run was made: processes x what they computed on."""
    hardware = record["hardware"]
    name = hardware["gpu"] or hardware["cpu"]
    return f"{hardware['processes']} x {name}"
