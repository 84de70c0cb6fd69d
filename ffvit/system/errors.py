"""What can go wrong for a person, as errors whose messages name what, where, and the cure."""

import difflib
import errno
from collections.abc import Iterable


class InputError(Exception):
    """Something a person gave us is wrong. The message names what, where, and the cure."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the message says all, and frames of the library nothing more."""
        return [f"{type(self).__name__}: {self}"]


MOST_KNOWN = 60  # names that a message lists


def suggest(wrong: str, known: Iterable[str]) -> str:
    """The nearest of the names there are, or all of them where they are few, to end a message with."""
    known = sorted(known)
    if close := difflib.get_close_matches(wrong, known, n=1):
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if len(known) <= MOST_KNOWN else ""


# What to do where the system refuses a file or folder.
CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room; df -h and df -i say where there is none"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may write to"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file is in a folder's place: move it away"),
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "choose a place without links",
}


def in_words(error: OSError) -> str:
    """What the system refused, as "runs/a: No space left on device; make room"."""
    where = f"{error.filename}: " if error.filename else ""
    cure = CURES.get(error.errno or 0)
    return f"{where}{error.strerror or error}{f'; {cure}' if cure else ''}"


class TrainingError(RuntimeError):
    """Training cannot go on. The message says what happened, what is kept, and what to try."""


class Stopped(BaseException):
    """A signal asked the run to end. Its checkpoint is written; the same command goes on.

    No Exception, as KeyboardInterrupt is none: it comes in the middle of anything, and no library that catches what
    fails there may take it for a damaged file.
    """
