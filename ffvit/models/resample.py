"""Weights along the patches of an image, resampled to another grid of patches, as ViT's positions are.

A feed-forward layer over patches has a weight for each place of an image, so it works at one length only (the report,
arXiv:2105.02723, section 3.5). But what a hidden unit takes from the patches, or gives to them, is a map over the image,
and a map can be drawn at another size.
"""

import copy
import math
from typing import Any, cast

import torch
from timm.layers import Mlp, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ffvit.system.errors import InputError

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


def set_hidden_dim(mlp: Mlp, hidden_dim: int) -> None:
    """Another hidden width, with new weights."""
    tokens, device = cast(int, mlp.fc1.in_features), mlp.fc1.weight.device
    mlp.fc1, mlp.fc2 = nn.Linear(tokens, hidden_dim, device=device), nn.Linear(hidden_dim, tokens, device=device)


def grid_of(num_patches: int, position_map: Grid | None = None) -> Grid | None:
    """How patches that weights are of lie in an image: as their map of positions does, else in a square; None for no patch.

    Raises InputError where they can lie in neither.
    """
    if position_map and math.prod(position_map) == num_patches:
        return position_map
    side = math.isqrt(max(0, num_patches))
    if side * side != num_patches:
        raise InputError(
            f"weights of {num_patches} patches are no square, and no map of positions tells how they lie: create the "
            "model with the img_size they were trained at, load them, and then call its set_input_size"
        )
    return (side, side) if side else None


def at_size_of(state: dict[str, Tensor], model: Any) -> Any | None:
    """A copy of a model at the image size that weights are of, without memory; None where that is its own, or none tells.

    state: a state dict under the model's names. model: of this library, or a ViT or DeiT of timm; others have no twin.
    Raises InputError where the weights do not tell how their patches lie, and for a model that cannot have their size.
    """
    if isinstance(model, VisionTransformer):
        grid = _grid_in_vit(state, model)
    else:
        grid = model.grid_in(state) if hasattr(model, "grid_in") else None
    if grid is None or grid == tuple(getattr(model, "grid_size", None) or model.patch_embed.grid_size):
        return None
    twin = copy.deepcopy(model).to("meta")
    twin.set_input_size(image_size(grid, twin))
    if hasattr(twin, "take_hidden_dim"):
        twin.take_hidden_dim(state)
    return twin


def _grid_in_vit(state: dict[str, Tensor], model: VisionTransformer) -> Grid | None:
    stored, own = state.get("pos_embed"), model.pos_embed
    if stored is None or own is None or stored.ndim != 3 or stored.shape[1] == own.shape[1]:
        return None
    return grid_of(stored.shape[1] - (0 if model.no_embed_class else model.num_prefix_tokens))


def image_size(grid: Grid, model: Any) -> tuple[int, int]:
    """Height and width of the images that a model cuts into these patches."""
    patch = model.patch_embed.patch_size
    return grid[0] * patch[0], grid[1] * patch[1]
