"""The parts of detectors that stand on a pyramid: a backbone's maps, the coarser ones, anchors, and the regions read from them.

Torchvision's, but for what mmdetection has otherwise, see ffvit.models.dense.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign, roi_align
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from ffvit.system.errors import InputError

STRIDES = (4, 8, 16, 32)  # pixels of an image for one of a map, of the four maps
WIDTH = 256  # channels of all maps after the pyramid, as published
RATIOS = (0.5, 1.0, 2.0)  # of an anchor: height over width


class Pyramid(nn.Module):
    """A backbone and a feature pyramid (Lin et al. 2017, arXiv:1612.03144): images -> maps of `width` channels, fine to coarse.

    body: of timm's, features_only. extra: what adds coarser maps.
    """

    def __init__(
        self, body: Any, extra: ExtraFPNBlock | None, width: int, norm: Callable[..., nn.Module] | None = None
    ):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), width, extra, norm)
        self.out_channels = width  # torchvision asks for it

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"0": (B, width, h, w), "1": ...}"""
        return self.fpn(OrderedDict((str(i), image) for i, image in enumerate(self.body(x))))


class P6P7(ExtraFPNBlock):
    """Two maps more, each half as large: of the backbone's last map, then of that. RetinaNet, arXiv:1708.02002, section 4."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, width, 3, 2, 1)
        self.p7 = nn.Conv2d(width, width, 3, 2, 1)

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(x[-1])
        return [*results, p6, self.p7(p6)], [*names, "p6", "p7"]


class Anchors(AnchorGenerator):
    """torchvision's, of the very size asked for, at the strides asked for, a map each.

    It rounds sizes to whole pixels, and divides the image by the map for a stride: at 800 pixels 61, where it is 64.
    """

    def __init__(self, sizes: tuple[tuple[float, ...], ...], ratios: tuple[float, ...], strides: tuple[int, ...]):
        super().__init__(sizes, (ratios,) * len(sizes))
        self.strides = strides

    def grid_anchors(self, grid_sizes: list[list[int]], strides: list[list[Tensor]]) -> list[Tensor]:
        return super().grid_anchors(grid_sizes, [(stride, stride) for stride in self.strides])

    def generate_anchors(
        self, scales, aspect_ratios, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor:
        scale, ratio = (torch.as_tensor(v, dtype=dtype, device=device) for v in (scales, aspect_ratios))
        high = ratio.sqrt()[:, None] * scale  # ratio by ratio, and in each scale by scale
        wide = scale / ratio.sqrt()[:, None]
        return torch.stack([-wide, -high, wide, high], dim=2).flatten(0, 1) / 2


class AlignedRoIAlign(MultiScaleRoIAlign):
    """torchvision's regions, aligned to half a pixel, sampled as densely as they are large (Detectron2, mmdetection).

    From maps of STRIDES: torchvision takes an image's size for the padded batch's, and finds others for small images.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        maps = [x[name] for name in self.featmap_names]
        rois = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])
        # Lin et al. 2017, equation 1: a region of 224 pixels is read from the map of stride 16.
        side = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).clamp(min=0).sqrt()
        finest, coarsest = (math.log2(STRIDES[i]) for i in (0, -1))
        level = (4 + (side / 224 + 1e-6).log2()).floor().clamp(finest, coarsest) - finest
        found = maps[0].new_zeros(len(rois), maps[0].shape[1], *self.output_size)
        for i, (image, stride) in enumerate(zip(maps, STRIDES)):
            [of_level] = torch.where(level == i)
            taken = roi_align(image, rois[of_level], self.output_size, 1 / stride, sampling_ratio=0, aligned=True)
            found[of_level] = taken.to(found.dtype)
        return found


def body_of(backbone: str, strides: tuple[int, ...], pretrained: bool, args: dict) -> Any:
    """A backbone's maps of these strides. Raises InputError for one that is unknown, or has no such maps.

    args: of the backbone; an img_size is left out where it takes images of any.
    """
    if not timm.is_model(backbone):
        raise InputError(f"backbone '{backbone}' is unknown to timm")
    with torch.device("meta"):
        try:
            tried: Any = timm.create_model(backbone, features_only=True, **args)
        except TypeError:
            args = {name: value for name, value in args.items() if name != "img_size"}
            tried = timm.create_model(backbone, features_only=True, **args)
    reductions = tried.feature_info.reduction()
    if not set(strides) <= set(reductions):
        raise InputError(f"backbone '{backbone}' has maps of strides {reductions}, and {list(strides)} are needed")
    indices = [reductions.index(stride) for stride in strides]
    return timm.create_model(backbone, pretrained=pretrained, features_only=True, out_indices=indices, **args)
