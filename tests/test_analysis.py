"""The study: statistics as computed by hand, blanks where nothing was run, and pairs only of what compares."""

import copy
import json
import math

import matplotlib.pyplot as plt
import PIL.Image
import pytest

from ffvit.evidence import drawing
from ffvit.evidence.measured import everything, measured, sources
from ffvit.evidence.records import load_records, load_trials
from ffvit.evidence.seed_statistics import Difference, difference, holm, interval
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import mistakes, other_domains, report_results, study_plots, study_tables
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS

STUDY, DIGITS = load_experiment("cifar10"), load_experiment("digits")
RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())
FIGURES = (study_plots.accuracy_by_cost, study_plots.comparisons, mistakes.per_class, mistakes.agreement_figure)
CELLS = {
    "ff": ("ff", "ff"),
    "vit": ("attention", "ff"),
    "attention_only": ("attention",) * 2,
    "ff_attention": ("ff", "attention"),
}


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plt.close("all")


def made(name, seed=0, top1=80.0, experiment=STUDY, **results):
    """A record of digits, rewritten as one of another experiment's runs with 10 test images."""
    config = experiment.config(name, seed)
    record = copy.deepcopy(RECORDED)
    images = config.max_train_images or 45000
    record |= {"run_id": config.run_id, "config": config.to_dict(), "history": record["history"][:3]}
    record["model"] |= dict(zip(("patches", "features"), CELLS[experiment.variants[name].of or name]))
    record["dataset"] |= {"fingerprint": f"of {images}", "images": {"train": images, "validation": 5000, "test": 10}}
    record["dataset"].pop("class_names", None)  # of the digits
    record["hardware"] |= {"gpu": None, "processes": 1, "cpu": "A Processor"}
    record["results"] |= {"images": 10, "top1_percent": top1, "mistakes": "0:1 1:2"} | results
    return record


def several(name, *top1, **more):
    return [made(name, seed, value, **more) for seed, value in enumerate(top1)]


def row(table, **cells):
    """The one row with these cells."""
    fits = [r for r in table.to_dict("records") if all(r[column] == value for column, value in cells.items())]
    assert len(fits) == 1
    return fits[0]


def texts(figure):
    return " ".join(text.get_text() for panel in figure.axes for text in panel.texts)


def test_interval_is_students():
    half = 2.7764 * math.sqrt(2.5) / math.sqrt(5)  # t of 4 degrees of freedom, sd and n of 1, ..., 5
    assert interval([1, 2, 3, 4, 5]) == pytest.approx((3 - half, 3 + half), abs=1e-3)


def test_what_is_below_zero_has_a_minus_and_no_hyphen():
    records = [*several("ff", 70, 71), *several("vit", 80, 83)]
    found = row(study_tables.pairs(STUDY, records), Difference="FF only − ViT", Part="The models at one shape")
    assert found["CIFAR-10 top-1 (points)"] == "−11.00 (n=2)"
    assert found["95 % interval"] == "−23.71 to +1.71"


def test_a_single_seed_has_neither_interval_nor_test():
    assert interval([3.0]) is None and Difference({0: 3.0}).p is None


@pytest.mark.parametrize(
    "points, p",
    [
        ([1, 3], 1 - 2 / math.pi * math.atan(2)),  # t = 2 / 1, one degree of freedom: Cauchy's
        ([1, 2, 3], 1 - math.sqrt(12 / (12 + 2))),  # t = 2 / sqrt(1 / 3), t² = 12, two degrees of freedom
        ([-1, 1], 1.0),
    ],
)
def test_paired_test_gives_the_closed_forms(points, p):
    assert Difference(dict(enumerate(points))).p == pytest.approx(p)


def test_holm_is_as_by_hand():
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04, none below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


def test_models_are_compared_by_seed_and_not_by_order():
    found = everything(STUDY, [made("ff", 1, 90), made("ff", 2, 80), made("vit", 2, 79), made("vit", 3, 50)])
    assert difference(found["ff"], found["vit"]).points == [1]


def test_models_without_a_seed_in_common_were_run_all_the_same():
    table = study_tables.pairs(STUDY, [made("ff", 0), made("vit", 1)])
    of = row(table, Difference="FF only − ViT", Part="The models at one shape")
    assert of[f"{STUDY.scope} top-1 (points)"] == study_tables.NO_SEED == "no seed in common"


def test_runs_on_different_images_are_no_pair_and_both_are_named():
    records = [made("ff"), made("vit")]
    records[1]["dataset"]["fingerprint"] = "another"
    for table in (study_tables.pairs, mistakes.agreement):
        with pytest.raises(InputError, match="ff-seed0 and vit-seed0 of cifar10 are of different images"):
            table(STUDY, records)


