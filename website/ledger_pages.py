"""The claims ledger as pages: a row a claim, with the chapter that shows it, the records, and the code that judged it."""

import ast
import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ffvit.evidence.escape import markdown
from ffvit.settings.experiment import Experiment
from ffvit.studies.finding import MODEL, NOT_RUN, VERDICTS
from ffvit.system.files import FIGURES, ROOT
from website.chapters import Chapter
from website.places import link, page_of
from website.record_pages import Run

STUDIES = ROOT / "ffvit/studies"
JUDGE_OF_PREDICTIONS = "predictions.check"
COLUMNS = ("Claim", "Where", "Reported", "Measured", "Scale", "Verdict")


@dataclass(frozen=True)
class Declared:
    """Where the code names a claim, and what judges it. Read from the source: to import it takes torch, and seconds."""

    text: re.Pattern
    file: Path
    judge: str  # as that file calls it, such as model_checks.figure1; empty: nothing does


def ledgers(experiments: list[Experiment]) -> list[Experiment]:
    """Those that have a ledger."""
    return [e for e in experiments if _file(e).is_file()]


def pages(
    experiments: list[Experiment], runs: dict[str, list[Run]], chapters: list[Chapter]
) -> Iterator[tuple[str, str]]:
    having = ledgers(experiments)
    for experiment in having:
        page = ledger_page(experiment)
        others = " ".join(
            f"**{e.name}**" if e == experiment else f"[{e.name}]({link(page, ledger_page(e))})" for e in having
        )
        rows = "".join(_row(page, row, experiment, runs[experiment.name], chapters) for row in load_ledger(experiment))
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in count(experiment).items())
        rules = link(page, page_of("ffvit/studies/claim_checks.py"))
        yield (
            page,
            f"---\norphan: true\n---\n# Claims, judged by {experiment.name}\n\n:::{{container}} experiments\n{others}\n:::\n\n"
            f"Every number and claim of the report, what was measured, and a verdict that is computed by "
            f"[rules]({rules}): **{verdicts}**.\n\n"
            ":::{container} sortable\n"
            f"| {' | '.join(COLUMNS)} | Shown in | Records | Judged by |\n|{' --- |' * (len(COLUMNS) + 3)}\n{rows}:::\n"
            f"\n{markdown(load_ledger(experiment)[0]['Provenance'])}\n",
        )


def ledger_page(experiment: Experiment) -> str:
    return f"ledger/{experiment.name}.md"


def load_ledger(experiment: Experiment) -> list[dict[str, str]]:
    with _file(experiment).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count(experiment: Experiment) -> dict[str, int]:
    """Rows by verdict."""
    verdicts = [row["Verdict"] for row in load_ledger(experiment)]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts}


@cache
def declared() -> list[Declared]:
    """Every claim and prediction that a file of ffvit/studies names, and the kinds of numbers that claims.py checks."""
    found = []
    for file in sorted(STUDIES.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            kind = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if kind == "Prediction" and isinstance(node, ast.Call) and node.args:
                found.append(Declared(_pattern(node.args[0]), file, JUDGE_OF_PREDICTIONS))
            elif kind == "Claim" and isinstance(node, ast.Call) and len(node.args) > 2:
                found.append(Declared(_pattern(node.args[0]), file, _judge(node.args[3]) if len(node.args) > 3 else ""))
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NUMBERS":
                found += _numbers(node.value, file)
    return sorted(found, key=lambda d: ".*" in d.text.pattern)  # those of one claim before those of many


def judge_of(claim: str) -> str:
    """Full name of the function that judges a claim; empty where nothing does."""
    of = declared_of(claim)
    if not of or not of.judge:
        return ""
    module, _, name = of.judge.rpartition(".")
    for node in ast.parse(of.file.read_text(encoding="utf-8")).body:
        if not module and isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            module = (node.module or "").rpartition(".")[2]
    return f"ffvit.studies.{module}.{name}"


def declared_of(claim: str) -> Declared | None:
    return next((d for d in declared() if d.text.fullmatch(claim)), None)


def _file(experiment: Experiment) -> Path:
    return FIGURES / experiment.name / "claims.csv"


def _numbers(kinds: ast.expr, file: Path) -> Iterator[Declared]:
    """Of the table that says of each kind of number its words, its unit and its check."""
    for kind in kinds.values if isinstance(kinds, ast.Dict) else []:
        if isinstance(kind, ast.Tuple):
            words, _, check = kind.elts
            yield Declared(re.compile(f".*: {_pattern(words).pattern}"), file, ast.unparse(check))


def _pattern(text: ast.expr) -> re.Pattern:
    """Of a string; what an f-string leaves open may be anything."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    return re.compile("".join(re.escape(str(p.value)) if isinstance(p, ast.Constant) else ".*" for p in parts), re.S)


def _judge(check: ast.expr) -> str:
    return ast.unparse(check.args[0] if isinstance(check, ast.Call) else check)


def _row(page: str, row: dict[str, str], experiment: Experiment, runs: list[Run], chapters: list[Chapter]) -> str:
    cells = [markdown(row[column]) for column in COLUMNS]
    if row["Note"]:
        cells[0] += f"<br><small>{markdown(row['Note'])}</small>"
    judge = judge_of(row["Claim"])
    code = f"{{py:func}}`{'.'.join(judge.split('.')[-2:])} <{judge}>`" if judge else "–"
    shown = [_chapter(page, row["Claim"], experiment, chapters), _records(page, row, experiment, runs), code]
    return f"| {' | '.join(cells + shown)} |\n"


def _chapter(page: str, claim: str, experiment: Experiment, chapters: list[Chapter]) -> str:
    """That of the file which names the claim, by the number with which its docstring begins."""
    of = declared_of(claim)
    number = re.match(r"Notebook (\d+)", ast.get_docstring(ast.parse(of.file.read_text())) or "") if of else None
    mine = [c for c in chapters if number and c.notebook.name.startswith(f"{number[1]}_")]
    mine.sort(key=lambda chapter: chapter.experiment != experiment)
    return f"[{mine[0].notebook.name}]({link(page, mine[0].page)})" if mine else "–"


def _records(page: str, row: dict[str, str], experiment: Experiment, runs: list[Run]) -> str:
    """Of the models that a row compares, where it names them; otherwise all of the experiment's."""
    if row["Measured"] == NOT_RUN or row["Scale"] == MODEL:
        return "–"
    sides = row["Measured"].partition(":")[0].split(" less ")
    mine = [run for run in runs if run.scored and "/here/" not in run.page and run.record["config"]["label"] in sides]
    if not mine:
        return f"[all of {experiment.name}]({link(page, f'experiments/{experiment.name}.md')})"
    return ", ".join(f"[{run.name}]({link(page, run.page)})" for run in mine)
