"""Augmentation of many small images at once, on the device that trains: timm's transforms of ffvit.data.images as tensor operations.

Random resized crop, flip and RandAugment with the increasing operations (Cubuk et al. 2019, arXiv:1909.13719, as timm has
them), each image with numbers of its own. A pixel differs from Pillow's by rounding at most (tests/test_batch_augmentation.py).

The numbers are drawn on the host, so that which image gets which operation is known there. Nothing here waits for a GPU:
no constant is copied to it twice, nothing is read back.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ffvit.settings.config import Config
from ffvit.system.errors import InputError

CROPS = 10  # tried until one lies within the image; then the whole image, as timm does
MAX_MAGNITUDE = 10


class Draws(NamedTuple):
    """The random numbers of an epoch, a row per image of its order; uniform in [0, 1) but for the noise."""

    area: np.ndarray  # (n, CROPS)
    ratio: np.ndarray  # (n, CROPS)
    corner: np.ndarray  # (n, 2), of the crop: x, y
    flip: np.ndarray  # (n,)
    operation: np.ndarray  # (n, layers)
    apply: np.ndarray  # (n, layers)
    sign: np.ndarray  # (n, layers)
    noise: np.ndarray  # (n, layers), standard normal, of the magnitude

    def of(self, rows: np.ndarray | slice) -> "Draws":
        return Draws(*(numbers[rows] for numbers in tuple(self)))


class Augmentation:
    """Crop, flip, RandAugment and normalise, as a run's settings say."""

    def __init__(self, config: Config):
        self.config = config
        self.policy = _policy(config.auto_augment)

    def draw(self, epoch: int, count: int) -> Draws:
        """The numbers of an epoch's images, a function of the seed and the epoch alone."""
        rng = np.random.default_rng([self.config.seed, epoch])
        of_layers = (count, int(self.policy["n"]))
        shapes = [(count, CROPS), (count, CROPS), (count, 2), (count,), of_layers, of_layers, of_layers]
        return Draws._make([*(rng.random(shape) for shape in shapes), rng.standard_normal(of_layers)])

    def __call__(self, pixels: Tensor, draws: Draws) -> Tensor:
        """pixels: (n, C, S, S) uint8, on any device -> (n, C, S, S) float32, normalised; draws: of these images."""
        images = self._crop_and_flip(pixels.float(), draws)
        for layer in range(int(self.policy["n"])):
            images = self._operate(images, draws, layer)
        return normalise(images, self.config)

    def _crop_and_flip(self, images: Tensor, draws: Draws) -> Tensor:
        config, size, device = self.config, images.shape[-1], images.device
        left, top, width, height = _crops(draws, size, config.crop_scale, config.crop_ratio)
        flip = draws.flip < config.hflip
        place = torch.arange(size, device=device) + 0.5
        axes = []
        for of_axis in ((left, width, flip), (top, height, np.zeros_like(flip))):
            start, length, mirrored = (_column(v, device) for v in of_axis)
            at = start + torch.where(mirrored > 0, size - place, place) * length / size
            at = torch.minimum(torch.maximum(at, start + 0.5), start + length - 0.5)  # nothing from outside the crop
            axes.append(2 * at / size - 1)
        x, y = axes
        grid = torch.stack([x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False).round()

    def _operate(self, images: Tensor, draws: Draws, layer: int) -> Tensor:
        """One operation of RandAugment on each image that is to have one."""
        policy, device = self.policy, images.device
        chosen = (draws.operation[:, layer] * len(OPERATIONS)).astype(int)
        chosen[draws.apply[:, layer] >= policy["p"]] = -1
        level = (policy["m"] + policy["mstd"] * draws.noise[:, layer]).clip(0, MAX_MAGNITUDE) / MAX_MAGNITUDE
        level[draws.sign[:, layer] < 0.5] *= -1
        fill = (255 * _channels(self.config.mean, device)).round()
        result = images.clone()
        for number, (operation, value) in enumerate(OPERATIONS.values()):
            rows = np.flatnonzero(chosen == number)
            if len(rows):
                at = torch.from_numpy(rows).to(device, non_blocking=True)
                result[at] = operation(images[at], _column(value(level[rows]), device)[:, :, None, None], fill)
        return result


def normalise(images: Tensor, config: Config) -> Tensor:
    """0 to 255 -> as models see them, by the very arithmetic of timm's transforms."""
    mean, std = (_channels(v, images.device) for v in (config.mean, config.std))
    return images.float().div(255).sub(mean).div(std)


def check(config: Config) -> None:
    """Raises InputError for a policy that a run asks of this file and that it does not have."""
    if config.augment == "batch":
        _policy(config.auto_augment)


def _policy(text: str) -> dict[str, float]:
    """timm's way to write RandAugment, "rand-m9-mstd0.5-inc1": magnitude, its noise, layers n, probability p."""
    policy = {"m": 10.0, "mstd": 0.0, "n": 2, "p": 0.5}
    if not text:
        return policy | {"n": 0}
    parts = text.split("-")
    given = [re.fullmatch(r"(m|mstd|n|p|inc)([\d.]+)", part) for part in parts[1:]]
    if parts[0] != "rand" or not all(given) or "inc1" not in parts:
        raise InputError(
            f"auto_augment '{text}': with augment='batch' write 'rand-m9-mstd0.5-inc1', with numbers of your own for m, "
            "mstd, n and p; or set augment='image', which takes all that timm has"
        )
    policy |= {match[1]: float(match[2]) for match in given if match}
    return policy | {"n": int(policy["n"])}


def _crops(draws: Draws, size: int, scale: tuple, ratio: tuple) -> tuple[np.ndarray, ...]:
    """(left, top, width, height) of each crop in pixels, by the rule of Inception's random resized crop."""
    area = size * size * (scale[0] + (scale[1] - scale[0]) * draws.area)
    low, high = np.log(ratio)
    aspect = np.exp(low + (high - low) * draws.ratio)
    width, height = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (width <= size) & (height <= size)
    first = fits.argmax(axis=1)[:, None]
    width, height = (
        np.where(fits.any(axis=1), np.take_along_axis(v, first, axis=1)[:, 0], size) for v in (width, height)
    )
    left, top = (np.floor(draws.corner[:, i] * (size - v + 1)) for i, v in enumerate((width, height)))
    return left, top, width, height


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)[:, None]


