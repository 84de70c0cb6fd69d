"""Notebook 18: what the layers that mix patches have learned: how local and how smooth are their maps over the image?

Layers, units and heads count from 1.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from ffvit.evidence.drawing import COLORS, finish
from ffvit.evidence.escape import drawn
from ffvit.models import ff, from_config
from ffvit.settings.experiment import Experiment
from ffvit.studies.patch_maps import Units, frequency, spread, without_order
from ffvit.studies.trained_models import TITLE
from ffvit.system.errors import InputError

UNITS, HEADS = 6, 4  # of a layer, in a picture beside others
MOST_UNITS = 60  # of a layer, in a picture of its own
FF, ATTENTION = "hidden units", "attention"  # whose maps


def subjects(experiment: Experiment) -> tuple[str, str]:
    """The first model that mixes patches by feed-forward, and the first that does by attention and is a ViT.

    Raises InputError where the experiment lacks one of them.
    """
    found: dict[str | None, str] = {}
    for variant in experiment.of(experiment.main):
        with torch.device("meta"):
            cell = ff.cell(from_config.create(experiment.config(variant.name), 2))
        if cell["features"] == "ff":
            found.setdefault(cell["patches"], variant.name)
    if not {"ff", "attention"} <= found.keys():
        raise InputError(f"{experiment.name} needs a model that is FF only, and a ViT, to set their maps side by side")
    return found["ff"], found["attention"]


def table(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Prediction beside measurement, a row a layer. found: what `measured` says, by whose maps: FF or ATTENTION."""
    rows = []
    for whose, numbers in found.items():
        for row in numbers.to_dict("records"):
            local = row["spread"] < row["untrained spread"]
            smooth = row["frequency"] < row["untrained frequency"]
            rows.append(
                {
                    "Maps of": whose,
                    "Layer": row["layer"],
                    "Spread (patches)": f"{row['spread']:.2f}",
                    "Untrained": f"{row['untrained spread']:.2f}",
                    "Predicted: smaller": "as predicted" if local else "contradicted",
                    "Frequency (cycles per patch)": f"{row['frequency']:.3f}",
                    "Untrained ": f"{row['untrained frequency']:.3f}",
                    "Predicted: lower": "as predicted" if smooth else "contradicted",
                }
            )
    return pd.DataFrame(rows)


def conclusion(found: dict[str, pd.DataFrame], grid: tuple[int, int]) -> str:
    """What was found, in words whose numbers are computed."""
    said = []
    for whose, n in found.items():
        local, smooth = n["spread"] < n["untrained spread"], n["frequency"] < n["untrained frequency"]
        first, last = n["spread"].iloc[0], n["spread"].iloc[-1]
        order = "less far than" if first < last else "farther than" if first > last else "as far as"
        said.append(
            f"{whose[0].upper()}{whose[1:]}: training made the maps more local in {local.sum()} of {len(n)} layers and smoother in "
            f"{smooth.sum()}; the first layer reaches {order} the last ({first:.2f} and {last:.2f} patches)"
        )
    return f"{'. '.join(said)}. A map without order has {without_order(grid)[0]:.2f} patches."


