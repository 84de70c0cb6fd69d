"""How far to believe this: what tests hold against others' code, what was run and how large, and what never was.

From the tests' marks and the records alone: docs/how-far.md.
"""

import ast
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ffvit.evidence.belonging import belonging
from ffvit.evidence.records import load_records
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.given import with_defaults

MARK = "parity"  # of a test: pytest.mark.parity("whose code it compares with")
OUTSIDE = "shared"  # the fixture of tests that need files which are not part of the project

# What a run can be; how many records there are of it says whether it ever was, beyond tests.
CIRCUMSTANCES: dict[str, Callable[[dict, dict], Any]] = {
    "on a GPU": lambda record, config: record["hardware"]["gpu"],
    "in several processes": lambda record, config: record["hardware"]["processes"] > 1,
    "on several GPUs, which NCCL connects": lambda record, config: (
        record["hardware"]["gpu"] and record["hardware"]["processes"] > 1
    ),
    "in bf16": lambda record, config: config["mixed_precision"] == "bf16",
    "in fp16": lambda record, config: config["mixed_precision"] == "fp16",
    "with streamed images": lambda record, config: config["streaming"],
    "with averaged weights (EMA)": lambda record, config: config["ema_decay"],
    "compiled": lambda record, config: config["compile"],
    "at 224 pixels or more": lambda record, config: config["img_size"] >= 224,
    "for 300 epochs or more, as the report trains": lambda record, config: config["epochs"] >= 300,
    "from a checkpoint of the papers' authors": lambda record, config: config["initial_weights"].endswith(".pth"),
}


def parity(tests: Path) -> pd.DataFrame:
    """Every test that compares with code which is not ours: what it claims, by its name, and with whose."""
    rows = []
    for file in sorted(tests.glob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (reference := _marked(node)):
                rows.append(
                    {
                        "held against": reference,
                        "claim": node.name.removeprefix("test_").replace("_", " "),
                        "test": f"[{file.name}](../tests/{file.name})",
                        "also needs": "files outside the project, or it is skipped" if _needs_files(node) else "",
                    }
                )
    return pd.DataFrame(rows).sort_values("held against", kind="stable")


def sizes(experiments: Iterable[str]) -> pd.DataFrame:
    """Of each experiment: how many of its runs are recorded, and how large the largest of them was."""
    return pd.DataFrame([_size(load_experiment(name)) for name in experiments])


def circumstances(experiments: Iterable[str]) -> pd.DataFrame:
    """Of each way to run: how many of all records are of it."""
    records = [record for name in experiments for record in load_records(name)]
    configs = [with_defaults(record["config"]) for record in records]
    rows = []
    for words, holds in CIRCUMSTANCES.items():
        count = sum(bool(holds(record, config)) for record, config in zip(records, configs))
        rows.append(
            {"training": words, "records": f"{count} of {len(records)}", "": "" if count else "**never recorded**"}
        )
    return pd.DataFrame(rows)


def _size(experiment: Experiment) -> dict[str, str]:
    records = belonging(experiment, load_records(experiment.name))
    row = {
        "experiment": f"[{experiment.name}](../experiments/{experiment.name}.toml)",
        "recorded": f"{len(records)} of {len(experiment.configs())}",
    }
    largest = {
        "pixels": [with_defaults(r["config"])["img_size"] for r in records],
        "parameters": [r["model"]["parameters"] for r in records],
        "training images": [r["dataset"]["images"]["train"] for r in records],
        "epochs": [r["config"]["epochs"] for r in records],
    }
    on = sorted({r["hardware"]["gpu"] or "CPU" for r in records})
    found = {column: f"{max(values):,}" if values else "**never recorded**" for column, values in largest.items()}
    if not records:
        found = dict.fromkeys(largest, "") | {"pixels": "**never recorded**"}
    return row | found | {"on": ", ".join(on)}


def _marked(node: ast.FunctionDef) -> str:
    """Whose code a test is marked to compare with; "" where it is not marked."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == f"pytest.mark.{MARK}":
            return str(ast.literal_eval(decorator.args[0]))
    return ""


def _needs_files(node: ast.FunctionDef) -> bool:
    return OUTSIDE in {argument.arg for argument in node.args.args}
