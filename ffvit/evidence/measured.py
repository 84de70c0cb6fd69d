"""What the records of one model say together: mean and spread over seeds, and where they come from."""

import itertools
import statistics
from dataclasses import dataclass, replace

from ffvit.evidence.belonging import belonging, origin
from ffvit.settings.experiment import Experiment
from ffvit.settings.given import with_defaults
from ffvit.settings.headline import headline_of

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
    percent: list[float]  # the headline of the task, a value a seed
    run_ids: list[str]
    origin: str
    commits: list[str]
    hardware: list[str]
    records: list[dict]  # by seed

    @property
    def mean(self) -> float:
        return statistics.mean(self.percent)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None for a single one."""
        return statistics.stdev(self.percent) if len(self.percent) > 1 else None

    def also(self, score: str) -> "Measured":
        """The same of another score of its test images than the headline, by its name in records."""
        return replace(self, percent=[r["results"][score] for r in self.records])

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.2f}"
        return f"{self.mean:.2f}{spread} (n={len(self.percent)})"


def measured(experiment: Experiment, records: list[dict], comparison: str | None = None) -> dict[str, Measured]:
    """What the records say of each model of a comparison, in its order; models without records are left out.

    comparison: "" for the grid; None for the models that stand for the experiment. Records that are not the
    experiment's are left out too, see ffvit.evidence.belonging: status names them. Raises InputError where they are of
    different images.
    """
    part = experiment.main if comparison is None else comparison
    return _measured(experiment, belonging(experiment, records), [part])


def everything(experiment: Experiment, records: list[dict]) -> dict[str, Measured]:
    """What was measured in the grid and in all comparisons, by model."""
    return _measured(experiment, belonging(experiment, records), [*experiment.parts()])


def _measured(experiment: Experiment, records: list[dict], parts: list[str]) -> dict[str, Measured]:
    found = {}
    for variant in (variant for part in parts for variant in experiment.of(part)):
        mine = sorted((r for r in records if r["config"]["name"] == variant.name), key=lambda r: r["config"]["seed"])
        if mine:
            found[variant.name] = Measured(
                name=variant.name,
                label=variant.label,
                model=mine[0]["config"]["model"],
                patches=mine[0]["model"]["patches"],
                features=mine[0]["model"]["features"],
                parameters=mine[0]["model"]["parameters"],
                macs=mine[0]["model"]["macs"],
                percent=[headline(r) for r in mine],
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
        f"on {', '.join(hardware)}.{overlap([r for m in rows for r in m.records])}"
    )


def overlap(records: list[dict]) -> str:
    """A sentence, after a space, where images stand in two roles in these runs, as allow_overlap lets them; or ""."""
    found: dict[str, list[str]] = {}
    for record in records:
        config = with_defaults(record["config"])
        test = "" if config["test_fraction"] else config["test_split"]
        roles = {"training": config["train_split"], "validation": config["validation_split"], "test": test}
        told = [
            f"{one} and {other} images are both '{roles[one]}'"
            for one, other in itertools.combinations(roles, 2)
            if roles[one] and roles[one] == roles[other]
        ]
        if config["allow_overlap"] and not told:  # where files of other names are the same, no setting tells
            told = ["allow_overlap is set, and splits may share images"]
        for words in told:
            found.setdefault(words, []).append(record["run_id"])
    words_of = [what if len(runs) == len(records) else f"{what} ({', '.join(runs)})" for what, runs in found.items()]
    return f" Images in two roles: {'; '.join(words_of)}." if found else ""


def headline(record: dict) -> float:
    """The headline of its task on the test images, in percent."""
    return record["results"][headline_of(record["config"]).name]


def commit(record: dict) -> str:
    """The code that a run was made with, its first ten digits."""
    git = record["git"]
    return f"{(git['commit'] or 'unknown')[:10]}{' with changes' if git['dirty'] else ''}"


def machine(record: dict) -> str:
    """Where a run was made: processes x what they computed on."""
    hardware = record["hardware"]
    name = hardware["gpu"] or hardware["cpu"]
    return f"{hardware['processes']} x {name}"
