"""One Linux guest under QEMU, which runs commands for the host.

::

    with Machine.start(Plan(kernel, qemu, devices=[Plugged(path)], busybox=busybox)) as machine:
        machine.insert(Path("copier.ko"))
        done = machine.run("cat /proc/interrupts", check=True)

Commands go through a channel of their own (:mod:`bellwired.guest.channel`); the console is the kernel's alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bellwired.guest import board, roots
from bellwired.guest.channel import Channel, Running, Sink
from bellwired.guest.console import Console
from bellwired.guest.decode import Decoder
from bellwired.guest.errors import CommandFailed, CommandTimeout, MachineError, ModuleInUse
from bellwired.guest.frames import Kind
from bellwired.guest.hardware import Hardware
from bellwired.guest.plan import Plan, Plugged
from bellwired.guest.reports import Report
from bellwired.signals import signal_name

MOST_OUTPUT = 64 << 20
"""Bytes of a command's output that :meth:`Machine.run` keeps, of each stream."""
LAST_WORDS = 5.0  # seconds for a killed command to end, and for the guest to write its files
OOPS_ENDS = b"---[ end trace "
SHOWN = 2000  # characters of a command's standard error in an error

Command = str | Sequence[str]
"""A line for ``/bin/sh -c``, or the words of a command."""


@dataclass(frozen=True)
class Finished:
    """How a command ended: ``status`` as a shell has it (128 + the signal that ended it), and what it wrote."""

    status: int
    signal: int | None
    stdout: bytes
    stderr: bytes


