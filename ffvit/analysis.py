"""What a study says: spread over seeds, differences between models, agreement of their mistakes, and what was tried before.

Models are compared seed by seed: runs of one seed see the same images in the same order (held-out and test images are the
same for all). Intervals and tests are Student's, at 95 %, over seeds: they speak of training again, not of other images.
"""

import itertools
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import pandas as pd
import timm
import torch
from scipy import stats

from ffvit import models
from ffvit.config import PARTS, Experiment, InputError
from ffvit.record import deciding
from ffvit.tables import NOT_RUN, Measured, commit, machine, measured

LEVEL = 0.95
ALIKE = 1e-9  # points; numbers as close as this are equal, and what is left is rounding
FF_ONLY = ("ff", "ff")


@dataclass(frozen=True)
class Difference:
    """Top-1 of a model less another's, in percentage points."""

    points: list[float]  # one value a seed that both have

    @property
    def p(self) -> float | None:
        """Two-sided p of the paired t-test; None without a spread."""
        return float(stats.ttest_1samp(self.points, 0).pvalue) if _has_spread(self.points) else None


@dataclass(frozen=True)
class Agreement:
    """How alike two models of the grid err, in percent: means over pairs of runs, None where there is nothing to count.

    Two models: their runs of one seed. A model and itself: all pairs of its seeds, the measure to judge the others by.
    """

    first: str
    second: str
    pairs: int
    why_blank: str = ""  # where there is no pair
    errors: tuple[float, float] | None = None  # images that the one, the other gets wrong
    both: float | None = None  # images that both get wrong
    independent: float | None = None  # the same, did the one's mistakes know nothing of the other's
    overlap: float | None = None  # Jaccard: of the images that either gets wrong, those that both do
    independent_overlap: float | None = None
    same_answer: float | None = None  # of the images that both get wrong, those with the same wrong class


def everything(experiment: Experiment, records: list[dict]) -> dict[str, Measured]:
    """What was measured in all parts of an experiment, by model."""
    return {name: m for part in PARTS for name, m in measured(experiment, records, part).items()}


@cache
def cell_of(model: str) -> tuple[str | None, str | None]:
    """What mixes patches, and what mixes features, in a model by timm's name, also where it was never run."""
    if not timm.is_model(model):
        return None, None
    with torch.device("meta"):
        return tuple(models.cell(timm.create_model(model)).values())


def in_grid(experiment: Experiment, name: str) -> str | None:
    """The model of the grid that another part's model is a variant of: the one of the same cell."""
    cell = cell_of(experiment.models[name]["model"])
    grid = [n for n in experiment.models if experiment.part(n) == "grid"]
    return next((n for n in grid if None not in cell and cell_of(experiment.models[n]["model"]) == cell), None)


