"""The models. Importing this registers all of them with timm, which makes them by name."""

from ffvit.models import dense, ff, lit
from ffvit.models.weights import load_weights

__all__ = ["dense", "ff", "lit", "load_weights"]
