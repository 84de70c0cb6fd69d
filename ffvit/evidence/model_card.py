"""The card of a model that is handed on, README.md of its folder: what it is for, how good, by which record, and its limits.

Front matter as the hub reads it. Every number comes from the record, or from the other seeds' of its model.
"""

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from ffvit.evidence.belonging import in_use
from ffvit.evidence.escape import in_one_line, markdown
from ffvit.evidence.measured import Measured, commit, everything, machine
from ffvit.evidence.records import load_own, load_records
from ffvit.settings.config import SETTINGS
from ffvit.settings.experiment import Experiment, load_experiment
from ffvit.settings.given import with_defaults
from ffvit.settings.headline import headline_of
from ffvit.system.errors import InputError

CARD = "README.md"
HUB_TASKS = {
    "classification": "image-classification",
    "detection": "object-detection",
    "instance_segmentation": "image-segmentation",
    "semantic_segmentation": "image-segmentation",
}
NOTEBOOKS = {"classification": "03_evaluate", "semantic_segmentation": "22_segmentation"}  # of the others: DETECTION
DETECTION = "21_detection"
SCORED = {"top5_percent": "top-5 (%)", "box_ap_percent": "box AP (%)", "pixel_accuracy_percent": "pixel accuracy (%)"}
REPORT = "https://arxiv.org/abs/2105.02723"
NO_RECIPE = ("experiment", "name", "label", "seed", "task", "model", "dataset")  # said elsewhere in a card
MOST_CLASSES = 50  # that are named


def card(record: dict, licence: str, folder: str) -> str:
    """record: the run's own, see ffvit.evidence.records. licence: by its name on the hub. folder: in the commands shown."""
    config = with_defaults(record["config"])
    experiment, same_model = _others(record)
    title = in_one_line(f"{config['label']}, {experiment.title if experiment else config['experiment']}")
    model, task = record["model"], config["task"]
    return f"""---
{_front_matter(record, licence)}
---
# {markdown(title)}

`{model["name"]}`: {model["parameters"]:,} parameters, {model["macs"]:,} multiply-adds for an image of {config["img_size"]} x \
{config["img_size"]} pixels with {config["in_chans"]} channel{"s" if config["in_chans"] > 1 else ""}. Trained from \
{"`" + config["initial_weights"] + "`" if config["initial_weights"] else "random weights"} by ffvit, the companion to \
[Do You Even Need Attention?]({REPORT})

## What it is for

{task.replace("_", " ").capitalize()}, into {record["dataset"]["classes"]} classes: {_classes(record)}.

```python
import ffvit.models  # registers the models with timm
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True).eval()
```

```
ffvit predict IMAGE --model {folder}
```

## How good it is

{_metrics(record, same_model)}
On {record["results"]["images"]:,} test images, each scored once, by the weights in this folder. {_spread(same_model)}

Score them again, where the images are:

```
papermill notebooks/{NOTEBOOKS.get(task, DETECTION)}.ipynb out.ipynb -p experiment {config["experiment"]} -p model \
{config["name"]} -p checkpoint {folder}/model.safetensors
```

## Data

`{in_one_line(config["dataset"])}`: {_images(record)} Fingerprint {record["dataset"]["fingerprint"]}.

## Recipe

{_recipe(config)}
## Limits

{_limits(record, experiment, same_model)}
## Where it comes from

Run {record["run_id"]} of {config["experiment"]}, commit {commit(record)}, {record["started_at"]}, on {machine(record)}; \
{", ".join(f"{name} {version}" for name, version in record["versions"].items())}. All of it, the score of every epoch \
included, is in [record.json](record.json).

## Licence

The weights: {licence}. The library that made them: Apache-2.0. The images have terms of their own, which these do not change.
"""


def _others(record: dict) -> tuple[Experiment | None, Measured | None]:
    """The experiment of a run, where it is known here and has such a run; and what all recorded seeds of its model say."""
    config = record["config"]
    try:
        experiment = load_experiment(config["experiment"])
        own = [r for r in load_own(experiment.name) if r["run_id"] != record["run_id"]]
        recorded = [r for r in load_records(experiment.name) if r["run_id"] != record["run_id"]]
        found = everything(experiment, in_use(experiment, recorded, [*own, record | {"trained_here": True}]))
    except InputError:  # of an experiment elsewhere, or with damaged records, which status names
        return None, None
    same_model = found.get(config["name"])
    theirs = same_model is not None and record["run_id"] in same_model.run_ids
    return (experiment, same_model) if theirs else (None, None)


