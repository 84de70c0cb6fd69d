"""papermill's own command, `python workflow/execute.py NOTEBOOK OUTPUT -p name value`, which starts in a fifth of its time."""

import gc
import sys

# From this package jsonschema builds a grammar of international addresses, in 1.3 s: no notebook's format has any.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
gc.disable()  # what is imported stays

from papermill.cli import papermill  # noqa: E402

gc.enable()

if __name__ == "__main__":
    papermill()
