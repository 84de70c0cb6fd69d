"""Notebook 11: the pixels that a LIT's deformable merging takes.

Pan et al. 2022, arXiv:2105.14217, Figure 3, and the official script (show_offset.py of github.com/ziplab/LIT). Here models
are in evaluation mode and images normalised; the script does neither.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ffvit.data.loader import Batch
from ffvit.evidence.drawing import COLORS, MARKERS
from ffvit.evidence.escape import drawn
from ffvit.models.lit import LIT, DeformableMerging, Grid
from ffvit.settings.config import Config
from ffvit.studies.trained_models import NONE_READABLE, TITLE, Watched, watching
from ffvit.system.errors import InputError

TAPS = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])  # of a merging, down and to the right
MOST_IMAGES = 4  # in a picture


def offsets(model: nn.Module, images: Tensor) -> list[Tensor]:
    """How far the three deformable mergings move their taps, for images (B, C, H, W): three times (B, 8, h, w).

    In tokens of the map that is merged: channel 2k moves tap k down, 2k + 1 to the right. The model keeps its mode.
    Raises InputError for a model without deformable merging, and for one whose offsets are held at zero.
    """
    mergings = model.mergings if isinstance(model, LIT) else []
    found: list[Tensor] = []
    deformable = [m.dconv for m in mergings if isinstance(m, DeformableMerging)]
    watched: Watched = {dconv.conv_offset: found.append for dconv in deformable if dconv.conv_offset}
    if not watched:
        raise InputError(
            "this model's mergings have no offsets: choose a LIT with deformable=true and without learn_offsets=false"
        )
    with watching(model, watched):
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
        f"Where tokens of the last map come from: up to 64 points each. Model: {drawn(config.label)}.\n"
        f"Squares: the {side} x {side} pixels that would hold the points without offsets. Offsets of the three\n"
        f"mergings, root mean square over these images: {of_all} pixels; of their biases: {of_biases}.",
        **TITLE,
    )
    return figure


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
