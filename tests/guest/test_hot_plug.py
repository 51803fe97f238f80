"""Devices that come and go while the machine runs: what docs/qemu.md says of ``device_add`` and ``device_del``."""

from __future__ import annotations

import contextlib
import functools
import json
import select
import signal
import time
from collections.abc import Callable

import pytest

from attached import PATIENCE, Device, Served
from machine import FIRST_SLOT, Machine
from qtest import Function
from test_io_fds import NATIVE_HOT_PLUG, PCI_EXPRESS, POWER_OFF, SLOT_CONTROL, gone

pytestmark = pytest.mark.guest


@pytest.fixture
def machine(drive: Callable[..., Machine]) -> Machine:
    """With an empty slot behind a root port, whose guest need not be asked before anything leaves it."""
    machine = drive(arguments=(*NATIVE_HOT_PLUG, "-device", "pcie-root-port,id=root,slot=1"))
    port = Function(machine, FIRST_SLOT)
    port.config_write(port.capability(PCI_EXPRESS) + SLOT_CONTROL, POWER_OFF, 2)
    return machine


def plug(machine: Machine, served: Served) -> None:
    machine.control.ask("device_add", bus="root", id="it", **json.loads(served.argument))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        select.select([], [], [], 0.01)


def test_a_device_without_msix_comes_and_goes(machine: Machine, serve: Callable[[Device], Served]) -> None:
    served = serve(Device("edu"))
    for times in range(1, 4):
        plug(machine, served)
        machine.control.ask("device_del", id="it")
        until(functools.partial(gone, served, times))
    assert machine.process.poll() is None


def test_a_device_with_msix_comes_and_takes_qemu_with_it(machine: Machine, serve: Callable[[Device], Served]) -> None:
    """A fault of QEMU 11.1.3's own. Where it is mended, this fails: then docs/qemu.md has a line too many."""
    served = serve(Device("bell"))
    plug(machine, served)
    with contextlib.suppress(AssertionError, OSError, ValueError):  # it may be gone before it answers
        machine.control.ask("device_del", id="it")
    assert machine.process.wait(PATIENCE) == -signal.SIGABRT
    until(lambda: "client gone" in served.log)  # and the device waits for its next client
