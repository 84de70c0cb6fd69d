"""The website: every chapter, record, claim and module has its page, nothing on it is broken, and a browser agrees."""

import csv
import html.parser
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from ffvit.evidence.notebook_metadata import load_notebooks
from ffvit.studies import claims
from ffvit.system.files import FIGURES, NOTEBOOKS, RESULTS, ROOT
from website import build, cells, chapters, charts, current, ledger_pages, look, places

AXE = Path(os.environ.get("AXE_CORE", ROOT.parent / "shared/axe.min.js"))
WIDTHS = (400, 1400)
SEVERE = ("serious", "critical")


@pytest.fixture(scope="module")
def pages():
    return build.pages()


def test_every_notebook_experiment_record_and_module_has_a_page(pages):
    for notebook in load_notebooks():
        assert [name for name in pages if name.startswith(f"chapters/{notebook.name}/")]
    for record in [*RESULTS.glob("*/*.json"), *RESULTS.glob("*/trials/*.json")]:
        assert f"records/{record.relative_to(RESULTS).with_suffix('.md')}" in pages
    for file in (ROOT / "ffvit").rglob("*.py"):
        assert places.page_of(str(file.relative_to(ROOT))) in pages
    for file in (ROOT / "experiments").glob("*.toml"):
        assert f"experiments/{file.stem}.md" in pages


def test_the_same_records_and_notebooks_give_the_same_pages(pages):
    assert build.pages() == pages


def test_a_figure_has_a_caption_and_its_origin_wherever_it_is_shown(pages):
    shown = [name for name, text in pages.items() if "```{figure}" in text]
    assert len(shown) > 20
    for name in shown:
        for text in pages[name].split("```{figure}")[1:]:
            alt = text.partition(":alt: ")[2].splitlines()[0].partition("\\n")[0]
            assert len(alt) > 15, name
            assert "easured" in text or "ounted" in text or "rawn" in text or "ource" in text or "rained" in text, (
                name,
                text[:300],
            )


def test_a_picture_that_no_file_has_says_what_it_is_and_how_it_came():
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA"}, "metadata": {}}
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": "one_run.confusion(e, classes);",
        "outputs": [picture],
    }
    content = {"metadata": {"papermill": {"end_time": "2026-01-02T03", "parameters": {"model": "<b>_ff_"}}}}
    said = cells.shown(cell, [], chapters._origin(content), "A heading")["metadata"]["mystnb"]
    assert said["image"]["alt"].startswith("Counts of predicted class by true class")
    assert said["figure"]["caption"].startswith("Counts of predicted class by true class")
    assert (
        "executed on 2026-01-02, with model = " in said["figure"]["caption"] and "<b>" not in said["figure"]["caption"]
    )


def test_the_code_that_judges_a_claim_is_what_the_ledger_calls():
    known = {claim.text: claim.check for claim in (*claims.numbers(), *claims.CLAIMS)}
    for text, check in known.items():
        function = getattr(check, "func", check)
        assert ledger_pages.judge_of(text) == (f"{function.__module__}.{function.__name__}" if function else ""), text


def test_a_row_of_the_ledger_leads_to_chapter_records_and_judge(pages):
    page = pages["ledger/cifar10-small.md"]
    [row] = [line for line in page.splitlines() if line.startswith("| Without attention a transformer does")]
    for target in (
        "../chapters/07_claims/cifar10-small.ipynb",
        "../records/cifar10-small/ff-seed0.md",
        "../records/cifar10-small/vit-seed1.md",
        "{py:func}`claim_checks.compare <ffvit.studies.claim_checks.compare>`",
    ):
        assert target in row
    with (FIGURES / "cifar10-small/claims.csv").open(newline="") as file:
        assert page.count("\n| ") == len(list(csv.DictReader(file))) + 2  # heading and rule


def test_links_to_files_become_links_to_pages():
    text = (
        "[a](../notebooks/07_claims.ipynb) [b](study.md#x) [c](https://x.org) ![d](../figures/report/figure2_block.png)"
    )
    made = places.relink(
        text, "docs", "docs/claims.md", lambda path: "chapters/one.ipynb" if ".ipynb" in path else None
    )
    assert (
        made == "[a](../chapters/one.ipynb) [b](study.md#x) [c](https://x.org) ![d](/figures/report/figure2_block.png)"
    )
    code = places.relink("[e](../ffvit/models/ff.py) [f](../ffvit/data) [g](../Makefile)", "docs", "docs/a.md")
    assert code == "[e](../api/ffvit.models.ff.md) [f](../api/ffvit.data.md) [g](../files/Makefile.md)"


