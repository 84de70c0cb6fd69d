"""Notebook 18: what the layers that mix patches have learned, as maps over the image.

A hidden unit of a feed-forward layer over patches has a weight for each patch (the report, arXiv:2105.02723, Figure 1): a
map over the image, as a head of attention has one for each query. How local and how smooth are they? Layers, units and
heads count from 1.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from ffvit.data.loader import Batch
from ffvit.evidence.drawing import COLORS, finish
from ffvit.evidence.escape import drawn
from ffvit.models import ff, from_config
from ffvit.models.ff import PatchFeatureMixer
from ffvit.settings.experiment import Experiment
from ffvit.studies.trained_models import NONE_READABLE, TITLE, Watched, unfused, watching
from ffvit.system.errors import InputError

UNITS, HEADS = 6, 4  # of a layer, in a picture beside others
MOST_UNITS = 60  # of a layer, in a picture of its own
FF, ATTENTION = "hidden units", "attention"  # whose maps


class Units(NamedTuple):
    """The hidden units of a feed-forward layer over patches, as maps over the image. The class token is left out."""

    taken: np.ndarray  # (units, h, w): the weight of each patch in what a unit sums, the norm's weights included
    given: np.ndarray  # (units, h, w): what it adds to each patch

    @property
    def strongest(self) -> np.ndarray:
        """Units by how much they take and give, the strongest first."""
        return np.argsort(-np.sqrt(_energy(self.taken) * _energy(self.given)), kind="stable")


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


def units_of(model: nn.Module) -> list[Units]:
    """Of each layer. Raises InputError for a model whose patches are mixed by something else."""
    if not isinstance(model, PatchFeatureMixer) or model.patches != "ff":
        raise InputError("this model has no feed-forward layer over patches: choose one that is FF only")
    grid, found = model.grid_size, []
    blocks: Any = model.blocks
    for branch in (block.mix_patches for block in blocks):
        mlp: Mlp = branch.mix
        scale = branch.norm.weight if branch.norm_transposed else 1.0  # the norm's weight of each token
        maps = [(mlp.fc1.weight * scale).detach(), mlp.fc2.weight.detach().t()]  # (units, N) both
        found.append(Units(*(_over_grid(m, grid) for m in maps)))
    return found


def attention_of(model: Any, batches: Iterable[Batch]) -> list[np.ndarray]:
    """Of each layer, what the heads' queries attend to: (heads, h * w queries, h, w), mean probabilities over the images.

    Without the class token, as a query and as what is attended to; the rest of a row is made to sum to 1. The model keeps
    its mode. Raises InputError for a model without attention over patches, and where no image could be read.
    """
    over_patches: list[Any] = [
        getattr(block, "attn", None) or getattr(block.mix_patches, "mix", None) for block in model.blocks
    ]
    if not all(isinstance(layer, Attention) for layer in over_patches):
        raise InputError("this model has no attention over patches: choose a ViT")
    sums = {layer: torch.zeros((), dtype=torch.float64) for layer in over_patches}

    def add(layer: nn.Module, maps: Tensor) -> None:  # (B, heads, N, N)
        sums[layer] = sums[layer] + maps.sum(dim=0).double()

    watched: Watched = {layer.attn_drop: partial(add, layer) for layer in over_patches}
    count = 0
    with unfused(over_patches), watching(model, watched):
        for images, target, _ in batches:
            count += len(images[target >= 0])
            model(images[target >= 0])
    if not count:
        raise InputError(NONE_READABLE)
    grid = model.patch_embed.grid_size
    tokens = grid[0] * grid[1]
    maps = [total[:, -tokens:, -tokens:].numpy() for total in sums.values()]  # a class token comes first
    return [(m / m.sum(axis=-1, keepdims=True)).reshape(*m.shape[:2], *grid) for m in maps]


def spread(density: np.ndarray) -> np.ndarray:
    """How far a map reaches, in patches: (..., h, w), not negative -> (...), the root mean square distance from its middle.

    s = sqrt(sum_c p(c) |c - m|^2), p the map made to sum to 1, c the places of patches, m = sum_c p(c) c.
    """
    density = density / density.sum(axis=(-2, -1), keepdims=True)
    rows, columns = np.indices(density.shape[-2:])
    variance = sum(
        (density * axis**2).sum(axis=(-2, -1)) - (density * axis).sum(axis=(-2, -1)) ** 2 for axis in (rows, columns)
    )
    return np.sqrt(np.maximum(variance, 0.0))


def frequency(maps: np.ndarray) -> np.ndarray:
    """How fast a map changes, in cycles per patch: (..., h, w) -> (...), the mean frequency of its spectrum.

    f = sum_k |F(k)|^2 |k| / sum_k |F(k)|^2, F the discrete Fourier transform of the map without its mean. NaN for a
    constant map.
    """
    height, width = maps.shape[-2:]
    power = np.abs(np.fft.fft2(maps - maps.mean(axis=(-2, -1), keepdims=True))) ** 2
    lengths = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    with np.errstate(invalid="ignore"):
        return (power * lengths).sum(axis=(-2, -1)) / power.sum(axis=(-2, -1))


def without_order(grid: tuple[int, int]) -> tuple[float, float]:
    """Spread of a map with the same weight everywhere, and frequency of one with weights drawn at random (white noise)."""
    impulse = np.zeros(grid)
    impulse[0, 0] = 1.0  # its spectrum is flat
    return float(spread(np.ones(grid))), float(frequency(impulse))


def measured(trained: list, untrained: list) -> pd.DataFrame:
    """By layer: spread and frequency of a model's maps after training, and before.

    Of units (Units), each counts by its squared weights; of attention (arrays of attention_of), each head and query alike.
    """
    rows = []
    for layer, (after, before) in enumerate(zip(trained, untrained), 1):
        (s, f), (s0, f0) = _numbers(after), _numbers(before)
        rows.append({"layer": layer, "spread": s, "untrained spread": s0, "frequency": f, "untrained frequency": f0})
    return pd.DataFrame(rows)


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
    return f"{'. '.join(said)}. A map without order has {without_order(grid)[0]:.2f} patches.".replace(
        "hidden", "Hidden"
    )


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


def _over_grid(weights: Tensor, grid: tuple[int, int]) -> np.ndarray:
    return weights[:, -grid[0] * grid[1] :].cpu().double().numpy().reshape(-1, *grid)  # a class token comes first


def _energy(maps: np.ndarray) -> np.ndarray:
    return (maps**2).sum(axis=(-2, -1))


def _numbers(maps: Units | np.ndarray) -> tuple[float, float]:
    if isinstance(maps, Units):
        counts = _energy(maps.taken)
        s, f = (np.average(n, weights=counts) for n in (spread(maps.taken**2), frequency(maps.taken)))
        return float(s), float(f)
    return float(spread(maps).mean()), float(np.nanmean(frequency(maps)))


def _signed(panel: Axes, weights: np.ndarray) -> None:
    limit = float(np.abs(weights).max())
    _image(panel, weights, "RdBu_r", vmin=-limit, vmax=limit)


def _image(panel: Axes, values: np.ndarray, colors: str, **ends: Any) -> None:
    panel.set_axis_on()
    panel.imshow(values, cmap=colors, interpolation="nearest", **ends)
    panel.set(xticks=[], yticks=[])
    for side in panel.spines.values():
        side.set(visible=True, color="0.8", lw=0.5)
