"""A trained model as an ONNX file, for programs without Python or PyTorch, checked against onnxruntime before it is called done."""

import contextlib
import importlib.util
import io
import json
import os
import warnings
from pathlib import Path

import torch
from torch import nn

from ffvit.evidence.export import class_names
from ffvit.evidence.records import open_run
from ffvit.evidence.scoring import load_model
from ffvit.models.exported import SEEN
from ffvit.settings.config import Config
from ffvit.system.errors import InputError
from ffvit.system.files import replacing, sync

NEEDED = ("onnx", "onnxscript", "onnxruntime")
ALIKE = 1e-4  # the most by which a logit may differ from PyTorch's
CHECKED = (1, 3)  # images at once; with a fixed batch, one
INPUT, OUTPUT = "images", "logits"


def export_onnx(run_dir: Path, path: Path, dynamic_batch: bool) -> float:
    """Write the model that was scored: (B, C, H, W) images, prepared as its metadata say -> (B, classes) logits.

    dynamic_batch: any B, else one image at a time. Returns the largest difference of a logit to PyTorch's, on random images.
    Raises InputError where packages are missing, something is there already, the run is not finished, its task is another
    than classification, the model cannot be exported, and where the file computes something else.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise InputError(f"ONNX needs {', '.join(missing)}: install them with pip install -e '.[onnx]', in this folder")
    if os.path.lexists(path):
        raise InputError(f"{path} is there already: choose another file, or delete it first")
    config, facts = open_run(run_dir)
    if config.task != "classification":
        raise InputError(
            f"{run_dir} is for {config.task}, and only classification is exported to ONNX: hand it on as a folder, by "
            "ffvit export without --onnx"
        )
    classes = class_names(facts)
    model = load_model(config, run_dir / "last.safetensors", len(classes), "cpu")
    program = _exported(model, config, dynamic_batch)
    program.model.metadata_props.update(_told(config, classes))
    with replacing(path) as temporary:
        with contextlib.redirect_stdout(io.StringIO()):
            program.save(temporary, external_data=False)
        found = _difference(model, config, temporary, CHECKED if dynamic_batch else CHECKED[:1])
        if not found <= ALIKE:  # nor nan
            raise InputError(f"{config.model} as ONNX gives logits that differ by {found:.1e}: it is not written")
        sync(temporary)
    return found


def _exported(model: nn.Module, config: Config, dynamic_batch: bool) -> torch.onnx.ONNXProgram:
    # Of two images: what is exported from one alone, PyTorch takes to be always one.
    images = torch.zeros(2 if dynamic_batch else 1, config.in_chans, config.img_size, config.img_size)
    shapes = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except Exception as error:  # of an operator that ONNX lacks, or a shape that depends on the batch
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{config.model} cannot be exported to ONNX ({reason}): hand it on as a folder, by ffvit export without --onnx"
        ) from None
    if program is None:  # as without dynamo=True
        raise RuntimeError("torch.onnx.export gave no program")
    return program


def _told(config: Config, classes: list[str]) -> dict[str, str]:
    """What a user of the file must know: its classes, and how an evaluation prepares an image."""
    seen = {name: json.dumps(value) for name, value in config.to_dict().items() if name in SEEN}
    return {"architecture": config.model, "classes": json.dumps(classes), **seen}


@torch.inference_mode()
def _difference(model: nn.Module, config: Config, path: Path, counts: tuple[int, ...]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for count in counts:
        images = torch.randn(count, config.in_chans, config.img_size, config.img_size, generator=generator)
        [logits] = session.run([OUTPUT], {INPUT: images.numpy()})
        difference = (torch.from_numpy(logits) - model(images)).abs().max()
        largest = max(largest, difference.item()) if difference.isfinite() else float("nan")
    return largest
