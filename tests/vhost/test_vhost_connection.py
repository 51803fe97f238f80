"""A back end is not trusted: each reply is checked, each wait has a limit, and no descriptor is left behind."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire.vhost.connection import Connection
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.messages import Request

FEATURES = struct.pack("<IIIQ", Request.GET_FEATURES, 5, 8, 1 << 32)
OK = struct.pack("<IIIQ", Request.SET_OWNER, 5, 8, 0)


@pytest.fixture
def far() -> Iterator[socket.socket]:
    """The back end's end."""
    ours, theirs = socket.socketpair()
    with theirs:
        wire = Connection(ours)
        WIRES[theirs] = wire
        yield theirs
        wire.close()
        del WIRES[theirs]


WIRES: dict[socket.socket, Connection] = {}


@pytest.fixture
def wire(far: socket.socket) -> Connection:
    return WIRES[far]


def test_a_number_is_asked_for(far: socket.socket, wire: Connection) -> None:
    far.send(FEATURES)
    assert wire.number(Request.GET_FEATURES) == 1 << 32
    assert far.recv(100) == struct.pack("<III", Request.GET_FEATURES, 1, 0)


def test_a_reply_in_pieces_is_put_together(far: socket.socket, wire: Connection) -> None:
    far.send(FEATURES[:5])
    far.send(FEATURES[5:])
    assert wire.number(Request.GET_FEATURES) == 1 << 32


def test_a_back_end_that_acknowledges_is_asked_to(far: socket.socket, wire: Connection) -> None:
    wire.tell(Request.SET_OWNER)
    assert far.recv(100) == struct.pack("<III", Request.SET_OWNER, 1, 0)
    wire.acknowledges = True
    far.send(OK)
    wire.tell(Request.SET_OWNER)
    assert far.recv(100) == struct.pack("<III", Request.SET_OWNER, 9, 0)


def test_a_refusal_is_an_error_that_leaves_the_connection_alone(far: socket.socket, wire: Connection) -> None:
    wire.acknowledges = True
    far.send(struct.pack("<IIIQ", Request.SET_OWNER, 5, 8, 1) + FEATURES)
    with pytest.raises(BackendError, match=r"refuses SET_OWNER \(result 1\)") as raised:
        wire.tell(Request.SET_OWNER)
    assert not isinstance(raised.value, BackendLost)
    assert wire.number(Request.GET_FEATURES) == 1 << 32


def test_a_barrier_for_a_back_end_without_acknowledgements_is_a_question(far: socket.socket, wire: Connection) -> None:
    far.send(FEATURES)
    wire.settle()
    assert far.recv(100) == struct.pack("<III", Request.GET_FEATURES, 1, 0)


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (OK, r"SET_OWNER \(flags 0x5\) came as the reply to GET_FEATURES"),
        (struct.pack("<IIIQ", 1, 1, 8, 0), r"GET_FEATURES \(flags 0x1\) came as the reply"),
        (struct.pack("<IIIQ", 1, 0x15, 8, 0), r"flags 0x15"),
        (struct.pack("<IIII", 1, 5, 4, 0), "a payload of 4 bytes, expected 8"),
        (struct.pack("<III", 1, 5, 1 << 30), "a payload of 1073741824 bytes"),
    ],
    ids=["other", "no-reply", "flags", "short", "large"],
)
def test_a_reply_that_cannot_be_ends_the_connection(
    far: socket.socket, wire: Connection, reply: bytes, why: str
) -> None:
    far.send(reply)
    with pytest.raises(BackendLost, match=why):
        wire.number(Request.GET_FEATURES)


def test_descriptors_that_were_not_asked_for_are_closed(far: socket.socket, wire: Connection) -> None:
    before = os.listdir("/proc/self/fd")
    socket.send_fds(far, [FEATURES], [far.fileno(), far.fileno()])
    with pytest.raises(BackendLost, match="the reply has 2 descriptors, at most 0 expected"):
        wire.number(Request.GET_FEATURES)
    assert os.listdir("/proc/self/fd") == before


