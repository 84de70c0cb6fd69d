"""Notebook 18: what the layers that mix patches have learned: how local and how smooth are their maps over the image?

Layers, units and heads count from 1.
"""

from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from torch import nn

from ffvit.evidence.drawing import COLORS, finish
from ffvit.evidence.escape import drawn
from ffvit.models import ff, from_config
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.studies import trained_models
from ffvit.studies.patch_maps import ByLayer, Units, frequency, spread, without_order
from ffvit.studies.trained_models import TITLE
from ffvit.system.errors import InputError

UNITS, HEADS = 6, 4  # of a layer, in a picture beside others
MOST_UNITS = 60  # of a layer, in a picture of its own
FF, ATTENTION = "hidden units", "attention"  # whose maps
SEEDS = 39  # of untrained models: one more would lie outside their range once in 20 times, 2 / (39 + 1)
PREDICTED, CONTRADICTED, NO_DIFFERENCE = "as predicted", "contradicted", "no difference"


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


def untrained(config: Config, num_classes: int) -> list[nn.Module]:
    """The model as its run began, and as it begins with other seeds."""
    return [trained_models.untrained(replace(config, seed=config.seed + more), num_classes) for more in range(SEEDS)]


def table(found: dict[str, ByLayer]) -> pd.DataFrame:
    """Prediction beside measurement, a row each. found: what `measured` says, by whose maps: FF or ATTENTION."""
    rows = []
    for whose, of in found.items():
        asked = [
            ("spread smaller (patches)", ".3f", of.spread, of.untrained_spread),
            ("frequency lower (cycles per patch)", ".4f", of.frequency, of.untrained_frequency),
        ]
        rows += [
            _row(whose, str(layer + 1), words, form, after[layer], before[:, layer], below=True)
            for words, form, after, before in asked
            for layer in range(len(after))
        ]
        if whose == ATTENTION:
            words = "spread larger in the last layer (patches)"
            rows.append(_row(whose, "last − first", words, "+.3f", *_growth(of), below=False))
    return pd.DataFrame(rows)


def conclusion(found: dict[str, ByLayer], grid: tuple[int, int]) -> str:
    """What was found, in words whose numbers are computed."""
    said = []
    for whose, of in found.items():
        local, smooth = (
            [_found(value, seeds, below=True) for value, seeds in zip(after, before.T)]
            for after, before in ((of.spread, of.untrained_spread), (of.frequency, of.untrained_frequency))
        )
        said.append(
            f"{whose[0].upper()}{whose[1:]}: training made the maps more local in {_counted(local)} and smoother in "
            f"{_counted(smooth)}; the first layer reaches {of.spread[0]:.2f} patches, the last {of.spread[-1]:.2f}"
        )
    if ATTENTION in found:
        verdict = _found(*_growth(found[ATTENTION]), below=False)
        ends = {NO_DIFFERENCE: "not shown: untrained seeds differ by as much"}.get(verdict, verdict)
        said.append(f"That attention reaches farther in the last layer than in the first is {ends}")
    return f"{'. '.join(said)}. A map with one weight everywhere has {without_order(grid)[0]:.2f} patches."


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


def layers_figure(found: dict[str, ByLayer], grid: tuple[int, int]) -> Figure:
    """Spread and frequency by layer: trained beside untrained (mean and range), and a map that is even, or white noise."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    words = {"spread": "spread (patches)", "frequency": "frequency (cycles per patch)"}
    for panel, (number, label), reference in zip(panels, words.items(), without_order(grid)):
        panel.axhline(reference, color="0.5", lw=1, ls=":")
        for (whose, of), color, marker in zip(found.items(), COLORS, "os"):
            style: dict[str, Any] = dict(color=color, marker=marker, markersize=6)
            after, before = getattr(of, number), getattr(of, f"untrained_{number}")
            layers = np.arange(len(after)) + 1
            panel.plot(layers, after, label=f"{whose}, trained", **style)
            panel.plot(
                layers, before.mean(axis=0), ls="--", markerfacecolor="white", label=f"{whose}, untrained", **style
            )
            panel.fill_between(layers, before.min(axis=0), before.max(axis=0), color=color, alpha=0.2, lw=0)
        panel.set(xlabel="layer", ylabel=label, ylim=(0, 1.1 * panel.get_ylim()[1]), xticks=layers)
        panel.set_title("How far a map reaches" if number == "spread" else "How fast it changes")
    finish(*panels)
    handles = panels[0].get_legend_handles_labels()[0]
    handles.append(Line2D([], [], color="0.5", lw=1, ls=":", label="an even map (left), white noise (right)"))
    handles.append(Patch(color="0.5", alpha=0.3, lw=0, label=f"bands: {len(before)} untrained seeds"))
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


def _row(whose: str, layer: str, words: str, form: str, value: float, seeds: np.ndarray, below: bool) -> dict[str, str]:
    """seeds: the same number of untrained models."""
    ends = f"{seeds.min():{form}} to {seeds.max():{form}}"
    return {
        "Maps of": whose,
        "Layer": layer,
        "Predicted": words,
        "Trained": f"{value:{form}}".replace("-", "−"),
        f"Untrained, {len(seeds)} seeds": ends.replace("-", "−"),
        "Found": _found(value, seeds, below),
    }


def _found(value: float, seeds: np.ndarray, below: bool) -> str:
    """Whether a number lies below, or above, those of untrained models, as predicted."""
    if seeds.min() <= value <= seeds.max():
        return NO_DIFFERENCE
    return PREDICTED if (value < seeds.min()) == below else CONTRADICTED


def _growth(of: ByLayer) -> tuple[float, np.ndarray]:
    """Spread of the last layer less that of the first, trained, and untrained of each seed."""
    return of.spread[-1] - of.spread[0], of.untrained_spread[:, -1] - of.untrained_spread[:, 0]


def _counted(verdicts: list[str]) -> str:
    others = {CONTRADICTED: "less so", NO_DIFFERENCE: "no different"}
    told = [f"{words} in {verdicts.count(verdict)}" for verdict, words in others.items() if verdict in verdicts]
    return f"{verdicts.count(PREDICTED)} of {len(verdicts)} layers" + (f" ({', '.join(told)})" if told else "")


def _signed(panel: Axes, weights: np.ndarray) -> None:
    limit = float(np.abs(weights).max())
    _image(panel, weights, "RdBu_r", vmin=-limit, vmax=limit)


def _image(panel: Axes, values: np.ndarray, colors: str, **ends: Any) -> None:
    panel.set_axis_on()
    panel.imshow(values, cmap=colors, interpolation="nearest", **ends)
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set(visible=True, color="0.8", lw=0.5)