def _front_matter(record: dict, licence: str) -> str:
    config, results = with_defaults(record["config"]), record["results"]
    headline = headline_of(config)
    hub_id = config["dataset"] if re.fullmatch(r"[\w.-]+/[\w.-]+", config["dataset"]) else None
    score = EvalResult(
        task_type=HUB_TASKS[config["task"]],
        dataset_type=hub_id or config["experiment"],
        dataset_name=config["experiment"],
        dataset_split="test",
        metric_type=headline.name.removesuffix("_percent"),
        metric_name=headline.label,
        metric_value=results[headline.name],
    )
    data = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag=HUB_TASKS[config["task"]],
        tags=["timm", "ffvit", HUB_TASKS[config["task"]]],
        datasets=[hub_id] if hub_id else None,
        model_name=in_one_line(f"{config['label']} ({record['run_id']} of {config['experiment']})"),
        eval_results=[score],
    )
    return data.to_yaml().strip()


def _classes(record: dict) -> str:
    names = record["dataset"].get("class_names") or []
    shown = ", ".join(markdown(name) for name in names[:MOST_CLASSES])
    more = f", and {len(names) - MOST_CLASSES} more, see config.json" if len(names) > MOST_CLASSES else ""
    return f"{shown}{more}" if names else "their names were not noted"


def _metrics(record: dict, same_model: Measured | None) -> str:
    headline = headline_of(record["config"])
    scores = {headline.name: headline.label, **SCORED}
    rows = ["| score | this model | all recorded seeds |\n| --- | --- | --- |\n"]
    for name, label in scores.items():
        if name in record["results"]:
            of_all = str(same_model.also(name)) if same_model else "not known here"
            rows.append(f"| {label} | {record['results'][name]:.2f} | {of_all} |\n")
    return "".join(rows)


def _spread(same_model: Measured | None) -> str:
    if same_model is None:
        return "Of its settings no other run is known here, so nothing says how much another seed would change."
    if same_model.sd is None:
        return "One seed was trained: nothing says how much another would change."
    return f"± is the standard deviation over {len(same_model.percent)} seeds."


def _images(record: dict) -> str:
    sizes = record["dataset"]["images"]
    told = f"{sizes['train']:,} to train on, {sizes['validation']:,} to look at while training, {sizes['test']:,} to score."
    bad = len(record["results"].get("bad_images", []))
    return f"{told} {bad} test images could not be read." if bad else told


def _recipe(config: dict[str, Any]) -> str:
    """What differs from the defaults of ffvit.settings.config."""
    rows = "".join(
        f"| {name} | {markdown(str(config[name]))} |\n"
        for name, field in SETTINGS.items()
        if name not in NO_RECIPE
        and not field.is_required()
        and config[name] != _plain(field.get_default(call_default_factory=True))
    )
    return f"| setting | value |\n| --- | --- |\n{rows}" if rows else "All settings have their defaults.\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _limits(record: dict, experiment: Experiment | None, same_model: Measured | None) -> str:
    lines = [
        f"It knows the classes above alone, and gives one of them to any image; it never saw more than "
        f"{record['dataset']['images']['train']:,} images.",
        "It was scored on images like those it was trained on. On others, on damaged ones, or against an adversary, nothing was measured.",
        "How its mistakes fall on people or groups of them was not examined: use it to study models, not to decide about anybody.",
    ]
    if per_class := [value for value in record["results"]["per_class_percent"] if value is not None]:
        label = headline_of(record["config"]).label.removesuffix(" (%)")
        lines.append(f"{label} of its classes is from {min(per_class):.1f} to {max(per_class):.1f} %.")
    if experiment:
        lines.insert(0, in_one_line(experiment.about).strip())
    if same_model is None or same_model.sd is None:
        lines.append("One seed alone: another training may come out better or worse.")
    return "".join(f"- {line}\n" for line in lines)
