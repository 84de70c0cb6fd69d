"""Where a LIT looks: the pixels that its deformable merging takes, and how far its attention reaches.

Pan et al. 2022, arXiv:2105.14217, Figure 3, and the official scripts (show_offset.py and generate_attention_maps.py of
github.com/ziplab/LIT). Here models are in evaluation mode and images normalised; the offsets' script does neither.
Stages, blocks and heads count from 1.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ffvit.data.batches import eval_loader
from ffvit.data.loader import Batch
from ffvit.data.splits import load_splits
from ffvit.evidence.drawing import COLORS, MARKERS
from ffvit.evidence.measured import commit, machine
from ffvit.evidence.records import open_run
from ffvit.models import build
from ffvit.models.lit import LIT, DeformableMerging, Grid
from ffvit.models.weights import load_weights
from ffvit.settings.config import Config, alone, config_from_dict
from ffvit.settings.experiment import Experiment
from ffvit.studies.stages import OWN, layouts
from ffvit.system.errors import InputError

TAPS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # of a merging, down and to the right
MOST_BYTES = 512 * 2**20  # for the attention maps of one block: how many images at a time
# By stage: the query of the published pictures, row and column, and the map it is in; near the middle.
QUERIES = {1: ((22, 28), (56, 56)), 2: ((10, 14), (28, 28)), 3: ((6, 8), (14, 14)), 4: ((2, 3), (7, 7))}
MOST_HEADS, MOST_IMAGES = 8, 4  # in a picture
NONE_READABLE = "no image to look at can be read; choose another dataset"
TITLE: dict[str, Any] = dict(x=0.01, ha="left", fontsize=10)
Watched = Mapping[nn.Module, Callable[[Tensor], None]]  # to each module, who is shown its output


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


def subjects(experiment: Experiment) -> tuple[str, str]:
    """The models whose offsets and whose attention to look at, where nobody chooses, by their names in the experiment.

    LIT with attention where its paper has it, and, as in Figure 3, attention in all stages with plain merging; otherwise
    what comes closest. Raises InputError where no model has offsets, or none attention.
    """
    here = layouts(experiment)
    with_offsets = [name for name in here if here[name].deformable]
    with_attention = [name for name in here if here[name].stages]
    if not with_offsets or not with_attention:
        raise InputError(
            f"{experiment.name} has no LIT with deformable merging, or none with attention: nothing to look at"
        )
    return (
        max(with_offsets, key=lambda name: here[name].stages == OWN),
        max(with_attention, key=lambda name: (len(here[name].stages), not here[name].deformable)),
    )


def prepare(config: Config, weights: str | Path, num_classes: int = 0, **settings) -> tuple[nn.Module, Iterable[Batch]]:
    """The model of a run or checkpoint, and batches of its test images.

    num_classes: the checkpoint's; 0: as many as the dataset has. settings: of Config, in place of the run's, such as
    max_eval_images, a random subset, or where the images are now.
    """
    config = alone(config_from_dict(config.to_dict() | settings))
    splits = load_splits(config)
    model = build.create(config, num_classes or len(splits.classes))
    return load_weights(model, weights), eval_loader(splits.test, config)


def source(weights: str | Path) -> str:
    """One sentence on whose weights a picture shows: those of a run, by id and commit, or of a file from elsewhere."""
    weights = Path(weights)
    if not (weights.parent / "training.json").is_file():
        return f"Weights: {weights.name}, a file that was given; not trained here."
    config, facts = open_run(weights.parent)
    return (
        f"Weights: {weights.name} of run {config.run_id} of {config.experiment}, trained here, "
        f"commit {commit(facts)}, on {machine(facts)}."
    )


def offsets(model: nn.Module, images: Tensor) -> list[Tensor]:
    """How far the three deformable mergings move their taps, for images (B, C, H, W): three times (B, 8, h, w).

    In tokens of the map that is merged: channel 2k moves tap k down, 2k + 1 to the right. The model keeps its mode.
    Raises InputError for a model without deformable merging.
    """
    mergings = model.mergings if isinstance(model, LIT) else []
    found: list[Tensor] = []
    watched: Watched = {m.dconv.conv_offset: found.append for m in mergings if isinstance(m, DeformableMerging)}
    if not watched:
        raise InputError("this model's mergings have no offsets: choose a LIT with deformable=true")
    with _watching(model, watched):
        model(images.to(next(model.parameters()).device))
    return [moves.cpu() for moves in found]


def trace(moves: Sequence[Tensor | np.ndarray], patch_size: int, img_size: tuple[int, int]) -> np.ndarray:
    """The places in an image that every token of the last map is computed from: (h, w, 64, 2) pixels, down and right.

    moves: what `offsets` gives for one image, (8, h, w) each. img_size: height and width. A dropped point is NaN.

    As published: a token has four taps in the map before. Each is rounded to a token, half to even, dropped where there
    is none, and has four taps itself, by the offsets stored there. After three mergings, a point p is in the middle of
    a patch, at patch_size * p + patch_size / 2. The script rounds that to a whole pixel, drops what is outside of the
    image and moves the rest to [1, 222], for its squares to be seen. Here no point is rounded or moved, and the very
    points that the script drops are dropped. (With an odd patch_size the middle is inside a pixel, and that pixel is
    what must be in the image.) Bilinear sampling, weights and attention are not followed.
    """
    points = np.moveaxis(np.indices(moves[-1].shape[1:], dtype=float), 0, -1)[:, :, None]  # (h, w, 1, 2)
    for move in reversed(moves):
        grid = move.shape[1:]
        cells = np.rint(points)
        inside = _inside(cells, grid)
        row, column = np.moveaxis(np.where(inside[..., None], cells, 0).astype(int), -1, 0)
        by_cell = np.asarray(move, dtype=float).reshape(4, 2, *grid).transpose(2, 3, 0, 1)  # (h, w, tap, 2)
        taps = 2 * cells[..., None, :] + TAPS + by_cell[row, column]
        taps[~inside] = np.nan
        points = taps.reshape(*points.shape[:2], -1, 2)
    dropped = ~_inside(np.rint(patch_size * points + patch_size // 2), img_size)
    points[dropped] = np.nan
    return patch_size * points + patch_size / 2


def offsets_figure(model: LIT, batch: Batch, config: Config) -> Figure:
    """The first images of a batch as the model sees them, with the traces of up to four tokens of the last map."""
    images = batch.images[batch.target >= 0][:MOST_IMAGES]
    if not len(images):
        raise InputError(NONE_READABLE)
    moves = offsets(model, images)
    height, width = images.shape[2:]
    side = model.patch_size * 2**3  # three mergings
    figure, axes = plt.subplots(1, len(images), figsize=(3 * len(images), 3.7), squeeze=False)
    figure.set_layout_engine("constrained", wspace=0.04)
    marks = min(4.5, 140 * model.patch_size / width)  # points: what eight in a row leave room for
    for i, (panel, image) in enumerate(zip(axes[0], images)):
        seen = image.cpu().permute(1, 2, 0).numpy() * config.std + config.mean
        panel.imshow(seen.clip(0, 1).squeeze(), cmap="gray", interpolation="nearest", extent=(0, width, height, 0))
        panel.set_axis_off()
        traces = trace([m[i] for m in moves], model.patch_size, (height, width))
        for (row, column), color, marker in zip(_chosen(traces.shape[:2]), COLORS[1:], MARKERS):
            square = Rectangle((side * column, side * row), side, side, facecolor="none", edgecolor=color, lw=1.5)
            panel.add_patch(square).set_clip_on(False)
            look: dict[str, Any] = dict(s=marks**2, color=color, marker=marker, edgecolor="black", lw=0.1 * marks)
            panel.scatter(*traces[row, column].T[::-1], **look, clip_on=False, zorder=3)
    units = [model.patch_size * 2**level for level in range(3)]  # pixels a token
    biases = [merging.dconv.conv_offset.bias.detach() for merging in model.mergings]
    of_all, of_biases = (_listed(unit * _rms(m) for unit, m in zip(units, part)) for part in (moves, biases))
    figure.suptitle(
        f"Where tokens of the last map come from: up to 64 points each. Model: {config.label}.\n"
        f"Squares: the {side} x {side} pixels that would hold the points without offsets. Offsets of the three\n"
        f"mergings, root mean square over these images: {of_all} pixels; of their biases: {of_biases}.",
        **TITLE,
    )
    return figure


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
    with _unfused(attentions.values()), _watching(model, watched):
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
        f"What one token (outlined) attends to. Model: {label}.\n"
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


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _listed(pixels: Iterable[float]) -> str:
    return ", ".join(f"{p:.2g}" for p in pixels)


def _chosen(grid: Grid) -> list[tuple[int, int]]:
    """Up to four tokens of a map, half-way between its middle and its corners."""
    rows, columns = (sorted({side // 4, side - 1 - side // 4}) for side in grid)
    return [(row, column) for row in rows for column in columns]


def _inside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.all((points >= 0) & (points < size), axis=-1)  # NaN is not


@contextlib.contextmanager
def _watching(model: nn.Module, watched: Watched) -> Iterator[None]:
    """Meanwhile the model is in evaluation mode, and each module's output is shown to its function."""
    training = model.training
    hooks = [
        module.register_forward_hook(lambda _module, _input, output, see=see: see(output))
        for module, see in watched.items()
    ]
    try:
        model.eval()
        with torch.inference_mode():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)


@contextlib.contextmanager
def _unfused(attentions: Iterable[Any]) -> Iterator[None]:  # timm declares fused_attn final
    """Meanwhile attention computes its probabilities step by step: the fused operator shows them to nobody."""
    fused = {attention: attention.fused_attn for attention in attentions}
    try:
        for attention in fused:
            attention.fused_attn = False
        yield
    finally:
        for attention, was in fused.items():
            attention.fused_attn = was
