"""`python -m website.look EXPERIMENT FILE`: what the viewers show, by notebook 18's functions, from the weights of this machine's
runs or those that came with the project.

Run by website.build in a process of its own, where weights are newer than the file: it takes torch, and seconds.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ffvit.models import from_config
from ffvit.models.weights import load_weights
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.studies import patch_maps, patch_mixer, trained_models
from ffvit.system.errors import InputError
from ffvit.system.files import write_atomically

UNITS = 64  # of a layer, the strongest
IMAGES = 100  # that attention is averaged over, as in notebook 18
DIGITS = 3


def main(name: str, file: str) -> None:
    experiment = load_experiment(name)
    ff, vit = patch_mixer.subjects(experiment)
    shown = {"mixer": mixer(experiment, ff)}
    try:
        shown["attention"] = attention(experiment, vit)
    except InputError as error:  # the images that it is averaged over may be elsewhere
        print(f"The website goes without the attention maps of {name}: {str(error).partition('. Give')[0]}")
    write_atomically(Path(file), json.dumps(shown, separators=(",", ":")))


def mixer(experiment: Experiment, model: str) -> dict[str, Any]:
    """The weights over patches; no image is needed."""
    config, weights = trained_models.first(experiment, model)
    with safe_open(weights, framework="pt") as content:
        num_classes = content.get_slice("head.weight").get_shape()[0]
    net = load_weights(from_config.create(config, num_classes), weights)
    layers = [(units, units.strongest[:UNITS]) for units in patch_maps.units_of(net)]
    return {
        "label": config.label,
        "source": trained_models.source(weights),
        "columns": layers[0][0].taken.shape[-1],
        "layers": [{"takes": _flat(u.taken[best]), "gives": _flat(u.given[best])} for u, best in layers],
    }


def attention(experiment: Experiment, model: str) -> dict[str, Any]:
    """What attends to what, over test images. Raises InputError where these cannot be read."""
    config, weights = trained_models.first(experiment, model)
    net, batches = trained_models.prepare(config, weights, max_eval_images=IMAGES)
    layers = patch_maps.attention_of(net, batches)
    return {
        "label": config.label,
        "source": trained_models.source(weights),
        "columns": layers[0].shape[-1],
        "layers": [[_flat(head) for head in layer] for layer in layers],
    }


def _flat(maps: np.ndarray) -> list[list[float]]:
    """(n, h, w) -> n lists of h * w numbers, row by row."""
    return [[float(f"{value:.{DIGITS}g}") for value in one.ravel()] for one in maps]


if __name__ == "__main__":
    main(*sys.argv[1:])
