"""Notebook 19: does attention alone fail, and is it because its tokens become alike?

The report's attention-only network (arXiv:2105.02723, section 3.4) has no published code. Dong et al. 2021
(arXiv:2103.03404) prove that attention without skip connections makes all tokens alike, doubly exponentially with
depth; skip connections and feed-forward layers hold against it. Here the residual that they measure is measured on three
readings of the report's network, beside FF only.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from timm.layers import Attention
from torch import Tensor

from ffvit.data.loader import Batch
from ffvit.evidence.drawing import finish, style_of
from ffvit.evidence.escape import drawn
from ffvit.evidence.measured import NOT_RUN, Measured
from ffvit.evidence.scoring import weights_to_score
from ffvit.evidence.seed_statistics import difference, interval
from ffvit.models.ff import PatchFeatureMixer
from ffvit.settings.experiment import Experiment
from ffvit.studies import trained_models
from ffvit.studies.claim_checks import close
from ffvit.studies.predictions import FAILS, HOLDS, UNDECIDED, judge
from ffvit.studies.trained_models import NONE_READABLE
from ffvit.system.errors import InputError

ROUNDING = 1e-14  # of a relative residual in double precision
LARGEST_STEP = 1.256  # exp(x) <= 1 + 2 x up to here: as far as the theorem's proof holds
ALIKE = 1e-3  # of a relative residual: tokens that differ by less are called alike
TINY = 1e-300  # in place of a norm that is zero
FLOOR = 1e-9  # of a figure


class Depths(NamedTuple):
    """Relative residuals of one model, from the first block's input (depth 0) on; means over images."""

    with_skips: np.ndarray  # (depth + 1,)
    without_skips: np.ndarray  # (depth + 1,)


class Bound(NamedTuple):
    """The theorem beside what it is about: attention over tokens alone, no skip connection and no norm, layer by layer.

    All are log10 of ||res(X)||, (layers + 1,), of the image where it is largest; NaN where double precision has ended.
    """

    measured: np.ndarray
    from_start: np.ndarray  # the bound for all layers up to here, from the first one's input
    from_last: np.ndarray  # the bound for one layer, from the input that it really had
    holds: bool  # whether the proof's condition on the scores does, for each image and layer


def residual(x: Tensor) -> Tensor:
    """X less the token that all would be: res(X) = X - 1 x^T, x the mean token. (..., N, D) -> (..., N, D)

    Dong et al. take the x that makes the norm smallest, which has no closed form. The mean's norm is at most twice as
    large, for X - 1 x^T = (I - 1 1^T / N)(X - 1 y^T) for any y, and the matrix in front has a norm below 2.
    """
    return x - x.mean(dim=-2, keepdim=True)


def composite_norm(x: Tensor) -> Tensor:
    """sqrt(||X||_1 ||X||_inf): the largest column sum and row sum of absolute values. (..., N, D) -> (...)"""
    return (x.abs().sum(dim=-2).amax(dim=-1) * x.abs().sum(dim=-1).amax(dim=-1)).sqrt()


def relative_residual(x: Tensor) -> Tensor:
    """||res(X)|| / ||X||: 0 where all tokens are alike. (..., N, D) -> (...)"""
    return composite_norm(residual(x)) / composite_norm(x).clamp_min(TINY)


@torch.no_grad()
def by_depth(model: Any, batches: Iterable[Batch]) -> Depths:
    """Relative residuals of the tokens that enter the first block and leave each, in double precision.

    Without skips, each branch's output takes the place of the sum, with the same weights. The model is left in double
    precision and in evaluation mode. Raises InputError where no image could be read.
    """
    model = _checked(model)
    found = torch.zeros(2, len(model.blocks) + 1, dtype=torch.float64)
    count = 0
    for tokens in _tokens(model, batches):
        count += len(tokens)
        for row, step in enumerate((_with_skips, _without_skips)):
            x = tokens
            found[row, 0] += relative_residual(x).sum()
            for depth, block in enumerate(model.blocks, 1):
                x = step(block, x)
                found[row, depth] += relative_residual(x).sum()
    return Depths(*(found / count).numpy())


