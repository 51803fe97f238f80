from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import DEADLINE, fd_count
from vfio_user import Disconnected, IoCommand, IoRegionClient, IoRegionServer, ProtocolError, TimedOut
from vfio_user.ioregionfd import decode_command, decode_response, encode_command, encode_response

USER, OFFSET, DATA = 0x1122334455667788, 0x10, 0xAABBCCDDEEFF0011
TAIL = "8877665544332211 1000000000000000"
ON_THE_WIRE = {
    "8-byte write, acknowledged": ("01 13 000000000000" + TAIL + "1100ffeeddccbbaa", (True, 8, True, DATA)),
    "4-byte posted write": ("01 02 000000000000" + TAIL + "1100ffee00000000", (True, 4, False, DATA & 0xFFFFFFFF)),
    "4-byte read": ("00 12 000000000000" + TAIL + "0000000000000000", (False, 4, True, 0)),
    "2-byte read": ("00 11 000000000000" + TAIL + "0000000000000000", (False, 2, True, 0)),
    "1-byte posted write": ("01 00 000000000000" + TAIL + "1100000000000000", (True, 1, False, 0x11)),
}
"""Version 3 of the proposed uapi, by the byte."""


def command(write: bool, size: int, respond: bool, data: int) -> IoCommand:
    return IoCommand(write, size, respond, USER, OFFSET, data)


# -- the wire


@pytest.mark.parametrize(("wire", "fields"), ON_THE_WIRE.values(), ids=ON_THE_WIRE.keys())
def test_a_command_is_written_and_read_by_the_byte(wire: str, fields: tuple[bool, int, bool, int]) -> None:
    assert encode_command(command(*fields)) == bytes.fromhex(wire)
    assert decode_command(bytes.fromhex(wire)) == command(*fields)


def test_a_response_is_written_and_read_by_the_byte() -> None:
    assert encode_response(DATA) == bytes.fromhex("1100ffeeddccbbaa") + bytes(24)
    assert decode_response(bytes.fromhex("1100ffeeddccbbaa") + bytes(range(24))) == DATA


BAD = {
    "an unknown cmd": ("02", "10", "cmd 2, expected 0"),
    "the old dialect's 8-byte write": ("71", "00", "cmd 113"),
    "16 bytes": ("01", "14", "size exponent of 0 to 3"),
    "reserved bits": ("01", "20", "size and flags 0x20"),
    "a read that wants no response": ("00", "02", "a read without resp"),
}