class Machine:
    """A guest that has booted. Use it as a context manager, or :meth:`close` it."""

    def __init__(self, plan: Plan, hardware: Hardware, channel: Channel) -> None:
        self.plan = plan
        self._inserted: list[Path] = []
        self.console: Console = hardware.console
        self._hardware = hardware
        self._channel = channel
        self._control = threading.Lock()

    @classmethod
    def start(cls, plan: Plan) -> Machine:
        """Boot a guest. Returns when it takes commands; a MachineError says why it does not."""
        with contextlib.ExitStack() as stack:
            hardware = Hardware(plan)
            channel = stack.enter_context(Channel(hardware.channel, hardware.why_lost))
            stack.callback(hardware.close)  # first: a channel that closes before QEMU waits for QEMU's end
            machine = cls(plan, hardware, channel)
            machine._wait_until_ready()
            stack.pop_all()
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def run(
        self,
        command: Command,
        *,
        input: bytes = b"",
        timeout: float | None = None,
        check: bool = False,
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run a command to its end. Several threads may do so at once.

        Raises a CommandTimeout after ``timeout`` seconds (the command is killed), with ``check`` a CommandFailed for
        another status than 0, and a MachineError if the guest ends meanwhile, or a stream exceeds MOST_OUTPUT.
        """
        output, errors = _Kept(), _Kept()
        words = roots.words(command)
        running = self.begin(words, output.take, errors.take, folder=folder, environment=environment)
        output.full = errors.full = lambda: running.signal(signal.SIGKILL)
        status = self._wait_for(running, input, timeout, _shown(command), lambda: errors.shown)
        if output.size > MOST_OUTPUT or errors.size > MOST_OUTPUT:
            raise MachineError(f"{_shown(command)} wrote more than {MOST_OUTPUT >> 20} MiB, and was killed")
        number = -status if status < 0 else None
        done = Finished(128 + number if number else status, number, output.data, errors.data)
        if check and done.status:
            how = f"was ended by {signal_name(number)}" if number else f"ended with status {done.status}"
            raise CommandFailed(f"{_shown(command)} {how}{errors.shown or output.shown}", console=self.console.tail())
        return done

    def begin(
        self,
        words: Sequence[str],
        output: Sink,
        errors: Sink,
        *,
        size: tuple[int, int] | None = None,
        folder: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start a command; the sinks get what it writes. ``size`` gives it a terminal of so many rows and columns."""
        return self._channel.start(
            words,
            output,
            errors,
            folder=folder or roots.folder(self.plan),
            environment={**roots.environment(self.plan), **(environment or {})},
            size=size,
        )

    def load(self, module: str, *parameters: str, timeout: float | None = None) -> None:
        """Load a kernel module: a file of the host's, or by its name one of the kernel's own with all that it needs.

        See :meth:`insert`.
        """
        if "/" in module or module.endswith(".ko"):
            self.insert(Path(module), *parameters, timeout=timeout)
            return
        wanted = module.replace("-", "_")
        kernel = self.plan.kernel
        for name, content in kernel.load_order([module]).items():  # none if it is built in
            self._insert(name, content, parameters if name == wanted else (), timeout)
            if file := kernel.file(name):
                self._inserted.append(file)

    def insert(self, module: Path, *parameters: str, timeout: float | None = None) -> None:
        """Load a kernel module, a file of the host's. A MachineError has the kernel's reason.

        Its ``init`` and the probes that it leads to may take ``timeout`` seconds, by default as many as a boot may
        take. Then loading is given up, with a CommandTimeout.
        """
        try:
            content = module.read_bytes()
        except OSError as error:
            raise MachineError(f"{module}: {error.strerror}") from None
        self._insert(str(module), content, parameters, timeout)
        self._inserted.append(module)

    def _insert(self, name: str, content: bytes, parameters: Sequence[str], timeout: float | None) -> None:
        number = self.tool(["insmod", *parameters], content, timeout=timeout, what=f"loading {name}")
        if number and not (number == errno.EEXIST and not name.endswith(".ko")):
            raise self._error(f"{name}: cannot be loaded: {os.strerror(number)}", "the guest's console may say more")

    @property
    def reports(self) -> list[Report]:
        """What the guest's kernel has reported so far: oopses, warnings, hangs (:mod:`bellwired.guest.reports`)."""
        return self._hardware.watcher.reports

    def decoded(self, report: Report) -> str:
        """A report's text with the lines of source of the addresses in it, as far as symbols are at hand.

        They are in the kernel's build tree, and in the modules that were loaded from files with debug information.
        """
        folders = [module.parent for module in self._inserted]
        vmlinux = self.plan.kernel.vmlinux
        if vmlinux:
            folders.append(vmlinux.parent)
        return Decoder(vmlinux, self._inserted, folders).decode(report.text)

    def give_up(self, why: str) -> None:
        """Wait for the guest no longer: a MachineError is raised in all who wait for it, and in all later calls."""
        self._channel.fail(self._error(why))

    def remove(self, name: str, timeout: float | None = None) -> None:
        """Unload a kernel module. Raises a ModuleInUse, and a CommandTimeout as :meth:`insert` does."""
        number = self.tool(["rmmod", name.replace("-", "_")], timeout=timeout, what=f"unloading {name}")
        if number == errno.EAGAIN:  # delete_module(2)
            raise ModuleInUse(f"the module {name} cannot be unloaded: it is in use", console=self.console.tail())
        if number:
            raise self._error(f"the module {name} cannot be unloaded: {os.strerror(number)}")

    def plug(self, device: Plugged, port: int = 0) -> None:
        """Plug a device in behind a root port, while the guest runs. It takes a name: ``device.id``."""
        with self._control:
            self._hardware.control.ask("device_add", bus=f"{board.ROOT_PORT}{port}", **device.arguments())

    def unplug(self, id: str, timeout: float = 30.0) -> None:
        """Pull a device out. Returns when the guest has let it go."""
        with self._control:
            self._hardware.control.ask("device_del", id=id)
            self._hardware.control.wait("DEVICE_DELETED", timeout, device=id)

    def reboot(self) -> None:
        """Start the guest's kernel again. Its devices stay plugged in, and QEMU resets them.

        Returns when it takes commands. Modules that were loaded, and what was written to files that are not shared, are
        gone. No other thread may run commands meanwhile. Raises a MachineError if the guest does not come back.
        """
        with self._control:
            control = self._hardware.control
            control.ask("set-action", reboot="reset")
            self._channel.expect_another()
            self._channel.start(["bellwire-agent", "reboot"], _ignored, _ignored, own_program=True)
            self._wait_until_ready()  # firmware may reset the machine once more
            control.ask("set-action", reboot="shutdown")

    @property
    def said(self) -> str:
        """What QEMU and the servers of folders have printed: complaints."""
        return self._hardware.said

    def close(self) -> None:
        """End the guest. What it wrote to shared folders is written first, if it still answers."""
        if any(share.writable for share in self.plan.shares):
            with contextlib.suppress(MachineError):
                self._channel.ask(Kind.SYNC).wait(LAST_WORDS)
        self._hardware.close()
        self._channel.close()

    def tool(self, words: Sequence[str], input: bytes = b"", *, timeout: float | None = None, what: str = "") -> int:
        """Run one of the agent's own tools (see agent/tools.c). 0, or an errno.

        Raises a CommandTimeout after ``timeout`` seconds, by default after as many as a boot may take, and a
        MachineError if a signal ends it, as an oops of the kernel does. Both call it ``what``.
        """
        what = what or " ".join(words)
        before = len(self.reports)
        running = self._channel.start(["bellwire-agent", *words], _ignored, _ignored, own_program=True)
        status = self._wait_for(running, input, self.plan.boot_time if timeout is None else timeout, what)
        if status >= 0:
            return status
        self.console.wait_for(OOPS_ENDS, LAST_WORDS)  # it comes by another way than the status
        reports = self.reports[before:]
        why = f"the guest's kernel reports: {reports[0].title}" if reports else "the guest's console may say more"
        raise self._error(f"{what} was ended by {signal_name(-status)}: {why}")

    def switch_root(self, folder: str) -> int:
        """Make a folder of the guest the root of all later commands. 0, or an errno."""
        running = self._channel.ask(Kind.SWITCH, folder.encode())
        return running.wait() or 0

    def _wait_until_ready(self) -> None:
        """Wait until the guest has booted, and give it its files."""
        if not self._channel.wait_until_ready(self.plan.boot_time):
            said = f"QEMU has said: {self.said}" if self.said else ""
            raise self._error(f"the guest takes no commands after {self.plan.boot_time:.0f} s", said)
        roots.prepare(self, self._hardware.folders)

    def _wait_for(
        self, running: Running, data: bytes, timeout: float | None, what: str, said: Callable[[], str] = str
    ) -> int:
        """Give a command its input and wait for its end. Its status; it is killed if that takes too long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        if running.feed(data, timeout):
            running.end_input()
            status = running.wait(None if deadline is None else deadline - time.monotonic())
            if status is not None:
                return status
        running.kill()
        hangs = "" if running.wait(LAST_WORDS) is not None else ", and cannot be killed: the guest hangs"
        raise CommandTimeout(f"{what} has not ended after {timeout:g} s{hangs}{said()}", console=self.console.tail())

    def _error(self, message: str, hint: str = "") -> MachineError:
        return MachineError(message, hint, console=self.console.tail())


class _Kept:
    """What a command writes, up to a limit."""

    def __init__(self) -> None:
        self.size = 0
        self.full: Callable[[], None] = lambda: None
        self._pieces: list[bytes] = []

    def take(self, data: bytes) -> None:
        self.size += len(data)
        if self.size <= MOST_OUTPUT:
            self._pieces.append(data)
        else:
            self.full()

    @property
    def data(self) -> bytes:
        return b"".join(self._pieces)

    @property
    def shown(self) -> str:
        text = self.data.decode(errors="replace").strip()
        return f":\n{text[-SHOWN:]}" if text else ""


def _shown(command: Command) -> str:
    text = command if isinstance(command, str) else " ".join(command)
    return text if len(text) < 80 else f"{text[:80]}..."


def _ignored(_: bytes) -> None:
    pass
