"""The commands: quick to answer, helpful when wrong; runs side by side are told of, stop in order and leave nothing behind."""

import errno
import json
import math
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ffvit.__main__ import COMMANDS
from ffvit.__main__ import main as ffvit
from ffvit.commands import train
from ffvit.launching import forecast, jobs
from ffvit.launching import launch as launching
from ffvit.launching.children import Children, watched
from ffvit.launching.jobs import Job, Outlook
from ffvit.launching.launch import launch
from ffvit.settings.experiment import load_experiment
from ffvit.system import machine
from ffvit.system.errors import InputError, Stopped, TrainingError
from ffvit.system.files import ROOT
from ffvit.training import progress

WITHOUT_TORCH = (
    "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'numpy'])); from ffvit.__main__ import main; "
)


def without_torch(*arguments):
    """A command where torch cannot be imported."""
    call = f"{WITHOUT_TORCH}sys.exit(main({list(arguments)!r}))"
    return subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command, "--help"] for command in COMMANDS), ["status", "digits"]]
)
def test_help_and_status_need_no_torch(arguments):
    done = without_torch(*arguments)
    assert done.returncode == 0 and len(done.stdout.splitlines()) > 5, done.stderr


def test_unknown_command_option_or_experiment_is_told_with_the_nearest(capsys):
    for arguments, message in (
        (["statsu", "digits"], "error: ffvit has no command 'statsu'; did you mean 'status'?"),
        (["missing", "digits", "--modles", "ff"], "error: ffvit missing has no option '--modles'; did you mean '--models'?"),
        (["tune", "digits", "--minute=3x"], "invalid float value: '3x'; ffvit tune --help says more"),
        (["train", "--experiment", "digits", "--sede=3", "--model", "ff"], "did you mean '--seed'?"),
        (["train", "--experiment", "digits", "--model", "ff", "epoch=3"], "did you mean 'epochs'?"),
        (["train", "--experiment", "digits-ablations", "--model", "ff_conf"], "has no model 'ff_conf', nor has timm; did you mean 'ff_conv'?"),
        (["missing", "digits-ablations", "--part", "stm"], "digits-ablations has no part 'stm'; did you mean 'stem'?"),
        (["missing", "digits-ablations", "--models", "ff_conf"], "has no model 'ff_conf'; did you mean 'ff_conv'?"),
        (["score"], "run_dir; ffvit score --help says more"),
    ):  # fmt: skip
        assert ffvit(arguments) == 2
        assert message in capsys.readouterr().err


def test_every_command_tells_what_ended_it_the_same_way(monkeypatch, capsys):
    def ending(error):
        def main(arguments):
            raise error

        monkeypatch.setattr(train, "main", main)
        code, told = ffvit(["train"]), capsys.readouterr()
        return code, told.out, told.err.splitlines()[-1:]

    assert ending(Stopped("stopped by SIGTERM")) == (75, "stopped by SIGTERM\n", [])
    assert ending(TrainingError("no luck")) == (2, "", ["error: no luck"])
    assert ending(InputError("no such thing")) == (2, "", ["error: no such thing"])
    monkeypatch.setattr(os, "environ", os.environ | {"RANK": "1", "WORLD_SIZE": "2"})
    assert ending(OSError("odd")) == (2, "", ["error in process 1 of 2: OSError: odd"])
    assert ending(Stopped("stopped by SIGTERM")) == (75, "", [])  # the first process says so


def test_ctrl_c_and_what_the_system_refuses_are_told_in_one_line(monkeypatch, capsys):
    def ending(error):
        def main(arguments):
            raise error

        monkeypatch.setattr(train, "main", main)
        return ffvit(["train"]), capsys.readouterr().err

    assert ending(KeyboardInterrupt()) == (130, "stopped by Ctrl-C\n")
    for number, words in (
        (errno.ENOSPC, "No space left on device; make room"),
        (errno.EROFS, "Read-only file system; choose a place that you may write to"),
        (errno.EACCES, "Permission denied; choose a place that you may write to"),
        (errno.ENAMETOOLONG, "File name too long; choose a shorter name"),
        (errno.ENOTDIR, "Not a directory; a file is in a folder's place"),
    ):
        code, told = ending(OSError(number, os.strerror(number), "runs/a"))
        assert (code, told.count("\n")) == (2, 1) and told.startswith(f"error: runs/a: {words}")


