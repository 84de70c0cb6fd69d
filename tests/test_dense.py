"""Detection and segmentation: parameters of the published models, parts against what they stand for, one step of learning."""

import math
import re

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, roi_align

import ffvit.models  # noqa: F401  registers them
from ffvit.data.dense import masks as rle
from ffvit.data.dense import scenes
from ffvit.models import dense, pyramid, regions
from ffvit.models.weights import load_weights, save_weights
from ffvit.system.errors import InputError

PARAMETERS = {
    "retinanet_lit_ti": 29_621_708,
    "retinanet_lit_s": 38_904_292,
    "mask_rcnn_lit_ti": 39_539_144,
    "mask_rcnn_lit_s": 48_240_096,
    "semantic_fpn_lit_ti": 23_638_382,
    "semantic_fpn_lit_s": 31_850_502,
}
NARROW = dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2), img_size=64)
SMALL = dict(num_classes=3, backbone_args=NARROW)
DETECTORS = ["retinanet_lit_ti", "mask_rcnn_lit_ti"]


def small(name: str, **more) -> nn.Module:
    torch.manual_seed(0)
    size = {} if name.startswith("semantic") else dict(min_size=64, max_size=64)
    if name.startswith("mask"):
        size |= dict(rpn_post_nms_top_n_train=50, rpn_post_nms_top_n_test=50, box_batch_size_per_image=16)
    return timm.create_model(name, **SMALL | size | more)


def scene(side: int = 64) -> tuple[torch.Tensor, dict]:
    """An image of two bright squares, and where they are."""
    image, masks = torch.rand(3, side, side) / 4, torch.zeros(2, side, side, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 8, 28, 32], [36, 30, 60, 54]])
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = 1
        image[:, y0:y1, x0:x1] = 1
    return image, dict(boxes=boxes, labels=torch.tensor([0, 2]), masks=masks)


@pytest.mark.parity("the counts of mmdetection's and mmsegmentation's models")
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_published_models_have_exactly_their_parameters(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_learns_in_every_parameter_and_finds_boxes_of_classes_from_0(name):
    model = small(name)
    image, target = scene()
    losses = model([image, image], [target, target])
    sum(losses.values()).backward()
    still = [key for key, p in model.named_parameters() if p.grad is None]
    assert all(math.isfinite(loss.item()) for loss in losses.values()) and not still
    with torch.no_grad():
        [found] = model.eval()([image])
    assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["labels"]) <= 100
    assert set(found["labels"].tolist()) <= {0, 1, 2}
    with torch.no_grad():
        assert model([torch.rand(3, 64, 40), torch.rand(3, 33, 64)])[0]["boxes"].shape[1] == 4  # sides that differ


def test_mask_rcnn_says_the_same_classes_as_it_is_told():
    """Trained on nothing but scores set by hand: the class that torchvision calls 1 is our 0."""
    model = small("mask_rcnn_lit_ti", box_score_thresh=0.5).eval()
    predictor = model.roi_heads.box_predictor
    nn.init.zeros_(predictor.cls_score.weight)
    predictor.cls_score.bias.data = torch.tensor([-9.0, 9.0, -9.0, -9.0])  # the background, then ours
    with torch.no_grad():
        [found] = model([scene()[0]])
    assert len(found["labels"]) and set(found["labels"].tolist()) == {0}


def test_the_background_has_neither_box_nor_mask():
    boxes, masks = dense.BoxPredictor(8, 3), dense.MaskPredictor(8, 8, 3)
    scores, deltas = boxes(torch.randn(2, 8))
    assert scores.shape == (2, 4) and deltas.shape == (2, 16) and not deltas[:, :4].any() and deltas[:, 4:].all()
    shown = masks(torch.randn(2, 8, 14, 14))
    assert shown.shape == (2, 4, 28, 28) and not shown[:, 0].any() and shown[:, 1:].any()


