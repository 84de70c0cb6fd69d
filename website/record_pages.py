"""Records as pages, and the experiments that they belong to: what a run was, how it learned, and where it was made."""

import html
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ffvit.evidence.belonging import belonging, file_of, origin
from ffvit.evidence.escape import markdown
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
LONG = ("confusion", "mistakes")  # of results: in the file alone


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


def pages(experiments: list[Experiment], runs: dict[str, list[Run]], chapters: list[Chapter]) -> Iterator[tuple[str, str]]:
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
    return f"```{{raw}} html\n<div class=\"study\">{made}<output>Point at a run, or step through them with the Tab key.</output></div>\n```\n"


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
        shown = "".join(f"- [{c.notebook.name}]({link(page, c.page)}): {markdown(c.notebook.question)}\n" for c in chapters)
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
    record, about = run.record, headline_of(run.record["config"])
    kind = "A run" if run.scored else "A trial, made to choose settings and never scored on the test images,"
    images = "test" if run.scored else "validation"
    back = link(run.page, f"experiments/{experiment.name}.md")
    text = (
        f"---\norphan: true\n---\n# {markdown(run.name)}\n\n{kind} of **{markdown(record['config']['label'])}** in "
        f"[{experiment.name}]({back}): **{run.score:.2f}** {about.label} on the {images} images"
        f"{'' if origin(record) == 'recorded' or not run.scored else ', made on this machine'}.\n\n"
    )
    text += f"```{{raw}} html\n<div class=\"curves\">{_curves(record)}</div>\n```\n"
    if run.scored:
        scores = {k: v for k, v in record["results"].items() if k not in LONG and not isinstance(v, (list, dict))}
        text += f"\n## Scores on the test images\n\n{_facts(scores)}\n{_by_class(record)}"
    given = {k: v for k, v in record["config"].items() if k not in DEFAULTS or v != _plain(DEFAULTS[k])}
    left = {k: v for k, v in record["config"].items() if k not in given}
    text += f"\n## Settings\n\n{_facts(given)}\n"
    text += f"\n## Settings left at their defaults\n\n{', '.join(f'`{k}` {_said(v)}' for k, v in left.items())}.\n"
    text += f"\n## The model and its images\n\n{_facts(record['model'] | record['dataset']['images'] | {'fingerprint of the images': record['dataset']['fingerprint']})}\n"
    where = {
        "commit": commit(record),
        "hash of the deciding code": record.get("code", "not noted then"),
        "started": record["started_at"],
        "duration (s)": f"{record['duration_s']:.1f}",
        "peak memory (MB)": record["peak_memory_mb"],
    }
    text += f"\n## Where it was made\n\n{_facts(where | record['hardware'] | record['versions'])}\n"
    weights = {f"sha256 of {name}": value for name, value in record.get("weights_sha256", {}).items()}
    return f"{text}\n## The file\n\n`{run.file}`\n\n{_facts(weights) if weights else ''}"


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _facts(facts: dict[str, Any]) -> str:
    rows = "".join(f"| {markdown(name)} | {_said(value)} |\n" for name, value in facts.items())
    return f"| | |\n| --- | --- |\n{rows}"


def _said(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return markdown(str(value)) or "empty"


def _by_class(record: dict) -> str:
    names = record["dataset"].get("class_names") or range(record["dataset"]["classes"])
    percent = record["results"]["per_class_percent"]
    said = {str(name): "none there" if value is None else f"{value:.1f}" for name, value in zip(names, percent)}
    return f"By class (%): {', '.join(f'{markdown(name)} {value}' for name, value in said.items())}.\n"


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
