"""``bellwire boot``: Linux in QEMU with devices plugged in, for a shell or one command."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bellwire import BellwireError
from bellwired import terminal
from bellwired.commands import boot_devices, boot_own, boot_prepare, complaints
from bellwired.commands.boot_reports import Reported
from bellwired.commands.boot_terminal import Screen, converse
from bellwired.commands.completion import FILTERS, KINDS, SCENARIOS, completed
from bellwired.errors import CommandError
from bellwired.guest.build import BuildError
from bellwired.guest.decode import Decoder
from bellwired.guest.errors import CommandTimeout, MachineError
from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.kernel import Kernel
from bellwired.guest.kernels import DEBIAN, find_kernel
from bellwired.guest.leaks import read_leaks
from bellwired.guest.machine import Machine
from bellwired.guest.plan import BOOT_TIME, HOST, KERNELS_OWN, MIB, MINIMAL, Plan, Share, guests_own
from bellwired.guest.progress import shown
from bellwired.guest.qemus import find_qemu
from bellwired.guest.served import Served

TIMED_OUT, FAILED = 124, 125
"""The command's statuses when the guest took too long, and when there was no guest or it failed."""
MOST_CPUS = 255
LEAST_MEMORY, MOST_MEMORY = 128, 1 << 20  # MiB
LONGEST = 1_000_000  # seconds: twelve days
_SIZE = re.compile(r"([1-9]\d{0,8})([MG]?)", re.IGNORECASE)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "boot",
        help="boot Linux in QEMU with devices plugged in, for a shell or one command",
        usage="bellwire boot [-h] [DEVICE ...] [option ...] [-- COMMAND [WORD ...]]",
        description="Boot Linux in QEMU with devices plugged in, for a shell or one command. It serves the devices "
        "itself, and ends when the shell or COMMAND does, with its status. The guest sees this machine's files; what "
        "it writes is gone at its end, except below a folder of --share. Ctrl-C ends all. A shell gets that key "
        "itself: there Ctrl-] three times within a second ends all.",
    )
    device = parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*",
        help="a bundled device, a file (FILE.py:NAME picks one of several), a device of the daemon by its name, or "
        "the socket of a vfio-user server",
    )
    completed(device, KINDS)
    parser.add_argument(
        "-o",
        dest="options",
        metavar="[DEVICE.]KEY=VALUE",
        action="append",
        default=[],
        help="set an option of a device (repeat it for more)",
    )
    stands = parser.add_argument(
        "--filter",
        dest="filters",
        metavar="[DEVICE.]FILTER",
        action="append",
        default=[],
        help="put a filter between the guest and a device, as in trace or delay:read=2ms (repeat it for more)",
    )
    scenario = parser.add_argument(
        "--fault",
        dest="faults",
        metavar="[DEVICE.]SCENARIO",
        action="append",
        default=[],
        help="let a device fail as a scenario says (repeat it for more). bellwire fault --list lists them",
    )
    completed(stands, FILTERS)
    completed(scenario, SCENARIOS)
    parser.add_argument(
        "--module",
        dest="modules",
        metavar="FILE.ko",
        action="append",
        default=[],
        help="load a kernel module before the command: a file, or the name of one of the kernel's own; parameters "
        "follow in the same word (repeat it for more)",
    )
    parser.add_argument(
        "--kernel",
        default=DEBIAN,
        metavar="KERNEL",
        help="a bzImage, a kernel's build tree, 'running', or 'debian' (the default: fetched once)",
    )
    boot_prepare.add_arguments(parser)
    parser.add_argument("--append", default="", metavar="TEXT", help="more of the kernel's command line")
    parser.add_argument(
        "--share",
        dest="shares",
        metavar="DIR",
        type=Path,
        action="append",
        default=[],
        help="let the guest write to this folder, which it sees at the same path (repeat it for more)",
    )
    parser.add_argument("--snapshot", action="store_true", help="drop what the guest writes to shared folders, too")
    parser.add_argument(
        "--minimal", action="store_true", help="a root of busybox alone, instead of this machine's files"
    )
    parser.add_argument("--cpus", type=_cpus, default=1, metavar="N", help="number of vCPUs (default 1)")
    parser.add_argument(
        "--memory", type=_memory, default=512, metavar="SIZE", help="in MiB unless it ends in M or G (default 512)"
    )
    parser.add_argument(
        "--root-port",
        action="store_true",
        help="put each device behind a PCI Express root port: it has a link then, and Linux reports its errors",
    )
    parser.add_argument("--network", action="store_true", help="add a network card, behind QEMU's own network")
    parser.add_argument(
        "--vmm",
        choices=(boot_own.QEMU, boot_own.OWN),
        default=boot_own.QEMU,
        help="the machine: QEMU, or our own VMM with a shell on its serial console (it takes KVM that runs Linux)",
    )
    parser.add_argument("--qemu", metavar="PROGRAM", default="", help="the QEMU to use (default: the best one found)")
    parser.add_argument(
        "--console", metavar="FILE", type=Path, help="write what the kernel prints there; -: to standard error"
    )
    parser.add_argument("--gdb", action="store_true", help="let gdb debug the kernel, and say how")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"end COMMAND, or a module that loads, after this time, with status {TIMED_OUT}",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS,
        help="the folder of the daemon's control socket, and of the devices' own",
    )
    parser.set_defaults(command=boot, takes=("timeout", "runtime_dir"), words=[], intermixed="devices", failed=FAILED)


