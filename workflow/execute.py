"""papermill's own command, `python workflow/execute.py NOTEBOOK OUTPUT -p name value`, with less work before the first cell."""

import gc
import sys
from functools import partial

# From this package jsonschema builds a grammar of international addresses, in 1.3 s: no notebook's format has any.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
gc.disable()  # what is imported stays

from papermill import cli  # noqa: E402

gc.enable()

# A kernel's imports, too, make a million objects that stay; to look for garbage among them takes a fifth of their time.
SELDOM = "--IPKernelApp.exec_lines=import gc; gc.set_threshold(100_000, 50, 50)"
cli.execute_notebook = partial(cli.execute_notebook, extra_arguments=[SELDOM])

if __name__ == "__main__":
    cli.papermill()