def test_planned_models_meet_in_the_grid_and_at_every_value_of_a_comparison():
    planned = [("ff", "vit"), ("attention_only", "vit"), ("ff_attention", "ff"), ("ff_attention", "vit")]
    assert STUDY.pairs() == planned
    assert STUDY.pairs("matched") == [
        ("ff", "vit_matched"),
        ("attention_only_matched", "vit_matched"),
        ("ff_attention_matched", "ff"),
        ("ff_attention_matched", "vit_matched"),
    ]
    assert STUDY.pairs("data") == [("ff_30", "vit_30"), ("ff_10", "vit_10")]
    assert STUDY.pairs("loader") == [("ff_loader", "ff")]  # against the grid


def test_without_a_plan_the_first_model_meets_the_others():
    unplanned = Experiment(**STUDY.model_dump() | {"planned": []})
    assert unplanned.pairs() == [("ff", other) for other in ("vit", "attention_only", "ff_attention")]


@pytest.mark.parametrize(
    "ff, vit, words",
    [
        ([90, 91, 92], [80.0, 81.1, 81.9], "FF only better"),
        ([80, 81.1, 81.9], [90, 91, 92], "FF only worse"),
        ([80, 81, 82], [82, 80, 81], "no difference shown (n=3)"),
        ([80], [90], "too few seeds (n=1)"),
        ([80.1, 81.1], [80.2, 81.2], "the same difference in all 2 seeds: no test"),
    ],
)
def test_verdict_goes_by_the_corrected_test(ff, vit, words):
    table = study_tables.pairs(STUDY, several("ff", *ff) + several("vit", *vit))
    assert row(table, Part="The models at one shape", Difference="FF only − ViT")["What the seeds show"] == words


def test_correction_is_over_the_planned_tests_and_over_the_others():
    # p of [1, 3] is 0.295: alone as it is, as one of two tests 0.590.
    few = several("ff_10", 81, 83) + several("vit_10", 80, 80) + several("ff_30", 81, 83) + several("vit_30", 80, 80)
    table = study_tables.pairs(STUDY, several("ff", 81, 83) + several("vit", 80, 80) + few)
    tested = table[table["p"] != ""]
    assert tested["Kind"].tolist() == ["planned", "exploratory", "exploratory"]
    assert tested["p"].tolist() == ["0.295"] * 3 and tested["p (Holm)"].tolist() == ["0.295", "0.590", "0.590"]
    few = row(table, Difference="FF only, 10 % of the images − ViT, 10 % of the images")
    assert few["CIFAR-10 top-1 (points)"] == "+2.00 (n=2)"
    assert row(table, Difference="FF only, three times as long − ViT, three times as long")["p"] == ""


def test_any_models_compare_under_any_words():
    found = everything(STUDY, several("vit", 81, 83) + several("ff_attention", 80, 80))
    compared = [("vit", "ff_attention", "this", "that"), ("vit", "ff", "this", "the other")]
    table = study_tables.differences(STUDY, found, compared, ["all"] * 2)
    assert table["Difference"].tolist() == ["this − that", "this − the other"]
    assert table["CIFAR-10 top-1 (points)"].tolist() == ["+2.00 (n=2)", "not run"]
    assert table["p (Holm)"].tolist() == ["0.295", ""]  # one test: nothing to correct


def test_images_one_by_one_are_compared_with_the_grids_batches():
    table = study_tables.pairs(STUDY, several("ff", 80, 80) + several("ff_loader", 81, 82))
    found = row(table, Difference="FF only, one by one − FF only")
    assert found["Part"] == "Images augmented one by one" and found["CIFAR-10 top-1 (points)"] == "+1.50 (n=2)"


def test_study_has_a_row_for_every_model_and_says_what_was_not_run():
    table = study_tables.study(STUDY, several("ff", 80, 82) + [made("vit_10", top1=70)])
    assert len(table) == len(STUDY.variants) + 1
    assert (table["CIFAR-10 top-1 (%)"] == "not run").sum() == len(table) - 3
    again = row(table, Part="The models at equal multiply-adds", Model="FF only (the grid's run)")
    first = row(table, Part="The models at one shape", Model="FF only")
    assert {k: v for k, v in again.items() if k not in ("Part", "Model")}.items() <= first.items()
    assert first["CIFAR-10 top-1 (%)"] == "81.00 ± 1.41 (n=2)"
    half = 12.706  # t of 1 degree of freedom x 1.414 / sqrt(2)
    assert first["95 % interval"] == f"{81 - half:.2f} to {81 + half:.2f}"
    few = row(table, Model="ViT, 10 % of the images")
    assert few["95 % interval"] == "none: fewer than 2 seeds" and few["Training images"] == "4,500"


