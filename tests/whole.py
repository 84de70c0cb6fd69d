"""Records as runs leave them, whole and in themselves true, without any training: a recorded one's, rewritten."""

import copy
import json
import zlib
from pathlib import Path

from ffvit.settings.config import Config
from ffvit.system.files import RESULTS, write_atomically

RECORDED = json.loads((RESULTS / "digits/ff-seed0.json").read_text())


def whole(config: Config, right: int | None = None, **settings) -> dict:
    """The record of a run: a file of its own, with times and weights of its own.

    right: of 36 test images of each class; None: as recorded. settings: as they are written down; "absent": not at all.
    """
    record = copy.deepcopy(RECORDED)
    record.pop("code")
    written = {name: value for name, value in (config.to_dict() | settings).items() if value != "absent"}
    epochs = written["epochs"] + written.get("cooldown_epochs", 0)
    name = json.dumps(written, sort_keys=True)
    record |= {
        "run_id": config.run_id,
        "config": written,
        "history": [
            RECORDED["history"][0] | {"epoch": i + 1, "seconds": zlib.crc32(f"{name} {i}".encode()) / 1e6}
            for i in range(epochs)
        ],
        "weights_sha256": {"last.safetensors": name},
    }
    record["model"]["name"] = written["model"]
    if right is not None:
        rows = [
            [right if c == true else (36 - right) * (c == (true + 1) % 10) for c in range(10)] for true in range(10)
        ]
        percent = 100 * right / 36
        record["results"] |= {"images": 360, "top1_percent": percent, "per_class_percent": [percent] * 10}
        wrong = " ".join(f"{i}:0" for i in range(10 * (36 - right)))
        record["results"] |= {"confusion": rows, "mistakes": wrong, "top5_percent": 100.0}
    return record


def put(folder: Path, record: dict) -> Path:
    """results/<experiment>/<run id>.json below a folder."""
    return _written(folder / "results" / record["config"]["experiment"] / f"{record['run_id']}.json", record)


def put_own(folder: Path, record: dict) -> Path:
    """runs/<experiment>/<run id>/record.json below a folder."""
    return _written(folder / "runs" / record["config"]["experiment"] / record["run_id"] / "record.json", record)


def of_images(record: dict, fingerprint: str) -> dict:
    return record | {"dataset": record["dataset"] | {"fingerprint": fingerprint}}


def _written(file: Path, record: dict) -> Path:
    write_atomically(file, json.dumps(record))
    return file
