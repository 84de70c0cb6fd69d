"""The claims ledger: every number and claim of the report (arXiv:2105.02723), what was measured here, and a verdict.

A number of the report becomes a row as soon as it stands in reported.csv; NUMBERS says how each kind is checked. A claim of
its text is one line of CLAIMS. To add one, add a line; without a check it is "not run".

A verdict is computed, by these rules:

- a count is checked on the model itself, and agrees within half a unit of the last digit that the report prints;
- an ImageNet accuracy is compared with ImageNet runs of the report's length only, mean over seeds, within POINTS;
- behaviour is judged by the 95 % t-interval of the difference over paired seeds, and only at a scale of CARRIES: an interval
  that holds the limit decides nothing. CLOSE_TO is the limit between "well" and "not well";
- what nobody has tried is "not run".
"""

import csv
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import timm
import torch

from ffvit.evidence import measured as evidence
from ffvit.evidence.measured import Measured
from ffvit.evidence.reported import CSV, Reported, load_reported, reported
from ffvit.evidence.statistics import difference, interval
from ffvit.models import cost
from ffvit.settings.experiment import Experiment
from ffvit.settings.recipes import deit
from ffvit.studies import model_checks, report
from ffvit.studies.verdicts import (
    MODEL,
    NOT_COMPARABLE,
    NOT_RUN,
    REPRODUCED,
    VERDICTS,
    Finding,
    judged,
    of_model,
)
from ffvit.system import provenance

PAPER, DEIT = "arXiv:2105.02723", "arXiv:2012.12877"
# Points of ImageNet top-1 that a repetition may differ. The report gives one run a model and no spread. DeiT's own code, run
# again by others for DeiT-tiny's 72.2, gave 71.9, 72.2 and 72.7 (deit repository, issues 32 and 40).
POINTS = 0.5
# The behaviour of models is judged here, the scale beside the verdict; digits, and CIFAR-10 cut down to an hour, have too few
# pixels or too little training.
CARRIES = ("ImageNet", "CIFAR-10", "CIFAR-10, small models")
# "Surprisingly well" is said of these two: their distance in Table 1 is the limit, in points, between well and not well.
CLOSE_TO = ("deit_base_patch16_224", "ff_base_patch16_224")


@dataclass(frozen=True)
class Claim:
    text: str
    where: str  # in the report
    reported: str
    check: Callable[[Experiment, dict[str, Measured]], Finding] | None = None
    note: str = ""  # an oddity of the report, or what it would take to check


def ledger(experiment: Experiment, records: list[dict]) -> pd.DataFrame:
    """One row a number or claim of the report: what was measured by these records, or on the model, and the verdict."""
    found = evidence.measured(experiment, records)
    rows = []
    for claim in (*numbers(), *CLAIMS):
        finding = claim.check(experiment, found) if claim.check else Finding()
        rows.append(
            {
                "Claim": claim.text,
                "Where": claim.where,
                "Reported": claim.reported,
                "Measured": finding.measured,
                "Scale": finding.scale,
                "Seeds": finding.seeds,
                "Tolerance": finding.tolerance,
                "Verdict": finding.verdict,
                "Note": "; ".join(filter(None, [finding.note, claim.note])),
            }
        )
    return pd.DataFrame(rows)


def counts(table: pd.DataFrame) -> dict[str, int]:
    """Rows by verdict, in the order of VERDICTS."""
    return {verdict: int((table["Verdict"] == verdict).sum()) for verdict in VERDICTS}


def summary(table: pd.DataFrame) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in counts(table).items())


def group(table: pd.DataFrame, verdict: str) -> pd.DataFrame:
    """The rows with one verdict, without the columns that say nothing about them."""
    rows = table[table["Verdict"] == verdict].drop(columns="Verdict")
    silent = [column for column in rows if rows[column].isin(["", NOT_RUN]).all()]
    return rows if rows.empty else rows.drop(columns=silent)


