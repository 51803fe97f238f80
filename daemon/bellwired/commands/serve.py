"""What ``bellwire run`` does for one device: sockets, a parent if one is wanted, and the process that serves."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

from bellwire import BellwireError, PciDevice
from bellwire.filters import Filter
from bellwire.recording import check_filter
from bellwired import settings, terminal
from bellwired.box.enter import Box, why_refused
from bellwired.commands import attach, capture, debugger, fault, in_a_box, parts, replay
from bellwired.commands.ends import end_after
from bellwired.commands.made import make
from bellwired.commands.reloading import Reloading
from bellwired.commands.summary import print_reports, print_summary, print_written
from bellwired.errors import CommandError
from bellwired.filtering import all_made, tables
from bellwired.find import find_device
from bellwired.listen import Listener, activated, default_path, inherited
from bellwired.logs import TIME, stderr_is_the_journal, to_stderr_or_journal
from bellwired.manager.foreground import Desk, open_control
from bellwired.manager.parent import Parent
from bellwired.places import Places
from bellwired.sources import is_path, open_named
from bellwired.workers.captures import TIMELINE
from bellwired.workers.code import find_left, why_left
from bellwired.workers.process import allow_many_files
from bellwired.workers.relay import Relay
from bellwired.workers.ward import Ward
from bellwired.workers.wire import MOVED
from bellwired.workers.worker import Again, Serving, mark_trouble
from vfio_user import dialect

log = logging.getLogger("bellwire")
ACTIVATED = "systemd"
WHOLE_LIFE = ("debug", "capture", "timeline", "record")
"""Flags for something that lives as long as the process, and cannot be continued by another one."""


def serve(arguments: argparse.Namespace, device: type[PciDevice], part: parts.Part | None = None) -> int:
    """Serve one device, which may be a function of several: ``part``. Returns the exit status.

    That is negative for a signal that has ended the process which served.
    """
    name = device.name if arguments.name is None else arguments.name
    restarts = _restarts(arguments)
    make(device, arguments.options, arguments.device).core.close()  # what is wrong with it is said before all else
    wanted = tables(arguments.filters) + fault.wanted_by(arguments.faults, device)
    for each in all_made(wanted, device):
        if arguments.record is not None:
            check_filter(device, each)
    allow_many_files()  # an eventfd for each of 2048 vectors is more than the usual 1024
    with ExitStack() as stack:
        sockets, address = _sockets(arguments, name, stack)
        _log_to(arguments, name, part, threaded=not restarts)
        control = _control(arguments, name)
        if control is not None:
            stack.callback(control.close)
        place = Place(sockets, address, control)
        if not restarts:
            return _serve(arguments, device, part, name, place, wanted, stack.pop_all())
        parent = Parent(
            name,
            hang_timeout=arguments.hang_timeout,
            limit=arguments.restart_limit,
            hidden=not arguments.no_sandbox,
            edited=arguments.reload,
        )
        ward = parent.run(arguments.ready_fd if part is None else None)
        if isinstance(ward, Ward):
            end_after(functools.partial(_serve, arguments, device, part, name, place, wanted, ExitStack(), ward))
        return ward


class Place(NamedTuple):
    """Where a device is served: the source of clients for :class:`Serving`, its description, the control socket."""

    sockets: dict[str, Any]
    address: str
    control: Listener | None


def _serve(
    arguments: argparse.Namespace,
    device: type[PciDevice],
    part: parts.Part | None,
    name: str,
    place: Place,
    wanted: settings.Filters,
    sockets: ExitStack,
    ward: Ward | None = None,
) -> int:
    """Serve in this process. ``sockets`` has what closes them, unless a parent does."""
    if ward is not None:
        _log_to(arguments, name, part)
    instance, failed = _make(arguments, device, ward)
    first = ward is None or not ward.number
    with ExitStack() as last, sockets, ExitStack() as stack:
        debugger.install(debugging=arguments.debug, stopping=ward.debugged if ward else lambda: None)
        # It runs a machine of its own, which a boxed process may not.
        accelerated_by = attach.accelerators() if first and part is None and _announces(arguments) else []
        captures = capture.asked(arguments, stack)
        recording = [] if arguments.record is None else [replay.recorder(arguments, instance, stack)]
        box = _box(arguments, instance, name, place.control, ward, last)
        if failed is not None and ward is not None:
            instance = _as_left(arguments, ward, instance, failed)
        wanted, filters = _filters(wanted, ward, type(instance))
        filters += recording
        about = settings.Device(
            device=arguments.device, io_fd_entry=arguments.io_fd_entry, dialect=arguments.dialect, filters=wanted
        )
        desk = stack.enter_context(Desk(name, about, place.address, place.control, box, ward))
        relay = Relay(desk.channel)
        log.root.addHandler(relay)
        stack.callback(log.root.removeHandler, relay)
        serving = Serving(
            instance,
            desk.channel,
            **place.sockets,
            dialect=dialect(arguments.dialect, arguments.io_fd_entry),
            busy_poll=arguments.busy_poll,
            max_maps=about.max_maps,
            hello_timeout=about.hello_timeout,
            reporter=debugger.Debugging() if arguments.debug else None,
            managed=False,
            filters=filters,
            ledger=ward.ledger if ward else None,
            estate=ward.estate if ward else None,
            name=name,
            again=_again(arguments) if arguments.reload else None,
        )
        if ward is not None:
            ward.join(serving.loop, serving.stop)
        if arguments.reload:
            Reloading(serving).begin(seen=ward is not None and ward.as_started)
        _end_on_signals(serving, quiet=ward is not None)

        def ready() -> None:
            if ward is not None:
                ward.ready()
            if part is not None and first:
                part.tell_ready()
            elif first:
                _announce(arguments, name, accelerated_by, place.control)

        begun = time.monotonic()
        try:
            serving.run(ready, captures, ward.taking_over if ward is not None else lambda: None)
        except BellwireError as error:
            if arguments.debug or arguments.no_sandbox or not why_refused(error):
                raise
            hint = "perhaps its box refuses that: name the file or stream in an option, or run it with --no-sandbox"
            raise CommandError(str(error), hint) from error
        finally:
            over = serving.stopping and not serving.left
            if ward is not None and over:
                ward.over()
            if log.isEnabledFor(logging.INFO) and (ward is None or over):
                print_summary(name, serving.device, time.monotonic() - begun)
                for each in recording:
                    print_written("recording", arguments.record, each)
                for form, written in serving.written.items():
                    what = "timeline" if form == TIMELINE else "capture"
                    print_written(what, getattr(arguments, what), written)
        if log.isEnabledFor(logging.INFO) and over:
            print_reports(filters)
    return MOVED if serving.left else 0


def _restarts(arguments: argparse.Namespace) -> bool:
    """Whether another process shall follow one that has died."""
    alone = next((flag for flag in WHOLE_LIFE if getattr(arguments, flag)), "")
    if arguments.restart and alone:
        raise CommandError(f"--restart does not go with --{alone}", "what that shows ends with the process")
    if alone or arguments.restart is False:
        return False
    # A fork copies one thread. A debugger, or a device's file, may have started others.
    if threading.active_count() > 1 or sys.gettrace() is not None:
        log.warning("--no-restart: a debugger looks at this process, or the device's file has started threads")
        return False
    return True


def _make(
    arguments: argparse.Namespace, device: type[PciDevice], ward: Ward | None
) -> tuple[PciDevice, Exception | None]:
    """The device, as its class was when the command was started. With --reload, a successor has the newest code.

    If that cannot be run, the error comes, too.
    """
    failed: Exception | None = None
    if ward is not None and arguments.reload and ward.number:
        try:
            if ward.as_started:
                raise CommandError(why_left(ward.estate))
            return _again(arguments)({}), None
        except Exception as error:  # noqa: BLE001 of the user's file
            failed = error
    return make(device, arguments.options, arguments.device), failed


def _as_left(arguments: argparse.Namespace, ward: Ward, first: PciDevice, error: Exception) -> PciDevice:
    """The device of the code that the process before has left, or else the ``first`` one.

    Call it in the box: that process was in one, and a guest may have taken it over.
    """
    try:
        find, words = find_left(arguments.device, ward.estate, error, open_named)
        found = make(find(), arguments.options, arguments.device)
    except Exception:  # noqa: BLE001 of the user's file, as it was
        log.error("its newest code cannot be run, so it has that of the command's start: %s", error)
        return first
    finally:
        if ward.estate is not None:
            ward.estate.older = True
    log.error("%s", words)
    first.core.close()
    return found


def _filters(
    wanted: settings.Filters, ward: Ward | None, device: type[PciDevice]
) -> tuple[settings.Filters, list[Filter]]:
    """The filters that the process before had, as tables and made; if it had no others, those of the command line.

    Call it in the box: that process has told them, and a guest may have taken it over.
    """
    if ward is not None and ward.filters is not None:
        try:
            return ward.filters, all_made(ward.filters, device)
        except BellwireError as error:
            log.error("it has the filters of the command's start again: %s", error)
    return wanted, all_made(wanted, device)


def _again(arguments: argparse.Namespace) -> Again:
    """Makes the device from its file as it is then: the box around it lets it read the folder."""
    if not is_path(arguments.device.partition(":")[0]):
        raise CommandError(f"--reload: {arguments.device} is not a file", "give the path of a device's file")
    return lambda _: make(find_device(arguments.device), arguments.options, arguments.device)


def _box(
    arguments: argparse.Namespace,
    instance: PciDevice,
    name: str,
    control: Listener | None,
    ward: Ward | None,
    last: ExitStack,
) -> Box:
    if arguments.debug or arguments.no_sandbox:
        return in_a_box.none("--debug" if arguments.debug else "--no-sandbox")
    sockets = [] if arguments.fd is not None else [(arguments.socket_path or default_path(name)).absolute()]
    sockets += [control.path.absolute()] if control is not None else []
    under, succeeds = (0, False) if ward is None else (os.getppid(), ward.estate is not None)
    return in_a_box.close(instance, arguments.device, sockets, last, under=under, succeeds=succeeds)


def _log_to(arguments: argparse.Namespace, name: str, part: parts.Part | None, *, threaded: bool = True) -> None:
    """Set up logging. In the journal every entry names the device, and :class:`Desk` tells of clients.

    On a terminal an entry names a function of several. A process that forks must not be ``threaded``.
    """
    level = arguments.log_level
    if not stderr_is_the_journal():
        to_stderr_or_journal(level, clock=TIME, device=name if part is not None else "", threaded=threaded)
        return
    to_stderr_or_journal(level, device=name, threaded=threaded)
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
        listener = Listener(path)
        stack.callback(listener.close)
        return {"listener": listener.socket}, str(path.absolute())
    given, listens = activated() if arguments.fd == ACTIVATED else inherited(arguments.fd)
    stack.enter_context(given)
    return {"listener" if listens else "connection": given}, given.getsockname() or f"--fd {arguments.fd}"


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


def _end_on_signals(serving: Serving, *, quiet: bool) -> None:
    """Install the signal handlers. Call it before the device is visible: no signal may find Python's own handler.

    ``quiet``: a parent gets the signals, too, and says so.
    """

    def end(number: int, _: object) -> None:
        for again in (signal.SIGTERM, signal.SIGINT):  # for a hook that hangs
            signal.signal(again, signal.SIG_DFL)
        if not quiet:
            log.info("%s: stopping", signal.Signals(number).name)
        serving.stop()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
