"""Notebook 11: how far a LIT's attention reaches.

Pan et al. 2022, arXiv:2105.14217, Figure 3, and the official script (generate_attention_maps.py of github.com/ziplab/LIT).
Stages, blocks and heads count from 1.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ffvit.data.loader import Batch
from ffvit.evidence.drawing import COLORS
from ffvit.evidence.escape import drawn
from ffvit.models.lit import LIT, Grid
from ffvit.studies.trained_models import NONE_READABLE, TITLE, Watched, unfused, watching
from ffvit.system.errors import InputError

MOST_BYTES = 512 * 2**20  # for the attention maps of one block: how many images at a time
# By stage: the query of the published pictures, row and column, and the map it is in; near the middle.
QUERIES = {1: ((22, 28), (56, 56)), 2: ((10, 14), (28, 28)), 3: ((6, 8), (14, 14)), 4: ((2, 3), (7, 7))}
MOST_HEADS = 8  # in a picture


@dataclass(frozen=True)
class MeanAttention:
    """Attention probabilities, after the softmax, averaged over images."""

    maps: dict[tuple[int, int], np.ndarray]  # by stage and block: (heads, N, N), queries by row; rows sum to 1
    grids: dict[int, Grid]  # tokens per column and row of each stage's map
    patch_size: int  # pixels
    images: int

    def of_image(self, stage: int, block: int) -> np.ndarray:
        """(heads, h * w, h * w): without the class token's row and column, as published: not renormalised."""
        tokens = math.prod(self.grids[stage])
        return self.maps[stage, block][:, -tokens:, -tokens:]  # a class token comes first


