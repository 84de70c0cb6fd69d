"""Notebooks 09 and 10: LIT's published numbers beside what was measured, and its question: in which stages does attention earn its keep?

Pan et al. 2022 (AAAI), "Less is More: Pay Less Attention in Vision Transformers", arXiv:2105.14217. What it reports is
read in the README of its code; the paper's own ablations are not among them. Costs are counted on the models,
accuracies come from records.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ffvit.evidence.counted import Counted, counted
from ffvit.evidence.drawing import COLORS, MARKERS, MARKS, face, finish, mean_and_seeds
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import BLANK, NOT_RUN, Measured, measured
from ffvit.evidence.reported import Reported, load_reported, reported
from ffvit.evidence.seed_statistics import difference
from ffvit.settings.experiment import Experiment
from ffvit.studies import study_tables

if TYPE_CHECKING:
    from ffvit.models.lit import LIT

PAPER = "arXiv:2105.14217"
README = f"LIT's reported numbers: README of the official code (github.com/ziplab/LIT at 742e961) of {PAPER}."
IMAGENET = "ImageNet-1K"
# The README's tables of dense prediction, by the name of the file that shows each.
DENSE = {
    "retinanet": "RetinaNet, COCO 1x",
    "mask_rcnn": "Mask R-CNN, COCO 1x",
    "semantic_fpn": "Semantic FPN, ADE20K",
}
METRICS = {"box_ap": "Box AP", "mask_ap": "Mask AP", "miou": "mIoU"}  # of dense prediction
# Arguments of a LIT by the word for its merging. Each differs from the next in one thing: whether offsets are learned;
# whether a batch norm and GELU follow, or a layer norm.
MERGINGS: dict[str, dict[str, bool]] = {
    "deformable": {"deformable": True},
    "zero-offset": {"deformable": True, "learn_offsets": False},
    "plain": {"deformable": False},
}
LOOKS = {"deformable": ("-", "full"), "zero-offset": ("-.", "half"), "plain": ("--", "none")}  # line, and fill of marks


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
    assert found, f"{layout} is not in counted.csv"
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
        printed = {metric: reported(IMAGENET, name, metric, PAPER) for metric in ("parameters", "macs", "top1")}
        exact = costs(layout)
        # The count tells other shapes from the published one. Alone it would not do: zero-offset merging has plain's.
        fits = (m for m in on_imagenet if (here.get(m.name), m.parameters) == (layout, exact.parameters))
        rows.append(
            {
                "Model": label,
                "Params reported": _printed(printed["parameters"]),
                "Params exact": f"{exact.parameters:,}",
                "Without the classifier": f"{exact.without_classifier:,}",
                "Multiply-adds reported": _printed(printed["macs"]),
                "Multiply-adds exact": f"{exact.macs:,}",
                "ImageNet top-1 reported (%)": _printed(printed["top1"]),
                "ImageNet top-1 measured (%)": str(next(fits, NOT_RUN)),
                "Note": "; ".join(p.note for p in printed.values() if p.note),
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


def dense_table(place: str) -> pd.DataFrame:
    """One of the README's tables of detection and segmentation, by its place, see DENSE. Nothing of it is run yet."""
    rows: dict[str, dict] = {}
    for r in load_reported():
        if (r.paper, r.place) == (PAPER, place):
            row = rows.setdefault(r.model, {"Model": PUBLISHED[r.model][0]})
            if r.metric == "parameters":
                row["Params reported"] = _printed(r)
            else:
                row[f"{METRICS[r.metric]} reported (%)"] = _printed(r)
                row[f"{METRICS[r.metric]} measured (%)"] = NOT_RUN
            row["Note"] = "; ".join(filter(None, [row.pop("Note", ""), r.note]))
    table = pd.DataFrame(rows.values())
    return table.loc[:, (table != "").any()]


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
            printed = [reported(IMAGENET, name, metric, PAPER) if name else None for metric in ("macs", "top1")]
            rows.append(
                {
                    **_columns(layout),
                    "Params": f"{exact.parameters:,}",
                    "Multiply-adds": f"{exact.macs:,}",
                    "Multiply-adds, LIT-Ti = 1": f"{exact.macs / own.macs:.2f}",
                    "Of these, attention in the earliest stage": f"{exact.macs - later.macs:,}" if stages else "",
                    "Known as": PUBLISHED[name][0] if name else "",
                    "Multiply-adds reported": _printed(printed[0]),
                    "ImageNet top-1 reported (%)": _printed(printed[1]),
                }
            )
    return pd.DataFrame(rows)


def pyramid(model: "LIT") -> pd.DataFrame:
    """Tokens, width and layers of the four stages, for an image of the model's own size."""
    rows = zip(model.grids, model.feature_info, model.stages)
    return pd.DataFrame(
        {
            "Stage": stage,
            "Tokens": f"{grid[0]} x {grid[1]}",
            "Width": info["num_chs"],
            "Blocks": len(blocks),
            "Layers of a block": "attention and feed-forward" if blocks[0].attn else "feed-forward",
        }
        for stage, (grid, info, blocks) in enumerate(rows, 1)
    )


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


