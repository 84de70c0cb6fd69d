"""Detection and segmentation go through the one loop: resumed bit for bit, scored exactly, recorded whole."""

import dataclasses
import json
import re
from collections import defaultdict

import datasets
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from torchmetrics.classification import MulticlassJaccardIndex

from ffvit.data.dense import scenes
from ffvit.data.loader import Batch
from ffvit.evidence import belonging
from ffvit.evidence.records import read_record, write_record
from ffvit.evidence.scoring import score
from ffvit.settings import same_run
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment
from ffvit.settings.same_run import code_of
from ffvit.system.errors import InputError
from ffvit.tasks.task import Together, task_of
from ffvit.training import checkpoint
from ffvit.training.train import train

HEADS = ["retinanet", "mask_rcnn", "semantic_fpn"]
TINY = dict(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2])
FEW = dict(rpn_post_nms_top_n_train=20, rpn_post_nms_top_n_test=20, box_batch_size_per_image=8, box_width=16)
BY_HEAD = pytest.mark.parametrize("head", HEADS)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(scenes, "SCENES", {"train": 8, "validation": 2, "test": 5})


def small(head: str, **settings) -> Config:
    more = FEW if head == "mask_rcnn" else {"head_width": 8} if head == "semantic_fpn" else {}
    given = dict(epochs=2, warmup_epochs=0, batch_size=4, device="cpu")
    config = load_experiment("digits-scenes").config(head, **given | settings)
    cap = {"detections_per_img": 10} if head != "semantic_fpn" else {}
    return dataclasses.replace(config, model_args=config.model_args | more | cap | dict(width=8, backbone_args=TINY))


@pytest.mark.parametrize("head", ["retinanet", *(pytest.param(head, marks=pytest.mark.machine) for head in HEADS[1:])])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_is_recorded_whole(head, tmp_path, monkeypatch):
    config = small(head, checkpoint_every=1, hflip=0.5, photometric_distortion=True)
    train(config, tmp_path / "whole")
    save = checkpoint.save_state
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_state", lambda *a: (save(*a), (_ for _ in ()).throw(KeyboardInterrupt))[0])
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                train(config, tmp_path / "pieces")
    train(config, tmp_path / "pieces")
    whole, pieces = (load_file(tmp_path / name / "last.safetensors") for name in ("whole", "pieces"))
    assert all(torch.equal(whole[key], pieces[key]) for key in whole)

    splits = task_of(config).load_splits()
    evaluation = score(config, tmp_path / "whole" / "last.safetensors", splits)
    path = write_record(tmp_path / "whole", evaluation, splits.fingerprint)
    kept = path.parent / f"{config.run_id}.json"
    kept.write_text(path.read_text())
    record = read_record(kept, "digits-scenes", config.run_id)
    assert record["results"]["images"] == 5 and record["results"].items() >= evaluation.metrics.items()
    broken = kept.read_text().replace(
        f'"{headline(head)}": {json.dumps(record["results"][headline(head)])}', f'"{headline(head)}": 99.0'
    )
    kept.write_text(broken)
    with pytest.raises(InputError, match=f"{headline(head)}"):
        read_record(kept, "digits-scenes", config.run_id)


def headline(head: str) -> str:
    return {"retinanet": "box_ap_percent", "mask_rcnn": "mask_ap_percent", "semantic_fpn": "miou_percent"}[head]


@pytest.mark.machine
@BY_HEAD
def test_two_processes_end_like_one(head, tmp_path):
    """Batch norms see the half of a batch that a process has, as they do in two parts of one process."""
    from ffvit.launching.launch import launch

    config = small(head, max_train_images=8, max_eval_images=4)  # processes of their own make all scenes
    alone = dataclasses.replace(config, accumulation_steps=2)
    both = dataclasses.replace(config, num_processes=2)
    for name, one in (("alone", alone), ("both", both)):
        launch(one, tmp_path / name, lambda line: None)
    first, second = (
        json.loads((tmp_path / name / "training.json").read_text())["history"] for name in ("alone", "both")
    )
    assert [e["train_loss"] for e in first] == pytest.approx([e["train_loss"] for e in second], rel=0.05)
    assert first[-1][f"validation_{headline(head)}"] == pytest.approx(second[-1][f"validation_{headline(head)}"], abs=5)


