"""Augmentation of many images at once, on the device that trains: timm's transforms of ffvit.data.images as tensor operations.

Random resized crop, mirroring, RandAugment (ffvit.data.operations), normalising and random erasing (Zhong et al. 2017,
arXiv:1708.04896, as timm has it), each image with numbers of its own. Images of few pixels stay on the device and are
cropped there, too; others are cropped where they are decoded, one by one.

The numbers are drawn on the host, so that which image gets which operation is known there. Nothing here waits for a GPU:
no constant is copied to it twice, nothing is read back.
"""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F

from ffvit.data.images import OneByOne
from ffvit.data.operations import OPERATIONS, Look
from ffvit.settings.config import Config
from ffvit.system.errors import InputError

TRIES = 10  # until a rectangle lies within the image, as timm has it
MAX_MAGNITUDE = 10
ERASED, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the area; sides
SEEDS = 2**53  # as many as there are numbers of 64 bits in [0, 1), and whole


class Draws(NamedTuple):
    """Random numbers of images, a row for each; uniform in [0, 1) but for the noise."""

    area: np.ndarray  # (n, TRIES)
    ratio: np.ndarray  # (n, TRIES)
    corner: np.ndarray  # (n, 2), of the crop: x, y
    flip: np.ndarray  # (n,)
    operation: np.ndarray  # (n, layers)
    apply: np.ndarray  # (n, layers)
    sign: np.ndarray  # (n, layers)
    noise: np.ndarray  # (n, layers), standard normal, of the magnitude
    erase: np.ndarray  # (n,)
    erased_area: np.ndarray  # (n, TRIES)
    erased_ratio: np.ndarray  # (n, TRIES)
    erased_corner: np.ndarray  # (n, 2)
    erased_seed: np.ndarray  # (n,), of what is seen instead

    def of(self, rows: np.ndarray | slice) -> "Draws":
        return Draws(*(numbers[rows] for numbers in tuple(self)))


def joined(draws: Iterable[Draws]) -> Draws:
    return Draws(*map(np.concatenate, zip(*draws)))


class Cropped(NamedTuple):
    """What is decoded and cropped, and still to be augmented, and by which numbers."""

    pixels: Tensor  # (n, C, S, S) uint8; of one image (C, S, S)
    draws: Draws