def test_silence_ends_the_connection_in_time(wire: Connection) -> None:
    with wire.limited(0.01), pytest.raises(BackendLost, match="does not answer GET_FEATURES in time"):
        wire.number(Request.GET_FEATURES)


def test_one_limit_holds_for_all_of_a_block(far: socket.socket, wire: Connection) -> None:
    far.send(FEATURES)
    with wire.limited(0.01), wire.limited(100):
        wire.number(Request.GET_FEATURES)
        with pytest.raises(BackendLost, match="in time"):
            wire.number(Request.GET_FEATURES)


def test_a_back_end_that_does_not_read_is_given_up(wire: Connection) -> None:
    with wire.limited(0.05), pytest.raises(BackendLost, match="SET_CONFIG in time"):
        any(wire.tell(Request.SET_CONFIG, bytes(4000)) for _ in range(10000))  # type: ignore[func-returns-value]


@pytest.mark.parametrize("sent", [b"", FEATURES[:6], FEATURES[:14]])
def test_a_closed_connection_is_an_end(far: socket.socket, wire: Connection, sent: bytes) -> None:
    far.send(sent)
    far.shutdown(socket.SHUT_WR)
    with pytest.raises(BackendLost, match="closed the connection at GET_FEATURES"):
        wire.number(Request.GET_FEATURES)


def test_a_send_to_a_closed_connection_is_an_end(far: socket.socket, wire: Connection) -> None:
    far.close()
    with pytest.raises(BackendLost, match="GET_FEATURES cannot be sent: Broken pipe"):
        wire.number(Request.GET_FEATURES)


def marks(count: int) -> bytes:
    """The replies to what a process sends that takes a connection over."""
    protocol = struct.pack("<IIIQ", Request.GET_PROTOCOL_FEATURES, 5, 8, 0)
    return protocol + count * FEATURES + protocol


@pytest.mark.parametrize("left", [b"", OK, FEATURES, marks(3), marks(3)[20:], marks(3)[-20:], marks(5)[-40:] + OK])
def test_replies_that_a_dead_process_has_left_are_thrown_away(
    far: socket.socket, wire: Connection, monkeypatch: pytest.MonkeyPatch, left: bytes
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    far.send(left + marks(2) + FEATURES)
    wire.resume()
    assert wire.number(Request.GET_FEATURES) == 1 << 32
    asked = far.recv(1000)
    assert [asked[at] for at in range(0, len(asked), 12)] == [15, 1, 1, 15, 1]


def test_a_back_end_that_answers_what_nobody_has_asked_for_is_given_up(far: socket.socket, wire: Connection) -> None:
    far.send(40 * OK)
    with pytest.raises(BackendLost, match="32 replies that nobody has asked for"):
        wire.resume()


def test_a_part_of_a_reply_stays_in_the_socket(far: socket.socket, wire: Connection) -> None:
    far.send(FEATURES[:15])
    with wire.limited(0.01), pytest.raises(BackendLost, match="in time"):
        wire.number(Request.GET_FEATURES)
    far.send(FEATURES[15:])
    assert wire.number(Request.GET_FEATURES) == 1 << 32


def test_the_back_ends_own_request_is_heard_during_a_wait(far: socket.socket, wire: Connection) -> None:
    bell = os.eventfd(1)
    try:
        wire.listen_to(bell, lambda: (os.eventfd_read(bell), far.send(FEATURES)))  # type: ignore[arg-type]
        assert wire.number(Request.GET_FEATURES) == 1 << 32
    finally:
        wire.stop_listening()
        os.close(bell)


@given(st.binary(min_size=1, max_size=64))
def test_whatever_comes_is_an_answer_or_the_end(data: bytes) -> None:
    ours, far = socket.socketpair()
    with far:
        wire = Connection(ours)
        far.send(data)
        far.shutdown(socket.SHUT_WR)
        try:
            wire.number(Request.GET_FEATURES)
        except BackendLost:
            pass
        finally:
            wire.close()
