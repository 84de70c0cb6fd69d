"""Records as pages, and the experiments that they belong to: what a run was, how it learned, and where it was made."""

import html
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ffvit.evidence.belonging import belonging, file_of, origin
from ffvit.evidence.escape import in_one_line, markdown
from ffvit.evidence.measured import commit, headline, machine
from ffvit.evidence.records import load_own, load_records, load_trials
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.settings.headline import headline_of, last_validation
from ffvit.system.files import EXPERIMENTS, RESULTS
from website.chapters import Chapter
from website.charts import SERIES, Point, chart
from website.places import link

DEFAULTS = {field.name: field.default for field in fields(Config) if field.default is not MISSING}


@dataclass(frozen=True)
class Run:
    record: dict
    page: str
    file: str  # of the repository, or of this machine

    @property
    def name(self) -> str:
        return self.page.rpartition("/")[2].removesuffix(".md")

    @property
    def scored(self) -> bool:
        return "results" in self.record

    @property
    def score(self) -> float:
        """The headline in percent: of the test images, or, of a trial, of the validation images."""
        return headline(self.record) if self.scored else last_validation(self.record)


def load_runs(experiment: Experiment) -> list[Run]:
    """The records that came with the project, this machine's, and the trials."""
    name = experiment.name
    runs = [Run(r, f"records/{name}/{r['run_id']}.md", file_of(r)) for r in load_records(name)]
    runs += [Run(r, f"records/{name}/here/{r['run_id']}.md", file_of(r)) for r in load_own(name)]
    files = sorted((RESULTS / name / "trials").glob("*.json"))  # as load_trials reads them
    for trial, file in zip(load_trials(name), files, strict=True):
        runs.append(Run(trial, f"records/{name}/trials/{file.stem}.md", f"results/{name}/trials/{file.name}"))
    return runs


def pages(
    experiments: list[Experiment], runs: dict[str, list[Run]], chapters: list[Chapter]
) -> Iterator[tuple[str, str]]:
    """runs: by the name of their experiment."""
    listed = "".join(f"{e.name}\n" for e in experiments)
    rows = "".join(
        f"| [{e.name}]({e.name}.md) | {markdown(e.title)} | {sum(r.scored for r in runs[e.name])} of {len(e.configs())} | "
        f"{sum(not r.scored for r in runs[e.name])} |\n"
        for e in experiments
    )
    yield (
        "experiments/index.md",
        "# Experiments and records\n\nA small file each, in experiments/; every number of the site comes from their records.\n\n"
        f"| experiment | what it is | runs recorded | trials |\n| --- | --- | --- | --- |\n{rows}\n"
        f"```{{toctree}}\n:hidden:\n\n{listed}```\n",
    )
    for experiment in experiments:
        mine = runs[experiment.name]
        yield _experiment(experiment, mine, [c for c in chapters if c.experiment == experiment])
        for run in mine:
            yield run.page, _record(experiment, run)


def picture(experiment: Experiment, runs: list[Run], page: str) -> str:
    """The runs of an experiment by what an image costs their model and how it scores, each a point that leads to its record."""
    belong = {id(r) for r in belonging(experiment, [run.record for run in runs if run.scored])}
    series: dict[str, list[Point]] = {}
    for run in runs:
        if id(run.record) in belong:
            base = experiment.variants[run.record["config"]["name"]].of or run.record["config"]["name"]
            label = experiment.variants[base].label if base in experiment.variants else base
            href = link(page, run.page).removesuffix(".md") + ".html"
            series.setdefault(label, []).append(Point(run.record["model"]["macs"] / 1e6, run.score, _told(run), href))
    if not series or len(series) > SERIES:
        return ""
    axis = headline_of(runs[0].record["config"]).label
    alt = f"{experiment.title}: test {axis} of each run against the multiply-adds of its model"
    made = chart(series, "million multiply-adds an image", f"test {axis}", alt)
    return f'```{{raw}} html\n<div class="study">{made}<output>Point at a run, or step through them with the Tab key.</output></div>\n```\n'


def _told(run: Run) -> str:
    record = run.record
    here = ", made here" if origin(record) != "recorded" else ""
    return (
        f"{record['config']['label']}, {record['run_id']}{here}: {run.score:.2f} {headline_of(record['config']).label}, "
        f"{record['model']['parameters']:,} parameters, {len(record['history'])} epochs in {record['duration_s']:.0f} s, {machine(record)}"
    )