def boot(arguments: argparse.Namespace) -> int:
    """Boot, run, and end. The command's status: the guest's command's, or one of ours."""
    try:
        with _signals_end_it():
            return _boot(arguments)
    except BellwireError as error:
        if isinstance(error, BuildError):
            boot_prepare.show_output(error)
        if isinstance(error, MachineError) and error.console:
            print(f"The end of the guest's console:\n{terminal.lines(error.console)}", file=sys.stderr)
        complaints.error_with_log(error)
        return TIMED_OUT if isinstance(error, CommandTimeout) else FAILED


def _boot(arguments: argparse.Namespace) -> int:
    screen = Screen()
    reported = Reported(screen)
    own = arguments.vmm == boot_own.OWN
    if own:
        boot_own.check(arguments)
    with contextlib.ExitStack() as stack:
        console = stack.enter_context(screen.console(None if own else arguments.console))
        with shown() as progress:
            kernel = find_kernel(arguments.kernel, progress)
            tools = fetch_guest_tools(progress)
            told = boot_prepare.prepare(arguments, kernel, progress)
        for line in told:
            screen.note(line)
        if boot_prepare.prepares_only(arguments):
            screen.note(tools.describe())
            return 0
        shares = _shares(arguments)
        modules = boot_prepare.modules(arguments.modules, kernel)
        served = stack.enter_context(Served(screen.log))
        paths = boot_devices.start(arguments, served)
        if own:
            served.wait()
            return boot_own.boot(arguments, kernel, tools.busybox, modules, boot_devices.plug(paths))
        qemu = find_qemu(tools, arguments.qemu, _needed(arguments, shares))
        served.wait()
        plan = Plan(
            kernel,
            qemu,
            boot_devices.plug(paths, root_ports=arguments.root_port),
            ports=max(1, len(paths)) if arguments.root_port else 1,
            root=MINIMAL if arguments.minimal else HOST,
            busybox=tools.busybox,
            shares=shares,
            folder=str(Path.cwd()),
            append=f"nokaslr {arguments.append}" if arguments.gdb else arguments.append,
            cpus=arguments.cpus,
            memory=arguments.memory * MIB,
            network=arguments.network,
            gdb=_gdb(kernel, screen, stack) if arguments.gdb else None,
            listeners=(reported.feed, *([console] if console else [])),
            boot_time=LONGEST if arguments.gdb else BOOT_TIME,
        )
        screen.note(f"booting Linux {kernel.release} in QEMU {qemu.text}, {qemu.how}")
        files = [Path(words[0]) for words in modules if words[0].endswith(".ko")]
        decoder = Decoder(kernel.vmlinux, files, [*(file.parent for file in files), Path.cwd()])
        stack.callback(reported.show, decoder)  # when the machine has ended
        try:
            with screen.patience("the guest still boots: --console - shows what its kernel prints"):
                machine = stack.enter_context(Machine.start(plan))
        except MachineError:
            served.check()
            raise
        served.forget_paths()
        reported.watch(machine)
        for words in modules:
            with screen.patience(f"the guest still loads {words[0]}"):
                machine.load(words[0], *words[1:], timeout=arguments.timeout)
        if not arguments.words:
            reported.watch(None)  # a shell stays
        status = converse(machine, screen, arguments.words, arguments.timeout)
        served.check()
        if modules:
            reported.leaks = read_leaks(machine, [Path(words[0]).stem for words in modules])
        reported.check(machine)
    return FAILED if reported.found else status