PUBLISHED = [("coco-lit", f"{head}_{size}") for head in ("retinanet_lit", "mask_rcnn_lit") for size in ("ti", "s")]
PUBLISHED += [("ade20k-lit", f"semantic_fpn_lit_{size}") for size in ("ti", "s")]


@pytest.mark.machine
@pytest.mark.parametrize("experiment, model", PUBLISHED)
def test_published_trainings_begin_on_images_as_coco_has_them(experiment, model, shared, tmp_path, capsys):
    """With narrow models, on small images, from random weights: all else is as published."""
    given = dict(dataset=str(shared / "data/dense/coco-permissive"), initial_weights="", device="cpu", num_processes=1)
    given |= dict(batch_size=2, num_workers=0, img_size=64, mixed_precision="no")
    given |= dict(reduce_zero_label=False)
    config = load_experiment(experiment).config(model, **given)
    more = FEW if model.startswith("mask") else {"head_width": 8} if experiment == "ade20k-lit" else {}
    body = TINY | dict(img_size=64)
    config = dataclasses.replace(config, model_args=config.model_args | more | dict(width=8, backbone_args=body))
    train(config, tmp_path / "run", dry_run=True)
    assert re.search(r"estimate: [\d,]+ updates of [\d,]+ ms and \d+ validations", capsys.readouterr().out)


class Guesser(nn.Module):
    """Finds the true boxes and masks, moved, with wrong classes among them and scores of its own."""

    def __init__(self, task, splits, seed=0):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.true = [target for batch in task.eval_batches(splits, "test") for target in batch.target]
        self.count = 0

    def forward(self, images):
        found = []
        for _ in images:
            target, self.count = self.true[self.count], self.count + 1
            kept = torch.from_numpy(self.rng.random(len(target["labels"])) < 0.8)
            moved = target["boxes"][kept] + torch.from_numpy(self.rng.normal(0, 1.2, (int(kept.sum()), 4))).float()
            labels = torch.where(torch.from_numpy(self.rng.random(len(moved)) < 0.7), target["labels"][kept], 3)
            scores = torch.from_numpy(self.rng.random(len(moved))).float()
            masks = target["masks"][kept].roll(int(self.rng.integers(-1, 2)), 2)[:, None].float()
            found.append(dict(boxes=moved, labels=labels, scores=scores, masks=masks))
        return found


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(scenes, "SCENES", {"train": 4, "validation": 4, "test": 61})
    task = task_of(small("mask_rcnn"))
    return task, task.load_splits()


def with_crowds_and_large(batches):
    """Every other image eight times as large, and every fifth object a crowd."""
    for batch in batches:
        changed = []
        for target in batch.target:
            factor = 8 if target["image_id"] % 2 else 1
            masks = target["masks"].repeat_interleave(factor, 1).repeat_interleave(factor, 2)
            boxes, area = target["boxes"] * factor, target["area"] * factor**2
            crowds = (torch.arange(len(boxes)) + target["image_id"]) % 5 == 0
            changed.append(target | dict(masks=masks, boxes=boxes, area=area, iscrowd=crowds))
        yield batch._replace(target=changed)


