"""Notebook 23: does attention in early stages matter where position does? From records of detection and segmentation alone."""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ffvit.evidence.drawing import COLORS, DASHES, MARKERS, MARKS, bars, finish, mean_and_seeds
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured, everything
from ffvit.evidence.seed_statistics import difference
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.settings.headline import HEADLINES
from ffvit.settings.same_run import deciding
from ffvit.studies import predictions, study_tables
from ffvit.studies.lit_stages import OWN, words

HEADS = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "semantic_fpn": "Semantic FPN"}  # by timm's names
# Scores of a task beside its headline, by their names in records.
ALSO = {
    "detection": {"box_ap50_percent": "also box AP50 (%)"},
    "instance_segmentation": {"box_ap_percent": "also box AP (%)", "mask_ap50_percent": "also mask AP50 (%)"},
    "semantic_segmentation": {"pixel_accuracy_percent": "also pixel accuracy (%)"},
}
LAST = ("Processor time (min)", "Hardware")  # columns
NONE, ALL = (), (1, 2, 3, 4)
MARGIN = 1.0  # points: what attention in early stages must add to be worth its cost
APART = 5.0  # points between two seeds of a model, from which on its mean says little
LEAST_SPAN = 5.0  # points that a panel shows, so that what differs by less looks alike

Layout = tuple[int, ...] | str  # the stages of a LIT that have attention; of another backbone its name


class Claim(NamedTuple):
    words: str
    formula: str
    first: Layout
    second: Layout
    limit: float  # of the first's headline less the second's, in points
    above: bool


CLAIMS = (
    Claim("attention in stages 1 and 2 is not needed", "s(1,2,3,4) − s(3,4) < δ", ALL, OWN, MARGIN, above=False),
    Claim("attention in stages 3 and 4 is needed", "s(3,4) − s(none) > 0", OWN, NONE, 0.0, above=True),
)


def head_of(config: Config) -> str:
    return next((head for name, head in HEADS.items() if config.model.startswith(name)), config.model)


def layout_of(config: Config) -> Layout:
    """Where the backbone of a model of ffvit.models.dense has attention. A setting that is not given is LIT's own."""
    backbone = config.model_args.get("backbone", "lit_ti")
    if not backbone.startswith("lit_"):
        return backbone
    return tuple(sorted(config.model_args.get("backbone_args", {}).get("attention_stages", OWN)))


def layout_words(layout: Layout) -> str:
    return layout if isinstance(layout, str) else words(layout)


def by_head(experiment: Experiment) -> dict[str, dict[str, Layout]]:
    """The layout of every model of the experiment, by head and name, from no attention to all of it."""
    found: dict[str, dict[str, Layout]] = defaultdict(dict)
    configs = {name: experiment.config(name) for name in experiment.variants}
    for name in sorted(configs, key=lambda name: _order(layout_of(configs[name]))):
        found[head_of(configs[name])][name] = layout_of(configs[name])
    heads = dict.fromkeys(map(head_of, configs.values()))  # in the experiment's order
    return {head: found[head] for head in heads}


def table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a model of the grid and of every comparison: head, layout, cost, headline and what else is scored."""
    found = everything(experiment, records)
    rows: list[dict] = []
    for part, title in experiment.parts().items():
        for variant in experiment.of(part):
            config, m = experiment.config(variant.name), found.get(variant.name)
            rows.append(
                {
                    "Part": title if experiment.compare else "",
                    "Model": study_tables.in_words(variant),
                    "Head": head_of(config),
                    "Attention in": layout_words(layout_of(config)),
                    **study_tables.measures(experiment, variant.name, m),
                    **{label: str(m.also(score)) for score, label in ALSO[config.task].items() if m},
                }
            )
    said = study_tables.said(pd.DataFrame(rows).fillna(""))
    return said[[c for c in said if c not in LAST] + [c for c in LAST if c in said]]


def predicted(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Each of CLAIMS that the experiment can answer beside what was measured, head by head."""
    found, rows = everything(experiment, records), []
    for names, claim in itertools.product(_alike_but_for_attention(experiment), CLAIMS):
        if not {claim.first, claim.second} <= names.keys():
            continue
        config = experiment.config(names[claim.first])
        first, second = (found.get(names[layout]) for layout in (claim.first, claim.second))
        points = difference(first, second).points if first and second else []
        label = HEADLINES[config.task].label.removesuffix(" (%)")
        cells = {"Head": head_of(config), "Claim": claim.words, "Prediction": claim.formula, "Score": label}
        rows.append(cells | predictions.measured_beside(points, claim.limit, claim.above))
    if not rows:
        return pd.DataFrame(
            [{"Head": NOT_RUN, "Claim": "no two of its models differ in attention's stages alone: nothing to compare"}]
        )
    return pd.DataFrame(rows).rename(columns={"Measured": f"{experiment.scope}: left less right (points)"})


def apart(experiment: Experiment, records: list[dict]) -> list[str]:
    """In a sentence each, models whose seeds lie more than APART from one another, as where a training went astray."""
    found = everything(experiment, records)
    spread = {name: (min(m.percent), max(m.percent)) for name, m in found.items()}
    return [
        f"{study_tables.in_words(experiment.variants[name])}: its seeds lie {high - low:.1f} points apart, "
        f"from {low:.2f} to {high:.2f}, and their mean says little."
        for name, (low, high) in spread.items()
        if high - low > APART
    ]