def _experiment(experiment: Experiment, runs: list[Run], chapters: list[Chapter]) -> tuple[str, str]:
    page = f"experiments/{experiment.name}.md"
    text = f"# {experiment.name}\n\n**{markdown(experiment.title)}.** {markdown(experiment.about)}\n\n"
    text += picture(experiment, runs, page)
    if chapters:
        shown = "".join(
            f"- [{c.notebook.name}]({link(page, c.page)}): {markdown(c.notebook.question)}\n" for c in chapters
        )
        text += f"\n## Chapters\n\n{shown}"
    for title, mine in (("Records", [r for r in runs if r.scored]), ("Trials", [r for r in runs if not r.scored])):
        if mine:
            text += f"\n## {title}\n\n:::{{container}} sortable\n{_table(page, mine)}:::\n"
    if not runs:
        text += f"\nNo run is recorded yet: `make reproduce EXPERIMENT={experiment.name}`.\n"
    source = (EXPERIMENTS / f"{experiment.name}.toml").read_text(encoding="utf-8")
    return page, f"{text}\n## Its file\n\n```toml\n{source}```\n"


def _table(page: str, runs: list[Run]) -> str:
    images = "test" if runs[0].scored else "validation"
    rows = "".join(
        f"| [{markdown(run.name)}]({link(page, run.page)}) | {markdown(run.record['config']['label'])} | "
        f"{run.record['config']['seed']} | {run.score:.2f} | {headline_of(run.record['config']).label} | "
        f"{len(run.record['history'])} | {run.record['duration_s']:.0f} | {markdown(machine(run.record))} |\n"
        for run in runs
    )
    return f"| run | model | seed | {images} score | of | epochs | seconds | on |\n|---|---|---|---|---|---|---|---|\n{rows}"


def _record(experiment: Experiment, run: Run) -> str:
    """As HTML, which Sphinx takes as it is: of hundreds of pages of tables, reading Markdown is most of the time."""
    record, about = run.record, headline_of(run.record["config"])
    kind = "A run" if run.scored else "A trial, made to choose settings and never scored on the test images,"
    images = "test" if run.scored else "validation"
    here = "" if origin(record) == "recorded" or not run.scored else ", made on this machine"
    back = link(run.page, f"experiments/{experiment.name}.md")
    given = {k: v for k, v in record["config"].items() if k not in DEFAULTS or v != _plain(DEFAULTS[k])}
    where = {
        "commit": commit(record),
        "hash of the code that decides": record.get("code", "not noted then"),
        "started": record["started_at"],
        "duration (s)": f"{record['duration_s']:.1f}",
        "peak memory (MB)": record["peak_memory_mb"],
    }
    parts = {
        "Scores on the test images": _scores(record) if run.scored else {},
        "Settings": given,
        "The model": record["model"],
        "Its images": record["dataset"]["images"] | {"fingerprint": record["dataset"]["fingerprint"]},
        "Where it was made": where | record["hardware"] | record["versions"],
        "Settings left at their defaults": {k: v for k, v in record["config"].items() if k not in given},
        "Its file": {"path": run.file} | {f"sha256 of {k}": v for k, v in record.get("weights_sha256", {}).items()},
    }
    return (
        f"---\norphan: true\n---\n# {markdown(run.name)}\n\n{kind} of **{markdown(record['config']['label'])}** in "
        f"[{experiment.name}]({back}): **{run.score:.2f}** {about.label} on the {images} images{here}.\n\n"
        f'```{{raw}} html\n<div class="curves">{_curves(record)}</div>\n'
        f"{''.join(_facts(title, facts) for title, facts in parts.items() if facts)}\n```\n"
    )


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _facts(title: str, facts: dict[str, Any]) -> str:
    rows = "".join(f'<tr><th scope="row">{html.escape(k)}</th><td>{_said(v)}</td></tr>' for k, v in facts.items())
    return f'<h2>{html.escape(title)}</h2><div class="wide"><table class="facts">{rows}</table></div>'


def _said(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return html.escape(in_one_line(str(value))) or "empty"


def _scores(record: dict) -> dict[str, Any]:
    """All but what takes a picture; the headline's by class, in words."""
    results = {k: v for k, v in record["results"].items() if not isinstance(v, (list, dict)) and k != "mistakes"}
    names = record["dataset"].get("class_names") or range(record["dataset"]["classes"])
    by_class = zip(names, record["results"]["per_class_percent"])
    said = (f"{name}: {'none there' if value is None else f'{value:.1f}'}" for name, value in by_class)
    return results | {"by class (%)": ", ".join(said)}


def _curves(record: dict) -> str:
    history, about = record["history"], headline_of(record["config"])
    losses = {"training loss": "train_loss", "validation loss": "validation_loss"}
    found = {label: [Point(e["epoch"], e[key]) for e in history] for label, key in losses.items() if key in history[0]}
    scores = {f"validation {about.label}": [Point(e["epoch"], e[f"validation_{about.name}"]) for e in history]}
    alt = f"{record['run_id']}: {{}} by epoch, from {{:.3g}} to {{:.3g}}"
    shown = ((scores, about.label), (found, "loss"))
    return "".join(
        chart(series, "epoch", axis, alt.format(axis, first[0].y, first[-1].y), lines=True)
        for series, axis in shown
        for first in [next(iter(series.values()))]
    )
