"""The pipeline, in a copy of the project: complete, idle when nothing changed, and true to what was interrupted."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("ffvit", "notebooks", "workflow", "experiments")


def smoke_experiment(project, name, models, **settings):
    """experiments/<name>.toml, cut down to one seed, the models named, and a few images."""
    text = (project / "experiments" / f"{name}.toml").read_text()
    head, *tables = re.split(r"^(?=\[)", text, flags=re.M)
    kept = [t for t in tables if not t.startswith("[models.") or t.split("]")[0].removeprefix("[models.") in models]
    for key in settings:
        kept = [re.sub(rf"^{key} = .*\n", "", t, flags=re.M) for t in kept]
    given = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    head = re.sub(r"^seeds = .*$", "seeds = [0]", head, flags=re.M)
    (project / "experiments" / "smoke.toml").write_text(head + "".join(kept) + given)


@pytest.fixture
def project(tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def pipeline(project, task, *options):
    done = subprocess.run(
        [sys.executable, str(project / "workflow/run.py"), task, "smoke", *options], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def artefacts(project):
    return {str(p.relative_to(project)): p.stat().st_mtime_ns for p in (project / "figures").rglob("*.*")}


def test_pipeline_makes_everything_once_and_only_what_is_missing(project):
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128)
    code, output = pipeline(project, "reproduce")
    assert code == 0, output
    assert len(artefacts(project)) == 12
    assert (project / "results/smoke/ff-seed0.json").exists()

    # Saved in JupyterLab, with outputs: nothing to train, nothing to draw.
    notebook = project / "notebooks/02_train.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][3]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["hello"]}]
    notebook.write_text(json.dumps(content))
    began = time.monotonic()
    code, output = pipeline(project, "reproduce")
    assert code == 0 and "Nothing to be done" in output
    assert time.monotonic() - began < 20

    # A deleted figure is made again, and nothing else.
    before = artefacts(project)
    (project / "figures/smoke/table1.md").unlink()
    code, output = pipeline(project, "reproduce")
    after = artefacts(project)
    assert code == 0 and "train ff" not in output
    assert {k for k in after if after[k] != before[k]} == {f"figures/smoke/table1.{e}" for e in ("csv", "md", "tex")}

    # From records alone, as in a fresh clone: no run is made.
    shutil.rmtree(project / "runs")
    code, output = pipeline(project, "figures")
    assert code == 0 and not list((project / "runs").rglob("*.safetensors"))
    assert "recorded, 1 runs" in (project / "figures/smoke/table1.md").read_text()


def test_failed_run_keeps_its_log_and_the_next_call_goes_on(project):
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128, dataset="./nowhere")
    code, output = pipeline(project, "reproduce")
    assert code != 0 and "there is no such folder" in output
    assert "there is no such folder" in (project / "runs/smoke/ff-seed0/02_train.log").read_text()
    assert (project / "runs/smoke/ff-seed0/02_train.ipynb").exists()
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128)
    code, output = pipeline(project, "reproduce")
    assert code == 0, output


def running(project):
    """Command lines of the processes that name the project's folder, or work in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if str(project) in command or process.cwd() == str(project):
                found.append(command)
    return found


