"""LIT's tables: published numbers as they are, exact counts beside them, and every difference as computed by hand."""

import copy
import inspect
import json

import matplotlib.pyplot as plt
import pytest

from ffvit.evidence import drawing
from ffvit.evidence.measured import measured
from ffvit.evidence.reported import reported
from ffvit.models import lit
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import lit_dense, lit_stage_plots, lit_stages
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS

RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
PLACES = {"none": [], "stage4": [4], "own": None, "stages234": [2, 3, 4], "all": [1, 2, 3, 4]}  # None: not given


def experiment(scope="CIFAR-10", models=None):
    """Every place of attention with every merging; or models of their own arguments."""
    axes = {
        "attention": [_value(name, f"the {name}", attention_stages=stages) for name, stages in PLACES.items()],
        "merging": [
            _value("", ""),
            _value("zero", "zero-offset merging", learn_offsets=False),
            _value("plain", "plain merging", deformable=False),
        ],
    }
    stages = {"title": "x", "vary": axes, "against": {"attention": "own", "merging": "plain"}}
    entries = {n: {"label": f"the {n}", "model_args": _given(**args)} for n, args in (models or {}).items()}
    return Experiment(
        name="small", title="Small", scope=scope, about="x", seeds=[0], models=entries,
        compare={} if models else {"stages": stages}, settings={"dataset": "digits", "model": "lit_ti"},
    )  # fmt: skip


def _value(name, label, **model_args):
    return {"name": name, "label": label, "set": {"model_args": _given(**model_args)}}


def _given(**model_args):
    return {name: value for name, value in model_args.items() if value is not None}


SMALL = experiment()


def made(name, *top1, experiment=SMALL, parameters=1000, macs=5_000_000):
    """Records of one model, a value a seed: those of digits, rewritten."""
    records = []
    for seed, value in enumerate(top1):
        config = experiment.config(name, seed)
        record = copy.deepcopy(RECORDED)
        record |= {"run_id": config.run_id, "config": config.to_dict()}
        record["model"] |= {"parameters": parameters, "macs": macs, "patches": None, "features": None}
        record["results"]["top1_percent"] = value
        records.append(record)
    return records


def row(table, **cells):
    """The one row with these cells."""
    fits = [r for r in table.to_dict("records") if all(r[column] == value for column, value in cells.items())]
    assert len(fits) == 1
    return fits[0]


def texts(figure):
    return [text.get_text() for panel in figure.axes for text in panel.texts]


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


# Costs


@pytest.mark.parametrize(
    "attention, merging, parameters, macs",
    [
        ((), "deformable", 14_262_208, "2.820"),
        ((4,), "deformable", 17_417_152, "2.985"),
        ((3, 4), "deformable", 19_886_272, "3.614"),
        ((2, 3, 4), "deformable", 20_151_488, "4.449"),
        ((1, 2, 3, 4), "deformable", 20_201_792, "8.379"),
        ((3, 4), "plain", 19_869_864, "3.611"),
        ((1, 2, 3, 4), "plain", 20_185_384, "8.376"),
    ],
)
def test_a_layout_costs_what_was_counted_on_the_official_one(attention, merging, parameters, macs):
    costs = lit_stages.costs(lit_stages.Layout("lit_ti", attention, merging))
    assert (costs.parameters, f"{costs.macs / 1e9:.3f}") == (parameters, macs)


@pytest.mark.parametrize("attention", lit_stages.PLACES)
def test_with_its_offsets_at_zero_deformable_merging_costs_what_the_plain_one_does(attention):
    zero, plain = (lit_stages.costs(lit_stages.Layout("lit_ti", attention, m)) for m in ("zero-offset", "plain"))
    assert zero == plain


def test_costs_table_has_every_layout_and_both_published_numbers():
    table = lit_stages.costs_table()
    assert len(table) == 15
    ours = row(table, **{"Attention in": "stages 3 and 4", "Merging": "deformable"})
    assert (ours["Params"], ours["Multiply-adds"]) == ("19,886,272", "3,613,743,104")
    assert (ours["Multiply-adds, LIT-Ti = 1"], ours["Multiply-adds reported"]) == ("1.00", "3.6G")
    pvt = row(table, **{"Known as": "PVT w/ MSA"})
    assert (pvt["Attention in"], pvt["Merging"], pvt["Params"]) == ("all stages", "plain", "20,185,384")
    assert (pvt["Multiply-adds reported"], pvt["ImageNet top-1 reported (%)"]) == ("8.4G", "80.9")
    assert (table["Multiply-adds reported"] != "").sum() == 2  # the README has no others


