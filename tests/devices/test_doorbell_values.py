"""Doorbells of a few values: one eventfd for each value, and ordinary writes for all others."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bellwire import Bar, DeclarationError, PciDevice, doorbell
from bellwire.testing import Guest
from devices.serving import PATIENCE, read, served, wait_until, write
from vfio_user import Capabilities, Client, IoEventFd

IDS = {"vendor": 0x1234, "device": 0xCAFE, "class_code": 0x088000}


class Few(PciDevice, vendor=0x1234, device=0xCAFE, class_code=0x088000):
    """A doorbell of four values with a register below it, and a plain one."""

    mmio = Bar(0, size=4096)
    few = mmio.doorbell(0x10, size=2, values=range(3, 7))
    others = mmio.reg(0x10, size=2)
    plain = mmio.doorbell(0x20)

    def setup(self) -> None:
        self.seen: list[int] = []
        self.rang = threading.Event()

    @few.ring
    def few_rang(self, value: int) -> None:
        self.seen.append(value)
        self.rang.set()

    @plain.ring
    def plain_rang(self) -> None:
        self.rang.set()


@contextmanager
def eventfds(client: Client) -> Iterator[list[IoEventFd]]:
    """The sub-regions of BAR 0."""
    found = client.io_fds(0)
    try:
        assert all(isinstance(sub, IoEventFd) for sub in found)
        yield [sub for sub in found if isinstance(sub, IoEventFd)]
    finally:
        for sub in found:
            os.close(sub.fd)


def test_each_value_has_an_eventfd_of_its_own_after_those_of_plain_doorbells() -> None:
    with served(Few()) as client, eventfds(client) as found:
        assert [(sub.offset, sub.size, sub.datamatch) for sub in found] == [
            (0x20, 0, None),
            *((0x10, 2, value) for value in range(3, 7)),
        ]
        assert len({sub.fd for sub in found}) == 5


def test_a_second_question_gives_the_same_eventfds() -> None:
    device = Few()
    with served(device) as client, eventfds(client), eventfds(client) as found:
        os.eventfd_write(found[1].fd, 1)
        assert device.rang.wait(PATIENCE)
        assert device.seen == [3]


def test_a_client_that_takes_few_descriptors_gets_messages_for_the_values_that_are_left() -> None:
    with served(Few(), proposal=Capabilities.of(max_msg_fds=3)) as client, eventfds(client) as found:
        assert [sub.datamatch for sub in found] == [None, 3, 4]


def test_the_hook_gets_the_value_once_for_the_rings_that_coalesced() -> None:
    device = Few()
    with served(device) as client, eventfds(client) as found:
        by_value = {sub.datamatch: sub.fd for sub in found}
        os.eventfd_write(by_value[5], 1000)
        assert device.rang.wait(PATIENCE)
        read(client, 0)
        assert device.seen == [5]
        assert device.few.rung == 1000
    assert device.core.tally.rings["ioeventfd"]["few"] == [1000]


def test_a_read_flushes_the_rings_of_all_values() -> None:
    device = Few()
    with served(device) as client, eventfds(client) as found:
        for sub in found[1:]:
            os.eventfd_write(sub.fd, 1)
        read(client, 0)
        assert sorted(device.seen) == [3, 4, 5, 6]


def test_a_ring_sees_the_writes_that_were_posted_before_it() -> None:
    device = Few()
    seen: list[tuple[int, int]] = []
    with served(device) as client, eventfds(client) as found:
        device.few_rang = lambda value: seen.append((value, device.others))  # type: ignore[method-assign]
        device.core._ring_hooks[Few.few] = device.few_rang
        for number in range(100, 400):
            write(client, 0x10, number, size=2, posted=True)
            os.eventfd_write(found[1].fd, 1)
            wait_until(lambda number=number: seen[-1:] == [(3, number)])  # type: ignore[misc]


def test_messages_ring_for_the_values_alone_and_for_their_size_alone() -> None:
    device = Few()
    with served(device) as client:
        write(client, 0x10, 6, size=2)
        write(client, 0x10, 7, size=2)
        write(client, 0x10, 4, size=1)
        assert device.seen == [6]
        assert device.others == 4
        assert device.few.rung == 1


def test_without_a_register_other_values_are_dropped() -> None:
    class Bare(PciDevice, name="bare-few", **IDS):
        mmio = Bar(0, size=4096)
        few = mmio.doorbell(0, values=range(2))

        def setup(self) -> None:
            self.seen: list[int] = []

        @few.ring
        def rang(self, value: int) -> None:
            self.seen.append(value)

    with Guest(Bare) as guest:
        guest.write(Bare.few, 1)
        guest.write(Bare.few, 2)
        assert guest.device.seen == [1]


def test_a_test_guest_rings_the_values_alone() -> None:
    with Guest(Few) as guest:
        guest.ring(Few.few, 4)
        assert guest.device.seen == [4]
        with pytest.raises(ValueError, match=r"rung by the values range\(3, 7\), not by 9"):
            guest.ring(Few.few, 9)


def test_rows_of_a_block_have_them_too() -> None:
    class Rows(PciDevice, name="rows-of-few", **IDS):
        mmio = Bar(0, size=4096)
        queues = mmio.block(0, count=2, stride=8, go=doorbell(0, values=range(4)))

        def setup(self) -> None:
            self.seen: list[tuple[int, int]] = []

        @queues.go.ring
        def rang(self, index: int, value: int) -> None:
            self.seen.append((index, value))

    with Guest(Rows) as guest:
        guest.write(0, 3, offset=8, size=4)
        assert guest.device.seen == [(1, 3)]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"values": range(4), "match": 1}, "values excludes match, value and latest"),
        ({"values": range(4), "value": True}, "values excludes match, value and latest"),
        ({"values": range(4), "latest": True}, "values excludes match, value and latest"),
        ({"latest": True, "match": 1}, "match and latest exclude each other"),
        ({"values": [1, 2]}, "values is a range"),
        ({"values": range(0)}, "1 to 64 values, not 0"),
        ({"values": range(65)}, "1 to 64 values, not 65"),
        ({"values": range(-1, 3)}, "do not fit in 4 bytes"),
        ({"values": range(250, 258), "size": 1}, "do not fit in 1 bytes"),
    ],
)
def test_values_that_cannot_be_handed_out_are_refused(words: dict[str, object], complaint: str) -> None:
    with pytest.raises(DeclarationError, match=complaint):

        class Wrong(PciDevice, name="wrong-few", **IDS):
            mmio = Bar(0, size=4096)
            bell = mmio.doorbell(0, **words)  # type: ignore[arg-type]


def test_doorbells_at_one_offset_must_not_share_a_value() -> None:
    class Apart(PciDevice, name="apart", **IDS):
        mmio = Bar(0, size=4096)
        low = mmio.doorbell(0, values=range(4))
        high = mmio.doorbell(0, values=range(4, 8))
        one = mmio.doorbell(0, match=9)

        @low.ring
        @high.ring
        def rang(self, value: int) -> None: ...

        @one.ring
        def one_rang(self) -> None: ...

    assert len(Apart.layout.doorbells) == 3
    with pytest.raises(DeclarationError, match="overlaps low"):

        class Together(PciDevice, name="together", **IDS):
            mmio = Bar(0, size=4096)
            low = mmio.doorbell(0, values=range(4))
            one = mmio.doorbell(0, match=3)
