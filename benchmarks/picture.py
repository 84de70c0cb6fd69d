"""benchmarks/speed.png, drawn from speed.csv: the share of the hardware's limit that each form reaches, by machine."""

import csv
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ffvit.evidence import drawing
from ffvit.system.files import ROOT

RUNS = ("eager", "compiled by block", "compiled", "CUDA graphs")
STYLE = dict(zip(RUNS, zip(drawing.COLORS, drawing.MARKERS)))
SHARE = "share of the limit"


def draw(file: Path = ROOT / "benchmarks" / "speed.csv") -> None:
    drawing.save(picture(table(file)), file.with_suffix(".png"), source=f"benchmarks/{file.name}")


def table(file: Path) -> pd.DataFrame:
    """The rows that were measured and did not fail: panel, label, run, and the share of the limit as a number."""
    with file.open(newline="") as opened:
        rows = pd.DataFrame([row for row in csv.DictReader(opened) if row[SHARE]])
    rows[SHARE] = [float(share.removesuffix(" %")) for share in rows[SHARE]]
    rows["panel"] = rows["machine"].str.partition(": ")[2] + ", " + rows["precision"]
    usual = rows.groupby(["machine", "model"])["batch"].transform("first")
    models = rows["model"].str.replace(r"(_patch\d+)?_224$", "", regex=True)
    forms = rows["form"].where(rows["form"] != "timm", "")
    batches = ("batch " + rows["batch"]).where(rows["batch"] != usual, "")
    steps = rows["step"].where(rows["step"] != "training", "")
    rows["label"] = [", ".join(filter(None, parts)) for parts in zip(models, steps, forms, batches)]
    # The report's models before others', in the order in which they were measured.
    return rows.assign(others=rows["form"] == "timm").sort_values(
        ["others", "model", "step"], ascending=[True, True, False], kind="stable"
    )


def picture(rows: pd.DataFrame) -> Figure:
    """A panel for each machine and precision, a line for each model and form, a mark for each way to run it."""
    panels = list(dict.fromkeys(rows["panel"].sort_index()))  # as in the table
    lines = [rows[rows["panel"] == panel]["label"].nunique() for panel in panels]
    figure = Figure(figsize=(8.5, 0.9 + sum(0.26 * count + 0.6 for count in lines)), layout="constrained")
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=[count + 1 for count in lines])[:, 0]
    for panel, name in zip(axes, panels):
        sns.scatterplot(
            rows[rows["panel"] == name],
            x=SHARE,
            y="label",
            hue="run",
            hue_order=RUNS,
            palette=[color for color, _ in STYLE.values()],
            style="run",
            style_order=RUNS,
            markers=[marker for _, marker in STYLE.values()],
            s=60,
            legend=False,
            ax=panel,
        )
        panel.set(title=name, ylabel="", xlim=(0, 100))
        drawing.finish(panel)
    axes[-1].set_xlabel("share of the limit, which a large product of the same type reaches (%)")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="none", markersize=7, label=run)
        for run, (color, marker) in STYLE.items()
        if run in set(rows["run"])
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


if __name__ == "__main__":
    draw()