@pytest.mark.parity("pycocotools")
def test_average_precision_is_pycocotools_to_every_digit(many, tmp_path, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools, the reference, is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    mask_api = pytest.importorskip("pycocotools.mask")
    task, splits = many
    batches = [*with_crowds_and_large(task.eval_batches(splits, "test"))]

    def guesser():
        model = Guesser(task, splits)
        model.true = [target for batch in batches for target in batch.target]
        return model

    ours = task.evaluate(guesser(), batches, 10)
    truth, found, sides = [], defaultdict(list), {}
    model = guesser()
    for batch in batches:
        for target, guess in zip(batch.target, model(batch.images)):
            for i in range(len(target["labels"])):
                rle = mask_api.encode(np.asfortranarray(target["masks"][i].numpy()))
                box = target["boxes"][i].tolist()
                crowd, area = int(target["iscrowd"][i]), float(target["area"][i])
                truth.append(dict(id=len(truth) + 1, image_id=target["image_id"], category_id=int(target["labels"][i]),
                                  bbox=xywh(box), area=area, iscrowd=crowd, segmentation=rle))  # fmt: skip
            sides[target["image_id"]] = target["masks"].shape[-1]
            for i in range(len(guess["labels"])):
                one = dict(
                    image_id=target["image_id"], category_id=int(guess["labels"][i]), score=float(guess["scores"][i])
                )
                rle = mask_api.encode(np.asfortranarray((guess["masks"][i, 0] >= 0.5).numpy().astype(np.uint8)))
                found["bbox"].append(one | {"bbox": xywh(guess["boxes"][i].tolist())})
                found["segm"].append(one | {"segmentation": rle})
    reference = coco.COCO()
    reference.dataset = dict(
        images=[dict(id=i, height=side, width=side) for i, side in sides.items()],
        annotations=truth,
        categories=[dict(id=i) for i in range(10)],
    )
    reference.createIndex()
    assert len(sides) == 61 and sum(one["iscrowd"] for one in truth) == len(truth) - ours.objects > 10
    for part, kind in (("box", "bbox"), ("mask", "segm")):
        run = cocoeval.COCOeval(reference, reference.loadRes(found[kind]), kind)
        run.evaluate(), run.accumulate(), run.summarize()
        precision = ours.parts[part]
        said = [
            precision.ap,
            precision.ap50,
            precision.ap75,
            *precision.by_size.values(),
        ]
        assert 0 < precision.ap < 100 and None not in precision.by_size.values()
        # Ours comes through torchmetrics, which has single precision.
        assert said == pytest.approx([100 * value if value >= 0 else None for value in run.stats[:6]], abs=1e-4)


def xywh(box: list[float]) -> list[float]:
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def by_ranks(compute, ranks: int):
    """compute(rank, together) of each rank, as if they ran side by side: first each is asked what it would share."""
    shared = [[] for _ in range(ranks)]
    for rank in range(ranks):
        keep = lambda value, rank=rank: shared[rank].append(value) or value  # noqa: E731
        compute(rank, Together(keep, keep))
    calls = [iter(zip(*shared)) for _ in range(ranks)]

    def together(rank):
        return Together(
            lambda _: sum(next(calls[rank])), lambda _: [item for part in next(calls[rank]) for item in part]
        )

    return [compute(rank, together(rank)) for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 5])
def test_scores_of_detection_are_those_of_one_process_however_images_are_dealt_out(many, ranks):
    task, splits = many

    def compute(rank, together):
        mine = splits.test.select(range(rank, len(splits.test), ranks))
        model = Guesser(task, splits)
        of_images = dict(zip((t["image_id"] for t in model.true), model([torch.zeros(1)] * len(model.true))))
        ids = iter(mine["image_id"])
        model.forward = lambda given: [of_images[next(ids)] for _ in given]
        return task.evaluate(
            model, task.eval_batches(dataclasses.replace(splits, test=mine), "test"), 10, together=together
        )

    alone = task.evaluate(Guesser(task, splits), task.eval_batches(splits, "test"), 10)
    for found in by_ranks(compute, ranks):
        assert found.metrics == alone.metrics and found.objects == alone.objects and found.images == 61


