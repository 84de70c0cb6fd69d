"""Notebooks as a stranger opens them: in JupyterLab as make lab starts it, by "Run All Cells", in a copy of the project where nothing
was trained.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from ffvit.system.files import ROOT

pytestmark = pytest.mark.machine
PARTS = (
    "ffvit",
    "notebooks",
    "workflow",
    "experiments",
    "results/digits",
    "results/digits-lit",
    "results/digits-scenes",
)
MINUTES = 3  # for one notebook, on a machine that has other things to do
STATE = """() => {
  const {content, sessionContext} = window.jupyterapp.shell.currentWidget;
  const cells = [...content.model.cells].filter(cell => cell.type === "code");
  const outputs = cells.flatMap(cell => Array.from({length: cell.outputs.length}, (_, i) => cell.outputs.get(i).toJSON()));
  const failed = outputs.some(output => output.output_type === "error");
  const ended = failed || cells.every(cell => cell.executionCount);
  return {idle: sessionContext.kernelDisplayStatus === "idle", ended, outputs};
}"""
READY = """() => {
  const open = window.jupyterapp?.shell.currentWidget;
  return open?.context?.isReady && open.sessionContext.kernelDisplayStatus === "idle";
}"""
DRAWN = ".widget-output img"  # what sliders choose
SAID = ".jp-Dialog, .Toastify__toast"  # in the way, or in a corner


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab that runs, as nobody's who has settings of their own."""
    project, home = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("home")
    for part in PARTS:
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {
        "HOME": str(home),
        "JUPYTER_CONFIG_PATH": "workflow/jupyterlab",
        "JUPYTER_RUNTIME_DIR": str(home),
        "PYTHONPATH": str(project),  # its kernels take the library beside the notebooks
    }
    command = [sys.executable, "-m", "jupyter", "lab", "--notebook-dir=.", "--no-browser", "--port=0", "--allow-root"]
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(
            [*command, "--expose-app-in-browser"], cwd=project, env=environment, stdout=log, stderr=log
        )
        try:
            began = time.monotonic()
            while not (found := list(home.glob("jpserver-*.json"))):
                assert server.poll() is None and time.monotonic() - began < 60, (home / "log.txt").read_text()
                time.sleep(0.2)
            about = json.loads(found[0].read_text())
            yield f"{about['url']}lab/workspaces/{{0}}/tree/notebooks/{{0}}.ipynb?token={about['token']}"
        finally:
            server.terminate()  # and its kernels
            server.wait()


@pytest.fixture
def run_all(lab, browser):
    """What a notebook shows after Run All Cells: the outputs of its cells, and the page."""
    page = browser.new_page(viewport={"width": 1400, "height": 5000})  # what is out of sight is not drawn

    def run(name):
        page.goto(lab.format(name))
        page.wait_for_function(READY, timeout=60_000)
        page.locator(".lm-MenuBar-item", has_text="Run").first.click()
        page.locator("[data-command='runmenu:run-all']").click()
        began = time.monotonic()
        while not ((state := page.evaluate(STATE))["idle"] and state["ended"]):
            assert time.monotonic() - began < 60 * MINUTES, state
            page.wait_for_timeout(300)
        assert page.locator(SAID).count() == 0, page.locator(SAID).all_inner_texts()
        return state["outputs"], page

    yield run
    page.close()


def of_kind(outputs, kind):
    return [output for output in outputs if kind in output.get("data", {})]


def test_run_all_shows_no_warning_and_no_question(run_all):
    outputs, _ = run_all("05_attention_only")
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert len(of_kind(outputs, "image/png")) == 1 and len(of_kind(outputs, "text/html")) == 1


def test_run_all_shows_weights_that_came_along_with_sliders_that_draw(run_all):
    outputs, page = run_all("18_patch_mixer")
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert len(of_kind(outputs, "application/vnd.jupyter.widget-view+json")) == 1
    drawn = page.locator(DRAWN)
    drawn.wait_for()
    before = drawn.get_attribute("src")
    page.locator(".noUi-handle").first.press("ArrowRight")
    changed = "([drawn, before]) => { const now = document.querySelector(drawn); return now && now.src !== before; }"
    page.wait_for_function(changed, arg=[DRAWN, before])


@pytest.mark.parametrize("name", ["11_visualise", "21_detection", "22_segmentation"])
def test_run_all_looks_at_models_that_came_along(name, run_all):
    outputs, _ = run_all(name)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert len(of_kind(outputs, "image/png")) >= 2


def test_a_notebook_that_needs_runs_says_which_in_one_line(run_all):
    outputs, _ = run_all("19_rank_collapse")
    [error] = [output for output in outputs if output["output_type"] == "error"]
    assert error["ename"] == "InputError" and "make reproduce EXPERIMENT=digits-attention-only" in error["evalue"]
    assert error["traceback"] == [f"InputError: {error['evalue']}"]
