"""QEMU 10.2.2 without our patches as a client: its DMA messages have another layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attached import Device, Served
from machine import Machine
from test_client import ADDRESS, PROBE, RAM, RESULT, STORE, until
from vfio_user import Command

pytestmark = pytest.mark.guest

AT = RAM + 0x100
AROUND = range(AT - 32, AT + 64, 4)


@pytest.fixture
def store(
    old_drive: Callable[..., Machine], serve: Callable[[Device], Served]
) -> Callable[..., tuple[Machine, Served]]:
    """Have a device store a word at AT."""

    def store(*, shared: bool) -> tuple[Machine, Served]:
        served = serve(Device(PROBE))
        machine = old_drive(served, shared=shared)
        (probe,) = machine.functions
        for address in AROUND:
            machine.write(address, 0xA5A5_A5A5)
        probe.write(0, RESULT, 0x0DD_BA11)
        probe.write(0, ADDRESS, AT, 8)
        probe.write(0, STORE, 1)
        return machine, served

    return store


def test_dma_by_message_is_refused_before_a_byte_is_written_wrong(store: Callable[..., tuple[Machine, Served]]) -> None:
    machine, served = store(shared=False)
    until(lambda: "QEMU's old layout" in served.log)
    assert "share the memory" in served.log
    assert {machine.read(address) for address in AROUND} == {0xA5A5_A5A5}
    assert machine.functions[0].read(0, RESULT) == 0x0DD_BA11  # the device goes on
    assert served.tap.commands().count(Command.DMA_WRITE) == 1  # the probe, of no bytes


def test_with_shared_memory_it_works(store: Callable[..., tuple[Machine, Served]]) -> None:
    machine, served = store(shared=True)
    until(lambda: machine.read(AT) == 0x0DD_BA11)
    assert Command.DMA_WRITE not in served.tap.commands()


def test_write_multiple_is_not_agreed(store: Callable[..., tuple[Machine, Served]]) -> None:
    """QEMU 10.1 to 10.2 would hand every message to another thread."""
    _, served = store(shared=True)
    (reply,) = [seen for seen in served.tap.messages() if seen.command == Command.VERSION and seen.is_reply]
    assert b'"write_multiple": true' not in bytes(reply.start)
