"""The version of Bellwire."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn


@cache
def release() -> str:
    """The version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version  # only now: few commands ask for it

    try:
        return version("bellwire")
    except PackageNotFoundError:
        return "(not installed)"


class Version(argparse.Action):
    """The flag that prints the version of the parser's program, and ends it."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        about = "show program's version number and exit"
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=about)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print the version."""
        print(f"{parser.prog} {release()}")
        parser.exit()
