"""Pages to look inside a model with a hand on it."""

from collections.abc import Iterator


def pages() -> Iterator[tuple[str, str]]:
    yield "look/index.md", "# Look inside\n\nSoon.\n"
