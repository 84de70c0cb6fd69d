"""The pipeline, in a copy of the project: complete, idle when nothing changed, and true to what was interrupted."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import hostile
import nbformat
import psutil
import pytest
import torch

from ffvit.evidence.notebook_metadata import load_notebooks
from ffvit.launching.launch import _own_gpus
from ffvit.settings.experiment import load_experiment
from ffvit.system.errors import InputError

ROOT = Path(__file__).parent.parent
PARTS = ("ffvit", "notebooks", "workflow", "experiments")
SITE_MADE = "the website is made"


def toml(value):
    """A value as TOML writes it in a line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def smoke_experiment(project, name, models, **settings):
    """experiments/<name>.toml, cut down to the first seed, the models named, and a few images."""
    content = tomllib.loads((project / "experiments" / f"{name}.toml").read_text())
    args = content["settings"].get("model_args", {}) | settings.pop("model_args", {})
    tables = {"settings": content["settings"] | settings | {"model_args": args}}
    variants = load_experiment(project / "experiments" / f"{name}.toml").variants
    for model in models:
        tables[f'models."{model}"'] = {"label": variants[model].label, **variants[model].settings}
    text = "".join(f"{key} = {json.dumps(content[key])}\n" for key in ("title", "scope", "about"))
    text += "seeds = [0]\n"
    for table, values in tables.items():
        text += f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in values.items())
    (project / "experiments" / "smoke.toml").write_text(text)


@pytest.fixture
def project(tmp_path):
    for part in PARTS:
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "website").mkdir()  # the whole of it takes a minute
    for name in ("__init__.py", "current.py"):
        shutil.copy(ROOT / "website" / name, tmp_path / "website")
    made = f"from website import current; current.mark(current.made_of()); print('{SITE_MADE}')"
    (tmp_path / "website/build.py").write_text(made)
    return tmp_path


def pipeline(project, task, *options, experiment="smoke"):
    done = subprocess.run(
        [sys.executable, str(project / "workflow/run.py"), task, experiment, *options], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def declared(project, *needs):
    """The artefacts of the notebooks for this experiment; of those that need something, where it is given."""
    smoke = load_experiment(project / "experiments/smoke.toml")
    fitting = [n for n in load_notebooks() if n.fits(smoke) and set(needs) <= set(n.needs)]
    return {f"figures/{file}" for notebook in fitting for file in notebook.files(smoke)}


def only_records(project):
    """Put the records of the runs into results/, as if they came with the project, and remove the runs."""
    for path in (project / "runs/smoke").glob("*/record.json"):
        (project / "results/smoke").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, project / "results/smoke" / f"{path.parent.name}.json")
    shutil.rmtree(project / "runs")


def artefacts(project):
    return {str(p.relative_to(project)): p.stat().st_mtime_ns for p in (project / "figures").rglob("*.*")}


@pytest.mark.machine
def test_pipeline_makes_everything_once_and_only_what_is_missing(project):
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128)
    code, output = pipeline(project, "reproduce")
    assert code == 0, output
    assert set(artefacts(project)) == declared(project) and len(declared(project)) > 20
    assert (project / "runs/smoke/ff-seed0/record.json").exists()

    # Saved in JupyterLab, with outputs: nothing to train, nothing to draw.
    notebook = project / "notebooks/02_train.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][3]["outputs"] = [{"name": "stdout", "output_type": "stream", "text": ["hello"]}]
    notebook.write_text(json.dumps(content))
    began = time.monotonic()
    code, output = pipeline(project, "reproduce")
    assert code == 0 and "Nothing to be done" in output
    assert time.monotonic() - began < 20

    # The website is made where it is not there, or of something else.
    shutil.rmtree(project / "site")
    assert SITE_MADE in pipeline(project, "reproduce")[1]
    assert SITE_MADE not in pipeline(project, "reproduce")[1]

    # A deleted figure is made again, and nothing else.
    before = artefacts(project)
    (project / "figures/smoke/table1.md").unlink()
    code, output = pipeline(project, "reproduce")
    after = artefacts(project)
    assert code == 0 and "train ff" not in output
    assert {k for k in after if after[k] != before[k]} == {f"figures/smoke/table1.{e}" for e in ("csv", "md", "tex")}

    # Editing a study draws again what it shows, and nothing else.
    with open(project / "ffvit/studies/ledger.py", "a") as file:
        file.write("# edited\n")
    code, output = pipeline(project, "reproduce", "--", "--dry-run")
    assert code == 0 and set(re.findall(r"Job \d+: (\w+)", output)) - {"everything"} == {"07_claims"}, output

    # From records alone, as in a fresh clone: no run is made.
    only_records(project)
    code, output = pipeline(project, "figures")
    assert code == 0, output
    assert not list((project / "runs").rglob("*.safetensors"))
    assert "recorded, 1 runs" in (project / "figures/smoke/table1.md").read_text()


