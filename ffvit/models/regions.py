"""Between an image and what a detector finds: its size, what Mask R-CNN learns of a mask, and how one is pasted.

Masks are, as in mmdetection, at pixels' middles throughout: torchvision's targets lie half a pixel beside the regions
that are read, and its pasting rounds boxes to whole pixels, which together costs small objects a fifth of their IoU.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import roi_align


class RegionHeads(RoIHeads):
    """torchvision's heads, whose masks learn aligned targets."""

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        read = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        of_class, of_box = fastrcnn_loss(*self.box_predictor(read), labels, deltas)
        objects = [torch.where(of_image > 0)[0] for of_image in labels]
        regions = [proposals[i][kept] for i, kept in enumerate(objects)]
        read = self.mask_head(self.mask_roi_pool(features, regions, image_shapes))
        logits = self.mask_predictor(read)
        wanted = torch.cat(
            [
                mask_targets(target["masks"], region, matched[i][objects[i]], logits.shape[-1])
                for i, (target, region) in enumerate(zip(targets or [], regions))
            ]
        )
        classes = torch.cat([of_image[kept] for of_image, kept in zip(labels, objects)])
        logits = logits[torch.arange(len(classes), device=classes.device), classes]
        # The mean over no region would be no number.
        of_mask = F.binary_cross_entropy_with_logits(logits, wanted) if len(classes) else logits.sum()
        return [], {"loss_classifier": of_class, "loss_box_reg": of_box, "loss_mask": of_mask}


def mask_targets(masks: Tensor, regions: Tensor, matched: Tensor, side: int) -> Tensor:
    """(objects, H, W) masks, (n, 4) boxes of regions, and the object of each -> (n, side, side), 0 or 1."""
    rois = torch.cat([matched[:, None].to(regions), regions], dim=1)
    found = roi_align(masks[:, None].to(rois), rois, side, sampling_ratio=0, aligned=True)
    return (found[:, 0] >= 0.5).to(rois)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """(n, 1, M, M) probabilities in boxes (n, 4) -> (n, 1, height, width): read at each pixel's middle, 0 outside."""
    found = masks.new_zeros(len(masks), 1, height, width, dtype=torch.float32)
    for i, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        left, right = max(0, math.floor(x0)), min(width, math.ceil(x1))
        top, bottom = max(0, math.floor(y0)), min(height, math.ceil(y1))
        x = (torch.arange(left, right, device=masks.device) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(top, bottom, device=masks.device) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        found[i, :, top:bottom, left:right] = F.grid_sample(masks[i][None].float(), grid[None], align_corners=False)[0]
    return found


class Sizes(GeneralizedRCNNTransform):
    """torchvision's: images to a model's size, and what it finds back to theirs."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """In proportion, but to no side of 0 pixels, as which torchvision has the short one of a very long image."""
        short, long = sorted(image.shape[-2:])
        if self.fixed_size or self.max_size * short >= long:
            return super().resize(image, target)
        height, width = (max(1, self.max_size * side // long) for side in image.shape[-2:])
        self.fixed_size: tuple[int, int] | None = (width, height)
        try:
            return super().resize(image, target)
        finally:
            self.fixed_size = None

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        masks = [found.pop("masks", None) for found in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        return [
            found if of_boxes is None else found | {"masks": paste(of_boxes, found["boxes"], *sides)}
            for found, of_boxes, sides in zip(result, masks, original_image_sizes)
        ]
