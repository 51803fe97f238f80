"""``bellwire fuzz-driver``: let a device say wrong things to a driver in a Linux guest, and see what that does."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

from bellwire.faults.changed import Fuzz
from bellwire.faults.scenario import MOST_FAULTS, ScenarioError, check_name, name_of
from bellwired.commands import show
from bellwired.commands.completion import KINDS, OPTIONS, completed
from bellwired.commands.made import make, options_of
from bellwired.errors import CommandError
from bellwired.find import find_device
from bellwired.guest.campaign import WORK, Result, Work, bedded, campaign, scenario
from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.kernels import DEBIAN, find_kernel
from bellwired.guest.mirror import mirror
from bellwired.guest.plan import Plan, Plugged
from bellwired.guest.progress import shown
from bellwired.guest.qemus import find_qemu

FOUND = 3
"""The status of the command if the guest has made a mistake."""


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "fuzz-driver",
        help="let a device say wrong things to a driver in a Linux guest",
        description="Boots Linux with a device, and lets its driver work while the device says wrong things: other "
        "bits in registers and in what it writes to memory, interrupts that are lost, late or doubled. It stops at the "
        "first mistake that the guest's kernel reports, or when the guest hangs, tries which of the changes it takes, "
        f"and writes these as a scenario. The status is {FOUND} if something was found. The device runs in this "
        "process, without a box.",
    )
    kind = parser.add_argument("device", metavar="DEVICE|FILE.py", help="the device, as bellwire run takes it")
    option = parser.add_argument(
        "-o", dest="options", metavar="KEY=VALUE", action="append", default=[], help="set an option of the device"
    )
    completed(kind, KINDS)
    completed(option, OPTIONS)
    parser.add_argument("--runs", type=_number, default=20, metavar="N", help="how many seeds to try (default 20)")
    parser.add_argument("--seed", type=_number, default=1, metavar="N", help="the first seed (default 1)")
    parser.add_argument(
        "--p", default="0.05", metavar="P", help="the probability that an event is changed (default 0.05)"
    )
    parser.add_argument(
        "--changes",
        type=_changes,
        default=MOST_FAULTS,
        metavar="N",
        help=f"the most changes in a run (default and at most {MOST_FAULTS}: those of a scenario)",
    )
    parser.add_argument(
        "--without",
        choices=("reads", "dma", "irqs"),
        action="append",
        default=[],
        help="change nothing of this kind (repeat it for more)",
    )
    parser.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help=f"a shell script that makes the driver work (default: one for {', '.join(WORK)})",
    )
    parser.add_argument(
        "--module", dest="modules", action="append", default=[], metavar="NAME", help="a kernel module to load first"
    )
    parser.add_argument("--kernel", default=DEBIAN, help="a bzImage, a build tree, running, or debian (the default)")
    parser.add_argument("--append", default="", metavar="WORDS", help="more for the kernel's command line")
    parser.add_argument(
        "--patience", type=_number, default=60, metavar="SECONDS", help="how long the script may take (default 60)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE.toml", help="where the scenario goes (default: fuzzed-DEVICE.toml)"
    )
    parser.set_defaults(command=fuzz)


def fuzz(arguments: argparse.Namespace) -> int:
    """``bellwire fuzz-driver``."""
    kind = find_device(arguments.device)
    work = _work(arguments, kind.name)
    output = _output(arguments.output, kind.name)
    given = {"p": arguments.p, "times": arguments.changes, **dict.fromkeys(arguments.without, False)}
    Fuzz(**given)  # an OptionError comes before the boot
    with shown() as progress:
        toolbox = fetch_guest_tools(progress)
        qemu = find_qemu(toolbox, needed=("vfio-user-pci", "virtserialport"))
        kernel = find_kernel(arguments.kernel, progress, lambda _: toolbox)

    def plan(plugged: Plugged) -> Plan:
        append = f"{work.append} {arguments.append}".strip()
        return Plan(kernel, qemu, busybox=toolbox.busybox, cpus=2, devices=[plugged], append=append)

    with contextlib.ExitStack() as stack:
        options = options_of(arguments.options)
        if kind.name == "virtio-net" and not options:
            options = stack.enter_context(mirror())
        words = arguments.options or [f"{key}={value}" for key, value in options.items()]
        make(kind, words, arguments.device).core.close()
        bed = stack.enter_context(bedded(kind, options, work, plan, float(arguments.patience)))
        result = campaign(bed, runs=arguments.runs, seed=arguments.seed, told=_tell, **given)
    return _report(result, kind.name, output)


def _work(arguments: argparse.Namespace, name: str) -> Work:
    known = WORK.get(name, Work("", ()))
    if arguments.script is not None:
        try:
            script = arguments.script.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CommandError(f"--script {arguments.script}: {error}") from None
        return Work(script, tuple(arguments.modules) or known.modules, known.append)
    if not known.script:
        raise CommandError(f"{name} needs --script: a shell script that makes its driver work")
    return Work(known.script, (*known.modules, *arguments.modules), known.append)


def _output(given: Path | None, name: str) -> Path:
    """Where the scenario goes. A CommandError now, not after the campaign, if it could not be there."""
    path = given or Path(f"fuzzed-{name}.toml")
    try:
        check_name(name_of(str(path)), str(path))
    except ScenarioError as error:
        raise CommandError(str(error), "give another one by --output") from None
    if not path.parent.is_dir():
        raise CommandError(f"--output {path}: there is no folder {path.parent}")
    return path


def _report(result: Result, name: str, path: Path) -> int:
    _tell(f"{result.runs} runs, {sum(result.changes.values())} changes")
    for place, count in sorted(result.changes.items()):
        _tell(f"  {place}: {count}")
    if result.found is None:
        _tell("nothing found")
        return 0
    _tell(f"found: {result.found.kind}: {result.found.title}")
    _tell(result.found.text)
    about = f"What seed {result.seed} has led to: {result.found.kind}: {result.found.title}"[:2000]
    written = scenario(result.least, name, about).to_toml()
    try:
        path.write_text(written)
    except OSError as error:
        _tell(written)
        raise CommandError(f"{path}: {error.strerror}", "the scenario is above") from None
    how = f"{len(result.least)} of {len(result.all)} changes lead to it" if result.again else "it did not happen again"
    _tell(f"{how}: {path}")
    return FOUND


def _tell(text: str) -> None:
    for each in text.splitlines():
        show.console().print(show.text(each), soft_wrap=True)


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _changes(text: str) -> int:
    number = _number(text)
    if number > MOST_FAULTS:
        raise argparse.ArgumentTypeError(f"at most {MOST_FAULTS} expected, got {number}")
    return number