def summary(experiment: Experiment, records: list[dict], predicted: pd.DataFrame) -> str:
    """What was found, in sentences: the headline of every model that was run, and which predictions hold."""
    found, labels = everything(experiment, records), study_tables.headlines(experiment, experiment.variants)
    told = [
        f"{study_tables.in_words(experiment.variants[name])}: {labels[name]} {m}." for name, m in found.items()
    ] or ["Nothing was run yet."]
    told += apart(experiment, records)
    if "Found" not in predicted:
        told.append(
            "No two models differ in attention's stages alone: this says how well the heads work, and nothing about stages."
        )
    else:
        claims = [f"{row['Head']}, {row['Claim']}" for _, row in predicted.iterrows()]
        told.append(predictions.summary(claims, predicted["Found"]))
    return "\n".join(told)


def by_layout(experiment: Experiment, records: list[dict]) -> Figure:
    """The headline on the test images by where there is attention: a panel a head, a dot a seed."""
    found, looks = everything(experiment, records), _looks(experiment)
    figure, panels = _panels(experiment, height=4.2)
    for panel, head, label, layouts in panels:
        shown = [(x, found[name].mean) for x, name in enumerate(layouts) if name in found]
        panel.plot(*zip(*shown), color="0.7", lw=1.2, zorder=1) if shown else None
        for x, (name, layout) in enumerate(layouts.items()):
            if name in found:
                mean_and_seeds(panel, x, found[name].percent, looks[layout])
        panel.set(title=head, ylabel=f"test {label}", xlim=(-0.6, len(layouts) - 0.4))
        low, high = panel.get_ylim()
        if shown and high - low < LEAST_SPAN:
            panel.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        panel.set_xticks(range(len(layouts)), _ticks(experiment, layouts), rotation=20 if len(layouts) > 3 else 0)
        panel.set_xlabel("attention in")
        finish(panel)
    if explained := bars(figure):
        figure.legend(handles=explained, loc="outside lower center", frameon=False)
    figure.suptitle(f"{drawn(experiment.title)}\n{MARKS}", x=0.01, ha="left", wrap=True)
    return figure


def curves(experiment: Experiment, records: list[dict]) -> Figure:
    """The headline on the validation images by epoch: a panel a head, a line a model (mean over seeds), a band over its seeds."""
    found, looks = everything(experiment, records), _looks(experiment)
    figure, panels = _panels(experiment, height=3.6)
    for panel, head, label, layouts in panels:
        for name, layout in layouts.items():
            if name in found:
                _curve(panel, found[name], HEADLINES[experiment.config(name).task].name, looks[layout])
        panel.set(title=head, xlabel="epoch", ylabel=f"validation {label}")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        finish(panel)
    named = {layout: layout if isinstance(layout, str) else f"attention in {words(layout)}" for layout in looks}
    handles = [
        Line2D([], [], color=color, linestyle=dashes, lw=1.8, label=drawn(named[layout]))
        for layout, (color, dashes, _) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    title = f"{drawn(experiment.title)}\nLines: mean over seeds; bands: from lowest to highest seed."
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _alike_but_for_attention(experiment: Experiment) -> list[dict[Layout, str]]:
    """Models that differ in where they have attention, and in the rate that was found for each, alone: names by layout."""
    groups: dict[str, dict[Layout, str]] = defaultdict(dict)
    for name in experiment.variants:
        config = experiment.config(name)
        settings = {k: v for k, v in deciding(config.to_dict()).items() if k not in predictions.SEARCHED}
        body = {k: v for k, v in config.model_args.get("backbone_args", {}).items() if k != "attention_stages"}
        settings["model_args"] = config.model_args | {"backbone_args": body}
        groups[json.dumps(settings, sort_keys=True)][layout_of(config)] = name
    return list(groups.values())


def _panels(experiment: Experiment, height: float) -> tuple[Figure, Iterator[tuple[Axes, str, str, dict[str, Layout]]]]:
    """A panel for each head, with its headline in words and the layouts of its models."""
    heads = by_head(experiment)
    labels = [HEADLINES[experiment.config(next(iter(layouts))).task].label for layouts in heads.values()]
    size = 1.0 + 3.6 * len(heads), height
    figure, axes = plt.subplots(1, len(heads), figsize=size, squeeze=False, layout="constrained")
    return figure, zip(axes[0], heads, labels, heads.values())


def _curve(panel: Axes, m: Measured, headline: str, style: tuple) -> None:
    y = np.array([[epoch[f"validation_{headline}"] for epoch in r["history"]] for r in m.records])
    x = np.arange(1, y.shape[1] + 1)
    panel.plot(x, y.mean(axis=0), color=style[0], linestyle=style[1], lw=1.8)
    panel.fill_between(x, y.min(axis=0), y.max(axis=0), color=style[0], alpha=0.2, lw=0)


def _looks(experiment: Experiment) -> dict[Layout, tuple[Any, Any, str]]:
    """Colour, dashes and marker of each layout, in all panels."""
    layouts = sorted({at for layouts in by_head(experiment).values() for at in layouts.values()}, key=_order)
    return {
        at: (COLORS[i % len(COLORS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, at in enumerate(layouts)
    }


def _ticks(experiment: Experiment, layouts: dict[str, Layout]) -> list[str]:
    """Layouts in words; of two models of one layout, with what tells them apart."""
    several = len(set(layouts.values())) < len(layouts)
    labels = (
        f"{layout_words(at)}:\n{study_tables.in_words(experiment.variants[name])}" for name, at in layouts.items()
    )
    return [drawn(label if several else label.partition(":\n")[0]) for label in labels]


def _order(layout: Layout) -> tuple:
    return (1, 0, layout) if isinstance(layout, str) else (0, len(layout), layout)