class Threshold(nn.Module):
    """Logits of three classes, by how bright a pixel is."""

    def forward(self, x):
        return torch.cat([-x[:, :1], x[:, :1], 0.3 - x[:, :1].abs()], dim=1)


def segmented(sizes, ignored=0.1):
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        image = torch.randn(3, height // 2, width // 2, generator=generator)  # smaller than its map
        target = torch.randint(3, (height, width), generator=generator)
        target[torch.rand(height, width, generator=generator) < ignored] = 255
        yield Batch([image], [target], [])


SIZES = [(8, 10), (6, 6), (12, 8), (2, 2), (10, 14)]


def test_mean_iou_is_of_one_confusion_matrix_over_all_pixels_that_have_a_class():
    task = task_of(small("semantic_fpn"))
    model = Threshold().train()
    found = task.evaluate(model, segmented(SIZES), 4)  # of the last class there is nothing
    assert model.training
    index = MulticlassJaccardIndex(4, ignore_index=255)
    pixels = 0
    for batch in segmented(SIZES):
        logits = nn.functional.interpolate(Threshold()(batch.images[0][None]), batch.target[0].shape, mode="bilinear")
        index.update(nn.functional.pad(logits, (0, 0, 0, 0, 0, 1), value=-1e9).argmax(1), batch.target[0][None])
        pixels += int((batch.target[0] != 255).sum())
    assert found.metrics["miou_percent"] == pytest.approx(100 * float(index.compute()), abs=1e-4)
    assert found.confusion.sum() == pixels and found.per_class_percent[3] is None and found.images == len(SIZES)


def test_scores_of_segmentation_are_those_of_one_process_however_images_are_dealt_out():
    task = task_of(small("semantic_fpn"))
    alone = task.evaluate(Threshold(), segmented(SIZES), 3)

    def compute(rank, together):
        return task.evaluate(Threshold(), list(segmented(SIZES))[rank::3], 3, together=together)

    for found in by_ranks(compute, 3):
        assert (found.confusion == alone.confusion).all() and found.loss == pytest.approx(alone.loss, rel=1e-12)
        assert found.images == len(SIZES)


@BY_HEAD
def test_settings_that_a_task_does_not_read_are_refused_by_name(head, tmp_path):
    for setting in (dict(mixup=0.8), dict(label_smoothing=0.1), dict(auto_augment="rand-m9")):
        with pytest.raises(InputError, match=f"{[*setting][0]} is no matter of"):
            train(small(head, **setting), tmp_path)
    with pytest.raises(InputError, match="ignore_index is no matter of classification"):
        task_of(load_experiment("digits").config("ff", ignore_index=0)).check()


def test_a_model_of_another_task_is_refused_by_name(tmp_path):
    config = dataclasses.replace(small("retinanet"), task="instance_segmentation")
    with pytest.raises(InputError, match="model 'retinanet' is for task='detection'"):
        train(config, tmp_path)


def test_more_objects_than_a_model_can_give_are_told():
    config = small("retinanet")
    task = task_of(dataclasses.replace(config, model_args=config.model_args | {"detections_per_img": 1}))
    [validation, test] = task.remarks(task.load_splits())
    assert "validation images have more than 1 objects" in validation and "test images" in test
    assert not task_of(config).remarks(task.load_splits())
    splits = task.load_splits()
    crowds = lambda row: {"objects": row["objects"] | {"iscrowd": [True] * len(row["objects"]["bbox"])}}  # noqa: E731
    assert (
        len(task.remarks(dataclasses.replace(splits, test=splits.test.map(crowds)))) == 1
    )  # which are not to be found


def test_mask_rcnns_most_objects_have_either_name():
    config = small("mask_rcnn")
    given = config.model_args | {"box_detections_per_img": 1}
    del given["detections_per_img"]
    task = task_of(dataclasses.replace(config, model_args=given))
    assert len(task.remarks(task.load_splits())) == 2
    with torch.device("meta"):
        assert timm.create_model("mask_rcnn", box_detections_per_img=300).roi_heads.detections_per_img == 300
        assert timm.create_model("mask_rcnn", detections_per_img=300).roi_heads.detections_per_img == 300
        assert timm.create_model("mask_rcnn").roi_heads.detections_per_img == 100


def test_no_object_at_all_is_an_error_and_no_score():
    task = task_of(small("retinanet"))
    empty = Batch(
        [torch.zeros(3, 8, 8)],
        [dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), image_id=0)],
        [],
    )
    model = nn.Module()
    model.forward = lambda images: [
        dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0))
    ]
    with pytest.raises(InputError, match="no object to find in 1 images"):
        task.evaluate(model, [empty], 3)
    crowd = dict(boxes=torch.tensor([[0.0, 0, 5, 5]]), labels=torch.tensor([1]), iscrowd=torch.tensor([True]))
    crowd |= dict(area=torch.tensor([25.0]), image_id=0)
    with pytest.raises(InputError, match="no object to find in 1 images"):
        task.evaluate(model, [empty._replace(target=[crowd])], 3)