def test_a_chapter_goes_on_with_the_same_experiment_where_it_can(pages):
    def onwards(page):
        return "".join(json.loads(pages[page])["cells"][-1]["source"])

    assert "(../05_attention_only/cifar10-small.ipynb)" in onwards("chapters/04_table1/cifar10-small.ipynb")
    assert "(../04_table1/digits.ipynb)" in onwards("chapters/05_attention_only/digits.ipynb")


def test_viewers_come_from_kept_weights_where_nothing_was_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ffvit.settings.config.RUNS", tmp_path / "runs")
    look.main("digits", str(tmp_path / "digits.json"))
    shown = json.loads((tmp_path / "digits.json").read_text())
    assert all("kept with the project" in part["source"] and part["columns"] == 4 for part in shown.values())
    assert len(shown["mixer"]["layers"]) == len(shown["attention"]["layers"]) == 3
    assert {len(layer["takes"]) for layer in shown["mixer"]["layers"]} == {look.UNITS}
    heads = [sum(query) for layer in shown["attention"]["layers"] for head in layer for query in head]
    assert heads == pytest.approx([1.0] * len(heads), abs=0.01)
    look.main("cifar10-small", str(tmp_path / "cifar.json"))  # its images are elsewhere
    assert json.loads((tmp_path / "cifar.json").read_text()).keys() == {"mixer"}
    assert "without the attention maps of cifar10-small: dataset 'uoft-cs/cifar10'" in capsys.readouterr().out


def test_a_site_is_current_until_something_that_it_shows_changes(tmp_path, monkeypatch):
    for name in ("ROOT", "SITE", "MARK", "RUNS"):
        monkeypatch.setattr(current, name, tmp_path / Path(getattr(current, name)).relative_to(ROOT))
    kept = tmp_path / "docs/a.md"
    own = tmp_path / "runs/digits/ff-seed0/record.json"
    for file in (kept, own, tmp_path / "site/index.html", tmp_path / "build/look/digits.json"):
        file.parent.mkdir(parents=True)
        file.write_text("one")
    assert not current.is_current()
    current.mark(current.made_of())
    (own.parent / "history.json").write_text("a run goes on")
    (tmp_path / "build/look/digits.json").write_text("two")
    assert current.is_current()
    for file in (kept, own):
        file.write_text("other")
        assert not current.is_current()
        current.mark(current.made_of())
        assert current.is_current()
    kept.unlink()
    assert not current.is_current()


def test_ticks_enclose_what_is_drawn():
    for values in ([0.3, 0.31], [5.0], [-2.0, 61.4], [1e6, 3e6]):
        ticks = charts._ticks(values)
        assert ticks[0] <= min(values) and max(values) <= ticks[-1] and 2 <= len(ticks) <= 8
    assert charts._log_ticks([0.3, 24.0]) == [0.2, 0.5, 1, 2, 5, 10, 20, 50]


