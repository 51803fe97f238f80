"""Peers that go in the middle of something, kernels that refuse, and reads that are not plain any more."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from vfio_user import Channel, Disconnected, IoRegionClient, IoRegionServer, VfioUserError
from vfio_user import shadow as shadow_module
from vfio_user.channel import PREFIX_SIZE
from vfio_user.mapping import join
from vfio_user.plain_reads import answer_plain_reads
from vfio_user.shadow import Cells


class Failing:
    """A socket whose calls fail with one error."""

    type = socket.SOCK_SEQPACKET

    def __init__(self, error: int = errno.ECONNRESET) -> None:
        self.error = OSError(error, os.strerror(error))

    def fail(self, *_: Any) -> Any:
        raise self.error

    send = sendmsg = recv = recv_into = recvmsg = recvmsg_into = fail

    def fileno(self) -> int:
        return -1

    def close(self) -> None: ...

    def settimeout(self, _: float | None) -> None: ...

    def setblocking(self, _: bool) -> None: ...


@pytest.fixture
def channel() -> Any:
    ours, theirs = socket.socketpair()
    theirs.close()
    with closing(Channel(ours, 1 << 16)) as channel:
        real, channel._sock = channel._sock, Failing()  # type: ignore[assignment]
        yield channel
        real.close()


@pytest.mark.parametrize("size", [1, 1 << 15])
def test_a_send_to_a_peer_that_is_gone_names_the_command(channel: Channel, size: int) -> None:
    with pytest.raises(Disconnected, match="sending REGION_READ: Connection reset by peer"):
        channel.send(1, 9, 0, parts=[bytes(size)])


def test_a_rest_that_cannot_be_sent_names_the_command(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_wait", lambda *_: 0)
    with pytest.raises(Disconnected, match="sending REGION_WRITE: Connection reset by peer"):
        channel._send_rest(b"1234", 2, [], "REGION_WRITE", False)


@pytest.mark.parametrize("size", [1, 1 << 15])
def test_after_a_message_that_was_cut_short_no_other_is_sent(channel: Channel, size: int) -> None:
    channel._broken = "an earlier DMA_READ was cut short"
    with pytest.raises(Disconnected, match="an earlier DMA_READ was cut short"):
        channel.send(1, 9, 0, parts=[bytes(size)])


def test_an_ioregionfd_whose_other_end_fails_is_disconnected() -> None:
    with pytest.raises(Disconnected, match="ioregionfd: Connection reset by peer"):
        IoRegionServer(Failing()).receive()  # type: ignore[arg-type]
    client = IoRegionClient.__new__(IoRegionClient)
    client._sock, client._timeout = Failing(), 1.0  # type: ignore[assignment]
    with pytest.raises(Disconnected, match="ioregionfd: Connection reset by peer"):
        client._receive()


# -- the kernel


def test_memory_that_the_kernel_does_not_join_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.ENOMEM)
    with pytest.raises(VfioUserError, match=r"mremap of 4096 bytes: Cannot allocate memory") as refused:
        join([(0x1000, 4096)])
    assert refused.value.errno == errno.ENOMEM


def test_cells_that_cannot_be_made_leave_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")

    def refuse(*_: Any, **__: Any) -> None:
        raise VfioUserError("no", errno.ENOMEM)

    monkeypatch.setattr(shadow_module, "Mapping", refuse)
    with pytest.raises(VfioUserError):
        Cells(1)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_memfd_can_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "no seals")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert shadow_module._cannot_shrink(0) is False


# -- plain reads


class Loan:
    """A channel that lends its buffer: it has the messages ``come``, and sends at most ``room`` bytes."""

    def __init__(self, come: list[bytes], room: int = 99) -> None:
        self.buffer = bytearray(PREFIX_SIZE)
        self.come, self.room = come, room
        self.position = 0
        self.told: list[tuple[object, ...]] = []
        self.sent: list[bytes] = []

    def lend(self) -> tuple[Any, ...] | None:
        return self.buffer, [self.buffer], self.receive, self.send

    def receive(self, *_: object) -> tuple[int, list[object], int, None]:
        if not self.come:
            raise BlockingIOError
        data = self.come.pop(0)
        self.buffer[: len(data)] = data
        return len(data), [], 0, None

    def send(self, reply: bytes, _: int) -> int:
        if self.room < 0:
            raise OSError
        self.sent.append(reply[: self.room])
        return len(self.sent[-1])

    def received(self, *what: object) -> None:
        self.told.append(("received", *what))

    def send_rest_of(self, reply: bytes, sent: int) -> None:
        self.told.append(("rest", reply, sent))


READ = b"\x07\x00" + bytes(range(2, PREFIX_SIZE))


def answered(loan: Loan, waits: list[Any], rung: bool = False) -> tuple[Any, int]:
    """What is returned for the waits, and how often the register was read."""
    access = SimpleNamespace(times=0, reply=b"reply", reader=lambda: b"value", plain=True, size=PREFIX_SIZE)
    accesses: Any = SimpleNamespace(known={READ[2:]: access})
    ready = answer_plain_reads(
        loan,  # type: ignore[arg-type]
        accesses,
        lambda: lambda: waits.pop(0),
        [(3, 1)],
        lambda _: rung,
        lambda *_: True,
    )
    return ready, access.times


def test_plain_reads_are_answered_while_nothing_else_happens() -> None:
    loan = Loan([READ, READ])
    assert answered(loan, [[(3, 1)], [(4, 1)]]) == ([(4, 1)], 2)
    assert loan.sent == [b"\x07\x00replyvalue"] * 2
    assert (loan.position, loan.told) == (2 * PREFIX_SIZE, [])


@pytest.mark.parametrize(
    ("data", "rung"), [(READ[:-1], False), (READ[:-1] + b"\xff", False), (READ, True)], ids=["short", "other", "rung"]
)
def test_what_is_not_plain_stays_in_the_channel(data: bytes, rung: bool) -> None:
    loan = Loan([data])
    assert answered(loan, [], rung) == ([(3, 1)], 0)
    assert (loan.told, loan.sent, loan.position) == ([("received", len(data), [], 0)], [], 0)


def test_nothing_to_receive_ends_it() -> None:
    loan = Loan([])
    assert answered(loan, []) == ([(3, 1)], 0)
    assert (loan.told, loan.sent) == ([], [])


@pytest.mark.parametrize(("room", "sent"), [(4, 4), (-1, 0)])
def test_a_reply_that_does_not_go_is_sent_on_by_the_channel(room: int, sent: int) -> None:
    loan = Loan([READ], room)
    assert answered(loan, []) == ([(3, 1)], 1)
    assert loan.told == [("rest", b"\x07\x00replyvalue", sent)]


def test_a_channel_that_lends_nothing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loan = Loan([READ])
    monkeypatch.setattr(loan, "lend", lambda: None)
    assert answered(loan, []) == ([(3, 1)], 0)
    assert loan.come == [READ]
