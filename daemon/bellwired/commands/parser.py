"""The command line's own errors: what may have been meant, and JSON for programs."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from bellwired.commands import show
from bellwired.errors import CommandError

_CHOICE = re.compile(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)
_UNKNOWN = re.compile(r"unrecognized arguments: (--\S+)")


class Parser(argparse.ArgumentParser):
    """Says in JSON what is wrong with the command line, if that asks for JSON; and what may have been meant."""

    _words: Sequence[str] = ()

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Keep what was typed: what nobody knows is told to this parser, and not to the command's."""
        self._words = sys.argv[1:] if args is None else args
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        message = self._with_suggestion(message)
        if "--json" in sys.argv[1:]:
            show.errors([CommandError(message, self.format_usage().strip())], in_json=True)
            self.exit(2)
        super().error(message)

    def _with_suggestion(self, message: str) -> str:
        if choice := _CHOICE.search(message):
            what, word, among = choice.groups()
            known = [each.strip("' ") for each in among.split(",")]
            if near := _nearest(word, known):
                return f"argument {what}: there is no {word!r}: did you mean {near}?"
        elif unknown := _UNKNOWN.search(message):
            flag = unknown[1].partition("=")[0]
            if near := _nearest(flag, [*self._flags(self._words)]):
                return f"{message}: did you mean {near}?"
        return message

    def _flags(self, words: Sequence[str]) -> Iterator[str]:
        """Of this command, and of the one among ``words``."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):  # argparse has no other name for it
                command = next((action.choices[word] for word in words if word in action.choices), None)
                yield from command._flags(()) if isinstance(command, Parser) else ()


def _nearest(word: str, known: list[str]) -> str:
    return next(iter(difflib.get_close_matches(word, known, n=1)), "")