def compact(table: pd.DataFrame) -> str:
    """The ledger in Markdown for a page that has other things to say: what was judged as a table, the rest as a list."""
    judged = table[table["Verdict"] != NOT_RUN]
    why = [f": {note.partition('; ')[0]}" if note else "" for note in judged["Note"]]
    verdicts = [v if v == REPRODUCED else v + reason for v, reason in zip(judged["Verdict"], why)]
    shown = judged.assign(Verdict=verdicts)[["Claim", "Reported", "Measured", "Scale", "Verdict"]]
    rest = [f"{row.Claim} ({row.Reported})" for row in table[table["Verdict"] == NOT_RUN].itertuples()]
    lines = [list(shown), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{text}\nNot run, with what the report says: {'; '.join(rest)}.\n"


def sources(found: dict[str, Measured]) -> str:
    """Where the ledger's measured values come from."""
    versions = provenance.versions()
    return (
        f"{evidence.sources(found)} Scale '{MODEL}': counted or computed when this was made, with torch {versions['torch']} "
        f"and timm {versions['timm']}. Tolerance of an ImageNet accuracy: {POINTS} points, mean over seeds."
    )


def numbers() -> list[Claim]:
    """A claim for every number of the report in reported.csv; its blanks are none."""
    rows = load_reported()
    claims = []
    for row in rows:
        if row.paper == PAPER and row.value is not None:
            words, unit, check = NUMBERS[row.metric]
            elsewhere = [
                f"{r.paper}, {r.place}: {r.value:g} {r.unit}"
                for r in rows
                if r.paper == DEIT and (r.model, r.metric) == (row.model, row.metric)
            ]
            claims.append(
                Claim(
                    text=f"{NAMES.get(row.model, row.model)}: {words}",
                    where=row.place,
                    reported=f"{_printed(row)}{unit}",
                    check=partial(check, row),
                    note="; ".join(filter(None, [row.note, *elsewhere])),
                )
            )
    return claims


def parameters(row: Reported, *_) -> Finding:
    """Parameters of the model at 1000 classes."""
    count = cost.exact_costs(row.model)["parameters"]
    agrees = _rounds_to(count, row)
    return replace(
        of_model(f"{count:,}", agrees, f"± {_half_unit(row):g}M"), note="" if agrees else _without_classifier(row)
    )


def num_tokens(row: Reported, *_) -> Finding:
    return model_checks.tokens(row.model, row.number)


def top1(row: Reported, experiment: Experiment, found: dict[str, Measured]) -> Finding:
    """ImageNet top-1 in percent; the accuracies of another experiment have no place beside it."""
    mine = _on_imagenet(experiment, found, row.model)
    if mine is None:
        return Finding()
    other = _unlike_the_reports(mine)
    if not other and NAMES[row.model].startswith("ViT") and mine.records[0]["config"]["recipe"] == "deit":
        other = "trained by DeiT's recipe; the report's ViT and DeiT are one network, trained in two ways"
    agrees = abs(mine.mean - row.number) <= POINTS
    return Finding(
        measured=str(mine),
        verdict=NOT_COMPARABLE if other else judged(agrees),
        scale=experiment.scope,
        seeds=str(len(mine.top1_percent)),
        tolerance=f"± {POINTS} points",
        note=other,
    )


def epochs(row: Reported, experiment: Experiment, found: dict[str, Measured]) -> Finding:
    mine = _on_imagenet(experiment, found, row.model)
    if mine is None:
        return Finding()
    trained = sorted({len(record["history"]) for record in mine.records})
    return Finding(
        measured=" and ".join(map(str, trained)),
        verdict=judged(trained == [row.value]),
        scale=experiment.scope,
        seeds=str(len(mine.records)),
        tolerance="exact",
    )


def _printed(row: Reported) -> str:
    """The number's digits as they stand in the file: 4.0 is not 4."""
    with open(CSV, newline="") as file:
        keys = ("paper", "place", "model", "metric")
        return next(c["value"] for c in csv.DictReader(file) if all(c[k] == getattr(row, k) for k in keys))


def _half_unit(row: Reported) -> float:
    """Of the last digit printed: 0.05 for 7.7, 0.5 for 62."""
    return 0.5 * 10.0 ** -len(_printed(row).partition(".")[2])


def _rounds_to(count: int, row: Reported) -> bool:
    return abs(count / 1e6 - row.number) <= _half_unit(row)


def _without_classifier(row: Reported) -> str:
    with torch.device("meta"):
        count = cost.count_parameters(timm.create_model(row.model, num_classes=0))
    return f"Without the classifier {count:,}, which rounds to it" if _rounds_to(count, row) else ""


def _on_imagenet(experiment: Experiment, found: dict[str, Measured], model: str) -> Measured | None:
    if experiment.scope != "ImageNet":
        return None
    return next((m for m in found.values() if m.model == model), None)


def _unlike_the_reports(mine: Measured) -> str:
    """In what ImageNet runs of a model are not the report's: its size, length and images. Empty: in nothing."""
    printed = {r.model: int(r.number) for r in load_reported() if (r.paper, r.metric) == (PAPER, "epochs")}
    wanted = {
        "epochs": printed.get(mine.model, deit()["epochs"]),
        "max_train_images": 0,
        "max_eval_images": 0,
    }
    config = mine.records[0]["config"]
    unlike = [f"{name} {config[name]} instead of {value}" for name, value in wanted.items() if config[name] != value]
    exact = cost.exact_costs(mine.model)["parameters"]
    if mine.parameters != exact:
        unlike.append(f"{mine.parameters:,} parameters instead of {exact:,}")
    return ", ".join(unlike)


def compare(
    better: tuple[str, str, str],
    worse: tuple[str, str, str],
    far: bool,
    experiment: Experiment,
    found: dict[str, Measured],
    limit: float | None = None,
) -> Finding:
    """Top-1 of `better` less that of `worse`, seed by seed.

    better, worse: what mixes patches, what mixes features, and the model that stands for this on ImageNet.
    far: the claim puts the difference above the limit, otherwise at or below. limit: in points; None: close().
    """
    limit = close() if limit is None else limit
    a, b = (report.in_cell(experiment, found, *cell) for cell in (better, worse))
    points = difference(a, b).points if a and b else []
    if not (a and b and points):
        return Finding(note="needs runs of both models with the same seeds")
    limits = interval(points)
    spread = f" (95 % {limits[0]:+.2f} to {limits[1]:+.2f})" if limits else ""
    measured = f"{a.label} less {b.label}: {statistics.mean(points):+.2f} points{spread}"
    unlike = experiment.scope == "ImageNet" and (_unlike_the_reports(a) or _unlike_the_reports(b))
    if experiment.scope not in CARRIES:
        verdict, note = NOT_COMPARABLE, f"{experiment.scope} cannot carry the claim, {' or '.join(CARRIES)} can"
    elif unlike:
        verdict, note = NOT_COMPARABLE, unlike
    elif limits is None:
        verdict, note = NOT_COMPARABLE, "without a spread over seeds there is no interval"
    elif limits[0] <= limit < limits[1]:
        verdict, note = NOT_COMPARABLE, f"the interval of {len(points)} seeds holds the limit: more seeds can decide"
    else:
        verdict, note = judged((limits[0] > limit) == far), ""
    return Finding(
        measured=measured.replace("-", "−"),
        verdict=verdict,
        scale=experiment.scope,
        seeds=str(len(points)),
        tolerance=f"{'more than' if far else 'at most'} {limit:g} points, with 95 % confidence",
        note=note,
    )


def larger_is_worse(
    base: tuple[str, str, str], large: tuple[str, str, str], experiment: Experiment, found: dict[str, Measured]
) -> Finding:
    """Only ImageNet's experiment has two sizes of a model."""
    return compare(base, large, True, experiment, found, limit=0) if experiment.scope == "ImageNet" else Finding()


def close() -> float:
    """The limit between well and not well, in points: how far apart the report's two models of CLOSE_TO are."""
    attention, feed_forward = (reported("Table 1", model, "top1").number for model in CLOSE_TO)
    return round(attention - feed_forward, 2)


NAMES = {name: f"{family}, {size.partition(',')[0].lower()}" for size, family, name in report.TABLE1}
NAMES["attention_only_tiny_patch16_224"] = "attention only, tiny"
# By the metric of reported.csv: its words, its unit, its check.
NUMBERS = {
    "parameters": ("parameters", "M", parameters),
    "top1": ("ImageNet top-1", " %", top1),
    "epochs": ("epochs until its run ended", "", epochs),
    "num_tokens": ("tokens, the class token included", "", num_tokens),
}
TINY = "ff_tiny_patch16_224"
SHAPES = "192 x 12, 16 of 224 px; 768 x 12, 16 of 224 px; 1024 x 24, 32 of 224 px"
# Patches mixed by, features mixed by, the model on ImageNet.
FF_BASE, FF_LARGE = ("ff", "ff", "ff_base_patch16_224"), ("ff", "ff", "ff_large_patch32_224")
DEIT_TINY, DEIT_BASE = ("attention", "ff", "deit_tiny_patch16_224"), ("attention", "ff", "deit_base_patch16_224")
VIT_LARGE = ("attention", "ff", "vit_large_patch32_224")
ATTENTION_ONLY = ("attention", "attention", "attention_only_tiny_patch16_224")
CLAIMS = (
    Claim(
        "A block is: feed-forward over features, transpose, feed-forward over patches, transpose; repeated N times",
        "Figure 1",
        "N x features, transpose, patches, transpose",
        partial(model_checks.figure1, TINY),
        "N is 12 at tiny and base size and 24 at large, in the author's file",
    ),
    Claim("The class is read from the class token", "Figure 1", "class token", partial(model_checks.class_token, TINY)),
    Claim(
        "The code of a block: two Mlp modules, two LayerNorms, two residual sums, two transposes",
        "Figure 2",
        "2 of each",
        partial(model_checks.figure2, TINY),
        "The second LayerNorm has a weight for every token; MLP-Mixer's has one for every channel",
    ),
    Claim(
        "Feed-forward over features is a 1x1 convolution",
        "Section 3.1",
        "the same function",
        partial(model_checks.features_are_a_1x1_convolution, TINY),
    ),
    Claim(
        "Feed-forward over patches is a convolution with full receptive field and a single channel",
        "Section 3.1",
        "the same function",
        partial(model_checks.patches_are_a_full_convolution, TINY),
    ),
    Claim(
        "Width x depth and patch size at tiny, base and large size",
        "Section 3.2, the author's file",
        SHAPES,
        partial(model_checks.shapes, SHAPES),
    ),
    Claim(
        "FF only, large: tokens, the class token included",
        "Section 3.2, the author's file",
        "50",
        partial(model_checks.tokens, "ff_large_patch32_224", 50),
    ),
    Claim(
        "DeiT's setup and hyper-parameters, unchanged, at all sizes",
        "Section 3.2",
        "unchanged",
        note="Tells of the author's runs. His README's command for tiny has dropout 0.1, DeiT's default is 0; training with "
        "and without it on ImageNet would show what it changes",
    ),
    Claim(
        "Without attention a transformer does surprisingly well: it stays close to ViT",
        "Title, abstract, section 3.3",
        "surprisingly well",
        partial(compare, DEIT_BASE, FF_BASE, False),
        "The limit is the report's own distance between DeiT and FF only at base size; DeiT-base's published figure would "
        "make it larger",
    ),
    Claim(
        "Attention without feed-forward layers does not work well",
        "Section 3.4",
        "does not work well",
        partial(compare, DEIT_TINY, ATTENTION_ONLY, True),
        "Our reading of the model, whose code was not published: attention over the tokens, then over the transposed map. In the "
        "report it had 100 epochs, the others 300",
    ),
    Claim(
        "Large models get worse than base ones on ImageNet-1k alone: without attention",
        "Section 3.3",
        "worse",
        partial(larger_is_worse, FF_BASE, FF_LARGE),
        "Needs both sizes on ImageNet, several seeds. They also differ in patch size, 16 and 32",
    ),
    Claim(
        "Large models get worse than base ones on ImageNet-1k alone: with attention",
        "Section 3.3",
        "worse",
        partial(larger_is_worse, DEIT_BASE, VIT_LARGE),
        "Needs both sizes on ImageNet, by one recipe, several seeds. They also differ in patch size, 16 and 32",
    ),
    Claim(
        "Cost is quadratic in sequence length when the hidden width of the patch layer is a multiple of it, as usual",
        "Section 3.5",
        "4 x at 2 x the tokens",
        partial(model_checks.quadratic_in_tokens, TINY),
    ),
    Claim(
        "Cost can be linear in sequence length when that hidden width is fixed",
        "Section 3.5",
        "linear",
        note="Needs a model with such a layer, its cost at several lengths, and whether it still learns. One abstract says "
        "attention takes O(n^2) memory, the other does not",
    ),
    Claim(
        "The model works only at a fixed sequence length",
        "Section 3.5",
        "fixed length",
        partial(model_checks.fixed_length, TINY),
    ),
    Claim(
        "Patch embedding and training procedure may explain more of ViT's strength than attention does",
        "Section 3.5",
        "a supposition",
        note="Needs FF only and DeiT trained with and without DeiT's augmentation, and with another embedding, on ImageNet",
    ),
    Claim(
        "What normalisation and initialisation contribute",
        "Future work",
        "left open",
        note="Needs training without or with other norms and initial weights, a seed at a time",
    ),
    Claim(
        "How it does in other domains: text, audio",
        "Future work",
        "left open",
        note="Needs data and models that are not of images",
    ),
)
