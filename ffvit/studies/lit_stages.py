"""Notebooks 09 and 10, their tables: LIT on ImageNet as published beside what was measured, and attention stage by stage.

Pan et al. 2022 (AAAI), "Less is More: Pay Less Attention in Vision Transformers", arXiv:2105.14217. What it reports is
read in the README of its code; the paper's own ablations are not among them. Costs are counted on the models,
accuracies come from records.
"""

from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from ffvit.evidence import tables
from ffvit.evidence.counted import Counted, counted
from ffvit.evidence.measured import BLANK, NOT_RUN, Measured, measured
from ffvit.evidence.reported import Reported, reported
from ffvit.settings.experiment import Experiment
from ffvit.studies import study_tables

if TYPE_CHECKING:
    from ffvit.models.lit import LIT

PAPER = "arXiv:2105.14217"
README = f"LIT's reported numbers: README of the official code (github.com/ziplab/LIT at 742e961) of {PAPER}."
IMAGENET = "ImageNet-1K"
# Arguments of a LIT by the word for its merging. Each differs from the next in one thing: whether offsets are learned;
# whether a batch norm and GELU follow, or a layer norm.
MERGINGS: dict[str, dict[str, bool]] = {
    "deformable": {"deformable": True},
    "zero-offset": {"deformable": True, "learn_offsets": False},
    "plain": {"deformable": False},
}


class Layout(NamedTuple):
    """What the experiment varies in a LIT."""

    model: str  # timm's name
    stages: tuple[int, ...]  # those with attention, from 1
    merging: str  # one of MERGINGS

    @property
    def model_args(self) -> dict:
        return {"attention_stages": list(self.stages), **MERGINGS[self.merging]}


OWN = (3, 4)  # the stages in which LIT has attention
PLACES = ((), (4,), OWN, (2, 3, 4), (1, 2, 3, 4))
# The README's models by their name in reported.csv.
PUBLISHED = {
    "lit_ti": ("LIT-Ti", Layout("lit_ti", OWN, "deformable")),
    "lit_s": ("LIT-S", Layout("lit_s", OWN, "deformable")),
    "lit_m": ("LIT-M", Layout("lit_m", OWN, "deformable")),
    "lit_b": ("LIT-B", Layout("lit_b", OWN, "deformable")),
    "pvt_msa": ("PVT w/ MSA", Layout("lit_ti", (1, 2, 3, 4), "plain")),
}


def costs(layout: Layout) -> Counted:
    """Of a published layout, or one of PLACES, at 224 px and 1000 classes."""
    found = counted(layout.model, **layout.model_args)
    assert found, f"{layout} is not in counted.csv"  # noqa: S101  # a file of the project's own, which a test holds
    return found


def layouts(experiment: Experiment) -> dict[str, Layout]:
    """The LITs of an experiment's grid by name, in its order. A setting that is not given is LIT's own."""
    found = {}
    for variant in experiment.main_variants:
        config = experiment.config(variant.name)
        if config.model in PUBLISHED:
            stages = config.model_args.get("attention_stages", OWN)
            found[variant.name] = Layout(config.model, tuple(sorted(stages)), _merging(config.model_args))
    return found


def _merging(model_args: dict) -> str:
    if not model_args.get("deformable", True):
        return "plain"
    return "deformable" if model_args.get("learn_offsets", True) else "zero-offset"


