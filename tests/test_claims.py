"""The claims ledger: complete, its verdicts computed by rules that can say each of the four words."""

import csv
from functools import cache

import pytest
from timm.layers import Mlp

from ffvit.evidence import tables
from ffvit.evidence.measured import measured
from ffvit.evidence.reported import CSV, load_reported
from ffvit.models import cost, ff
from ffvit.models.mixing import MlpOverTokens
from ffvit.settings.experiment import load_experiment
from ffvit.studies import claim_checks, claims, ledger, model_checks, report_results
from ffvit.studies.finding import CONTRADICTED, NOT_COMPARABLE, NOT_RUN, REPRODUCED, VERDICTS, Finding
from ffvit.system.files import EXPERIMENTS

WELL, NOT_WELL = "Without attention a transformer does", "Attention without feed-forward layers"
exact_costs = cache(cost.exact_costs)


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    monkeypatch.setattr(cost, "exact_costs", exact_costs)


def opened(experiment):
    return load_experiment(experiment) if isinstance(experiment, str) else experiment


def make_record(experiment, name, seed, top1, **settings):
    config = opened(experiment).config(name, seed, **settings)
    return {
        "run_id": config.run_id,
        "config": config.to_dict(),
        "model": exact_costs(config.model),
        "dataset": {"fingerprint": "0" * 16},
        "history": [{}] * config.total_epochs,
        "results": {"top1_percent": top1},
        "started_at": "",
        "hardware": {"gpu": "A GPU", "processes": 1},
        "git": {"commit": "abcdef0123456789", "dirty": False},
    }


def runs(experiment, **top1):
    """Records of some models, a value a seed."""
    return [make_record(experiment, name, seed, x) for name, values in top1.items() for seed, x in enumerate(values)]


def row_of(table, claim, where=""):
    found = table[table["Claim"].str.startswith(claim) & table["Where"].str.startswith(where)]
    assert len(found) == 1
    return found.iloc[0]


def find(claim, experiment, records=None, **top1):
    """What the check of one claim finds, without the rest of the ledger."""
    [found] = [c for c in (*claims.numbers(), *claims.CLAIMS) if c.text.startswith(claim)]
    scope = opened(experiment)
    return found.check(scope, measured(scope, records or runs(experiment, **top1)))


@pytest.fixture(scope="module")
def digits():
    records = runs("digits", ff=[98.7, 98.9], vit=[83.1, 87.2], attention_only=[97.3, 98.6])
    return ledger.ledger(load_experiment("digits"), records)


def test_every_number_of_the_report_has_its_row(digits):
    with open(CSV, newline="") as file:
        printed = [c for c in csv.DictReader(file) if c["paper"] == report_results.PAPER and c["value"]]
    for cells in printed:
        words, unit, _ = claims.NUMBERS[cells["metric"]]
        row = row_of(digits, f"{report_results.NAMES[cells['model']]}: {words}", cells["place"])
        assert row["Reported"] == cells["value"] + unit
        assert cells["note"] in row["Note"]
    assert len(digits) == len(printed) + len(claims.CLAIMS)


def test_the_ledger_is_of_one_paper_and_names_the_other_beside_the_number_it_doubts(digits):
    others = [r for r in load_reported() if r.paper == claims.DEIT]
    assert others
    for other in others:
        row = row_of(digits, f"{report_results.NAMES[other.model]}: ImageNet top-1", "Table 1")
        assert f"{other.paper}, {other.place}: {other.value}" in row["Note"]


def test_a_verdict_is_one_of_four_words_and_not_run_means_nothing_measured(digits):
    assert set(digits["Verdict"]) == set(VERDICTS)
    nothing = digits["Verdict"] == NOT_RUN
    assert (nothing == (digits["Measured"] == "not run")).all()
    assert (nothing == (digits["Scale"] == "")).all()


@pytest.mark.parametrize("experiment", ["digits", "cifar10", "cifar10-small"])
def test_accuracies_of_another_scale_never_stand_beside_imagenets(experiment):
    scope = load_experiment(experiment)
    found = measured(scope, runs(experiment, ff=[61.4], vit=[72.2], attention_only=[28.2]))
    accuracies = [c for c in claims.numbers() if c.text.endswith("ImageNet top-1")]
    assert len(accuracies) == 9
    assert {c.check(scope, found) for c in accuracies} == {Finding()}


def test_a_count_agrees_within_half_a_unit_of_the_last_printed_digit(digits):
    tolerances = digits[digits["Claim"].str.endswith(": parameters")].set_index("Reported")["Tolerance"]
    assert tolerances["4.0M"] == tolerances["7.7M"] == "± 0.05M"
    assert set(tolerances["86M"]) == {"± 0.5M"} and tolerances["206M"] == "± 0.5M"


def test_another_count_of_the_model_contradicts(digits, monkeypatch):
    assert row_of(digits, "FF only, tiny: parameters")["Verdict"] == REPRODUCED
    monkeypatch.setattr(cost, "exact_costs", lambda name: {**exact_costs(name), "parameters": 7_755_000})
    finding = find("FF only, tiny: parameters", "digits")
    assert (finding.measured, finding.verdict) == ("7,755,000", CONTRADICTED)