def test_killed_pipeline_leaves_no_process_and_the_next_call_goes_on(project):
    smoke_experiment(project, "digits", ["ff"], epochs=5000, warmup_epochs=0, max_train_images=128)
    with subprocess.Popen([sys.executable, str(project / "workflow/run.py"), "reproduce", "smoke"]) as process:
        while not (project / "runs/smoke/ff-seed0/history.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        assert any("ffvit.train" in command for command in running(project))
        process.kill()
    died = time.monotonic()
    while left := running(project):
        assert time.monotonic() - died < 5, left
        time.sleep(0.1)
    code, output = pipeline(project, "reproduce", "--", "--dry-run")
    assert code == 0 and "train ff, seed 0" in output


def test_unknown_experiment_is_named_with_the_known_ones(project):
    done = subprocess.run(
        [sys.executable, str(project / "workflow/run.py"), "reproduce", "digitz"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no experiment 'digitz'; known: cifar10, digits, imagenet" in done.stderr


def test_pipeline_runs_on_cifar10(project, shared):
    small = dict(epochs=1, warmup_epochs=0, batch_size=64, max_train_images=256, max_eval_images=100, num_workers=0)
    smoke_experiment(project, "cifar10", ["ff"], **small, depth=2, mixed_precision="no")
    code, output = pipeline(project, "reproduce", "--dataset", str(shared / "data/cifar10"))
    assert code == 0, output
    record = json.loads((project / "results/smoke/ff-seed0.json").read_text())
    assert record["results"]["images"] == 100 and record["config"]["dataset"] == "cifar10"
    assert "CIFAR-10 top-1 measured" in (project / "figures/smoke/table1.md").read_text()


def test_pipeline_runs_on_imagenet_at_224(project, shared):
    small = dict(epochs=1, warmup_epochs=0, batch_size=16, max_train_images=32, max_eval_images=16, num_workers=0)
    smoke_experiment(project, "imagenet", ["ff_tiny"], **small, depth=2, mixed_precision="no", cooldown_epochs=0)
    code, output = pipeline(project, "reproduce", "--dataset", str(shared / "data/imagenet-sample"))
    assert code == 0, output
    record = json.loads((project / "results/smoke/ff_tiny-seed0.json").read_text())
    assert record["dataset"]["classes"] == 1000 and record["results"]["images"] == 16


SRUN = """#!/bin/bash
# One task after the other, each as SLURM starts it.
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$((task % 2)) "${@:2}" || exit
done
"""
SCONTROL = """#!/bin/bash
[[ $1 == show ]] && printf '%s\\n' node7 node8 || echo "$@" >> requeued
"""
PYTHON = """#!/bin/bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT" "${@@Q}"
exit "$EXIT_CODE"
"""


@pytest.fixture
def cluster(project):
    """train.sbatch as SLURM would run it on two nodes of two GPUs: its exit code, output, and what it put back."""
    for name, text in {"bin/srun": SRUN, "bin/scontrol": SCONTROL, ".venv/bin/python": PYTHON}.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
        (project / name).chmod(0o755)

    def run(*arguments, exit_code=0):
        job = {"SLURM_JOB_ID": "40123", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NTASKS": "4"}
        environment = {"PATH": f"{project / 'bin'}:{os.environ['PATH']}", "EXIT_CODE": str(exit_code), **job}
        command = ["bash", "workflow/slurm/train.sbatch", *arguments]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        requeued = project / "requeued"
        return done.returncode, done.stdout + done.stderr, requeued.read_text() if requeued.exists() else ""

    return run


def test_slurm_job_is_one_process_group_whose_words_no_shell_reads(cluster):
    code, output, requeued = cluster("my data.toml", "ff; touch x", "0", "label=$(touch x) *", "epochs=2")
    train = "'-m' 'ffvit.train' '--experiment' 'my data.toml' '--model' 'ff; touch x' '--seed' '0' 'num_processes=4'"
    tasks = [f"{rank} {rank % 2} 4 node7 10123 {train} 'label=$(touch x) *' 'epochs=2'" for rank in range(4)]
    assert (code, output.splitlines(), requeued) == (0, tasks, "")


def test_slurm_job_goes_back_into_the_queue_only_after_a_checkpoint(cluster):
    assert cluster("digits", "ff", "0", exit_code=2)[::2] == (2, "")
    assert cluster("digits", "ff", "0", exit_code=75)[::2] == (75, "requeue 40123\n")


def test_slurm_job_without_its_three_words_says_how_it_is_called(cluster):
    code, output, _ = cluster("digits", "ff")
    assert code == 2 and "usage: sbatch" in output
