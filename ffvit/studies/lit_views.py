"""Notebook 11, which LIT its two views look at."""

from ffvit.settings.experiment import Experiment
from ffvit.studies.lit_stages import OWN, layouts
from ffvit.system.errors import InputError


def subjects(experiment: Experiment) -> tuple[str, str]:
    """The models whose offsets and whose attention to look at, where nobody chooses, by their names in the experiment.

    LIT with attention where its paper has it, and, as in Figure 3, attention in all stages with plain merging; otherwise
    what comes closest. Raises InputError where no model has offsets, or none attention.
    """
    here = layouts(experiment)
    with_offsets = [name for name in here if here[name].merging == "deformable"]  # and not held at zero
    with_attention = [name for name in here if here[name].stages]
    if not with_offsets or not with_attention:
        raise InputError(
            f"{experiment.name} has no LIT with deformable merging whose offsets learn, or none with attention: "
            "nothing to look at"
        )
    return (
        max(with_offsets, key=lambda name: here[name].stages == OWN),
        max(with_attention, key=lambda name: (len(here[name].stages), here[name].merging == "plain")),
    )
