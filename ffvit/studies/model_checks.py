"""Notebook 07: claims of the report that the model itself can answer: counted or computed live, with nothing trained."""

from collections import Counter
from functools import cache
from typing import Any

import timm
import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ffvit.models import cost, ff
from ffvit.studies.finding import Finding, of_model
from ffvit.system.errors import InputError

ROUNDING = 1e-5  # two ways to compute the same in single precision, relative to the largest value


def steps(block: nn.Module) -> list[str]:
    """What a block does to its tokens, in order: LayerNorm(192), Mlp(192), sum, transpose, ..."""
    done = []
    for node in _Tracer().trace(block).nodes:
        module = block.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.LayerNorm):
            done.append(f"LayerNorm({module.normalized_shape[0]})")
        elif isinstance(module, Mlp):
            done.append(f"Mlp({module.fc1.in_features})")
        elif node.op in ("call_function", "call_method"):
            name = getattr(node.target, "__name__", node.target)
            done.append("sum" if name == "add" else name)
    return done


def figure1(name: str, *_) -> Finding:
    model = _model(name)
    words = {f"Mlp({model.embed_dim})": "features", "transpose": "transpose", f"Mlp({model.num_tokens})": "patches"}
    orders = {", ".join(words[step] for step in steps(block) if step in words) for block in model.blocks}
    agrees = orders == {"features, transpose, patches, transpose"}
    return of_model(f"{len(model.blocks)} x {' or '.join(sorted(orders))}", agrees)


def figure2(name: str, *_) -> Finding:
    done = steps(_model(name).blocks[0])
    kinds = Counter(step.partition("(")[0] for step in done)
    return of_model(", ".join(done), kinds == {"Mlp": 2, "LayerNorm": 2, "sum": 2, "transpose": 2})


def class_token(name: str, *_) -> Finding:
    """Which tokens the logits depend on, by their gradient."""
    model = _model(name)
    x = _random(1, model.num_tokens, model.embed_dim).requires_grad_()
    (gradient,) = torch.autograd.grad(model.forward_head(x).square().sum(), x)
    read = gradient.abs().sum(dim=(0, 2)).nonzero().flatten().tolist()
    return of_model(f"the logits depend on {len(read)} of {model.num_tokens} tokens, from index {read[0]}", read == [0])


def tokens(name: str, printed: float, *_) -> Finding:
    """Patches and the class token."""
    model = _model(name, "meta")
    height, width = model.grid_size
    return of_model(f"{model.num_tokens} = {height} x {width} + 1", model.num_tokens == printed)


def shapes(printed: str, *_) -> Finding:
    """Width x depth, patch size, image size of the three FF-only models."""
    sizes = [_model(f"ff_{size}_224", "meta") for size in ("tiny_patch16", "base_patch16", "large_patch32")]
    read = [f"{m.embed_dim} x {len(m.blocks)}, {m.patch_embed.patch_size[0]} of {m.img_size[0]} px" for m in sizes]
    return of_model("; ".join(read), "; ".join(read) == printed)


def features_are_a_1x1_convolution(name: str, *_) -> Finding:
    """The Mlp beside two convolutions with its weights, kernel 1, over a (B, D, N) map of tokens."""
    model = _model(name)
    mlp, x = model.blocks[0].mix_features.mix, _random(2, model.num_tokens, model.embed_dim)
    hidden = F.gelu(F.conv1d(x.transpose(1, 2), mlp.fc1.weight[:, :, None], mlp.fc1.bias))
    mapped = F.conv1d(hidden, mlp.fc2.weight[:, :, None], mlp.fc2.bias)
    return _same(mlp(x), mapped.transpose(1, 2))


def patches_are_a_full_convolution(name: str, *_) -> Finding:
    """The Mlp beside two convolutions with its weights, one input channel, kernel as long as what it runs over; the
    features are a batch of such sequences and share the weights."""
    model = _model(name)
    mlp, x = model.blocks[0].mix_patches.mix, _random(2, model.embed_dim, model.num_tokens)
    hidden = F.gelu(F.conv1d(x.reshape(-1, 1, model.num_tokens), mlp.fc1.weight[:, None], mlp.fc1.bias))
    mapped = F.conv1d(hidden.transpose(1, 2), mlp.fc2.weight[:, None], mlp.fc2.bias)
    return _same(mlp(x), mapped.reshape(x.shape))


def quadratic_in_tokens(name: str, *_) -> Finding:
    """Multiply-adds of a patch branch, hidden width 4 N as usual, at the model's sequence length and at twice that."""
    model = _model(name)
    costs = []
    for length in (model.num_tokens, 2 * model.num_tokens):
        with torch.device("meta"):
            branch = ff.Branch("patches", "ff", length, model.embed_dim, num_heads=1, mlp_ratio=4.0, drop_rate=0.0)
        costs.append(cost.count_macs(branch, (length, model.embed_dim)))
    once, twice = costs
    return of_model(f"{twice / once:.2f} x the multiply-adds ({once:,}, then {twice:,})", twice == 4 * once)


def fixed_length(name: str, *_) -> Finding:
    """Images of 256 px, and their 257 tokens in a block, where no check of ours stands in the way."""
    model = _model(name)
    errors = []
    for part, given in ((model, (1, 3, 256, 256)), (model.blocks[0], (1, 257, model.embed_dim))):
        try:
            part(torch.zeros(given))
        except (InputError, RuntimeError) as error:
            errors.append(str(error).partition(". ")[0])
    return of_model(f"error: {errors[0]}" if errors else "256 px accepted", len(errors) == 2)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, (Mlp, DropPath)) or super().is_leaf_module(module, name)


@cache
def _model(name: str, device: str = "cpu") -> Any:  # torch gives the parts of a ModuleList no types
    """With the weights a training would start from, but random biases, so that a check sees them."""
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.02)
    return model


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _same(ours: Tensor, other: Tensor) -> Finding:
    difference = ((ours - other).abs().max() / ours.abs().max()).item()
    agrees = difference <= ROUNDING
    measured = "the same, to rounding" if agrees else f"largest difference {difference:.1g} of the largest output"
    return of_model(measured, agrees, f"{ROUNDING:g} of the largest output")