def test_numbers_that_this_machine_cannot_hold_or_nobody_means_are_refused(capsys):
    for arguments, message in (
        (["missing", "digits", "--jobs", "1000"], r"--jobs=1000 are too many processes for \d+ cores and \d+ GB .*: --jobs=\d+ fit"),
        (["tune", "digits", "--jobs", "1000"], r"--jobs=\d+ fit"),
        (["missing", "digits", "--minutes", "nan"], "--minutes must be a number from 0 on, got nan"),
        (["missing", "digits", "--minutes=-1"], "--minutes must be a number from 0 on, got -1.0"),
        (["missing", "digits", "--models", "ff", "device=cpu"], "'device=cpu' stands among the models: give it before"),
        (["missing", "digits", "--jobs", "2", "epochs=3"], "'epochs' decides a result"),  # in any order
        (["tune", "digits", "--jobs", "2", "epochs=3"], "'epochs' decides a result"),
        (["train", "--experiment", "digits", "--model", "ff", "seed=" + "9" * 5000], "give --seed"),
        (["train", "--experiment", "digits", "--model", "ff", "epochs=" + "9" * 5000], "epochs must be a valid integer"),
        (["train", "--experiment", "digits", "--model", "ff", "model_args=" + "[" * 5000], "model_args must be a table"),
        (["train", "--experiment", "digits", "--model", "ff", "device=nope"], "device must be 'auto', 'cuda', 'cpu' or 'mps'"),
    ):  # fmt: skip
        assert ffvit(arguments) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", "null", '{"model_type": "vit"}', "[" * 100_000, "\xff", None, '{"experiment": "digits"}',
     '{"experiment": "a/b", "name": "x", "label": "x", "model": "x", "dataset": "x"}',
     '{"experiment": "a", "name": "x", "label": "x", "model": "x", "dataset": "x", "model_args": [1]}'],
)  # fmt: skip
def test_a_config_that_is_none_is_refused_by_name_in_one_line(tmp_path, capsys, text):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    assert ffvit(["train", "--config", str(file)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert str(file) in told or "experiment must name a folder, got 'a/b'" in told


def test_who_reads_may_have_enough(capfd):
    command = f"{sys.executable} -m ffvit status digits | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout.startswith("Handwritten digits")


IN_ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_of_ascii_reads_and_prints_what_is_not(tmp_path):
    text = (ROOT / "experiments/digits.toml").read_text(encoding="utf-8").replace('"FF only"', '"f\u00fcr sich"')
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ffvit", "status", str(tmp_path / "mine.toml")],
        env=os.environ | IN_ASCII, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and r"f\xfcr sich" in done.stdout, done.stderr
    said = r"import sys; sys.stdout.buffer.write('f\xfcr sich'.encode())"
    log = tmp_path / "log.txt"
    call = f"from ffvit.launching.children import Children; import os; Children().run(['-c', {said!r}], os.environ, {str(log)!r})"
    subprocess.run([sys.executable, "-c", call], env=os.environ | IN_ASCII, check=True)
    assert log.read_text(encoding="utf-8") == "f\u00fcr sich"


# The memory that a process keeps

FAULTS = """
import resource
from types import SimpleNamespace
from ffvit.__main__ import main
from ffvit.settings import parameters
from ffvit.system import machine
parameters.get_ipython = lambda: SimpleNamespace(user_ns={"In": []})
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
CALL
faults()
print(before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc")
@pytest.mark.parametrize("call", ["main(['status', 'nothing'])", "parameters.check_parameters()"])
def test_commands_and_notebooks_take_memory_again_without_asking_the_system_for_it(call):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    block = FAULTS.replace("CALL", call)
    done = subprocess.run([sys.executable, "-c", block], env=environment, capture_output=True, text=True, cwd=ROOT)
    before, after = map(int, done.stdout.split())
    assert after < before / 10, done.stdout


class Library:
    """A C library whose mallopt takes no more than `most`."""

    def __init__(self, most: int):
        self.most, self.asked = most, []

    def mallopt(self, option, value):
        self.asked.append((option, value))
        return int(option == machine.M_TRIM_THRESHOLD or value <= self.most)


def test_an_older_glibc_keeps_what_it_can_and_other_libraries_are_left_alone(monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    older, odd = Library(most=2**25), Library(most=0)
    for library, taken in ((older, True), (odd, False), (object(), False)):
        monkeypatch.setattr(machine.ctypes, "CDLL", lambda name, library=library: library)
        assert machine.keep_memory() == taken
    assert older.asked == [(-3, 2**30), (-3, 2**25), (-1, 2**30)]
    # To be told when to trim fixes the other threshold too, at a size so small that all would be slower than before.
    assert (-1, 2**30) not in odd.asked
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")  # a person has chosen
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: older)
    assert not machine.keep_memory() and len(older.asked) == 3


# Runs side by side


def test_runs_side_by_side_share_cores_and_gpus(monkeypatch):
    digits = load_experiment("digits")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(jobs.os, "cpu_count", lambda: 16)
    one, two = digits.config("ff"), digits.config("ff", num_processes=2)
    for config, side_by_side, gpus, threads, runs_per_gpu in (
        (one, 4, 1, "4", "4"),
        (one, 5, 2, "3", "3"),
        (two, 4, 8, "2", "1"),
        (one, 32, 0, "1", "1"),
    ):
        found = jobs.environment(config, side_by_side, gpus)
        assert (found["OMP_NUM_THREADS"], found["FFVIT_RUNS_PER_GPU"]) == (threads, runs_per_gpu)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert jobs.environment(one, 4, 1)["OMP_NUM_THREADS"] == "7"


# What a process of a run may do, instead of training for real.
MODULES = {
    "good": "print('good')",
    "bad": "import sys; print('error: no luck'); print('and more'); sys.exit(2)",
    "long": """
import pathlib, signal, sys, time
def stop(*_):
    print('stopped by SIGTERM')
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
""",
    "deaf": """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
""",
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Make a job whose training and scoring are these modules."""
    monkeypatch.chdir(tmp_path)
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(launching, "_launcher", lambda config: [*watched(), config.label, f"{config.name}.begun"])
    monkeypatch.setattr(jobs, "watched", lambda: [*watched(), "good"])

    def make(name, module, **settings):
        config = replace(load_experiment("digits").config("ff"), name=name, label=module)
        (tmp_path / "runs" / name).mkdir(parents=True)
        return Job(name, config, tmp_path / "runs" / name, dict(os.environ), **settings)

    return make


def run(made, side_by_side=2, deadline=math.inf, children=None):
    return jobs.run(made, side_by_side, deadline, children or Children(), Outlook(made, side_by_side, []))


def test_failed_run_is_named_with_its_log_and_does_not_stop_the_others(job, capsys):
    made = [job("a", "bad"), job("b", "good"), job("c", "bad"), job("d", "good", is_trained=True)]
    failed, left = run(made)
    assert ({j.name for j in failed}, left) == ({"a", "c"}, 0)
    assert made[0].error == "a: error: no luck; the log is runs/a/log.txt"
    told = capsys.readouterr().out
    assert "b: good" in told and "d: good" in told and "c: good" not in told and f"error: {made[2].error}" in told
    assert "and more" in Path("runs/a/log.txt").read_text()
    assert Path("runs/b/log.txt").read_text().count("good\n") == 2 and Path("runs/d/log.txt").read_text() == "good\n"


@pytest.mark.parametrize("why", ["the time is up", "asked to stop"])
def test_runs_stop_when_the_time_is_up_or_a_signal_asks(job, tmp_path, capsys, why):
    children, began = Children(), time.monotonic()

    def ask():
        while len(list(tmp_path.glob("*.begun"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    if why == "asked to stop":
        threading.Thread(target=ask).start()
    with children.passing_signals():
        made = [job(name, "long") for name in "abc"]
        failed, left = run(made, 2, began + (2 if why == "the time is up" else 60), children)
    assert (failed, left) == ([], 3) and time.monotonic() - began < 30
    assert f"{why}: the runs write their checkpoints" in capsys.readouterr().out
    assert not (tmp_path / "c.begun").exists()


def test_a_second_ctrl_c_ends_runs_at_once(job, tmp_path):
    children, began = Children(), time.monotonic()

    def ask():
        while not (tmp_path / "a.begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        assert children._running, "the first one asks for a checkpoint"
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=ask).start()
    with children.passing_signals():
        assert run([job("a", "deaf")], 1, math.inf, children) == ([], 1)
    assert 1 < time.monotonic() - began < 30


def test_run_that_is_asked_to_stop_before_it_listens_has_stopped_and_not_failed(tmp_path, monkeypatch):
    # Its imports take seconds, in which a signal kills it.
    importing = "import os, signal, time; time.sleep(0.5); os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    monkeypatch.setattr(launching, "_launcher", lambda config: ["-c", importing])
    with pytest.raises(Stopped):
        launch(load_experiment("digits").config("ff"), tmp_path, pass_signals=True)


DRIVER = """
import os, sys
# It needs no package of the notebooks and the pipeline.
sys.modules.update(dict.fromkeys(["papermill", "IPython", "ipykernel", "matplotlib", "seaborn", "snakemake"]))
from pathlib import Path
from ffvit.commands.missing import main
from ffvit.launching.children import Children, watched
Children().run([*watched(), "long", "a.begun"], dict(os.environ), Path("log.txt"))
"""


def test_killed_driver_that_has_only_what_training_needs_leaves_nothing_behind(job, tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER])
    while not (tmp_path / "a.begun").exists():
        assert driver.poll() is None
        time.sleep(0.05)
    [child] = psutil.Process(driver.pid).children()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    child.wait(timeout=5)


# How long it will take


def facts(config, epoch_s, macs=100, train=1000, validation=300, epochs=2, **hardware):
    """What a record says of a run on this machine that took so long."""
    here = {"device": "cpu", "gpu": None, "processes": config.num_processes, **forecast.provenance.processor()}
    return {
        "config": config.to_dict(),
        "model": {"macs": macs},
        "dataset": {"images": {"train": train, "validation": validation, "test": 1}, "classes": 10},
        "history": [{"seconds": epoch_s}] * epochs,
        "hardware": here | hardware,
    }


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(forecast.provenance, "gpus", lambda: [])


def test_time_of_a_model_is_that_of_its_runs_on_such_a_machine(tmp_path, no_gpu):
    digits = load_experiment("digits")
    ff, vit = digits.config("ff"), digits.config("vit")
    (tmp_path / "results/digits/trials").mkdir(parents=True)
    (tmp_path / "results/digits/ff-seed0.json").write_text(json.dumps(facts(ff, 10.0)))
    (tmp_path / "results/digits/ff-seed1.json").write_text(json.dumps(facts(ff, 100.0, cpu="another")))
    (tmp_path / "results/digits/ff-seed2.json").write_text("{")
    trial = digits.config("ff", epochs=1, base_lr=1.0, warmup_epochs=0)
    (tmp_path / "results/digits/trials/a.json").write_text(json.dumps(facts(trial, 20.0)))
    begun = tmp_path / "runs/digits/ff-seed3/checkpoints/00000010"
    begun.mkdir(parents=True)
    content = facts(ff, 30.0)
    (begun / "progress.json").write_text(json.dumps({"history": content.pop("history"), "facts": content}))
    known = forecast.paces_here(digits, tmp_path / "results", tmp_path / "runs")
    assert sorted(m.epoch_s for m in known) == [10, 20, 30]
    assert forecast.epoch_s(digits.config("ff", seed=7, epochs=90), known) == 20
    assert forecast.epoch_s(vit, known) is None
    assert forecast.epoch_s(digits.config("ff", batch_size=32), known) is None


def test_time_of_other_models_is_scaled_by_multiply_adds_and_images():
    digits = load_experiment("digits")
    known = [forecast.pace_of(facts(digits.config("ff"), 11.0))]
    assert forecast.epoch_s(digits.config("vit"), known, macs=200) == pytest.approx(22)
    half = digits.config("vit", max_train_images=450)  # and 300 of validation, which cost a third
    assert forecast.epoch_s(half, known, macs=100) == pytest.approx(5.5)


def test_runs_side_by_side_take_the_time_of_the_last_to_end():
    total = forecast.side_by_side_s
    assert total([3, 3, 3], 2) == 6
    assert total([1, 1, 9], 2) == 10
    assert total([5], 2, begun=[1, 4]) == 6
    assert total([], 2, begun=[7]) == 7
    assert math.isnan(total([1, math.nan], 2))


def test_time_left_is_by_what_epochs_took_so_far(job, tmp_path):
    digits = load_experiment("digits")
    made = [job("a", "good"), job("b", "good")]
    for each in made:
        each.config = replace(each.config, epochs=5, warmup_epochs=0)
    known = [forecast.pace_of(facts(digits.config("ff"), 10.0))]
    look = Outlook(made, 1, known)
    assert look.left_s() == 2 * (50 + forecast.BESIDES_S)
    made[0].began = time.monotonic()
    assert str(look).startswith("0 of 2 recorded; a epoch 1/5; left: 2 min, until ")
    (made[0].folder / "history.json").write_text(json.dumps([{"seconds": 20.0}] * 2))  # twice as long as thought
    assert look.left_s() == pytest.approx(3 * 20 + 5 * 20 + 2 * forecast.BESIDES_S, abs=2)
    made[0].ended = made[0].began + 110
    (made[0].folder / "history.json").write_text(json.dumps([{"seconds": 20.0}] * 5))
    assert look.left_s() == 5 * 20 + 10
    assert str(Outlook(made, 1, [])).endswith("left: not known yet")


def test_a_clock_that_is_set_leaves_durations_as_they_are(job, monkeypatch):
    made, now = job("a", "good"), time.time()
    made.began = time.monotonic() - 100
    (made.folder / "history.json").write_text("[]")
    for hours in (-24, 0, 24):
        monkeypatch.setattr(jobs.time, "time", lambda hours=hours, now=now: now + 3600 * hours)
        assert 0 <= made.idle_s <= 101


@pytest.mark.parametrize("text", ["{", "[1]", '[{"seconds": "x"}]', "[" * 100_000, '[{"seconds": null}]', "3"])
def test_a_history_that_is_none_is_no_epoch_made(job, text):
    made = job("a", "good")
    (made.folder / "history.json").write_text(text)
    assert made.epochs == [] and made.where == f"a epoch 1/{made.config.total_epochs}"


@pytest.mark.parametrize("epoch_s", [-1.0, 0.0, math.nan, math.inf, 1e300, "1", None, [1]])
def test_an_epoch_of_no_length_is_not_forecast_from(tmp_path, no_gpu, epoch_s):
    digits = load_experiment("digits")
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits/a.json").write_text(json.dumps(facts(digits.config("ff"), epoch_s)))
    assert forecast.paces_here(digits, tmp_path, tmp_path) == []


def test_an_end_beyond_all_dates_is_told(job):
    assert re.fullmatch(r"[\d-]+ \d\d:\d\d", forecast.clock(1e300))
    assert progress.duration(1e300).startswith("115740740 days")


def test_forecast_needs_no_torch_and_is_empty_where_nothing_is_known(tmp_path, monkeypatch, no_gpu):
    digits = load_experiment("digits")
    assert forecast.forecast(digits.model_copy(update={"name": "nowhere"}), 2) == ""
    known = [forecast.pace_of(facts(digits.config(model), 100.0)) for model in digits.models]
    monkeypatch.setattr(forecast, "paces_here", lambda experiment: known)
    told = forecast.forecast(digits.model_copy(update={"name": "nowhere"}), side_by_side=3)
    assert told.startswith("12 runs to train take 2 h 01 min, until ")


def test_forecast_names_what_was_never_measured_beside_what_was(monkeypatch, no_gpu):
    digits = load_experiment("digits")
    monkeypatch.setattr(
        forecast, "paces_here", lambda experiment: [forecast.pace_of(facts(digits.config("ff"), 100.0))]
    )
    told = forecast.forecast(digits.model_copy(update={"name": "nowhere"}), side_by_side=3)
    assert told.startswith("3 runs to train take 30 min") and told.endswith(
        "9 more, of which nothing was measured, come on top"
    )


def test_line_of_the_whole_is_plain_in_a_log_and_rewritten_in_a_terminal():
    call = "from ffvit.launching.jobs import say; say('a'); say('b', to_be_rewritten=True); say('c')"
    plain = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True).stdout
    assert re.fullmatch(r"(\d\d:\d\d:\d\d  [abc]\n){3}", plain)
    read, write = pty.openpty()
    subprocess.run([sys.executable, "-c", call], stdout=write)
    assert re.search(r"  a\r\n\r\x1b\[K\S+  b\r\x1b\[K\S+  c\r\n$", os.read(read, 1000).decode())


@pytest.mark.parametrize("seconds, told", [(5, "5 s"), (600, "10 min"), (12060, "3 h 21 min"), (190_000, "2 days 5 h")])
def test_durations_are_told_as_one_says_them(seconds, told):
    assert forecast.spoken(seconds) == told


# make


@pytest.mark.parametrize("target", ["status", "missing", "tune", "reproduce", "figures", "benchmark"])
def test_variables_of_make_are_values_and_never_commands(target, tmp_path):
    touched = tmp_path / "touched"
    names = ("EXPERIMENT", "DATASET", "PROFILE", "JOBS", "RUNS_PER_GPU", "DEVICE")
    hostile = f'x"; touch {touched}; "$(shell touch {touched})`touch {touched}`$$(touch {touched})'
    values = [f"{name}={hostile}" for name in names]
    bin_here = {"CONDA_DEFAULT_ENV": "ffvit", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", target, *values], cwd=ROOT, env=os.environ | bin_here, capture_output=True, text=True
    )
    assert done.returncode and "error" in done.stderr
    assert not touched.exists()
