"""Which model is meant, and whose weights are scored or looked at: a run's, those kept by its record, or any file's."""

import os
from pathlib import Path

import timm

import ffvit.models  # noqa: F401  # registers the models
from ffvit.evidence import kept_weights
from ffvit.evidence.records import open_run
from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.system.errors import InputError, suggest


def need_model(experiment: Experiment, name: str) -> None:
    """Raise InputError, with the nearest of both, for what is no model of the experiment, nor one of timm's."""
    if name not in experiment.variants and not timm.is_model(name):
        near = suggest(name, [*experiment.variants, *timm.list_models()]) or suggest(name, experiment.variants)
        raise InputError(f"{experiment.name} has no model '{name}', nor has timm{near}")


def weights_to_score(
    experiment: Experiment, model: str, seeds: list[int], run_dir: str = "", checkpoint: str = "", **settings
) -> list[tuple[Config, Path | str]]:
    """Settings and weights to evaluate: the last weights of the seeds' runs, of one run's folder, or any checkpoint.

    Where a seed was not trained here, those that came with the project stand in, if it is one of the runs they are kept of.
    """
    if checkpoint:
        need_model(experiment, model)
        return [(experiment.config(model, **settings), checkpoint)]
    if settings:
        raise InputError(f"{', '.join(sorted(settings))}: for a checkpoint only; a run is scored on its own images")
    if run_dir:
        return [_of_run(Path(run_dir))]
    return [_of_seed(experiment, experiment.config(model, seed)) for seed in seeds]


def _of_seed(experiment: Experiment, config: Config) -> tuple[Config, Path]:
    if not (config.run_dir / "training.json").is_file():
        need_model(experiment, config.name)
        if kept := kept_weights.find(config):
            return config, Path(os.path.relpath(kept))
    return _of_run(config.run_dir)


def _of_run(folder: Path) -> tuple[Config, Path]:
    folder = Path(os.path.relpath(folder))  # no home folder in outputs
    return open_run(folder)[0], folder / "last.safetensors"
