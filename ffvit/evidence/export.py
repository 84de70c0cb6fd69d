"""Hand a trained model on: a folder as timm and the hub have it, with a card and the record it was scored by."""

import json
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ffvit.evidence.model_card import CARD, card
from ffvit.evidence.records import open_run, read_record
from ffvit.evidence.scoring import load_model
from ffvit.models.exported import CONFIG, WEIGHTS, hub_config
from ffvit.models.weights import save_weights
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import new_folder, write_atomically

RECORD = "record.json"


def export(run_dir: Path, folder: Path, licence: str) -> Path:
    """Write the model of a scored run as config.json, model.safetensors, README.md and record.json; the folder, or nothing.

    The weights are those that were scored, the run's last. licence: by its name on the hub.
    Raises InputError where something is there already, and for a run that is not finished, scored and whole.
    """
    config, record = scored_run(run_dir)
    with new_folder(folder) as made:
        classes = class_names(record)
        model = load_model(config, run_dir / "last.safetensors", len(classes), "cpu")
        save_weights(made / WEIGHTS, model)
        written = {
            CONFIG: json.dumps(hub_config(model, config, classes), indent=2) + "\n",
            RECORD: json.dumps(record, indent=1) + "\n",
            CARD: card(record, licence, folder.name),
        }
        for name, text in written.items():
            write_atomically(made / name, text)
    return folder


def scored_run(run_dir: Path) -> tuple[Config, dict]:
    """Settings and record of a finished run. Raises InputError where there is no record, or it is of another training."""
    config, facts = open_run(run_dir)
    path = run_dir / RECORD
    cure = f"score the run first, with ffvit score {run_dir}"
    if not path.is_file():
        raise InputError(f"{run_dir} has no {RECORD}, and a model is handed on with its score: {cure}")
    record = read_record(path, config.experiment, config.run_id)
    if changed := [name for name, value in facts.items() if record.get(name) != value]:
        raise InputError(f"{path} is of another training than training.json ({changed[0]} differs): {cure}")
    return config, record


def class_names(facts: dict) -> list[str]:
    """Of what a run learned; numbers where its record is of a time before they were noted."""
    dataset = facts["dataset"]
    return dataset.get("class_names") or [str(number) for number in range(dataset["classes"])]


def push(folder: Path, repo: str, private: bool) -> str:
    """Send an exported folder to the hub, as the model OWNER/NAME; its address. Raises InputError where that is refused."""
    api = HfApi(library_name="ffvit")
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A model from ffvit export")
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{repo} was not sent ({reason}). {folder} is whole: log in with hf auth login, and send it with "
            f"hf upload {repo} {folder}"
        ) from None
    return str(made)