@pytest.mark.parametrize(
    "attention, macs",
    [
        ("stage 4", 3 * (4 * 50 * 512**2 + 2 * 50**2 * 512)),  # blocks x (qkv and projection, QKᵀ and AV)
        ("stages 3 and 4", 6 * (4 * 196 * 320**2 + 2 * 196**2 * 320)),
        ("stages 2 to 4", 4 * (4 * 784 * 128**2 + 2 * 784**2 * 128)),
        ("all stages", 3 * (4 * 3136 * 64**2 + 2 * 3136**2 * 64)),
    ],
)
@pytest.mark.parametrize("merging", lit_stages.MERGINGS)
def test_attention_of_a_stage_costs_what_the_formula_says(attention, macs, merging):
    found = row(lit_stages.costs_table(), **{"Attention in": attention, "Merging": merging})
    assert found["Of these, attention in the earliest stage"] == f"{macs:,}"


def test_attention_in_stage_1_costs_more_than_all_of_lit_ti():
    everywhere, later, own = (
        lit_stages.costs(lit_stages.Layout("lit_ti", places, "deformable")).macs
        for places in ((1, 2, 3, 4), (2, 3, 4), lit_stages.OWN)
    )
    assert everywhere - later > own and everywhere > 2 * own


# What is published


def test_lits_own_stages_are_the_models_default():
    default = {name: p.default for name, p in inspect.signature(lit.LIT).parameters.items()}
    assert default["attention_stages"] == lit_stages.OWN
    assert default["deformable"] is True and default["learn_offsets"] is True


