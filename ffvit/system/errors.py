"""What can go wrong for a person, as errors whose messages name what, where, and the cure."""

import difflib
from collections.abc import Iterable


class InputError(Exception):
    """Something a person gave us is wrong. The message names what, where, and the cure."""


def suggest(wrong: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(sorted(known))}"


class TrainingError(RuntimeError):
    """Training cannot go on. The message says what happened, what is kept, and what to try."""


class Stopped(BaseException):
    """A signal asked the run to end. Its checkpoint is written; the same command goes on.

    No Exception, as KeyboardInterrupt is none: it comes in the middle of anything, and no library that catches what
    fails there may take it for a damaged file.
    """
