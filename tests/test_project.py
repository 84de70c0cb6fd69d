"""The house in order: imports in one direction, one list of dependencies, nothing unsafe, notebooks clean."""

import ast
import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ffvit.__main__ import main
from ffvit.settings.config import Config
from ffvit.settings.experiment import load_experiment

ROOT = Path(__file__).parent.parent
# A package may import those before it, never those after it.
ORDER = ["system", "settings", "models", "data", "tasks", "training", "evidence", "studies", "launching", "commands"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ffvit":
            found |= {node.module.split(".")[1]} if "." in node.module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ffvit.")}
    return found


def test_every_file_of_the_library_is_in_a_package_of_the_order():
    assert {path.relative_to(ROOT / "ffvit").parts[0] for path in (ROOT / "ffvit").glob("*/**/*.py")} == set(ORDER)
    assert {path.name for path in (ROOT / "ffvit").glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    later = set(ORDER[ORDER.index(package) + 1 :])
    for path in (ROOT / "ffvit" / package).rglob("*.py"):
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
    assert from_pip == ["-r requirements.lock"]  # pip takes nothing without a hash beside what has some


def test_everything_is_installed_by_hash_and_the_lock_is_made_with_hashes():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [i for i, line in enumerate(lines) if line and line[0] not in " #"]
    assert all(lines[i].endswith("\\") and lines[i + 1].strip().startswith("--hash=sha256:") for i in pins)
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes --requirement requirements.lock" in makefile and "--generate-hashes" in makefile


def test_every_finding_of_the_security_rules_that_is_let_be_says_why():
    told = re.compile(r"# noqa: S\d{3}  # \w")
    files = [*ROOT.glob("ffvit/**/*.py"), *ROOT.glob("workflow/*.py"), *ROOT.glob("tests/*.py")]
    said = [line for f in files for line in f.read_text().splitlines() if re.search(r"#\s*noqa:.*\bS\d{3}", line)]
    assert said and not [line for line in said if not told.search(line) and "re.search" not in line]


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


@BY_PAGE
def test_links_lead_to_files_and_headings_that_exist(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text):
        if not link.startswith("https://"):
            path, _, heading = link.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), link
            assert not heading or heading in headings(file), link


def headings(page: Path) -> set[str]:
    """The anchors that a Markdown page has."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> list[str]:
    """What a page shows as code, line by line, without comments."""
    text = page.read_text()
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))
    return [line.partition("  #")[0].strip() for line in lines]


@BY_PAGE
def test_pages_name_only_make_targets_experiments_and_tools_that_exist(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    variables = set(re.findall(r"^([A-Z_]+) \?=", (ROOT / "Makefile").read_text(), re.M))
    experiments = {path.stem for path in (ROOT / "experiments").glob("*.toml")} | {"mine"}  # the reader's own
    tools = {point.name for point in importlib.metadata.entry_points(group="console_scripts")} | {
        "python",
        "ruff",
        "uv",
    }
    for line in commands(page):
        if line.startswith("make "):
            target, *given = line.split()[1:]
            assert target in targets, line
            assert {item.partition("=")[0] for item in given} <= variables, line
        assert set(re.findall(r"EXPERIMENT=([\w-]+)", line)) <= experiments, line
        assert set(re.findall(r"--experiment ([\w-]+)", line)) <= experiments, line
        assert set(re.findall(r"\.venv/bin/([\w-]+)", line)) <= tools, line
        for path in re.findall(r"(?:^| )((?:workflow|notebooks|benchmarks|\.ci)/[\w./-]+)", line):
            assert (ROOT / path).exists(), line


@BY_PAGE
def test_ffvit_takes_every_command_option_and_setting_that_a_page_shows(page, capsys):
    settings = {field.name for field in dataclasses.fields(Config)}
    for line in commands(page):
        if found := re.match(r"(?:\.venv/bin/|-m |.*python -m )?ffvit ([a-z]+)(.*)", line):
            command, rest = found.groups()
            with contextlib.suppress(SystemExit):
                main([command, "--help"])
            help = "".join(capsys.readouterr())
            assert "usage" in help and "no command" not in help, line
            assert all(option in help for option in re.findall(r"--[a-z-]+", rest)), line
            assert set(re.findall(r"([a-z_]+)=", rest)) <= settings, line


@BY_PAGE
def test_papermill_takes_every_parameter_that_a_page_shows(page):
    for line in commands(page):
        if "papermill notebooks/" in line:
            notebook = re.search(r"notebooks/\S+", line).group()
            declared = "".join(json.loads((ROOT / notebook).read_text())["cells"][1]["source"])
            assert all(re.search(rf"^{name}:", declared, re.M) for name in re.findall(r"-p (\w+)", line)), line


@BY_PAGE
def test_python_that_a_page_shows_runs(page):
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
        lines = [line for line in block.splitlines() if "checkpoint" not in line]  # a file that the reader fetches
        names: dict = {}
        exec("\n".join(lines), names)  # noqa: S102  # that a page of this project shows
        for count in re.findall(r"([\d,]{5,}) parameters", block):
            assert f"{sum(p.numel() for p in names['model'].parameters()):,}" == count


@BY_PAGE
def test_experiments_that_a_page_shows_are_experiments(page, tmp_path):
    for block in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), re.M | re.S):
        file = tmp_path / "mine.toml"
        file.write_text(block)
        assert load_experiment(file).configs()


def test_the_readme_fits_150_lines_of_120_columns():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]  # a row of a table is one line


def test_every_page_of_the_docs_is_linked_from_the_readme_and_the_index():
    pages = {page.name for page in PAGES[1:]} - {"index.md"}
    assert set(re.findall(r"\]\(docs/([\w-]+\.md)\)", PAGES[0].read_text())) == pages | {"index.md"}
    assert set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs/index.md").read_text())) == pages


def test_generated_parts_show_what_records_models_and_notebooks_say(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    made_by = importlib.import_module("page")
    generated = made_by.generated()
    assert generated.keys() == made_by.PLACES.keys()
    for name, text in generated.items():
        shown = (ROOT / made_by.PLACES[name]).read_text()
        assert f"<!-- {name} -->\n{text}<!-- end of {name} -->\n" in shown, f"{name}: run `make readme`"


def test_citation_and_package_tell_the_same_version_and_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = dict(re.findall(r"^(\w+): (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")
