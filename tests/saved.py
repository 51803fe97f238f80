"""``pytest --saved``: save the device of each test's guest, and go on with another one, again and again.

Most tests reach a bundled device through a :class:`bellwire.testing.Guest`. With ``--saved``, before an access of the
guest, the device stands still and gives its state away; it is closed, and made anew with the same options; the new one
loads the state and goes on. That is what happens to a device in a live migration, in ``bellwire vmm --save`` and in
``--restore``, and the same code does it: :class:`bellwire.serve.migration.MigratingDevice`. So a test that passes says
that nothing the guest can see is lost: no register, interrupt, request or timer.

It happens before each of a test's first 100 accesses, and then ever more rarely: some tests make many thousands.

The new device is the same Python object, made by another call of ``__init__``, since tests hold references to it. What
the device does not own stays as it is: the peer of a stream, the other end of a network link, the content of a disk in
memory (which a real save refuses), what nvme would keep in a store. Where no other device could have what this one has,
the same one loads its own state: with filters in front of it, a back end behind it, or an open store.

A test that asserts what a restore may change has the mark ``unsaved``, with the reason, and is skipped. With the mark
``same_device``, the device is not made anew: the test holds a part of it, or has changed it behind its back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import pytest

from bellwire import StateError
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.serial import Serial
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.bundled.virtio_console import VirtioConsole
from bellwire.bundled.virtio_net import VirtioNet
from bellwire.device import PciDevice
from bellwire.filters import Stack
from bellwire.filters.told import tell_at_debug
from bellwire.model.core import Core
from bellwire.serve.backend import DeviceBackend
from bellwire.serve.migration import MigratingDevice
from bellwire.serve.standstill import Standstill
from bellwire.storage import Disk, MemoryDisk
from bellwire.stream import Stream
from bellwire.testing import Guest
from bellwire.vhost.device import VhostDevice
from bellwire.virtio import VirtioDevice

OFTEN = 100
"""A device is saved before each of so many accesses of a test."""
ANEW = 4
"""Each time of so many, another device goes on: that takes four times as long."""


def move(guest: Guest[Any], *, anew: bool = True) -> None:
    """Save the device of ``guest``, and go on: with another one, if that is wanted and can be. No time passes."""
    source = _movable(guest)
    source.hold()
    with patch.object(MemoryDisk, "check_snapshot", lambda _: None):  # the disk itself goes along
        data = source.save(last=True)
    if not (anew and _is_alone(guest)):
        source.load(data)
        source.go()
        return
    _make_anew(guest)
    target = _movable(guest)
    target.hold()
    target.load(data)
    target.go()


def _is_tried(device: PciDevice) -> bool:
    """Bundled devices, and those of tests that say what every virtio device does."""
    return type(device).__module__.startswith("bellwire.bundled.") or isinstance(device, VirtioDevice)


def is_due(access: int) -> bool:
    """Whether a device is saved before this access of a test: for 1 to 100, and then 128, 192, 256, 384 and so on."""
    last_bit = access & -access
    return access <= OFTEN or access in (last_bit, 3 * last_bit)


class _Still:
    """What a worker's loop does for a device that stands still. Nothing of a test's guest runs by itself."""

    def settle(self, seconds: float, finish: Callable[[], None]) -> None:
        finish()

    def stop(self) -> None:
        pass

    go = stop


def _movable(guest: Guest[Any]) -> MigratingDevice:
    """The device of ``guest``, as a worker would move it: without a session, and without a loop.

    The device does not get the results of its jobs, as if they took longer than the worker waits: they are done again.
    """
    core = guest.device.core
    session = SimpleNamespace(still_reader=None, still_writer=None, settle=core.finish_jobs, end_jobs=core.finish_jobs)
    return MigratingDevice(core, cast("DeviceBackend", session), cast("Standstill", _Still()), guest.filters)


def _is_alone(guest: Guest[Any]) -> bool:
    """Whether all that the device has is in its state, or can be handed to another one."""
    device = guest.device
    if any(True for _ in guest.filters):
        return False
    if isinstance(device, Nvme):
        controller = device.controller
        others = device.store.name or device.capacity or any(map(_is_written, controller.namespaces.disks))
        faults = controller.engine.interception
        return not (others or controller.self_test._kind or faults._judges or faults._stalls)
    return not (isinstance(device, VhostDevice) and device.plane is not None)


def _is_written(disk: Disk) -> bool:
    try:
        if isinstance(disk, MemoryDisk):
            disk.check_snapshot()
    except StateError:
        return True
    return False


def _make_anew(guest: Guest[Any]) -> None:
    """Close the device of ``guest``, and make another one of its class, with its options."""
    device, core = guest.device, guest.device.core
    kind, options = type(device), dict(core.options)
    replaced = {name: value for name, value in vars(device).items() if callable(getattr(kind, name, None))}

    def same(*arguments: Any) -> Core:
        Core.__init__(core, *arguments)
        return cast("Core", core)

    with ExitStack() as stack:
        core.forget()
        _set_aside(device, stack)
        device.close()
        core.close()
        vars(device).clear()
        vars(core).clear()
        with patch("bellwire.device.Core", same):
            kind.__init__(device, **options)
        vars(device).update(replaced)  # methods that the test has put in
        core.host = guest
        core.join(True)
        guest.filters = Stack(core)
        tell_at_debug(guest.filters)
        device.setup()
        core.reset()


def _set_aside(device: PciDevice, stack: ExitStack) -> None:
    """Take from the device what outlives it. The next one finds that where it would open it."""
    if isinstance(device, Nvme):
        store, serial = device.controller.store, device.controller.identity.serial
        record = store.record
        events, cycles = list(record.events), record.power_cycles
        stack.callback(lambda: setattr(record, "power_cycles", cycles))
        stack.callback(lambda: record.events.__setitem__(slice(None), events))  # not those of a power cycle
        stack.enter_context(patch("bellwire.bundled.nvme.device.Store", lambda *_: store))
        stack.enter_context(patch.object(Nvme, "made_up_serial", lambda _: serial))
    elif isinstance(device, Serial):
        stream, device.stream = device.stream, Stream()
        device.unwatch(stream.fileno())
        stack.enter_context(patch("bellwire.bundled.serial.device.open_stream", lambda _: stream))
    elif isinstance(device, VirtioConsole):
        streams = [port.stream for port in device.lines]
        for port in device.lines:
            device.watch_port(port, False)
            port.stream = Stream()
        stack.enter_context(patch("bellwire.bundled.virtio_console.device.open_stream", lambda _: streams.pop(0)))
    elif isinstance(device, VirtioNet):
        wire = device.wire
        stack.enter_context(patch.object(wire, "close", lambda: None))
        stack.enter_context(patch("bellwire.bundled.virtio_net.device.open_wire", lambda *_: wire))
    elif isinstance(device, VirtioBlk) and isinstance(device.disk, MemoryDisk):
        disk = device.disk
        stack.enter_context(patch.object(disk, "close", lambda: None))
        stack.enter_context(patch("bellwire.storage.kept.MemoryDisk", lambda *_, **__: disk))


class Saved:
    """The plugin. It counts the moves of each test, and the tests that had any."""

    def __init__(self) -> None:
        self._accesses = self._moves = 0
        self._anew = True
        self._tests: list[int] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip what a restore may change."""
        for item in items:
            mark = item.get_closest_marker("unsaved")
            if mark is not None:
                item.add_marker(pytest.mark.skip(reason=f"not with --saved: {mark.args[0]}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Move the devices of one test."""
        self._anew = item.get_closest_marker("same_device") is None
        self._accesses = self._moves = 0
        with ExitStack() as stack:
            for name in ("read", "write", "ring"):
                stack.enter_context(patch.object(Guest, name, self._after_a_move(getattr(Guest, name))))
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note how often its devices were moved."""
        report = yield
        if call.when == "teardown":
            report.user_properties.append(("moves", self._moves))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count it."""
        if report.when == "teardown":
            self._tests += [int(str(value)) for name, value in report.user_properties if name == "moves"]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say how many tests there were with a device that has moved."""
        moved = [count for count in self._tests if count]
        terminalreporter.write_line(
            f"in {len(moved)} of {len(self._tests)} tests a device was saved and restored, {sum(moved)} times in all"
        )

    def _after_a_move(self, access: Callable[..., Any]) -> Callable[..., Any]:
        def moved(guest: Guest[Any], *arguments: Any, **keywords: Any) -> Any:
            self._accesses += 1
            device = guest.device
            if is_due(self._accesses) and _is_tried(device) and not device.core.state.busy:
                move(guest, anew=self._anew and self._accesses % ANEW == 0)
                self._moves += 1
            return access(guest, *arguments, **keywords)

        return moved