class Augmentation:
    """Crop, mirroring, RandAugment, normalising and erasing, as a run's settings say."""

    def __init__(self, config: Config):
        self.config = config
        self.policy = _policy(config.auto_augment)

    def draw(self, count: int, *place: int) -> Draws:
        """The numbers of so many images, a function of the seed and the place in the run alone."""
        rng = np.random.default_rng([self.config.seed, *place])
        of_tries, of_layers = (count, TRIES), (count, int(self.policy["n"]))
        crop = [rng.random(shape) for shape in (of_tries, of_tries, (count, 2), count)]
        operations = [
            rng.random(of_layers),
            rng.random(of_layers),
            rng.random(of_layers),
            rng.standard_normal(of_layers),
        ]
        erasing = [rng.random(shape) for shape in (count, of_tries, of_tries, (count, 2), count)]
        return Draws._make([*crop, *operations, *erasing])

    def crop(self, image: PIL.Image.Image, *place: int) -> Cropped:
        """A decoded image of any size, cropped, resized and mirrored by the numbers of its place in the run.

        PyTorch resizes as Pillow does, but in four to eight times less time; what differs, does so by two levels at most.
        """
        config, draws = self.config, self.draw(1, *place)
        left, top, width, height = (int(v[0]) for v in crops(draws, image.size, config))
        piece = np.array(image.crop((left, top, left + width, top + height)))
        pixels = torch.from_numpy(piece).view(1, height, width, -1).permute(0, 3, 1, 2)
        size = (config.img_size, config.img_size)
        [pixels] = F.interpolate(pixels, size, mode=config.interpolation, antialias=True)
        return Cropped(pixels.flip(-1) if draws.flip[0] < config.hflip else pixels, draws)

    def crop_kept(self, pixels: Tensor, draws: Draws) -> Tensor:
        """pixels: (n, C, S, S) uint8, on any device -> the same cropped, resized to S and mirrored, float32."""
        config, size, device, images = self.config, pixels.shape[-1], pixels.device, pixels.float()
        left, top, width, height = crops(draws, (size, size), config)
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

    def __call__(self, cropped: Tensor, draws: Draws) -> Tensor:
        """cropped: (n, C, S, S), from 0 to 255, on any device -> (n, C, S, S) float32, normalised; draws: of these images."""
        images = cropped.float()
        for layer in range(int(self.policy["n"])):
            images = self._operate(images, draws, layer)
        images = normalise(images, self.config)
        return self._erase(images, draws) if self.config.random_erasing else images

    def _operate(self, images: Tensor, draws: Draws, layer: int) -> Tensor:
        """One operation of RandAugment on each image that is to have one."""
        policy, device = self.policy, images.device
        chosen = (draws.operation[:, layer] * len(OPERATIONS)).astype(int)
        chosen[draws.apply[:, layer] >= policy["p"]] = -1
        level = (policy["m"] + policy["mstd"] * draws.noise[:, layer]).clip(0, MAX_MAGNITUDE) / MAX_MAGNITUDE
        level[draws.sign[:, layer] < 0.5] *= -1
        look = Look((255 * _channels(self.config.mean, device)).round(), self.config.interpolation == "bicubic")
        result = images.clone()
        for number, (operation, value) in enumerate(OPERATIONS.values()):
            rows = np.flatnonzero(chosen == number)
            if len(rows):
                at = torch.from_numpy(rows).to(device, non_blocking=True)
                result[at] = operation(images[at], _column(value(level[rows]), device)[:, :, None, None], look)
        return result

    def _erase(self, images: Tensor, draws: Draws) -> Tensor:
        """A rectangle of an image becomes noise, the device's own, of a seed of its own: the same in whatever company."""
        size = (images.shape[-1], images.shape[-2])
        numbers = draws.erased_area, draws.erased_ratio, draws.erased_corner
        fits, *rectangles = _rectangles(*numbers, size, ERASED, ERASED_RATIO, spare=1)
        seeds, generator = (draws.erased_seed * SEEDS).astype(int), torch.Generator(images.device)
        for row in np.flatnonzero(fits & (draws.erase < self.config.random_erasing)):
            left, top, width, height = (int(v[row]) for v in rectangles)
            generator.manual_seed(int(seeds[row]))
            images[row, :, top : top + height, left : left + width].normal_(generator=generator)
        return images


def training_view(config: Config) -> Callable[..., Tensor | Cropped]:
    """(decoded image, *its place in the run) -> what training sees of it; with augment="batch" what a device makes that of."""
    return Augmentation(config).crop if config.augment == "batch" else OneByOne(config)


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


def crops(draws: Draws, size: tuple[int, int], config: Config) -> list[np.ndarray]:
    """[left, top, width, height] of each crop in pixels, by the rule of Inception's random resized crop.

    size: width and height of the images. Where no try lies within, the largest crop of an allowed ratio in the middle.
    """
    fits, *found = _rectangles(draws.area, draws.ratio, draws.corner, size, config.crop_scale, config.crop_ratio)
    (width, height), (low, high) = size, config.crop_ratio
    largest = min(width, round(height * high)), min(height, round(width / low))
    middle = (width - largest[0]) // 2, (height - largest[1]) // 2
    return [np.where(fits, *pair) for pair in zip(found, middle + largest)]


def _rectangles(
    area: np.ndarray,
    ratio: np.ndarray,
    corner: np.ndarray,
    size: tuple[int, int],
    of_area: tuple[float, float],
    of_ratio: tuple[float, float],
    spare: int = 0,
) -> list[np.ndarray]:
    """[whether one of the tries lies within the image, left, top, width, height of the first that does].

    spare: pixels by which it must be narrower and lower than the image.
    """
    area = size[0] * size[1] * (of_area[0] + (of_area[1] - of_area[0]) * area)
    low, high = np.log(of_ratio)
    aspect = np.exp(low + (high - low) * ratio)
    width, height = np.round(np.sqrt(area * aspect)), np.round(np.sqrt(area / aspect))
    fits = (width <= size[0] - spare) & (height <= size[1] - spare)
    first = fits.argmax(axis=1)[:, None]
    sides = [np.take_along_axis(v, first, axis=1)[:, 0] for v in (width, height)]
    corners = [np.floor(corner[:, i] * (size[i] - v + 1)) for i, v in enumerate(sides)]
    return [fits.any(axis=1), *corners, *sides]


@cache
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def _column(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.float32)).to(device, non_blocking=True)[:, None]
