import importlib
import subprocess
import sys

import pytest

from ffvit.evidence import counted
from ffvit.evidence.reported import CSV, load_reported, reported
from ffvit.system.errors import InputError
from ffvit.system.files import ROOT

TABLE1 = {  # model: (parameters in millions, ImageNet top-1 in percent); None: blank in the report
    "vit_tiny_patch16_224": (None, None),
    "deit_tiny_patch16_224": (5.7, 72.2),
    "ff_tiny_patch16_224": (7.7, 61.4),
    "vit_base_patch16_224": (86, 77.9),
    "deit_base_patch16_224": (86, 79.9),
    "ff_base_patch16_224": (62, 74.9),
    "vit_large_patch32_224": (306, 71.2),
    "deit_large_patch32_224": (None, None),
    "ff_large_patch32_224": (206, 71.4),
}
LIT = "arXiv:2105.14217"
LIT_README = {  # place: {model: numbers in the order of the metrics}
    ("ImageNet-1K", "parameters", "macs", "top1"): {
        "lit_ti": (19, 3.6, 81.1),
        "lit_s": (27, 4.1, 81.5),
        "lit_m": (48, 8.6, 83.0),
        "lit_b": (86, 15.0, 83.4),
        "pvt_msa": (20, 8.4, 80.9),
    },
    ("RetinaNet, COCO 1x", "parameters", "box_ap"): {"lit_ti": (30, 41.6), "lit_s": (39, 41.6)},
    ("Mask R-CNN, COCO 1x", "parameters", "box_ap", "mask_ap"): {"lit_ti": (40, 42.0, 39.1), "lit_s": (48, 42.9, 39.6)},
    ("Semantic FPN, ADE20K", "parameters", "miou"): {"lit_ti": (24, 41.3), "lit_s": (32, 41.7)},
}
HEADER = "paper,place,model,metric,value,unit,source,note\n"


def test_every_row_loads():
    assert len(load_reported()) == len(CSV.read_text().splitlines()) - 1


def test_table_1_is_what_the_report_prints():
    rows = [r for r in load_reported() if r.place == "Table 1"]
    assert len(rows) == 2 * len(TABLE1)
    assert {m: tuple(reported("Table 1", m, what).value for what in ("parameters", "top1")) for m in TABLE1} == TABLE1
    assert {r.source for r in rows} == {"report"}


@pytest.mark.parametrize("model", [m for m, values in TABLE1.items() if values == (None, None)])
def test_a_blank_of_the_report_stays_blank(model):
    assert reported("Table 1", model, "top1").value is None
    assert reported("Table 1", model, "parameters").value is None


def test_the_attention_only_experiment_is_what_section_3_4_prints():
    values = {r.metric: r.value for r in load_reported() if r.place == "Section 3.4"}
    assert values == {"parameters": 4.0, "top1": 28.2, "epochs": 100}


def test_the_earlier_abstract_gives_base_with_three_decimals():
    assert reported("Abstract (earlier version)", "ff_base_patch16_224", "top1").value == 74.896


@pytest.mark.parametrize(
    "place, model, metric, words",
    [
        ("Table 1", "deit_base_patch16_224", "top1", ["79.9", "81.8", "DeiT-small"]),
        ("Table 1", "ff_tiny_patch16_224", "top1", ["dropout 0.1"]),
        ("Figure 2", "ff_base_patch16_224", "num_tokens", ["16^2+1", "14^2+1"]),
        ("Table 1", "ff_large_patch32_224", "parameters", ["7x7", "14x14"]),
        ("Section 3.4", "attention_only_tiny_patch16_224", "parameters", ["our reading", "4,039,360", "3,945,640"]),
        ("Section 3.4", "attention_only_tiny_patch16_224", "top1", ["100 epochs"]),
    ],
)
def test_an_oddity_of_the_report_stands_beside_its_number(place, model, metric, words):
    note = reported(place, model, metric).note
    assert [word for word in words if word not in note] == []


