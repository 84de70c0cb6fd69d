"""Notebook 18: what mixes patches, as maps over the image, and how local and how smooth such a map is.

A hidden unit of a feed-forward layer over patches has a weight for each patch (the report, arXiv:2105.02723, Figure 1): a
map over the image, as a head of attention has one for each query.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from ffvit.data.loader import Batch
from ffvit.models.ff import PatchFeatureMixer
from ffvit.studies.trained_models import NONE_READABLE, Watched, unfused, watching
from ffvit.system.errors import InputError


class ByLayer(NamedTuple):
    """Spread and frequency of the maps of a model, layer by layer, after training, and before, of several seeds."""

    spread: np.ndarray  # (layers,)
    frequency: np.ndarray
    untrained_spread: np.ndarray  # (seeds, layers)
    untrained_frequency: np.ndarray


class Units(NamedTuple):
    """The hidden units of a feed-forward layer over patches, as maps over the image. The class token is left out."""

    taken: np.ndarray  # (units, h, w): the weight of each patch in what a unit sums, the norm's weights included
    given: np.ndarray  # (units, h, w): what it adds to each patch

    @property
    def strongest(self) -> np.ndarray:
        """Units by how much they take and give, the strongest first."""
        return np.argsort(-np.sqrt(_energy(self.taken) * _energy(self.given)), kind="stable")


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


def measured(trained: list, untrained: list[list]) -> ByLayer:
    """Of a model's maps after training, and of as many untrained ones as there are seeds: a list over the layers each.

    Of units (Units), each counts by its squared weights; of attention (arrays of attention_of), each head and query alike.
    """
    after, before = (
        np.array([_numbers(m) for m in trained]),
        np.array([[_numbers(m) for m in maps] for maps in untrained]),
    )
    return ByLayer(after[:, 0], after[:, 1], before[..., 0], before[..., 1])


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