def test_a_count_that_rounds_only_without_the_classifier_is_contradicted_and_says_why(digits):
    row = row_of(digits, "DeiT, base: parameters")
    assert row["Verdict"] == CONTRADICTED  # 86,567,656 rounds to 87 million
    assert "Without the classifier 85,798,656" in row["Note"]  # 768 * 1000 + 1000 fewer


@pytest.mark.parametrize(
    "top1, verdict, measured",
    [
        ([61.0, 61.6], REPRODUCED, "61.30 ± 0.42 (n=2)"),
        ([60.8], CONTRADICTED, "60.80 (n=1)"),
        ([61.0], REPRODUCED, "61.00 (n=1)"),
        ([60.0, 62.6], REPRODUCED, "61.30 ± 1.84 (n=2)"),  # the mean decides
    ],
)
def test_imagenet_accuracy_is_judged_by_its_mean(top1, verdict, measured):
    finding = find("FF only, tiny: ImageNet top-1", "imagenet", ff_tiny=top1)
    assert (finding.verdict, finding.measured, finding.scale) == (verdict, measured, "ImageNet")
    assert (finding.seeds, finding.tolerance) == (str(len(top1)), "± 0.5 points")


def test_imagenet_runs_unlike_the_reports_are_not_comparable(tmp_path):
    text = (EXPERIMENTS / "imagenet.toml").read_text().replace("drop_rate = 0.1", "drop_rate = 0.1\nepochs = 30")
    (tmp_path / "imagenet.toml").write_text(text)
    shorter = load_experiment(tmp_path / "imagenet.toml")
    short = make_record(shorter, "ff_tiny", 0, 61.4)
    finding = find("FF only, tiny: ImageNet top-1", shorter, [short])
    assert finding.verdict == NOT_COMPARABLE and "epochs 30 instead of 300" in finding.note
    narrow = make_record("imagenet", "ff_tiny", 0, 61.4) | {"model": {**exact_costs(claims.TINY), "parameters": 5}}
    finding = find("FF only, tiny: ImageNet top-1", "imagenet", [narrow])
    assert finding.verdict == NOT_COMPARABLE and "5 parameters instead of 7,676,332" in finding.note


def test_vits_number_is_no_yardstick_for_deits_recipe():
    finding = find("ViT, large: ImageNet top-1", "imagenet", vit_large=[71.2])
    assert finding.verdict == NOT_COMPARABLE and "DeiT's recipe" in finding.note


def test_attention_only_has_the_reports_100_epochs():
    assert find("attention only, tiny: ImageNet top-1", "imagenet", attention_only=[28.0]).verdict == REPRODUCED
    epochs = find("attention only, tiny: epochs", "imagenet", attention_only=[28.0])
    assert (epochs.verdict, epochs.measured) == (REPRODUCED, "100")


@pytest.mark.parametrize(
    "ff, verdict",
    [
        ([90.0, 90.1, 89.9], REPRODUCED),  # 2 points below ViT, 95 % within 0.25
        ([99.0, 99.1, 98.9], REPRODUCED),  # above ViT
        ([80.0, 80.1, 79.9], CONTRADICTED),  # 12 points below
        ([87.0, 87.2, 86.8], NOT_COMPARABLE),  # 5 points below, the limit itself
        ([90.0], NOT_COMPARABLE),  # one seed has no spread
    ],
)
def test_well_means_at_most_the_reports_own_distance_at_base_size(ff, verdict):
    assert claim_checks.close() == 5.0  # 79.9 - 74.9
    assert find(WELL, "cifar10", vit=[92.0, 92.0, 92.0], ff=ff).verdict == verdict


@pytest.mark.parametrize(
    "attention_only, verdict",
    [
        ([80.0, 80.1, 79.9], REPRODUCED),  # 12 points below ViT
        ([91.0, 91.1, 90.9], CONTRADICTED),  # 1 point below
        ([80.0, 91.0, 86.0], NOT_COMPARABLE),
    ],
)
def test_not_well_means_more_than_that(attention_only, verdict):
    assert find(NOT_WELL, "cifar10", vit=[92.0, 92.0, 92.0], attention_only=attention_only).verdict == verdict


def test_a_small_scale_shows_the_difference_and_decides_nothing():
    experiment = "digits"
    finding = find(WELL, experiment, vit=[92.0, 92.1], ff=[90.0, 90.1])
    scope = load_experiment(experiment).scope
    assert (finding.verdict, finding.scale, finding.seeds) == (NOT_COMPARABLE, scope, "2")
    assert finding.measured.startswith("ViT less FF only: +2.00 points")
    assert f"{scope} cannot carry the claim" in finding.note


def test_behaviour_on_imagenet_needs_more_than_one_seed():
    finding = find(WELL, "imagenet", deit_base=[81.8], ff_base=[74.9])
    assert finding.verdict == NOT_COMPARABLE and "without a spread" in finding.note
    assert find(WELL, "imagenet", deit_base=[79.9, 80.0], ff_base=[75.9, 76.02]).verdict == REPRODUCED


