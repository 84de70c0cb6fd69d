"""Spread over seeds and differences between models, seed by seed.

Models are compared seed by seed: runs of one seed see the same images in the same order (held-out and test images are the
same for all). Intervals and tests are Student's, at 95 %, over seeds: they speak of training again, not of other images.
"""

import statistics
from dataclasses import dataclass

from scipy import stats

from ffvit.evidence.belonging import of_different_images
from ffvit.evidence.measured import NOT_RUN, Measured, headline
from ffvit.system.errors import InputError

LEVEL = 0.95
ALIKE = 1e-9  # points; numbers as close as this are equal, and what is left is rounding


@dataclass(frozen=True)
class Difference:
    """The headline of a model less another's, in percentage points."""

    by_seed: dict[int, float]  # of the seeds that both have

    @property
    def points(self) -> list[float]:
        return [*self.by_seed.values()]

    @property
    def p(self) -> float | None:
        """Two-sided p of the paired t-test; None without a spread."""
        return float(stats.ttest_1samp(self.points, 0).pvalue) if _has_spread(self.points) else None


def interval(values: list[float]) -> tuple[float, float] | None:
    """95 % confidence interval of the mean; None for a single value, and for values that are all alike."""
    if not _has_spread(values):
        return None
    low, high = stats.ttest_1samp(values, 0).confidence_interval(LEVEL)
    return float(low), float(high)


def difference(first: Measured, second: Measured) -> Difference:
    """first - second, paired by seed. Raises InputError for runs on different images."""
    return Difference({a["config"]["seed"]: headline(a) - headline(b) for a, b in same_seeds(first, second)})


def holm(p_values: list[float]) -> list[float]:
    """Holm's correction for as many tests as there are values: reject those below alpha, whichever they are."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


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


def same_seeds(first: Measured, second: Measured) -> list[tuple[dict, dict]]:
    """Records of two models, pair by pair."""
    one, other = ({r["config"]["seed"]: r for r in m.records} for m in (first, second))
    return [comparable(one[seed], other[seed]) for seed in one if seed in other]


def _has_spread(values: list[float]) -> bool:
    return len(values) > 1 and max(values) - min(values) > ALIKE


def mean_words(points: list[float]) -> str:
    return f"{statistics.mean(points):+.2f} (n={len(points)})".replace("-", "−") if points else NOT_RUN


def interval_words(values: list[float], form: str) -> str:
    if limits := interval(values):
        return f"{limits[0]:{form}} to {limits[1]:{form}}".replace("-", "−")
    return "none: fewer than 2 seeds" if len(values) < 2 else "none: all seeds alike"


def p_words(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def comparable(first: dict, second: dict) -> tuple[dict, dict]:
    if first["dataset"]["fingerprint"] != second["dataset"]["fingerprint"]:
        raise InputError(of_different_images(first, second))
    return first, second
