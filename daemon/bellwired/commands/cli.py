"""The ``bellwire`` command line."""

from __future__ import annotations

import argparse
import difflib
import functools
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any, NoReturn

from bellwired import terminal
from bellwired.commands import complaints
from bellwired.commands.ends import status_of
from bellwired.errors import CommandError
from bellwired.logs import to_stderr_or_journal
from bellwired.places import add_places
from bellwired.release import Version

MODULES = {
    "run": "run",
    "boot": "boot",
    "fuzz-driver": "fuzz_driver",
    "vmm": "vmm",
    "demo": "demo",
    **dict.fromkeys(("list", "status", "start", "stop", "restart", "move", "reset", "disconnect"), "operate"),
    **dict.fromkeys(("set", "reload", "regs", "monitor", "logs", "qemu-args"), "operate"),
    "poke": "poke",
    "trace": "trace",
    "filter": "filters",
    "filters": "filters",
    "fault": "fault",
    "capture": "capture",
    "view": "view.command",
    "sandbox": "sandbox",
    "enable": "enable",
    "disable": "enable",
    "edit": "edit",
    "cat-config": "cat_config",
    "check": "check",
    "export": "export",
    "import": "import_map",
    "plugins": "inspect_files",
    "new": "inspect_files",
    "replay": "replay",
    "install": "install",
    "uninstall": "install",
}
"""The commands, in the order of the help, and the module of `bellwired.commands` that declares each."""
ALONE = ("run", "boot", "fuzz_driver", "vmm", "demo", "install")
"""Modules whose commands have nothing to do with a daemon or its configuration."""
READING = ("check", "export", "import_map", "inspect_files", "replay")
"""Modules whose commands read files of an instance, and ask no daemon."""
LONGEST = 1_000_000  # seconds: twelve days
SHARED = ("config_dir", "runtime_dir", "whose", "json", "wait", "timeout")
"""Flags of several commands. They may stand before the command too."""
LEVELS = ("debug", "info", "warning", "error")


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest word. With --json on the command line, they are in JSON."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does. The error for an unknown flag names the command's nearest flag."""
        words = sys.argv[1:] if args is None else list(args)
        words, rest = self._split(words)
        found, left = self.parse_known_args(words, namespace)
        if hasattr(found, "words"):
            found.words = rest
        if several := getattr(found, "intermixed", ""):
            found.__dict__[several], left = _intermixed(found.__dict__[several], left)
        if left:
            parser = next((self.commands[word] for word in words if word in self.commands), self)
            flags = [flag for action in parser._actions for flag in action.option_strings]
            parser.error(f"unrecognized arguments: {' '.join(left)}{_meant(left[0], flags)}")
        return found

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        """Separate the words behind ``--``, for a command that runs them in a guest."""
        named = next((word for word in words if word in self.commands), "")
        if not named or "--" not in words or self.commands[named].get_default("words") is None:
            return words, []
        at = words.index("--")
        return words[:at], words[at + 1 :]

    @property
    def commands(self) -> Mapping[str, argparse.ArgumentParser]:
        """The commands' own parsers, by name."""
        kinds = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
        return next((action.choices for action in kinds), {})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            meant = _meant(value, action.choices) or f"; there are {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"there is no command {value!r}{meant}")
        choices = action.choices or ()
        if value not in choices and (meant := _meant(str(value), map(str, choices))):
            raise argparse.ArgumentError(action, f"there is no {value!r}{meant}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """End with status 2."""
        if "--json" in sys.argv[1:]:
            complaints.errors([CommandError(message, self.format_usage().strip())], in_json=True)
            self.exit(2)
        super().error(message)


@functools.cache
def parser(word: str = "") -> Parser:
    """All commands and their flags. With the name of a command as ``word``, that one: others take time to load."""
    top = Parser(
        prog="bellwire",
        description="Write a PCI device in Python, plug it into any VM, and let its doorbells ring straight from KVM. "
        "A command's flags for the daemon (--runtime-dir and the like, --json) may stand before it, too.",
    )
    top.add_argument("--version", action=Version)
    for add in (_add_level, _add_shared, _add_asking):
        add(top)
    for action in top._actions:  # characters that shells would remove from words
        if action.dest in SHARED:
            action.help = argparse.SUPPRESS
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [MODULES[word]] if word in MODULES else dict.fromkeys(MODULES.values()):
        _add_commands(name, commands)
    for command in set(commands.choices.values()):
        _add_level(command, default=argparse.SUPPRESS)
    if word not in MODULES:
        import shtab  # only now: it takes longer to load than many a command

        shtab.add_argument_to(top, "--print-completion", help="print a completion script for a shell")
    return top


def _add_commands(name: str, commands: Any) -> None:
    """Let a module declare its commands."""
    module = import_module(f"bellwired.commands.{name}")
    if name in ALONE:
        module.add_parser(commands)
        return
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_shared(shared)
    if name not in READING:
        _add_asking(shared)
    shared.set_defaults(takes=SHARED[:4] if name in READING else SHARED)
    module.add_parsers(commands, shared)


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. An error becomes one line, with its hint."""
    with terminal.guarded():
        try:
            return _run(words)
        except KeyboardInterrupt:  # while the modules load that the command's arguments need
            return 130


def _run(words: Sequence[str] | None) -> int:
    given = sys.argv[1:] if words is None else words
    top = parser(given[0] if given and given[0] in MODULES else "")
    arguments = top.parse_args(given)
    for name in SHARED:
        if getattr(arguments, name) and name not in getattr(arguments, "takes", ()):
            flag = arguments.whose if name == "whose" else name.replace("_", "-")
            top.error(f"--{flag} is for other commands than this")
    if not logging.root.handlers:
        to_stderr_or_journal(arguments.log_level)
    failed: int = getattr(arguments, "failed", 1)
    return status_of(lambda: arguments.command(arguments), in_json=getattr(arguments, "json", False), failed=failed)


def _add_level(parser: argparse.ArgumentParser, default: str = "info") -> None:
    parser.add_argument(
        "--log-level", choices=LEVELS, default=default, help="what to log to standard error (default info)"
    )


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add_places(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables and text, and for errors too")


def _add_asking(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="wait until the daemon runs; with status, until the devices run"
    )
    parser.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="the longest time to wait (default 300)")


def _intermixed(words: list[str], left: list[str]) -> tuple[list[str], list[str]]:
    """The words with those that stand behind a flag, which argparse leaves over; and what is really left."""
    return [*words, *(word for word in left if not word.startswith("-"))], [
        word for word in left if word.startswith("-")
    ]


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0 and at most {LONGEST}, got {text!r}")
    return seconds
