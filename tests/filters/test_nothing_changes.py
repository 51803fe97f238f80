"""Filters that do nothing change nothing: random sessions with them and without give the same results."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import GuestError, PciDevice
from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import DMA_START, Edu
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.bundled.serial import Serial
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.filters import Filter
from bellwire.filters.filter import METHODS
from bellwire.testing import Guest
from bellwire.virtio import Feature
from filters.copier import Copier
from nvme.driver import Driver as NvmeDriver
from nvme.driver import TestMachine, transfer
from virtio.conftest import KINDS
from virtio.driver import Driver
from virtio.echo import Echo
from virtio.test_virtio_fuzz import buffer, nonsense, start

MEMORY = 1 << 20
Session = Callable[[list[Filter], random.Random], object]


class Nothing(Filter):
    """Takes part in every event, and does nothing. What it would raise goes to the test."""

    strict = True


for method in METHODS:
    setattr(Nothing, method, lambda self, event: None)


class Patient(Nothing):
    """The same, by way of the queue of events that may wait."""

    delays = True


def access(guest: Guest[Any], chance: random.Random) -> int | None:
    """One thing that a guest may do; the value of a read."""
    device: PciDevice = guest.device
    plan = chance.choice(list(device.layout.bars.values()))
    item = chance.choice(plan.placed)
    size = chance.choice([1, 2, 4, 8, min(8, item.size)])
    offset = max(0, min(plan.bar.size - size, item.offset + chance.choice([0, 0, 0, 0, -1, 1, 4])))
    value = chance.choice(
        [0, 1, 3, chance.randrange(64), chance.getrandbits(8 * size), 0x1000 * chance.randrange(300), DMA_START]
    )
    match chance.randrange(20):
        case 0:
            return guest.config_read(chance.randrange(device.core.config.size - 4), 4)
        case 1:
            guest.config_write(chance.choice([4, 6, 0x3C]), chance.choice([6, 7, 0x406]), 2)
        case 2 | 3:
            guest.advance(chance.choice([0, 0.001, 0.2]))
        case 4:
            guest.reset()
            guest.enable()
        case 5 | 6 if device.layout.doorbells:
            bell = chance.choice(device.layout.doorbells)
            guest.ring(bell, bell.values[0] if bell.values else value)
        case 7 | 8 | 9 | 10 | 11:
            return guest.read(plan.bar.index, offset, size)
        case _:
            guest.write(plan.bar.index, value, offset=offset, size=size)
    return None


def tried(work: Callable[[], object]) -> object:
    """What comes of it: a GuestError too, by its kind and its text."""
    try:
        return work()
    except GuestError as error:
        return type(error).__name__, str(error)


def state(guest: Guest[Any]) -> tuple[object, ...]:
    """Everything that a guest can tell a device by at the end."""
    guest.advance(1)
    return guest.interrupts, guest.line, guest.snapshot(), bytes(guest.memory)


def of_registers(kind: type[PciDevice], **options: Any) -> Session:
    """A session of accesses to registers and rings, with DMA where they cause it."""

    def session(filters: list[Filter], chance: random.Random) -> object:
        with Guest(kind, memory=MEMORY, filters=filters, **options) as guest:
            guest.memory[:] = random.Random(1).randbytes(MEMORY)
            seen = [tried(lambda: access(guest, chance)) for _ in range(80)]
            return seen, tried(lambda: state(guest))

    return session


def of_rings(kind: type[PciDevice], ring: str, **options: Any) -> Session:
    """A session of buffers, most of them good, in the rings of a virtio device.

    Memory outside the buffers that come back is not compared: a device that breaks has perhaps written to others.
    """

    def session(filters: list[Filter], chance: random.Random) -> object:
        with Driver(kind, memory=MEMORY, filters=filters, **options) as driver:
            start(driver, KINDS[ring] | {Feature.INDIRECT_DESC}, chance)
            seen: list[object] = []
            for _ in range(40):
                queue = chance.choice(list(driver.queues.values()))
                with contextlib.suppress(IndexError, KeyError):  # the driver's own
                    chance.choices([buffer, nonsense], [30, 1])[0](queue, chance)
                    if chance.random() < 0.6:
                        seen.append(isinstance(tried(partial(driver.notify, queue)), tuple))
                    driver.guest.advance(0.01)
                    seen.append(queue.answers())
            return seen, state(driver.guest)[:-1]

    return session


def of_commands(filters: list[Filter], chance: random.Random) -> object:
    """A session of reads and writes of an nvme disk. A filter of DMA makes it copy, which ends in another turn."""
    with Guest(Nvme, memory=4 << 20, filters=filters, size=MEMORY, serial="TEST0001") as guest:
        driver = NvmeDriver(TestMachine(guest))
        driver.enable()
        queues = driver.create_queues()
        data = driver.allocate(16 * 4096)
        driver.memory[data : data + 16 * 4096] = random.Random(2).randbytes(16 * 4096)
        seen: list[object] = [driver.identify(1)]
        for _ in range(12):
            opcode = chance.choice([IoOpcode.READ, IoOpcode.WRITE])
            page, count = data + 4096 * chance.randrange(8), chance.choice([1, 8, 9, 40])
            done = transfer(queues, opcode, page, chance.choice([0, 1, 64, 2040]), count)
            seen.append((done.status, done.sq_head, bytes(driver.memory[data : data + 16 * 4096])))
        return seen, guest.interrupts


SESSIONS: dict[str, Session] = {
    "copier": of_registers(Copier),
    "bell": of_registers(Bell),
    "edu": of_registers(Edu),
    "serial": of_registers(Serial, backend="null"),
    "nvme registers": of_registers(Nvme, size=MEMORY, serial="TEST0001"),
    "nvme": of_commands,
    "echo split": of_rings(Echo, "split-event"),
    "echo packed": of_rings(Echo, "packed-event"),
    "virtio-blk split": of_rings(VirtioBlk, "split", size=MEMORY),
    "virtio-blk packed": of_rings(VirtioBlk, "packed", size=MEMORY),
}


@pytest.mark.slow  # ten devices, eight sessions of each
@pytest.mark.parametrize("name", SESSIONS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_filters_that_do_nothing_change_nothing(name: str, seed: int) -> None:
    session = SESSIONS[name]
    without = session([], random.Random(seed))
    assert session([Nothing(), Patient()], random.Random(seed)) == without
