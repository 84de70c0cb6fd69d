"""Notebook 23 and LIT's dense tables: each headline in a column of its own, and predictions judged as computed by hand."""

import copy
import json

import matplotlib.pyplot as plt
import pytest

from ffvit.evidence.measured import everything
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import lit_dense, study_tables, where
from ffvit.system.files import RESULTS

RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
SCORES = {
    "detection": ("box_ap_percent", "box_ap50_percent"),
    "instance_segmentation": ("mask_ap_percent", "box_ap_percent", "mask_ap50_percent"),
    "semantic_segmentation": ("miou_percent", "pixel_accuracy_percent"),
}


def experiment(name="mine", compare=True, **models):
    """The heads given, with attention in no stage and in all beside LIT's own."""
    heads = {
        "retinanet": {"label": "RetinaNet", "task": "detection", "model": "retinanet"},
        "mask_rcnn": {"label": "Mask R-CNN", "task": "instance_segmentation", "model": "mask_rcnn"},
        "semantic_fpn": {"label": "Semantic FPN", "task": "semantic_segmentation", "model": "semantic_fpn"},
    }
    values = [
        {"name": name, "label": words, "set": {"model_args": {"backbone_args": {"attention_stages": stages}}}}
        for name, words, stages in (("none", "attention in no stage", []), ("all", "attention in all", [1, 2, 3, 4]))
    ]
    stages = {"title": "Stages", "vary": {"attention": values}, "against": {"attention": "grid"}}
    return Experiment(
        name=name, title="Mine.", scope="mine", about="x", seeds=[0, 1, 2], models=models or heads,
        compare={"stages": stages} if compare else {}, settings={"dataset": "digits-scenes", "img_size": 64},
    )  # fmt: skip


def made(experiment, name, *headline):
    """Records of one model, a value a seed: those of digits, rewritten. Its other scores are 10, 20, ... above the headline."""
    records = []
    for seed, value in enumerate(headline):
        config = experiment.config(name, seed)
        record = copy.deepcopy(RECORDED) | {"run_id": config.run_id, "config": config.to_dict()}
        record["model"] |= {"patches": None, "features": None}
        scores = {score: value + 10 * i for i, score in enumerate(SCORES[config.task])}
        record["results"] = {"images": 360, **scores}
        first = next(iter(scores))
        record["history"] = [
            {"epoch": i, "train_loss": 1.0, "seconds": 1.0 + i + seed, f"validation_{first}": value} for i in (1, 2)
        ]
        records.append(record)
    return records


SMALL = experiment()
RUNS = (
    made(SMALL, "retinanet", 40.0, 41.0, 42.0)
    + made(SMALL, "retinanet_all", 40.1, 41.2, 42.3)
    + made(SMALL, "retinanet_none", 30.0, 31.2, 31.8)
    + made(SMALL, "semantic_fpn", 60.0, 61.0, 62.0)
    + made(SMALL, "semantic_fpn_all", 63.0, 64.1, 65.2)
    + made(SMALL, "mask_rcnn", 20.0)
)


def row(table, **cells):
    """The one row with these cells."""
    fits = [r for r in table.to_dict("records") if all(r[column] == value for column, value in cells.items())]
    assert len(fits) == 1
    return fits[0]


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


def test_each_headline_stands_in_a_column_of_its_own():
    table = where.table(SMALL, RUNS)
    columns = ["mine box AP (%)", "mine mask AP (%)", "mine mIoU (%)"]
    assert [c for c in table if c.startswith("mine ")] == columns
    assert ((table[columns] != "").sum(axis=1) == 1).all()
    fpn = row(table, Head="Semantic FPN", **{"Attention in": "all stages"})
    assert fpn["mine mIoU (%)"] == "64.10 ± 1.10 (n=3)" and fpn["also pixel accuracy (%)"] == "74.10 ± 1.10 (n=3)"
    masks = row(table, Head="Mask R-CNN", **{"Attention in": "stages 3 and 4"})
    assert (masks["mine mask AP (%)"], masks["also box AP (%)"]) == ("20.00 (n=1)", "30.00 (n=1)")
    assert row(table, Head="Mask R-CNN", **{"Attention in": "no stage"})["mine mask AP (%)"] == "not run"


def test_models_of_two_tasks_are_never_held_against_each_other():
    table = study_tables.pairs(SMALL, RUNS)
    assert set(table["Difference"]) == {
        f"{head}, attention in {stages} − {head}"
        for head in ("RetinaNet", "Mask R-CNN", "Semantic FPN")
        for stages in ("no stage", "all")
    }
    boxes = row(table, Difference="RetinaNet, attention in all − RetinaNet")
    assert (boxes["mine box AP (points)"], boxes["mine mIoU (points)"]) == ("+0.20 (n=3)", "")
    alone = study_tables.pairs(experiment(compare=False), [])
    assert alone["What the seeds show"].tolist() == ["no two of its models compare"]


