"""Started by run.py: when the pipeline has ended, however it ended, end every process of it that is still there.

Kernels and trainings lead sessions of their own, so no signal to a group reaches them all; what they share with
whatever they start is FFVIT_PIPELINE in their environment.
"""

import contextlib
import sys
import time
from collections.abc import Iterator

import psutil


def of_pipeline(name: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile, or is somebody else's
            if process.environ().get("FFVIT_PIPELINE") == name:
                yield process


def main() -> None:
    sys.stdin.read()  # to its end: the system closes it for a pipeline that was killed, too
    while left := list(of_pipeline(sys.argv[1])):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)


if __name__ == "__main__":
    main()
