"""`ffvit COMMAND`, or `python -m ffvit COMMAND`."""

import importlib
import io
import os
import signal
import sys
import traceback

from ffvit.system.errors import CURES, InputError, Stopped, TrainingError, in_words, suggest
from ffvit.system.lifetime import STOPPED
from ffvit.system.machine import keep_memory

COMMANDS = {
    "train": "train one model, in processes of its own",
    "score": "score a finished run on its test images and write its record",
    "export": "hand a scored model on: a folder that timm and the hub read",
    "prepare": "make photographs smaller once, for every training to come",
    "predict": "say what a model sees in images of your own",
    "status": "which runs of an experiment are recorded, begun or missing",
    "missing": "train and score what is missing",
    "tune": "search each model's own settings by equal effort",
    "worker": "one process of a training, as a launcher of several starts it",
}
HELP = "\n".join(
    ["usage: ffvit COMMAND ...", "", *(f"  {name:9}{what}" for name, what in COMMANDS.items())]
    + ["", "ffvit COMMAND --help says more."]
)


def main(arguments: list[str] | None = None) -> int:
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):  # and not a notebook's own
            output.reconfigure(errors="backslashreplace")  # where a locale has no letter for what a label or path has
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    keep_memory()
    code = _run(*given)
    if code and given[0] == "worker":
        # At once: the usual way out waits for the other processes of the training, which may be no more.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(name: str, *arguments: str) -> int:
    """A command's exit code; how it failed is told here for all of them."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # of a training's process
    who = f" in process {rank} of {world}" if world > 1 else ""
    try:
        if name not in COMMANDS:
            raise InputError(f"ffvit has no command '{name}'{suggest(name, COMMANDS)}")
        return importlib.import_module(f"ffvit.commands.{name}").main(list(arguments))
    except Stopped as stopped:
        if rank == 0:
            print(stopped, flush=True)
        return STOPPED
    except (InputError, TrainingError) as error:
        print(f"error{who}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read has enough, as in: ffvit status digits | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in CURES:
            print(f"error{who}: {in_words(error)}", file=sys.stderr)
            return 2
        traceback.print_exc()
        print(f"error{who}: {type(error).__name__}: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