def test_sources_name_the_runs_of_all_parts():
    records = [made("ff"), made("vit_matched"), made("ff_long"), made("vit_10"), made("ff_loader")]
    words = sources(everything(STUDY, records))
    assert all(r["run_id"] in words for r in records)


def test_agreement_is_as_counted_by_hand():
    records = [made("ff", mistakes="0:1 1:2 2:3"), made("vit", mistakes="1:2 2:5 3:1 4:1")]
    found = {(a.first, a.second): a for a in mistakes.agreements(STUDY, records)}
    both = found["ff", "vit"]
    assert both.pairs == 1 and both.errors == pytest.approx((30, 40))
    assert both.both == pytest.approx(20) and both.independent == pytest.approx(12)  # images 1 and 2; 0.3 x 0.4
    assert both.overlap == pytest.approx(40) and both.independent_overlap == pytest.approx(100 * 12 / (30 + 40 - 12))
    assert both.same_answer == pytest.approx(50)  # image 1 of images 1 and 2
    assert (found["ff", "ff"].pairs, found["ff", "ff"].why_blank) == (0, "too few seeds")
    assert found["vit", "attention_only"].why_blank == "not run"


def test_seeds_of_a_model_are_all_paired_and_averaged():
    answers = ("0:1 1:1", "0:1 1:2", "")
    records = [made("ff", seed, mistakes=text) for seed, text in enumerate(answers)]
    seeds = mistakes.agreements(STUDY, records)[0]
    assert seeds.pairs == 3 and seeds.both == pytest.approx(20 / 3)
    assert seeds.overlap == pytest.approx(100 / 3)  # 100, 0 and 0
    assert seeds.same_answer == pytest.approx(50)  # of the one pair with common mistakes


def test_records_without_mistakes_leave_a_blank():
    records = [made("ff"), made("vit"), made("vit", 1)]
    del records[0]["results"]["mistakes"]
    table = mistakes.agreement(STUDY, records)
    assert row(table, **{"Runs of": "FF only; ViT"})["Wrong (%)"] == "mistakes not recorded"
    assert row(table, **{"Runs of": "ViT"})["Pairs of runs"] == 1


def trial(name, seed, top1, **settings):
    record = made(name, seed)
    del record["results"]
    record["config"] |= settings
    record["history"][-1]["validation_top1_percent"] = top1
    return record


def test_trials_say_in_what_they_differ_the_best_first():
    found = [
        trial("vit", 0, 50.0),
        trial("ff", 0, 60.0),
        trial("ff", 1, 62.0),
        trial("ff", 0, 70.0, epochs=3, base_lr=0.5),
    ]
    del found[0]["config"]["augment"]  # written by a version without it: had its default, "image"
    table = study_tables.trials(STUDY, found)
    assert table["Settings unlike the experiment's"].tolist() == [
        "base_lr=0.5, epochs=3",
        "as chosen",
        'augment="image"',
    ]
    assert table["Validation top-1 (%)"].tolist() == ["70.00 (n=1)", "61.00 ± 1.41 (n=2)", "50.00 (n=1)"]
    assert table["Seeds"].tolist() == ["0", "0, 1", "0"] and table["Name"].tolist() == ["ff", "ff", "vit"]
    assert study_tables.trial_sources(found).startswith("Validation images, after the last epoch, of 4 trials: commit ")


def test_no_trial_is_a_row_that_says_so():
    assert study_tables.trials(STUDY, [])["Model"].tolist() == ["not run"]


@pytest.mark.parametrize("experiment", ["digits", "cifar10-small", "imagenet"])
def test_nothing_run_makes_tables_and_figures_that_say_so(experiment):
    experiment = load_experiment(experiment)
    for make in (study_tables.study, study_tables.pairs, mistakes.agreement):
        assert (make(experiment, []) == "not run").any(axis=None)
    for draw in FIGURES:
        assert "not run" in texts(draw(experiment, []))


def test_digits_records_make_all_tables_and_figures(tmp_path):
    records = load_records("digits")
    table = study_tables.pairs(DIGITS, records)
    assert row(table, Difference="FF only − ViT")["digits top-1 (points)"].endswith(f"(n={len(DIGITS.seeds)})")
    for draw in FIGURES:
        if draw is not study_plots.comparisons:  # it has none
            figure = draw(DIGITS, records)
            assert "not run" not in texts(figure)
            drawing.save(figure, tmp_path / "figure.png", source="")


