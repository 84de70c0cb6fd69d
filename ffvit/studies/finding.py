"""Notebook 07: what a check of a claim finds: what was measured, at which scale, and a verdict."""

from dataclasses import dataclass

from ffvit.evidence.measured import NOT_RUN

REPRODUCED, CONTRADICTED, NOT_COMPARABLE = "reproduced", "contradicted", "not comparable"
VERDICTS = (REPRODUCED, CONTRADICTED, NOT_COMPARABLE, NOT_RUN)
MODEL = "the model itself"  # a scale: counted or computed when the ledger is built, nothing is trained


@dataclass(frozen=True)
class Finding:
    """What a check found. As it stands: nothing was tried."""

    measured: str = NOT_RUN
    verdict: str = NOT_RUN
    scale: str = ""  # an experiment's scope, or MODEL
    seeds: str = ""
    tolerance: str = ""
    note: str = ""


def of_model(measured: str, agrees: bool, tolerance: str = "exact") -> Finding:
    return Finding(measured, judged(agrees), MODEL, tolerance=tolerance)


def judged(agrees: bool) -> str:
    return REPRODUCED if agrees else CONTRADICTED