def _gdb(kernel: Kernel, screen: Screen, stack: contextlib.ExitStack) -> Path:
    """The socket of QEMU's stub, in a folder that other users cannot enter; and how a debugger attaches to it."""
    path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bellwire-"))) / "gdb"
    words = ["gdb", "-ex", f"target remote {path}"]
    if kernel.vmlinux is None:
        screen.note(f"to debug the kernel: {shlex.join(words)}")
        screen.note("(without symbols: --kernel with a build tree gives gdb its vmlinux)")
        return path
    words[1:1] = ["-iex", f"add-auto-load-safe-path {kernel.vmlinux.parent}"]
    screen.note(f"to debug the kernel: {shlex.join([*words, str(kernel.vmlinux)])}")
    screen.note("lx-symbols FOLDER then loads the symbols of the modules below FOLDER (make scripts_gdb makes it)")
    return path


def _needed(arguments: argparse.Namespace, shares: Sequence[Share]) -> list[str]:
    """The devices that QEMU must have."""
    folders = not arguments.minimal or shares
    return ["vfio-user-pci", "virtserialport", *(["vhost-user-fs-pci"] if folders else [])]


def _shares(arguments: argparse.Namespace) -> list[Share]:
    """The folders of --share, and the current one if the guest would not have it."""
    folders = {folder.resolve(): not arguments.snapshot for folder in arguments.shares}
    for folder in folders:
        if not folder.is_dir():
            raise CommandError(f"--share {folder}: no such folder")
    here = Path.cwd()
    hidden = arguments.minimal or any(here.is_relative_to(place) for place in KERNELS_OWN)
    if hidden and not guests_own(here) and not any(here.is_relative_to(folder) for folder in folders):
        folders[here] = False
    return [Share(folder, str(folder), writable) for folder, writable in sorted(folders.items())]


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """The first signal ends all in its order. A second one ends this process at once, and the kernel the others."""

    def end(number: int, _: object) -> None:
        for again in numbers:
            signal.signal(again, signal.SIG_DFL)
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _cpus(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_CPUS:
        raise argparse.ArgumentTypeError(f"expected 1 to {MOST_CPUS}, got {text!r}")
    return int(text)


def _memory(text: str) -> int:
    found = _SIZE.fullmatch(text)
    size = int(found[1]) * (1024 if found[2] in ("G", "g") else 1) if found else 0
    if not LEAST_MEMORY <= size <= MOST_MEMORY:
        raise argparse.ArgumentTypeError(f"{text!r}: expected MiB, or a size that ends in M or G; at least 128M")
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    if size > there:
        raise argparse.ArgumentTypeError(f"{text!r}: this machine itself has {there} MiB")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"expected seconds, more than 0 and at most {LONGEST}, got {text!r}")
    return seconds
