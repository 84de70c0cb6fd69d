"""Notebooks 15 to 20: a prediction is an inequality, and it is judged by its interval over seeds."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ffvit.evidence.measured import NOT_RUN, Measured
from ffvit.evidence.seed_statistics import difference, interval, interval_words, mean_words
from ffvit.settings.experiment import Experiment, Variant
from ffvit.settings.same_run import deciding
from ffvit.studies.claim_checks import CARRIES
from ffvit.studies.finding import NOT_COMPARABLE, Finding, judged

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
FF, VIT = ("ff", "ff"), ("attention", "ff")  # cells of the grid: what mixes patches, what mixes features
SEARCHED = {"name", "base_lr"}  # a variant has its own, so they are no part of what is changed
Cell = tuple[str, str]
Run = Callable[[Experiment, dict[str, Measured]], Measured | None]  # which of the runs measured, of all comparisons
BySeed = dict[int, float]
Points = Callable[[Experiment, dict[str, Measured]], BySeed]  # none where a run is not there


@dataclass(frozen=True)
class Prediction:
    """That a number, which each seed gives once, is above zero."""

    claim: str
    where: str  # in the report, or what else it follows from
    formula: str  # an inequality, in the words of its notebook
    points: Points


def changed(experiment: Experiment, variant: Variant) -> dict[str, Any]:
    """The settings, and arguments of the model, in which a variant differs from the model of the grid that it is of."""
    mine, base = (_flat(deciding(experiment.config(name).to_dict())) for name in (variant.name, variant.of))
    return {key: mine.get(key) for key in sorted({*mine, *base} - SEARCHED) if mine.get(key) != base.get(key)}


def top1_less(first: Measured, second: Measured) -> BySeed:
    return difference(first, second).by_seed


def as_it_is(cell: Cell) -> Run:
    """The model of the grid in a cell."""
    return lambda experiment, found: _base(experiment, found, cell)


def with_change(cell: Cell, **change: Any) -> Run:
    """The same with these settings changed, among others where need be."""

    def run(experiment: Experiment, found: dict[str, Measured]) -> Measured | None:
        fits = [m for m, what in _variants(experiment, found, cell) if change.items() <= what.items()]
        return fits[0] if fits else None

    return run


def with_most(cell: Cell, setting: str) -> Run:
    """The same with the largest value of a setting that was tried beside the model's own."""
    return _extreme(cell, setting, max)


def with_least(cell: Cell, setting: str) -> Run:
    """The same with the smallest value of a setting that was tried beside the model's own."""
    return _extreme(cell, setting, min)


def less(better: Run, worse: Run, values: Callable[[Measured, Measured], BySeed] = top1_less) -> Points:
    """One run less another, seed by seed. values: of two runs, by default in top-1."""

    def points(experiment: Experiment, found: dict[str, Measured]) -> BySeed:
        a, b = better(experiment, found), worse(experiment, found)
        return values(a, b) if a and b else {}

    return points


def beyond(first: Points, second: Points) -> Points:
    """One difference less another, seed by seed."""
    return lambda *of: taken_off(first(*of), second(*of))


