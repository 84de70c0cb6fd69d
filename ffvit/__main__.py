"""`ffvit COMMAND`, or `python -m ffvit COMMAND`."""

import importlib
import sys

COMMANDS = {
    "train": "train one model, in processes of its own",
    "score": "score a finished run on its test images and write its record",
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
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    if given[0] not in COMMANDS:
        print(f"error: there is no command '{given[0]}'\n\n{HELP}", file=sys.stderr)
        return 2
    return importlib.import_module(f"ffvit.commands.{given[0]}").main(given[1:])


if __name__ == "__main__":
    sys.exit(main())