def mean_attention(model: nn.Module, batches: Iterable[Batch]) -> MeanAttention:
    """The mean over all images that could be read of what each head attends to (Figure 3).

    Only sums are kept, and few images are seen at a time: their maps take at most MOST_BYTES a block. The model keeps
    its mode. Raises InputError for a model without attention, and where no image could be read.
    """
    stages = dict(enumerate(model.stages if isinstance(model, LIT) else [], 1))
    attentions = {(s, b): block.attn for s in stages for b, block in enumerate(stages[s], 1) if block.attn}
    if not isinstance(model, LIT) or not attentions:
        raise InputError("this model has no attention to look at: choose a LIT with attention_stages=[1, 2, 3, 4]")
    sums = {key: torch.zeros((), dtype=torch.float64) for key in attentions}

    def add(key: tuple[int, int], maps: Tensor) -> None:  # (B, heads, N, N)
        sums[key] = sums[key] + maps.sum(dim=0).cpu().double()

    device, count = next(model.parameters()).device, 0
    grids: dict[int, Grid] = {}
    watched: Watched = {attention.attn_drop: partial(add, key) for key, attention in attentions.items()}
    with unfused(attentions.values()), watching(model, watched):
        for images, target, _ in batches:
            images = images[target >= 0]
            grids = dict(enumerate(model.grids_of(images.shape[2:]), 1))
            tokens = {stage: math.prod(grid) + 1 for stage, grid in grids.items()}  # with a class token
            largest = max(4 * a.num_heads * tokens[stage] ** 2 for (stage, _), a in attentions.items())  # fp32
            at_once = max(1, MOST_BYTES // largest)
            for start in range(0, len(images), at_once):
                model(images[start : start + at_once].to(device))
            count += len(images)
    if not count:
        raise InputError(NONE_READABLE)
    maps = {key: (total / count).numpy() for key, total in sums.items()}
    return MeanAttention(maps, grids, model.patch_size, count)


def query_cell(stage: int, grid: Grid) -> tuple[int, int]:
    """Row and column of the query that the published pictures show; in a map of another size, in proportion."""
    cell, published = QUERIES[stage]
    row, column = (place * side // of for place, side, of in zip(cell, grid, published))
    return row, column


def query_row(attention: MeanAttention, stage: int, block: int) -> np.ndarray:
    """What the query of `query_cell` attends to: (heads, h, w) probabilities."""
    grid = attention.grids[stage]
    index = np.ravel_multi_index(query_cell(stage, grid), grid)
    return attention.of_image(stage, block)[:, index].reshape(-1, *grid)


def attention_distance(attention: MeanAttention) -> pd.DataFrame:
    """By stage and block: how many pixels lie between a token and what it attends to.

    The mean over tokens, heads and images, that of the head that looks least far and of the one that looks farthest,
    and what attention to all tokens alike would have. The class token does not count: rows of the mean maps are
    renormalised without it.
    """
    rows = []
    for stage, block in attention.maps:
        grid = attention.grids[stage]
        places = np.indices(grid).reshape(2, -1) * attention.patch_size * 2 ** (stage - 1)
        distances = np.hypot(*(axis[:, None] - axis for axis in places))  # (N, N) pixels
        maps = attention.of_image(stage, block)
        heads = (np.einsum("hij,ij->hi", maps, distances) / maps.sum(axis=2)).mean(axis=1)
        rows.append(
            {
                "stage": stage,
                "block": block,
                "tokens": f"{grid[0]} x {grid[1]}",
                "heads": len(heads),
                "mean distance (px)": f"{heads.mean():.2f}",
                "lowest head (px)": f"{heads.min():.2f}",
                "highest head (px)": f"{heads.max():.2f}",
                "uniform attention (px)": f"{distances.mean():.2f}",
            }
        )
    return pd.DataFrame(rows)


def attention_figure(attention: MeanAttention, label: str) -> Figure:
    """What one query attends to, after Figure 3: a row a stage with attention, in its last block; a column a head."""
    last = dict(sorted(attention.maps))  # block of each stage
    rows = {stage: query_row(attention, stage, block) for stage, block in last.items()}
    columns = min(MOST_HEADS, max(map(len, rows.values())))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(1.45 * columns, 1.85 * len(rows) + 0.7), squeeze=False, layout="constrained"
    )
    for panels, (stage, heads) in zip(axes, rows.items()):
        for panel in panels[len(heads) :]:
            panel.set_axis_off()
        panels[0].set_ylabel("{} x {} tokens".format(*heads.shape[1:]), fontsize=9)
        for head, (panel, probabilities) in enumerate(zip(panels, heads), 1):
            _heat_map(panel, probabilities, query_cell(stage, probabilities.shape))
            panel.set_title(f"stage {stage}, head {head}", fontsize=9, fontweight="normal")
    notes = [f"Of more than {MOST_HEADS} heads, the first."] * (max(map(len, rows.values())) > MOST_HEADS)
    extra = {stage: attention.maps[stage, block].shape[1] - rows[stage][0].size for stage, block in last.items()}
    notes += ["The class token, in stage 4, is left out."] * any(extra.values())
    figure.suptitle(
        f"What one token (outlined) attends to. Model: {drawn(label)}.\n"
        f"{' '.join([f'Last block of each stage; mean over {attention.images:,} images.', *notes])}\n"
        "Each panel has a range of its own, from pale to dark red; it stands below.",
        **TITLE,
    )
    return figure


def _heat_map(panel: Axes, probabilities: np.ndarray, query: tuple[int, int]) -> None:
    panel.imshow(probabilities, cmap="OrRd", interpolation="nearest")
    low, high = 100 * probabilities.min(), 100 * probabilities.max()
    digits = max(0, 2 - math.floor(math.log10(high or 1)))  # three of the highest
    panel.set_xlabel(f"{low:.{digits}f} to {high:.{digits}f} %" if low < high else f"{high:.{digits}f} %")
    panel.xaxis.label.set_fontsize(8)
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set_visible(False)
    (row, column), width = query, min(1.6, 45 / probabilities.shape[1])
    square = Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="none", edgecolor=COLORS[0], lw=width)
    panel.add_patch(square).set_clip_on(False)