@pytest.mark.machine
def test_kernels_that_start_side_by_side_share_no_port(tmp_path):
    cell = nbformat.v4.new_code_cell("from ipykernel import get_connection_info; print(get_connection_info())")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "cell.ipynb")
    command = [sys.executable, ROOT / "workflow/execute.py", "cell.ipynb"]
    executed = [tmp_path / "one.ipynb", tmp_path / "two.ipynb"]
    started = [subprocess.Popen([*command, output], cwd=tmp_path, stderr=subprocess.DEVNULL) for output in executed]
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    one, two = (json.loads(nbformat.read(output, 4).cells[0].outputs[0].text) for output in executed)
    assert one["transport"] == two["transport"] == "ipc" and one["ip"] != two["ip"]
    assert not Path(one["ip"]).parent.exists()  # nothing is left of its sockets


STAGES = """
[compare.stages]
title = "LIT, and attention everywhere"
vary.attention = [
    { name = "stages34", label = "LIT", set = { model_args = { attention_stages = [3, 4] } } },
    { name = "all", label = "all", set = { model_args = { attention_stages = [1, 2, 3, 4], deformable = false } } },
]
"""


@pytest.mark.machine
def test_pipeline_of_lit_makes_its_own_figures_and_from_records_leaves_those_that_need_weights(project):
    smoke_experiment(project, "digits-lit", [], epochs=1, warmup_epochs=0, max_train_images=128, max_eval_images=50)
    smoke = project / "experiments/smoke.toml"
    smoke.write_text(smoke.read_text().replace("seeds = [0]", "seeds = [1]") + STAGES)
    code, output = pipeline(project, "reproduce", "--dataset", "digits")  # where the images lie
    assert code == 0, output
    made = artefacts(project)
    assert set(made) == declared(project)
    assert {Path(name).stem for name in made if "/lit/" in name} == {
        *("stage_costs", "retinanet", "mask_rcnn", "semantic_fpn")
    }
    # Another experiment's notebooks make what depends on none as well: this one's stays as it is.
    for folder in ("runs", "figures"):
        shutil.copytree(project / folder / "smoke", project / folder / "other")
    shutil.copy(smoke, smoke.with_stem("other"))
    code, output = pipeline(project, "reproduce", "--", "--touch", experiment="other")
    assert code == 0, output
    code, output = pipeline(project, "reproduce")
    assert code == 0 and "Nothing to be done" in output, output

    only_records(project)
    code, output = pipeline(project, "figures")
    assert code == 0, output
    again = artefacts(project)
    kept = {name for name in made if again[name] == made[name]}
    of_weights = declared(project, "weights")
    assert {name for name in kept if "/other/" not in name} == of_weights
    assert {Path(name).stem for name in of_weights} == {"offsets", "attention_maps", "attention_distance"}
    assert "2 runs" in (project / "figures/smoke/stages.md").read_text()


@pytest.mark.machine
def test_failed_run_keeps_its_log_and_the_next_call_goes_on(project):
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128, dataset="./nowhere")
    code, output = pipeline(project, "reproduce")
    assert code != 0 and "there is no such folder" in output
    assert "there is no such folder" in (project / "runs/smoke/ff-seed0/02_train.log").read_text()
    assert (project / "runs/smoke/ff-seed0/02_train.ipynb").exists()
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128)
    code, output = pipeline(project, "reproduce")
    assert code == 0, output


