"""What ``bellwire boot`` fetches and builds before it boots: --fetch, --headers, --build."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bellwired import terminal
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


def show_output(error: BuildError) -> None:
    """Show what the compiler has printed, as it has printed it."""
    print(terminal.lines(error.output), file=sys.stderr)
