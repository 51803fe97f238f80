"""Requests that are longer than their fields: SPDK's client sends the buffer for the reply, whole.

libvfio-user takes them, and so do we: what follows the fields is ignored.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from protocol.backend import MAPPED, PLAIN, REPLY, Link
from protocol.guest import PAGE, mapping, unmapping
from protocol.set_irqs import BOOL, MSIX, SET, TRIGGER, count, request
from vfio_user import Command
from vfio_user.constants import SetIrqsFlags

SPDK = 4064
"""Bytes of SPDK's GET_REGION_INFO."""

GETTERS = {
    Command.DEVICE_GET_INFO: lambda argsz: struct.pack("<IIII", argsz, 0, 0, 0),
    Command.DEVICE_GET_REGION_INFO: lambda argsz: struct.pack("<IIIIQQ", argsz, 0, MAPPED, 0, 0, 0),
    Command.DEVICE_GET_REGION_IO_FDS: lambda argsz: struct.pack("<IIII", argsz, 0, MAPPED, 0),
    Command.DEVICE_GET_IRQ_INFO: lambda argsz: struct.pack("<IIII", argsz, 0, 2, 0),
}


@pytest.mark.parametrize("command", GETTERS)
@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
@pytest.mark.parametrize("more", [1, 4, None])
def test_what_follows_the_fields_of_a_getter_changes_nothing(
    link: Link, command: Command, filling: bytes, more: int | None
) -> None:
    short = GETTERS[command](SPDK)
    more = SPDK - len(short) if more is None else more
    assert link.ok(command, short + filling * more) == link.ok(command, short)


def test_the_descriptor_comes_with_the_longer_form_too(link: Link) -> None:
    request = GETTERS[Command.DEVICE_GET_REGION_INFO](SPDK)
    assert len(link.ask(Command.DEVICE_GET_REGION_INFO, request.ljust(SPDK, b"\0")).fds) == 1


@pytest.mark.parametrize("command", GETTERS)
def test_room_for_the_reply_is_still_asked_for(link: Link, command: Command) -> None:
    fields = len(GETTERS[command](0))
    assert link.refused(command, GETTERS[command](fields - 1).ljust(SPDK, b"\0"))
    assert link.refused(command, GETTERS[command](SPDK)[:-1])


@pytest.mark.parametrize("filling", [b"\0", b"\xff"])
def test_maps_and_resets_may_be_longer_too(link: Link, memfd: Callable[[int], int], filling: bytes) -> None:
    for _ in range(2):
        assert link.ok(Command.DMA_MAP, mapping(0, PAGE) + filling * 100, fds=[memfd(PAGE)]) == b""
        assert link.ok(Command.DMA_UNMAP, unmapping(0, PAGE) + filling * 100) == unmapping(0, PAGE)
        assert link.ok(Command.DEVICE_RESET, filling * 100) == b""
    assert link.device.calls.count("reset") == 2


def test_a_read_of_a_register_may_be_longer_and_is_told_from_the_usual_one(link: Link) -> None:
    """The third of each length is answered as a known access."""
    link.device.plain = True
    link.device.memory[PLAIN][8:16] = b"register"
    head = struct.pack("<QII", 8, PLAIN, 8)
    for _ in range(3):
        for more in (0, 16, 100):
            assert link.ok(Command.REGION_READ, head + bytes(more)) == head + b"register"


def test_a_plain_read_is_not_answered_before_all_of_its_message_has_come(link: Link) -> None:
    link.device.plain = True
    head = struct.pack("<QII", 8, PLAIN, 8)
    whole = struct.pack("<HHIII", 1, Command.REGION_READ, 64, 0, 0) + head + bytes(32)
    link.ok(Command.REGION_READ, head + bytes(32))
    link.raw(whole[:32])
    alone = [(link.session.fileno(), 1)]
    assert link.session.wait(lambda: lambda: alone, alone, lambda _: None) == alone
    link.session.service()
    assert link.silent
    link.raw(whole[32:])
    link.session.service()
    assert link.receive().flags == REPLY


def test_triggers_may_be_followed_by_more_than_a_byte_for_each(link: Link, eventfd: Callable[[], int]) -> None:
    fds = [eventfd(), eventfd()]
    link.ok(SET, request(SetIrqsFlags.DATA_EVENTFD | TRIGGER, MSIX, count=2), fds=fds)
    link.ok(SET, request(BOOL | TRIGGER, MSIX, count=2, data=b"\0\1" + b"\xff" * 4000))
    assert [count(fd) for fd in fds] == [0, 1]