@torch.no_grad()
def theorem(model: Any, batches: Iterable[Batch]) -> Bound:
    """The attentions over tokens of a model as a network of their own, beside the bound of Dong et al., Theorem 2.3:

        ||res(X_L)|| <= (4 g b H / sqrt(d))^((3^L - 1) / 2) ||res(X_0)||^(3^L)

    H heads of d features; b >= ||W_QK||_1 ||W_VO||_(1,inf) for every layer and head; g depends on the scores and is at most
    sqrt(N), which stands here. W_VO's two norms are taken over heads one by one: so the bound holds for their sum.
    Raises InputError for a model that has no attention over tokens, and where no image could be read.
    """
    model = _checked(model)
    layers = [branch.mix for block in model.blocks for branch in block.branches if not branch.transposed]
    layers = [layer for layer in layers if isinstance(layer, Attention)]
    if not layers:
        raise InputError("this model has no attention over tokens, which the theorem is about")
    first = layers[0]
    factor = math.log10(4 * max(map(_beta, layers)) * first.num_heads * math.sqrt(model.num_tokens / first.head_dim))
    largest, steps = np.full(len(layers) + 1, -np.inf), [0.0]
    for x in _tokens(model, batches):
        for depth, layer in enumerate([None, *layers]):
            if layer:
                steps.append(_largest_step(layer, residual(x)))
                x = layer(x)
            norms = composite_norm(residual(x)).log10()
            norms[relative_residual(x) < ROUNDING] = np.nan
            largest[depth] = np.max([largest[depth], *norms.tolist()])
    depths = np.arange(len(layers) + 1)
    from_start = (3.0**depths - 1) / 2 * factor + 3.0**depths * largest[0]
    from_last = np.r_[largest[0], factor + 3 * largest[:-1]]
    return Bound(largest, from_start, from_last, max(steps) <= LARGEST_STEP)


def _checked(model: Any) -> Any:
    if not isinstance(model, PatchFeatureMixer):
        raise InputError("tokens are followed through models of this library only: choose one of ffvit.models.ff")
    return model.double().eval()