def iou(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


@torch.no_grad()
def test_a_mask_that_is_learned_perfectly_comes_back_as_it_was(monkeypatch):
    monkeypatch.setattr(scenes, "SCENES", {"train": 20, "validation": 1, "test": 1})
    found = []
    for objects in scenes.make_scenes()["train"]["objects"]:
        drawn = torch.stack([torch.from_numpy(rle.decode(text, 64, 64)) for text in objects["segmentation"]])
        boxes = torch.tensor(objects["bbox"])
        boxes[:, 2:] += boxes[:, :2]
        learned = regions.mask_targets(drawn, boxes.float(), torch.arange(len(boxes)), 28)
        pasted = regions.paste(learned[:, None], boxes, 64, 64)[:, 0] >= 0.5
        found += [iou(one, other) for one, other in zip(pasted, drawn.bool())]
    assert len(found) > 40 and min(found) > 0.99  # torchvision's targets and pasting: 0.81 in the mean

    # An ellipse of many more pixels than a mask has, in a box between pixels, and one that the image cuts off.
    y, x = torch.meshgrid(torch.arange(200) + 0.5, torch.arange(300) + 0.5, indexing="ij")
    large = (((x - 140.3) / 110) ** 2 + ((y - 100.7) / 80) ** 2 <= 1)[None]
    for box in ([30.3, 20.7, 250.3, 180.7], [0.0, 0.0, 140.5, 200.0]):
        within = large & (x < box[2])
        learned = regions.mask_targets(within.byte(), torch.tensor([box]), torch.tensor([0]), 28)
        pasted = regions.paste(learned[:, None], torch.tensor([box]), 200, 300)
        assert pasted.shape == (1, 1, 200, 300) and iou(pasted[0] >= 0.5, within) > 0.96  # of 28 x 28


@pytest.mark.parity("mmdetection's pasting, written down")
@torch.no_grad()
def test_masks_are_pasted_as_mmdetection_pastes_them():
    """_do_paste_mask of mmdet 2: the whole image as one grid over all boxes."""
    torch.manual_seed(0)
    boxes = torch.tensor(
        [[3.2, 4.9, 20.1, 33.3], [0.0, 0.0, 64.0, 48.0], [40.5, 10.0, 41.2, 47.99], [63.4, 47.5, 64, 48]]
    )
    masks = torch.rand(4, 1, 28, 28)
    x0, y0, x1, y1 = boxes.split(1, dim=1)
    x = (torch.arange(64) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(48) + 0.5 - y0) / (y1 - y0) * 2 - 1
    grid = torch.stack([x[:, None].expand(4, 48, 64), y[:, :, None].expand(4, 48, 64)], dim=3)
    wanted = F.grid_sample(masks, grid, align_corners=False)
    found = regions.paste(masks, boxes, 48, 64)
    assert torch.equal(found >= 0.5, wanted >= 0.5) and (wanted >= 0.5).flatten(1).any(1)[:2].all()
    torch.testing.assert_close(found[found > 0], wanted[found > 0], atol=1e-4, rtol=0)


def test_mask_rcnn_learns_the_masks_of_its_regions_and_pastes_what_it_finds(monkeypatch):
    model = small("mask_rcnn_lit_ti", detections_per_img=3)
    image, target = scene()
    learned, pasted = [], []
    monkeypatch.setattr(
        regions, "mask_targets", lambda *of, made=regions.mask_targets: learned.append(made(*of)) or learned[-1]
    )
    monkeypatch.setattr(regions, "paste", lambda *of, made=regions.paste: pasted.append(made(*of)) or pasted[-1])
    empty = target | {key: target[key][:0] for key in ("boxes", "labels", "masks")}
    losses = model([image, image], [target, empty])
    assert len(learned[0]) and not len(learned[1]) and learned[0].mean() > 0.2
    assert {*losses} == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}
    assert model([image], [empty])["loss_mask"] == 0
    with torch.no_grad():
        [found] = model.eval()([torch.rand(3, 50, 40)])
    assert torch.equal(found["masks"], pasted[0]) and found["masks"].shape == (3, 1, 50, 40)


def test_anchors_are_of_the_very_size_asked_for():
    [[first, *_], *_] = [small("retinanet_lit_ti").anchor_generator.cell_anchors[:1]]
    wide, high = (first[:, 2] - first[:, 0]).view(3, 3), (first[:, 3] - first[:, 1]).view(3, 3)
    sizes = 4 * 8 * 2 ** (torch.arange(3) / 3)
    torch.testing.assert_close((wide * high).sqrt(), sizes.expand(3, 3))
    torch.testing.assert_close(high / wide, torch.tensor([0.5, 1, 2])[:, None].expand(3, 3))
    assert first[1, 2] != first[1, 2].round()  # torchvision's are whole pixels
    five = small("mask_rcnn_lit_ti").rpn.anchor_generator.cell_anchors
    assert [round(float(cell[1, 2] - cell[1, 0])) for cell in five] == [8 * s for s in (4, 8, 16, 32, 64)]


