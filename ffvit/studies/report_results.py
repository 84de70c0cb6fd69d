"""Notebooks 04 to 06: the report's Table 1, its 2x2 grid and the training curves, reported beside measured.

A dash is a blank in the report; "not run" is ours; an empty cell does not apply.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ffvit.evidence.counted import counted
from ffvit.evidence.drawing import finish, matrix_cell, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import BLANK, NOT_RUN, Measured
from ffvit.evidence.reported import reported
from ffvit.settings.experiment import Experiment

PAPER = "arXiv:2105.02723"
# Table 1 of the report, row by row: size, family, timm's name.
TABLE1 = (
    ("Tiny, P=16", "ViT", "vit_tiny_patch16_224"),
    ("Tiny, P=16", "DeiT", "deit_tiny_patch16_224"),
    ("Tiny, P=16", "FF only", "ff_tiny_patch16_224"),
    ("Base, P=16", "ViT", "vit_base_patch16_224"),
    ("Base, P=16", "DeiT", "deit_base_patch16_224"),
    ("Base, P=16", "FF only", "ff_base_patch16_224"),
    ("Large, P=32", "ViT", "vit_large_patch32_224"),
    ("Large, P=32", "DeiT", "deit_large_patch32_224"),  # a blank row of the report; timm has no such model
    ("Large, P=32", "FF only", "ff_large_patch32_224"),
)
# The 2x2 grid at tiny size: what mixes patches, what mixes features, timm's name, where the report gives a number.
GRID_CELLS = (
    ("attention", "ff", "deit_tiny_patch16_224", "Table 1"),
    ("ff", "ff", "ff_tiny_patch16_224", "Table 1"),
    ("attention", "attention", "attention_only_tiny_patch16_224", "Section 3.4"),
    ("ff", "attention", "ff_attention_tiny_patch16_224", None),
)
# Short names for rows of text.
NAMES = {name: f"{family}, {size.partition(',')[0].lower()}" for size, family, name in TABLE1}
NAMES["attention_only_tiny_patch16_224"] = "attention only, tiny"
WORDS = {"ff": "feed-forward", "attention": "attention"}


def table1(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """The report's Table 1 and, in columns and rows of their own, what this experiment measured."""
    imagenet = {m.model: m for m in found.values()} if experiment.scope == "ImageNet" else {}
    ours = f"{experiment.scope} top-1 measured (%)"
    rows = []
    for size, family, name in TABLE1:
        printed = {metric: reported("Table 1", name, metric) for metric in ("parameters", "top1")}
        costs = counted(name)
        exact = costs.parameters if costs else None
        rows.append(
            {
                "Size": size,
                "Model": family,
                "Params reported": BLANK
                if printed["parameters"].value is None
                else f"{printed['parameters'].value:g}M",
                "Params exact": "" if exact is None else f"{exact:,}",
                "ImageNet top-1 reported (%)": BLANK
                if printed["top1"].value is None
                else f"{printed['top1'].value:.1f}",
                "ImageNet top-1 measured (%)": str(imagenet.get(name, NOT_RUN)) if exact else "",
                "Note": "; ".join(p.note for p in printed.values() if p.note),
            }
        )
    table = pd.DataFrame(rows)
    if experiment.scope != "ImageNet":
        own = [
            {
                "Size": experiment.scope,
                "Model": variant.label,
                ours: str(found.get(name, NOT_RUN)),
                "Params exact": f"{found[name].parameters:,}" if name in found else "",
            }
            for name, variant in {v.name: v for v in experiment.main_variants}.items()
        ]
        table = pd.concat([table, pd.DataFrame(own)], ignore_index=True)
        table.insert(6, ours, table.pop(ours))
    return table.fillna("")


def in_cell(
    experiment: Experiment, found: dict[str, Measured], patches: str, features: str, name: str
) -> Measured | None:
    """What was measured for a cell of the grid; of ImageNet's several sizes, the tiny model `name`."""
    fits = [m for m in found.values() if (m.patches, m.features) == (patches, features)]
    if experiment.scope == "ImageNet":
        fits = [m for m in fits if m.model == name]
    return fits[0] if fits else None


