"""Reproducible companion to "Do You Even Need Attention?" (arXiv:2105.02723).

Importing the package registers its models with timm: `timm.create_model("ff_tiny_patch16_224")`.
"""

from ffvit import models  # registers the models with timm
from ffvit.checkpoint import load_weights

__all__ = ["load_weights", "models"]