def maps_figure(units: list[Units], attention: list[np.ndarray], labels: tuple[str, str]) -> Figure:
    """A row a layer: on the left its strongest hidden units, on the right what one query attends to, a column a head."""
    layers, heads = max(len(units), len(attention)), min(HEADS, len(attention[0]))
    figure, axes = plt.subplots(
        layers, UNITS + heads + 1, figsize=(1.05 * (UNITS + heads) + 0.9, 1.12 * layers + 1.0), squeeze=False,
        layout="constrained", width_ratios=[1] * UNITS + [0.25] + [1] * heads,
    )  # fmt: skip
    for panel in axes.flat:
        panel.set_axis_off()
    for row, (layer, panels) in enumerate(zip(units, axes), 1):
        for panel, unit in zip(panels, layer.strongest[:UNITS]):
            _signed(panel, layer.taken[unit])
            panel.set_title(f"{row}.{unit + 1}", fontsize=8, fontweight="normal", pad=2)
    for row, (maps, panels) in enumerate(zip(attention, axes), 1):
        height, width = maps.shape[-2:]
        query = (height // 2, width // 2)
        for head, (panel, of_head) in enumerate(zip(panels[UNITS + 1 :], maps[:heads]), 1):
            _image(panel, of_head[np.ravel_multi_index(query, (height, width))], "OrRd")
            panel.add_patch(
                Rectangle((query[1] - 0.5, query[0] - 0.5), 1, 1, facecolor="none", edgecolor=COLORS[0], lw=1.6)
            )
            panel.set_title(f"{row}, head {head}", fontsize=8, fontweight="normal", pad=2)
    figure.suptitle(
        f"Left, {drawn(labels[0])}: layer.unit, the weights of the strongest hidden units, red positive, blue negative.\n"
        f"Right, {drawn(labels[1])}: layer and head, what the outlined patch attends to, dark is more.\n"
        "Each panel has a range of its own.",
        **TITLE,
    )
    return figure


def layers_figure(found: dict[str, pd.DataFrame], grid: tuple[int, int]) -> Figure:
    """Spread and frequency by layer: trained beside untrained, and what a map without order has."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    words = {"spread": "spread (patches)", "frequency": "frequency (cycles per patch)"}
    for panel, (number, label), reference in zip(panels, words.items(), without_order(grid)):
        panel.axhline(reference, color="0.5", lw=1, ls=":")
        for (whose, numbers), color, marker in zip(found.items(), COLORS, "os"):
            style: dict[str, Any] = dict(color=color, marker=marker, markersize=6)
            panel.plot(numbers["layer"], numbers[number], label=f"{whose}, trained", **style)
            panel.plot(
                numbers["layer"], numbers[f"untrained {number}"], ls="--", markerfacecolor="white",
                label=f"{whose}, untrained", **style,
            )  # fmt: skip
        panel.set(
            xlabel="layer",
            ylabel=label,
            ylim=(0, 1.1 * panel.get_ylim()[1]),
            xticks=sorted({*next(iter(found.values()))["layer"]}),
        )
        panel.set_title("How far a map reaches" if number == "spread" else "How fast it changes")
    finish(*panels)
    handles = panels[0].get_legend_handles_labels()[0]
    handles.append(Line2D([], [], color="0.5", lw=1, ls=":", label="a map without order"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def unit_figure(units: list[Units], layer: int, unit: int) -> Figure:
    """What one hidden unit takes from the patches, and what it gives to them. unit: from the strongest on."""
    of_layer = units[layer - 1]
    number = of_layer.strongest[unit - 1]
    figure, panels = plt.subplots(1, 2, figsize=(5.2, 2.9), layout="constrained")
    for panel, (words, maps) in zip(panels, {"takes": of_layer.taken, "gives": of_layer.given}.items()):
        _signed(panel, maps[number])
        panel.set_title(f"{words}, {np.abs(maps[number]).max():.2g} at most", fontsize=9, fontweight="normal")
    s, f = spread(of_layer.taken[number] ** 2), frequency(of_layer.taken[number])
    figure.suptitle(f"Layer {layer}, unit {number + 1}: spread {s:.2f} patches, {f:.3f} cycles per patch", **TITLE)
    return figure


def layer_figure(units: list[Units], layer: int) -> Figure:
    """What the hidden units of one layer take, the strongest first. Raises InputError for a layer that is not there."""
    if not 1 <= layer <= len(units):
        raise InputError(f"layer {layer}: this model has layers 1 to {len(units)}")
    of_layer = units[layer - 1]
    shown = of_layer.strongest[:MOST_UNITS]
    columns = 12
    rows = -(-len(shown) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(9, 0.8 * rows + 0.6), squeeze=False, layout="constrained", gridspec_kw=dict(hspace=0.08)
    )
    for panel in axes.flat:
        panel.set_axis_off()
    for panel, unit in zip(axes.flat, shown):
        _signed(panel, of_layer.taken[unit])
    figure.suptitle(
        f"Layer {layer}: what {len(shown)} of its {len(of_layer.taken)} hidden units take, the strongest first", **TITLE
    )
    return figure


def _signed(panel: Axes, weights: np.ndarray) -> None:
    limit = float(np.abs(weights).max())
    _image(panel, weights, "RdBu_r", vmin=-limit, vmax=limit)


def _image(panel: Axes, values: np.ndarray, colors: str, **ends: Any) -> None:
    panel.set_axis_on()
    panel.imshow(values, cmap=colors, interpolation="nearest", **ends)
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set(visible=True, color="0.8", lw=0.5)
