"""What ``bellwire boot`` fetches and builds before it boots: --fetch, --headers, --build."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from bellwired import terminal
from bellwired.errors import CommandError
from bellwired.guest.build import BuildError, build_modules
from bellwired.guest.compiler import find_compiler
from bellwired.guest.headers import tree_of
from bellwired.guest.kernel import Kernel
from bellwired.guest.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--fetch", action="store_true", help="fetch QEMU and the kernel, if they are not there yet")
    parser.add_argument(
        "--headers",
        action="store_true",
        help="fetch what modules for the kernel are built with: its headers, and a compiler if there is none",
    )
    parser.add_argument(
        "--build",
        dest="builds",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="build the kernel modules in DIR for this kernel (repeat it for more); with this flag, --fetch or "
        "--headers, nothing is booted unless there is a DEVICE, a --module or a COMMAND",
    )


def prepares_only(arguments: argparse.Namespace) -> bool:
    """Whether no guest is wanted."""
    wanted = arguments.fetch or arguments.headers or arguments.builds
    return bool(wanted) and not (arguments.devices or arguments.modules or arguments.words)


def prepare(arguments: argparse.Namespace, kernel: Kernel, progress: Progress) -> list[str]:
    """Fetch and build what is wanted. Lines that say what there is, and the compiler's warnings."""
    told: list[str] = []
    if arguments.headers:
        told.append(f"headers: {tree_of(kernel, progress)}")
        told.append(f"compiler: {find_compiler(progress).command('gcc')}")
    for folder in arguments.builds:
        built = build_modules(folder, kernel, progress)
        told += built.warnings.splitlines()
        told += [f"module: {module}" for module in built.modules]
    return told


def modules(texts: Iterable[str], kernel: Kernel) -> list[list[str]]:
    """The words of each --module: a file or the name of one of the kernel's own, and its parameters.

    Raises a CommandError for a file that is not there, and for a module that the kernel does not have.
    """
    found = []
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError:
            raise CommandError(f"--module {text}: a quotation mark is not closed") from None
        if not words:
            raise CommandError(
                "--module: no module is named", "it takes a file, or the name of one of the kernel's own"
            )
        name = words[0]
        if "/" in name or name.endswith(".ko"):
            if not Path(name).is_file():
                raise CommandError(f"--module {name}: no such file", "--build DIR builds the modules in DIR first")
        elif not kernel.has(name):
            kernel.load_order([name])  # it says what is missing
        found.append(words)
    return found


def show_output(error: BuildError) -> None:
    """Show what the compiler has printed, as it has printed it."""
    if error.output:
        print(terminal.lines(error.output), file=sys.stderr)