@pytest.mark.parametrize("head", ["retinanet", "semantic_fpn"])
def test_a_batch_without_an_image_that_can_be_read_is_left_out(head):
    """The last batch of an evaluation may be one image: here the fifth, after four."""
    config = small(head, bad_images="skip", in_memory=False)
    task = task_of(config)
    splits = task.load_splits()
    encoded = splits.test.cast_column("image", datasets.Image(decode=False))
    broken = {"bytes": b"no image", "path": "fifth.png"}
    spoil = lambda row, i: {"image": broken if i == 4 else row["image"]}  # noqa: E731
    test = encoded.map(spoil, with_indices=True, features=encoded.features).cast_column("image", datasets.Image())
    model = timm.create_model(config.model, num_classes=11, **config.model_args)
    found = task.evaluate(model, task.eval_batches(dataclasses.replace(splits, test=test), "test"), 11)
    assert found.images == 4 and [image.file for image in found.bad_images] == ["fifth.png"]


def test_code_of_detection_is_of_its_backbone_and_of_no_matter_to_classification(monkeypatch):
    read = same_run._bare
    runs = [
        small("retinanet").to_dict(),
        load_experiment("digits").config("ff").to_dict(),
        small("semantic_fpn").to_dict(),
    ]
    runs += [runs[0] | {"model_args": {"backbone": "resnet18"}}, {"model": "retinanet_lit_ti", "task": "detection"}]

    def edited(name):
        same_run._code_of.cache_clear()
        monkeypatch.setattr(same_run, "_bare", lambda file: read(file) + (["edited"] if file.name == name else []))
        return [code_of(run) for run in runs]

    before = edited("")
    changed = {
        name: [a != b for a, b in zip(before, edited(name))]
        for name in ("lit.py", "dense.py", "detection.py", "transforms.py", "step.py")
    }
    same_run._code_of.cache_clear()
    assert changed["dense.py"] == changed["transforms.py"] == [True, False, True, True, True]
    assert changed["lit.py"][:2] == [True, False] and changed["lit.py"][4]
    assert changed["detection.py"][:2] == [True, False] and changed["step.py"] == [True] * 5


def test_two_runs_with_other_scores_are_not_the_same_result():
    one, other = (
        {"dataset": {"fingerprint": "a"}, "results": {"images": 5, "box_ap_percent": ap, "loss": ap}}
        for ap in (40.0, 41.0)
    )
    rounded = one | {"results": one["results"] | {"loss": 40.0001}}
    assert belonging.same_result(one, rounded) and not belonging.same_result(one, other)


def test_one_dataset_serves_several_tasks_of_an_experiment():
    configs = [small(head).to_dict() for head in HEADS]
    assert len({same_run.images_of(config) for config in configs}) == 3
    assert same_run.images_of(configs[0]) == same_run.images_of(small("retinanet", seed=1).to_dict())
