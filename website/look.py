"""`python -m website.look EXPERIMENT FILE`: what the viewers show, from the trained weights of this machine, by notebook 18's functions.

Run by website.build in a process of its own, where weights are newer than the file: it takes torch, and seconds.
"""

import json
import sys
from pathlib import Path

import numpy as np

from ffvit.evidence.scoring import weights_to_score
from ffvit.settings.experiment import load_experiment
from ffvit.studies import patch_maps, patch_mixer, trained_models
from ffvit.system.files import write_atomically

UNITS = 64  # of a layer, the strongest
IMAGES = 100  # that attention is averaged over, as in notebook 18
DIGITS = 3


def main(name: str, file: str) -> None:
    experiment = load_experiment(name)
    ff, vit = patch_mixer.subjects(experiment)
    [(ff_config, ff_weights)] = weights_to_score(experiment, ff, experiment.seeds_of(ff)[:1])
    [(vit_config, vit_weights)] = weights_to_score(experiment, vit, experiment.seeds_of(vit)[:1])
    model, _ = trained_models.prepare(ff_config, ff_weights, max_eval_images=IMAGES)
    layers = [(units, units.strongest[:UNITS]) for units in patch_maps.units_of(model)]
    model, batches = trained_models.prepare(vit_config, vit_weights, max_eval_images=IMAGES)
    attention = patch_maps.attention_of(model, batches)
    shown = {
        "mixer": {
            "label": ff_config.label,
            "source": trained_models.source(ff_weights),
            "layers": [{"takes": _flat(u.taken[best]), "gives": _flat(u.given[best])} for u, best in layers],
        },
        "attention": {
            "label": vit_config.label,
            "source": trained_models.source(vit_weights),
            "layers": [[_flat(head) for head in layer] for layer in attention],
        },
        "columns": int(attention[0].shape[-1]),
    }
    write_atomically(Path(file), json.dumps(shown, separators=(",", ":")))


def _flat(maps: np.ndarray) -> list[list[float]]:
    """(n, h, w) -> n lists of h * w numbers, row by row."""
    return [[float(f"{value:.{DIGITS}g}") for value in one.ravel()] for one in maps]


if __name__ == "__main__":
    main(*sys.argv[1:])