def _tokens(model: Any, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Batch by batch, what enters the first block: of the images that could be read. Raises InputError for none."""
    found: list[Tensor] = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _block, given: found.append(given[0]))
    count = 0
    try:
        for images, target, _ in batches:
            if (target >= 0).any():
                found.clear()
                model.forward_features(images[target >= 0].double())
                yield found[0]
                count += 1
    finally:
        hook.remove()
    if not count:
        raise InputError(NONE_READABLE)


def _with_skips(block: Any, x: Tensor) -> Tensor:
    return block(x)


def _without_skips(block: Any, x: Tensor) -> Tensor:
    for branch in block.branches:
        x = branch(x)
    return x


def _projections(layer: Attention) -> tuple[Tensor, Tensor]:
    """W_QK and W_VO of every head, (H, D, D) each: what multiplies tokens from the right."""
    heads, width = layer.num_heads, layer.head_dim
    query, key, value = layer.qkv.weight.view(3, heads, width, -1)  # (H, d, D)
    out = layer.proj.weight.view(-1, heads, width).transpose(0, 1)  # (H, D, d)
    return query.transpose(1, 2) @ key, value.transpose(1, 2) @ out.transpose(1, 2)


def _beta(layer: Attention) -> float:
    scores, values = _projections(layer)
    columns, rows = (values.abs().sum(dim=dim).amax() for dim in (1, 2))
    return float(scores.abs().sum(dim=1).amax() * (columns * rows).sqrt())


def _largest_step(layer: Attention, r: Tensor) -> float:
    """By how much two scores of a query differ at most, of the part that is quadratic in res(X): the proof's E."""
    scores, _ = _projections(layer)
    e = r[:, None] @ scores @ r[:, None].transpose(-2, -1) * layer.scale
    return float((e.amax(dim=-1) - e.amin(dim=-1)).max())


def measure(
    experiment: Experiment, settings: dict[str, Any]
) -> tuple[dict[str, Depths], dict[str, Depths], dict[str, Bound], str]:
    """Of each model's first seed: residuals trained and untrained, by model; the theorem, by "model, trained" and
    "model, untrained", where it has attention over tokens; and whose weights these are, in words.

    settings: in place of the runs', such as max_eval_images. Raises InputError for a run that is missing.
    """
    trained, untrained, bounds, sources = {}, {}, {}, []
    for variant in experiment.of():
        [(config, weights)] = weights_to_score(experiment, variant.name, variant.seeds[:1])
        model, batches = trained_models.prepare(config, weights, **settings)
        before = trained_models.untrained(config, cast(Any, model).num_classes)
        trained[variant.name], untrained[variant.name] = by_depth(model, batches), by_depth(before, batches)
        if cast(Any, model).patches == "attention":
            bounds[f"{variant.name}, trained"] = theorem(model, batches)
            bounds[f"{variant.name}, untrained"] = theorem(before, batches)
        sources.append(trained_models.source(weights))
    return trained, untrained, bounds, " ".join(sources)


def accuracy(experiment: Experiment, found: dict[str, Measured]) -> pd.DataFrame:
    """Each model's top-1, and what it lacks to the reference's, against the distance that the report's words leave."""
    limit, reference = close(), _reference(experiment)
    rows = []
    for variant in experiment.of():
        mine, other = found.get(variant.name), found.get(reference)
        points = difference(other, mine).points if mine and other and variant.name != reference else []
        limits = interval(points)
        lacks = f"{statistics.mean(points):+.2f}" if points else ""
        spread = f" (95 % {limits[0]:+.2f} to {limits[1]:+.2f})" if limits else ""
        rows.append(
            {
                "Reading": variant.label,
                "Params": f"{mine.parameters:,}" if mine else "",
                f"{experiment.scope} top-1 (%)": str(mine) if mine else NOT_RUN,
                "Lacks to FF only (points)": (lacks + spread).replace("-", "−"),
                f"Predicted by the report: more than {limit:g}": _as_the_report(points, limits, limit),
            }
        )
    return pd.DataFrame(rows)


def residuals(
    experiment: Experiment, trained: dict[str, Depths], untrained: dict[str, Depths], bounds: dict[str, Bound]
) -> pd.DataFrame:
    """Prediction beside measurement at the last depth, a row a model, trained and untrained."""
    rows = []
    for name in trained:
        for state, depths in {"untrained": untrained[name], "trained": trained[name]}.items():
            skips, none = depths.with_skips[-1], depths.without_skips[-1]
            bound = bounds.get(f"{name}, {state}")
            fits = skips > ALIKE and (none < ALIKE) == (name != _reference(experiment))  # of FF only, the opposite
            rows.append(
                {
                    "Reading": experiment.variants[name].label,
                    "Weights": state,
                    "Depth 0": f"{depths.with_skips[0]:.2g}",
                    "Last, with skips": f"{skips:.2g}",
                    "Last, without": f"{none:.2g}",
                    f"Predicted: without < {ALIKE:g} < with; FF only not": "as predicted" if fits else "contradicted",
                    "Attention over tokens alone, under the bound": _under(bound),
                }
            )
    return pd.DataFrame(rows)


def conclusion(experiment: Experiment, found: dict[str, Measured], trained: dict[str, Depths]) -> str:
    """Which reading behaves as the report says, as far as these records tell."""
    limit, reference = close(), _reference(experiment)
    said = []
    for name, depths in trained.items():
        if name == reference or not {name, reference} <= found.keys():
            continue
        points = difference(found[reference], found[name]).points
        verdict = _as_the_report(points, interval(points), limit)
        said.append(
            f"{experiment.variants[name].label}: {verdict}; relative residual after the last block "
            f"{depths.with_skips[-1]:.2g} with skip connections, {depths.without_skips[-1]:.2g} without"
        )
    return ".\n".join(said) + "." if said else "No reading has runs beside those of FF only: nothing to say."


def depth_figure(experiment: Experiment, trained: dict[str, Depths], untrained: dict[str, Depths]) -> Figure:
    """Relative residual against depth: on the left with skip connections, on the right without; dashed: untrained."""
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 4.0), layout="constrained", sharey=True)
    kinds: dict[str, Callable[[Depths], np.ndarray]] = {
        "With skip connections": lambda d: d.with_skips,
        "Without": lambda d: d.without_skips,
    }
    for panel, (title, of) in zip(panels, kinds.items()):
        for name, depths in trained.items():
            color, _, marker = style_of(experiment, name)
            for line, mark, of_state in (("-", color, depths), ("--", "white", untrained[name])):
                values = np.maximum(of(of_state), FLOOR)
                panel.plot(values, ls=line, color=color, marker=marker, markersize=4.5, lw=1.4, markerfacecolor=mark)
        panel.axhline(ALIKE, color="0.5", lw=1, ls=":")
        panel.set(xlabel="block", yscale="log", ylim=(FLOOR / 2, 4))
        panel.set_title(title)
    panels[0].set_ylabel("relative residual ‖res(X)‖ / ‖X‖")
    finish(*panels)
    handles = [
        Line2D([], [], color=style_of(experiment, name)[0], marker=style_of(experiment, name)[2], markersize=5,
               label=drawn(experiment.variants[name].label))
        for name in trained
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="0.4", ls="--", marker="o", markersize=5, markerfacecolor="white", label="untrained"),
        Line2D([], [], color="0.5", lw=1, ls=":", label=f"{ALIKE:g}, called alike"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def bound_figure(experiment: Experiment, bounds: dict[str, Bound]) -> Figure:
    """The theorem: log10 of the residual of attention over tokens alone, and below which line it must stay."""
    names = {key.partition(", ")[0] for key in bounds}
    figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained", sharey=True)
    for panel, state in zip(panels, ("untrained", "trained")):
        for name in (n for n in experiment.variants if n in names):
            color, _, marker = style_of(experiment, name)
            bound = bounds[f"{name}, {state}"]
            seen = 1 + int(np.isfinite(bound.measured).sum())
            panel.plot(bound.measured[:seen], color=color, marker=marker, markersize=5)
            panel.plot(bound.from_start[:seen], color=color, ls=":", lw=1.6)
            panel.plot(bound.from_last[:seen], color=color, ls="--", lw=1.2, marker=marker, markerfacecolor="white")
        panel.set_title(f"{state[0].upper()}{state[1:]} weights")
        panel.set(xlabel="attention over tokens, layer", ylim=(-20, 12))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("log10 ‖res(X)‖")
    finish(*panels)
    handles = [
        Line2D([], [], color=style_of(experiment, name)[0], marker=style_of(experiment, name)[2],
               label=drawn(experiment.variants[name].label))
        for name in experiment.variants if name in names
    ]  # fmt: skip
    handles += [
        Line2D([], [], color="0.4", ls=":", lw=1.6, label="the bound, from the first layer's input"),
        Line2D([], [], color="0.4", ls="--", lw=1.2, label="the bound for one layer, from its own input"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _reference(experiment: Experiment) -> str:
    """The model that the readings are held against: the second of the planned pairs."""
    return experiment.pairs()[0][1]


def _as_the_report(points: list[float], limits: tuple[float, float] | None, limit: float) -> str:
    """Whether a model does as badly beside FF only as the report says of attention only."""
    if not points:
        return ""
    if limits is None:
        return "undecided: no interval"
    return {HOLDS: "as the report says", FAILS: "contradicted", UNDECIDED: "undecided"}[judge(points, limit)]


def _under(bound: Bound | None) -> str:
    if bound is None:
        return ""
    # Of the mean's residual, which is at most twice the smallest; where precision has ended, there is nothing to compare.
    beyond = bound.measured[1:] > np.minimum(bound.from_start, bound.from_last)[1:] + math.log10(2)
    held = not beyond.any()
    says = "" if bound.holds else "; its condition on the scores fails"
    return f"{'yes' if held else 'no'}{says}"
