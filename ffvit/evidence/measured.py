"""What the records of one model say together: mean and spread over seeds, and where they come from."""

import statistics
from dataclasses import dataclass
from functools import cache

import timm
import torch

from ffvit.evidence.records import deciding, origin
from ffvit.models import ff
from ffvit.settings.experiment import PARTS, Experiment
from ffvit.system.errors import InputError

BLANK, NOT_RUN = "–", "not run"


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


def commit(record: dict) -> str:
    """The code that a run was made with, its first ten digits."""
    git = record["git"]
    return f"{(git['commit'] or 'unknown')[:10]}{' with changes' if git['dirty'] else ''}"


def machine(record: dict) -> str:
    """Where a run was made: processes x what they computed on."""
    hardware = record["hardware"]
    name = hardware["gpu"] or hardware["cpu"]
    return f"{hardware['processes']} x {name}"


def everything(experiment: Experiment, records: list[dict]) -> dict[str, Measured]:
    """What was measured in all parts of an experiment, by model."""
    return {name: m for part in PARTS for name, m in measured(experiment, records, part).items()}


@cache
def cell_of(model: str) -> tuple[str | None, str | None]:
    """What mixes patches, and what mixes features, in a model by timm's name, also where it was never run."""
    if not timm.is_model(model):
        return None, None
    with torch.device("meta"):
        return tuple(ff.cell(timm.create_model(model)).values())


def in_grid(experiment: Experiment, name: str) -> str | None:
    """The model of the grid that another part's model is a variant of: the one of the same cell."""
    cell = cell_of(experiment.models[name]["model"])
    grid = [n for n in experiment.models if experiment.part(n) == "grid"]
    return next((n for n in grid if None not in cell and cell_of(experiment.models[n]["model"]) == cell), None)
