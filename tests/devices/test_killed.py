"""The small devices, killed at any step of their work."""

from __future__ import annotations

import math
from typing import Any

import pytest

from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import DMA_START, IRQ_DMA, IRQ_FACTORIAL, DmaCommand, Edu, Status
from bellwire.bundled.serial import Serial
from bellwire.testing import Guest
from killing import killed, succeed

MEMORY = 1 << 16


def through_a_kill(guest: Guest[Any], step: int, action: Any, **options: Any) -> Guest[Any]:
    """Do ``action``; at ``step`` the device is killed, and a successor goes on. The guest with the one that is left."""
    left = killed(guest, step, action)
    if left is None:
        return guest
    guest.close()
    return succeed(left, type(guest.device), **options)


@pytest.mark.parametrize("step", range(0, 120, 3))
def test_edu_computes_in_spite_of_it(step: int) -> None:
    guest = Guest(Edu, memory=MEMORY)
    guest.write(Edu.status, Status.IRQ_WHEN_DONE)
    guest.write(Edu.factorial, 5)
    guest = through_a_kill(guest, step, guest.advance)
    guest.advance()
    assert guest.read(Edu.factorial) == math.factorial(5)
    assert guest.read(Edu.status) == Status.IRQ_WHEN_DONE
    assert guest.read(Edu.irq_status) == IRQ_FACTORIAL
    assert guest.interrupts
    guest.close()


@pytest.mark.parametrize("step", range(0, 200, 5))
def test_edu_transfers_in_spite_of_it(step: int) -> None:
    guest = Guest(Edu, memory=MEMORY)
    guest.memory[0x1000:0x1010] = b"sixteen bytes..."
    command = DmaCommand.START | DmaCommand.INTERRUPT

    def transfer() -> None:
        guest.write(Edu.dma_command, command)
        guest.advance(0.2)

    guest.write(Edu.dma_source, 0x1000)
    guest.write(Edu.dma_destination, DMA_START + 64)
    guest.write(Edu.dma_count, 16)
    last = guest
    guest = through_a_kill(guest, step, transfer)
    if guest is not last and not guest.read(Edu.dma_command) and not guest.interrupts:
        guest.write(Edu.dma_command, command)  # the write had not been stored, so the client sends it again
    guest.advance(0.2)
    assert bytes(guest.device.buffer[64:80]) == b"sixteen bytes..."
    assert guest.read(Edu.dma_command) == DmaCommand.INTERRUPT
    assert guest.read(Edu.irq_status) == IRQ_DMA
    assert guest.interrupts
    guest.close()


@pytest.mark.parametrize("step", range(0, 60, 3))
def test_bell_counts_and_interrupts_in_spite_of_it(step: int) -> None:
    guest = Guest(Bell, memory=MEMORY)
    guest.write(Bell.irq_on_ring, 1)
    last = guest
    guest = through_a_kill(guest, step, lambda: last.ring(Bell.wildcard))
    if not guest.device.wildcard.rung:
        guest.ring(Bell.wildcard)  # the ring had not been heard
    assert guest.read(Bell.wildcard_count) == 1
    assert guest.interrupts
    guest.close()


@pytest.mark.parametrize("step", range(0, 120, 6))
def test_serial_sends_and_keeps_bytes_in_spite_of_it(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    def send(_: object, pieces: list[bytes]) -> int:
        sent.append(b"".join(pieces))
        return len(sent[-1])

    guest = Guest(Serial, memory=MEMORY)
    monkeypatch.setattr(type(guest.device.stream), "send", send)
    guest.device.receive(b"x")
    last = guest
    guest = through_a_kill(guest, step, lambda: last.write(Serial.data, 0x41))
    if guest is not last and not sent:
        guest.write(Serial.data, 0x41)  # the write had not been done, so the client sends it again
    assert set(b"".join(sent)) == {0x41}
    assert guest.read(Serial.data) == ord("x")
    guest.close()