def interval(values: list[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean; None for a single value, and for values that are all alike."""
    if not _has_spread(values):
        return None
    return tuple(map(float, stats.ttest_1samp(values, 0).confidence_interval(LEVEL)))


def difference(first: Measured, second: Measured) -> Difference:
    """first - second, paired by seed. Raises InputError for runs on different images."""
    return Difference([_top1(a) - _top1(b) for a, b in same_seeds(first, second)])


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for as many tests as there are values: reject those below alpha, whichever they are."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def study(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a model of every part. A cell without a model of equal multiply-adds is there already, in the grid."""
    found = everything(experiment, records)
    rows = []
    for part, title in PARTS.items():
        names = [n for n in experiment.models if experiment.part(n) == part]
        for name in _of_the_grid(experiment, names) + names if part == "matched" else names:
            label = experiment.models[name]["label"]
            label += "" if experiment.part(name) == part else " (the grid's run)"
            label += f", {experiment.config(name).max_train_images:,} images" if part == "data" else ""
            rows.append({"Part": title, "Model": label, **measures(experiment, found.get(name))})
    return pd.DataFrame(rows)


def measures(experiment: Experiment, m: Measured | None) -> dict:
    """The columns of a model in a table of what was measured. m: None, it was not run."""
    columns = {
        "Params": lambda: f"{m.parameters:,}",
        "Multiply-adds": lambda: f"{m.macs:,}",
        "Epochs": lambda: len(m.records[0]["history"]),
        "Training images": lambda: f"{m.records[0]['dataset']['images']['train']:,}",
        f"{experiment.scope} top-1 (%)": lambda: str(m),
        "95 % interval": lambda: _interval_words(m.top1_percent, ".2f"),
        "Training (min)": lambda: f"{statistics.mean(r['duration_s'] for r in m.records) / 60:.3g}",
        "Images/s": lambda: f"{statistics.median(e['images_per_s'] for r in m.records for e in r['history']):,.0f}",
        "Hardware": lambda: ", ".join(m.hardware),
    }
    if m is None:
        return {column: NOT_RUN if "top-1" in column else "" for column in columns}
    return {column: value() for column, value in columns.items()}


def pairs(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Differences in top-1, seed by seed, with Holm's correction over all tests of the table."""
    compared = [(first, second, *_words(experiment, first, second)) for first, second in comparisons(experiment)]
    table = differences(experiment, everything(experiment, records), compared)
    parts = [experiment.part(first if experiment.part(first) == "loader" else second) for first, second, *_ in compared]
    table.insert(0, "Part", [PARTS[part] for part in parts])
    return table


def differences(
    experiment: Experiment, found: dict[str, Measured], compared: list[tuple[str, str, str, str]]
) -> pd.DataFrame:
    """One row a comparison: top-1 of the first model less the second's, in points, and Holm's correction over all rows.

    compared: names of two models, and the words for each. Raises InputError for runs on different images.
    """
    both = [difference(found[a], found[b]) if a in found and b in found else None for a, b, *_ in compared]
    tested = [i for i, d in enumerate(both) if d and d.p is not None]
    corrected = dict(zip(tested, holm([both[i].p for i in tested])))
    rows = []
    for i, (d, (*_, ours, theirs)) in enumerate(zip(both, compared)):
        n = 0 if d is None else len(d.points)
        rows.append(
            {
                "Difference": f"{ours} − {theirs}",
                f"{experiment.scope} top-1 (points)": f"{statistics.mean(d.points):+.2f} (n={n})" if n else NOT_RUN,
                "95 % interval": _interval_words(d.points, "+.2f") if n else "",
                "p": _p_words(d.p) if i in corrected else "",
                "p (Holm)": _p_words(corrected[i]) if i in corrected else "",
                "What the seeds show": NOT_RUN if d is None else verdict(d, corrected.get(i), ours),
            }
        )
    return pd.DataFrame(rows)


def comparisons(experiment: Experiment) -> list[tuple[str, str]]:
    """Names of the models compared: FF only with the others of its part, the loader's with the grid's."""
    found = []
    for name, entry in experiment.models.items():
        part = experiment.part(name)
        if part == "loader":
            found.append((name, in_grid(experiment, name)))
        elif cell_of(entry["model"]) != FF_ONLY:
            found.append((_ff_only(experiment, name), name))
    return [(first, second) for first, second in found if first and second]


def verdict(d: Difference, corrected: float | None, words: str) -> str:
    """What a difference says of its first model, `words`; corrected: Holm's p."""
    n = len(d.points)
    if n < 2:
        return f"too few seeds (n={n})"
    if corrected is None:
        return f"the same difference in all {n} seeds: no test"
    if corrected >= 1 - LEVEL:
        return f"no difference shown (n={n})"
    return f"{words} {'better' if statistics.mean(d.points) > 0 else 'worse'}"


def agreement(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """How alike the models of the grid err, beside how alike two seeds of one model do."""
    rows = []
    for a in agreements(experiment, records):
        one, other = (experiment.models[name]["label"] for name in (a.first, a.second))
        rows.append(
            {
                "Compared": "seeds of one model" if a.first == a.second else "models, the same seed",
                "Runs of": one if a.first == a.second else f"{one}; {other}",
                "Pairs of runs": a.pairs or "",
                "Wrong (%)": "{:.2f}; {:.2f}".format(*a.errors) if a.errors else a.why_blank,
                "Both wrong (%)": _percent(a.both),
                "Both wrong, if independent (%)": _percent(a.independent),
                "Overlap of mistakes (%)": _percent(a.overlap),
                "Overlap, if independent (%)": _percent(a.independent_overlap),
                "Same wrong answer (% of both wrong)": _percent(a.same_answer),
            }
        )
    return pd.DataFrame(rows)


def agreements(experiment: Experiment, records: list[dict]) -> list[Agreement]:
    """Every model of the grid with itself, then with each other. Raises InputError for runs on different images."""
    found = measured(experiment, records)
    names = [n for n in experiment.models if experiment.part(n) == "grid"]
    return [_agreement(n, n, found) for n in names] + [
        _agreement(*two, found) for two in itertools.combinations(names, 2)
    ]


def trials(experiment: Experiment, trials: list[dict]) -> pd.DataFrame:
    """What was tried before the recipe was chosen, by validation top-1: trials are never scored on the test images."""
    alike = defaultdict(list)
    for trial in trials:
        alike[trial["config"]["name"], _unlike_the_experiment(experiment, trial["config"])].append(trial)
    order = list(experiment.models)
    rows = []
    for (name, settings), group in alike.items():
        top1 = [t["history"][-1]["validation_top1_percent"] for t in group]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(group) > 1 else ""
        rows.append(
            {
                "Model": group[0]["config"]["label"],
                "Name": name,
                "Settings unlike the experiment's": settings or "as chosen",
                "Seeds": ", ".join(str(seed) for seed in sorted(t["config"]["seed"] for t in group)),
                "Validation top-1 (%)": f"{statistics.mean(top1):.2f}{spread} (n={len(group)})",
                "Training (min)": f"{statistics.mean(t['duration_s'] for t in group) / 60:.3g}",
                "Hardware": ", ".join(sorted({machine(t) for t in group})),
                "order": (order.index(name) if name in order else len(order), name, -statistics.mean(top1)),
            }
        )
    table = pd.DataFrame(sorted(rows, key=lambda row: row["order"]))
    if table.empty:
        return pd.DataFrame([{"Model": NOT_RUN, "Settings unlike the experiment's": "no trial is recorded"}])
    return table.drop(columns="order")


def trial_sources(trials: list[dict]) -> str:
    """One sentence on where the numbers of the trials come from."""
    if not trials:
        return "No trial is recorded."
    commits, machines = (", ".join(sorted({of(t) for t in trials})) for of in (commit, machine))
    return f"Validation images, after the last epoch, of {len(trials)} trials: commit {commits}, on {machines}."


def _top1(record: dict) -> float:
    return record["results"]["top1_percent"]


def _has_spread(values: list[float]) -> bool:
    return len(values) > 1 and max(values) - min(values) > ALIKE


def _of_the_grid(experiment: Experiment, matched: list[str]) -> list[str]:
    """The grid's models of cells that have no matched model; none where nothing is matched."""
    cells = {cell_of(experiment.models[n]["model"]) for n in matched}
    grid = [n for n in experiment.models if experiment.part(n) == "grid"]
    return [n for n in grid if cells and cell_of(experiment.models[n]["model"]) not in cells]


def _ff_only(experiment: Experiment, name: str) -> str | None:
    """The FF-only model to compare a model with: of its part or else the grid, its number of images and its size."""

    def fits(other: str, part: str) -> bool:
        images = {experiment.config(n).max_train_images for n in (name, other)}
        return (
            experiment.part(other) == part
            and cell_of(experiment.models[other]["model"]) == FF_ONLY
            and (part != "data" or len(images) == 1)
        )

    def size(other: str) -> list[str]:  # ff_tiny_patch16_224 and vit_tiny_patch16_224 are of one
        return experiment.models[other]["model"].split("_")[-3:]

    own = [n for n in experiment.models if fits(n, experiment.part(name))]
    if experiment.part(name) == "matched":
        own = own or [n for n in experiment.models if fits(n, "grid")]
    return next((n for n in own if size(n) == size(name)), own[0] if own else None)


def _words(experiment: Experiment, first: str, second: str) -> tuple[str, str]:
    """What to call two models compared; the second also says where the comparison differs from others of its part."""
    ours, theirs = (experiment.models[name]["label"] for name in (first, second))
    if experiment.part(first) == "loader":
        return f"{ours}, images one by one", "in batches"
    images = experiment.config(second).max_train_images
    return ours, theirs + (f", {images:,} images" if experiment.part(second) == "data" else "")


def _interval_words(values: list[float], form: str) -> str:
    if limits := interval(values):
        return f"{limits[0]:{form}} to {limits[1]:{form}}"
    return "none: fewer than 2 seeds" if len(values) < 2 else "none: all seeds alike"


def _p_words(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def same_seeds(first: Measured, second: Measured) -> list[tuple[dict, dict]]:
    """Records of two models, pair by pair."""
    one, other = ({r["config"]["seed"]: r for r in m.records} for m in (first, second))
    return [_comparable(one[seed], other[seed]) for seed in one if seed in other]


def _comparable(first: dict, second: dict) -> tuple[dict, dict]:
    prints = [r["dataset"]["fingerprint"] for r in (first, second)]
    if prints[0] != prints[1]:
        raise InputError(
            f"{first['run_id']} and {second['run_id']} of {first['config']['experiment']} are of different images "
            f"(fingerprints {prints[0]} and {prints[1]}): run the pipeline again, or remove one from results/"
        )
    return first, second


def _agreement(first: str, second: str, found: dict[str, Measured]) -> Agreement:
    if first not in found or second not in found:
        return Agreement(first, second, 0, NOT_RUN)
    if first == second:
        runs = [_comparable(*two) for two in itertools.combinations(found[first].records, 2)]
    else:
        runs = same_seeds(found[first], found[second])
    if not runs:
        return Agreement(first, second, 0, "too few seeds")
    runs = [two for two in runs if all("mistakes" in r["results"] for r in two)]
    if not runs:
        return Agreement(first, second, 0, "mistakes not recorded")
    counted = pd.DataFrame([_count(*two) for two in runs]).mean()  # a blank, NaN here, is in no mean
    one, other, *means = [None if pd.isna(value) else float(value) for value in counted]
    return Agreement(first, second, len(runs), "", (one, other), *means)


def _count(first: dict, second: dict) -> tuple[float, ...]:
    """The numbers of Agreement for two runs; NaN for a share of nothing."""
    one, other = (_mistakes(r) for r in (first, second))
    images = first["results"]["images"]
    common = one.keys() & other.keys()
    e, f = len(one) / images, len(other) / images
    shares = (
        (len(one), images),
        (len(other), images),
        (len(common), images),
        (e * f, 1),
        (len(common), len(one.keys() | other.keys())),
        (e * f, e + f - e * f),
        (sum(one[i] == other[i] for i in common), len(common)),
    )
    return tuple(100 * part / whole if whole else float("nan") for part, whole in shares)


def _mistakes(record: dict) -> dict[str, str]:
    """Wrong class by index of the test image."""
    return dict(pair.split(":") for pair in record["results"]["mistakes"].split())


def _unlike_the_experiment(experiment: Experiment, config: dict) -> str:
    """The settings that decide a result in which a trial differs from what its experiment says now: "epochs=3, ..."."""
    now = deciding(experiment.config(config["name"], config["seed"]).to_dict())
    then = deciding(config)
    return ", ".join(f"{key}={json.dumps(then[key])}" for key in sorted(then) if then[key] != now.get(key))
