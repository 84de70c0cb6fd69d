"""Notebook 01: the architecture drawn from the model (Figures 1 and 2), and what every model costs."""

import html
import inspect
import io
import textwrap
from pathlib import Path
from typing import cast

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
import timm
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.patches import FancyBboxPatch
from PIL.PngImagePlugin import PngInfo
from pygments import highlight
from pygments.formatters import ImageFormatter, SvgFormatter
from pygments.lexers import PythonLexer

from ffvit.evidence.counted import counted
from ffvit.evidence.drawing import COLORS
from ffvit.evidence.reported import load_reported
from ffvit.models import ff
from ffvit.studies.report_results import GRID_CELLS, TABLE1
from ffvit.system.errors import InputError, suggest
from ffvit.system.files import write_atomically


def architecture(model: ff.PatchFeatureMixer) -> Figure:
    """Figure 1 of the report, drawn from the blocks that the model has. Read it from bottom to top."""
    height, gap = 0.56, 0.3  # of a layer, and between two
    boxes, residuals, y = [], [], 2.0
    for branch, mixes in _branches(cast(ff.Block, model.blocks[0])):
        kind = "Feed-Forward Layer" if hasattr(branch.mix, "fc1") else "Attention"
        turn = [("Transpose", "0.80")] * branch.transposed
        start, y = y, y + gap
        for name, color in [*turn, (f"{kind} ({mixes})", COLORS[0] if "Feed" in kind else COLORS[2]), *turn]:
            boxes.append((y, name, color))
            y += height + gap
        residuals.append((start, y))
        y += 1.3 * gap
    top = y + 0.1

    scale = 0.72  # inches a unit: what the texts need
    figure = plt.figure(figsize=(8.4 * scale, (top + 3.3) * scale))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-3.9, 4.5), ylim=(-0.8, top + 2.5))
    axes.set_axis_off()

    def box(x, y, width, height, color, **look):
        shape = "round,pad=0.02,rounding_size=0.1"
        axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=color, **{"lw": 0, **look}))

    def tokens(y):
        for i in range(9):
            box(-3.0 + 0.69 * i, y, 0.48, 0.48, COLORS[1] if i == 0 else COLORS[9])

    def arrow(start, end, x=0.0):
        look = dict(arrowstyle="-|>", color="0.35", lw=1.3, shrinkA=0, shrinkB=0)
        axes.annotate("", (x, end), (x, start), arrowprops=look)

    tokens(0)
    size = f"{model.num_tokens} x {model.embed_dim}"
    axes.text(
        0,
        -0.3,
        f"class token and {model.num_tokens - 1} patch tokens with learned positions ({size})",
        ha="center",
        va="top",
    )
    box(-3.1, 1.4, 6.2, top - 1.4, "0.96", lw=1, edgecolor="0.6")
    axes.text(3.4, (1.4 + top) / 2, f"× {len(model.blocks)}", fontsize=15, va="center")
    arrow(0.58, 1.38)
    axes.plot([0, 0], [1.4, top], color="0.35", lw=1.3, zorder=1.5)
    for y, name, color in boxes:
        quiet = name == "Transpose"
        box(-1.9, y, 3.8, height, color, zorder=2)
        axes.text(
            0,
            y + height / 2 - 0.02,
            name,
            ha="center",
            va="center",
            zorder=3,
            color="black" if quiet else "white",
            weight="normal" if quiet else "bold",
        )
    for start, end in residuals:
        axes.plot([0, -2.5, -2.5, -0.12], [start, start, end, end], color="0.35", lw=1.3)
        axes.plot(0, end, marker="o", markersize=11, markerfacecolor="white", markeredgecolor="0.35", zorder=3)
        axes.plot(0, end, marker="+", markersize=7, color="0.2", zorder=4)
    arrow(top + 0.02, top + 0.8)
    tokens(top + 0.85)
    arrow(top + 1.4, top + 2.0, x=-2.76)
    axes.text(-3.0, top + 2.2, f"norm and linear head on the class token: {model.num_classes} classes", va="center")
    return figure


