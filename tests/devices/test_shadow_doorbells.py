"""Doorbells whose last value counts: handed over as shadow entries, an eventfd and a cell of memory each."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from bellwire import Bar, DeclarationError, PciDevice
from devices.serving import PATIENCE, read, served, sub_regions, wait_until, write
from vfio_user import Capabilities, Client, IoEventFd, IoRegionFd, ShadowBell, ShadowIoEventFd


class Tails(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """A doorbell of two bytes and a row of four, of which the last values count."""

    mmio = Bar(0, size=4096)
    plain = mmio.reg(0x00)
    tail = mmio.doorbell(0x10, size=2, latest=True)
    row = mmio.ioregion(0x20, 16, posted=True, bell=4, latest=True)

    def setup(self) -> None:
        self.seen: list[object] = []
        self.tails: list[tuple[int, int]] = []
        self.rang = threading.Event()

    @tail.ring
    def tail_rang(self, value: int) -> None:
        self.seen.append((value, self.plain))
        self.tails.append((value, self.plain))
        self.rang.set()

    @row.write
    def row_rang(self, offset: int, size: int, value: int) -> None:
        self.seen.append((offset, size, value))
        self.rang.set()


@contextmanager
def bells(client: Client) -> Iterator[dict[int, ShadowBell]]:
    """The shadow doorbells of BAR 0, by offset."""
    with sub_regions(client) as found:
        made = {at: ShadowBell(sub) for at, sub in found.items() if isinstance(sub, ShadowIoEventFd)}
        yield made
        for bell in made.values():
            bell.close()


def test_each_doorbell_has_an_eventfd_and_a_cell_of_one_sealed_memory() -> None:
    with served(Tails()) as client, sub_regions(client) as found:
        assert {at: (type(sub), sub.size) for at, sub in found.items()} == {
            0x10: (ShadowIoEventFd, 2),
            **dict.fromkeys(range(32, 48, 4), (ShadowIoEventFd, 4)),
        }
        shadows = [sub for sub in found.values() if isinstance(sub, ShadowIoEventFd)]
        assert len({sub.fd for sub in shadows}) == len({sub.shadow_offset for sub in shadows}) == 5
        (memory,) = {sub.shadow_fd for sub in shadows}
        with pytest.raises(PermissionError):
            os.ftruncate(memory, 0)


@pytest.mark.parametrize("words", [["ioeventfd", "ioregionfd"], ["ioregionfd"]])
def test_a_client_that_does_not_propose_shadow_gets_what_carries_every_value(words: list[str]) -> None:
    proposal = Capabilities.of(io_fds=frozenset(words), max_msg_fds=16)
    with served(Tails(), proposal=proposal) as client, sub_regions(client) as found:
        assert {at: type(sub) for at, sub in found.items()} == {0x10: IoRegionFd, 0x20: IoRegionFd}


def test_a_client_without_the_word_gets_entries_of_the_text_alone() -> None:
    with served(Tails(), proposal=Capabilities.of(max_msg_fds=16)) as client, sub_regions(client) as found:
        assert {type(sub) for sub in found.values()} == {IoRegionFd}


def test_the_hook_gets_the_last_value_once_and_the_count_is_exact() -> None:
    device = Tails()
    with served(device) as client, bells(client) as found:
        write(client, 0, 1)  # the worker is awake and idle again when this has come back
        for value in range(1, 101):
            found[0x10].ring(value.to_bytes(2, "little"))
        read(client, 0)
        assert device.seen[-1] == (100, 1)
        assert device.tail.rung == 100
        assert len(device.seen) <= 100
    assert device.core.tally.rings["shadow"]["tail"] == [100]


def test_a_doorbell_of_a_row_runs_the_write_hook_with_its_offset() -> None:
    device = Tails()
    with served(device) as client, bells(client) as found:
        found[0x28].ring((0xABCD_EF01).to_bytes(4, "little"))
        assert device.rang.wait(PATIENCE)
        assert device.seen == [(8, 4, 0xABCD_EF01)]
    rung = {name: count for name, (count,) in device.core.tally.rings["shadow"].items()}
    assert rung == {"tail": 0, "row+0x0": 0, "row+0x4": 0, "row+0x8": 1, "row+0xc": 0}


def test_a_ring_sees_the_writes_that_were_posted_before_it() -> None:
    device = Tails()
    with served(device) as client, bells(client) as found:
        for number in range(1, 500):
            write(client, 0, number, posted=True)
            found[0x10].ring(number.to_bytes(2, "little"))
        wait_until(lambda: device.seen[-1:] == [(499, 499)])
        assert [pair for pair in device.tails if pair[1] < pair[0]] == []


def test_messages_ring_with_every_value() -> None:
    device = Tails()
    with served(device) as client, bells(client):
        write(client, 0x10, 5, size=2)
        write(client, 0x2C, 6)
        assert device.seen == [(5, 0), (12, 4, 6)]
    assert device.core.tally.rung("message") == 2


def test_what_a_peer_scribbles_into_a_cell_is_cut_to_the_doorbells_width_and_hurts_nobody() -> None:
    device = Tails()
    with served(device) as client, sub_regions(client) as found:
        sub = found[0x10]
        assert isinstance(sub, ShadowIoEventFd)
        os.pwrite(sub.shadow_fd, b"\xff" * 4096, 0)
        read(client, 0)
        assert device.seen == []  # nothing has rung
        os.eventfd_write(sub.fd, 1)
        read(client, 0)
        assert device.seen == [(0xFFFF, 0)]


def test_the_next_client_gets_other_cells() -> None:
    device = Tails()
    with served(device) as client, sub_regions(client) as found:
        sub = found[0x10]
        assert isinstance(sub, ShadowIoEventFd)
        kept, place = os.dup(sub.shadow_fd), sub.shadow_offset
    second = Tails()
    with closing(os.fdopen(kept, "rb+", buffering=0)) as old, served(second) as client, bells(client) as found_again:
        os.pwrite(old.fileno(), b"\x77\x77", place)
        found_again[0x10].ring(b"\1\0")
        assert second.rang.wait(PATIENCE)
        assert second.seen == [(1, 0)]


def test_a_reset_discards_rings_and_the_next_ring_counts_from_one() -> None:
    device = Tails()
    with served(device) as client, bells(client) as found:
        found[0x10].ring(b"\5\0")
        client.reset()
        device.seen.clear()
        found[0x10].ring(b"\6\0")
        read(client, 0)
        assert device.seen == [(6, 0)]
        assert device.tail.rung == 1


def test_a_row_by_event_stays_by_event() -> None:
    class Promised(Tails, name="promised"):
        def setup(self) -> None:
            super().setup()
            self.ring_by_event(Tails.row)

    with served(Promised()) as client, sub_regions(client) as found:
        assert {type(sub) for at, sub in found.items() if at >= 0x20} == {IoEventFd}


@pytest.mark.parametrize("words", [{}, {"bell": 4}, {"posted": True}])
def test_only_a_posted_row_has_last_values(words: dict[str, object]) -> None:
    with pytest.raises(DeclarationError, match="latest=True is for a row of doorbells"):

        class Wrong(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000, name="wrong-latest"):
            mmio = Bar(0, size=4096)
            row = mmio.ioregion(0, 16, latest=True, **words)  # type: ignore[arg-type]
