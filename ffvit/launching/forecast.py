"""How long runs will take, by what an epoch took on this machine: of the same model, else by multiply-adds."""

import datetime
import heapq
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ffvit.settings.config import Config
from ffvit.settings.experiment import Experiment
from ffvit.settings.given import with_defaults
from ffvit.system import provenance
from ffvit.system.files import RESULTS, RUNS, read_json

# Settings that leave an epoch as long as it is.
NO_MATTER_OF_TIME = {
    *("experiment", "name", "label", "seed", "recipe", "dataset", "device", "tracker"),
    *("epochs", "warmup_epochs", "cooldown_epochs", "checkpoint_every", "checkpoint_seconds"),
    *("base_lr", "warmup_lr", "min_lr", "scale_all_lr", "offset_lr_ratio", "schedule_per", "weight_decay"),
    *("crop_scale", "crop_ratio", "hflip", "label_smoothing"),
}
BESIDES_S = 20.0  # of a run, roughly, besides its epochs: it is started, reads images, is scored
LONGEST_S = 1e9  # that can be meant: some thirty years
BACKWARD = 3  # a training image costs about three times a validation image, which is not learned from


@dataclass(frozen=True)
class Pace:
    """What an epoch of one run took, with its validation."""

    settings: dict  # those that matter
    epoch_s: float
    macs: int  # of an image
    train_images: int
    validation_images: int
    classes: int
    all_images: bool  # whether train_images are all there are

    @property
    def work(self) -> float:
        return self.macs * (self.train_images + self.validation_images / BACKWARD)


def settings_of(config: dict) -> dict:
    return {name: value for name, value in with_defaults(config).items() if name not in NO_MATTER_OF_TIME}


def pace_of(facts: dict) -> Pace:
    """Of a record, a trial, or what a dry run found, which has epoch_s in place of a history."""
    images = facts["dataset"]["images"]
    seconds = facts.get("epoch_s") or statistics.mean(epoch["seconds"] for epoch in facts["history"])
    if not 0 < seconds < LONGEST_S:
        raise ValueError(f"an epoch of {seconds} s")
    return Pace(
        settings=settings_of(facts["config"]),
        epoch_s=seconds,
        macs=facts["model"]["macs"],
        train_images=images["train"],
        validation_images=images["validation"],
        classes=facts["dataset"]["classes"],
        all_images=not facts["config"]["max_train_images"],
    )


def paces_here(experiment: Experiment, results_dir: Path = RESULTS, runs_dir: Path = RUNS) -> list[Pace]:
    """What was measured of an experiment's runs on hardware as this machine's: records, trials, and runs that stopped."""
    gpus, here = provenance.gpus(), provenance.processor()
    files = [*(results_dir / experiment.name).rglob("*.json")]
    for run in ("*", "trials/*"):
        files += (runs_dir / experiment.name).glob(f"{run}/training.json")
        files += (runs_dir / experiment.name).glob(f"{run}/checkpoints/0*/progress.json")
    found = []
    for file in sorted(files):
        try:
            content = read_json(file)
            facts = content.get("facts", {}) | content  # of a checkpoint
            machine, config = facts["hardware"], with_defaults(facts["config"])
            gpu = gpus[0] if gpus and config["device"] != "cpu" else None
            if machine | here | {"gpu": gpu, "processes": config["num_processes"]} == machine and facts["history"]:
                found.append(pace_of(facts))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # damaged: ffvit status names it
    return found


def epoch_s(config: Config, known: Iterable[Pace], macs: int | None = None) -> float | None:
    """Seconds of an epoch: as it was measured, else scaled by the multiply-adds of a run's model, where they are known."""
    wanted, known = settings_of(config.to_dict()), list(known)
    if same := [m.epoch_s for m in known if m.settings == wanted]:
        return statistics.mean(same)
    images = config.max_train_images or max((m.train_images for m in known if m.all_images), default=0)
    if not images or not macs:
        return None
    work = macs * (images + max(m.validation_images for m in known) / BACKWARD)
    return work * sum(m.epoch_s for m in known) / sum(m.work for m in known)


def count_macs(config: Config, classes: int) -> int:
    """Multiply-adds of an image, counted on the model itself, without giving it memory."""
    import torch

    from ffvit.models import cost, from_config

    with torch.device("meta"):
        model = from_config.create(config, classes)
    return cost.count_macs(model, (config.in_chans, config.img_size, config.img_size))


def side_by_side_s(durations: Iterable[float], places: int, begun: Iterable[float] = ()) -> float:
    """Seconds until all have ended: those that have begun, then the others in their order, each where a place is free.

    nan where one of them is unknown.
    """
    durations, begun = list(durations), list(begun)
    if math.isnan(sum(durations) + sum(begun)):
        return math.nan
    ends = sorted([*begun, *[0.0] * max(0, places - len(begun))])
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def forecast(experiment: Experiment, side_by_side: int) -> str:
    """What the pipeline still has to train of an experiment, and until when; "" where there is nothing, or nothing known.

    It needs no torch, and answers from what was measured before; of what was not, it says how much there is.
    """
    missing = [c for c in experiment.configs() if not (c.run_dir / "training.json").is_file()]
    known = paces_here(experiment) if missing else []
    epochs = [(config.total_epochs, epoch_s(config, known)) for config in missing]
    seconds = [count * each + BESIDES_S for count, each in epochs if each]
    if not seconds:
        return ""
    total, unknown = side_by_side_s(seconds, side_by_side), len(missing) - len(seconds)
    told = f"{len(seconds)} runs to train take {spoken(total)}, until {clock(total)}, as they took before"
    return f"{told}; {unknown} more, of which nothing was measured, come on top" if unknown else told


def spoken(seconds: float) -> str:
    """ "40 s", "25 min", "3 h 20 min", "2 days 4 h" """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} days {hours % 24} h"


def clock(seconds: float) -> str:
    """The time of day so many seconds from now, with its day if that is not today."""
    now = datetime.datetime.now()
    end = now + datetime.timedelta(seconds=min(seconds, 100 * LONGEST_S))  # dates end with the year 9999
    if end.date() == now.date():
        return f"{end:%H:%M}"
    return f"{end:%A %H:%M}" if end - now < datetime.timedelta(days=6) else f"{end:%Y-%m-%d %H:%M}"
