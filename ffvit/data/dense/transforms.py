"""What a model sees of an image and of its annotations, changed together: torchvision's v2 transforms on tv_tensors.

As mmdetection and mmsegmentation train LIT (paper: Pan et al. 2022, arXiv:2105.14217); but images are made smaller with
antialiasing, as Pillow does it, which OpenCV does not.
All is drawn from torch's generator.
"""

from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ffvit.data.batch_augmentation import normalise
from ffvit.data.dense.maps import IGNORED
from ffvit.settings.config import Config

LONGEST = 4  # times the short side: mmsegmentation's (2048, 512)
MOST_OF_ONE_CLASS = 0.75  # of a crop, ignored pixels aside
CROPS = 10  # tried until one has less of it


class DetectionTransform:
    """Of training: distorted, flipped; boxes and masks with them. The models resize by themselves.

    Objects of less than a pixel's width or height are left out, as mmdetection does.
    """

    def __init__(self, config: Config):
        self.config = config
        self.steps = v2.Compose([v2.SanitizeBoundingBoxes(), v2.RandomHorizontalFlip(config.hflip)])

    def __call__(self, image: PIL.Image.Image, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """target: "boxes" (tv_tensors.BoundingBoxes), "labels", "masks" (tv_tensors.Mask), and what stays as it is."""
        pixels = F.pil_to_tensor(image)
        pixels = distorted(pixels) if self.config.photometric_distortion else pixels
        changed, target = self.steps(tv_tensors.Image(pixels), target)
        return normalise(changed.as_subclass(Tensor), self.config), plain(target)


class SemanticTransform:
    """Of training: resized by a factor of scale_range, cropped to img_size, flipped, distorted, padded."""

    def __init__(self, config: Config):
        self.config = config
        self.flip = v2.RandomHorizontalFlip(config.hflip)

    def __call__(self, image: PIL.Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        """target: (H, W) classes -> image (C, img_size, img_size), target int64 (img_size, img_size)."""
        low, high = self.config.scale_range
        side = self.config.img_size * (low + (high - low) * torch.rand(()).item())
        pixels = resized(image, side, self.config)
        target = F.resize(target[None].to(torch.uint8), [*pixels.shape[1:]], F.InterpolationMode.NEAREST_EXACT)[0]
        rows, columns = self._crop(target)
        changed, mask = self.flip(tv_tensors.Image(pixels[:, rows, columns]), tv_tensors.Mask(target[rows, columns]))
        changed = changed.as_subclass(Tensor)
        changed = normalise(distorted(changed) if self.config.photometric_distortion else changed, self.config)
        missing = [0, self.config.img_size - mask.shape[1], 0, self.config.img_size - mask.shape[0]]
        padded = functional.pad(changed, missing)  # 0, after normalisation, is the mean colour
        return padded, functional.pad(mask.as_subclass(Tensor), missing, value=IGNORED).long()

    def _crop(self, target: Tensor) -> tuple[slice, slice]:
        """Of at most img_size; another one while more than MOST_OF_ONE_CLASS of it is of one class."""
        size = self.config.img_size
        for _ in range(CROPS):
            top, left = (int(torch.randint(max(side - size, 0) + 1, ()).item()) for side in target.shape)
            found = slice(top, top + size), slice(left, left + size)
            counts = target[found].flatten().bincount(minlength=IGNORED + 1)[:IGNORED]
            if (counts > 0).sum() > 1 and counts.max() < MOST_OF_ONE_CLASS * counts.sum():
                break
        return found


def distorted(image: Tensor) -> Tensor:
    """(C, H, W) uint8 of changed colours: mmsegmentation's PhotoMetricDistortion (Liu et al. 2016, arXiv:1512.02325).

    Each in half of the cases: brightness plus up to 32 grey levels, contrast and saturation times 0.5 to 1.5, hue
    turned by up to 36 degrees; contrast before or after the colours. torchvision's RandomPhotometricDistort multiplies
    brightness, turns hue by half as much, and exchanges colour channels.
    """
    brightness, contrast, saturation, hue = ((2 * torch.rand(4) - 1) * (torch.rand(4) < 0.5)).tolist()  # of the most
    contrast_first = torch.rand(()) < 0.5
    pixels = (image / 255 + 32 / 255 * brightness).clamp(0, 1)
    if contrast_first:
        pixels = (pixels * (1 + contrast / 2)).clamp(0, 1)
    if len(pixels) == 3:
        pixels = saturated(pixels, 1 + saturation / 2)
        pixels = F.adjust_hue(pixels, hue / 10) if hue else pixels
    if not contrast_first:
        pixels = (pixels * (1 + contrast / 2)).clamp(0, 1)
    return (255 * pixels).round().to(torch.uint8)


def saturated(image: Tensor, factor: float) -> Tensor:
    """(3, H, W), its saturation in HSV times the factor, 1 at most: channels' distances from the largest grow so."""
    most = image.amax(dim=0)
    spread = most - image.amin(dim=0)
    return most - (most - image) * (most / spread.clamp(min=1e-6)).clamp(max=factor)


def resized(image: PIL.Image.Image, side: float, config: Config) -> Tensor:
    """(C, H, W) uint8, in proportion: the short side becomes `side`, unless the long one came to over LONGEST times that."""
    short, long = sorted(image.size)
    factor = min(side / short, LONGEST * side / long)
    width, height = (max(1, round(factor * v)) for v in image.size)
    mode = F.InterpolationMode(config.interpolation)
    return F.resize(F.pil_to_tensor(image), [height, width], mode, antialias=True)


def plain(target: dict[str, Any]) -> dict[str, Any]:
    """The same as ordinary tensors: what follows is no transform."""
    return {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in target.items()}
