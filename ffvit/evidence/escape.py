"""Text that people gave, such as labels, titles and names of classes, for a medium to show it as it is."""

import re
import unicodedata

MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<!\w)_|_(?!\w)")
TAG = re.compile(r"<(?=[A-Za-z/!?])")  # in "p < 0.001" it opens nothing
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def in_one_line(text: str) -> str:
    """Without line breaks and other control characters, which end a row, a comment, or an XML file."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)


def markdown(text: str) -> str:
    """For a cell of a table, or a paragraph, of Markdown."""
    text = MARKDOWN.sub(r"\\\g<0>", in_one_line(text).replace("&", "&amp;"))
    return TAG.sub("&lt;", text)


def latex(text: str) -> str:
    return "".join(LATEX.get(c, c) for c in in_one_line(text))


def drawn(text: str) -> str:
    r"""For matplotlib, which takes what stands between two $ for mathematics, and \$ for $. Line breaks stay."""
    text = "\n".join(map(in_one_line, text.split("\n"))).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text  # it shows no such label in a legend
