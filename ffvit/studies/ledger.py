"""Notebook 07: the claims ledger, every number and claim of the report (arXiv:2105.02723), what was measured here, and a verdict."""

import pandas as pd

from ffvit.evidence import measured as evidence
from ffvit.evidence.escape import markdown
from ffvit.evidence.measured import Measured
from ffvit.evidence.tables import captioned
from ffvit.settings.experiment import Experiment
from ffvit.studies.claim_checks import POINTS
from ffvit.studies.claims import CLAIMS, numbers
from ffvit.studies.finding import MODEL, NOT_RUN, REPRODUCED, VERDICTS, Finding
from ffvit.system import provenance


def ledger(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a number or claim of the report: what was measured by these records, or on the model, and the verdict."""
    found, compared = evidence.measured(experiment, records), evidence.everything(experiment, records)
    rows = []
    for claim in (*numbers(), *CLAIMS):
        finding = claim.check(experiment, compared if claim.compared else found) if claim.check else Finding()
        rows.append(
            {
                "Claim": claim.text,
                "Where": claim.where,
                "Reported": claim.reported,
                "Measured": finding.measured,
                "Scale": finding.scale,
                "Seeds": finding.seeds,
                "Tolerance": finding.tolerance,
                "Verdict": finding.verdict,
                "Note": "; ".join(filter(None, [finding.note, claim.note])),
            }
        )
    return pd.DataFrame(rows)


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows by verdict, in the order of VERDICTS."""
    return {verdict: int((table["Verdict"] == verdict).sum()) for verdict in VERDICTS}


def summary(table: pd.DataFrame) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts(table).items())


def group(table: pd.DataFrame, verdict: str) -> pd.DataFrame:
    """The rows with one verdict, without the columns that say nothing about them."""
    rows = table[table["Verdict"] == verdict].drop(columns="Verdict")
    silent = [column for column in rows if rows[column].isin(["", NOT_RUN]).all()]
    return captioned(rows if rows.empty else rows.drop(columns=silent), f"Claims: {verdict}")


def elsewhere(table: pd.DataFrame, others: dict[str, pd.DataFrame]) -> str:
    """Of what a ledger has not run, what those of other experiments have measured, in Markdown. others: by experiment."""
    missing, rows = [*table[table["Verdict"] == NOT_RUN]["Claim"]], []
    for name, other in others.items():
        measured = other[other["Claim"].isin(missing) & (other["Verdict"] != NOT_RUN)]
        link = f"[{name}](../figures/{name}/claims.md)"
        rows += [[markdown(row.Claim), markdown(row.Measured), link] for row in measured.itertuples()]
    lines = [["Claim", "Measured", "Ledger of"], ["---"] * 3, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def compact(table: pd.DataFrame) -> str:
    """The ledger in Markdown for a page that has other things to say: what was judged as a table, the rest as a list."""
    judged = table[table["Verdict"] != NOT_RUN]
    why = [f": {note.partition('; ')[0]}" if note else "" for note in judged["Note"]]
    verdicts = [v if v == REPRODUCED else v + reason for v, reason in zip(judged["Verdict"], why)]
    shown = judged.assign(Verdict=verdicts)[["Claim", "Reported", "Measured", "Scale", "Verdict"]]
    rest = [f"{row.Claim} ({row.Reported})" for row in table[table["Verdict"] == NOT_RUN].itertuples()]
    cells = [[markdown(cell) for cell in row] for row in shown.to_numpy().tolist()]
    lines = [list(shown), ["---"] * len(shown.columns), *cells]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{text}\nNot run, with what the report says: {'; '.join(rest)}.\n"


def sources(found: dict[str, Measured]) -> str:
    """Where the ledger's measured values come from."""
    versions = provenance.versions()
    return (
        f"{evidence.sources(found)} Scale '{MODEL}': counted or computed when this was made, with torch {versions['torch']} "
        f"and timm {versions['timm']}. Tolerance of an ImageNet accuracy: {POINTS} points, mean over seeds."
    )
