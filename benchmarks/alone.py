"""A case in a process of its own: what it takes of a CPU's memory is then its own, too."""

import json
import subprocess
import sys
from pathlib import Path


def measured_alone(script: str, *arguments: str) -> dict:
    """What `python <script> --alone <arguments>` prints last, read as JSON. Raises RuntimeError with what it said."""
    command = [sys.executable, str(Path(script).resolve()), "--alone", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or f"its process ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])