@pytest.mark.parametrize("name, finest", [("retinanet_lit_ti", 8), ("mask_rcnn_lit_ti", 4)])
@torch.no_grad()
def test_anchors_lie_a_stride_apart_where_images_are_no_multiple_of_it(name, finest):
    """800 x 1344 pixels make 7 x 11 of P7: torchvision divides, and has strides of 114 and 122 for 128."""
    model = small(name)
    made = model.rpn.anchor_generator if name.startswith("mask") else model.anchor_generator
    strides = [finest << i for i in range(5)]
    maps = [torch.zeros(1, 1, math.ceil(800 / stride), math.ceil(1344 / stride)) for stride in strides]
    [boxes] = made(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1333)]), maps)
    of_maps = boxes.split([made.num_anchors_per_location()[0] * image[0, 0].numel() for image in maps])
    for stride, image, anchors in zip(strides, maps, of_maps):
        middles = ((anchors[:, :2] + anchors[:, 2:]) / 2).view(*image.shape[2:], -1, 2)
        x, y = torch.meshgrid(*(torch.arange(side) * float(stride) for side in image.shape[:1:-1]), indexing="xy")
        wanted = torch.stack([x, y], dim=-1)[:, :, None]
        torch.testing.assert_close(middles, wanted.expand_as(middles), atol=1e-3, rtol=0)


@pytest.mark.parametrize("height", [22, 33, 45, 65, 67])
def test_regions_of_small_images_are_read_from_where_they_are(height):
    """A batch is padded to 32 pixels: its finest map is larger than a quarter of the image."""
    padded = 32 * math.ceil(height / 32)
    maps = {str(i): torch.randn(1, 2, padded >> (2 + i), padded >> (2 + i)) for i in range(4)}
    boxes = [torch.tensor([[2.0, 2, 20, 20]])]
    found = pyramid.AlignedRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=0)(maps, boxes, [(height, height)])
    torch.testing.assert_close(found, roi_align(maps["0"], boxes, 7, 1 / 4, 0, True))


def test_regions_are_read_from_the_map_of_their_size_and_aligned():
    maps = {str(i): torch.randn(2, 4, 256 >> i, 192 >> i) for i in range(4)}
    boxes = [torch.tensor([[3.0, 5, 40, 70], [0, 0, 600, 500.5]]), torch.tensor([[100.0, 90, 300, 380]])]
    shapes = [(1024, 768), (1000, 700)]
    found = pyramid.AlignedRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=0)(maps, boxes, shapes)
    # sides of 49, 548 and 241 pixels: from the maps of stride 4, 32 and 16
    wanted = [
        roi_align(maps[str(i)], [box if n == of else box[:0] for n in (0, 1)], 7, 1 / (4 << i), 0, True)
        for i, of, box in ((0, 0, boxes[0][:1]), (3, 0, boxes[0][1:]), (2, 1, boxes[1]))
    ]
    torch.testing.assert_close(found, torch.cat(wanted))
    plain = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)(maps, boxes, shapes)
    assert plain.shape == found.shape and not torch.allclose(plain, found, atol=1e-3)


@torch.no_grad()
def test_retinanets_coarse_maps_are_of_the_last_map_and_without_a_relu():
    extra = pyramid.P6P7(256, 256)  # torchvision's takes the pyramid's map where it is as wide
    last = torch.randn(1, 256, 8, 8)
    results, names = extra([torch.randn(1, 256, 8, 8)], [torch.randn(1, 128, 16, 16), last], ["2"])
    p6 = F.conv2d(last, extra.p6.weight, extra.p6.bias, 2, 1)
    torch.testing.assert_close(results[1:], [p6, F.conv2d(p6, extra.p7.weight, extra.p7.bias, 2, 1)])
    assert names == ["2", "p6", "p7"]


@pytest.mark.parametrize("size", [(64, 64), (40, 72), (67, 45)])
def test_semantic_fpn_gives_every_pixel_a_score_for_every_class_and_learns_in_every_parameter(size):
    model = small("semantic_fpn_lit_ti")
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 300), (5, 1000)])
def test_very_long_images_are_resized_to_a_pixel_at_least(name, size):
    """At 64 x 64 pixels and at most 107, the short side of 5 x 1000 pixels would have half a pixel."""
    model = small(name)
    height, width = size
    box = dict(boxes=torch.tensor([[0.0, 0, width, height]]), labels=torch.tensor([0]))
    losses = model([torch.rand(3, *size)], [box | dict(masks=torch.ones(1, *size, dtype=torch.uint8))])
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    with torch.no_grad():
        [found] = model.eval()([torch.rand(3, *size)])
    assert (found["boxes"][:, 2] <= width + 1e-3).all() and (found["boxes"][:, 3] <= height + 1e-3).all()
    assert "masks" not in found or found["masks"].shape[2:] == size
    assert model.transform.fixed_size is None