@pytest.mark.parametrize(("cmd", "info", "why"), BAD.values(), ids=BAD.keys())
def test_a_command_that_no_kernel_sends_is_refused(cmd: str, info: str, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        decode_command(bytes.fromhex(cmd + info) + bytes(30))


@pytest.mark.parametrize("length", [0, 31, 33])
def test_both_are_32_bytes_long(length: int) -> None:
    with pytest.raises(ProtocolError, match=f"command: {length} bytes, expected 32"):
        decode_command(bytes(length))
    with pytest.raises(ProtocolError, match=f"response: {length} bytes, expected 32"):
        decode_response(bytes(length))


@pytest.mark.parametrize("size", [0, 3, 5, 16])
def test_a_command_of_another_size_is_not_written(size: int) -> None:
    with pytest.raises(ProtocolError, match=f"size {size}, expected 1, 2, 4 or 8"):
        encode_command(command(True, size, True, 0))


u64 = st.integers(0, (1 << 64) - 1)


@given(st.booleans(), st.sampled_from([1, 2, 4, 8]), st.booleans(), u64, u64, u64)
def test_a_command_is_read_as_it_was_written(
    write: bool, size: int, respond: bool, user_data: int, offset: int, data: int
) -> None:
    value = data & ((1 << 8 * size) - 1) if write else 0
    sent = IoCommand(write, size, respond or not write, user_data, offset, value)
    assert decode_command(encode_command(sent)) == sent


def test_a_read_has_no_data() -> None:
    assert IoCommand(False, 4, True, USER, OFFSET) == decode_command(bytes.fromhex(ON_THE_WIRE["4-byte read"][0]))


@pytest.mark.parametrize("exponent", range(4))
def test_bits_of_the_data_above_the_width_are_dropped(exponent: int) -> None:
    wire = bytes([1, exponent]) + bytes(22) + b"\xff" * 8
    assert decode_command(wire).data == (1 << 8 * (1 << exponent)) - 1


@given(st.binary(min_size=32, max_size=32))
def test_any_32_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = decode_command(data)
    except ProtocolError:
        return
    assert found.data < 1 << 8 * found.size


# -- both ends


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM], ids=["seqpacket", "stream"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[IoRegionClient, IoRegionServer]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with closing(IoRegionClient(ours.fileno(), timeout=DEADLINE)) as client, closing(IoRegionServer(theirs)) as server:
        ours.close()
        yield client, server


@pytest.fixture
def beside() -> Iterator[Callable[..., Future[bytes | None]]]:
    """Run the client's blocking call on another thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit


def next_command(server: IoRegionServer) -> IoCommand:
    with socket.socket(fileno=os.dup(server.fileno())) as waiter:
        waiter.settimeout(DEADLINE)
        waiter.recv(1, socket.MSG_PEEK)
        waiter.setblocking(False)
    found = server.receive()
    assert found is not None
    return found


def test_nothing_sent_is_nothing_received(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    assert ends[1].receive() is None


@pytest.mark.usefixtures("impatient")
def test_a_socket_that_the_far_end_has_block_holds_nobody_up() -> None:
    """A duplicate shares its open file with whoever has sent it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, closing(IoRegionClient(ours.fileno(), timeout=0.05)) as client:
        ours.setblocking(True)
        with pytest.raises(TimedOut, match="does not answer"):
            client.read(0, 0, 4)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, closing(IoRegionClient(ours.fileno(), timeout=0.05)) as client:
        ours.setblocking(True)
        with pytest.raises(TimedOut, match="does not read its commands"):
            flood(client)


def flood(client: IoRegionClient) -> None:
    """More commands than a socket holds."""
    for _ in range(100_000):
        client.post(0, 0, b"1234")


def test_a_posted_write_is_not_waited_for(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends
    client.post(USER, OFFSET, b"\x34\x12")
    assert server.receive() == command(True, 2, False, 0x1234)


def test_posted_writes_arrive_in_order(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends
    for number in range(20):
        client.post(USER, OFFSET, number.to_bytes(4, "little"))
    found = [server.receive() for _ in range(21)]
    assert [one.data for one in found if one] == list(range(20))


def test_an_acknowledged_write_waits_for_its_response(
    ends: tuple[IoRegionClient, IoRegionServer], beside: Callable[..., Future[bytes | None]]
) -> None:
    client, server = ends
    done = beside(client.write, USER, OFFSET, b"\x2a")
    assert next_command(server) == command(True, 1, True, 42)
    assert not done.done()
    server.respond(0)
    assert done.result(DEADLINE) is None


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_read_gets_as_many_bytes_as_it_asked_for(
    ends: tuple[IoRegionClient, IoRegionServer], beside: Callable[..., Future[bytes | None]], size: int
) -> None:
    client, server = ends
    done = beside(client.read, USER, OFFSET, size)
    assert next_command(server) == command(False, size, True, 0)
    server.respond(DATA)
    assert done.result(DEADLINE) == DATA.to_bytes(8, "little")[:size]


@pytest.mark.parametrize("length", [0, 3, 16])
def test_data_of_another_width_is_refused(ends: tuple[IoRegionClient, IoRegionServer], length: int) -> None:
    client, server = ends
    for action in (client.post, client.write):
        with pytest.raises(ProtocolError, match=f"size {length}"):
            action(USER, OFFSET, bytes(length))
    assert server.receive() is None


def test_a_device_that_hangs_up_is_disconnected(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends
    server.close()
    for action in (
        lambda: client.post(USER, 0, b"x"),
        lambda: client.write(USER, 0, b"x"),
        lambda: client.read(USER, 0, 1),
    ):
        with pytest.raises(Disconnected):
            action()


def test_a_device_that_hangs_up_instead_of_answering_is_disconnected(
    ends: tuple[IoRegionClient, IoRegionServer], beside: Callable[..., Future[bytes | None]]
) -> None:
    client, server = ends
    done = beside(client.read, USER, OFFSET, 4)
    next_command(server)
    server.close()
    with pytest.raises(Disconnected):
        done.result(DEADLINE)


def test_a_kernel_that_hangs_up_is_disconnected(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends
    client.close()
    with pytest.raises(Disconnected):
        server.receive()
    with pytest.raises(Disconnected):
        server.respond(0)


def test_commands_sent_before_the_hang_up_still_arrive(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends
    client.post(USER, OFFSET, b"\1")
    client.close()
    assert server.receive() == command(True, 1, False, 1)
    with pytest.raises(Disconnected):
        server.receive()


# -- ends that misbehave


@pytest.fixture(params=[socket.SOCK_SEQPACKET, socket.SOCK_STREAM], ids=["seqpacket", "stream"])
def slow(request: pytest.FixtureRequest) -> Iterator[tuple[IoRegionClient, socket.socket]]:
    """An impatient client, and a device that is only a socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with closing(IoRegionClient(ours.fileno(), timeout=0.02)) as client, ours, theirs:
        yield client, theirs


def test_a_device_that_does_not_answer_times_out(slow: tuple[IoRegionClient, socket.socket]) -> None:
    with pytest.raises(TimedOut, match="does not answer"):
        slow[0].read(USER, OFFSET, 4)


def test_a_late_response_is_not_taken_for_the_next_ones(slow: tuple[IoRegionClient, socket.socket]) -> None:
    client, device = slow
    with pytest.raises(TimedOut):
        client.read(USER, OFFSET, 4)
    device.send(encode_response(1))
    with pytest.raises(Disconnected, match="time out"):
        client.read(USER, OFFSET, 4)


def test_a_device_that_does_not_read_times_out(slow: tuple[IoRegionClient, socket.socket]) -> None:
    def flood() -> None:
        while True:
            slow[0].post(USER, OFFSET, b"\1")

    with pytest.raises(TimedOut, match="does not read"):
        flood()


def test_a_kernel_that_does_not_read_times_out() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def flood() -> None:
        while True:
            server.respond(0)

    with ours, closing(IoRegionServer(theirs)) as server, pytest.raises(TimedOut, match="does not read its responses"):
        flood()


def test_a_stream_may_be_cut_at_any_byte() -> None:
    data = b"".join(encode_command(command(True, 4, False, number)) for number in range(3))
    ours, theirs = socket.socketpair()
    found = []
    with ours, closing(IoRegionServer(theirs)) as server:
        for at in range(0, len(data), 7):
            ours.send(data[at : at + 7])
            while (one := server.receive()) is not None:
                found.append(one.data)
    assert found == [0, 1, 2]


@pytest.mark.parametrize("length", [1, 31, 33, 64])
def test_a_packet_of_another_length_is_refused_and_the_next_is_read(length: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, closing(IoRegionServer(theirs)) as server:
        ours.send(bytes(length))
        with pytest.raises(ProtocolError, match="bytes, expected 32"):
            server.receive()
        ours.send(encode_command(command(True, 8, True, DATA)))
        assert server.receive() == command(True, 8, True, DATA)


def test_a_response_may_come_in_pieces_over_a_stream(beside: Callable[..., Future[bytes | None]]) -> None:
    ours, theirs = socket.socketpair()
    with closing(IoRegionClient(ours.fileno())) as client, ours, theirs:
        done = beside(client.read, USER, OFFSET, 8)
        theirs.recv(32)
        for byte in encode_response(DATA):
            theirs.send(bytes([byte]))
        assert done.result(DEADLINE) == DATA.to_bytes(8, "little")


# -- the client's descriptor


def test_an_fd_that_is_no_socket_is_refused() -> None:
    fd = os.eventfd(0)
    before = fd_count()
    with pytest.raises(ProtocolError, match="no socket"):
        IoRegionClient(fd)
    assert fd_count() == before
    os.close(fd)


def test_a_socket_that_leads_nowhere_is_disconnected() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lone:
        client = IoRegionClient(lone.fileno())
    with closing(client), pytest.raises(Disconnected):
        client.post(USER, OFFSET, b"\1")


def test_the_client_works_on_a_duplicate(ends: tuple[IoRegionClient, IoRegionServer]) -> None:
    client, server = ends  # whose own end of the socket the fixture has closed
    client.post(USER, OFFSET, b"\1")
    assert server.receive() is not None