@pytest.mark.parametrize("large, verdict", [([74.0, 74.12], REPRODUCED), ([76.0, 76.12], CONTRADICTED)])
def test_large_worse_than_base_is_judged_on_imagenet(large, verdict):
    claim = "Large models get worse than base ones on ImageNet-1k alone: without"
    assert find(claim, "imagenet", ff_base=[75.0, 75.1], ff_large=large).verdict == verdict
    assert find(claim, "cifar10", ff=[75.0, 75.1]).verdict == NOT_RUN


@pytest.mark.parametrize("check", [model_checks.figure1, model_checks.figure2])
def test_a_block_of_another_model_contradicts_the_figures(check):
    assert check(claims.TINY).verdict == REPRODUCED
    assert check("attention_only_tiny_patch16_224").verdict == CONTRADICTED


@pytest.mark.parametrize(
    ("check", "layer"),
    [
        (model_checks.features_are_a_1x1_convolution, Mlp),
        (model_checks.patches_are_a_full_convolution, MlpOverTokens),
    ],
)
def test_a_layer_that_does_more_is_no_convolution(check, layer, monkeypatch):
    assert check(claims.TINY).verdict == REPRODUCED
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: forward(self, x) * 1.0001)
    assert check(claims.TINY).verdict == CONTRADICTED


def test_a_class_read_from_all_tokens_contradicts(monkeypatch):
    monkeypatch.setattr(ff.PatchFeatureMixer, "forward_head", lambda self, x: self.head(x.mean(1)))
    assert model_checks.class_token(claims.TINY).verdict == CONTRADICTED


def test_a_block_that_takes_any_length_contradicts(monkeypatch):
    assert "expected 197 tokens" in model_checks.fixed_length(claims.TINY).measured
    monkeypatch.setattr(ff.Block, "forward", lambda self, x: x)
    assert model_checks.fixed_length(claims.TINY).verdict == CONTRADICTED


def test_a_cost_that_grows_linearly_contradicts(monkeypatch):
    monkeypatch.setattr(cost, "count_macs", lambda model, size: 1000 * size[0])
    finding = model_checks.quadratic_in_tokens(claims.TINY)
    assert finding.verdict == CONTRADICTED and finding.measured.startswith("2.00 x")


def test_a_cost_that_grows_quadratically_is_not_linear(monkeypatch):
    finding = model_checks.linear_in_tokens(claims.TINY)
    assert finding.verdict == REPRODUCED and finding.measured.startswith("2.00 x")
    monkeypatch.setattr(cost, "count_macs", lambda model, size: size[0] ** 2)
    assert model_checks.linear_in_tokens(claims.TINY).verdict == CONTRADICTED


def test_other_tokens_or_shapes_contradict():
    assert model_checks.tokens("ff_base_patch16_224", 16**2 + 1).verdict == CONTRADICTED
    assert model_checks.shapes("192 x 24").verdict == CONTRADICTED


def test_summary_counts_every_row(digits):
    counts = ledger.counts(digits)
    assert list(counts) == list(VERDICTS) and sum(counts.values()) == len(digits)
    assert ledger.summary(digits).startswith(f"{counts[REPRODUCED]} reproduced, ")


def test_compact_names_every_claim_and_says_why_one_was_not_reproduced(digits):
    text = ledger.compact(digits)
    assert all(claim in text for claim in digits["Claim"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert any("| contradicted: Without the classifier" in line for line in lines)
    assert any("| not comparable: digits cannot carry" in line for line in lines)


def test_what_a_ledger_has_not_run_is_shown_where_another_has_measured_it(digits):
    missing = digits[digits["Verdict"] == NOT_RUN].iloc[0]
    other = digits.assign(Measured="7", Verdict=NOT_COMPARABLE)
    text = ledger.elsewhere(digits, {"texts": other, "nothing": digits})
    rows = text.splitlines()[2:]
    assert len(rows) == (digits["Verdict"] == NOT_RUN).sum() and all("/texts/claims.md" in row for row in rows)
    assert rows[0].startswith(f"| {missing['Claim']} | 7 |")


def test_a_group_leaves_out_columns_that_say_nothing(digits):
    assert list(ledger.group(digits, NOT_RUN)) == ["Claim", "Where", "Reported", "Note"]
    assert ledger.group(digits[:0], CONTRADICTED).empty


def test_saved_ledger_says_where_its_numbers_come_from(digits, tmp_path):
    found = measured(load_experiment("digits"), runs("digits", ff=[98.0]))
    files = [tmp_path / f"claims.{form}" for form in ("csv", "md")]
    tables.save(digits, *files, caption="Claims", source=ledger.sources(found))
    for form in ("csv", "md"):
        text = (tmp_path / f"claims.{form}").read_text()
        assert all(word in text for word in ("ff-seed0", "abcdef0123", "A GPU", "with torch"))