def test_predictions_are_judged_head_by_head():
    table = where.predicted(SMALL, RUNS)
    early, late = (claim.words for claim in where.CLAIMS)
    found = {(r["Head"], r["Claim"]): r["Found"] for r in table.to_dict("records")}
    assert found == {
        ("RetinaNet", early): "holds",  # +0.2, and its interval ends below a point
        ("RetinaNet", late): "holds",
        ("Mask R-CNN", early): "not run",
        ("Mask R-CNN", late): "not run",
        ("Semantic FPN", early): "does not hold",  # +3.1 ± 0.25
        ("Semantic FPN", late): "not run",
    }
    assert row(table, Head="Semantic FPN", Claim=early)["mine: left less right (points)"] == "+3.10 (n=3)"
    told = where.summary(SMALL, RUNS, table)
    assert "2 of 6 predictions hold" in told and f"Does not hold: Semantic FPN, {early}" in told


def test_models_that_differ_in_more_than_attention_are_no_evidence_on_it():
    early = {
        "task": "detection",
        "model": "retinanet",
        "model_args": {"backbone_args": {"attention_stages": [1, 2, 3, 4]}},
    }
    own = {"label": "own", "task": "detection", "model": "retinanet"}
    alike = experiment(compare=False, own=own, all=early | {"label": "all", "base_lr": 0.01})  # its own rate
    assert len(where.predicted(alike, [])) == 1 and "Found" in where.predicted(alike, [])
    longer = experiment(compare=False, own=own, all=early | {"label": "all", "epochs": 7})
    assert "Found" not in where.predicted(longer, [])


def test_an_experiment_of_one_layout_says_that_it_compares_nothing():
    alone = experiment(compare=False)
    runs = made(alone, "retinanet", 40.0, 41.0)
    table = where.predicted(alone, runs)
    assert "nothing to compare" in table["Claim"][0]
    told = where.summary(alone, runs, table)
    assert "RetinaNet: box AP (%) 40.50 ± 0.71 (n=2)" in told and "nothing about stages" in told
    assert "Part" not in where.table(alone, runs)


def test_a_model_whose_seeds_lie_far_apart_is_told():
    assert where.apart(SMALL, RUNS) == []
    astray = [r for r in RUNS if not r["run_id"].startswith("retinanet_all-")] + made(
        SMALL, "retinanet_all", 36.5, 52.0
    )
    said = (
        "RetinaNet, attention in all: its seeds lie 15.5 points apart, from 36.50 to 52.00, and their mean says little."
    )
    assert where.apart(SMALL, astray) == [said]
    assert said in where.summary(SMALL, astray, where.predicted(SMALL, astray)).splitlines()


def test_a_panel_of_scores_that_hardly_differ_shows_five_points():
    alike = experiment(compare=False)
    runs = made(alike, "semantic_fpn", 62.4, 62.6) + made(alike, "retinanet", 40.0, 48.0)
    boxes, masks, pixels = where.by_layout(alike, runs).axes
    low, high = pixels.get_ylim()
    assert high - low == pytest.approx(5) and (low + high) / 2 == pytest.approx(62.5)
    assert 8 < boxes.get_ylim()[1] - boxes.get_ylim()[0] < 10


def test_a_panel_a_head_and_layouts_from_none_to_all():
    figure = where.by_layout(SMALL, RUNS)
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles == ["RetinaNet", "Mask R-CNN", "Semantic FPN"]
    assert [panel.get_ylabel() for panel in figure.axes] == ["test box AP (%)", "test mask AP (%)", "test mIoU (%)"]
    for panel in figure.axes:
        assert [tick.get_text() for tick in panel.get_xticklabels()] == ["no stage", "stages 3 and 4", "all stages"]
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata() == pytest.approx([31, 41, 41.2])
    curves = where.curves(SMALL, RUNS).axes[2].lines
    assert [curve.get_ydata()[-1] for curve in curves] == pytest.approx([61.0, 64.1])


def test_another_backbone_is_called_by_its_name():
    mine = experiment(
        compare=False,
        lit={"label": "LIT", "task": "detection", "model": "retinanet_lit_ti"},
        other={
            "label": "ResNet",
            "task": "detection",
            "model": "retinanet",
            "model_args": {"backbone": "resnet18"},
        },
    )
    assert where.by_head(mine) == {"RetinaNet": {"lit": (3, 4), "other": "resnet18"}}


def test_published_numbers_have_measured_ones_beside_them_where_the_published_model_was_run():
    coco = experiment(
        compare=False,
        it={"label": "LIT-Ti", "task": "instance_segmentation", "model": "mask_rcnn_lit_ti"},
    )
    found = {"lit_ti": everything(coco, made(coco, "it", 30.0, 32.0))["it"]}
    table = lit_dense.table("mask_rcnn", found)
    assert table["Mask AP measured (%)"].tolist() == ["31.00 ± 1.41 (n=2)", "not run"]
    assert table["Box AP measured (%)"].tolist() == ["41.00 ± 1.41 (n=2)", "not run"]
    assert table["Box AP reported (%)"].tolist() == ["42.0", "42.9"]


def test_tables_of_classification_name_their_headline_as_before():
    digits = load_experiment("digits")
    table = study_tables.study(digits, [])
    assert [c for c in table if c.startswith("digits ")] == ["digits top-1 (%)"]
    assert "digits top-1 (points)" in study_tables.pairs(digits, [])
