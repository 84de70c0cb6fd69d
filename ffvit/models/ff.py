"""The report's models: one shell whose block mixes patches and features, each by feed-forward or attention.

Melas-Kyriazi 2021, arXiv:2105.02723, Figures 1 and 2 and section 3.4. The 2x2 grid:

    patches mixed by \ features mixed by   feed-forward                  attention
    attention                              ViT                           attention-only (section 3.4)
    feed-forward                           FF-only (the report's model)  the cell the report leaves open

DeiT and ViT themselves come from timm; the shell's ViT cell equals timm's and exists to show that it does.
Models are made by `timm.create_model`, after `import ffvit.models`.
"""

import torch
from timm.layers import Attention, DropPath, Mlp, PatchEmbed, to_2tuple, trunc_normal_
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ffvit.models.weights import create_by_timm
from ffvit.system.errors import InputError

AUTHOR_WEIGHTS = "https://github.com/lukemelas/do-you-even-need-attention/releases/download/v0.0.1/"


class Branch(nn.Module):
    """Norm, then a feed-forward layer or attention, so that features or patches are mixed. (B, N, D) -> (B, N, D)."""

    def __init__(self, mixes, layer, num_tokens, embed_dim, num_heads, mlp_ratio, drop_rate):
        super().__init__()
        # A feed-forward layer mixes the axis it runs along, attention mixes the other one.
        self.transposed = (mixes == "patches") == (layer == "ff")
        width = num_tokens if self.transposed else embed_dim
        # Over the tokens where transposed, as in the author's weights; MLP-Mixer normalises channels in both branches.
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mix: Mlp | Attention
        if layer == "ff":
            self.mix = Mlp(width, int(mlp_ratio * width), drop=drop_rate)
        else:
            heads = 1 if self.transposed else num_heads  # N = 197 is prime: one head
            self.mix = Attention(width, heads, qkv_bias=True, proj_drop=drop_rate)

    def forward(self, x):
        if self.transposed:
            x = x.transpose(1, 2)  # (B, D, N)
        x = self.mix(self.norm(x))
        return x.transpose(1, 2) if self.transposed else x


class Block(nn.Module):
    """Mix the features within every patch and the patches within every feature (Figure 2). (B, N, D) -> (B, N, D)."""

    def __init__(self, patches, features, patches_first, drop_path, **shape):
        super().__init__()
        self.mix_features = Branch("features", features, **shape)
        self.mix_patches = Branch("patches", patches, **shape)
        self.drop_path = DropPath(drop_path)
        self.patches_first = patches_first

    @property
    def branches(self):
        order = [self.mix_features, self.mix_patches]
        return order[::-1] if self.patches_first else order

    def forward(self, x):
        for branch in self.branches:
            x = x + self.drop_path(branch(x))
        return x


class PositionEncoding(nn.Module):
    """Learned positions: a 2-D map for the patches and one vector for the class token, as in the author's file."""

    def __init__(self, embed_dim: int, grid_size: tuple[int, int]):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, embed_dim, *grid_size))
        self.cls_pos_embed = nn.Parameter(torch.empty(1, 1, embed_dim))

    def forward(self, cls_token: Tensor, patches: Tensor, grid_size: tuple[int, int]) -> Tensor:
        """cls_token: (B, 1, D), patches: (B, H*W, D) -> (B, 1 + H*W, D)."""
        positions: Tensor = self.pos_embed
        if positions.shape[2:] != grid_size:  # the large model keeps a 14x14 map for its 7x7 patches
            positions = F.interpolate(positions, grid_size, mode="bilinear", align_corners=False)
        return torch.cat([cls_token + self.cls_pos_embed, patches + positions.flatten(2).transpose(1, 2)], dim=1)


class PatchFeatureMixer(nn.Module):
    """The report's architecture (Figure 1): patches, class token, positions, blocks, norm, head on the class token.

    Args, in timm's words: img_size and patch_size in pixels; patches, features: "ff" or "attention", what mixes
    them; patches_first: order of the two branches in a block; position_grid: side of the stored position map,
    None for the image's own. num_heads is read by attention over patches.
    Raises InputError where the image cannot be cut into patches, and in forward for another image size.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        patches: str = "ff",
        features: str = "ff",
        patches_first: bool = False,
        position_grid: int | None = None,
    ):
        super().__init__()
        for axis, kind in {"patches": patches, "features": features}.items():
            if kind not in ("ff", "attention"):
                raise InputError(f"{axis}='{kind}': {axis} are mixed by 'ff' or 'attention'")
        self.img_size = to_2tuple(img_size)  # height, width
        if any(side % patch_size for side in self.img_size):
            raise InputError(f"img_size {img_size} is not divisible by patch_size {patch_size}")
        if patches == "attention" and embed_dim % num_heads:
            raise InputError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.patches, self.features = patches, features
        self.grad_checkpointing = False

        self.patch_embed = PatchEmbed(self.img_size, patch_size, in_chans, embed_dim, strict_img_size=False)
        self.grid_size = self.patch_embed.grid_size
        self.num_tokens = self.patch_embed.num_patches + 1  # 224/16: 14 * 14 + 1 = 197, with the class token
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_encoding = PositionEncoding(embed_dim, (position_grid,) * 2 if position_grid else self.grid_size)
        self.pos_drop = nn.Dropout(drop_rate)
        shape = dict(num_tokens=self.num_tokens, embed_dim=embed_dim, num_heads=num_heads, mlp_ratio=mlp_ratio)
        self.blocks = nn.ModuleList(
            Block(patches, features, patches_first, rate, drop_rate=drop_rate, **shape)
            for rate in torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal of 0.02 for linear weights, class token and positions; the patch convolution keeps PyTorch's."""
        for parameter in (self.cls_token, self.pos_encoding.pos_embed, self.pos_encoding.cls_pos_embed):
            trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, N, D) tokens after the final norm; token 0 is the class token."""
        if x.shape[2:] != self.img_size:
            patch = self.patch_embed.patch_size[0]
            raise InputError(
                f"this model has a fixed length: expected {self.num_tokens} tokens (image {_by(self.img_size)}, patch "
                f"{patch}), got {x.shape[2] // patch * (x.shape[3] // patch) + 1} (image {_by(x.shape[2:])}). "
                f"Resize the images, or create the model with img_size={tuple(x.shape[2:])}"
            )
        x = self.pos_encoding(self.cls_token.expand(len(x), -1, -1), self.patch_embed(x), self.grid_size)
        x = self.pos_drop(x)
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x[:, 0] if pre_logits else self.head(x[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) images -> (B, num_classes) logits."""
        return self.forward_head(self.forward_features(x))

    # timm's interface
    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        # The author's file also names "pos_embed", which misses "pos_encoding.pos_embed": positions were decayed.
        return {"cls_token"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "", "token"):
            raise InputError(f"global_pool='{global_pool}': the class is read from the class token")
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()