# The operations, on images (n, C, S, S) of whole numbers from 0 to 255; value: (n, 1, 1, 1), fill: (C, 1, 1).
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


def _rotate(x: Tensor, angle: Tensor, fill: Tensor) -> Tensor:
    return _affine(x, fill, angle.cos(), angle.sin(), 0, -angle.sin(), angle.cos(), 0)


def _shear_x(x: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(x, fill, 1, share, share, 0, 1, 0)  # about the upper left corner, which lies at (-1, -1)


def _shear_y(x: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(x, fill, 1, 0, 0, share, 1, share)


def _translate_x(x: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(x, fill, 1, 0, 2 * share, 0, 1, 0)


def _translate_y(x: Tensor, share: Tensor, fill: Tensor) -> Tensor:
    return _affine(x, fill, 1, 0, 0, 0, 1, 2 * share)


def _affine(x: Tensor, fill: Tensor, *matrix: Tensor | int) -> Tensor:
    """A pixel at (u, v), from -1 to 1, is taken from (a u + b v + c, d u + e v + f); matrix: a to f."""
    rows = [e.flatten() if isinstance(e, Tensor) else x.new_full((len(x),), e) for e in matrix]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(x.shape), align_corners=False)
    outside = ((grid < -1) | (grid >= 1)).any(-1)[:, None]
    return torch.where(outside, fill, F.grid_sample(x, grid, padding_mode="border", align_corners=False).round())


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
