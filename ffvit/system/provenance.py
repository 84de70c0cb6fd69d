"""Where a result comes from: code, machine and versions, as they were when the run started."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from ffvit.system.files import ROOT

if TYPE_CHECKING:
    import torch

# What decides a result. Records and figures are left out: writing them must not make the tree look changed.
CODE = ("ffvit", "notebooks", "experiments", "workflow", "pyproject.toml", "requirements.lock")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "pillow")


def git_state() -> dict:
    """{"commit": str | None, "dirty": bool | None}; None where this is no repository, such as a copy within another one."""

    def git(*arguments: str) -> str | None:
        try:
            answer = subprocess.run(  # noqa: S603  # the arguments are those below
                ["git", "-C", str(ROOT), *arguments],  # noqa: S607  # the git that the user's PATH names
                capture_output=True,
                text=True,
                timeout=30,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return answer.stdout.strip() if answer.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT.resolve():
        return {"commit": None, "dirty": None}
    changed = git("status", "--porcelain", "--", *CODE)
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changed is None else bool(changed)}


def hardware(device: "torch.device", num_processes: int = 1) -> dict:
    """The machine as a reader needs it to judge a duration; no host name, no user."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": device.type, "gpu": gpu, "processes": num_processes, **processor()}


def processor() -> dict:
    """What hardware() says of the CPU."""
    return {"cpu": _cpu_name(), "cpu_cores": os.cpu_count()}


def gpus() -> list[str]:
    """The names of NVIDIA's GPUs that runs may use, as torch gives them, without torch: it takes seconds to import."""
    asked = None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"],  # noqa: S607  # the driver's, on PATH
            capture_output=True,
            text=True,
            timeout=30,
        )
    rows = [line.split(", ", 2) for line in asked.stdout.splitlines()] if asked and asked.returncode == 0 else []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [name for _, _, name in rows]
    # What is not listed, such as a part of a GPU, goes by the name it is given.
    names = {key: name for index, uuid, name in rows for key in (index, uuid)}
    keys = [key.strip() for key in visible.split(",")]
    return [names.get(key, key) for key in keys if key not in ("", "-1")]


def versions() -> dict:
    installed = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.system(), **installed}


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