def _by(size) -> str:
    return "x".join(str(side) for side in size)


_CFG = dict(
    input_size=(3, 224, 224),
    crop_pct=0.875,
    interpolation="bicubic",
    fixed_input_size=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    num_classes=1000,
    first_conv="patch_embed.proj",
    classifier="head",
)
default_cfgs = generate_default_cfgs(
    {
        "ff_tiny_patch16_224.in1k": dict(_CFG, url=AUTHOR_WEIGHTS + "linear-tiny-checkpoint.pth"),
        "ff_base_patch16_224.in1k": dict(_CFG, url=AUTHOR_WEIGHTS + "linear-base-checkpoint.pth"),
        "ff_large_patch32_224": _CFG,
        "attention_only_tiny_patch16_224": _CFG,
        "ff_attention_tiny_patch16_224": _CFG,
    }
)


@register_model
def ff_tiny_patch16_224(pretrained=False, **kwargs) -> PatchFeatureMixer:
    """FF-only tiny: Table 1, 7.7M parameters, 61.4 % ImageNet top-1."""
    shape = dict(patch_size=16, embed_dim=192, depth=12)
    return create_by_timm(PatchFeatureMixer, "ff_tiny_patch16_224", pretrained, **(shape | kwargs))


@register_model
def ff_base_patch16_224(pretrained=False, **kwargs) -> PatchFeatureMixer:
    """FF-only base: Table 1, 62M parameters, 74.9 % ImageNet top-1."""
    shape = dict(patch_size=16, embed_dim=768, depth=12, num_heads=12)
    return create_by_timm(PatchFeatureMixer, "ff_base_patch16_224", pretrained, **(shape | kwargs))


@register_model
def ff_large_patch32_224(pretrained=False, **kwargs) -> PatchFeatureMixer:
    """FF-only large: Table 1, 206M parameters, 71.4 % ImageNet top-1. Weights were never published."""
    shape = dict(patch_size=32, embed_dim=1024, depth=24, num_heads=16, position_grid=14)
    return create_by_timm(PatchFeatureMixer, "ff_large_patch32_224", pretrained, **(shape | kwargs))


@register_model
def attention_only_tiny_patch16_224(pretrained=False, **kwargs) -> PatchFeatureMixer:
    """Attention-only tiny: section 3.4, 4.0M parameters, 28.2 % ImageNet top-1 after 100 epochs.

    Our reading, since no code was published: attention over the tokens (D = 192, 3 heads), then attention over the
    transposed map (D tokens of width N = 197, one head), each behind its own norm. It counts 4,039,360 parameters,
    the report's 4.0M; two attentions over the tokens would count 3,945,640.
    """
    shape = dict(patch_size=16, embed_dim=192, depth=12, patches="attention", features="attention", patches_first=True)
    return create_by_timm(PatchFeatureMixer, "attention_only_tiny_patch16_224", pretrained, **(shape | kwargs))


@register_model
def ff_attention_tiny_patch16_224(pretrained=False, **kwargs) -> PatchFeatureMixer:
    """The cell the report leaves open: feed-forward over patches, attention over features, in FF-only's order."""
    shape = dict(patch_size=16, embed_dim=192, depth=12, patches="ff", features="attention")
    return create_by_timm(PatchFeatureMixer, "ff_attention_tiny_patch16_224", pretrained, **(shape | kwargs))


def cell(model: nn.Module) -> dict[str, str | None]:
    """Where a model stands in the 2x2 grid: {"patches": "ff" | "attention", "features": ...}, None if it does not."""
    if isinstance(model, PatchFeatureMixer):
        return {"patches": model.patches, "features": model.features}
    if isinstance(model, VisionTransformer):
        return {"patches": "attention", "features": "ff"}
    return {"patches": None, "features": None}