def taken_off(ours: BySeed, theirs: BySeed) -> BySeed:
    """One less the other, of the seeds that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}


def both(first: Points, second: Points) -> Points:
    """Of two differences the one by which it is judged whether both are above zero: one that is below, else the less sure."""

    def sureness(by_seed: BySeed) -> tuple[bool, bool, float]:
        limits = interval([*by_seed.values()])
        return bool(by_seed), judge([*by_seed.values()]) != FAILS, limits[0] if limits else -math.inf

    return lambda *of: min(first(*of), second(*of), key=sureness)


def judge(points: list[float], limit: float = 0.0, above: bool = True) -> str:
    """Whether values, one a seed, are above a limit, or not above: by their 95 % interval, which must be clear of it."""
    limits = interval(points)
    if not limits or limits[0] <= limit <= limits[1]:
        return UNDECIDED
    return HOLDS if (limits[0] > limit) == above else FAILS


def measured_beside(points: list[float], limit: float = 0.0, above: bool = True) -> dict[str, str]:
    """The cells of a table that stand beside a prediction: what was measured, its interval, and what was found."""
    return {
        "Measured": mean_words(points),
        "95 % interval": interval_words(points, "+.2f") if points else "",
        "Found": judge(points, limit, above) if points else NOT_RUN,
    }


def table(predictions: Iterable[Prediction], experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """One row a prediction: what was to be above zero, what it was, and whether it holds."""
    rows = []
    for prediction in predictions:
        points = [*prediction.points(experiment, found).values()]
        rows.append(
            {
                "Claim": prediction.claim,
                "Where": prediction.where,
                "Prediction": prediction.formula,
                **measured_beside(points),
            }
        )
    left_less_right = {"Measured": f"{experiment.scope}: left less right (points)", "Found": "The prediction"}
    return pd.DataFrame(rows).rename(columns=left_less_right)


def summary(claims: Iterable[str], found: Iterable[str]) -> str:
    """How many of the predictions hold, in a sentence, and which do not. found: of each claim, as judge says it."""
    verdicts = dict(zip(claims, found))
    told = [f"{list(verdicts.values()).count(HOLDS)} of {len(verdicts)} predictions hold."]
    for verdict in (FAILS, UNDECIDED, NOT_RUN):
        if named := [claim for claim, its in verdicts.items() if its == verdict]:
            told.append(f"{verdict[0].upper()}{verdict[1:]}: {'; '.join(named)}.")
    return "\n".join(told)


def check(prediction: Prediction, experiment: Experiment, found: dict[str, Measured]) -> Finding:
    """The same for the claims ledger, whose rules say at which scale behaviour can be judged."""
    points = [*prediction.points(experiment, found).values()]
    if not points:
        return Finding(note="needs the runs of an experiment that varies this alone, at a scale that carries the claim")
    held = judge(points)
    if experiment.scope not in CARRIES:
        verdict, note = NOT_COMPARABLE, f"{experiment.scope} cannot carry the claim, {' or '.join(CARRIES)} can"
    elif held == UNDECIDED:
        verdict, note = NOT_COMPARABLE, f"the interval of {len(points)} seeds holds zero, or there is none"
    else:
        verdict, note = judged(held == HOLDS), ""
    return Finding(
        measured=f"{mean_words(points)} points, 95 % {interval_words(points, '+.2f')}",
        verdict=verdict,
        scale=experiment.scope,
        seeds=str(len(points)),
        tolerance="above 0, with 95 % confidence",
        note="; ".join(filter(None, [f"{prediction.formula}, left less right", note])),
    )


def _base(experiment: Experiment, found: dict[str, Measured], cell: Cell) -> Measured | None:
    grid = (found[variant.name] for variant in experiment.of() if variant.name in found)
    return next((m for m in grid if (m.patches, m.features) == cell), None)


def _variants(experiment: Experiment, found: dict[str, Measured], cell: Cell) -> Iterator[tuple[Measured, dict]]:
    """The variants of the model in a cell that were measured, with what is changed."""
    if base := _base(experiment, found, cell):
        for variant in experiment.variants.values():
            if variant.of == base.name and variant.comparison and variant.name in found:
                yield found[variant.name], changed(experiment, variant)


def _extreme(cell: Cell, setting: str, pick: Callable) -> Run:
    def run(experiment: Experiment, found: dict[str, Measured]) -> Measured | None:
        tried = [(what[setting], m) for m, what in _variants(experiment, found, cell) if setting in what]
        if setting.startswith("max_"):  # 0: all there are
            tried = [(value or math.inf, m) for value, m in tried]
        return pick(tried, key=lambda pair: pair[0])[1] if tried else None

    return run


def _flat(settings: dict) -> dict[str, Any]:
    """Arguments of the model among the settings."""
    return {key: value for key, value in settings.items() if key != "model_args"} | settings["model_args"]
