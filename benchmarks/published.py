"""The report's Figure 2 (arXiv:2105.02723), as published: the baseline of speed.py.

Two feed-forward layers, two layer norms, two sums, and two transposes of everything in between. The figure's layers are
timm's Mlp and PyTorch's LayerNorm, so its block takes over those of ours, with their weights.
"""

from timm.layers import Mlp
from torch import Tensor, nn

from ffvit.models import ff


class PublishedBlock(nn.Module):
    """Features mixed within every patch, then patches within every feature. (B, N, D) -> (B, N, D)."""

    def __init__(self, block: ff.Block):
        super().__init__()
        self.norm1, self.mlp1 = block.mix_features.norm, block.mix_features.mix
        self.norm2, self.mlp2 = block.mix_patches.norm, block.mix_patches.mix
        self.drop_path = block.drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mlp1(self.norm1(x)))
        x = x.transpose(1, 2)  # (B, D, N)
        x = x + self.drop_path(Mlp.forward(self.mlp2, self.norm2(x)))  # timm's: ours has a way of its own
        return x.transpose(1, 2)


def as_published(model: ff.PatchFeatureMixer) -> ff.PatchFeatureMixer:
    """The same function with the same weights: an FF-only model whose blocks become Figure 2's, in place."""
    model.blocks = nn.ModuleList(PublishedBlock(block) for block in model.blocks)
    return model
