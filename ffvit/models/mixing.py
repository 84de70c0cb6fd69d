"""A block of the report's models (Figure 2): one branch mixes the features within patches, one the patches within features."""

import torch
import torch.fx
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from ffvit.models.resample import Grid, resample_mlp, resample_norm


class UnprojectedAttention(nn.Module):
    """Attention of one head whose queries, keys and values are the tokens themselves: it has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        return F.scaled_dot_product_attention(x, x, x)


class MlpOverTokens(Mlp):
    """timm's feed-forward layer on (B, D, N), computed as W @ x: one product for the batch, whose rows are B * D long.

    As x @ W' its rows would have N = 197 numbers, which is odd: the next begins where a GPU's matrix units cannot read.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, N) -> (B, D, N)"""
        weight1, bias1, weight2 = _aligned(self.fc1.weight, self.fc1.bias, self.fc2.weight)  # type: ignore[arg-type]
        x = x.permute(2, 0, 1)
        y = torch.addmm(bias1[:, None], weight1, x.flatten(1))  # (H, B * D)
        y = self.drop1(self.act(y))
        y = self.drop2(torch.addmm(self.fc2.bias[:, None], weight2, y))  # type: ignore[index]
        return y.view(x.shape).permute(1, 2, 0)


@torch.fx.wrap
def _aligned(weight1: Tensor, bias1: Tensor, weight2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(H, N), (H,) and (N, H), as they are, or for products of 16 bits with H filled up to a multiple of 8: 16 bytes.

    Hidden units that are filled in have no weights: they are gelu(0) = 0. The first, too, lies in rows as long as H.
    On "meta" nothing is computed, and PyTorch knows no autocast; is_autocast_available() would say so, but PyTorch 2.11 cannot
    compile it, so that a block would be compiled in pieces.
    """
    device = bias1.device.type
    more = -len(bias1) % 8
    if not more or device == "meta" or not torch.is_autocast_enabled(device):
        return weight1, bias1, weight2
    return F.pad(weight1.t(), (0, more)).t(), F.pad(bias1, (0, more)), F.pad(weight2, (0, more))


class Branch(nn.Module):
    """Norm, then a feed-forward layer or attention, so that features or patches are mixed. (B, N, D) -> (B, N, D)."""

    def __init__(
        self, mixes, layer, num_tokens, embed_dim, num_heads, mlp_ratio, drop_rate, hidden_dim=None, norm="tokens"
    ):
        """hidden_dim: of a feed-forward layer, in place of mlp_ratio. norm: of a transposed branch, see patch_norm."""
        super().__init__()
        # A feed-forward layer mixes the axis it runs along, attention mixes the other one.
        self.transposed = layer != "attention_over_tokens" and (mixes == "patches") == (layer == "ff")
        width = num_tokens if self.transposed else embed_dim
        # Over the tokens where transposed, as in the author's weights; MLP-Mixer normalises channels in both branches.
        self.norm_transposed = self.transposed and norm == "tokens"
        normed = width if norm == "tokens" else embed_dim
        self.norm = nn.Identity() if norm == "none" else nn.LayerNorm(normed, eps=1e-6)
        self.mix: Mlp | Attention | UnprojectedAttention
        if layer == "ff":
            feed_forward = MlpOverTokens if self.transposed else Mlp
            self.mix = feed_forward(width, hidden_dim or int(mlp_ratio * width), drop=drop_rate)
        elif layer == "attention_unprojected":
            self.mix = UnprojectedAttention()
        else:
            heads = 1 if self.transposed else num_heads  # N = 197 is prime: one head
            self.mix = Attention(width, heads, qkv_bias=True, proj_drop=drop_rate)

    def forward(self, x):
        if not self.norm_transposed:
            x = self.norm(x)
        if self.transposed:
            x = x.transpose(1, 2)  # (B, D, N)
        if self.norm_transposed:
            x = self.norm(x)
        x = self.mix(x)
        return x.transpose(1, 2) if self.transposed else x

    def resample(self, old: Grid, new: Grid, num_prefix_tokens: int) -> None:
        """Work on another grid of patches: what runs along them is resampled."""
        if self.norm_transposed and isinstance(self.norm, nn.LayerNorm):
            resample_norm(self.norm, old, new, num_prefix_tokens)
        if self.transposed and isinstance(self.mix, Mlp):
            resample_mlp(self.mix, old, new, num_prefix_tokens)


class Block(nn.Module):
    """Mix the features within every patch and the patches within every feature (Figure 2). (B, N, D) -> (B, N, D)."""

    def __init__(self, patches, features, patches_first, patch_hidden_dim, patch_norm, drop_path, **shape):
        super().__init__()
        self.mix_features = Branch("features", features, **shape)
        self.mix_patches = Branch("patches", patches, hidden_dim=patch_hidden_dim, norm=patch_norm, **shape)
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
