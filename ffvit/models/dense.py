"""Models that say where: detection, instance and semantic segmentation, on the four maps of any backbone of timm.

The official code of LIT (github.com/ziplab/LIT at 742e961) builds them with mmdetection and mmsegmentation; here they are
torchvision's RetinaNet and Mask R-CNN, and a head of our own for Semantic FPN, with the published settings. Made by
`timm.create_model("retinanet_lit_ti")`, after `import ffvit.models`; `timm.create_model("retinanet", backbone="resnet18")`
puts another backbone under the same head.

As in mmdetection, other than torchvision has it: anchors are not rounded, and lie a stride apart; P7 is made of P6 as
it is, without a ReLU; 100 detections an image; 1,000 proposals in training; regions and their masks are aligned to half
a pixel, and sampled as densely as they are large; masks are pasted at the middles of pixels; the background has neither
box nor mask, which would be 4,357 parameters more.
As in torchvision, and other than mmdetection 2.11 has it: RetinaNet's loss is a mean over images of one over boxes, not
one over the batch, and it keeps of each map the 1,000 surest pairs of anchor and class, not anchors; Mask R-CNN's
losses of boxes are smooth below 1/9, and its head on regions has no matches of low quality. Images without objects are
trained on, which mmdetection leaves out. Of segmentation, the loss is the mean over the pixels that have a class;
mmsegmentation 0.13 divides by all of them.
Classes count from 0, the background not among them, in targets and in detections, of both detectors alike. Images come
with mean and spread taken out, as all of timm's models have them; torchvision's detectors would do it themselves.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ffvit.models.exported import register_model
from ffvit.models.on_pyramid import OnPyramid
from ffvit.models.pyramid import P6P7, RATIOS, STRIDES, WIDTH, AlignedRoIAlign, Anchors, Pyramid, body_of
from ffvit.models.regions import RegionHeads, Sizes
from ffvit.system.errors import InputError


class BoxPredictor(FastRCNNPredictor):
    """Scores with the background first, and boxes for all classes but that."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__(in_channels, num_classes + 1)
        self.bbox_pred = nn.Linear(in_channels, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores, F.pad(deltas, (4, 0))


class MaskPredictor(MaskRCNNPredictor):
    """Masks for all classes, with an empty one for the background in front."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(super().forward(x), (0, 0, 0, 0, 1, 0))


class Detector(OnPyramid, RetinaNet):
    """RetinaNet, with classes from 0."""

    task = "detection"
    OFFICIAL = (
        ("neck.fpn_convs.3.conv.", "backbone.fpn.extra_blocks.p6."),
        ("neck.fpn_convs.4.conv.", "backbone.fpn.extra_blocks.p7."),
        ("bbox_head.cls_convs.{}.conv.", "head.classification_head.conv.{}.0."),
        ("bbox_head.reg_convs.{}.conv.", "head.regression_head.conv.{}.0."),
        ("bbox_head.retina_cls.", "head.classification_head.cls_logits."),
        ("bbox_head.retina_reg.", "head.regression_head.bbox_reg."),
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.transform.__class__ = Sizes  # torchvision makes it by itself: it keeps its sizes

    def forward_alike(self, x: Tensor) -> Any:
        return self.head([*self.backbone(x).values()])


class Segmenter(OnPyramid, MaskRCNN):
    """Mask R-CNN, with classes from 0 as RetinaNet has them: torchvision's begin with the background."""

    task = "instance_segmentation"
    OFFICIAL = (
        ("rpn_head.rpn_conv.", "rpn.head.conv.0.0."),
        ("rpn_head.rpn_cls.", "rpn.head.cls_logits."),
        ("rpn_head.rpn_reg.", "rpn.head.bbox_pred."),
        ("roi_head.bbox_head.shared_fcs.0.", "roi_heads.box_head.fc6."),
        ("roi_head.bbox_head.shared_fcs.1.", "roi_heads.box_head.fc7."),
        ("roi_head.bbox_head.fc_cls.", "roi_heads.box_predictor.cls_score."),
        ("roi_head.bbox_head.fc_reg.", "roi_heads.box_predictor.bbox_pred."),
        ("roi_head.mask_head.convs.{}.conv.", "roi_heads.mask_head.{}.0."),
        ("roi_head.mask_head.upsample.", "roi_heads.mask_predictor.conv5_mask."),
        ("roi_head.mask_head.conv_logits.", "roi_heads.mask_predictor.mask_fcn_logits."),
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # torchvision makes both by itself: they keep what they are made of.
        self.roi_heads.__class__ = RegionHeads
        self.transform.__class__ = Sizes

    def forward_alike(self, x: Tensor) -> Any:
        return self.rpn.head([*self.backbone(x).values()])

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        if targets is not None:
            targets = [target | {"labels": target["labels"] + 1} for target in targets]
        result = super().forward(images, targets)
        if self.training:
            return result
        return [found | {"labels": found["labels"] - 1} for found in result]


class SemanticFPN(OnPyramid, nn.Module):
    """A class for every pixel, from the sum of the pyramid's maps (Kirillov et al. 2019, arXiv:1901.02446, Figure 3).

    Each map goes through convolutions of 3x3 with batch norm and ReLU, doubling in size after each until it has the finest
    one's, as in mmsegmentation's FPNHead.
    """

    task = "semantic_segmentation"
    OFFICIAL = (
        *((f"decode_head.scale_heads.{{}}.{2 * unit}.conv.", f"branches.{{}}.{unit}.0.") for unit in range(3)),
        *((f"decode_head.scale_heads.{{}}.{2 * unit}.bn.", f"branches.{{}}.{unit}.1.") for unit in range(3)),
        ("decode_head.conv_seg.", "head."),
    )

    def __init__(
        self,
        backbone: Pyramid,
        num_classes: int,
        width: int,
        drop_rate: float,
        norm: Callable[..., nn.Module] = nn.BatchNorm2d,
    ):
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.branches = nn.ModuleList(
            nn.ModuleList(
                self._unit(backbone.out_channels if i == 0 else width, width, norm) for i in range(max(1, level))
            )
            for level in range(len(STRIDES))
        )
        self.drop = nn.Dropout2d(drop_rate)
        self.head = nn.Conv2d(width, num_classes, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    @staticmethod
    def _unit(in_channels: int, width: int, norm: Callable[..., nn.Module]) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU(inplace=True)
        )

    def forward_alike(self, x: Tensor) -> Tensor:
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) images -> (B, num_classes, H, W) logits."""
        height, width = x.shape[2:]
        # Of a very long image, the short side may be less than the coarsest map's stride: that is padded, and cut off.
        x = F.pad(x, (0, max(0, STRIDES[-1] - width), 0, max(0, STRIDES[-1] - height)))
        maps = list(self.backbone(x).values())
        total = torch.zeros((), device=x.device)
        for level, image in enumerate(maps):
            for unit in cast(nn.ModuleList, self.branches[level]):
                image = unit(image)
                if level:
                    image = F.interpolate(image, scale_factor=2, mode="bilinear")
            # Sides that do not halve evenly come back a pixel too small or too large.
            total = total + F.interpolate(image, maps[0].shape[2:], mode="bilinear")
        return F.interpolate(self.head(self.drop(total)), x.shape[2:], mode="bilinear")[..., :height, :width]


# What timm.create_model passes on to every model, and is nothing here.
OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _split(kwargs: dict, backbone_args: dict | None) -> tuple[dict, dict]:
    """Arguments of the whole, and those of the backbone among them, which its own win over; without what is not given."""
    given = {name: value for name, value in kwargs.items() if value is not None and name not in OF_TIMM}
    of_body = {name: given.pop(name) for name in ("in_chans", "drop_path_rate") if name in given}
    if "img_size" in given:
        of_body["img_size"] = given["img_size"]
    return given, of_body | (backbone_args or {})


def _norm(width: int, wanted: bool) -> Callable[..., nn.Module] | None:
    """Groups of eight channels: the 32 of 256 that detectors from random weights have (arXiv:1811.08883, section 3.1)."""
    return partial(nn.GroupNorm, width // 8) if wanted else None


def _sizes(given: dict) -> dict:
    """What torchvision's detectors do to images: the short side as published, or img_size; no norm, see above."""
    short = given.pop("img_size", 800)
    return dict(min_size=short, max_size=round(short * 1333 / 800), image_mean=(0.0,), image_std=(1.0,)) | given


@register_model
def retinanet(
    pretrained: bool = False,
    num_classes: int = 80,
    backbone: str = "lit_ti",
    backbone_args: dict | None = None,
    width: int = WIDTH,
    anchor_scale: float = 4,
    group_norm: bool = False,
    drop_rate: float = 0.0,
    **kwargs,
) -> Detector:
    """RetinaNet (Lin et al. 2017, arXiv:1708.02002). pretrained: the backbone's weights.

    width: channels of pyramid and head. anchor_scale: pixels of an anchor's side for one of its map's stride.
    group_norm: in pyramid and head, to train from random weights (He et al. 2019, arXiv:1811.08883); published without.
    kwargs: img_size, in_chans, drop_path_rate; and torchvision's.
    In training: (images, targets with boxes and labels) -> losses; else images -> boxes, scores, labels, for each image.
    """
    given, of_body = _split(kwargs, dict(drop_rate=drop_rate) | (backbone_args or {}))
    body = body_of(backbone, STRIDES[1:], pretrained, of_body)
    strides = (*STRIDES[1:], 64, 128)
    sizes = tuple(tuple(anchor_scale * stride * 2 ** (i / 3) for i in range(3)) for stride in strides)
    norm = _norm(width, group_norm)
    pyramid = Pyramid(body, P6P7(body.feature_info.channels()[-1], width), width, norm)
    return Detector(
        pyramid,
        num_classes,
        anchor_generator=Anchors(sizes, RATIOS, strides),
        head=RetinaNetHead(width, len(RATIOS) * len(sizes[0]), num_classes, norm),
        **dict(detections_per_img=100) | _sizes(given),
    )


@register_model
def mask_rcnn(
    pretrained: bool = False,
    num_classes: int = 80,
    backbone: str = "lit_ti",
    backbone_args: dict | None = None,
    width: int = WIDTH,
    anchor_scale: float = 8,
    group_norm: bool = False,
    box_width: int = 1024,
    drop_rate: float = 0.0,
    **kwargs,
) -> Segmenter:
    """Mask R-CNN (He et al. 2017, arXiv:1703.06870). pretrained: the backbone's weights.

    width: channels of pyramid and mask head. box_width: of the two layers of the box head. Others: see retinanet, whose
    detections_per_img is torchvision's box_detections_per_img here; either will do.
    In training: (images, targets with boxes, labels and masks) -> losses; else images -> boxes, scores, labels, masks.
    """
    given, of_body = _split(kwargs, dict(drop_rate=drop_rate) | (backbone_args or {}))
    body = body_of(backbone, STRIDES, pretrained, of_body)
    strides = (*STRIDES, 64)
    sizes = tuple((float(anchor_scale * stride),) for stride in strides)
    names, norm = ["0", "1", "2", "3"], _norm(width, group_norm)
    given.setdefault("box_detections_per_img", given.pop("detections_per_img", 100))
    return Segmenter(
        Pyramid(body, LastLevelMaxPool(), width, norm),
        rpn_anchor_generator=Anchors(sizes, RATIOS, strides),
        box_roi_pool=AlignedRoIAlign(names, 7, sampling_ratio=0),
        box_head=TwoMLPHead(width * 7**2, box_width),
        box_predictor=BoxPredictor(box_width, num_classes),
        mask_roi_pool=AlignedRoIAlign(names, 14, sampling_ratio=0),
        mask_head=MaskRCNNHeads(width, (width,) * 4, 1, norm),
        mask_predictor=MaskPredictor(width, width, num_classes),
        **dict(rpn_post_nms_top_n_train=1000) | _sizes(given),
    )


@register_model
def semantic_fpn(
    pretrained: bool = False,
    num_classes: int = 150,
    backbone: str = "lit_ti",
    backbone_args: dict | None = None,
    width: int = WIDTH,
    head_width: int = 128,
    group_norm: bool = False,
    drop_rate: float = 0.1,
    **kwargs,
) -> SemanticFPN:
    """Semantic FPN. pretrained: the backbone's weights.

    width: channels of the pyramid. head_width: of the head. group_norm: see retinanet; in the head instead of batch norms.
    drop_rate: of the head's maps. kwargs: img_size, in_chans, drop_path_rate.
    """
    given, of_body = _split(kwargs, backbone_args)
    given.pop("img_size", None)
    body = body_of(backbone, STRIDES, pretrained, of_body)
    pyramid = Pyramid(body, None, width, _norm(width, group_norm))
    return SemanticFPN(
        pyramid, num_classes, head_width, drop_rate, _norm(head_width, group_norm) or nn.BatchNorm2d, **given
    )


# As in the official code: LIT-S norms what it gives out, and its tables are those of the size it is trained at.
TI = dict(img_size=224)
S_DETECTION = dict(img_size=800, output_norms=(2, 3, 4))
S_SEGMENTATION = dict(img_size=512, output_norms=(1, 2, 3, 4))
DROP_PATH = {"lit_ti": 0.1, "lit_s": 0.2}


def _on_lit(make: Any, backbone: str, published: dict, kwargs: dict) -> Any:
    if kwargs.get("backbone", backbone) != backbone:
        name = make.__name__
        raise InputError(f"{name}_{backbone} has backbone='{backbone}': for another, take the model '{name}'")
    if kwargs.get("drop_path_rate") is None:
        kwargs["drop_path_rate"] = DROP_PATH[backbone]
    return make(**kwargs | dict(backbone=backbone, backbone_args=published | (kwargs.get("backbone_args") or {})))


@register_model
def retinanet_lit_ti(pretrained=False, **kwargs) -> Detector:
    """RetinaNet on LIT-Ti: 29,621,708 parameters, box AP 41.6 on COCO (official README)."""
    return _on_lit(retinanet, "lit_ti", TI, dict(pretrained=pretrained, **kwargs))


@register_model
def retinanet_lit_s(pretrained=False, **kwargs) -> Detector:
    """RetinaNet on LIT-S: 38,904,292 parameters, box AP 41.6 on COCO (official README)."""
    return _on_lit(retinanet, "lit_s", S_DETECTION, dict(pretrained=pretrained, **kwargs))


@register_model
def mask_rcnn_lit_ti(pretrained=False, **kwargs) -> Segmenter:
    """Mask R-CNN on LIT-Ti: 39,539,144 parameters, box AP 42.0 and mask AP 39.1 on COCO (official README)."""
    return _on_lit(mask_rcnn, "lit_ti", TI, dict(pretrained=pretrained, **kwargs))


@register_model
def mask_rcnn_lit_s(pretrained=False, **kwargs) -> Segmenter:
    """Mask R-CNN on LIT-S: 48,240,096 parameters, box AP 42.9 and mask AP 39.6 on COCO (official README)."""
    return _on_lit(mask_rcnn, "lit_s", S_DETECTION, dict(pretrained=pretrained, **kwargs))


@register_model
def semantic_fpn_lit_ti(pretrained=False, **kwargs) -> SemanticFPN:
    """Semantic FPN on LIT-Ti: 23,638,382 parameters, mIoU 41.3 on ADE20K (official README)."""
    return _on_lit(semantic_fpn, "lit_ti", TI, dict(pretrained=pretrained, **kwargs))


@register_model
def semantic_fpn_lit_s(pretrained=False, **kwargs) -> SemanticFPN:
    """Semantic FPN on LIT-S: 31,850,502 parameters, mIoU 41.7 on ADE20K (official README)."""
    return _on_lit(semantic_fpn, "lit_s", S_SEGMENTATION, dict(pretrained=pretrained, **kwargs))