def test_deit_bases_published_figure_is_kept_as_another_papers():
    row = reported("Table 5", "deit_base_patch16_224", "top1", paper="arXiv:2012.12877")
    assert (row.value, row.source) == (81.8, "paper")


@pytest.mark.parametrize("place, metrics", [(place, metrics) for place, *metrics in LIT_README])
def test_lits_tables_are_what_the_readme_of_its_code_says(place, metrics):
    rows = [r for r in load_reported() if (r.paper, r.place) == (LIT, place)]
    table = LIT_README[place, *metrics]
    assert {m: tuple(reported(place, m, what, LIT).value for what in metrics) for m in table} == table
    assert len(rows) == len(table) * len(metrics) and {r.source for r in rows} == {"readme"}


def test_every_number_of_lit_is_in_one_of_its_readmes_tables():
    assert {r.place for r in load_reported() if r.paper == LIT} == {place for place, *_ in LIT_README}


@pytest.mark.parametrize(
    "place, model, metric, words",
    [
        *(
            ("ImageNet-1K", model, "parameters", "Without the classifier")
            for model in ("lit_ti", "lit_s", "lit_m", "lit_b")
        ),
        ("ImageNet-1K", "pvt_msa", "parameters", "would be 19"),
        ("ImageNet-1K", "pvt_msa", "top1", "attention in all four stages and plain merging"),
        ("ImageNet-1K", "lit_ti", "macs", "they are multiply-adds"),
        ("Semantic FPN, ADE20K", "lit_ti", "miou", "8k"),
    ],
)
def test_an_oddity_of_lits_readme_stands_beside_its_number(place, model, metric, words):
    assert words in reported(place, model, metric, LIT).note


def test_a_number_the_papers_do_not_give_is_a_key_error():
    with pytest.raises(KeyError, match="ff_attention_tiny_patch16_224"):
        reported("Table 1", "ff_attention_tiny_patch16_224", "top1")


@pytest.mark.parametrize(
    "rows, trouble",
    [
        (["p,T,m,top1,61.4,percent,blog,"], r"line 2: source 'blog'; known: report, paper, readme"),
        (["p,T,m,top1,61.4,million,report,"], r"line 2: metric 'top1' in 'million'"),
        (["p,T,m,speed,61.4,percent,report,"], r"line 2: metric 'speed'"),
        (["p,T,m,top1,61.4,percent,report,", "p,T,n,top1,6l.4,percent,report,"], r"line 3: '6l.4' is no value"),
        (["p,T,m,top1,100.1,percent,report,"], r"line 2: '100.1' is no value in percent"),
        (["p,T,m,top1,nan,percent,report,"], r"line 2: 'nan'"),
        (["p,T,m,parameters,-1,million,report,"], r"line 2: '-1'"),
        (["p,T,m,top1,61.4,percent,report,", "p,T,m,top1,61.5,percent,report,"], r"line 3: top1 of m is given twice"),
        (["p,T,m,top1,61.4,percent,report"], r"line 2: needs the columns"),
        (["p,T,m,top1,61.4,percent,report,,"], r"line 2: needs the columns"),
        (["", "p,T,m,top1,101,percent,report,"], r"line 3: '101'"),
    ],
)
def test_a_wrong_row_is_refused_by_its_line(tmp_path, rows, trouble):
    path = tmp_path / "reported.csv"
    path.write_text(HEADER + "\n".join(rows) + "\n")
    with pytest.raises(InputError, match=trouble):
        load_reported(path)


def test_counted_costs_are_those_of_the_models(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    assert counted.CSV.read_text() == importlib.import_module("page").counted_again()


def test_a_table_of_records_builds_no_model():
    block = "import sys; from ffvit.studies import report_results, study_tables, study_plots, mistakes, lit_dense, lit_stage_plots; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", block]).returncode == 0