def test_only_leaving_out_the_classifier_and_cutting_off_gives_lits_parameters():
    lits = [name for name in lit_stages.PUBLISHED if name != "pvt_msa"]
    printed = [reported(lit_stages.IMAGENET, name, "parameters", lit_stages.PAPER).value for name in lits]
    costs = [lit_stages.costs(lit_stages.PUBLISHED[name][1]) for name in lits]
    readings = {
        ("without", "cut off"): [c.without_classifier // 10**6 for c in costs],
        ("without", "rounded"): [round(c.without_classifier / 1e6) for c in costs],
        ("with", "cut off"): [c.parameters // 10**6 for c in costs],
        ("with", "rounded"): [round(c.parameters / 1e6) for c in costs],
    }
    assert [reading for reading, values in readings.items() if values == printed] == [("without", "cut off")]


def test_the_model_lit_is_compared_with_was_counted_in_another_way():
    costs = lit_stages.costs(lit_stages.PUBLISHED["pvt_msa"][1])
    assert reported(lit_stages.IMAGENET, "pvt_msa", "parameters", lit_stages.PAPER).value == 20
    assert costs.without_classifier == 19_672_384 and costs.without_classifier // 10**6 == 19


@pytest.mark.parametrize("name", lit_stages.PUBLISHED)
def test_published_multiply_adds_are_the_counted_ones_rounded(name):
    printed = reported(lit_stages.IMAGENET, name, "macs", lit_stages.PAPER).value
    assert round(lit_stages.costs(lit_stages.PUBLISHED[name][1]).macs / 1e9, 1) == printed


def test_imagenet_table_repeats_the_readme_and_counts_exactly():
    table = lit_stages.imagenet_table(experiment(scope="ImageNet"), {})
    assert table["Model"].tolist() == ["LIT-Ti", "LIT-S", "LIT-M", "LIT-B", "PVT w/ MSA"]
    assert table["Params reported"].tolist() == ["19M", "27M", "48M", "86M", "20M"]
    counted = ["19,886,272", "27,973,720", "49,372,264", "87,292,384", "20,185,384"]
    assert table["Params exact"].tolist() == counted
    assert table["Multiply-adds reported"].tolist() == ["3.6G", "4.1G", "8.6G", "15.0G", "8.4G"]
    assert table["ImageNet top-1 reported (%)"].tolist() == ["81.1", "81.5", "83.0", "83.4", "80.9"]
    assert set(table["ImageNet top-1 measured (%)"]) == {"not run"}


def test_an_imagenet_run_stands_beside_the_layout_it_is_of():
    large = experiment("ImageNet", {"lit_ti": {}, "pvt": {"attention_stages": [1, 2, 3, 4], "deformable": False}})
    records = made("pvt", 80.5, 80.7, experiment=large, parameters=20_185_384)
    table = lit_stages.imagenet_table(large, measured(large, records))
    assert table["ImageNet top-1 measured (%)"].tolist() == ["not run"] * 4 + ["80.60 ± 0.14 (n=2)"]


def test_a_run_of_another_shape_is_not_the_published_model():
    large = experiment("ImageNet", {"lit_ti": {}})
    records = made("lit_ti", 80.5, experiment=large, parameters=19_886_271)
    table = lit_stages.imagenet_table(large, measured(large, records))
    assert set(table["ImageNet top-1 measured (%)"]) == {"not run"}


def test_zero_offset_merging_is_not_the_published_plain_one_though_it_has_as_many_parameters():
    large = experiment("ImageNet", {"zero": {"attention_stages": [1, 2, 3, 4], "learn_offsets": False}})
    records = made("zero", 80.5, experiment=large, parameters=20_185_384)
    table = lit_stages.imagenet_table(large, measured(large, records))
    assert set(table["ImageNet top-1 measured (%)"]) == {"not run"}


def test_small_images_never_stand_in_an_imagenet_column():
    table = lit_stages.imagenet_table(SMALL, measured(SMALL, made("own", 71.23, parameters=19_886_272)))
    holds = {column for column in table if table[column].astype(str).str.contains("71.23").any()}
    assert holds == {"CIFAR-10 top-1 measured (%)"}
    assert row(table, Model="the own")["Params exact"] == "19,886,272"
    assert row(table, Model="the all")["CIFAR-10 top-1 measured (%)"] == "not run"


@pytest.mark.parametrize(
    "stem, column, numbers",
    [
        ("retinanet", "Box AP", ["41.6", "41.6"]),
        ("mask_rcnn", "Mask AP", ["39.1", "39.6"]),
        ("semantic_fpn", "mIoU", ["41.3", "41.7"]),
    ],
)
def test_detection_and_segmentation_are_reported_and_not_run(stem, column, numbers):
    table = lit_dense.table(stem, {})
    assert table["Model"].tolist() == ["LIT-Ti", "LIT-S"]
    assert table[f"{column} reported (%)"].tolist() == numbers
    assert table[f"{column} measured (%)"].tolist() == ["not run"] * 2


# What is measured


def test_settings_that_are_not_given_are_lits_own():
    found = lit_stages.layouts(
        experiment(models={"own": {}, "turned": {"attention_stages": [4, 3]}, "none": {"attention_stages": []}})
    )
    assert found["own"] == found["turned"] == lit_stages.Layout("lit_ti", (3, 4), "deformable")
    assert found["none"].stages == ()


@pytest.mark.parametrize("merging, model_args", lit_stages.MERGINGS.items())
def test_a_merging_is_known_by_the_arguments_that_make_it(merging, model_args):
    found = lit_stages.layouts(experiment(models={"it": model_args}))
    assert found["it"].merging == merging and found["it"].model_args == {"attention_stages": [3, 4]} | model_args


def test_stages_have_words():
    places = [*lit_stages.PLACES, (1, 2, 3), (1, 3), (1, 2, 4)]
    assert [lit_stages.words(place) for place in places] == [
        *("no stage", "stage 4", "stages 3 and 4", "stages 2 to 4", "all stages"),
        *("stages 1 to 3", "stages 1 and 3", "stages 1 and 2 and 4"),
    ]


def test_measured_table_has_a_row_for_every_layout():
    table = lit_stages.measured_table(SMALL, made("stage4_plain", 80, 82, parameters=1234))
    assert len(table) == 15 and (table["CIFAR-10 top-1 (%)"] == "not run").sum() == 14
    found = row(table, **{"Attention in": "stage 4", "Merging": "plain"})
    assert (found["CIFAR-10 top-1 (%)"], found["Params"]) == ("81.00 ± 1.41 (n=2)", "1,234")
    half = 12.706  # t of 1 degree of freedom x 1.414 / sqrt(2)
    assert found["95 % interval"] == f"{81 - half:.2f} to {81 + half:.2f}"


def test_attention_is_compared_with_lits_own_and_the_other_mergings_with_plain():
    table = lit_stages.pairs_table(SMALL, [])
    elsewhere = ["the none", "the stage4", "the stages234", "the all"]
    assert table["Difference"].tolist() == [
        *(f"{place} − the own" for place in elsewhere),
        *(f"{place}, zero-offset merging − the own, zero-offset merging" for place in elsewhere),
        *(f"{place}, plain merging − the own, plain merging" for place in elsewhere),
        *(f"the {place} − the {place}, plain merging" for place in PLACES),
        *(f"the {place}, zero-offset merging − the {place}, plain merging" for place in PLACES),
    ]
    assert table["What differs"].tolist() == ["attention"] * 12 + ["merging"] * 10
    assert set(table["What the seeds show"]) == {"not run"}


def test_differences_are_paired_by_seed_and_corrected_over_the_whole_table():
    # p of [1, 3] is 0.295: as one of two tests 0.590, and the other no less.
    records = made("own", 80, 81) + made("all", 81, 84) + made("own_plain", 79, 78)
    table = lit_stages.pairs_table(SMALL, records[::-1])
    everywhere = row(table, Difference="the all − the own")
    assert everywhere["CIFAR-10 top-1 (points)"] == "+2.00 (n=2)"
    assert everywhere["What the seeds show"] == "no difference shown (n=2)"
    merging = row(table, Difference="the own − the own, plain merging")
    assert merging["CIFAR-10 top-1 (points)"] == "+2.00 (n=2)"
    assert (everywhere["p"], everywhere["p (Holm)"], merging["p (Holm)"]) == ("0.295", "0.590", "0.590")


def test_a_clear_difference_names_what_is_worse():
    table = lit_stages.pairs_table(SMALL, made("own", 90, 91, 92) + made("none", 80.0, 81.1, 81.9))
    assert row(table, Difference="the none − the own")["What the seeds show"] == "the none worse"


def test_runs_on_different_images_are_no_pair():
    records = made("own", 80) + made("all", 81)
    records[1]["dataset"]["fingerprint"] = "another"
    with pytest.raises(InputError, match="all-seed0 and own-seed0 of small are of different images"):
        lit_stages.pairs_table(SMALL, records)


def test_figure_has_a_point_for_every_layout_and_a_line_for_every_merging():
    records = made("none", 70, macs=1_000_000) + made("stage4", 75, macs=2_000_000)
    records += made("own_zero", 73) + made("own_plain", 74)
    accuracy = lit_stage_plots.accuracy_by_macs(SMALL, records).axes[0]
    joined = {line.get_linestyle(): line.get_xydata().tolist() for line in accuracy.lines}
    joined.pop("None")  # marks
    assert joined == {"-": [[1, 70], [2, 75]], "-.": [[5, 73]], "--": [[5, 74]]}
    marks = [line for line in accuracy.lines if line.get_marker() in drawing.MARKERS]
    assert [mark.get_fillstyle() for mark in marks] == ["full", "full", "bottom", "full"]  # half-filled at zero offsets
    hollow = [mark.get_markerfacecolor() == "white" for mark in marks]
    assert hollow == [False, False, False, True]  # with plain merging


def test_figure_says_how_each_merging_of_the_experiment_is_drawn_and_no_other():
    def named(given):
        (legend,) = lit_stage_plots.accuracy_by_macs(given, []).legends
        return [text.get_text() for text in legend.get_texts() if "merging" in text.get_text()]

    assert named(SMALL) == ["deformable merging", "zero-offset merging", "plain merging"]
    assert named(load_experiment("digits-lit")) == ["deformable merging", "plain merging"]


def test_figure_shows_what_each_stage_adds_and_costs():
    records = made("none", 70, 71, macs=1_000_000) + made("stage4", 75, 77, macs=2_500_000) + made("all", 80, 80)
    gain = lit_stage_plots.accuracy_by_macs(SMALL, records).axes[1]
    assert [tick.get_text() for tick in gain.get_xticklabels()] == ["stage 4\n+1.5"]
    marks = [line.get_ydata() for line in gain.lines if line.get_marker() in drawing.MARKERS]
    assert marks == [[5.5]]  # of 75 - 70 and 77 - 71; nothing to compare `all` with


def test_a_place_of_attention_looks_the_same_whatever_is_missing():
    def colour(records):
        accuracy = lit_stage_plots.accuracy_by_macs(SMALL, records).axes[0]
        return [line.get_markeredgecolor() for line in accuracy.lines if line.get_marker() in drawing.MARKERS]

    assert colour(made("all", 70)) == colour(made("none", 60) + made("all", 70))[1:]


@pytest.mark.parametrize("name", ["digits", "digits-lit", "cifar10-lit", "cifar10-small-lit", "imagenet-lit"])
def test_nothing_run_makes_tables_and_a_figure_that_say_so(name):
    given = load_experiment(name)
    for make in (lit_stages.measured_table, lit_stages.pairs_table):
        assert (make(given, []) == "not run").any(axis=None)
    assert (lit_stages.imagenet_table(given, {}) == "not run").any(axis=None)
    assert texts(lit_stage_plots.accuracy_by_macs(given, [])) == ["not run", "not run"]


@pytest.mark.parametrize(
    "name, mergings",
    [
        ("digits-lit", ["deformable", "plain"]),
        *[(name, list(lit_stages.MERGINGS)) for name in ("cifar10-lit", "cifar10-small-lit")],
    ],
)
def test_the_stage_experiments_ask_for_every_place_with_each_of_their_mergings(name, mergings):
    found = lit_stages.layouts(load_experiment(name))
    wanted = {lit_stages.Layout("lit_ti", place, merging) for place in lit_stages.PLACES for merging in mergings}
    assert len(found) == len(wanted) and set(found.values()) == wanted
    assert len(lit_stages.pairs_table(load_experiment(name), [])) == 4 * len(mergings) + 5 * (len(mergings) - 1)


def test_imagenets_experiment_has_the_published_layouts():
    found = lit_stages.layouts(load_experiment("imagenet-lit"))
    assert found == {name: layout for name, (_, layout) in lit_stages.PUBLISHED.items()}