def grid_table(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """The 2x2 grid: the report's ImageNet numbers at tiny size, and this experiment's in their own column."""
    ours = f"{experiment.scope} top-1 measured (%)"
    rows = []
    for patches, features, name, place in GRID_CELLS:
        printed = reported(place, name, "top1") if place else None
        mine = in_cell(experiment, found, patches, features, name)
        reading = reported(place, name, "parameters").note if place == "Section 3.4" else ""
        exact = counted(name)
        assert exact, f"{name} is not in counted.csv"  # noqa: S101  # a file of the project's own, which a test holds
        rows.append(
            {
                "Patches mixed by": WORDS[patches],
                "Features mixed by": WORDS[features],
                "Model (tiny)": name,
                "Params exact (tiny)": f"{exact.parameters:,}",
                "ImageNet top-1 reported (%)": f"{printed.value:.1f}" if printed else "never run",
                ours: str(mine) if mine else NOT_RUN,
                f"Params exact ({experiment.scope})": f"{mine.parameters:,}" if mine else "",
                "Note": "; ".join(filter(None, [printed.note, reading]))
                if printed
                else "The report leaves this cell open",
            }
        )
    return pd.DataFrame(rows)


def training_curves(experiment: Experiment, found: dict[str, Measured]) -> Figure:
    """Loss and accuracy by epoch, a line per model (mean over seeds), a band from the lowest to the highest seed."""
    panels = (
        ("train_loss", "Training loss"),
        ("validation_loss", "Validation loss"),
        ("validation_top1_percent", "Validation top-1 (%)"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4 + 0.12 * max(0, len(found) - 4)), layout="constrained")
    for panel, (column, title) in zip(axes, panels):
        panel.set(title=title, xlabel="epoch")
        for m in found.values():
            frame = pd.DataFrame(epoch for r in m.records for epoch in r["history"])
            color, dashes, _ = style_of(experiment, m.name)
            sns.lineplot(
                frame,
                x="epoch",
                y=column,
                ax=panel,
                color=color,
                linestyle=dashes,
                lw=1.8,
                errorbar=("pi", 100),
                label=f"{drawn(m.label)} (n={len(m.percent)})",
                legend=False,
            )
        panel.set_ylabel("")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish(*axes)
    if found:
        columns = len(found) if len(found) <= 4 else 2
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{drawn(experiment.title)}: mean over seeds; bands from lowest to highest seed", x=0.01, ha="left")
    return figure


def grid_figure(experiment: Experiment, found: dict[str, Measured]) -> Figure:
    """The 2x2 grid twice: the report's ImageNet numbers, and what this experiment measured, on one scale."""
    order = ("ff", "attention")
    left, right, left_text, right_text = (np.full((2, 2), kind) for kind in (np.nan, np.nan, object(), object()))
    for patches, features, name, place in GRID_CELLS:
        cell = order.index(patches), order.index(features)
        printed = reported(place, name, "top1").value if place else None
        mine = in_cell(experiment, found, patches, features, name)
        title = {
            "deit_tiny_patch16_224": "DeiT",
            "ff_tiny_patch16_224": "FF only",
            "attention_only_tiny_patch16_224": "attention only\n(100 epochs)",
        }.get(name, "open")
        left[cell] = np.nan if printed is None else printed
        left_text[cell] = f"{title}\n{printed:.1f} %" if printed else "never run"
        right[cell] = mine.mean if mine else np.nan
        spread = f"\n± {mine.sd:.2f}" if mine and mine.sd is not None else ""
        right_text[cell] = f"{mine.mean:.2f} %{spread}\n(n={len(mine.percent)})" if mine else "not run"
    panels = (
        (left, left_text, "ImageNet, tiny, as reported"),
        (
            right,
            right_text,
            f"{drawn(experiment.scope)}, {' and '.join(sorted({m.origin for m in found.values()})) or 'not run'}",
        ),
    )
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.9), layout="constrained")
    for panel, (values, text, title) in zip(axes, panels):
        for (row, column), value in np.ndenumerate(values):
            matrix_cell(panel, column, row, None if np.isnan(value) else value, str(text[row, column]))
        panel.set(xlim=(0, 2), ylim=(2, 0), aspect="equal")
        panel.set_xticks([0.5, 1.5], [WORDS[k] for k in order])
        panel.set_yticks([0.5, 1.5], [WORDS[k] for k in order], rotation=90, va="center")
        panel.spines[:].set_visible(False)
        panel.set(title=title, xlabel="features mixed by", ylabel="patches mixed by")
        panel.tick_params(length=0)
    figure.suptitle("Top-1 accuracy of the four ways to mix patches and features", x=0.01, ha="left")
    return figure
