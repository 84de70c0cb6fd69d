"""Notebook 19: how alike a model's tokens are, block by block, and how alike a theorem says that attention makes them.

Dong et al. 2021 (arXiv:2103.03404) take off the token that all would be, and bound the size of what is left.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.layers import Attention
from torch import Tensor

from ffvit.data.loader import Batch
from ffvit.models.ff import PatchFeatureMixer
from ffvit.studies.trained_models import NONE_READABLE
from ffvit.system.errors import InputError

ROUNDING = 1e-14  # of a relative residual in double precision
LARGEST_STEP = 1.256  # exp(x) <= 1 + 2 x up to here: as far as the theorem's proof holds
TINY = 1e-300  # in place of a norm that is zero


class Depths(NamedTuple):
    """Relative residuals of one model, from the first block's input (depth 0) on; means over images."""

    with_skips: np.ndarray  # (depth + 1,)
    without_skips: np.ndarray  # (depth + 1,)


class Bound(NamedTuple):
    """The theorem beside what it is about: attention over tokens alone, no skip connection and no norm, layer by layer.

    All are log10 of ||res(X)||, (layers + 1,), of the image where it is largest; NaN where double precision has ended.
    """

    measured: np.ndarray
    from_start: np.ndarray  # the bound for all layers up to here, from the first one's input
    from_last: np.ndarray  # the bound for one layer, from the input that it really had
    holds: bool  # whether the proof's condition on the scores does, for the largest difference of all


def residual(x: Tensor) -> Tensor:
    """X less the token that all would be: res(X) = X - 1 x^T, x the mean token. (..., N, D) -> (..., N, D)

    Dong et al. take the x that makes the norm smallest, which has no closed form. The mean's norm is at most twice as
    large, for X - 1 x^T = (I - 1 1^T / N)(X - 1 y^T) for any y, and the matrix in front has a norm below 2.
    """
    return x - x.mean(dim=-2, keepdim=True)


def composite_norm(x: Tensor) -> Tensor:
    """sqrt(||X||_1 ||X||_inf): the largest column sum and row sum of absolute values. (..., N, D) -> (...)"""
    return (x.abs().sum(dim=-2).amax(dim=-1) * x.abs().sum(dim=-1).amax(dim=-1)).sqrt()


def relative_residual(x: Tensor) -> Tensor:
    """||res(X)|| / ||X||: 0 where all tokens are alike. (..., N, D) -> (...)"""
    return composite_norm(residual(x)) / composite_norm(x).clamp_min(TINY)


@torch.no_grad()
def by_depth(model: Any, batches: Iterable[Batch]) -> Depths:
    """Relative residuals of the tokens that enter the first block and leave each, in double precision.

    Without skips, each branch's output takes the place of the sum, with the same weights. The model is left in double
    precision and in evaluation mode. Raises InputError where no image could be read.
    """
    model = _checked(model)
    found = torch.zeros(2, len(model.blocks) + 1, dtype=torch.float64)
    count = 0
    for tokens in _tokens(model, batches):
        count += len(tokens)
        for row, step in enumerate((_with_skips, _without_skips)):
            x = tokens
            found[row, 0] += relative_residual(x).sum()
            for depth, block in enumerate(model.blocks, 1):
                x = step(block, x)
                found[row, depth] += relative_residual(x).sum()
    return Depths(*(found / count).numpy())


@torch.no_grad()
def theorem(model: Any, batches: Iterable[Batch]) -> Bound:
    """The attentions over tokens of a model as a network of their own, beside the bound of Dong et al., v2, Theorem 2.3:

        ||res(X_L)|| <= (4 g b H / sqrt(d))^((3^L - 1) / 2) ||res(X_0)||^(3^L)

    H heads of d features; b >= ||W_QK||_1 ||W_VO||_(1,inf) for every layer and head. It is the bound of one layer, which is
    cubic, put into itself: 1 + 3 + ... + 3^(L-1) = (3^L - 1) / 2. g depends on the scores: sqrt(||s||_1 ||s||_inf) <=
    g ||s||_inf, s being by how much the scores of each query differ at most. So g is at most sqrt(N), which stands here.
    W_VO's two norms are taken over heads one by one: so the bound holds for their sum.
    Raises InputError for a model that has no attention over tokens, and where no image could be read.
    """
    model = _checked(model)
    layers = [branch.mix for block in model.blocks for branch in block.branches if not branch.transposed]
    layers = [layer for layer in layers if isinstance(layer, Attention)]
    if not layers:
        raise InputError("this model has no attention over tokens, which the theorem is about")
    first = layers[0]
    factor = math.log10(4 * max(map(_beta, layers)) * first.num_heads * math.sqrt(model.num_tokens / first.head_dim))
    largest, steps = np.full(len(layers) + 1, -np.inf), [0.0]
    for x in _tokens(model, batches):
        for depth, layer in enumerate([None, *layers]):
            if layer:
                steps.append(_largest_step(layer, residual(x)))
                x = layer(x)
            norms = composite_norm(residual(x)).log10()
            norms[relative_residual(x) < ROUNDING] = np.nan
            largest[depth] = np.max([largest[depth], *norms.tolist()])
    depths = np.arange(len(layers) + 1)
    from_start = (3.0**depths - 1) / 2 * factor + 3.0**depths * largest[0]
    from_last = np.r_[largest[0], factor + 3 * largest[:-1]]
    return Bound(largest, from_start, from_last, max(steps) <= LARGEST_STEP)


def _checked(model: Any) -> Any:
    if not isinstance(model, PatchFeatureMixer):
        raise InputError("tokens are followed through models of this library only: choose one of ffvit.models.ff")
    return model.double().eval()


def _tokens(model: Any, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Batch by batch, what enters the first block: of the images that could be read. Raises InputError for none."""
    found: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _block, given: found.append(given[0]))
    count = 0
    try:
        for images, target, _ in batches:
            if (target >= 0).any():
                found.clear()
                model.forward_features(images[target >= 0].double())
                yield found[0]
                count += 1
    finally:
        hook.remove()
    if not count:
        raise InputError(NONE_READABLE)


def _with_skips(block: Any, x: Tensor) -> Tensor:
    return block(x)


def _without_skips(block: Any, x: Tensor) -> Tensor:
    for branch in block.branches:
        x = branch(x)
    return x


def _projections(layer: Attention) -> tuple[Tensor, Tensor]:
    """W_QK and W_VO of every head, (H, D, D) each: what multiplies tokens from the right."""
    heads, width = layer.num_heads, layer.head_dim
    query, key, value = layer.qkv.weight.view(3, heads, width, -1)  # (H, d, D)
    out = layer.proj.weight.view(-1, heads, width).transpose(0, 1)  # (H, D, d)
    return query.transpose(1, 2) @ key, value.transpose(1, 2) @ out.transpose(1, 2)


def _beta(layer: Attention) -> float:
    scores, values = _projections(layer)
    columns, rows = (values.abs().sum(dim=dim).amax() for dim in (1, 2))
    return float(scores.abs().sum(dim=1).amax() * (columns * rows).sqrt())


def _largest_step(layer: Attention, r: Tensor) -> float:
    """By how much two scores of a query differ at most, of the part that is quadratic in res(X): the proof's E."""
    scores, _ = _projections(layer)
    e = r[:, None] @ scores @ r[:, None].transpose(-2, -1) * layer.scale
    return float((e.amax(dim=-1) - e.amin(dim=-1)).max())