def accuracy_by_macs(experiment: Experiment, records: list[dict]) -> Figure:
    """Test top-1 against multiply-adds of an image and, paired by seed, what attention in one more stage adds to it."""
    found, here = measured(experiment, records), layouts(experiment)
    places = sorted({layout.stages for layout in here.values()}, key=lambda stages: (len(stages), stages))
    looks = {stages: (COLORS[i % len(COLORS)], "", MARKERS[i % len(MARKERS)]) for i, stages in enumerate(places)}
    figure, (accuracy, gain) = plt.subplots(1, 2, figsize=(10.5, 4.9), layout="constrained")
    accuracy.set(title="Accuracy by cost", xlabel="million multiply-adds of an image", ylabel="test top-1 (%)")
    gain.set(title="What attention in one more stage adds", ylabel="difference in test top-1 (points)")
    _draw_accuracy(accuracy, found, here, looks)
    _draw_gain(gain, found, here, looks)
    finish(accuracy, gain)
    mergings = _mergings(here)
    rows = max(2, len(mergings))
    handles = [
        Line2D([], [], color=color, marker=marker, lw=0, markersize=7, label=f"attention in {words(stages)}")
        for stages, (color, _, marker) in looks.items()
    ]
    handles += [Line2D([], [], lw=0, label="")] * (-len(handles) % rows)  # mergings in a column of their own
    for merging in mergings:
        line, fill = LOOKS[merging]
        look: dict[str, Any] = dict(color="0.3", marker="o", markersize=7, lw=1.2, linestyle=line, **face("0.3", fill))
        handles.append(Line2D([], [], **look, label=f"{merging} merging"))
    columns = -(-len(handles) // rows)
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=2.6, frameon=False)
    figure.suptitle(f"{drawn(experiment.title)}.\n{MARKS}", x=0.01, ha="left")
    return figure


def words(stages: tuple[int, ...]) -> str:
    """Stages in words: "no stage", "stage 4", "stages 3 and 4", "stages 2 to 4", "all stages"."""
    if len(stages) in (0, 4):
        return "all stages" if stages else "no stage"
    if len(stages) == 1:
        return f"stage {stages[0]}"
    if stages in ((1, 2, 3), (2, 3, 4)):
        return f"stages {stages[0]} to {stages[-1]}"
    return f"stages {' and '.join(map(str, stages))}"


def _draw_accuracy(panel: Axes, found: dict[str, Measured], here: dict[str, Layout], looks: dict) -> None:
    """A line joins the layouts of one model and one merging."""
    lines = defaultdict(list)
    for name, layout in here.items():
        if name in found:
            m = found[name]
            lines[layout._replace(stages=())].append((m.macs / 1e6, m.mean))
            mean_and_seeds(panel, m.macs / 1e6, m.percent, looks[layout.stages], LOOKS[layout.merging][1])
    panel.xaxis.set_major_formatter("{x:,g}")
    for layout, line in lines.items():
        panel.plot(*zip(*sorted(line)), color="0.6", linestyle=LOOKS[layout.merging][0], lw=1.2, zorder=1)


def _draw_gain(panel: Axes, found: dict[str, Measured], here: dict[str, Layout], looks: dict) -> None:
    """Each layout less the same without attention in its earliest stage. From left to right, stages 4 to 1."""
    names = {layout: name for name, layout in here.items()}
    mergings = _mergings(here)
    ticks = {}
    for layout, name in names.items():
        before = names.get(layout._replace(stages=layout.stages[1:]))
        if not layout.stages or name not in found or before not in found:
            continue
        if points := difference(found[name], found[before]).points:
            stage = layout.stages[0]
            x = -stage + 0.24 * ((len(mergings) - 1) / 2 - mergings.index(layout.merging))  # side by side
            mean_and_seeds(panel, x, points, looks[layout.stages], LOOKS[layout.merging][1])
            ticks[-stage] = f"stage {stage}\n+{(found[name].macs - found[before].macs) / 1e6:.3g}"
    if ticks:
        panel.set(
            xlim=(min(ticks) - 0.5, max(ticks) + 0.5), xlabel="what that costs: million multiply-adds of an image"
        )
        panel.axhline(0, color="0.25", lw=1)
        panel.set_xticks(list(ticks), list(ticks.values()))


def _columns(layout: Layout) -> dict[str, str]:
    return {"Attention in": words(layout.stages), "Merging": layout.merging}


def _mergings(here: dict[str, Layout]) -> list[str]:
    """Those that an experiment has, in the order of MERGINGS."""
    return [merging for merging in MERGINGS if merging in {layout.merging for layout in here.values()}]


def _printed(r: Reported | None) -> str:
    """A reported number, millions and billions with their letter; a dash for a blank, nothing where there is no row."""
    if r is None:
        return ""
    form = {"million": "{:g}M", "giga": "{:.1f}G"}.get(r.unit, "{:.1f}")
    return BLANK if r.value is None else form.format(r.value)
