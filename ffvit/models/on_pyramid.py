"""What detectors and segmentation have from the backbone under them: its image size, checkpointing, weights, and names in files."""

import re
from pathlib import Path
from typing import Any, cast

from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from ffvit.models.pyramid import STRIDES
from ffvit.system.errors import InputError


class OnPyramid:
    """Of a model whose `backbone` is a ffvit.models.pyramid.Pyramid."""

    backbone: Any
    task: str  # that it is for, see ffvit.tasks
    BACKBONE = "backbone.body.model."  # of its parameters' names
    # Patterns of names in the official checkpoints, and ours; {} is a number that both have.
    OFFICIAL: tuple[tuple[str, str], ...] = ()

    def forward_alike(self, x: Tensor) -> Any:
        """What costs the same for every image (B, 3, H, W): of Mask R-CNN not the heads on regions, of which there are few or many."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the backbone's activations twice, which takes less memory."""
        body = self.backbone.body
        whole: Any = body.model if isinstance(body, FeatureGetterNet) else body
        whole.set_grad_checkpointing(enable)

    # Of another image size, see ffvit.models.resample; backbones that have none take images of any
    @property
    def patch_embed(self) -> Any:
        return self.backbone.body.model.patch_embed

    @property
    def img_size(self) -> tuple[int, int]:
        return self.backbone.body.model.img_size

    @property
    def grid_size(self) -> tuple[int, int]:
        return self.backbone.body.model.grid_size

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        self.backbone.body.model.set_input_size(img_size)

    def grid_in(self, state: dict[str, Tensor]) -> tuple[int, int] | None:
        whole: Any = getattr(self.backbone.body, "model", None)
        prefix = self.BACKBONE
        if not hasattr(whole, "grid_in"):
            return None
        return whole.grid_in({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)})

    def from_official(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """mmdetection's and mmsegmentation's names under ours, each key, known or not; ours stay as they are."""
        if not any(key.startswith(("neck.", "decode_head.")) for key in state):
            return state
        return dict(self._renamed(key, value) for key, value in state.items())

    def with_backbone(self, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The weights of a classification model as the backbone's, among the model's own others; a whole model's as they are.

        What a backbone has not, a classifier and its norm, is left out. Raises InputError where the file lacks what it has.
        """
        if any(key.startswith("backbone.") for key in state):
            return state
        own = cast(nn.Module, self).state_dict()
        theirs = {f"{self.BACKBONE}{key}": value for key, value in state.items() if f"{self.BACKBONE}{key}" in own}
        new = tuple(f"{self.BACKBONE}norm{i}." for i in range(len(STRIDES)))  # output norms, which no classifier has
        missing = [
            key for key in own if key.startswith(self.BACKBONE) and key not in theirs and not key.startswith(new)
        ]
        if missing := [key for key in missing if not key.endswith("relative_position_index")]:
            raise InputError(
                f"{path}: neither the weights of such a model nor of its backbone: {missing[0].removeprefix(self.BACKBONE)} is missing"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        return own | theirs

    def _renamed(self, key: str, value: Tensor) -> tuple[str, Tensor]:
        patterns = (*self.OFFICIAL, *NECK, ("backbone.", self.BACKBONE))
        for theirs, ours in patterns:
            pattern = re.escape(theirs).replace(re.escape("{}"), r"(\d+)")
            if found := re.match(pattern, key):
                key = ours.format(*found.groups()) + key[found.end() :]
                break
        if key.startswith("roi_heads.box_predictor.cls_score."):
            value = value.roll(1, 0)  # the background comes last in mmdetection, first in torchvision
        return key, value


NECK = (
    ("neck.lateral_convs.{}.conv.", "backbone.fpn.inner_blocks.{}.0."),
    ("neck.fpn_convs.{}.conv.", "backbone.fpn.layer_blocks.{}.0."),
)
