"""Command lines: read as argparse does, with errors that name what is nearest."""

import argparse
import re
from typing import NoReturn

from ffvit.system.errors import InputError, suggest


class Parser(argparse.ArgumentParser):
    """prog: "ffvit train". about: the docstring of a command; its first sentence or paragraph says what it does."""

    def __init__(self, prog: str, about: str):
        super().__init__(prog=prog, description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        if unknown := re.search(r"unrecognized arguments: (-\S+)", message):
            wrong = unknown[1].partition("=")[0]
            options = [name for action in self._actions for name in action.option_strings]
            raise InputError(f"{self.prog} has no option '{wrong}'{suggest(wrong, options)}")
        raise InputError(f"{message}; {self.prog} --help says more")
