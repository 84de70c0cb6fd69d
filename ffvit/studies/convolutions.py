"""Notebook 13: is the network a convolution in disguise? The report (arXiv:2105.02723, section 3.1) says of its two layers
that they are: over features a 1x1 convolution, over patches one with full receptive field and a single channel.
"""

import copy
from collections.abc import Iterable
from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from timm.layers import Mlp
from torch import Tensor, nn

from ffvit.data.loader import Batch
from ffvit.models.ff import Branch, PatchFeatureMixer
from ffvit.settings.experiment import Experiment
from ffvit.studies import trained_models

SAME = "the same, to rounding"
ROUNDING = 1e-9  # of the largest value: sums in another order, in double precision


class ConvolutionOverFeatures(nn.Module):
    """An Mlp's weights as two convolutions of kernel 1 over a map with as many channels as features."""

    def __init__(self, mlp: Mlp):
        super().__init__()
        self.act = mlp.act
        self.convs = nn.ModuleList(_convolution(fc, (fc.out_features, fc.in_features, 1)) for fc in (mlp.fc1, mlp.fc2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)"""
        first, second = self.convs
        return second(self.act(first(x.transpose(1, 2)))).transpose(1, 2)


class ConvolutionOverPatches(nn.Module):
    """An Mlp's weights as a convolution of one channel whose kernel is as long as the row of tokens, and one of kernel 1.

    The features are a batch of such rows: they share the weights.
    """

    def __init__(self, mlp: Mlp):
        super().__init__()
        self.act = mlp.act
        first, second = mlp.fc1, mlp.fc2
        shapes = [(first.out_features, 1, first.in_features), (second.out_features, second.in_features, 1)]
        self.convs = nn.ModuleList(_convolution(fc, shape) for fc, shape in zip((first, second), shapes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, N) -> (B, D, N)"""
        first, second = self.convs
        return second(self.act(first(x.reshape(-1, 1, x.shape[2])))).reshape(x.shape)


def as_convolutions(model: PatchFeatureMixer) -> PatchFeatureMixer:
    """A copy of a feed-forward-only model whose every feed-forward layer is two convolutions with its weights."""
    rebuilt = copy.deepcopy(model)
    for branch in rebuilt.modules():
        if isinstance(branch, Branch):
            over = ConvolutionOverPatches if branch.transposed else ConvolutionOverFeatures
            branch.mix = over(branch.mix)  # type: ignore[assignment,arg-type]  # of a model without attention
    return rebuilt


def equality(name: str, model: PatchFeatureMixer, images: Tensor) -> pd.DataFrame:
    """How far a layer of each kind, and the whole network, are from their convolutions, in outputs and gradients.

    name: of the model, to be shown. images: (B, C, H, W). Differences are of the largest value.
    """
    model = copy.deepcopy(model).eval().double()
    rebuilt = as_convolutions(model)
    tokens = torch.randn(2, model.num_tokens, model.embed_dim, generator=torch.Generator().manual_seed(0)).double()
    rows = []
    parts: list[tuple[str, nn.Module, nn.Module, Tensor]] = [
        ("Feed-forward over features: 1x1 convolutions", *_both("mix_features", model, rebuilt), tokens),
        ("Feed-forward over patches: full receptive field, one channel", *_both("mix_patches", model, rebuilt), tokens),
        (f"The network, {len(model.blocks)} blocks", model, rebuilt, images.double()),
    ]
    for what, ours, theirs, given in parts:
        outputs, gradients = _differences(ours, theirs, given)
        rows.append(
            {
                "Model": name,
                "Part": what,
                "Predicted": "the same function",
                "Outputs differ by": f"{outputs:.1e}",
                "Gradients differ by": f"{gradients:.1e}",
                "Found": SAME if max(outputs, gradients) <= ROUNDING else "not the same",
            }
        )
    return pd.DataFrame(rows)


def trained(experiment: Experiment, model: str, **settings: Any) -> tuple[Any, Iterable[Batch], str]:
    """A model of an experiment as its first seed's run left it, batches of its test images, and a sentence on the weights."""
    config, weights = trained_models.first(experiment, model)
    return *trained_models.prepare(config, weights, **settings), trained_models.source(weights)


def receptive_fields(experiment: Experiment, models: list[str], **settings: Any) -> tuple[dict[str, np.ndarray], str]:
    """The receptive field of each of these models, trained, by label, and whose weights they are.

    settings: of Config, such as max_eval_images.
    """
    runs = {experiment.variants[name].label: trained(experiment, name, **settings) for name in models}
    fields = {label: receptive_field(model, batches) for label, (model, batches, _) in runs.items()}
    return fields, " ".join(weights for _, _, weights in runs.values())


def receptive_field(model: nn.Module, batches: Iterable[Batch]) -> np.ndarray:
    """Where in an image the token of its middle comes from: (H, W), the mean over images of its gradient's size.

    The gradient of the token after the last norm, in a random direction, with respect to the pixels.
    """
    model.eval()
    maps = []
    generator = torch.Generator().manual_seed(0)
    for images, target, _ in batches:
        images = images[target >= 0].requires_grad_()
        tokens = cast(Any, model).forward_features(images)
        height, width = cast(Any, model).patch_embed.grid_size
        middle = tokens.shape[1] - height * width + height // 2 * width + width // 2
        direction = torch.randn(tokens.shape[2], generator=generator)
        (gradient,) = torch.autograd.grad((tokens[:, middle] @ direction).sum(), images)
        maps.append(gradient.abs().sum(dim=1).detach())
    return torch.cat(maps).mean(dim=0).numpy()


def reach(field: np.ndarray, patch_size: int) -> dict[str, float]:
    """Of a receptive field: percent of the gradient on the token's own patch, and mean distance from its middle in pixels."""
    height, width = field.shape
    row, column = (side // patch_size // 2 * patch_size for side in (height, width))
    own = field[row : row + patch_size, column : column + patch_size]
    rows, columns = np.indices(field.shape)
    middle = (patch_size - 1) / 2
    distance = np.hypot(rows - row - middle, columns - column - middle)
    return {"own": 100 * own.sum() / field.sum(), "distance": (field * distance).sum() / field.sum()}


def receptive_fields_table(fields: dict[str, np.ndarray], patch_size: int) -> pd.DataFrame:
    """fields: by model. Every pixel is predicted to count, and one block is enough for that."""
    rows = []
    for label, field in fields.items():
        found, even = reach(field, patch_size), reach(np.ones_like(field), patch_size)
        rows.append(
            {
                "Model": label,
                "Pixels predicted to count (%)": "100",
                "Pixels that count (%)": f"{100 * (field > 0).mean():.0f}",
                "Gradient on the own patch (%)": f"{found['own']:.1f}",
                "Were it even (%)": f"{even['own']:.1f}",
                "Mean distance (px)": f"{found['distance']:.2f}",
                "Were it even (px)": f"{even['distance']:.2f}",
            }
        )
    return pd.DataFrame(rows)


def equality_summary(parts: pd.DataFrame) -> str:
    """parts: as equality gives them."""
    return f"{(parts['Found'] == SAME).sum()} of {len(parts)} parts are the same function as their convolutions, to rounding."


def receptive_fields_summary(fields: dict[str, np.ndarray], patch_size: int) -> str:
    """What was found of each model, in words."""
    told = []
    for label, field in fields.items():
        found, even = reach(field, patch_size), reach(np.ones_like(field), patch_size)
        all_of_it = "every pixel counts" if (field > 0).all() else f"{(field == 0).sum()} pixels do not count"
        where = "nearer than even" if found["distance"] < even["distance"] else "no nearer than even"
        told.append(
            f"{label}: {all_of_it}; {found['own'] / even['own']:.1f} times its share on the own patch, and it looks {where} "
            f"({found['distance']:.2f} of {even['distance']:.2f} px)"
        )
    return "\n".join(told)


def receptive_fields_figure(fields: dict[str, np.ndarray], patch_size: int) -> Figure:
    """A panel a model, each with a scale of its own."""
    figure, panels = plt.subplots(1, len(fields), figsize=(2.6 * len(fields), 3.2), layout="constrained", squeeze=False)
    for panel, (label, field) in zip(panels[0], fields.items()):
        panel.imshow(field, cmap="OrRd", vmin=0, interpolation="nearest")
        row, column = (side // patch_size // 2 * patch_size - 0.5 for side in field.shape)
        panel.add_patch(plt.Rectangle((column, row), patch_size, patch_size, fill=False, edgecolor="black", lw=1))
        panel.set_title(label, fontsize=9, fontweight="normal", loc="center", wrap=True)
        panel.set_axis_off()
    return figure


def _convolution(fc: Any, shape: tuple[Any, ...]) -> nn.Conv1d:
    conv = nn.Conv1d(shape[1], shape[0], shape[2])
    conv.weight = nn.Parameter(fc.weight.detach().reshape(shape).clone())
    conv.bias = nn.Parameter(fc.bias.detach().clone())
    return conv


def _both(branch: str, ours: PatchFeatureMixer, theirs: PatchFeatureMixer) -> tuple[nn.Module, nn.Module]:
    return getattr(ours.blocks[0], branch), getattr(theirs.blocks[0], branch)


def _differences(ours: nn.Module, theirs: nn.Module, given: Tensor) -> tuple[float, float]:
    """Of outputs, and of the gradients of what is given and of all weights; of the largest value of each.

    Of a gradient that is nothing but rounding, as of a shift that a norm takes away again, a thousandth of the largest of
    all weights stands in for its own.
    """
    outputs, gradients = [], []
    for module in (ours, theirs):
        x = given.clone().requires_grad_()
        out = module(x)
        module.zero_grad()
        out.square().mean().backward()
        outputs.append(out.detach())
        gradients.append([x.grad, *(p.grad for p in module.parameters() if p.grad is not None)])
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(*gradients)]
    least = 1e-3 * max(a.abs().max().item() for a, _ in pairs)
    return _relative(*outputs), max(_relative(a, b, least) for a, b in pairs)


def _relative(a: Tensor, b: Tensor, least: float = 0.0) -> float:
    return (a - b).abs().max().item() / max(a.abs().max().item(), least)
