"""What a model costs: parameters and multiply-adds, counted on the model itself."""

from typing import Any

import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ffvit.models import ff


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, ...]) -> int:
    """Multiply-adds of one image: convolutions, linear layers and both products of attention, as PyTorch counts them.

    input_size: (C, H, W), or (N, D) of a part that takes tokens. Norms, activations, softmax and biases are not counted, as is usual.
    """
    parameter = next(model.parameters())
    training = model.training
    # A fused kernel may hide its products from the counter: which one there is depends on device and version.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        compute = getattr(model.eval(), "forward_alike", model)  # of detectors, see ffvit.models.dense
        compute(torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype))
    model.train(training)
    return counter.get_total_flops() // 2  # a multiply-add is two operations


def exact_costs(name: str, **model_args: Any) -> dict:
    """What a model costs at 224 px and 1000 classes, and its place in the grid: counted without giving it memory.

    parameters, without_classifier, macs, patches, features. Raises RuntimeError for a name that timm does not know.
    """
    with torch.device("meta"):
        model: Any = timm.create_model(name, num_classes=1000, **model_args)
    parameters = count_parameters(model)
    return {
        "parameters": parameters,
        "without_classifier": parameters - count_parameters(model.get_classifier()),
        "macs": count_macs(model, (3, 224, 224)),
        **ff.cell(model),
    }
