"""``bellwire run``: one device in the foreground, as vfio-user asks of a backend program.

It does not daemonise, keeps fds 0, 1 and 2, and SIGTERM or SIGINT ends it cleanly; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bellwire import BellwireError, OptionError, PciDevice
from bellwire.serve.blame import told
from bellwire.serve.busy_poll import MOST
from bellwired import settings, terminal
from bellwired.box.enter import Box, why_refused
from bellwired.commands import attach, capture, debugger, fault, in_a_box, parts, replay, show
from bellwired.commands.completion import FILTERS, KINDS, OPTIONS, SCENARIOS, completed
from bellwired.commands.describe import describe
from bellwired.commands.reloading import Reloading
from bellwired.commands.summary import print_reports, print_summary, print_written
from bellwired.errors import CommandError
from bellwired.filtering import all_made, tables
from bellwired.find import find_device, find_functions
from bellwired.listen import Listener, activated, default_path, inherited, listening
from bellwired.logs import TIME, stderr_is_the_journal, to_stderr_or_journal
from bellwired.manager.foreground import Desk, open_control
from bellwired.places import Places
from bellwired.sources import is_path
from bellwired.workers.captures import TIMELINE
from bellwired.workers.process import allow_many_files
from bellwired.workers.relay import Relay
from bellwired.workers.worker import Again, Serving, mark_trouble
from vfio_user import DIALECTS, RATIFIED, dialect

log = logging.getLogger("bellwire")
ACTIVATED = "systemd"
MOST_FD = (1 << 31) - 1
LONGEST_POLL = round(MOST * 1e6)


def add_parser(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "run",
        help="serve one device in the foreground",
        description="Serve one device over vfio-user until SIGTERM or Ctrl-C. Prints how to attach QEMU to it, and at "
        "its end a summary of what the guest has done. Meanwhile status, regs, set, reset, monitor and stop find it by "
        "its name, as they find a daemon's devices.",
    )
    kind = parser.add_argument(
        "device",
        metavar="DEVICE|FILE.py",
        help="a bundled device, or your own file. FILE.py:NAME picks one device of several. Of a file with several "
        "functions all are served, each by a process; FILE.py:N picks function N",
    )
    parser.add_argument(
        "--name",
        type=_name,
        help="its name for other commands, and of its socket (default: the device's own name; functions: the file's, "
        "with .0, .1 and so on)",
    )
    parser.add_argument(
        "--name-if-free",
        action="store_true",
        help="serve even if another device has the name already: other commands then do not find this one",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--socket-path",
        metavar="PATH",
        type=_path,
        help="the socket to make and listen on; functions have PATH.0, PATH.1",
    )
    where.add_argument(
        "--fd",
        metavar="N|systemd",
        type=_descriptor,
        help="an inherited UNIX stream socket instead, listening or connected; or the one of socket activation",
    )
    option = parser.add_argument(
        "-o",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option of the device (repeat it for more)",
    )
    stands = parser.add_argument(
        "--filter",
        dest="filters",
        metavar="NAME[:KEY=VALUE,...]",
        action="append",
        default=[],
        help="put a filter between the guest and the device, as in trace or delay:read=2ms (repeat it for more; the "
        "first stands on the guest's side). bellwire filters lists them",
    )
    parser.add_argument(
        "--suggest",
        dest="filters",
        action="append_const",
        const="suggest",
        help="at the end, print declarations for what the guest touched and the device lacks (as --filter suggest)",
    )
    scenario = parser.add_argument(
        "--fault",
        dest="faults",
        metavar="SCENARIO|FILE.toml",
        action="append",
        default=[],
        help="let the device fail as a scenario says, behind the other filters (repeat it for more). bellwire fault "
        "--list lists them",
    )
    completed(scenario, SCENARIOS)
    completed(kind, KINDS)
    completed(option, OPTIONS)
    completed(stands, FILTERS)
    parser.add_argument(
        "--print-capabilities",
        action="store_true",
        help="describe the device in JSON (BARs, registers, interrupts, capabilities, options), and end",
    )
    parser.add_argument(
        "--io-fd-entry",
        type=int,
        choices=(40, 48),
        default=40,
        help="bytes of a GET_REGION_IO_FDS entry: 40 is the ratified layout, 48 libvfio-user's (default 40)",
    )
    parser.add_argument(
        "--dialect",
        choices=tuple(DIALECTS),
        default=RATIFIED.name,
        help="the text of the protocol that it speaks: the ratified one (the default), or the draft of January 2021",
    )
    parser.add_argument(
        "--busy-poll",
        type=_microseconds,
        default=0,
        metavar="MICROSECONDS",
        help=f"how long to look for work before sleeping, while there is much of it: 0, the default, to {LONGEST_POLL}",
    )
    parser.add_argument(
        "--ready-fd",
        type=_number,
        metavar="N",
        help="an inherited descriptor: write a line end to it and close it, once the device serves; print nothing then",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="stop in pdb at an exception in a hook, and print a QEMU line that waits for the debugger; it implies "
        "--no-sandbox",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="when the device's file, or what it imports from beside it, changes: go on with the new code, with "
        "the same state and the same client",
    )
    parser.add_argument(
        "--no-sandbox",
        action="store_true",
        help="run the device without a box: it may then do all that its user may, and debuggers can attach to it",
    )
    capture.add_flags(parser)
    parser.add_argument(
        "--runtime-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="keep the control socket in DIR"
    )
    parser.set_defaults(command=run, takes=("runtime_dir",))


def run(arguments: argparse.Namespace) -> int:
    """``bellwire run``: serve until a signal or ``bellwire stop`` ends it. Returns the exit status."""
    if arguments.dialect != RATIFIED.name and arguments.io_fd_entry != RATIFIED.entry:
        raise CommandError("--io-fd-entry is for the ratified dialect")
    kinds = find_functions(arguments.device)
    if arguments.print_capabilities:
        show.as_json(describe(kinds[0]) if len(kinds) == 1 else {"functions": list(map(describe, kinds))})
        return 0
    if len(kinds) == 1:
        return _serve(arguments, kinds[0])
    if arguments.reload:
        raise CommandError(f"{arguments.device}: --reload goes with one device", "name one: FILE.py:NAME")
    part = parts.split(arguments, kinds)
    return part if isinstance(part, int) else _serve(part.arguments, part.kind, part)


def _serve(arguments: argparse.Namespace, device: type[PciDevice], part: parts.Part | None = None) -> int:
    """Serve one device, which may be a function of several: ``part``."""
    name = device.name if arguments.name is None else arguments.name
    instance = make(device, arguments.options, arguments.device)
    wanted = tables(arguments.filters) + fault.wanted_by(arguments.faults, device)
    filters = all_made(wanted, device)
    allow_many_files()  # an eventfd for each of 2048 vectors is more than the usual 1024
    with ExitStack() as last, ExitStack() as stack:
        sockets, address = _sockets(arguments, name, stack)
        _log_to(arguments.log_level, name, named=part is not None)
        debugger.install(debugging=arguments.debug)
        control = _control(arguments, name)
        if control is not None:
            stack.callback(control.close)
        about = settings.Device(
            device=arguments.device, io_fd_entry=arguments.io_fd_entry, dialect=arguments.dialect, filters=wanted
        )
        # It runs a machine of its own, which a boxed process may not.
        accelerated_by = attach.accelerators() if part is None and _announces(arguments) else []
        captures = capture.asked(arguments, stack)
        recording = [] if arguments.record is None else [replay.recorder(arguments, instance, stack)]
        filters += recording
        box = _box(arguments, instance, name, control, last)
        desk = stack.enter_context(Desk(name, about, address, control, box))
        relay = Relay(desk.channel)
        log.root.addHandler(relay)
        stack.callback(log.root.removeHandler, relay)
        reporter = debugger.Debugging() if arguments.debug else None
        serving = Serving(
            instance,
            desk.channel,
            **sockets,
            dialect=dialect(arguments.dialect, arguments.io_fd_entry),
            busy_poll=arguments.busy_poll,
            max_maps=about.max_maps,
            hello_timeout=about.hello_timeout,
            reporter=reporter,
            managed=False,
            filters=filters,
            name=name,
            again=_again(arguments) if arguments.reload else None,
        )
        if arguments.reload:
            Reloading(serving).begin()
        _end_on_signals(serving)
        begun = time.monotonic()
        try:
            announce = part.tell_ready if part else lambda: _announce(arguments, name, accelerated_by, control)
            serving.run(announce, captures)
        except BellwireError as error:
            if arguments.debug or arguments.no_sandbox or not why_refused(error):
                raise
            hint = "perhaps its box refuses that: name the file or stream in an option, or run it with --no-sandbox"
            raise CommandError(str(error), hint) from error
        finally:
            if log.isEnabledFor(logging.INFO):
                print_summary(name, serving.device, time.monotonic() - begun)
                for each in recording:
                    print_written("recording", arguments.record, each)
                for form, written in serving.written.items():
                    what = "timeline" if form == TIMELINE else "capture"
                    print_written(what, getattr(arguments, what), written)
        if log.isEnabledFor(logging.INFO):
            print_reports(filters)
    return 0


def _again(arguments: argparse.Namespace) -> Again:
    """Makes the device from its file as it is then: the box around it lets it read the folder."""
    if not is_path(arguments.device.partition(":")[0]):
        raise CommandError(f"--reload: {arguments.device} is not a file", "give the path of a device's file")
    return lambda _: make(find_device(arguments.device), arguments.options, arguments.device)


def _box(
    arguments: argparse.Namespace, instance: PciDevice, name: str, control: Listener | None, last: ExitStack
) -> Box:
    if arguments.debug or arguments.no_sandbox:
        return in_a_box.none("--debug" if arguments.debug else "--no-sandbox")
    sockets = [] if arguments.fd is not None else [(arguments.socket_path or default_path(name)).absolute()]
    sockets += [control.path.absolute()] if control is not None else []
    return in_a_box.close(instance, arguments.device, sockets, last)


def _log_to(level: str, name: str, *, named: bool) -> None:
    """Set up logging. In the journal every entry names the device, and :class:`Desk` tells of clients.

    On a terminal an entry names it if ``named``.
    """
    if not stderr_is_the_journal():
        to_stderr_or_journal(level, clock=TIME, device=name if named else "")
        return
    to_stderr_or_journal(level, device=name)
    logging.getLogger("bellwire.worker").setLevel(logging.WARNING)
    for handler in log.root.handlers:
        handler.addFilter(mark_trouble)


def _control(arguments: argparse.Namespace, name: str) -> Listener | None:
    """The control socket. If it cannot be made, that is an error only if the user has given a name."""
    try:
        return open_control(Places.of(runtime_dir=arguments.runtime_dir), name)
    except CommandError as error:
        if (arguments.name is not None or arguments.runtime_dir) and not arguments.name_if_free:
            raise CommandError(str(error), "choose another --name, or another --runtime-dir") from None
        hint = "" if arguments.name_if_free else "; --name gives it another name"
        log.info("other commands cannot reach this device: %s%s", error, hint)
        return None


def _sockets(arguments: argparse.Namespace, name: str, stack: ExitStack) -> tuple[dict[str, Any], str]:
    """The source of clients for :class:`Serving`, and its description."""
    if arguments.fd is None:
        path = arguments.socket_path or default_path(name)
        return {"listener": stack.enter_context(listening(path))}, str(path.absolute())
    given, listens = activated() if arguments.fd == ACTIVATED else inherited(arguments.fd)
    stack.enter_context(given)
    return {"listener" if listens else "connection": given}, given.getsockname() or f"--fd {arguments.fd}"


def options_of(texts: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts as options."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"-o {text}: expected KEY=VALUE")
        values[key] = value
    return values


def make(device: type[PciDevice], options: list[str], word: str) -> PciDevice:
    """Make an instance from ``KEY=VALUE`` texts. ``word`` is how the user has named the device."""
    try:
        with told(f"{device.__name__}.__init__"):
            return device(**options_of(options))
    except OptionError as error:
        hint = f"bellwire run {shlex.quote(word)} --print-capabilities lists its options"
        raise CommandError(str(error), hint) from None


def _announces(arguments: argparse.Namespace) -> bool:
    """Whether it is for people, who are told how to attach the device."""
    return arguments.fd is None and arguments.ready_fd is None


def _announce(arguments: argparse.Namespace, name: str, accelerated_by: list[str], control: Listener | None) -> None:
    if arguments.ready_fd is not None:
        with open(arguments.ready_fd, "wb", buffering=0) as file:
            file.write(b"\n")
    if not _announces(arguments):
        return
    path = arguments.socket_path or default_path(name)
    print(f"{terminal.line(name)}: serving on {terminal.line(path)}. To attach it to QEMU ({attach.OLDEST} or newer):")
    command = attach.qemu_command(path, accelerated_by, timeout=attach.PATIENT if arguments.debug else 0)
    print(f"  {terminal.line(command)}")
    if "kvm" not in accelerated_by:
        print(attach.WHY_TCG)
    if control is not None:
        where = f" --runtime-dir {shlex.quote(str(arguments.runtime_dir))}" if arguments.runtime_dir else ""
        told = f"From elsewhere: bellwire status {name}{where} (or regs, monitor, set, reset). Ctrl-C ends it."
        print(terminal.line(told))
    sys.stdout.flush()


def _end_on_signals(serving: Serving) -> None:
    """Install the signal handlers. Call it before the device is visible: no signal may find Python's own handler."""

    def end(number: int, _: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):  # for a hook that hangs
            signal.signal(again, signal.SIG_DFL)
        log.info("%s: stopping", signal.Signals(number).name)
        serving.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _name(text: str) -> str:
    if not settings.NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits and _ . @ -, at most 64")
    return text


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got nothing")
    return Path(text)


def _descriptor(text: str) -> int | str:
    return text if text == ACTIVATED else _number(text, f"a number or {ACTIVATED}")


def _number(text: str, expected: str = "a number") -> int:
    if not text.isdecimal() or int(text) > MOST_FD:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    return int(text)


def _microseconds(text: str) -> int:
    if not text.isdecimal() or int(text) > LONGEST_POLL:
        raise argparse.ArgumentTypeError(f"expected 0 to {LONGEST_POLL}, got {text!r}")
    return int(text)