@torch.no_grad()
def test_semantic_fpn_pads_what_a_long_image_lacks_of_a_stride():
    model = small("semantic_fpn_lit_ti").eval()
    image = torch.randn(1, 3, 22, 96)
    torch.testing.assert_close(model(image), model(F.pad(image, (0, 0, 0, 10)))[:, :, :22])
    assert model(image[..., :1, :1]).shape == (1, 3, 1, 1)


@torch.no_grad()
def test_semantic_fpn_is_the_sum_of_its_branches():
    model = small("semantic_fpn_lit_ti").eval()
    images = torch.randn(1, 3, 64, 64)
    total = 0
    for level, image in enumerate(model.backbone(images).values()):
        for conv, norm, relu in model.branches[level]:
            image = relu(norm(conv(image)))
            image = F.interpolate(image, scale_factor=2, mode="bilinear") if level else image
        total = total + image
    assert [len(units) for units in model.branches] == [1, 1, 2, 3] and total.shape[2:] == (16, 16)
    wanted = F.interpolate(model.head(total), (64, 64), mode="bilinear")
    torch.testing.assert_close(model(images), wanted)


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "semantic_fpn"])
def test_another_backbone_goes_under_the_same_head(name):
    with torch.device("meta"):
        model = timm.create_model(name, backbone="resnet18", num_classes=3)
    strides = [8, 16, 32] if name == "retinanet" else [4, 8, 16, 32]
    assert model.backbone.body.feature_info.reduction() == strides
    with pytest.raises(InputError, match="'ff_tiny_patch16_224' has maps of strides .16, 16, 16., and"):
        timm.create_model(name, backbone="ff_tiny_patch16_224")
    with pytest.raises(InputError, match="'resnet19' is unknown to timm"):
        timm.create_model(name, backbone="resnet19")
    with pytest.raises(InputError, match=f"{name}_lit_ti has backbone='lit_ti': for another, take the model '{name}'"):
        timm.create_model(f"{name}_lit_ti", backbone="resnet18")


