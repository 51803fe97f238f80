"""Devices that come and go while the machine runs: what docs/qemu.md says of ``device_add`` and ``device_del``."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections.abc import Callable

import pytest

import silicon
from attached import PATIENCE, Device, Served, kill
from bellwired.guest.errors import MachineError
from crafted import Crafted, entries
from doorbells import gone, until
from machine import FIRST_SLOT, PCI_EXPRESS, ROOT_PORT, SLOT_CONTROL, Machine
from qtest import Function
from vfio_user import Command

pytestmark = pytest.mark.guest

COMMAND = 0x04
BUS_NUMBERS = 0x18  # primary, secondary and subordinate (PCI-to-PCI Bridge 1.2, §3.2.5)


@pytest.fixture
def machine(drive: Callable[..., Machine]) -> Machine:
    return prepared(drive)


def prepared(drive: Callable[..., Machine]) -> Machine:
    """With an empty slot behind a root port, whose guest need not be asked before anything leaves it."""
    machine = drive(arguments=ROOT_PORT)
    machine.power_off()
    return machine


def test_a_device_without_msix_comes_and_goes(machine: Machine, serve: Callable[[Device], Served]) -> None:
    served = serve(Device("edu"))
    for times in range(1, 4):
        machine.plug(served)
        machine.unplug()
        until(functools.partial(gone, served, times))
    assert machine.process.poll() is None


def test_a_device_with_msix_comes_and_takes_qemu_with_it(machine: Machine, serve: Callable[[Device], Served]) -> None:
    """A fault of QEMU 11.1.3's own. Where it is mended, this fails: then docs/qemu.md has a line too many."""
    served = serve(Device("bell"))
    machine.plug(served)
    with contextlib.suppress(MachineError):  # it may be gone before it answers
        machine.unplug()
    assert machine.process.wait(PATIENCE) == -signal.SIGABRT
    until(lambda: "client gone" in served.log)  # and the device waits for its next client


def test_a_dead_device_can_be_taken_out_and_its_slot_filled_again(
    machine: Machine, serve: Callable[[Device], Served]
) -> None:
    dead = serve(Device("edu"))
    machine.plug(dead)
    kill(dead.process)
    machine.unplug()
    machine.control.wait("DEVICE_DELETED", device="it")
    machine.plug(serve(Device("edu")))
    assert machine.process.poll() is None


def test_a_dead_device_with_msix_can_be_taken_out_of_the_patched_qemu(
    patched_drive: Callable[..., Machine], serve: Callable[[Device], Served]
) -> None:
    machine = prepared(patched_drive)
    dead = serve(Device("bell"))
    machine.plug(dead)
    kill(dead.process)
    machine.unplug()
    machine.control.wait("DEVICE_DELETED", device="it")
    assert machine.process.poll() is None


def cut_off(machine: Machine, server: Crafted) -> None:
    """The guest writes to the device, whose server ends before it has read the message."""
    server.leaves_at = Command.REGION_WRITE
    with contextlib.suppress(AssertionError):  # QEMU may be gone before it answers
        Function(machine, FIRST_SLOT).config_write(COMMAND, 0, 2)


def test_a_server_that_ends_with_a_message_unread_takes_stock_qemu_with_it(
    drive: Callable[..., Machine], craft: Callable[..., Crafted]
) -> None:
    """A fault of QEMU 11.1.3's own. Where it is mended, this fails: then docs/qemu.md has a line too many."""
    server = craft(entries(fds=()))
    machine = drive(server)
    cut_off(machine, server)
    assert machine.process.wait(PATIENCE) == -signal.SIGABRT


def test_the_patched_qemu_survives_a_server_that_ends_with_a_message_unread(
    patched_drive: Callable[..., Machine], craft: Callable[..., Crafted]
) -> None:
    server = craft(entries(fds=()))
    machine = patched_drive(server)
    cut_off(machine, server)
    assert Function(machine, FIRST_SLOT).config_read(COMMAND, 2) == 0xFFFF
    assert machine.process.poll() is None


def test_several_functions_are_plugged_in_with_function_0_last(
    machine: Machine, serve: Callable[[Device], Served]
) -> None:
    for number in (1, 0):
        served = serve(Device(f"{silicon.__file__}:{number}", qemu={"addr": f"0.{number}", "multifunction": True}))
        machine.control.ask("device_add", bus="root", id=f"function{number}", **json.loads(served.argument))
    port = Function(machine, FIRST_SLOT)
    port.config_write(BUS_NUMBERS, 0x01_01_00, 4)
    port.config_write(port.capability(PCI_EXPRESS) + SLOT_CONTROL, 0, 2)  # power on
    for number, device in enumerate((silicon.ENGINE, silicon.CONSOLE)):
        function = Function(machine, 0, bus=1, number=number)
        assert function.config_read(0) == device << 16 | silicon.VENDOR
