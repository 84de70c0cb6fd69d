"""How the processes of a run end: with the one that started them, and in order when a cluster asks them to.

`python ffvit/system/lifetime.py PARENT MODULE [ARGUMENT ...]` runs a module that ends with the process PARENT, and watches that
from the first moment on: to import torch and all else takes seconds, in which a parent can be killed too.
"""

import contextlib
import os
import runpy
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

STOPPED = 75  # exit code, EX_TEMPFAIL: stopped on request with everything kept; to be started again
STOPPED_BY = "stopped by"  # how the line begins that says so
# What clusters send before they take a machine away, and a terminal that closes.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def end_with(parent: int) -> None:
    """End this process soon after `parent` is gone: a killed notebook kernel leaves its children behind."""
    try:
        watched = psutil.Process(parent)
    except psutil.NoSuchProcess:
        os._exit(1)

    def watch():
        with contextlib.suppress(psutil.NoSuchProcess):
            # One that has ended and that nobody has collected is gone, too.
            while watched.is_running() and watched.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def listen(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """Give these signals, and Ctrl-C, to a handler. Returns the handlers they had; nohup's wish to survive is kept."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in (signal.SIGINT, *SIGNALS) if not (number == signal.SIGHUP and nohup)]
    return {number: signal.signal(number, handler) for number in numbers}


def leave_terminal(number: int) -> None:
    """After SIGHUP, print nowhere: to write to a terminal that is gone is an error, which would end what must be saved."""
    if number == signal.SIGHUP:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):
            with contextlib.suppress(OSError):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(nowhere, output)
        os.close(nowhere)


def serve_parent(_worker: int = 0) -> None:
    """In a process that loads data: end with the one it loads for, which alone answers the signals that reach both."""
    for number in (signal.SIGINT, *SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    end_with(os.getppid())


class Stop:
    """Within this context these signals do not kill the process but are noted in `asked`, for it to end in order.

    Of several processes, one that does not `acknowledge()` within three of its updates, 3 s at least, waits for another
    one that is no more, and is ended: the main thread, deep in a collective operation, would never come to see the signal.
    A process by itself comes to it, however long it takes to write a checkpoint or to wait for images.
    """

    def __init__(self):
        self._has_others = int(os.environ.get("WORLD_SIZE", 1)) > 1
        self.asked = 0  # the number of the signal
        self.update_s = 0.0  # how long an update takes
        self._error: Callable[[str], BaseException] | None = None
        self._acknowledged = threading.Event()

    def __enter__(self) -> "Stop":
        self._before = listen(self._on_signal)
        # Python runs handlers in the main thread, when that comes round to it; the byte written here comes at once.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno())
        threading.Thread(target=self._guard, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._acknowledged.set()
        self._writer.close()

    def acknowledge(self) -> None:
        """The signal has been seen, and what it asks for is being done."""
        self._acknowledged.set()

    @contextlib.contextmanager
    def at_once(self, error: Callable[[str], BaseException]) -> Iterator[None]:
        """While there is nothing that must be saved first: raise error(name of the signal) as soon as it comes."""
        if self.asked:
            raise error(signal.Signals(self.asked).name)
        self._error = error
        try:
            yield
            if self.asked:  # and caught on the way: datasets has bare excepts, and what is raised in __del__ is lost
                raise error(signal.Signals(self.asked).name)
        finally:
            self._error = None

    def _on_signal(self, number: int, _frame) -> None:
        leave_terminal(number)
        self.asked = number
        if self._error:
            self._acknowledged.set()
            raise self._error(signal.Signals(number).name)

    def _guard(self) -> None:
        while received := self._reader.recv(1):
            if received[0] in self._before and not self._acknowledged.wait(max(3.0, 3 * self.update_s)):
                if self._error:  # there is nothing to save yet
                    os._exit(STOPPED)
                if self._has_others:
                    os._exit(1)
        self._reader.close()


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    sys.path[0] = ""  # as with python -m, not this file's folder
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
