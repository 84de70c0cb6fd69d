"""RandAugment's increasing operations (Cubuk et al. 2019, arXiv:1909.13719) as timm has them, as tensor operations.

On many images at once, on any device. A pixel differs from Pillow's by rounding at most (tests/test_batch_augmentation.py).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


class Look(NamedTuple):
    """How an image that is moved comes out."""

    fill: Tensor  # (C, 1, 1), from 0 to 255: where it was moved away from
    bicubic: bool  # or bilinear


# The operations, on images (n, C, S, S) of whole numbers from 0 to 255; value: (n, 1, 1, 1).
def _auto_contrast(x: Tensor, *_) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    stretched = ((x - low) * (255 / (high - low))).clamp(0, 255).floor()
    return torch.where(high > low, stretched, x)


def _equalize(x: Tensor, *_) -> Tensor:
    levels = x.flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    table = (step // 2 + counts.cumsum(2) - counts) // step.clamp(min=1)
    return torch.where(step[..., None] > 0, table.clamp(max=255).gather(2, levels).view_as(x).float(), x)


def _invert(x: Tensor, *_) -> Tensor:
    return 255 - x


def _posterize(x: Tensor, bits: Tensor, _) -> Tensor:
    step = 2 ** (8 - bits)
    return (x / step).floor() * step


def _solarize(x: Tensor, threshold: Tensor, _) -> Tensor:
    return torch.where(x < threshold, x, 255 - x)


def _solarize_add(x: Tensor, add: Tensor, _) -> Tensor:
    return torch.where(x < 128, (x + add).clamp(max=255), x)


def _color(x: Tensor, factor: Tensor, _) -> Tensor:
    return _blend(_grey(x), x, factor)


def _contrast(x: Tensor, factor: Tensor, _) -> Tensor:
    return _blend(_grey(x).mean((1, 2, 3), keepdim=True).add(0.5).floor(), x, factor)


def _brightness(x: Tensor, factor: Tensor, _) -> Tensor:
    return _blend(torch.zeros_like(x), x, factor)


def _sharpness(x: Tensor, factor: Tensor, _) -> Tensor:
    smooth = x.clone()  # the edge stays as it is
    inner = smooth[:, :, 1:-1, 1:-1]  # the pixel five times, its neighbours once
    inner.add_(F.avg_pool2d(x, 3, stride=1, divisor_override=1) + 3 * inner).div_(13).add_(0.5).floor_()
    return _blend(smooth, x, factor)


def _rotate(x: Tensor, angle: Tensor, look: Look) -> Tensor:
    return _affine(x, look, angle.cos(), angle.sin(), 0, -angle.sin(), angle.cos(), 0)


def _shear_x(x: Tensor, share: Tensor, look: Look) -> Tensor:
    return _affine(x, look, 1, share, share, 0, 1, 0)  # about the upper left corner, which lies at (-1, -1)


def _shear_y(x: Tensor, share: Tensor, look: Look) -> Tensor:
    return _affine(x, look, 1, 0, 0, share, 1, share)


def _translate_x(x: Tensor, share: Tensor, look: Look) -> Tensor:
    return _affine(x, look, 1, 0, 2 * share, 0, 1, 0)


def _translate_y(x: Tensor, share: Tensor, look: Look) -> Tensor:
    return _affine(x, look, 1, 0, 0, 0, 1, 2 * share)


def _affine(x: Tensor, look: Look, *matrix: Tensor | int) -> Tensor:
    """A pixel at (u, v), from -1 to 1, is taken from (a u + b v + c, d u + e v + f); matrix: a to f."""
    rows = [e.flatten() if isinstance(e, Tensor) else x.new_full((len(x),), e) for e in matrix]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(x.shape), align_corners=False)
    outside = ((grid < -1) | (grid >= 1)).any(-1)[:, None]
    moved = _bicubic(x, grid) if look.bicubic else F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(outside, look.fill, moved.round())


def _bicubic(x: Tensor, grid: Tensor) -> Tensor:
    """grid_sample as Pillow's transform() interpolates: by cubics of a = -1, where its resize() has -0.5 and PyTorch -0.75."""
    height, width = x.shape[2:]
    place = (grid + 1) * grid.new_tensor([width, height]) / 2 - 0.5
    first = place.floor()
    columns, rows = (first.long() - 1).unbind(-1)
    of_columns, of_rows = (_cubic_weights(d) for d in (place - first).unbind(-1))
    flat, moved = x.flatten(2), torch.zeros_like(x)
    for i, of_row in enumerate(of_rows):
        start = (rows + i).clamp(0, height - 1) * width
        for j, of_column in enumerate(of_columns):
            at = (start + (columns + j).clamp(0, width - 1)).flatten(1)[:, None].expand(-1, x.shape[1], -1)
            moved += (of_row * of_column)[:, None] * flat.gather(2, at).view_as(x)
    return moved.clamp(0, 255)


def _cubic_weights(d: Tensor) -> list[Tensor]:
    """Of the four neighbours, the second of which lies d, from 0 to 1, before the place."""
    e = 1 - d
    return [-d * e**2, 1 - 2 * d**2 + d**3, 1 - 2 * e**2 + e**3, -e * d**2]


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, dim=1)
    return ((19595 * red + 38470 * green + 7471 * blue + 2**15) / 2**16).floor()  # ITU-R 601-2, weights times 2^16


def _blend(start: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """From start (factor 0) over x (factor 1) on."""
    return (start + factor * (x - start)).clamp(0, 255).floor()


def _enhancement(level: np.ndarray) -> np.ndarray:
    return np.maximum(0.1, 1 + 0.9 * level)


# timm's name -> the operation, and its value for a level from -1 to 1; in timm's order.
OPERATIONS: dict[str, tuple[Callable[..., Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "AutoContrast": (_auto_contrast, np.abs),
    "Equalize": (_equalize, np.abs),
    "Invert": (_invert, np.abs),
    "Rotate": (_rotate, lambda level: -np.radians(30 * level)),
    "PosterizeIncreasing": (_posterize, lambda level: 4 - np.floor(4 * np.abs(level))),
    "SolarizeIncreasing": (_solarize, lambda level: 256 - np.floor(256 * np.abs(level))),
    "SolarizeAdd": (_solarize_add, lambda level: np.floor(110 * np.abs(level))),
    "ColorIncreasing": (_color, _enhancement),
    "ContrastIncreasing": (_contrast, _enhancement),
    "BrightnessIncreasing": (_brightness, _enhancement),
    "SharpnessIncreasing": (_sharpness, _enhancement),
    "ShearX": (_shear_x, lambda level: 0.3 * level),
    "ShearY": (_shear_y, lambda level: 0.3 * level),
    "TranslateXRel": (_translate_x, lambda level: 0.45 * level),
    "TranslateYRel": (_translate_y, lambda level: 0.45 * level),
}
