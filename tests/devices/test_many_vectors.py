"""2048 MSI-X vectors: the table, the pending bits, and an eventfd for each, in messages of a few."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwire import Bar, DeclarationError, MsiX, PciDevice
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance, serve
from descriptors import make_room
from vfio_user import Client, IrqIndex, RemoteError

MOST = 2048
LIMIT = 5000  # descriptors: two for each vector, since client and server are one process here
TABLE = 5


class Many(PciDevice, vendor=0x1234, device=0x2048, class_code=0x088000):
    irq = MsiX(MOST)
    mmio = Bar(0, size=4096)
    go = mmio.reg(0)

    @go.write
    def interrupt(self, vector: int) -> None:
        self.irq[vector % MOST].trigger()


TestMany = conformance(Many)


@pytest.fixture
def eventfds() -> Iterator[list[int]]:
    make_room(LIMIT)
    fds = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(MOST)]
    yield fds
    for fd in fds:
        os.close(fd)


def rung(fds: list[int]) -> list[int]:
    """The vectors whose eventfds were signalled since the last call."""
    found = []
    for vector, fd in enumerate(fds):
        try:
            os.eventfd_read(fd)
        except BlockingIOError:
            continue
        found.append(vector)
    return found


def test_the_capability_says_how_many_and_where() -> None:
    with Guest(Many) as guest:
        at = guest.device.core.config.at[pci.MSIX]
        assert guest.config_read(at + 2, 2) & 0x7FF == MOST - 1
        assert guest.config_read(at + 4, 4) == TABLE
        assert guest.config_read(at + 8, 4) == 16 * MOST | TABLE
        assert guest.device.core.region_size(TABLE) == 1 << 16
        assert len(guest.device.irq) == MOST


@settings(max_examples=20)  # a guest with so many vectors takes 20 ms
@given(st.integers(0, MOST - 1))
def test_a_vector_that_the_table_masks_is_pending_and_sent_later(vector: int) -> None:
    with Guest(Many) as guest:
        guest.write(TABLE, 1, offset=16 * vector + 12, size=4)
        guest.write(Many.go, vector)
        assert guest.interrupts == {}
        bits = guest.read(TABLE, 16 * MOST + vector // 64 * 8, 8)
        assert bits == 1 << vector % 64
        guest.write(TABLE, 0, offset=16 * vector + 12, size=4)
        assert guest.interrupts == {(IrqIndex.MSIX, vector): 1}


def test_a_client_sets_2048_eventfds_and_each_is_signalled(eventfds: list[int]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with serve(Many) as served, Client.connect(served.path) as client:
        assert client.irq_info(IrqIndex.MSIX).count == MOST
        client.write(7, pci.COMMAND, (pci.BUS_MASTER | pci.MEMORY_ENABLE).to_bytes(2, "little"))
        client.trigger_eventfds(IrqIndex.MSIX, 0, eventfds)
        for vector in range(MOST):
            client.write(0, 0, vector.to_bytes(4, "little"), posted=True)
        client.read(0, 0, 4)
        assert rung(eventfds) == list(range(MOST))
        with pytest.raises(RemoteError):
            client.trigger_eventfds(IrqIndex.MSIX, MOST - 1, eventfds[:2])
        client.release_eventfds(IrqIndex.MSIX, MOST - 1, 1)
        client.write(0, 0, (MOST - 1).to_bytes(4, "little"))
        assert rung(eventfds) == []
        assert client.read(TABLE, 16 * MOST + MOST // 8 - 8, 8) == (1 << 63).to_bytes(8, "little")
        client.trigger_eventfds(IrqIndex.MSIX, MOST - 1, eventfds[-1:])
        assert rung(eventfds) == [MOST - 1]
        client.disable(IrqIndex.MSIX)
        client.write(0, 0, bytes(4))
        assert rung(eventfds) == []
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("count", [0, MOST + 1, -1])
def test_a_table_that_the_capability_cannot_express_is_refused(count: int) -> None:
    with pytest.raises(DeclarationError, match="MSI-X has 1 to 2048 vectors"):

        class Wrong(PciDevice, vendor=2, device=1, class_code=1):
            irq = MsiX(count)
