"""Reproducible companion to "Do You Even Need Attention?" (arXiv:2105.02723).

Importing the package registers its models with timm: `timm.create_model("ff_tiny_patch16_224")`.
"""

import warnings

# Progress is printed as plain lines, which a log can hold; tqdm need not ask for widgets.
warnings.filterwarnings("ignore", message="IProgress not found")

from ffvit import lit, models  # noqa: E402  registers the models with timm
from ffvit.checkpoint import load_weights  # noqa: E402

__all__ = ["lit", "load_weights", "models"]
