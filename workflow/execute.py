"""papermill's own command, `python workflow/execute.py NOTEBOOK OUTPUT -p name value`, for many notebooks at once.

It does less work before the first cell, and no two of its kernels can want the same port.
"""

import gc
import sys
import tempfile
from functools import partial

# From this package jsonschema builds a grammar of international addresses, in 1.3 s: no notebook's format has any.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
gc.disable()  # what is imported stays

from papermill import cli  # noqa: E402
from traitlets.config import Config  # noqa: E402

gc.enable()

# A kernel's imports, too, make a million objects that stay; to look for garbage among them takes a fifth of their time.
SELDOM = "--IPKernelApp.exec_lines=import gc; gc.set_threshold(100_000, 50, 50)"


def main() -> None:
    # A kernel's ports are chosen, let go, and bound a second later: of kernels that start side by side, now and then
    # one finds its port taken and dies. Sockets in a folder of its own have no such moment.
    with tempfile.TemporaryDirectory(prefix="ffvit-") as folder:
        sockets = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
        cli.execute_notebook = partial(cli.execute_notebook, extra_arguments=[SELDOM], config=sockets)
        cli.papermill()


if __name__ == "__main__":
    main()
