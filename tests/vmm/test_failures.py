"""A device that fails: its guest reads ones, loses writes, and goes on."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.vmm import Machine
from vfio_user import Client, VfioUserError
from vmm import toy
from vmm.program import Outcome, Program, bar, execute
from vmm.toy import Toy

pytestmark = pytest.mark.kvm

Plug = Callable[[Toy], ProxyDevice]
Run = Callable[[Program], Outcome]

COMMAND = 0x04
ONES = 0xFFFF_FFFF
ALL = ("wildcard", "datamatch", "value", "acked", "pio")


class Mortal(Toy):
    """Dies when a write goes to offset 0x30 of BAR0, and refuses what goes to 0x34."""

    sock: socket.socket

    def region_write(self, index: int, offset: int, data: memoryview) -> None:
        if (index, offset) == (0, 0x30):
            self.hang_up()
            self.sock.shutdown(socket.SHUT_RDWR)
        elif (index, offset) == (0, 0x34):
            raise VfioUserError("no")
        else:
            super().region_write(index, offset, data)

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if (index, offset) == (0, 0x34):
            raise VfioUserError("no")
        return super().region_read(index, offset, count)

    def serve(self, sock: socket.socket) -> None:
        self.sock = sock
        super().serve(sock)


def test_a_device_that_dies_reads_as_ones_and_the_guest_goes_on(
    plug: Plug, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    device = plug(Mortal(*ALL))
    control, bells, ports = (bar(device, number) for number in range(3))
    program = Program().load(control).store(control + 0x30, 1).load(control)
    program.store(bells + toy.WILDCARD, 0).store(bells + toy.VALUE, 1).store(bells + toy.SCRATCH, 1)
    program.load(bells + toy.SCRATCH, 1).out(ports, 1).in_(ports + 4).read_config(device.slot, 0)
    program.config(device.slot, COMMAND, 0, 2).config(device.slot, COMMAND, 3, 2).config(device.slot, 0x10, 0)
    with caplog.at_level(logging.WARNING):
        assert run(program).values == (0xBE11_0001, ONES, 0xFF, ONES, ONES)
    assert [record.getMessage() for record in caplog.records if "gone" in record.message]
    assert device.peer.lost


def test_a_device_that_is_dead_can_be_unplugged_and_its_addresses_used_again(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    device = machine.plug(serve(Mortal(*ALL)))
    control = bar(device, 0)
    run(Program().store(control + 0x30, 1).load(control))
    machine.unplug(device)
    machine.plug(serve(Toy()))
    assert run(Program().load(control)).values == (0xBE11_0001,)


def test_a_machine_with_a_dead_device_can_load_again(plug: Plug, run: Run) -> None:
    device = plug(Mortal(*ALL))
    control = bar(device, 0)
    run(Program().store(control + 0x30, 1).load(control))
    assert run(Program().load(control)).values == (ONES,)


def test_what_the_device_refuses_reads_as_ones_and_is_counted(plug: Plug, run: Run) -> None:
    device = plug(Mortal())
    control = bar(device, 0)
    refused = device.peer.refused
    assert run(Program().store(control + 0x34, 1).load(control + 0x34).load(control)).values == (ONES, 0xBE11_0001)
    assert device.peer.refused == refused + 1
    assert not device.peer.lost


class Silent(Toy):
    """Does not answer reads of offset 0x38 until the test is over."""

    def __init__(self, until: socket.socket) -> None:
        super().__init__()
        self.until = until

    def region_read(self, index: int, offset: int, count: int) -> bytes:
        if (index, offset) == (0, 0x38):
            self.until.recv(1)
        return super().region_read(index, offset, count)


def test_a_device_that_does_not_answer_in_time_is_given_up(
    machine: Machine, serve: Callable[[Toy], Client], run: Run
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        client = serve(Silent(theirs))
        client._timeout = 0.2
        device = machine.plug(client)
        control = bar(device, 0)
        outcome = run(Program().load(control + 0x38).load(control).load(control))
        ours.send(b".")
    assert outcome.values == (ONES, ONES, ONES)
    assert outcome.run.seconds < 2
    assert "nothing came" in device.peer.lost


def test_a_relay_that_is_not_answered_is_given_up_for_messages(
    relaying: None, machine: Machine, serve: Callable[[Toy], Client], tmp_path: Path
) -> None:
    served = Toy("acked")
    device = machine.plug(serve(served))
    (relay,) = device._registrations._relays.values()
    assert relay._client is not None
    relay._client._timeout = 0.2
    assert served.wire is not None
    served.unwatch(served.wire.fileno())
    at = bar(device, 1) + toy.SCRATCH
    outcome = execute(machine, Program().store(at, 1).load(at), tmp_path)
    assert outcome.run.ok
    assert outcome.values == (1,)
    assert [each.mechanism for each in device.routes()] == ["region_write"]
