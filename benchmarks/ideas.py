"""Other ways to compute the same FF-only model, with the same weights, each tried by speed.py for its speed alone.

What each was expected to give, and what it gave, is in NOTES.md. Every one changes a model in place.
"""

import functools

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ffvit.models import ff


class OtherBlock(nn.Module):
    """A block that mixes features as ours does, and patches in a way of its own. No dropout, no stochastic depth."""

    def __init__(self, block: ff.Block, multiple: int = 8):
        """multiple: of what lengths are padded to; 8 numbers of bf16 are the 16 bytes that matrix units read at once."""
        super().__init__()
        self.mix_features = block.mix_features
        self.norm, self.mlp = block.mix_patches.norm, block.mix_patches.mix
        self.multiple = multiple

    def padding(self, length: int) -> int:
        return -length % self.multiple

    def weights(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(H', N), (H', 1), (N, H') and (N, 1): those over patches, with zeros for hidden units that fill a multiple.

        They give nothing: gelu(0) is 0. In the type that products have where `like` is. The first is stored by columns,
        so that the rows of both in memory are as long as there are hidden units.
        """
        more = self.padding(self.mlp.fc1.out_features)
        device = like.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
        first = F.pad(self.mlp.fc1.weight.t(), (0, more)).to(dtype).t()
        second = F.pad(self.mlp.fc2.weight, (0, more)).to(dtype)
        bias1, bias2 = F.pad(self.mlp.fc1.bias, (0, more)).to(dtype), self.mlp.fc2.bias.to(dtype)
        return first, bias1[:, None], second, bias2[:, None]

    def normed(self, x: Tensor, tokens: int) -> Tensor:
        """The layer norm over the axis that the tokens are on, where it lies."""
        shape = [-1 if axis == tokens else 1 for axis in range(3)]
        variance, mean = torch.var_mean(x, tokens, correction=0, keepdim=True)
        x = (x - mean) * torch.rsqrt(variance + self.norm.eps)
        return x * self.norm.weight.view(shape) + self.norm.bias.view(shape)


class TransposedBlock(OtherBlock):
    """Patches mixed by timm's Mlp, whose rows have as many numbers as there are tokens, or four times as many."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        x = x + self.mix_features(x)
        return x + Mlp.forward(self.mlp, self.norm(x.transpose(1, 2))).transpose(1, 2)


class PaddedBlock(OtherBlock):
    """The same over 200 tokens in place of 197 and 792 hidden units in place of 788."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        x = x + self.mix_features(x)
        fc1, fc2 = self.mlp.fc1, self.mlp.fc2
        tokens, more = self.padding(fc1.in_features), self.padding(fc1.out_features)
        y = F.pad(self.norm(x.transpose(1, 2)), (0, tokens))  # (B, D, N')
        y = F.gelu(F.linear(y, F.pad(fc1.weight, (0, tokens, 0, more)), F.pad(fc1.bias, (0, more))))
        y = F.linear(y, F.pad(fc2.weight, (0, more, 0, tokens)), F.pad(fc2.bias, (0, tokens)))
        return x + y[..., : fc1.in_features].transpose(1, 2)


class BatchedBlock(OtherBlock):
    """Patches mixed as W @ x, a product for every image, whose rows are as long as there are features."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        x = x + self.mix_features(x)
        first, bias1, second, bias2 = self.weights(x)
        y = self.normed(x, tokens=1).to(first.dtype)
        y = F.gelu(torch.bmm(first.expand(len(x), -1, -1), y) + bias1)  # (B, H', D)
        y = torch.bmm(second.expand(len(x), -1, -1), y)
        return x + (y + bias2)


class TokensFirstBlock(OtherBlock):
    """Patches mixed as W @ x, one product for the whole batch, whose rows are as long as it has features in all."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, B, D) -> (N, B, D)"""
        x = x + self.mix_features(x)
        first, bias1, second, bias2 = self.weights(x)
        y = self.normed(x, tokens=0).to(first.dtype).flatten(1)  # (N, B * D)
        y = F.gelu(first @ y + bias1)  # (H', B * D)
        y = second @ y + bias2
        return x + y.view_as(x)


class SwapTokensAndImages(nn.Module):
    """(B, N, D) -> (N, B, D), and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1).contiguous()


class ProductsKept(nn.Module):
    """A block of which only products are kept for the backward pass; norms, GELU and sums are computed again there."""

    PRODUCTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        contexts = functools.partial(create_selective_checkpoint_contexts, self.PRODUCTS)
        return checkpoint(self.block, x, use_reentrant=False, context_fn=contexts)


def with_transposes(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    return _exchanged(model, TransposedBlock)


def with_padded_tokens(model: ff.PatchFeatureMixer, multiple: int) -> ff.PatchFeatureMixer:
    return _exchanged(model, functools.partial(PaddedBlock, multiple=multiple))


def by_a_product_an_image(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    return _exchanged(model, BatchedBlock)


def with_tokens_first(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    model = _exchanged(model, TokensFirstBlock)
    model.blocks = nn.ModuleList([SwapTokensAndImages(), *model.blocks, SwapTokensAndImages()])
    return model


def with_products_kept(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    return _exchanged(model, ProductsKept)


def without_dropout(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    """Nothing in place of dropout and stochastic depth, whose rates are 0 then."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout | DropPath):
                setattr(module, name, nn.Identity())
    return model


def _exchanged(model: ff.PatchFeatureMixer, block_of) -> ff.PatchFeatureMixer:
    model.blocks = nn.ModuleList(block_of(block) for block in model.blocks)
    return model