@pytest.mark.machine
@pytest.mark.parametrize("end", ["raise RuntimeError('no picture')", "os.kill(int(os.environ['FFVIT_PIPELINE']), 9)"])
def test_run_that_has_ended_is_kept_whatever_becomes_of_its_notebook(project, end):
    smoke_experiment(project, "digits", ["ff"], epochs=1, warmup_epochs=0, max_train_images=128)
    notebook = nbformat.read(project / "notebooks/02_train.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import os, time\n{end}\ntime.sleep(60)"))
    nbformat.write(notebook, project / "notebooks/02_train.ipynb")
    code, output = pipeline(project, "reproduce")
    assert code == (0 if "no picture" in end else -signal.SIGKILL) and ("no picture" in output) == ("no picture" in end)
    ended = (project / "runs/smoke/ff-seed0/training.json").stat().st_mtime_ns
    while running(project):
        time.sleep(0.1)
    code, output = pipeline(project, "reproduce")
    assert code == 0 and "train ff" not in output, output
    assert (project / "runs/smoke/ff-seed0/training.json").stat().st_mtime_ns == ended


def running(project):
    """Command lines of the processes that name the project's folder, or work in it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if str(project) in command or process.cwd() == str(project):
                found.append(command)
    return found


@pytest.mark.machine
def test_killed_pipeline_leaves_no_process_and_the_next_call_goes_on(project):
    smoke_experiment(project, "digits", ["ff"], epochs=5000, warmup_epochs=0, max_train_images=128)
    with subprocess.Popen([sys.executable, str(project / "workflow/run.py"), "reproduce", "smoke"]) as process:
        while not (project / "runs/smoke/ff-seed0/history.json").exists():
            assert process.poll() is None
            time.sleep(0.1)
        assert any("ffvit worker" in command for command in running(project))
        process.kill()
    died = time.monotonic()
    while left := running(project):
        assert time.monotonic() - died < 5, left
        time.sleep(0.1)
    code, output = pipeline(project, "reproduce", "--", "--dry-run")
    assert code == 0 and "train ff, seed 0" in output


def missing(project, *options):
    command = [sys.executable, "-m", "ffvit", "missing", "smoke", *options]
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.machine
def test_missing_runs_stop_with_checkpoints_go_on_and_leave_the_pipeline_nothing_to_train(project):
    smoke_experiment(project, "digits", ["ff"], epochs=100, warmup_epochs=0, max_train_images=64, max_eval_images=50)
    run = project / "runs/smoke/ff-seed0"
    first = missing(project)
    while not list(run.glob("checkpoints/0*")):
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)  # Ctrl-C
    output = first.communicate(timeout=30)[0]
    assert first.returncode == 75 and "1 runs are left: the same command goes on" in output
    assert list(run.glob("checkpoints/0*")) and not (run / "training.json").exists()

    second = missing(project)
    output = second.communicate()[0]
    assert second.returncode == 0 and "ff-seed0: top-1" in output, output
    assert "going on after update" in (run / "log.txt").read_text()
    record = json.loads((run / "record.json").read_text())
    assert len(record["history"]) == 100 and record["resumed"]

    code, output = pipeline(project, "reproduce", "--", "--dry-run")
    assert code == 0 and "figures_04_table1" in output
    assert "train ff, seed 0" not in output and "evaluate ff" not in output
    third = missing(project)
    assert "0 of 1 runs are missing" in third.communicate()[0] and third.returncode == 0


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Pretend that there are so many, of which none is taken; and take some for a run of so many processes."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # for their locks
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def there_are(count, runs_per_gpu):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

        def take(num_processes=1):
            environment = {"FFVIT_RUNS_PER_GPU": str(runs_per_gpu)}
            config = load_experiment("digits").config("ff", num_processes=num_processes)
            taken = _own_gpus(config, environment)
            taken.__enter__()
            return environment.get("CUDA_VISIBLE_DEVICES"), taken

        return take

    return there_are


def test_small_runs_go_to_different_gpus_before_they_share_one(gpus):
    take = gpus(2, runs_per_gpu=2)
    (first, place), *others = [take() for _ in range(5)]
    assert [first, *(gpu for gpu, _ in others)] == ["0", "1", "0", "1", None]
    place.__exit__(None, None, None)
    assert take()[0] == "0"  # where there is a place again


def test_run_of_several_processes_takes_whole_gpus(gpus):
    take = gpus(3, runs_per_gpu=2)
    held = [take(), take(2), take(), take(), take(2)]
    assert [gpu for gpu, _ in held] == ["0", "1,2", "0", None, None]


def test_a_wrong_number_of_runs_for_a_gpu_is_told(gpus):
    for wrong in ("0", "two", "-1", "1.5"):
        with pytest.raises(InputError, match=f"FFVIT_RUNS_PER_GPU must be a whole number from 1 on, got '{wrong}'"):
            gpus(1, wrong)()


@pytest.mark.parametrize(
    "jobs, runs_per_gpu, expected",
    [
        (0, 1, ["--cores", "16", "--resources", "gpu=2"]),
        (0, 4, ["--cores", "16", "--resources", "gpu=8"]),
        (3, 4, ["--cores", "15", "--resources", "gpu=8"]),
        (0, 20, ["--cores", "40", "--resources", "gpu=40"]),
    ],
)
def test_jobs_fill_the_places_on_gpus_and_divide_the_cores(monkeypatch, jobs, runs_per_gpu, expected):
    spec = importlib.util.spec_from_file_location("run", ROOT / "workflow/run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("FFVIT_RUNS_PER_GPU", "")
    monkeypatch.setattr(run.os, "cpu_count", lambda: 16)
    settings = {}
    assert run.on_this_machine(jobs, runs_per_gpu, settings) == expected
    side_by_side = jobs or 2 * runs_per_gpu
    assert settings == {"gpus": "2", "runs_per_gpu": str(runs_per_gpu), "threads": str(max(1, 16 // side_by_side))}
    assert os.environ["FFVIT_RUNS_PER_GPU"] == str(runs_per_gpu)


ODD = """
title = "odd"
scope = "odd"
about = "odd"
seeds = [0, 1]
settings = { recipe = "small_images", dataset = "digits", model = "ff_tiny_patch16_224" }
[models]
"a.b-1" = { label = "A" }
"c-d" = { label = "B", seeds = [3, 5, 7], num_processes = 2 }
e_f = { label = "C", seeds = [9], num_processes = 4 }
g = { label = "D", device = "cpu" }
"""


def test_every_model_has_its_own_seeds_and_places(project, monkeypatch):
    (project / "experiments/smoke.toml").write_text(ODD)
    with open(project / "workflow/Snakefile", "a") as file:
        file.write("\nprint('places', *map(places, SEEDS), file=sys.stderr)\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    code, output = pipeline(project, "reproduce", "--runs-per-gpu", "3", "--", "--dry-run", "--printshellcmds")
    assert code == 0, output
    assert "places 1 6 6 0" in output
    for model, seeds in {"a.b-1": [0, 1], "c-d": [3, 5, 7], "e_f": [9], "g": [0, 1]}.items():
        assert output.count(f"-r model {model} -y 'seeds: {seeds}'") == 1
        for seed in seeds:
            assert output.count(f"-r model {model} -p seed {seed} ") == 1
    assert output.count("-y 'seeds: ") == 4 and output.count("-p seed") == 8


@pytest.mark.parametrize("task, file", [("reproduce", "my {x}: d/mine.toml"), ("figures", "007")])
def test_texts_and_paths_with_a_meaning_to_snakemake_are_taken_as_they_are(project, task, file):
    path = project / file if "/" in file else project / f"experiments/{file}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(hostile.TEXT)
    records = project / "results" / path.stem
    (records / "trials").mkdir(parents=True)
    for folder in (records, records / "trials"):
        (folder / "{seed}.json").touch()
    code, output = pipeline(project, task, "--", "--dry-run", "--printshellcmds", experiment=file)
    assert code == 0, output
    assert f"-r experiment {shlex.quote(file)}" in output
    assert ("train ff, seed 1" in output) == (task == "reproduce")


def test_runs_share_the_gpus_of_this_machine_only(project):
    smoke_experiment(project, "digits", ["ff"])
    for options, message in (
        (["--runs-per-gpu", "0"], "--runs-per-gpu 0: give a whole number from 1 on"),
        (["--runs-per-gpu", "2", "--profile", "slurm"], "a cluster gives every job GPUs of its own"),
    ):
        code, output = pipeline(project, "reproduce", *options)
        assert code == 2 and message in output


def test_what_the_pipeline_cannot_begin_with_is_told_in_one_line(project):
    smoke_experiment(project, "digits", ["ff"])
    (project / "runs").touch()
    for options, message in (
        (["--jobs", "1000"], r"--jobs=1000 are too many processes .*: --jobs=\d+ fit"),
        (["--jobs", "-1"], "--jobs must not be negative, got -1"),
        ([], "runs.*: .*a file is in a folder's place: move it away"),
    ):
        code, output = pipeline(project, "reproduce", *options)
        assert code == 2 and re.match(f"error: {message}", output) and output.count("\n") == 1


def test_a_wrong_experiment_is_told_in_one_line(project):
    known = ", ".join(sorted(file.stem for file in (project / "experiments").glob("*.toml")))
    (project / "experiments/smoke.toml").write_text("title = ")
    for experiment, message in {
        "digitz": "experiment 'digitz' is unknown; did you mean 'digits'?",
        "nowhere": f"experiment 'nowhere' is unknown; known: {known}",
        "smoke": "smoke.toml: not valid TOML",
    }.items():
        code, output = pipeline(project, "reproduce", experiment=experiment)
        assert code == 2 and output.startswith("error: ") and output.count("\n") == 1
        assert message in output.replace(", smoke", "")


@pytest.mark.machine
def test_pipeline_runs_on_cifar10(project, shared):
    small = dict(epochs=1, warmup_epochs=0, batch_size=64, max_train_images=256, max_eval_images=100, num_workers=0)
    smoke_experiment(project, "cifar10", ["ff"], **small, model_args={"depth": 2}, mixed_precision="no", compile=False)
    code, output = pipeline(project, "reproduce", "--dataset", str(shared / "data/cifar10"))
    assert code == 0, output
    record = json.loads((project / "runs/smoke/ff-seed0/record.json").read_text())
    assert record["results"]["images"] == 100 and record["config"]["dataset"] == "cifar10"
    assert "CIFAR-10 top-1 measured" in (project / "figures/smoke/table1.md").read_text()


@pytest.mark.machine
def test_pipeline_runs_on_imagenet_at_224(project, shared):
    small = dict(epochs=1, warmup_epochs=0, batch_size=16, max_train_images=32, max_eval_images=16, num_workers=0)
    smoke_experiment(
        project, "imagenet", ["ff_tiny"], **small, model_args={"depth": 2}, mixed_precision="no", cooldown_epochs=0
    )
    code, output = pipeline(project, "reproduce", "--dataset", str(shared / "data/imagenet-sample"))
    assert code == 0, output
    record = json.loads((project / "runs/smoke/ff_tiny-seed0/record.json").read_text())
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
    train = "'-m' 'ffvit' 'worker' '--experiment' 'my data.toml' '--model' 'ff; touch x' '--seed' '0' 'num_processes=4'"
    tasks = [f"{rank} {rank % 2} 4 node7 10123 {train} 'label=$(touch x) *' 'epochs=2'" for rank in range(4)]
    assert (code, output.splitlines(), requeued) == (0, tasks, "")


def test_slurm_job_goes_back_into_the_queue_only_after_a_checkpoint(cluster):
    assert cluster("digits", "ff", "0", exit_code=2)[::2] == (2, "")
    assert cluster("digits", "ff", "0", exit_code=75)[::2] == (75, "requeue 40123\n")


def test_slurm_job_without_its_three_words_says_how_it_is_called(cluster):
    code, output, _ = cluster("digits", "ff")
    assert code == 2 and "usage: sbatch" in output
