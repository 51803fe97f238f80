"""Sub-regions that a socket serves, in the QEMU with our patches. It uses them with KVM only: see tests/nested."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from attached import Served
from crafted import MEMORY_BAR, Crafted, Entry, entries
from doorbells import drive, rung, served
from machine import Machine
from vfio_user import Command

__all__ = ["drive", "served"]

pytestmark = pytest.mark.guest

AT = 0x40
IOREGIONFD, PORTS, POSTED = 1, 1, 2


def ioregion(**words: Any) -> Entry:
    """A good entry of that type, apart from what is given."""
    return Entry(**({"offset": AT, "fd_index": 1, "kind": IOREGIONFD} | words))


def test_without_kvm_qemu_does_not_ask_for_them(drive: Callable[..., Machine], served: Served) -> None:
    drive(served)
    (proposed,) = [seen for seen in served.tap.messages() if seen.command == Command.VERSION and not seen.is_reply]
    assert b'"io_fds": ["ioeventfd", "shadow"]' in proposed.start


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(ioregion(size=4), id="a-good-one"),
        pytest.param(ioregion(size=4, flags=POSTED), id="posted"),
        pytest.param(ioregion(flags=POSTED), id="of-any-size"),
        pytest.param(ioregion(), id="of-any-size-with-responses"),
        pytest.param(ioregion(offset=0, size=4096), id="the-whole-region"),
        pytest.param(ioregion(size=4096), id="over-the-regions-end"),
        pytest.param(ioregion(size=(1 << 64) - 1), id="a-huge-size"),
        pytest.param(ioregion(offset=(1 << 64) - 4, size=8), id="over-the-end-of-numbers"),
        pytest.param(ioregion(size=4, flags=PORTS), id="ports-in-memory"),
        pytest.param(ioregion(size=4, flags=0xFFFF_FFFF), id="unknown-flags"),
        pytest.param(ioregion(size=4, fd_index=0), id="an-eventfd"),
        pytest.param(ioregion(size=4, fd_index=2), id="a-descriptor-that-did-not-come"),
        pytest.param(ioregion(size=4, memory=0), id="in-48-bytes"),
    ],
)
def test_without_kvm_one_that_is_sent_is_left_to_messages_and_keeps_nothing_off(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, entry: Entry
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        other = Entry(AT + 8, memory=entry.memory)  # in a reply, all entries have the same length
        server = craft(entries(entry, entry, other, fds=[bell, theirs.fileno()]))
        (function,) = drive(server).functions
        function.write(MEMORY_BAR, AT, 1)
        function.write(MEMORY_BAR, AT + 8, 1)
        function.read(MEMORY_BAR, AT)
        assert (rung(bell), [write[:2] for write in server.writes]) == (1, [(MEMORY_BAR, AT)])
        with pytest.raises(BlockingIOError):
            ours.recv(32, socket.MSG_DONTWAIT)
