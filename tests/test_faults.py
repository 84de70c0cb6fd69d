"""The fault suite in short; `make faults` is the whole of it."""

import subprocess
import sys
from pathlib import Path

import pytest

SUITE = Path(__file__).parent.parent / "benchmarks" / "faults.py"


@pytest.mark.machine
def test_training_survives_the_faults_of_the_short_suite():
    done = subprocess.run([sys.executable, str(SUITE), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