def imagenet_table(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """The README's classification table and, in columns and rows of their own, what this experiment measured."""
    on_imagenet = found.values() if experiment.scope == "ImageNet" else ()
    here = layouts(experiment)
    rows = []
    for name, (label, layout) in PUBLISHED.items():
        by_metric = {metric: reported(IMAGENET, name, metric, PAPER) for metric in ("parameters", "macs", "top1")}
        exact = costs(layout)
        # The count tells other shapes from the published one. Alone it would not do: zero-offset merging has plain's.
        fits = (m for m in on_imagenet if (here.get(m.name), m.parameters) == (layout, exact.parameters))
        rows.append(
            {
                "Model": label,
                "Params reported": printed(by_metric["parameters"]),
                "Params exact": f"{exact.parameters:,}",
                "Without the classifier": f"{exact.without_classifier:,}",
                "Multiply-adds reported": printed(by_metric["macs"]),
                "Multiply-adds exact": f"{exact.macs:,}",
                "ImageNet top-1 reported (%)": printed(by_metric["top1"]),
                "ImageNet top-1 measured (%)": str(next(fits, NOT_RUN)),
                "Note": "; ".join(p.note for p in by_metric.values() if p.note),
            }
        )
    table = pd.DataFrame(rows)
    if experiment.scope != "ImageNet":
        ours = f"{experiment.scope} top-1 measured (%)"
        own = [
            {
                "Model": experiment.variants[name].label,
                "Params exact": f"{found[name].parameters:,}" if name in found else "",
                "Multiply-adds exact": f"{found[name].macs:,}" if name in found else "",
                ours: str(found.get(name, NOT_RUN)),
            }
            for name in here
        ]
        table.insert(table.columns.get_loc("Note"), ours, "")
        table = pd.concat([table, pd.DataFrame(own)], ignore_index=True)
    return table.fillna("")


def costs_table() -> pd.DataFrame:
    """What attention costs in LIT-Ti, stage by stage and with every merging, at 224 px and 1000 classes.

    Reported numbers stand beside the two layouts that the README has.
    """
    own = costs(PUBLISHED["lit_ti"][1])
    names = {layout: name for name, (_, layout) in PUBLISHED.items()}
    rows = []
    for merging in MERGINGS:
        for stages in PLACES:
            layout = Layout("lit_ti", stages, merging)
            exact, later = costs(layout), costs(layout._replace(stages=stages[1:]))
            name = names.get(layout)
            known = [reported(IMAGENET, name, metric, PAPER) if name else None for metric in ("macs", "top1")]
            rows.append(
                {
                    **_columns(layout),
                    "Params": f"{exact.parameters:,}",
                    "Multiply-adds": f"{exact.macs:,}",
                    "Multiply-adds, LIT-Ti = 1": f"{exact.macs / own.macs:.2f}",
                    "Of these, attention in the earliest stage": f"{exact.macs - later.macs:,}" if stages else "",
                    "Known as": PUBLISHED[name][0] if name else "",
                    "Multiply-adds reported": printed(known[0]),
                    "ImageNet top-1 reported (%)": printed(known[1]),
                }
            )
    return pd.DataFrame(rows)


def pyramid(model: "LIT") -> pd.DataFrame:
    """Tokens, width and layers of the four stages, for an image of the model's own size."""
    rows = zip(model.grids, model.feature_info, model.stages)
    stages = pd.DataFrame(
        {
            "Stage": stage,
            "Tokens": f"{grid[0]} x {grid[1]}",
            "Width": info["num_chs"],
            "Blocks": len(blocks),
            "Layers of a block": "attention and feed-forward" if blocks[0].attn else "feed-forward",
        }
        for stage, (grid, info, blocks) in enumerate(rows, 1)
    )
    return tables.captioned(stages, "The four stages of the pyramid")


def measured_table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a LIT of the grid: where it has attention, how it merges, what it costs here, and its test top-1."""
    found = measured(experiment, records)
    rows = [
        {"Model": layout.model, **_columns(layout), **study_tables.measures(experiment, name, found.get(name))}
        for name, layout in layouts(experiment).items()
    ]
    return study_tables.said(pd.DataFrame(rows or [{"Model": NOT_RUN, "Note": "this experiment has no LIT"}]))


def pairs_table(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """Differences in top-1, paired by seed, with Holm's correction over all tests of the table: see Experiment.pairs.

    Raises InputError for runs on different images.
    """
    variants, pairs = experiment.variants, experiment.pairs(experiment.main)
    if not pairs:
        return pd.DataFrame([{"Difference": NOT_RUN, "What the seeds show": "no two of its models compare"}])
    compared = [(a, b, variants[a].label, variants[b].label) for a, b in pairs]
    table = study_tables.differences(experiment, measured(experiment, records), compared, ["all"] * len(pairs))
    differ = [
        {axis for axis in variants[a].values if variants[a].values[axis] != variants[b].values[axis]} for a, b in pairs
    ]
    table.insert(0, "What differs", [" and ".join(sorted(axes)) or "model" for axes in differ])
    return table


def words(stages: tuple[int, ...]) -> str:
    """Stages in words: "no stage", "stage 4", "stages 3 and 4", "stages 2 to 4", "all stages"."""
    if len(stages) in (0, 4):
        return "all stages" if stages else "no stage"
    if len(stages) == 1:
        return f"stage {stages[0]}"
    if stages in ((1, 2, 3), (2, 3, 4)):
        return f"stages {stages[0]} to {stages[-1]}"
    return f"stages {' and '.join(map(str, stages))}"


def _columns(layout: Layout) -> dict[str, str]:
    return {"Attention in": words(layout.stages), "Merging": layout.merging}


def printed(r: Reported | None) -> str:
    """A reported number, millions and billions with their letter; a dash for a blank, nothing where there is no row."""
    if r is None:
        return ""
    form = {"million": "{:g}M", "giga": "{:.1f}G"}.get(r.unit, "{:.1f}")
    return BLANK if r.value is None else form.format(r.value)