def feed_forward_model(name: str) -> ff.PatchFeatureMixer:
    """The model of this name, to be looked at. Raises InputError for one whose blocks or patches are not those described."""
    known = [n for n in timm.list_models("ff_*_patch16_224") if "attention" not in n]
    if name not in known:
        raise InputError(f"model='{name}' is not drawn here{suggest(name, known)}; those are: {', '.join(known)}")
    return cast(ff.PatchFeatureMixer, timm.create_model(name).eval())


def source_code(*objects) -> str:
    """Figure 2 of the report: the source of what is really used, read from the library itself."""
    return "\n\n\n".join(textwrap.dedent(inspect.getsource(o)).rstrip() for o in objects)


def save_code(code: str, *paths: Path, source: str) -> None:
    """Write highlighted Python as svg or png files whose metadata says where it comes from; the same code, the same bytes."""
    for path in paths:
        content = _code_svg(code, path.stem, source) if path.suffix == ".svg" else _code_png(code, path.stem, source)
        write_atomically(path, content)


def _code_svg(code: str, title: str, source: str) -> str:
    font, size, gap, margin = "DejaVu Sans Mono, Menlo, Consolas, monospace", 14, 6, 12
    lines = code.splitlines()
    width = round(max(map(len, lines)) * 0.602 * size) + 2 * margin  # a character is so much of the font's size wide
    height = len(lines) * (size + gap) + 2 * margin
    look = dict(style="xcode", xoffset=margin, yoffset=margin + size, ystep=size + gap)
    text = highlight(code, PythonLexer(), SvgFormatter(nowrap=True, **look))  # its own head would give no size
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"<title>{html.escape(title)}</title>\n<desc>{html.escape(source)}</desc>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<g font-family="{font}" font-size="{size}px">\n{text}\n</g>\n</svg>\n'
    )


def _code_png(code: str, title: str, source: str) -> bytes:
    font = findfont("DejaVu Sans Mono")  # matplotlib brings it along
    look = dict(style="xcode", font_name=font, font_size=22, line_pad=8, image_pad=20, line_numbers=False)
    about = PngInfo()
    for name, text in {"Title": title, "Description": source, "Software": "ffvit"}.items():
        about.add_text(name, text)
    png = io.BytesIO()
    drawn = highlight(code, PythonLexer(), ImageFormatter(**look))
    PIL.Image.open(io.BytesIO(drawn)).save(png, "PNG", pnginfo=about, dpi=(200, 200), optimize=True)
    return png.getvalue()


def _branches(block: ff.Block):
    names = {id(block.mix_features): "Features", id(block.mix_patches): "Patches"}
    return [(branch, names[id(branch)]) for branch in block.branches]


def models_table() -> pd.DataFrame:
    """Exact parameters and multiply-adds of every model at 224 px and 1000 classes, beside the report's numbers."""
    printed = {r.model: r for r in load_reported() if r.metric == "parameters"}
    rows = []
    for name in models_of_the_report():
        exact = counted(name)
        assert exact, f"{name} is not in counted.csv"  # noqa: S101  # a file of the project's own, which a test holds
        rows.append(
            {
                "model": name,
                "patches": exact.patches,
                "features": exact.features,
                "parameters": exact.parameters,
                "parameters_reported_millions": printed[name].value if name in printed else None,
                "macs": exact.macs,
                "note": printed[name].note if name in printed else "",
            }
        )
    return pd.DataFrame(rows)


def models_of_the_report() -> list[str]:
    """timm's names for the models of Table 1 and of the grid, those that timm has."""
    return [
        name
        for name in dict.fromkeys([*(row[2] for row in TABLE1), *(row[2] for row in GRID_CELLS)])
        if timm.is_model(name)
    ]
