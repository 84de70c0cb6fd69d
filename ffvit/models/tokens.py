"""From an image to tokens: patches, and where they are."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffvit.system.errors import InputError


class ConvStem(nn.Module):
    """Patches by small convolutions: 3x3 with stride 2, each with norm and GELU, until a token is a patch; then 1x1.

    After Xiao et al. 2021, arXiv:2106.14881, section 4, with group norms of one group, which see one image, in place of
    batch norms. Each convolution doubles the channels, up to embed_dim.
    """

    def __init__(self, img_size: tuple[int, int], patch_size: tuple[int, int], in_chans: int, embed_dim: int):
        super().__init__()
        side, halvings = patch_size[0], int(math.log2(patch_size[0]))
        if patch_size != (side, side) or 2**halvings != side or side < 2:
            raise InputError(
                f"stem='conv' halves the image again and again: patch_size {patch_size[0]}x{patch_size[1]} is no square of a power of 2"
            )
        self.patch_size = patch_size
        self.set_input_size(img_size)
        widths = [in_chans, *(max(1, embed_dim >> left) for left in range(halvings - 1, -1, -1))]
        layers: list[nn.Module] = []
        for width, wider in zip(widths, widths[1:]):
            layers += [nn.Conv2d(width, wider, 3, 2, 1, bias=False), nn.GroupNorm(1, wider), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(embed_dim, embed_dim, 1))

    def set_input_size(self, img_size: tuple[int, int]) -> None:
        self.grid_size = (img_size[0] // self.patch_size[0], img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, num_patches, D)"""
        return self.proj(x).flatten(2).transpose(1, 2)


class PositionEncoding(nn.Module):
    """Learned positions: a 2-D map for the patches and one vector for the class token, as in the author's file."""

    def __init__(self, embed_dim: int, grid_size: tuple[int, int], class_token: bool = True):
        super().__init__()
        self.map_size = grid_size  # of pos_embed: its own shape is not to be asked for while the model is traced
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *grid_size))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, embed_dim)) if class_token else None

    def forward(self, cls_token: Tensor | None, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """cls_token: (B, 1, D) or None, patches: (B, H*W, D) -> (B, 1 + H*W, D), or (B, H*W, D)."""
        positions: Tensor = self.pos_embed
        if self.map_size != grid_size:  # the large model keeps a 14x14 map for its 7x7 patches
            positions = F.interpolate(positions, grid_size, mode="bilinear", align_corners=False)
        patches = patches + positions.flatten(2).transpose(1, 2)
        if cls_token is None or self.cls_pos_embed is None:
            return patches
        return torch.cat([cls_token + self.cls_pos_embed, patches], dim=1)
