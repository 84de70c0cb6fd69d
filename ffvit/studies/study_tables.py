"""Notebook 08, its tables: what was measured in the grid and in every comparison, which differences are more than luck, and
what was tried before.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable

import pandas as pd

from ffvit.evidence.belonging import trials_of
from ffvit.evidence.measured import NOT_RUN, Measured, commit, everything, machine, overlap
from ffvit.evidence.seed_statistics import difference, holm, interval_words, mean_words, p_words, verdict
from ffvit.settings.experiment import Experiment, Variant
from ffvit.settings.headline import HEADLINES, last_validation
from ffvit.settings.same_run import deciding

NO_SEED = "no seed in common"


def study(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a model of the grid and of every comparison. Where a comparison changes some models, the others stand by."""
    found = everything(experiment, records)
    rows = []
    for part, title in experiment.parts().items():
        as_they_are = [v for v in experiment.of() if part and v.name not in experiment.compare[part].change]
        if part and experiment.compare[part].change:
            rows += [(title, f"{v.label} (the grid's run)", v.name) for v in as_they_are]
        rows += [(title, in_words(v), v.name) for v in experiment.of(part)]
    table = pd.DataFrame(
        {"Part": part, "Model": label, **measures(experiment, name, found.get(name))} for part, label, name in rows
    )
    return said(table)


def said(table: pd.DataFrame) -> pd.DataFrame:
    """Without the columns in which nothing was recorded."""
    return table.loc[:, (table != "").any()]


def headlines(experiment: Experiment, names: Iterable[str]) -> dict[str, str]:
    """The words for the headline of each model, such as "top-1 (%)": that of its task."""
    return {name: HEADLINES[experiment.config(name).task].label for name in names}


def measures(experiment: Experiment, name: str, m: Measured | None) -> dict:
    """The columns of a model in a table of what was measured, a column for each headline of the experiment. m: None, it was not run."""
    labels = headlines(experiment, experiment.variants)
    scores = {
        f"{experiment.scope} {label}": (str(m) if m else NOT_RUN) if label == labels[name] else ""
        for label in dict.fromkeys(labels.values())
    }
    before: dict[str, Callable[[Measured], object]] = {
        "Params": lambda m: f"{m.parameters:,}",
        "Multiply-adds": lambda m: f"{m.macs:,}",
        "Epochs": lambda m: len(m.records[0]["history"]),
        "Training images": lambda m: f"{m.records[0]['dataset']['images']['train']:,}",
    }
    after: dict[str, Callable[[Measured], object]] = {
        "95 % interval": lambda m: interval_words(m.percent, ".2f"),
        "Processor time (min)": lambda m: _minutes(m.records),
        "Hardware": lambda m: ", ".join(m.hardware),
    }
    of_m = {column: value(m) if m else "" for column, value in (before | after).items()}
    return {c: of_m[c] for c in before} | scores | {c: of_m[c] for c in after}


def pairs(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Differences in the headline, seed by seed. Holm's correction is over the planned comparisons, and over all the others.

    Models of two tasks have no score in common, and are not held against each other.
    """
    labels = headlines(experiment, experiment.variants)
    pairs = [(part, a, b) for part in experiment.parts() for a, b in experiment.pairs(part)]
    rows = [(part, a, b) for part, a, b in pairs if labels[a] == labels[b]]
    if not rows:
        return pd.DataFrame([{"Difference": NOT_RUN, "What the seeds show": "no two of its models compare"}])
    planned = [not part and (a, b) in experiment.planned for part, a, b in rows]
    compared = [(a, b, in_words(experiment.variants[a]), in_words(experiment.variants[b])) for _, a, b in rows]
    table = differences(experiment, everything(experiment, records), compared, planned)
    table.insert(0, "Part", [experiment.parts()[part] for part, *_ in rows])
    table.insert(1, "Kind", ["planned" if of else "exploratory" for of in planned])
    return table


def differences(
    experiment: Experiment,
    found: dict[str, Measured],
    compared: list[tuple[str, str, str, str]],
    families: list,
) -> pd.DataFrame:
    """One row a comparison: the headline of the first model less the second's, in points, a column for each headline.

    compared: names of two models of one task, and the words for each. families: of each comparison, the group of tests that Holm's
    correction is over. Raises InputError for runs on different images.
    """
    both = [difference(found[a], found[b]) if a in found and b in found else None for a, b, *_ in compared]
    tested = {i: d.p for i, d in enumerate(both) if d and d.p is not None}
    corrected: dict[int, float] = {}
    for family in set(families):
        together = {i: p for i, p in tested.items() if families[i] == family}
        corrected |= dict(zip(together, holm(list(together.values()))))
    labels = headlines(experiment, [a for a, *_ in compared])
    columns = {label: f"{experiment.scope} {label.replace('(%)', '(points)')}" for label in labels.values()}
    rows = []
    for i, (d, (a, _, ours, theirs)) in enumerate(zip(both, compared)):
        points = d.points if d else []
        n = len(points)
        rows.append(
            {
                "Difference": f"{ours} − {theirs}",
                **dict.fromkeys(columns.values(), ""),
                columns[labels[a]]: NO_SEED if d and not points else mean_words(points),
                "95 % interval": interval_words(points, "+.2f") if n else "",
                "p": p_words(tested[i]) if i in tested else "",
                "p (Holm)": p_words(corrected[i]) if i in corrected else "",
                "What the seeds show": NOT_RUN if d is None else verdict(d, corrected.get(i), ours),
            }
        )
    return pd.DataFrame(rows)


def trials(experiment: Experiment, trials: list[dict]) -> pd.DataFrame:
    """What was tried before the recipe was chosen, by validation top-1: trials are never scored on the test images."""
    alike = defaultdict(list)
    for trial in trials_of(experiment, trials):
        alike[trial["config"]["name"], _unlike_the_experiment(experiment, trial["config"])].append(trial)
    order = list(experiment.variants)
    rows = []
    for (name, settings), group in alike.items():
        top1 = [last_validation(t) for t in group]
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
    return (
        f"Validation images, after the last epoch, of {len(trials)} trials: commit {commits}, on {machines}."
        f"{overlap(trials)}"
    )


def in_words(variant: Variant) -> str:
    """In words; of models that have no grid, what was varied is all there is to say."""
    return ", ".join(dict.fromkeys(filter(None, [variant.label, variant.value_label])))


def _minutes(records: list[dict]) -> str:
    """Of processor time, the mean over the runs of a machine, in the order of their names; nothing where it was not recorded.

    A dash for a GPU: the processor beside it waits for the most part.
    """
    if not all("cpu_seconds" in epoch for r in records for epoch in r["history"]):
        return ""
    spent = defaultdict(list)
    for r in records:
        spent[machine(r)].append(sum(e["cpu_seconds"] for e in r["history"]) / 60)
    on_gpu = {machine(r) for r in records if r["hardware"]["gpu"]}
    return ", ".join("–" if name in on_gpu else f"{statistics.mean(spent[name]):.3g}" for name in sorted(spent))


def _unlike_the_experiment(experiment: Experiment, config: dict) -> str:
    """The settings that decide a result in which a trial differs from what its experiment says now: "epochs=3, ..."."""
    now = deciding(experiment.config(config["name"], config["seed"]).to_dict())
    then = deciding(config)
    return ", ".join(f"{key}={json.dumps(then[key])}" for key in sorted(then) if then[key] != now.get(key))
