"""Weights along the patches of an image, resampled to another grid of patches, as ViT's positions are.

A feed-forward layer over patches has a weight for each place of an image, so it works at one length only (the report,
arXiv:2105.02723, section 3.5). But what a hidden unit takes from the patches, or gives to them, is a map over the image,
and a map can be drawn at another size.
"""

import math
from typing import cast

import torch
from timm.layers import Mlp, resample_abs_pos_embed
from torch import Tensor, nn

Grid = tuple[int, int]  # patches per column and row


def over_grid(weights: Tensor, old: Grid, new: Grid, num_prefix_tokens: int) -> Tensor:
    """Maps over the patches, the last axis of (..., P + h * w), as (..., P + h' * w'); P prefix tokens stay as they are.

    Bicubic, and smoothed where the new grid is coarser: timm's way with positions. A constant map stays that constant.
    """
    maps = weights.reshape(-1, weights.shape[-1]).t()[None].float()  # (1, tokens, maps), as positions lie
    drawn = resample_abs_pos_embed(maps, list(new), list(old), num_prefix_tokens)
    return drawn[0].t().reshape(*weights.shape[:-1], -1).to(weights.dtype)


@torch.no_grad()
def resample_mlp(mlp: Mlp, old: Grid, new: Grid, num_prefix_tokens: int) -> None:
    """A feed-forward layer over patches at another grid: its hidden units are those they were."""
    taken = over_grid(mlp.fc1.weight, old, new, num_prefix_tokens)  # (hidden, N)
    # A unit sums over patches: of twice as many, each counts half.
    taken[:, num_prefix_tokens:] *= math.prod(old) / math.prod(new)
    mlp.fc1.weight, mlp.fc1.in_features = nn.Parameter(taken), taken.shape[1]
    given = over_grid(mlp.fc2.weight.t(), old, new, num_prefix_tokens).t().contiguous()  # (N, hidden)
    bias = over_grid(cast(Tensor, mlp.fc2.bias), old, new, num_prefix_tokens)
    mlp.fc2.weight, mlp.fc2.bias, mlp.fc2.out_features = nn.Parameter(given), nn.Parameter(bias), len(bias)


@torch.no_grad()
def resample_norm(norm: nn.LayerNorm, old: Grid, new: Grid, num_prefix_tokens: int) -> None:
    """A LayerNorm over the tokens at another grid."""
    weight, bias = (over_grid(p, old, new, num_prefix_tokens) for p in (norm.weight, norm.bias))
    norm.weight, norm.bias, norm.normalized_shape = nn.Parameter(weight), nn.Parameter(bias), (len(weight),)