@pytest.mark.parametrize("name", PARAMETERS)
def test_activation_checkpointing_reaches_the_backbone(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    model.set_grad_checkpointing(True)
    assert model.backbone.body.model.grad_checkpointing


OFFICIAL = {  # ours, and what mmdetection and mmsegmentation call it
    "backbone.fpn.inner_blocks.2.0.weight": "neck.lateral_convs.2.conv.weight",
    "backbone.fpn.layer_blocks.0.0.bias": "neck.fpn_convs.0.conv.bias",
    "backbone.fpn.extra_blocks.p7.weight": "neck.fpn_convs.4.conv.weight",
    "backbone.body.model.block3.0.attn.qkv.weight": "backbone.block3.0.attn.qkv.weight",
    "head.classification_head.conv.3.0.bias": "bbox_head.cls_convs.3.conv.bias",
    "head.classification_head.cls_logits.weight": "bbox_head.retina_cls.weight",
    "head.regression_head.conv.0.0.weight": "bbox_head.reg_convs.0.conv.weight",
    "head.regression_head.bbox_reg.bias": "bbox_head.retina_reg.bias",
    "rpn.head.conv.0.0.weight": "rpn_head.rpn_conv.weight",
    "rpn.head.cls_logits.bias": "rpn_head.rpn_cls.bias",
    "rpn.head.bbox_pred.weight": "rpn_head.rpn_reg.weight",
    "roi_heads.box_head.fc6.weight": "roi_head.bbox_head.shared_fcs.0.weight",
    "roi_heads.box_head.fc7.bias": "roi_head.bbox_head.shared_fcs.1.bias",
    "roi_heads.box_predictor.cls_score.weight": "roi_head.bbox_head.fc_cls.weight",
    "roi_heads.box_predictor.bbox_pred.weight": "roi_head.bbox_head.fc_reg.weight",
    "roi_heads.mask_head.2.0.weight": "roi_head.mask_head.convs.2.conv.weight",
    "roi_heads.mask_predictor.conv5_mask.weight": "roi_head.mask_head.upsample.weight",
    "roi_heads.mask_predictor.mask_fcn_logits.bias": "roi_head.mask_head.conv_logits.bias",
    "branches.3.2.0.weight": "decode_head.scale_heads.3.4.conv.weight",
    "branches.1.0.1.running_mean": "decode_head.scale_heads.1.0.bn.running_mean",
    "head.weight": "decode_head.conv_seg.weight",
}
THEIRS = [  # how theirs become ours, in the other direction, for files made here
    *((r"backbone\.body\.model\.", "backbone."), (r"backbone\.fpn\.inner_blocks\.(\d)\.0", r"neck.lateral_convs.\1.conv")),
    *((r"backbone\.fpn\.layer_blocks\.(\d)\.0", r"neck.fpn_convs.\1.conv"),),
    *((rf"backbone\.fpn\.extra_blocks\.p{i + 3}", rf"neck.fpn_convs.{i}.conv") for i in (3, 4)),
    *((rf"head\.{long}_head\.conv\.(\d)\.0", rf"bbox_head.{short}_convs.\1.conv")
      for long, short in (("classification", "cls"), ("regression", "reg"))),
    *((r"head\.classification_head\.cls_logits", "bbox_head.retina_cls"),),
    *((r"head\.regression_head\.bbox_reg", "bbox_head.retina_reg"), (r"rpn\.head\.conv\.0\.0", "rpn_head.rpn_conv")),
    *((r"rpn\.head\.cls_logits", "rpn_head.rpn_cls"), (r"rpn\.head\.bbox_pred", "rpn_head.rpn_reg")),
    *((rf"roi_heads\.box_head\.fc{i + 6}", f"roi_head.bbox_head.shared_fcs.{i}") for i in (0, 1)),
    *((rf"roi_heads\.box_predictor\.{ours}", f"roi_head.bbox_head.{fc}")
      for ours, fc in (("cls_score", "fc_cls"), ("bbox_pred", "fc_reg"))),
    *((r"roi_heads\.mask_head\.(\d)\.0", r"roi_head.mask_head.convs.\1.conv"),),
    *((r"roi_heads\.mask_predictor\.conv5_mask", "roi_head.mask_head.upsample"),),
    *((r"roi_heads\.mask_predictor\.mask_fcn_logits", "roi_head.mask_head.conv_logits"),),
    *((rf"branches\.(\d)\.{i}\.0", rf"decode_head.scale_heads.\1.{2 * i}.conv") for i in range(3)),
    *((rf"branches\.(\d)\.{i}\.1", rf"decode_head.scale_heads.\1.{2 * i}.bn") for i in range(3)),
    *((r"head\.(?=weight|bias)", "decode_head.conv_seg."),),
]  # fmt: skip


def official(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model as the official code would have written them."""
    found = {}
    for key, value in model.state_dict().items():
        pattern, theirs = next((p, t) for p, t in THEIRS if re.match(p, key))
        if "cls_score" in key:
            value = value.roll(-1, 0)
        found[re.sub(f"^{pattern}", theirs, key)] = value
    return found


@pytest.mark.parity("the names of mmdetection's and mmsegmentation's files")
@pytest.mark.parametrize("name", [*DETECTORS, "semantic_fpn_lit_ti"])
def test_official_checkpoints_load_by_the_names_of_their_parts(name, tmp_path):
    model = small(name, num_classes=4)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn_like(value) / 20).abs_()
    written = official(model)
    shown = {ours: theirs for ours, theirs in OFFICIAL.items() if ours in model.state_dict()}
    assert len(shown) > 5 and all(theirs in written for theirs in shown.values())
    torch.save({"meta": {"epoch": 12}, "state_dict": written}, tmp_path / "official.pth")
    loaded = small(name, num_classes=4)
    load_weights(loaded, tmp_path / "official.pth")
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values()))
    written |= {"bbox_head.other": torch.ones(1)}
    torch.save({"state_dict": {k: v for k, v in written.items() if "lateral_convs.0" not in k}}, tmp_path / "odd.pth")
    with pytest.raises(
        InputError, match="inner_blocks.0.0.weight is missing; .*bias is missing; bbox_head.other is foreign"
    ):
        load_weights(loaded, tmp_path / "odd.pth")


@pytest.mark.parity("the names of mmdetection's and mmsegmentation's files")
@torch.no_grad()
def test_an_official_retinanet_scores_as_its_parts_do(tmp_path):
    torch.manual_seed(0)
    model = small("retinanet_lit_ti").eval()
    for value in model.state_dict().values():
        value.add_(torch.randn_like(value) / 30) if value.is_floating_point() else None
    state = official(model)
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    loaded = load_weights(small("retinanet_lit_ti"), tmp_path / "official.pth").eval()
    images = torch.randn(1, 3, 64, 64)

    def conv(name: str, x: torch.Tensor, **kwargs) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **kwargs)

    maps = model.backbone.body(images)
    merged = [conv(f"neck.lateral_convs.{i}.conv", image) for i, image in enumerate(maps)]
    for i in (1, 0):
        merged[i] = merged[i] + F.interpolate(merged[i + 1], merged[i].shape[2:])
    levels = [conv(f"neck.fpn_convs.{i}.conv", image, padding=1) for i, image in enumerate(merged)]
    for i, image in ((3, maps[-1]), (4, None)):
        levels.append(conv(f"neck.fpn_convs.{i}.conv", levels[-1] if image is None else image, stride=2, padding=1))
    wanted = []
    for image in levels:
        for i in range(4):
            image = F.relu(conv(f"bbox_head.cls_convs.{i}.conv", image, padding=1))
        scores = conv("bbox_head.retina_cls", image, padding=1)  # (B, 9 * classes, h, w), an anchor after the other
        wanted.append(scores.unflatten(1, (9, 3)).permute(0, 3, 4, 1, 2).flatten(1, 3))
    found = loaded.head(list(loaded.backbone(images).values()))["cls_logits"]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))


def moved(name: str, tmp_path) -> tuple[nn.Module, dict[str, torch.Tensor], nn.Module]:
    """A model of random weights, the same by the official names, and a model that loaded these."""
    torch.manual_seed(0)
    model = small(name).eval()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(torch.randn_like(value).abs() / 30) if value.is_floating_point() else None
    state = official(model)
    torch.save({"state_dict": state}, tmp_path / "official.pth")
    return model, state, load_weights(small(name), tmp_path / "official.pth").eval()


@pytest.mark.parity("mmdetection's heads on regions, written down")
@torch.no_grad()
def test_official_heads_on_regions_score_and_draw_as_their_parts_do(tmp_path):
    """Shared2FCBBoxHead and FCNMaskHead: the background is the last class, and has neither box nor mask."""
    model, state, loaded = moved("mask_rcnn_lit_ti", tmp_path)
    heads, of = loaded.roi_heads, "roi_head.bbox_head."

    def layer(apply, name: str, x: torch.Tensor, **kwargs) -> torch.Tensor:
        return apply(x, state[f"{name}.weight"], state[f"{name}.bias"], **kwargs)

    maps = {str(i): torch.randn(1, 256, 32 >> i, 32 >> i) for i in range(4)}
    regions_of = [torch.tensor([[3.0, 5, 40, 70], [10, 20, 110.5, 90], [0, 0, 128, 128]])]
    read = roi_align(maps["0"], regions_of, 7, 1 / 4, 0, True)  # all of them are below 112 pixels, but the last
    read[2:] = roi_align(maps["1"], [regions_of[0][2:]], 7, 1 / 8, 0, True)
    for i in range(2):
        read = F.relu(layer(F.linear, f"{of}shared_fcs.{i}", read.flatten(1)))
    scores, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(maps, regions_of, [(128, 128)])))
    torch.testing.assert_close(scores.roll(-1, 1), layer(F.linear, f"{of}fc_cls", read))
    torch.testing.assert_close(deltas[:, 4:], layer(F.linear, f"{of}fc_reg", read))
    assert not deltas[:, :4].any()

    read = roi_align(maps["0"], regions_of, 14, 1 / 4, 0, True)
    read[2:] = roi_align(maps["1"], [regions_of[0][2:]], 14, 1 / 8, 0, True)
    drawn = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(maps, regions_of, [(128, 128)])))
    for i in range(4):
        read = F.relu(layer(F.conv2d, f"roi_head.mask_head.convs.{i}.conv", read, padding=1))
    read = F.relu(layer(F.conv_transpose2d, "roi_head.mask_head.upsample", read, stride=2))
    torch.testing.assert_close(drawn[:, 1:], layer(F.conv2d, "roi_head.mask_head.conv_logits", read))


@pytest.mark.parity("mmsegmentation's FPNHead, written down")
@torch.no_grad()
def test_an_official_semantic_fpn_says_of_every_pixel_what_its_parts_do(tmp_path):
    model, state, loaded = moved("semantic_fpn_lit_ti", tmp_path)
    images = torch.randn(1, 3, 64, 96)

    def conv(name: str, x: torch.Tensor, **kwargs) -> torch.Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **kwargs)

    merged = [conv(f"neck.lateral_convs.{i}.conv", image) for i, image in enumerate(model.backbone.body(images))]
    for i in (2, 1, 0):
        merged[i] = merged[i] + F.interpolate(merged[i + 1], merged[i].shape[2:])
    total = 0
    for level, image in enumerate(merged):
        image = conv(f"neck.fpn_convs.{level}.conv", image, padding=1)
        for unit in range(max(1, level)):
            name = f"decode_head.scale_heads.{level}.{2 * unit}"
            norms = (state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
            image = F.relu(F.batch_norm(conv(f"{name}.conv", image, padding=1), *norms))
            image = F.interpolate(image, scale_factor=2, mode="bilinear") if level else image
        total = total + image
    wanted = F.interpolate(conv("decode_head.conv_seg", total), (64, 96), mode="bilinear")
    torch.testing.assert_close(loaded(images), wanted)


def shapes_of_lit_s(tables: tuple[int, int], norms: list[int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official LIT-S below detectors. tables: sides of stages 3's and 4's. norms: of output."""
    widths, found = (96, 192, 384, 768), {"patch_embed.proj.weight": (96, 3, 4, 4), "patch_embed.proj.bias": (96,)}
    vectors = {"patch_embed.norm": 96} | {f"norm{i}": widths[i] for i in norms}
    matrices = {}
    for stage, (width, depth) in enumerate(zip(widths, (2, 2, 6, 2))):
        for block in (f"layers.{stage}.blocks.{i}" for i in range(depth)):
            vectors |= {f"{block}.norm2": width} | ({f"{block}.norm1": width} if stage > 1 else {})
            matrices |= {f"{block}.mlp.fc1": (4 * width, width), f"{block}.mlp.fc2": (width, 4 * width)}
            if stage > 1:
                matrices |= {f"{block}.attn.qkv": (3 * width, width), f"{block}.attn.proj": (width, width)}
                table = f"{block}.attn.relative_position_bias_table"
                found[table] = (tables[stage - 2] ** 2, width // 32)
    for stage, width in enumerate(widths[:3]):
        merging = f"layers.{stage}.downsample"
        matrices |= {f"{merging}.dconv": (2 * width, width, 2, 2), f"{merging}.dconv.conv_offset": (8, width, 2, 2)}
        vectors[f"{merging}.norm_layer"] = 2 * width
        found |= {f"{merging}.norm_layer.running_{part}": (2 * width,) for part in ("mean", "var")}
        found[f"{merging}.norm_layer.num_batches_tracked"] = ()
    found |= {f"{name}.{part}": (width,) for name, width in vectors.items() for part in ("weight", "bias")}
    return {f"backbone.{name}": shape for name, shape in (found | with_biases(matrices)).items()}


def with_biases(matrices: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape for name, shape in matrices.items()} | {
        f"{name}.bias": shape[:1] for name, shape in matrices.items()
    }


def necks(widths: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    found = {f"neck.lateral_convs.{i}.conv": (256, width, 1, 1) for i, width in enumerate(widths)}
    return found | {f"neck.fpn_convs.{i}.conv": (256, 256, 3, 3) for i in range(len(widths))}


WIDE = (256, 256, 3, 3)
OF_RETINANET = necks((192, 384, 768)) | {"neck.fpn_convs.3.conv": (256, 768, 3, 3), "neck.fpn_convs.4.conv": WIDE}
OF_RETINANET |= {f"bbox_head.{kind}_convs.{i}.conv": WIDE for kind in ("cls", "reg") for i in range(4)}
OF_RETINANET |= {"bbox_head.retina_cls": (720, 256, 3, 3), "bbox_head.retina_reg": (36, 256, 3, 3)}
OF_MASK_RCNN = necks((96, 192, 384, 768)) | {"rpn_head.rpn_conv": WIDE, "rpn_head.rpn_cls": (3, 256, 1, 1)}
OF_MASK_RCNN |= {"rpn_head.rpn_reg": (12, 256, 1, 1), "roi_head.bbox_head.shared_fcs.0": (1024, 12544)}
OF_MASK_RCNN |= {"roi_head.bbox_head.shared_fcs.1": (1024, 1024), "roi_head.bbox_head.fc_cls": (81, 1024)}
OF_MASK_RCNN |= {"roi_head.bbox_head.fc_reg": (320, 1024), "roi_head.mask_head.conv_logits": (80, 256, 1, 1)}
OF_MASK_RCNN |= {f"roi_head.mask_head.convs.{i}.conv": WIDE for i in range(4)}
OF_MASK_RCNN |= {"roi_head.mask_head.upsample": (256, 256, 2, 2)}
UNITS = [(f"decode_head.scale_heads.{i}.{2 * j}", 128 if j else 256) for i in range(4) for j in range(max(1, i))]
OF_SEMANTIC_FPN = {f"{unit}.conv.weight": (128, width, 3, 3) for unit, width in UNITS}
OF_SEMANTIC_FPN |= {
    f"{u}.bn.{part}": (128,) for u, _ in UNITS for part in ("weight", "bias", "running_mean", "running_var")
}
OF_SEMANTIC_FPN |= {f"{unit}.bn.num_batches_tracked": () for unit, _ in UNITS}
OF_SEMANTIC_FPN |= with_biases(necks((96, 192, 384, 768)) | {"decode_head.conv_seg": (150, 128, 1, 1)})
FILES_OF_S = {
    "retinanet_lit_s": shapes_of_lit_s((99, 49), [1, 2, 3]) | with_biases(OF_RETINANET),
    "mask_rcnn_lit_s": shapes_of_lit_s((99, 49), [1, 2, 3]) | with_biases(OF_MASK_RCNN),
    "semantic_fpn_lit_s": shapes_of_lit_s((63, 31), [0, 1, 2, 3]) | OF_SEMANTIC_FPN,
}


@pytest.mark.parity("the names and shapes of mmdetection's and mmsegmentation's files")
@pytest.mark.parametrize("name", FILES_OF_S)
def test_a_file_of_lit_s_with_the_official_names_and_shapes_loads_key_by_key(name, tmp_path):
    """Each tensor holds one number, its own: a small file, of which every number is somewhere afterwards."""
    shapes = FILES_OF_S[name]
    state = {key: torch.tensor(float(i)).expand(shape) for i, (key, shape) in enumerate(shapes.items())}
    state |= {key: value.long() for key, value in state.items() if key.endswith("num_batches_tracked")}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(value.numel() for key, value in state.items() if not key.endswith(buffers)) == PARAMETERS[name]
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "official.pth")
    loaded = load_weights(timm.create_model(name), tmp_path / "official.pth").state_dict()
    kept = [value for key, value in loaded.items() if not key.endswith("relative_position_index")]
    assert len(kept) == len(state) and all((value == value.flatten()[0]).all() for value in kept)
    assert sorted(float(value.flatten()[0]) for value in kept) == [*range(len(state))]
    assert loaded["backbone.body.model.norm3.weight"][0] == [*shapes].index("backbone.norm3.weight")


@pytest.mark.parametrize("name", ["retinanet_lit_s", "semantic_fpn_lit_ti"])
@torch.no_grad()
def test_weights_of_a_detector_load_at_another_image_size(name, tmp_path):
    theirs, ours = (small(name, backbone_args=NARROW | dict(img_size=size)).eval() for size in (64, 96))
    save_weights(tmp_path / "w.safetensors", theirs)
    load_weights(ours, tmp_path / "w.safetensors")
    images = torch.randn(1, 3, 96, 96)  # which a backbone of another size takes too, resampling every time
    for found, wanted in zip(ours.backbone(images).values(), theirs.backbone(images).values()):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_detector_starts_from_the_weights_of_a_classification_model(name, tmp_path):
    shape = NARROW | dict(num_heads=(1, 1, 1, 1))
    classifier = timm.create_model("lit_s" if "lit_s" in name else "lit_ti", num_classes=5, **shape | dict(img_size=32))
    save_weights(tmp_path / "lit.safetensors", classifier)
    model = small(name, backbone_args=shape)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_weights(model, tmp_path / "lit.safetensors", backbone_will_do=True)
    after, given = model.state_dict(), classifier.state_dict()
    key = next(k for k in given if k.endswith("mlp.fc1.weight"))
    assert torch.equal(after[model.BACKBONE + key], given[key])
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.startswith(model.BACKBONE))
    with pytest.raises(InputError, match="the weights of another model"):
        load_weights(model, tmp_path / "lit.safetensors")
    save_weights(tmp_path / "other.safetensors", nn.Linear(2, 2))
    with pytest.raises(InputError, match="neither the weights of such a model nor of its backbone"):
        load_weights(model, tmp_path / "other.safetensors", backbone_will_do=True)
