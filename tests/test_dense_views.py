"""What notebooks 02, 21 and 22 show of detection and segmentation, against cases worked out by hand."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from ffvit.data.loader import Batch
from ffvit.settings.experiment import load_experiment
from ffvit.studies import detections, one_run, overlays, predicted, samples, segmentations
from ffvit.studies.detection_errors import (
    LOOSE,
    NEITHER,
    NOTHING,
    SECOND,
    WRONG_CLASS,
    Error,
    Errors,
    conclusion,
    of_image,
)
from ffvit.system.errors import InputError
from ffvit.tasks.detection import Detections
from ffvit.tasks.semantic_segmentation import Segmentation
from ffvit.tasks.task import task_of

SCENES = load_experiment("digits-scenes")


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def scenes():
    """A few, as the tasks with objects have them; they take seconds to make."""
    return task_of(SCENES.config("mask_rcnn", max_train_images=16, max_eval_images=8)).load_splits()


def said(*found):
    """Detections of (x1, y1, x2, y2, score, label)."""
    rows = torch.tensor(found, dtype=torch.float32).view(-1, 6)
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()}


def true(*objects):
    """Objects of (x, y, width, height, class, whether it is a crowd)."""
    return {
        "bbox": [list(o[:4]) for o in objects],
        "category": [o[4] for o in objects],
        "iscrowd": [o[5] for o in objects],
    }


class Says(nn.Module):
    """A detector that finds the same in every image."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, images):
        return [self.found for _ in images]


def test_every_detection_is_right_or_one_kind_of_false_alarm():
    found = said(
        (0, 0, 10, 10, 0.9, 1),  # right
        (0, 0, 10, 9, 0.8, 1),  # the same object again
        (20, 0, 30, 10, 0.7, 2),  # an object of class 3
        (0, 20, 10, 24, 0.6, 1),  # of IoU 0.4 with one of its class
        (50, 50, 60, 60, 0.55, 1),  # nothing
        (0, 20, 10, 24, 0.52, 2),  # as loose, and of another class
        (40, 0, 50, 10, 0.5, 4),  # in a crowd: neither
        (0, 0, 10, 10, 0.4, 1),  # again, and unsure
    )
    truth = true(
        (0, 0, 10, 10, 1, False), (20, 0, 10, 10, 3, False), (0, 20, 10, 10, 1, False), (35, 0, 30, 30, 4, True)
    )
    errors = of_image(7, found, truth)
    assert errors.right == 1
    assert [(a.kind, a.true) for a in errors.alarms] == [
        (SECOND, -1), (WRONG_CLASS, 3), (LOOSE, -1), (NOTHING, -1), (NEITHER, -1), (SECOND, -1),
    ]  # fmt: skip
    assert [(m.label, m.box.tolist()) for m in errors.missed] == [(3, [20, 0, 30, 10]), (1, [0, 20, 10, 30])]
    assert {e.row for e in errors.missed + errors.alarms} == {7}


def test_a_detection_takes_the_object_that_it_overlaps_best_and_an_empty_image_has_false_alarms_alone():
    truth = true((0, 0, 10, 10, 0, False), (2, 0, 10, 10, 0, False))
    both = of_image(0, said((2, 0, 12, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0)), truth)
    assert (both.right, both.missed, both.alarms) == (2, [], [])
    empty = of_image(0, said((0, 0, 5, 5, 0.9, 0)), true())
    assert [alarm.kind for alarm in empty.alarms] == [NOTHING] and not empty.missed
    assert len(of_image(0, said(), truth).missed) == 2


def test_precision_by_recall_is_that_of_a_case_worked_out_by_hand():
    """Of two objects: found at 0.9, a false alarm at 0.8, found at 0.7. Precision is 1 up to recall 1/2, then 2/3."""
    found = said((0, 0, 10, 10, 0.9, 0), (40, 40, 50, 50, 0.8, 0), (20, 20, 30, 30, 0.7, 0))
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]]), "labels": torch.tensor([0, 0]), "image_id": 0,
        "iscrowd": torch.tensor([False, False]), "area": torch.tensor([100.0, 100.0]),
    }  # fmt: skip
    task = task_of(SCENES.config("retinanet"))
    score = task.evaluate(Says(found), [Batch([torch.zeros(3, 64, 64)], [target], [])], num_classes=3)
    figure = detections.precision_by_recall([score])
    thin, _, mean = figure.axes[0].lines  # one class is there; an empty line for the legend
    expected = np.where(detections.RECALLS <= 0.5, 1, 2 / 3)
    assert mean.get_ydata() == pytest.approx(expected) and thin.get_ydata() == pytest.approx(expected)
    assert mean.get_ydata().mean() == pytest.approx(score.metrics["box_ap50_percent"] / 100)


def test_bars_begin_with_the_hardest_class_and_leave_out_what_is_not_there():
    values = np.array([[50, np.nan, 10], [70, np.nan, 30]])
    panel = detections.class_bars(values, ["a", "b", "c"], "box AP (%)").axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["c", "a"]
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([20, 60])


def seen(true, said):
    return predicted.Seen(0, np.zeros((*np.shape(true), 3), np.uint8), np.array(true), np.array(said))


