"""LIT: a pyramid with feed-forward layers alone where there are many tokens, and attention where there are few.

Pan et al. 2022 (AAAI), "Less is More: Pay Less Attention in Vision Transformers", arXiv:2105.14217, with the
names and shapes of the official code (github.com/ziplab/LIT at 742e961). Four stages, for an image of 224 pixels:

    tokens   56x56 --merge--> 28x28 --merge--> 14x14 --merge--> 7x7
    blocks   feed-forward     feed-forward     attention and feed-forward in both

A merging makes one token of 2x2, by a convolution that learns where to look (deformable token merging). The family has
two lineages, with other names, positions and pooling: LIT-Ti comes from PVT, LIT-S, M and B come from Swin.
Models are made by `timm.create_model("lit_ti")`, after `import ffvit.models`.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.fx
from timm.layers import Attention, DropPath, Mlp, PatchEmbed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula
from torchvision.ops import DeformConv2d, deform_conv2d

from ffvit.models.resample import grid_of
from ffvit.models.weights import create_by_timm
from ffvit.system.errors import InputError

Grid = tuple[int, int]  # tokens per column and per row of a map
MOST_INDEXED = 14 * 14  # tokens of the largest map whose index is kept: that of the published checkpoints
OFFICIAL_WEIGHTS = "https://github.com/ziplab/LIT/releases/download/v1.0/"


class DeformableConv(DeformConv2d):
    """A 2x2 convolution of stride 2 whose taps are moved by learned offsets. (B, C, H, W) -> (B, C', H // 2, W // 2).

    Offsets are unbounded, in tokens of the input, and zero at first: then this is the plain convolution. On CUDA gradients
    are summed in no fixed order, so that two runs of one seed differ by rounding.

    learn_offsets: False holds the offsets at zero: there is no conv_offset, and the plain convolution is computed, in fp32
    as the deformable one is (on CUDA as PyTorch's setting of TF32 for convolutions has it).
    """

    def __init__(self, dim: int, out_dim: int, learn_offsets: bool = True):
        super().__init__(dim, out_dim, kernel_size=2, stride=2)
        # Taps row by row; channel 2k moves tap k down, channel 2k + 1 moves it to the right.
        conv_offset = nn.Conv2d(dim, 2 * 2 * 2, kernel_size=2, stride=2)
        for parameter in conv_offset.parameters():
            nn.init.zeros_(parameter)
        # Made in any case, for it draws random numbers: with one seed, all other weights start alike either way.
        self.conv_offset = conv_offset if learn_offsets else None

    def forward(self, x: Tensor) -> Tensor:
        offsets = self.conv_offset(x) if self.conv_offset else None
        return _convolve(x, offsets, self.weight, self.bias, self.stride)


@torch.fx.wrap
def _convolve(x: Tensor, offsets: Tensor | None, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> Tensor:
    """In fp32 at least, as in the official code: under autocast the operator refuses mixed types on a CPU.

    A step of its own where the model is traced.
    """
    tensors = [x, weight, bias] if offsets is None else [x, offsets, weight, bias]
    exact = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]
    convolve: Callable[..., Tensor] = F.conv2d if offsets is None else deform_conv2d
    device = x.device.type
    with contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False):  # as in mixing.py
        return convolve(*exact, stride=stride).to(weight.dtype)


@register_flop_formula(torch.ops.torchvision.deform_conv2d)
def _deformable_flops(x, weight, *_, out_shape, **__) -> int:
    """Those of the plain convolution, as in the paper: bilinear sampling is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


class DeformableMerging(nn.Module):
    """Deformable token merging, the paper's. (B, H, W, C) -> (B, H // 2, W // 2, C').

    learn_offsets: False holds its offsets at zero. It then differs from PlainMerging in norm and activation and, under
    autocast, in the precision of the convolution.
    """

    def __init__(self, dim: int, out_dim: int, learn_offsets: bool = True):
        super().__init__()
        self.dconv = DeformableConv(dim, out_dim, learn_offsets)
        self.norm_layer = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm_layer(self.dconv(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


class PlainMerging(nn.Module):
    """The merging it is compared with: a convolution and a norm, as in PVT. (B, H, W, C) -> (B, H // 2, W // 2, C')."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, kernel_size=2, stride=2)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@torch.fx.wrap
def resample(values: Tensor, size: Grid, new_size: Grid, mode: str) -> Tensor:
    """A learned map at another size: (h*w, C) -> (h'*w', C)."""
    if size == new_size:
        return values
    image = values.T.unflatten(1, size)[None]
    return F.interpolate(image, new_size, mode=mode, align_corners=False)[0].flatten(1).T


def relative_position_index(grid: Grid) -> Tensor:
    """For every two tokens of a map, row by row, where the table of biases has their offset. (N, N), int64.

    index[i, j] = (y_i - y_j + h - 1) * (2w - 1) + (x_i - x_j + w - 1), as in Swin.
    """
    height, width = grid
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return (y[:, None] - y + height - 1) * (2 * width - 1) + (x[:, None] - x + width - 1)


class GlobalAttention(Attention):
    """Attention over the whole map, with a learned bias for every offset between two tokens where it gets a grid."""

    def __init__(self, dim: int, num_heads: int, drop_rate: float, grid: Grid | None):
        super().__init__(dim, num_heads, qkv_bias=True, proj_drop=drop_rate)
        self.grid = grid
        if grid:
            self.relative_position_bias_table = nn.Parameter(torch.empty(math.prod(_span(grid)), num_heads))
            self._keep_index(grid)

    def _keep_index(self, grid: Grid) -> None:
        """The checkpoints hold it. `bias` reads the same entries, without an index, at any size."""
        large = math.prod(grid) > MOST_INDEXED  # that of 50x50 tokens would take 50 MB in each block
        self.register_buffer("relative_position_index", None if large else relative_position_index(grid))

    @torch.no_grad()
    def set_grid(self, grid: Grid) -> None:
        """Have a table for another map: the one there is, resampled."""
        table = resample(self.relative_position_bias_table, _span(cast(Grid, self.grid)), _span(grid), "bicubic")
        self.relative_position_bias_table, self.grid = nn.Parameter(table.contiguous()), grid
        self._keep_index(grid)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]  # timm's takes a mask
        """x: (B, N, C) tokens of the grid -> (B, N, C)."""
        return super().forward(x, attn_mask=self.bias(grid) if self.grid else None)

    def bias(self, grid: Grid) -> Tensor:
        """What is added to the scaled logits: (1, heads, N, N)."""
        table = resample(self.relative_position_bias_table, _span(cast(Grid, self.grid)), _span(grid), "bicubic")
        table = table.T.contiguous().unflatten(1, _span(grid))  # (heads, 2h - 1, 2w - 1): read N times, so in rows
        # [head, y_i, x_i, y, x] = table[head, y_i + y, x_i + x]; counted backwards, y is h - 1 - y_j, and x likewise.
        windows = table.unfold(1, grid[0], 1).unfold(2, grid[1], 1).flip(3, 4)
        return windows.reshape(1, self.num_heads, math.prod(grid), math.prod(grid))


def _span(grid: Grid) -> Grid:
    """How many offsets two tokens of a map can have, down and to the right."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


class Block(nn.Module):
    """Attention, in the stages that have it, then a feed-forward layer; norms first. (B, N, C) -> (B, N, C)."""

    def __init__(self, dim, mlp_ratio, drop_rate, drop_path, norm_eps, attention: GlobalAttention | None):
        super().__init__()
        if attention:
            self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), drop=drop_rate)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        if self.attn:
            x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class LIT(nn.Module):
    """What the two lineages share: patches, then four stages with a merging before each but the first, norm, head.

    A lineage defines `place`, which gives the parts the names that they have in the official checkpoints, where to find
    them again (patch_embed, mergings, stages), what it does with positions, pool and no_weight_decay.

    Args: img_size and patch_size in pixels. embed_dims, depths, num_heads, mlp_ratios: one for each stage; num_heads is
    read in the stages with attention. attention_stages: those with attention, from 1; LIT has it in (3, 4).
    deformable: whether mergings are, or plain: a convolution and a layer norm. learn_offsets: whether the offsets of
    deformable mergings learn, or stay at zero; all other weights start as the same numbers either way. Images may have
    other sizes than img_size: positions, which are stored for img_size, are resampled. global_pool: "" for a head that takes
    every token. output_norms: stages, from 1, whose maps are normed when they are asked for: (2, 3, 4) in the official
    detectors of LIT-S, (1, 2, 3, 4) in its segmentation.
    Raises InputError for a shape that does not fit, and in forward for an image that leaves the last stage no token.
    """

    relative: bool  # positions: relative, as biases of attention, or absolute, added to the tokens
    pads: bool  # an image is made divisible into patches by zeros at the right and bottom, or by leaving out the rest
    norm_eps: float  # of blocks and final norm; that of the patches is 1e-5 in both lineages
    pooling: str  # "token", that of the class, or "avg"
    first_name: str  # of the module that cuts patches
    stage_names: tuple[str, ...]  # of the modules
    groups: dict[str, Any]  # patterns of parameters' names: the stem's, and those that a stage's number is in
    place: Callable[[nn.Module, list[nn.Module], list[nn.ModuleList]], None]
    add_positions: Callable[[int, Tensor, Grid], Tensor]
    resample_positions: Callable[[int, Grid, Grid], None]
    grid_in: Callable[[dict[str, Tensor]], Grid | None]  # the patches that weights are of; None where none tells
    pool: Callable[[Tensor], Tensor]

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        depths: tuple[int, ...] = (3, 4, 6, 3),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        attention_stages: tuple[int, ...] = (3, 4),
        deformable: bool = True,
        learn_offsets: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str | None = None,
        output_norms: tuple[int, ...] = (),
    ):
        super().__init__()
        shape = dict(embed_dims=embed_dims, depths=depths, num_heads=num_heads, mlp_ratios=mlp_ratios)
        for name, values in shape.items():
            if not isinstance(values, (tuple, list)) or len(values) != 4 or min(values) <= 0:
                raise InputError(f"{name}={values}: one for each of the four stages, none of them 0 or less")
        for name, stages_named in (("attention_stages", attention_stages), ("output_norms", output_norms)):
            if not set(stages_named) <= {1, 2, 3, 4}:
                raise InputError(f"{name}={stages_named}: the stages are 1, 2, 3 and 4")
        for stage in attention_stages:
            if embed_dims[stage - 1] % num_heads[stage - 1]:
                raise InputError(f"stage {stage}: {num_heads[stage - 1]} heads do not divide {embed_dims[stage - 1]}")
        if not deformable and not learn_offsets:
            raise InputError("learn_offsets=False: plain merging has no offsets, leave it out or set deformable=True")
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dims[-1]
        self.feature_info = [
            dict(num_chs=dim, reduction=patch_size * 2**s, module=name)
            for s, (dim, name) in enumerate(zip(embed_dims, self.stage_names))
        ]
        self.grad_checkpointing = False
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.grids = self.grids_of(self.img_size)

        patch_embed = PatchEmbed(
            None, patch_size, in_chans, embed_dims[0], nn.LayerNorm, output_fmt="NHWC", dynamic_img_pad=self.pads
        )
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        stages: list[nn.ModuleList] = []
        for s, (dim, grid) in enumerate(zip(embed_dims, self.grids)):
            blocks = nn.ModuleList()
            for _ in range(depths[s]):
                attention = None
                if s + 1 in attention_stages:
                    attention = GlobalAttention(dim, num_heads[s], drop_rate, grid if self.relative else None)
                blocks.append(Block(dim, mlp_ratios[s], drop_rate, next(rates), self.norm_eps, attention))
            stages.append(blocks)
        mergings: list[nn.Module] = [
            DeformableMerging(*dims, learn_offsets) if deformable else PlainMerging(*dims)
            for dims in zip(embed_dims, embed_dims[1:])
        ]
        self.place(patch_embed, mergings, stages)
        self.global_pool = self.checked_pool(global_pool, self.pooling)
        self.output_norms = set(output_norms)
        for stage in output_norms:
            self.add_module(f"norm{stage - 1}", nn.LayerNorm(embed_dims[stage - 1], eps=self.norm_eps))
        self.norm: nn.Module = nn.LayerNorm(self.embed_dim, eps=self.norm_eps)
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    @property
    def mergings(self) -> list[Any]:
        raise NotImplementedError

    @property
    def stages(self) -> list[Any]:
        raise NotImplementedError

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for linear weights and positions. Convolutions keep PyTorch's, offsets their zeros."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            if isinstance(module, GlobalAttention) and self.relative:
                trunc_normal_(module.relative_position_bias_table, std=0.02)

    def grids_of(self, img_size: Sequence[int]) -> list[Grid]:
        """The four maps' sizes for an image of (height, width) pixels. A merging leaves out an odd last row or column."""
        patches = _patches(img_size, self.patch_size, self.pads)
        return [(patches[0] >> s, patches[1] >> s) for s in range(4)]

    def run_stage(self, stage: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """One stage, from 0: (B, C, H, W) image, or the map of the stage before -> (B, N, C) tokens, (B, h, w, C) map."""
        if stage == 0:
            x = _large_enough(x, self.patch_size, self.pads)
        x = self.mergings[stage - 1](x) if stage else self.get_submodule(self.first_name)(x)
        grid = x.shape[1], x.shape[2]
        tokens = self.add_positions(stage, x.flatten(1, 2), grid)
        for block in self.stages[stage]:
            if self.grad_checkpointing and self.training:
                tokens = torch.utils.checkpoint.checkpoint(block, tokens, grid, use_reentrant=False)
            else:
                tokens = block(tokens, grid)
        return tokens, tokens[:, -math.prod(grid) :].unflatten(1, grid)  # a class token comes first

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, N, C4) tokens of the last stage, after the final norm."""
        return self.forward_intermediates(x, indices=1)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, C4) tokens -> (B, num_classes) logits; pre_logits: what the classifier would read, (B, C4)."""
        x = self.pool(x) if self.global_pool else x
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    # timm's interface
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(B, C, H, W) images -> the maps (B, C_s, H_s, W_s) of the stages asked for, each before the next merging.

        norm: apply the final norm to the last stage's map, unless it has an output norm of its own. stop_early, with
        intermediates_only: make no stage beyond those asked for. Without intermediates_only, a pair: what forward_features
        returns, and the maps.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise InputError(f"output_fmt='{output_fmt}': maps are NCHW or NHWC")
        take, last = feature_take_indices(4, indices)
        maps = []
        for stage in range(last + 1 if stop_early and intermediates_only else 4):
            tokens, x = self.run_stage(stage, x)
            if stage in take:
                image = x
                if stage + 1 in self.output_norms:
                    image = self.get_submodule(f"norm{stage}")(x)
                elif norm and stage == 3:
                    image = self.norm(x)
                maps.append(image if output_fmt == "NHWC" else image.permute(0, 3, 1, 2))
        return maps if intermediates_only else (self.norm(tokens), maps)

    @property
    def grid_size(self) -> Grid:
        return self.grids[0]

    @torch.no_grad()
    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: int | None = None) -> None:
        """Store positions for images of another size, in place: each stage's are resampled to its own map.

        Images of any size are taken without this, too, at the price of resampling in every forward pass. To train on, make
        an optimiser after this: parameters are new ones. Raises InputError for too small a size and another patch_size.
        """
        if patch_size is not None and to_2tuple(patch_size) != to_2tuple(self.patch_size):
            raise InputError(f"patch_size {patch_size}: weights of patches of {self.patch_size} px cannot take others")
        new_size = to_2tuple(img_size or self.img_size)
        grids = self.grids_of(new_size)
        for stage, (old, new) in enumerate(zip(self.grids, grids)):
            self.resample_positions(stage, old, new)
        self.img_size, self.grids = new_size, grids

    def prune_intermediate_layers(self, indices=1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Remove what feature maps do not need, as features_only does; all stages stay."""
        take, _ = feature_take_indices(4, indices)
        for stage in self.output_norms - {index + 1 for index in take}:
            delattr(self, f"norm{stage - 1}")
        self.output_norms &= {index + 1 for index in take}
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    @property
    def blocks(self) -> list[Block]:
        return [block for stage in self.stages for block in stage]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameters in the order of depth, for rates that fall with it: the patches, each stage with its merging, the norm."""
        return self.groups | dict(blocks=[*self.groups["blocks"], (r"^norm", (99999,))])

    def checked_pool(self, asked_for: str | None, kept: str) -> str:
        """How tokens become one for the head: as the model has it, or not at all (""). Raises InputError for another way."""
        if asked_for not in (None, "", self.pooling):
            raise InputError(f"global_pool='{asked_for}': this model's is '{self.pooling}'")
        return kept if asked_for is None else asked_for

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another number of classes, none with 0. global_pool: "" for every token, None to keep what there is."""
        self.global_pool = self.checked_pool(global_pool, self.global_pool)
        self.num_classes = num_classes
        head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head = head.to(next(self.parameters())).train(self.training)

    @staticmethod
    def variant_of(state: dict[str, Tensor]) -> str:
        """The variant with the very blocks of a state dict, for the message where it does not fit; empty if none has."""
        widths = sorted(len(norm) for key, norm in state.items() if key.endswith(".norm2.weight") and norm.ndim)
        for name, (_, shape) in VARIANTS.items():
            if widths == [width for width, depth in zip(shape["embed_dims"], shape["depths"]) for _ in range(depth)]:
                return name
        return ""


def _patches(img_size: Sequence[int], patch_size: int, pads: bool) -> list[int]:
    """Patches down and to the right. Raises InputError where mergings would leave the last stage no token."""
    patches = [math.ceil(side / patch_size) if pads else side // patch_size for side in img_size]
    if min(patches) < 8:
        raise InputError(
            f"an image of {img_size[0]}x{img_size[1]} pixels is too small: 8x8 patches of {patch_size}x"
            f"{patch_size} are the fewest that three mergings leave a token of"
        )
    return patches


@torch.fx.wrap
def _large_enough(x: Tensor, patch_size: int, pads: bool) -> Tensor:
    """The images as they are; InputError for too small ones. A step of its own where the model is traced."""
    _patches(x.shape[2:], patch_size, pads)
    return x


class AbsoluteLIT(LIT):
    """LIT-Ti, after PVT: learned positions added in each stage, and a class token that enters in the fourth.

    Where the fourth stage has no attention, the class token sees nothing of the image: there the class is read from the
    mean of all tokens, to which it adds a constant.
    """

    relative, pads, norm_eps = False, False, 1e-6
    first_name = "patch_embed1"
    stage_names = ("block1", "block2", "block3", "block4")
    groups = dict(
        stem=r"^patch_embed1|^pos_embed1", blocks=[(r"^(?:block|patch_embed|pos_embed)(\d)", None), (r"^cls", (4,))]
    )

    def place(self, patch_embed, mergings, stages):
        self.patch_embed1 = patch_embed
        self.patch_embed2, self.patch_embed3, self.patch_embed4 = mergings
        self.block1, self.block2, self.block3, self.block4 = stages
        for s, (grid, info) in enumerate(zip(self.grids, self.feature_info), 1):
            num_tokens = math.prod(grid) + (s == 4)  # with the class token: 7 * 7 + 1 = 50
            setattr(self, f"pos_embed{s}", nn.Parameter(torch.empty(1, num_tokens, info["num_chs"])))
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, self.embed_dim))
        self.pooling = "token" if self.block4[0].attn else "avg"

    @property
    def patch_embed(self):
        return self.patch_embed1

    @property
    def mergings(self):
        return [self.patch_embed2, self.patch_embed3, self.patch_embed4]

    @property
    def stages(self):
        return [self.block1, self.block2, self.block3, self.block4]

    def init_weights(self):
        super().init_weights()
        for name, parameter in self.named_parameters():
            if name.startswith(("pos_embed", "cls_token")):
                trunc_normal_(parameter, std=0.02)

    def add_positions(self, stage, tokens, grid):
        positions = getattr(self, f"pos_embed{stage + 1}")[0]
        of_map = positions[-math.prod(self.grids[stage]) :]
        tokens = tokens + resample(of_map, self.grids[stage], grid, "bilinear")
        if stage < 3 or self.cls_token is None:
            return tokens
        return torch.cat([(self.cls_token + positions[0]).expand(tokens.shape[0], -1, -1), tokens], dim=1)

    def resample_positions(self, stage, old, new):
        name, num_tokens = f"pos_embed{stage + 1}", math.prod(old)
        stored = getattr(self, name)[0]
        prefix, of_map = stored.split([len(stored) - num_tokens, num_tokens])
        setattr(self, name, nn.Parameter(torch.cat([prefix, resample(of_map, old, new, "bilinear")])[None]))

    def grid_in(self, state):
        stored = state.get("pos_embed1")
        if stored is None or stored.ndim != 3:
            return None
        return self.grids[0] if stored.shape[1] == math.prod(self.grids[0]) else grid_of(stored.shape[1])

    def pool(self, tokens):
        return tokens[:, 0] if self.pooling == "token" else tokens.mean(dim=1)

    def prune_intermediate_layers(self, indices=1, prune_norm=False, prune_head=True):
        if prune_head:
            self.cls_token = None  # the official detectors, too, run the fourth stage without it
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {"cls_token"}  # positions are decayed, in the official code too


class RelativeLIT(LIT):
    """LIT-S, M and B, after Swin: a bias for each offset between tokens in each attention, and the mean as the pool."""

    relative, pads, norm_eps, pooling = True, True, 1e-5, "avg"
    first_name = "patch_embed"
    stage_names = ("layers.0", "layers.1", "layers.2", "layers.3")
    groups = dict(stem=r"^patch_embed", blocks=[(r"^layers\.(\d+)", None)])

    def place(self, patch_embed, mergings, stages):
        self.patch_embed = patch_embed
        layers = [nn.ModuleDict({"blocks": blocks}) for blocks in stages]
        for layer, merging in zip(layers, mergings):
            layer["downsample"] = merging
        self.layers: Any = nn.ModuleList(layers)

    @property
    def mergings(self):
        return [layer["downsample"] for layer in self.layers[:3]]

    @property
    def stages(self):
        return [layer["blocks"] for layer in self.layers]

    def add_positions(self, stage, tokens, grid):
        return tokens  # attention adds its biases

    def resample_positions(self, stage, old, new):
        for block in self.stages[stage]:
            if block.attn:
                block.attn.set_grid(new)

    def grid_in(self, state):
        for stage, blocks in enumerate(self.stages):
            table = state.get(f"layers.{stage}.blocks.0.attn.relative_position_bias_table")
            if blocks[0].attn and table is not None and table.ndim == 2:
                if len(table) == math.prod(_span(self.grids[stage])):
                    return self.grids[0]
                offsets = cast(Grid, grid_of(len(table)))  # 2h - 1 by 2w - 1
                return (offsets[0] + 1) // 2 << stage, (offsets[1] + 1) // 2 << stage
        return None

    def pool(self, tokens):
        return tokens.mean(dim=1)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}


# Widths, depths and heads of stages 1 to 4. Heads without attention are nominal: they count where attention_stages says so.
_SWIN = dict(embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), mlp_ratios=(4, 4, 4, 4))
_PVT = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
VARIANTS: dict[str, tuple[type[LIT], dict[str, Any]]] = {
    "lit_ti": (AbsoluteLIT, dict(_PVT, depths=(3, 4, 6, 3), drop_path_rate=0.1)),
    "lit_s": (RelativeLIT, dict(_SWIN, depths=(2, 2, 6, 2), drop_path_rate=0.2)),
    "lit_m": (RelativeLIT, dict(_SWIN, depths=(2, 2, 18, 2), drop_path_rate=0.3)),
    "lit_b": (
        RelativeLIT,
        dict(
            embed_dims=(128, 256, 512, 1024),
            num_heads=(4, 8, 16, 32),
            mlp_ratios=(4, 4, 4, 4),
            depths=(2, 2, 18, 2),
            drop_path_rate=0.5,
        ),
    ),
}


_CFG = dict(
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=0.875,  # 224 / 256
    interpolation="bicubic",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    num_classes=1000,
    classifier="head",
)
default_cfgs = generate_default_cfgs(
    {
        f"{name}.in1k": dict(_CFG, url=f"{OFFICIAL_WEIGHTS}{name}.pth", first_conv=f"{lineage.first_name}.proj")
        for name, (lineage, _) in VARIANTS.items()
    }
)


def _create(name: str, pretrained: bool, **kwargs) -> nn.Module:
    lineage, shape = VARIANTS[name]
    feature_cfg = dict(feature_cls="getter", out_indices=(0, 1, 2, 3))  # features_only: the maps of all four stages
    return create_by_timm(lineage, name, pretrained, feature_cfg=feature_cfg, **(shape | kwargs))


@register_model
def lit_ti(pretrained=False, **kwargs) -> nn.Module:
    """LIT-Ti: 19,886,272 parameters, 3.6 G multiply-adds, 81.1 % ImageNet top-1 (official README)."""
    return _create("lit_ti", pretrained, **kwargs)


@register_model
def lit_s(pretrained=False, **kwargs) -> nn.Module:
    """LIT-S: 27,973,720 parameters, 4.1 G multiply-adds, 81.5 % ImageNet top-1 (official README)."""
    return _create("lit_s", pretrained, **kwargs)


@register_model
def lit_m(pretrained=False, **kwargs) -> nn.Module:
    """LIT-M: 49,372,264 parameters, 8.6 G multiply-adds, 83.0 % ImageNet top-1 (official README)."""
    return _create("lit_m", pretrained, **kwargs)


@register_model
def lit_b(pretrained=False, **kwargs) -> nn.Module:
    """LIT-B: 87,292,384 parameters, 15.0 G multiply-adds, 83.4 % ImageNet top-1 (official README)."""
    return _create("lit_b", pretrained, **kwargs)
