"""Sphinx's settings. It reads what website/build.py has put into its source folder."""

import sys

# From this package jsonschema builds a grammar of international addresses, in 1.3 s: no notebook's format has any.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]

import latex2mathml.converter  # noqa: E402  # after it is left out
import myst_nb.sphinx_ext  # noqa: E402
from docutils import nodes  # noqa: E402
from sphinx.application import Sphinx  # noqa: E402

# Beside site/ it would write a folder of its own; no setting says where.
myst_nb.sphinx_ext.OUTPUT_FOLDER = "build/notebooks"

project = "ffvit"
author = "The ffvit authors"
extensions = ["myst_nb"]
html_theme = "pydata_sphinx_theme"
html_title = "ffvit"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = [("table.js", {"defer": ""}), ("study.js", {"defer": ""}), ("viewer.js", {"defer": ""})]
html_copy_source = html_show_sourcelink = html_show_search_summary = False
html_theme_options = {
    "logo": {"text": "ffvit"},
    "navbar_align": "left",
    "header_links_before_dropdown": 8,
    "navbar_end": ["theme-switcher"],
    "show_prev_next": False,  # chapters have their own, for one experiment throughout
    "show_nav_level": 1,
    "navigation_depth": 1,
    "collapse_navigation": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_context = {"default_mode": "auto"}
html_sidebars: dict[str, list[str]] = {
    "index": [],
    **{f"{folder}/**": [] for folder in ("chapters", "ledger", "records", "experiments", "files", "look")},
}
exclude_patterns = ["figures/**", "results/**"]
templates_path: list[str] = []

nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # figures among the outputs are directives
nb_ipywidgets_js: dict = {}  # would come from the network
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["config.cache", "mystnb.unknown_mime_type"]
highlight_language = "none"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"


def mathml(self, node: nodes.Element) -> None:
    """Formulas as MathML, which browsers draw by themselves."""
    block = isinstance(node, nodes.math_block)
    made = latex2mathml.converter.convert(node.astext(), display="block" if block else "inline")
    # A long one scrolls, by the keyboard too.
    self.body.append(f'<div class="wide" tabindex="0">{made}</div>' if block else made)
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


html_math_renderer = "mathml"
