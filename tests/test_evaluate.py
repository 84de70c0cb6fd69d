import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from whole import whole

from ffvit.data.images import BadImage
from ffvit.data.loader import Batch
from ffvit.evidence.records import write_record
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError
from ffvit.tasks.classification import confident_mistakes, evaluate

CLASSES = 7


def problem(count, classes=CLASSES):
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, 1, 3, 4, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model, TensorDataset(images, targets)


def batches(dataset, size=10, rank=0, processes=1):
    images, targets = (tensor[rank::processes] for tensor in dataset.tensors)
    bad = [
        [BadImage(i, f"{i}.png", "empty") for i in (t < 0).nonzero().flatten().tolist()] for t in targets.split(size)
    ]
    return [Batch(*parts) for parts in zip(images.split(size), targets.split(size), bad) if len(parts[0])]


def test_counts_equal_a_naive_loop():
    model, dataset = problem(97)
    found = evaluate(model, batches(dataset), CLASSES)
    loss, confusion, hits5, predictions = 0.0, np.zeros((CLASSES, CLASSES), dtype=int), 0, []
    for image, target in dataset:
        logits = model(image[None])[0].double().tolist()
        loss -= logits[target] - math.log(sum(math.exp(v) for v in logits))
        ranking = sorted(range(CLASSES), key=lambda c: -logits[c])
        hits5 += int(target) in ranking[:5]
        confusion[target, ranking[0]] += 1
        predictions.append(ranking[0])
    assert found.images == 97
    assert found.loss == pytest.approx(loss / 97, rel=1e-6)
    assert found.top1_percent == pytest.approx(100 * np.trace(confusion) / 97, rel=1e-12)
    assert found.top5_percent == pytest.approx(100 * hits5 / 97, rel=1e-12)
    assert (found.confusion == confusion).all()
    assert found.predictions.tolist() == predictions
    assert found.per_class_percent == pytest.approx(list(100 * np.diag(confusion) / confusion.sum(axis=1)))


@pytest.mark.parametrize("batch", [1, 5, 64])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 97, 997])
def test_any_number_of_processes_and_any_batch_give_the_score_of_one(count, processes, batch):
    model, dataset = problem(count)
    alone = evaluate(model, batches(dataset, count), CLASSES)

    def score(rank, add_up):
        return evaluate(model, batches(dataset, batch, rank, processes), CLASSES, add_up=add_up)

    parts = {}  # what each process would send to the others: its confusion, then its sums

    def send(rank):
        sent = parts.setdefault(rank, [])
        return lambda tensor: sent.append(tensor.clone()) or torch.ones_like(tensor)

    for rank in range(processes):
        score(rank, send(rank))
    confusion, sums = (sum(tensors) for tensors in zip(*parts.values()))
    together = [score(r, lambda t: confusion if t.shape == confusion.shape else sums) for r in range(processes)]
    for found in together:
        assert found.images == count
        assert (found.confusion == alone.confusion).all()
        assert found.top1_percent == alone.top1_percent
        assert found.top5_percent == alone.top5_percent
        assert found.loss == pytest.approx(alone.loss, rel=1e-6)
    assert sum(len(found.predictions) for found in together) == count


def test_top5_of_three_classes_is_100_percent():
    model, dataset = problem(20, classes=3)
    assert evaluate(model, batches(dataset), 3).top5_percent == 100


def test_a_class_without_images_has_no_accuracy():
    model, _ = problem(5)
    dataset = TensorDataset(torch.zeros(5, 1, 3, 4), torch.tensor([0, 0, 1, 3, 3]))
    per_class = evaluate(model, batches(dataset), CLASSES).per_class_percent
    assert [c for c, accuracy in enumerate(per_class) if accuracy is None] == [2, 4, 5, 6]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_scored_in_evaluation_mode_and_left_as_it_was(training):
    model, dataset = problem(9)
    expected = evaluate(model, batches(dataset), CLASSES).loss
    noisy = nn.Sequential(model, nn.Dropout(0.9)).train(training)
    assert evaluate(noisy, batches(dataset), CLASSES).loss == expected
    assert all(module.training == training for module in noisy.modules())


def test_confident_mistakes_are_wrong_and_the_surest_first():
    model, dataset = problem(97)
    targets = dataset.tensors[1].numpy()
    found = evaluate(model, batches(dataset), CLASSES)
    every = confident_mistakes(found, count=97)
    assert sorted(every) == np.flatnonzero(found.predictions != targets).tolist()
    assert (np.diff(found.confidences[every]) <= 0).all()
    assert confident_mistakes(found, count=5) == every[:5]


def with_bad_images(count, bad):
    model, dataset = problem(count)
    damaged = TensorDataset(*(tensor.clone() for tensor in dataset.tensors))
    damaged.tensors[0][bad], damaged.tensors[1][bad] = 0, -1
    read = np.setdiff1d(range(count), bad)
    return model, damaged, TensorDataset(*(tensor[read] for tensor in dataset.tensors)), read


def test_images_that_cannot_be_read_count_in_no_number_and_are_listed():
    model, damaged, whole, read = with_bad_images(97, [0, 41, 42, 96])
    found, expected = evaluate(model, batches(damaged, 97), CLASSES), evaluate(model, batches(whole, 97), CLASSES)
    assert found.images == 93
    assert (found.confusion == expected.confusion).all()
    assert (found.top1_percent, found.top5_percent) == (expected.top1_percent, expected.top5_percent)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert [image.index for image in found.bad_images] == [0, 41, 42, 96]
    assert found.predictions[read].tolist() == expected.predictions.tolist()
    assert found.predictions[[0, 41, 42, 96]].tolist() == [-1] * 4
    assert found.confidences[[0, 41, 42, 96]].tolist() == [0] * 4
    assert not set(confident_mistakes(found, count=97)) & {0, 41, 42, 96}


def test_a_split_of_which_no_image_can_be_read_has_no_score():
    model, damaged, _, _ = with_bad_images(5, range(5))
    with pytest.raises(InputError, match=r"no image to score can be read, the first \(0.png\): empty"):
        evaluate(model, batches(damaged), CLASSES)


def test_the_record_lists_the_images_that_could_not_be_read(tmp_path):
    model, damaged, _, _ = with_bad_images(9, [4, 7])
    config = load_experiment("digits").config("ff")
    facts = whole(config)
    facts["dataset"] |= {"images": facts["dataset"]["images"] | {"test": 9}, "fingerprint": "0123"}
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "training.json").write_text(json.dumps(facts))
    path = write_record(tmp_path, evaluate(model, batches(damaged), CLASSES), "0123")
    results = json.loads(path.read_text())["results"]
    assert results["images"] == 7
    assert results["bad_images"] == [{"index": i, "file": f"{i}.png", "reason": "empty"} for i in (4, 7)]
