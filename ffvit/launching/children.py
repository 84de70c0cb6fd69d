"""The processes that a command starts: they end with it, however it ends, and in order when it is asked to stop."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ffvit.system import lifetime
from ffvit.system.lifetime import STOPPED_BY, leave_terminal, listen


class Ended(NamedTuple):
    """How a process ended."""

    code: int  # negative for a signal
    lines: list[str]  # the last it said
    told: list[str]  # those in which it says why it ended; a launcher buries them under its own traceback
    stopped: bool  # on request: with a checkpoint, or before there was anything to keep

    @property
    def why(self) -> str:
        return "\n".join(self.told or self.lines or ["it said nothing"])


class Children:
    """The processes started here. Threads may start some side by side; all of them are asked to stop together.

    Each leads a session of its own, so Ctrl-C reaches this process alone, and what it starts in turn can be ended too.
    """

    def __init__(self):
        self.asked = False  # to stop
        self._running: set[subprocess.Popen] = set()

    def run(
        self,
        command: list[str],
        environment: dict[str, str],
        log: Path,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> Ended:
        """Run `python COMMAND` to its end. Every line it prints goes to on_line, and is added to the log."""
        lines: list[str] = []
        told: list[str] = []
        with open(log, "a", encoding="utf-8", errors="surrogateescape") as file:
            process = subprocess.Popen(  # noqa: S603  # this Python, a command of this library
                [sys.executable, *command],
                env={**environment, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},  # whatever the locale
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
            try:
                if self.asked:  # while it was started
                    _signal(process, signal.SIGTERM)
                for line in process.stdout or ():
                    file.write(line)
                    file.flush()
                    lines = [*lines, line.rstrip("\n")][-20:]
                    if is_told(line):
                        told.append(lines[-1])
                    on_line(lines[-1])
                process.wait()
            except BaseException:
                # An interrupted cell must not leave training behind; a launcher passes no signal on, its group gets it.
                _signal(process, signal.SIGTERM)
                process.wait()
                raise
            finally:
                self._running.discard(process)
                _signal(process, signal.SIGKILL)  # whoever is left when the launcher is gone
        before_it_listened = self.asked and process.returncode and not told
        stopped = bool(before_it_listened or any(line.startswith(STOPPED_BY) for line in told))
        return Ended(process.returncode, lines, told, stopped)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask all to stop, those too that are about to start; with SIGKILL, at once."""
        self.asked = True
        for process in list(self._running):
            _signal(process, number)

    @contextlib.contextmanager
    def passing_signals(self) -> Iterator[None]:
        """Within, what asks this process to stop asks its children; a second Ctrl-C ends them at once."""

        def pass_on(number: int, _frame) -> None:
            leave_terminal(number)
            self.stop(signal.SIGKILL if self.asked and number == signal.SIGINT else signal.SIGTERM)

        before = listen(pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def watched() -> list[str]:
    """What comes before a module and its arguments, for Python to run it as long as this process is there."""
    return [lifetime.__file__, str(os.getpid())]


def is_told(line: str) -> bool:
    """Whether a process says in this line why it ends."""
    return line.startswith((STOPPED_BY, "error"))


def _signal(leader: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, number)