def test_iou_of_an_image_is_over_its_own_classes_and_ignores_what_is_ignored():
    one = seen([[0, 0, 1, 255]], [[0, 1, 1, 2]])
    assert segmentations.image_iou(one, num_classes=5) == pytest.approx(50)  # 1/2 of class 0, 1/2 of class 1
    assert segmentations.image_iou(seen([[255]], [[1]]), num_classes=5) is None
    right, half, wrong = (seen([[0, 0]], [row]) for row in ([0, 0], [0, 1], [1, 1]))
    worst = segmentations.hardest([right, wrong, half], num_classes=2, count=2)
    assert [round(of.miou_percent) for of in worst] == [0, 25]


def test_confusion_is_of_the_pixels_of_a_class_and_of_many_classes_the_most_wrong_are_shown():
    counts = np.array([[90, 10, 0], [0, 30, 10], [0, 0, 60]])
    evaluation = Segmentation(1, 0.5, counts, [])
    heat = segmentations.confusion([evaluation] * 2, ["a", "b", "c"]).axes[0]
    assert sorted(text.get_text() for text in heat.texts) == ["10", "100", "25", "75", "90"]
    few = segmentations.confusion([evaluation], ["a", "b", "c"], most=2).axes[0]
    assert [label.get_text() for label in few.get_yticklabels()] == ["a", "b"]


def test_what_was_found_of_a_detector_is_counted_over_its_runs():
    box = np.zeros(4)
    alarms = [
        Error(0, box, 1, score, kind) for score, kind in ((0.9, LOOSE), (0.8, LOOSE), (0.7, NOTHING), (0.4, NOTHING))
    ]
    runs = [Errors(5, [Error(0, box, 1), Error(1, box, 0)], alarms), Errors(2, [Error(0, box, 1)], [])]
    told = conclusion(runs, [Detections(3, 10, {}, [], [])] * 2, ["a", "b"]).splitlines()
    assert told == [
        "Detections with a score of at least 50 %: 10.",
        "Of them, 70 % are right.",
        f"The others are most often of this kind: {LOOSE}, 2 of 3.",
        "Of 20 objects, 3 are found by no detection.",
        "Those are most often of the class b: 2.",
    ]
    told = conclusion([Errors(0, [], [])], [Detections(1, 0, {}, [], [])], ["a"]).splitlines()
    assert told == ["Detections with a score of at least 50 %: 0.", "Of 0 objects, 0 are found by no detection."]


def test_what_was_found_of_maps_is_counted_over_the_runs():
    counts = np.array([[90, 10, 0], [5, 95, 0], [0, 0, 0]])  # 90 of 105, 95 of 110; the third class is not there
    runs = [Segmentation(1, 0.5, counts, []), Segmentation(1, 0.5, np.diag([100, 100, 0]), [])]
    assert segmentations.conclusion(runs, ["a", "b", "c"]).splitlines() == [
        "Hardest is a, with an IoU of 92.9 %; easiest is b, with 93.2 %.",  # (85.7 + 100) / 2, (86.4 + 100) / 2
        "Of the pixels, 3.8 % are wrong.",  # 15 of 400
        "The most common mistake is a said to be b: 67 % of them.",
    ]
    assert "mistake" not in segmentations.conclusion(runs[1:], ["a", "b", "c"])


def test_a_class_has_one_colour_and_what_is_ignored_is_white():
    for count in (3, 60):
        classes = ["background", *map(str, range(count))]
        colors = overlays.class_colors(classes)
        assert len(np.unique(colors, axis=0)) == count + 1
        shown = overlays.painted([[0, 2, 255]], classes)[0]
        assert shown[1] == pytest.approx(colors[2]) and shown[2].tolist() == [1, 1, 1]


@pytest.mark.parametrize("model", SCENES.models)
def test_samples_of_every_task_are_drawn_with_what_is_known_of_them(model, scenes):
    config = SCENES.config(model)
    background = ["background"] if config.task == "semantic_segmentation" else []
    splits = replace(scenes, classes=[*background, *scenes.classes])
    figure = samples.figure(splits, config, count=3)
    known = [len(panel.patches) + len(panel.images) - 1 for panel in figure.axes]  # boxes, masks, maps
    assert len(figure.axes) == 6 and min(known) > 0


def test_curves_show_the_headlines_there_are_and_no_loss_that_is_not():
    epochs = [{"epoch": i, "train_loss": 1.0, "validation_box_ap_percent": 10.0 * i} for i in (1, 2)]
    left, right = one_run.curves(epochs).axes
    assert len(left.lines) == 1 and right.get_title(loc="left") == "Validation box AP (%)"
    assert right.lines[0].get_ydata().tolist() == [10, 20]
    both = [epoch | {"validation_mask_ap_percent": 5.0} for epoch in epochs]
    assert [line.get_label() for line in one_run.curves(both).axes[1].lines] == ["box AP (%)", "mask AP (%)"]


def test_a_picture_of_ones_own_may_have_any_size_and_a_missing_one_is_named(scenes, tmp_path):
    config = SCENES.config("retinanet")
    PIL.Image.new("L", (50, 30), 200).save(tmp_path / "mine.png")
    net = Says(said((0, 0, 10, 10, 0.9, 3), (0, 0, 9, 9, 0.2, 3)))
    net.weight = nn.Parameter(torch.zeros(1))
    [found] = predicted.look(net, predicted.own(str(tmp_path / "mine.png"), scenes, config), [0])
    assert found.pixels.shape[:2] == (30, 50) and found.said["labels"].tolist() == [3]
    first = predicted.own("", scenes, config)
    assert len(first) == 1 and first[0][1]["image_id"] == scenes.test[0]["image_id"]
    with pytest.raises(InputError, match="image 'nowhere.png': No such file or directory: give the path of a picture"):
        predicted.own("nowhere.png", scenes, config)