def test_a_cell_looks_the_same_in_every_part_and_whatever_is_missing():
    assert drawing.style_of(STUDY, "vit_matched") == drawing.style_of(STUDY, "vit_10") == drawing.style_of(STUDY, "vit")
    assert len({drawing.style_of(STUDY, n)[0] for n in ("ff", "vit", "attention_only", "ff_attention")}) == 4
    records = [made("vit"), made("vit_long")]
    alone = report_results.training_curves(STUDY, measured(STUDY, records)).axes[0].lines[0]
    thick, thin = study_plots.accuracy_by_cost(STUDY, records).axes[0].lines
    assert alone.get_color() == thick.get_color() == thin.get_color() == drawing.style_of(STUDY, "vit")[0]
    assert thick.get_linewidth() > thin.get_linewidth()


def named(figure):
    """What the legends of a figure say."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_thin_lines_are_named_by_what_they_are():
    said = named(study_plots.accuracy_by_cost(STUDY, [made("vit"), made("vit_long")]))
    assert "thin: three times as long, 300 epochs" in said
    ablations = load_experiment("digits-ablations")
    fewer = [made(name, experiment=ablations) for name in ("ff", "ff_images128")]
    assert "thin: 128 images, 72 epochs" in named(study_plots.accuracy_by_cost(ablations, fewer))


@pytest.mark.parametrize("seeds, told", [(3, False), (4, True)])
def test_a_bar_is_explained_where_one_is_drawn(seeds, told):
    records = [made(name, seed, 80 + seed) for name in ("ff", "ff_10") for seed in range(seeds)]
    figure = study_plots.comparisons(STUDY, records)
    assert ("bars: 95 % interval of the mean, from 4 seeds on" in named(figure)) == told
    assert "bars" not in figure.get_suptitle()


def test_training_costs_three_passes_over_the_whole_batches():
    record = made("ff")
    record["model"]["macs"], record["config"]["batch_size"] = 10, 512
    line = study_plots.accuracy_by_cost(STUDY, [record]).axes[2].lines[0]
    images = 87 * 512  # of 45,000, in batches of 512
    assert line.get_xdata() * 1e6 == pytest.approx([3 * 10 * images * epoch for epoch in (1, 2, 3)])


def test_times_are_of_one_machine_which_is_named_where_there_are_others():
    records = [made("ff"), made("vit")]
    for record in records:
        record["history"][0]["cpu_seconds"] = 60.0
        record["history"] = record["history"][:1]
    assert "this machine alone" not in texts(study_plots.accuracy_by_cost(STUDY, records))
    records[1]["hardware"]["cpu"] = "B Processor"
    figure = study_plots.accuracy_by_cost(STUDY, records)
    assert "runs on this machine alone:\n1 x A Processor" in texts(figure)
    epochs, seconds = figure.axes[:2]
    assert len(epochs.lines) == 2 and len(seconds.lines) == 1


def test_a_comparison_begins_with_the_grid():
    records = [made("ff", top1=90), made("ff_10", top1=70), made("vit_30", top1=75)]
    parts = list(STUDY.compare)
    panel = study_plots.comparisons(STUDY, records).axes[parts.index("data")]
    ticks = [t.get_text() for t in panel.get_xticklabels()]
    assert ticks == ["as in the grid", "30 % of the images", "10 % of the images"]
    color = drawing.style_of(STUDY, "ff")[0]
    marks = [line for line in panel.lines if line.get_markeredgecolor() == color and line.get_marker() == "o"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in marks] == [(0, 90), (2, 70)]


def test_values_of_a_comparison_are_not_joined_and_models_without_one_are_not_in_its_legend():
    resolution = load_experiment("digits-resolution")
    names = ("ff", "ff_img_size12_tuned", "ff_img_size12_anew", "vit", "attention_only")
    figure = study_plots.comparisons(resolution, [made(name, experiment=resolution) for name in names])
    assert not [line for panel in figure.axes for line in panel.lines if len(set(line.get_xdata())) > 1]
    assert named(figure) == ["FF only", "ViT"]
    assert {handle.get_linestyle() for handle in figure.legends[0].legend_handles} == {"None"}


def test_processor_time_is_shown_where_it_was_recorded():
    old, new = made("ff"), made("vit")
    for epoch in old["history"]:
        epoch.pop("cpu_seconds", None)
    for epoch in new["history"]:
        epoch["cpu_seconds"] = 60.0
    [line] = study_plots.accuracy_by_cost(STUDY, [old, new]).axes[1].lines
    assert line.get_color() == drawing.style_of(STUDY, "vit")[0] and list(line.get_xdata()) == [1, 2, 3]
    table = study_tables.study(STUDY, [old, new])
    assert row(table, Model="ViT", Part="The models at one shape")["Processor time (min)"] == "3"
    assert row(table, Model="FF only", Part="The models at one shape")["Processor time (min)"] == ""


def test_beside_a_gpu_processor_time_says_nothing_and_is_left_out():
    records = [made("ff"), made("vit")]
    for record in records:
        record["hardware"]["gpu"] = "A GPU"
        for epoch in record["history"]:
            epoch["cpu_seconds"] = 60.0
    figure = study_plots.accuracy_by_cost(STUDY, records)
    assert not figure.axes[1].lines and "trained on a GPU" in texts(figure)
    table = study_tables.study(STUDY, records)
    assert row(table, Model="ViT", Part="The models at one shape")["Processor time (min)"] == "–"


def test_models_at_equal_cost_stand_beside_those_whose_cost_it_is():
    study = load_experiment("cifar10-small")
    records = [made(name, experiment=study) for name in ("ff", "vit", "attention_only", "attention_only_matched")]
    panel = study_plots.comparisons(study, records).axes[list(study.compare).index("matched")]
    at = {line.get_markeredgecolor(): set(line.get_xdata()) for line in panel.lines if line.get_marker() in "osD^v"}
    assert at[drawing.style_of(study, "ff")[0]] == at[drawing.style_of(study, "vit")[0]] == {0}


def test_no_two_models_of_an_experiment_look_alike():
    for name in ("digits", "digits-lit", "cifar10-lit"):  # of 4, 10 and 15 models
        experiment = load_experiment(name)
        styles = [drawing.style_of(experiment, variant.name) for variant in experiment.main_variants]
        assert len(styles) == len(set(styles))


def test_learning_rates_show_trials_that_differ_in_that_alone_and_ring_what_was_chosen():
    chosen = STUDY.config("ff").base_lr
    trials = [trial("ff", 0, 50.0, base_lr=chosen), trial("ff", 0, 48.0, base_lr=2 * chosen)]
    trials += [trial("ff", 0, 70.0, base_lr=chosen, epochs=50)]  # what a longer one reached says nothing of rates
    panel = study_plots.learning_rates(STUDY, trials).axes[0]
    line, ring = panel.lines
    assert list(line.get_ydata()) == [50, 48] and list(ring.get_xydata()[0]) == [chosen, 50]


def test_learning_rates_are_those_of_the_variants_that_tuning_names():
    study = load_experiment("digits-resolution")
    panel = study_plots.learning_rates(study, load_trials("digits-resolution")).axes[0]
    lines = {line.get_label(): line for line in panel.lines if not line.get_label().startswith("_")}
    assert [*lines] == [
        *(f"{model}, img_size {size}, trained anew" for model in ("FF only", "ViT") for size in (12, 16))
    ]
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == len(lines) == len(panel.lines) - 4  # and a ring each


def test_a_symbol_of_a_text_is_drawn_white():
    text = PIL.Image.new("L", (240, 27))
    text.putpixel((3, 5), 255)
    known = other_domains.Anchors(20.0, 50.0)
    [shown] = other_domains.figure(load_experiment("definitions"), {}, known, text, "animal").axes[0].images
    assert tuple(shown.to_rgba(shown.get_array())[5, 3]) == (1, 1, 1, 1)
    assert tuple(shown.to_rgba(shown.get_array())[4, 3]) == (0, 0, 0, 1)


def test_classes_are_named_where_the_record_names_them():
    scores = [float(value) for value in range(10)]
    records = [made("ff", per_class_percent=scores), made("vit", per_class_percent=[5.0] * 9 + [None])]
    assert _classes(records) == [str(c) for c in range(9)]  # the last has no images
    records[0]["dataset"]["class_names"] = list("abcdefghij")
    assert _classes(records) == list("abcdefghi")


def test_of_many_classes_those_at_either_end_are_shown():
    records = [made("ff", per_class_percent=list(range(100))), made("vit", per_class_percent=[50.0] * 100)]
    assert _classes(records) == [str(c) for c in (*range(15), *range(85, 100))]


def _classes(records):
    return [t.get_text() for t in mistakes.per_class(STUDY, records).axes[0].get_xticklabels()]
