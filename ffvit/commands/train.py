"""Start training in processes of its own, the same way from a notebook, the pipeline and the shell:
`ffvit train --experiment imagenet --model ff_base num_processes=8`.

Exit codes: 0 finished, 2 an error that is named, 75 stopped by a signal with a checkpoint written; whatever number of
processes.
"""

import json

from ffvit.commands.arguments import read_run
from ffvit.launching.children import is_told
from ffvit.launching.launch import launch
from ffvit.system.files import write_atomically


def main(arguments: list[str]) -> int:
    config, run_dir, options = read_run(arguments, "ffvit train", __doc__)

    def show(line: str) -> None:
        if not is_told(line):  # why a run ended is told at the end, with how to go on
            print(line, flush=True)

    found = launch(config, run_dir, show, options.dry_run, pass_signals=True)
    if options.estimate:
        write_atomically(options.estimate, json.dumps(found, indent=1))
    return 0
