"""The models. Importing this registers all of them with timm, which makes them by name."""

from ffvit.models import ff, lit
from ffvit.models.weights import load_weights

__all__ = ["ff", "lit", "load_weights"]