def test_every_cell_that_shows_a_figure_names_one_that_its_notebook_makes():
    for notebook in load_notebooks():
        files = [Path(name).stem for name in notebook.files(None)]
        for cell in json.loads((NOTEBOOKS / notebook.path.name).read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and "story.figure(" in source and "story.makes(" not in source:
                assert set(cells._names(source)) & set(files), (notebook.name, source)


# What follows needs the whole site, and a browser.


class Page(html.parser.HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.bare: list[dict] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]
        if tag == "img" and not given.get("alt"):
            self.bare.append(given)


@pytest.fixture(scope="module")
def site():
    before = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True).stdout
    current.MARK.unlink(missing_ok=True)
    made = subprocess.run([sys.executable, "-m", "website.build"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert "WARNING" not in made.stderr, made.stderr
    after = subprocess.run(["git", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, text=True).stdout
    assert before == after
    return ROOT / "site"


def html_of(site: Path) -> list[Path]:
    """Its pages; the theme keeps templates among its own files."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


@pytest.mark.machine
def test_no_link_is_broken_no_picture_missing_or_without_words(site):
    found = {path: Page(path) for path in html_of(site)}
    assert len(found) > 300
    broken = []
    for path, page in found.items():
        assert not page.bare, (path, page.bare)
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in found and anchor not in found[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not broken, broken[:20]


@pytest.mark.machine
def test_nothing_is_fetched_from_elsewhere(site):
    for path in html_of(site):
        for node in path.read_text(encoding="utf-8").split("<")[1:]:
            if node.startswith(("script", "link ", "img", "iframe")):
                assert "://" not in node.partition(">")[0], (path, node[:200])


@pytest.fixture
def tab(browser):
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900}, color_scheme="light")
    page.wrong = []
    page.on("console", lambda said: said.type == "error" and page.wrong.append(said.text))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("requestfailed", lambda request: page.wrong.append(request.url))
    yield page
    page.close()


def wider_than_the_screen(tab) -> int:
    return tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.mark.machine
def test_every_page_opens_without_an_error_and_fits_small_and_large_screens(site, tab):
    trials = {path.parent: path for path in html_of(site) if path.parent.name == "trials"}
    for path in html_of(site):
        if path.parent.name == "trials" and path != trials[path.parent]:
            continue  # hundreds, and all alike: one of each experiment
        tab.goto(path.as_uri())
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            assert wider_than_the_screen(tab) <= 0, (path, width)
        unloaded = (
            "[...document.images].filter(i => i.loading !== 'lazy' && !(i.complete && i.naturalWidth)).map(i => i.src)"
        )
        assert not tab.evaluate(unloaded), path
        assert not tab.wrong, (path, tab.wrong)


KINDS = (
    *(
        "index.html",
        "chapters/index.html",
        "chapters/08_study/digits.html",
        "chapters/18_patch_mixer/cifar10-small.html",
    ),
    *("ledger/cifar10-small.html", "experiments/digits-ablations.html", "records/cifar10-small/ff-seed0.html"),
    *("look/index.html", "docs/recipes.html", "docs/faults.html", "api/ffvit.settings.experiment.html", "search.html"),
)


@pytest.mark.machine
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(site, tab, theme):
    if not AXE.is_file():
        pytest.skip(f"needs axe-core's axe.min.js at {AXE}, or where AXE_CORE says")
    tab.emulate_media(color_scheme=theme)
    for name in KINDS:
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto((site / name).as_uri())
            tab.add_script_tag(path=str(AXE))
            found = tab.evaluate("axe.run()")["violations"]
            serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in SEVERE]
            assert not serious, (name, width, serious)


@pytest.mark.machine
def test_a_reader_clicks_through_the_chapters(site, tab):
    tab.goto((site / "chapters/01_architecture/index.html").as_uri())
    seen = []
    while (onwards := tab.locator(".chapter-bar a", has_text="→")).count():
        seen.append(tab.locator("h1").inner_text())
        with tab.expect_navigation():
            onwards.first.click()
    assert len(seen) == len(load_notebooks()) - 1
    with tab.expect_navigation():
        tab.locator(".chapter-bar a", has_text="←").first.click()
    assert seen[-1] == tab.locator("h1").inner_text()


@pytest.mark.machine
def test_the_ledger_is_sorted_and_searched(site, tab):
    tab.goto((site / "ledger/cifar10-small.html").as_uri())
    verdicts = (
        "[...document.querySelectorAll('.sortable tbody tr')].filter(r => !r.hidden).map(r => r.cells[5].innerText)"
    )
    whole = tab.evaluate(verdicts)
    button = tab.get_by_role("button", name="Verdict")
    button.click()
    assert tab.evaluate(verdicts) == sorted(whole) != whole
    button.click()
    assert tab.evaluate(verdicts) == sorted(whole, reverse=True)
    tab.get_by_placeholder("words that a row must have").fill("contradicted parameters")
    found = tab.evaluate(verdicts)
    assert found and len(found) < len(whole) and set(found) == {"contradicted"}


@pytest.mark.machine
def test_a_point_of_the_study_tells_its_run_and_leads_to_its_record(site, tab):
    tab.goto((site / "index.html").as_uri())
    told, point = tab.locator(".study output"), tab.locator(".study a.mark").first
    before = told.inner_text()
    point.focus()
    assert told.inner_text() != before and "seed" in told.inner_text()
    with tab.expect_navigation():
        point.press("Enter")
    assert "/records/" in tab.url
    assert tab.locator(".curves .chart > svg").count() == 2


@pytest.mark.machine
def test_the_viewers_draw_what_the_sliders_choose(site, tab):
    tab.goto((site / "look/index.html").as_uri())
    if not tab.locator(".viewer").count():
        pytest.skip("needs trained weights of digits: make reproduce")
    for kind in ("mixer", "attention"):
        part = tab.locator(f".viewer section.{kind}").first
        sliders, maps = part.locator("input[type=range]"), part.locator(".maps")
        for i in range(sliders.count()):
            before = maps.inner_html()
            sliders.nth(i).press("ArrowRight")
            assert maps.inner_html() != before, (kind, i)
    maps = tab.locator("section.attention .maps").first  # of the first experiment that has weights
    asked, hovered = maps.locator("rect.asked"), maps.locator("rect").nth(5)
    place = [hovered.get_attribute(axis) for axis in "xy"]
    hovered.hover()
    assert asked.count() == 1 and [asked.get_attribute(axis) for axis in "xy"] == place
