"""Weights of recorded runs that come with the project, where they are small: to look at trained models without training.

They lie in results/<experiment>/weights/, with a file that says of each its checksum and its record. What is read is checked.
"""

import json
import shutil
from pathlib import Path

from ffvit.evidence.belonging import last_weights
from ffvit.evidence.export import scored_run
from ffvit.evidence.records import read_record
from ffvit.settings.config import Config
from ffvit.settings.same_run import differing
from ffvit.system.errors import InputError
from ffvit.system.files import RESULTS, read_object, replacing, sha256_of, write_atomically

WEIGHTS, INDEX = "weights", "checksums.json"
MOST_BYTES = 2_000_000  # of a model's weights: a repository keeps every version of them


def find(config: Config, results_dir: Path = RESULTS) -> Path | None:
    """What a run ended with, where it is recorded and kept; else None. Raises InputError where it is damaged.

    Weights that two experiments have, bit for bit, are kept once.
    """
    path = results_dir / config.experiment / f"{config.run_id}.json"
    if not path.is_file():
        return None
    record = read_record(path, config.experiment, config.run_id)
    if differing(record["config"], config.to_dict()):
        return None
    for index in sorted(results_dir.glob(f"*/{WEIGHTS}/{INDEX}")):
        for name, said in _read(index).items():
            if said["sha256"] == last_weights(record):
                weights = index.parent / f"{name}.safetensors"
                _check(weights, said)
                return weights
    return None


def is_kept(weights: str | Path) -> bool:
    """Whether it is one of these files, by its place and name."""
    index = Path(weights).parent / INDEX
    return index.parent.name == WEIGHTS and index.is_file() and Path(weights).stem in _read(index)


def keep(run_dir: Path, results_dir: Path = RESULTS) -> Path:
    """Put the weights of a recorded run among those that come with the project. Raises InputError for others, and large ones."""
    config, record = scored_run(run_dir)
    weights, recorded = run_dir / "last.safetensors", results_dir / config.experiment / f"{config.run_id}.json"
    if not recorded.is_file() or last_weights(read_record(recorded, config.experiment, config.run_id)) != last_weights(
        record
    ):
        raise InputError(
            f"{run_dir} is not the run that {recorded} records: record it first, with ffvit score --record"
        )
    if not weights.is_file() or sha256_of(weights) != last_weights(record):
        raise InputError(f"{weights} is not what its run ended with: put a good copy back, or train the run again")
    if (size := weights.stat().st_size) > MOST_BYTES:
        raise InputError(f"{weights} has {size:,} bytes, and {MOST_BYTES:,} are kept at most: hand it on by --to")
    folder = recorded.parent / WEIGHTS
    kept = folder / f"{config.run_id}.safetensors"
    with replacing(kept) as temporary:
        shutil.copyfile(weights, temporary)
    index = _read(folder / INDEX) if (folder / INDEX).is_file() else {}
    index[config.run_id] = {"sha256": last_weights(record), "bytes": size, "record": recorded.name}
    write_atomically(folder / INDEX, json.dumps(dict(sorted(index.items())), indent=1) + "\n")
    return kept


def _read(index: Path) -> dict[str, dict]:
    return read_object(index, "the checksums of weights", f"restore it, with git checkout -- {index}")


def _check(weights: Path, said: dict) -> None:
    cure = f"restore it, with git checkout -- {weights}"
    if not weights.is_file():
        raise InputError(f"{weights} is missing: {cure}")
    if (found := sha256_of(weights)) != said["sha256"]:
        raise InputError(f"{weights}: sha256 is {found}, expected {said['sha256']}: {cure}")
