"""The house in order: imports in one direction, one list of dependencies, nothing unsafe, notebooks clean."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A package may import those before it, never those after it.
ORDER = ["system", "settings", "models", "data", "training", "evidence", "studies", "commands"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ffvit":
            found |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ffvit.")}
    return found


def test_every_file_of_the_library_is_in_a_package_of_the_order():
    assert {path.parent.name for path in (ROOT / "ffvit").glob("*/*.py")} == set(ORDER)
    assert {path.name for path in (ROOT / "ffvit").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    later = set(ORDER[ORDER.index(package) + 1 :])
    for path in (ROOT / "ffvit" / package).glob("*.py"):
        assert not imported_packages(path) & later, path.name


def test_training_needs_no_notebook_or_pipeline_package():
    companion = [
        "papermill",
        "IPython",
        "ipykernel",
        "matplotlib",
        "seaborn",
        "snakemake",
        "jupyterlab",
        "pygments",
        "tabulate",
    ]
    block = f"import sys; sys.modules.update(dict.fromkeys({companion})); import ffvit.commands.worker, ffvit.commands.score, ffvit.commands.missing"
    assert subprocess.run([sys.executable, "-c", block], capture_output=True).returncode == 0


def test_lock_file_pins_every_dependency_exactly():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [d for group in project["optional-dependencies"].values() for d in group]
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] not in " #"]
    assert all(re.match(r"^[A-Za-z0-9_.\[\]-]+==[^;]+", line) for line in lines)
    pinned = {re.split(r"[=\[]", line)[0] for line in lines}
    assert {re.split(r"[>=<]", d)[0].strip() for d in asked} <= pinned


def test_conda_environment_takes_everything_from_the_lock_file():
    text = (ROOT / "environment.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    from_conda = re.findall(r"^  - (.+)$", text.partition("dependencies:")[2], re.M)
    python = from_conda.pop(0).removeprefix("python=")
    assert from_conda == ["pip", "make", "pip:"]  # torch and all else from one source
    minimum = project["requires-python"].removeprefix(">=")
    assert tuple(map(int, python.split("."))) >= tuple(map(int, minimum.split(".")))
    from_pip = re.findall(r"^      - (.+)$", text, re.M)
    assert from_pip == ["-r requirements.lock", "-e ."]


def test_no_unsafe_load_shell_or_remote_code_exists():
    unsafe = re.compile(
        r"weights_only\s*=\s*False|trust_remote_code\s*=\s*True|shell\s*=\s*True|pickle\.loads?\b|(?<![.\w])(?:eval|exec)\("
    )
    files = [*ROOT.glob("ffvit/**/*.py"), *ROOT.glob("workflow/*"), *NOTEBOOKS]
    assert not [f"{f.name}: {m.group()}" for f in files if f.is_file() for m in unsafe.finditer(f.read_text())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_committed_without_outputs(path):
    done = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_opens_with_title_literals_and_the_check(path):
    cells = json.loads(path.read_text())["cells"]
    sources = ["".join(c["source"]) for c in cells]
    assert cells[0]["cell_type"] == "markdown" and sources[0].startswith("# ")
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    for statement in ast.parse(sources[1]).body:
        assert isinstance(statement, ast.AnnAssign)
        ast.literal_eval(statement.value)
    assert "check_parameters()" in sources[2]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_cells_are_short_and_define_nothing(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            source = "".join(cell["source"])
            defined = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
            assert not any(isinstance(node, defined) for node in ast.walk(ast.parse(source)))
            assert len(source.splitlines()) <= 10


def test_readme_names_only_commands_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    readme = (ROOT / "README.md").read_text()
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", readme, re.M)) <= targets
    for link in re.findall(r"\]\(([^)#]+)\)", readme) + re.findall(r'src="([^"]+)"', readme):
        assert link.startswith("https://") or (ROOT / link).exists(), link
