"""Getters whose request is longer than its fields, as SPDK's client sends it: the buffer for the reply, whole."""

from __future__ import annotations

import struct

import pytest

from protocol.backend import MAPPED, Link
from vfio_user import Command

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
