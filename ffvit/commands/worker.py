"""One process of a training, as `ffvit train`, `accelerate launch -m ffvit worker ...` or a cluster starts it, with the
options of `ffvit train`.

Exit codes: 0 finished, 2 an error that is named, 75 stopped by a signal or Ctrl-C with a checkpoint written.
"""

import gc
import json
import os

from ffvit.commands.arguments import read_run
from ffvit.system.files import write_atomically


def main(arguments: list[str]) -> int:
    config, run_dir, options = read_run(arguments, "ffvit worker", __doc__)
    gc.disable()  # what is imported stays; to look for garbage in it would take a fifth of the time
    from ffvit.training.train import train  # and torch: --help and a wrong argument are answered without

    gc.enable()

    estimate = train(config, run_dir, options.dry_run)
    if options.estimate and int(os.environ.get("RANK", 0)) == 0:
        write_atomically(options.estimate, json.dumps(estimate))
    return 0
