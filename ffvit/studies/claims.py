"""Notebook 07: what the report (arXiv:2105.02723) claims, and how each claim is checked.

A number of the report becomes a claim as soon as it stands in reported.csv; NUMBERS says how each kind is checked. A claim of
its text is one entry of CLAIMS. To add one, add an entry; without a check it is "not run".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ffvit.evidence.measured import Measured
from ffvit.evidence.reported import load_reported
from ffvit.settings.experiment import Experiment
from ffvit.studies import ablations, model_checks, predictions, resolution, size_and_data
from ffvit.studies.claim_checks import compare, epochs, larger_is_worse, num_tokens, other_domain, parameters, top1
from ffvit.studies.finding import Finding
from ffvit.studies.report_results import NAMES, PAPER

DEIT = "arXiv:2012.12877"


@dataclass(frozen=True)
class Claim:
    text: str
    where: str  # in the report
    reported: str
    check: Callable[[Experiment, dict[str, Measured]], Finding] | None = None
    note: str = ""  # an oddity of the report, or what it would take to check
    compared: bool = False  # by the runs of an experiment's comparisons, too


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
                    reported=f"{row.printed}{unit}",
                    check=partial(check, row),
                    note="; ".join(filter(None, [row.note, *elsewhere])),
                )
            )
    return claims


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
# Other readings of it, whose records stand beside FF only's.
FF_TINY = ("ff", "ff", TINY)
UNPROJECTED = ("attention", "attention_unprojected", "attention_only_tiny_patch16_224")
OVER_TOKENS = ("attention", "attention_over_tokens", "attention_only_tiny_patch16_224")
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
        "The same, read as attention over the transposed map without projections",
        "Section 3.4",
        "does not work well",
        partial(compare, FF_TINY, UNPROJECTED, True),
        "Held against FF only, by an experiment that trains this reading, such as cifar10-small-attention-only",
    ),
    Claim(
        "The same, read as two attentions over the tokens",
        "Section 3.4",
        "does not work well",
        partial(compare, FF_TINY, OVER_TOKENS, True),
        "Held against FF only, by an experiment that trains this reading, such as cifar10-small-attention-only",
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
        "linear: 2 x at 2 x the tokens",
        partial(model_checks.linear_in_tokens, TINY),
        "Of multiply-adds, patch_hidden_dim fixed; time and memory at many lengths: notebook 14. One abstract says attention "
        "takes O(n^2) memory, the other does not: in one kernel it does not",
    ),
    Claim(
        "The model works only at a fixed sequence length",
        "Section 3.5",
        "fixed length",
        partial(model_checks.fixed_length, TINY),
        "As it stands; resampled to the new grid, its weights work at another length: notebook 15",
    ),
    # Those of the notebooks that measure them: what the report supposes, leaves open, or what follows from it.
    *(
        Claim(p.claim, p.where, p.formula, partial(predictions.check, p), compared=True)
        for p in (*ablations.PREDICTIONS, *size_and_data.PREDICTIONS, *resolution.PREDICTIONS)
    ),
    Claim(
        "How it does in other domains: text, audio",
        "Future work",
        "left open",
        partial(other_domain, DEIT_TINY, FF_TINY),
        note="The experiment definitions has a small set of texts; audio was not tried",
    ),
)
