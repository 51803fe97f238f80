"""The client as a library: connecting, describing the device, and using it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from protocol.backend import (
    AREAS,
    DEADLINE,
    IRQ_COUNTS,
    MAPPED,
    NO_REPLY,
    PLAIN,
    REPLY,
    SIZES,
    FakeDevice,
    Server,
    Wire,
    fd_count,
    message,
    served,
)
from protocol.guest import GUEST, GuestMemory
from vfio_user import (
    Capabilities,
    Client,
    Command,
    DeviceFlags,
    Disconnected,
    FeatureFlags,
    IoEventFd,
    IrqIndex,
    ProtocolError,
    RegionFlags,
    RegionWrite,
    RemoteError,
    SetIrqs,
    SetIrqsFlags,
    SubRegion,
    TimedOut,
    Version,
    VfioUserError,
)

MakeServer = Callable[..., tuple[Client, Wire]]


@pytest.fixture
def pair(device: FakeDevice) -> Iterator[tuple[Client, Server]]:
    """Our client on our server."""
    with served(device) as (server, sock), Client(sock) as client:
        yield client, server


@pytest.fixture
def client(pair: tuple[Client, Server]) -> Client:
    return pair[0]


# -- connecting


def test_it_connects_to_a_path(tmp_path: Path, device: FakeDevice) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "device"))
        listener.listen()
        with ThreadPoolExecutor(1) as thread:
            server = thread.submit(lambda: Server(device, listener.accept()[0]))
            with Client.connect(tmp_path / "device") as client:
                assert client.device_info().num_regions == 9
            server.result(DEADLINE).stop()


@pytest.mark.parametrize("name", ["nothing", "x" * 200])
def test_connecting_to_nothing_says_so(tmp_path: Path, name: str) -> None:
    before = fd_count()
    with pytest.raises(Disconnected, match=r"is a device being served there\?"):
        Client.connect(tmp_path / name)
    assert fd_count() == before


def test_a_server_that_does_not_answer_version_times_out(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "device"))
        listener.listen()
        before = fd_count()
        with pytest.raises(TimedOut):
            Client.connect(tmp_path / "device", timeout=0.02)
        assert fd_count() == before


def test_it_knows_what_was_agreed(client: Client) -> None:
    assert client.minor == 2
    assert client.capabilities.max_msg_fds == 16
    assert client.capabilities.write_multiple
    assert client.mechanisms == frozenset(("ioeventfd", "ioregionfd", "shadow"))


def answer(major: int = 0, minor: int = 2, **capabilities: Any) -> bytes:
    return Version(major, minor, Capabilities.of(**capabilities)).pack()


BAD_ANSWERS = {
    "another major": (answer(1, 0), "1.2|1.0, proposed was 0.2"),
    "a larger minor": (answer(0, 3), "0.3, proposed was 0.2"),
    "a capability out of the blue": (answer(twin_socket=True), "twin_socket was not proposed"),
    "a bad field": (bytes(4) + b'{"capabilities": {"max_msg_fds": -1}}\0', "max_msg_fds"),
    "no numbers": (b"", "0 bytes"),
}


@pytest.mark.parametrize(("reply", "why"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_version_that_was_not_proposed_is_refused(fake_server: MakeServer, reply: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        fake_server(reply)


def test_a_mechanism_must_have_been_proposed(fake_server: MakeServer) -> None:
    with pytest.raises(ProtocolError, match="io_fds: shadow was not proposed"):
        fake_server(answer(io_fds=frozenset({"shadow"})), proposal=Capabilities.of(io_fds=frozenset({"ioeventfd"})))


def test_write_multiple_must_have_been_proposed(fake_server: MakeServer) -> None:
    with pytest.raises(ProtocolError, match="write_multiple was not proposed"):
        fake_server(answer(write_multiple=True), proposal=Capabilities.of(write_multiple=False))


def test_a_server_that_says_nothing_of_itself_has_the_defaults(fake_server: MakeServer) -> None:
    client, _ = fake_server(bytes(4))
    assert (client.capabilities, client.minor) == (Capabilities(), 0)
    assert client.mechanisms is None


def test_the_proposal_is_what_the_caller_says() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    with pytest.raises(TimedOut):
        Client(ours, timeout=0.02, minor=1, proposal=Capabilities.of(max_msg_fds=3))
    assert wire.receive().payload == answer(0, 1, max_msg_fds=3)
    wire.close()


def test_a_server_that_asks_for_memory_before_it_answers_version_is_answered() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    wire.send(Command.DMA_READ, struct.pack("<QQ", GUEST, 4), id=9)
    wire.raw(message(Command.VERSION, answer(), flags=REPLY))
    memory = GuestMemory(64)
    with Client(ours, memory=memory):
        wire.receive()
        assert wire.receive().payload[16:] == memory.data[:4]
    wire.close()


# -- describing


def test_it_describes_the_device(client: Client) -> None:
    assert client.device_info() == (DeviceFlags.RESET | DeviceFlags.PCI, 9, 5)
    assert [client.irq_info(index).count for index in range(5)] == list(IRQ_COUNTS)
    assert [client.region_info(index).info.size for index in (PLAIN, 8)] == [SIZES[PLAIN], 0]


def test_questions_about_the_device_have_0_where_the_text_has_no_meaning(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    about = (
        struct.pack("<IIII", 16, 3, 9, 5),
        struct.pack("<IIIIQQ", 32, 3, 4, 0, 64, 0),
        struct.pack("<IIII", 16, 1, 2, 8),
    )
    with wire.answering(*[(reply, ()) for reply in about]) as asked:
        client.device_info()
        client.region_info(4)
        client.irq_info(2)
    assert [bytes(one.payload) for one in asked] == [
        struct.pack("<IIII", 16, 0, 0, 0),
        struct.pack("<IIIIQQ", 32, 0, 4, 0, 0, 0),
        struct.pack("<IIII", 16, 0, 2, 0),
    ]


def test_a_region_with_areas_comes_with_its_fd(pair: tuple[Client, Server]) -> None:
    client, server = pair
    info, fd = client.region_info(MAPPED)
    assert fd is not None
    assert os.fstat(fd).st_ino == os.fstat(server.device.area).st_ino
    os.close(fd)
    assert info.areas == AREAS
    assert info.flags == RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP


def test_many_sub_regions_are_asked_for_again_with_room_enough(
    pair: tuple[Client, Server], eventfd: Callable[[], int]
) -> None:
    client, server = pair
    fd, before = eventfd(), fd_count()
    subs: list[SubRegion] = [IoEventFd(8 * at, 4, fd, at) for at in range(200)]
    server.device.subs[PLAIN] = subs
    found = client.io_fds(PLAIN)
    assert [(sub.offset, sub.size) for sub in found] == [(sub.offset, sub.size) for sub in subs]
    (own,) = {sub.fd for sub in found}
    os.close(own)
    assert fd_count() == before


def test_the_first_request_makes_room_for_sixteen_sub_regions(fake_server: MakeServer) -> None:
    client, wire = fake_server(answer(io_fds=frozenset({"ioeventfd"})))
    region = struct.pack("<IIIIQQ", 32, 3, PLAIN, 0, 4096, 0)
    with wire.answering((region, ()), (struct.pack("<IIII", 16, 0, PLAIN, 0), ())) as asked:
        assert client.io_fds(PLAIN) == []
    assert struct.unpack("<IIII", asked[1].payload) == (16 + 16 * 48, 0, PLAIN, 0)


def test_a_region_without_sub_regions_has_none(client: Client) -> None:
    before = fd_count()
    assert client.io_fds(MAPPED) == []
    assert fd_count() == before


# -- registers


def test_it_reads_and_writes_registers(client: Client) -> None:
    client.write(PLAIN, 8, b"abcd")
    client.write(PLAIN, 12, b"efgh", posted=True)
    assert client.write_multi([RegionWrite(PLAIN, 16, b"i"), RegionWrite(PLAIN, 17, b"j")]) == 2
    assert client.write_multi([RegionWrite(PLAIN, 18, b"k")], posted=True) == 1
    assert client.read(PLAIN, 8, 11) == b"abcdefghijk"


def test_reset_and_dma_and_interrupts_reach_the_device(
    pair: tuple[Client, Server], eventfd: Callable[[], int], memfd: Callable[[int], int]
) -> None:
    client, server = pair
    fd = eventfd()
    client.reset()
    client.dma_map(0, 4096, memfd(4096), write=False)
    client.trigger_eventfds(IrqIndex.INTX, 0, [fd])
    client.unmask_eventfd(fd)
    client.mask(IrqIndex.INTX)
    client.unmask(IrqIndex.INTX)
    client.release_eventfds(IrqIndex.INTX, 0, 1)
    client.disable(IrqIndex.INTX)
    client.dma_unmap(0, 8192)
    client.dma_unmap(0, 8192)
    client.dma_map(0, 4096)
    client.dma_unmap_all()
    assert server.device.calls.count("irqs_changed 0") == 6
    assert server.device.calls.count("dma_changed") == 4
    assert len(server.session.dma) == 0
    assert "reset" in server.device.calls


def test_unmapping_nothing_is_not_taken_for_unmapping_all(pair: tuple[Client, Server]) -> None:
    client, server = pair
    client.dma_map(0, 4096)
    with pytest.raises(VfioUserError, match="dma_unmap_all"):
        client.dma_unmap(0, 0)
    assert len(server.session.dma) == 1


def test_more_eventfds_than_one_message_holds_go_in_several(
    fake_server: MakeServer, eventfd: Callable[[], int]
) -> None:
    client, wire = fake_server(answer(max_msg_fds=3))
    with wire.answering(*[(b"", ())] * 3) as asked:
        client.trigger_eventfds(IrqIndex.MSIX, 10, [eventfd()] * 8)
    sent = [(SetIrqs.unpack(memoryview(one.payload)).start, len(one.fds)) for one in asked]
    assert sent == [(10, 3), (13, 3), (16, 2)]


@pytest.mark.parametrize("most", [0, 1])
def test_eventfds_go_one_by_one_to_a_server_that_takes_no_more(
    fake_server: MakeServer, eventfd: Callable[[], int], most: int
) -> None:
    client, wire = fake_server(answer(max_msg_fds=most))
    with wire.answering(*[(b"", ())] * 2) as asked:
        client.trigger_eventfds(IrqIndex.MSIX, 0, [eventfd()] * 2)
    assert [len(one.fds) for one in asked] == [1, 1]


def test_the_flags_of_the_helpers_are_those_of_the_text(fake_server: MakeServer) -> None:
    client, wire = fake_server()
    with wire.answering(*[(b"", ())] * 4) as asked:
        client.mask(2, 1, 3)
        client.unmask(2, 1, 3)
        client.disable(2)
        client.set_irqs(SetIrqs(SetIrqsFlags.DATA_BOOL | SetIrqsFlags.TRIGGER, 2, 0, 2, b"\1\0"))
    assert [struct.unpack_from("<IIIII", one.payload) for one in asked] == [
        (20, 0x09, 2, 1, 3),
        (20, 0x11, 2, 1, 3),
        (20, 0x21, 2, 0, 0),
        (22, 0x22, 2, 0, 2),
    ]


def test_a_device_feature_is_asked_for(client: Client) -> None:
    with pytest.raises(RemoteError) as refusal:
        client.device_feature(FeatureFlags.GET, 1, argsz=16)
    assert refusal.value.errno == errno.ENOTSUP


def test_a_refusal_is_raised_with_the_command_and_its_errno(client: Client) -> None:
    with pytest.raises(RemoteError, match=r"REGION_READ failed .*: Invalid argument \(errno 22\)") as error:
        client.read(PLAIN, 4096, 1)
    assert (error.value.command, error.value.errno) == ("REGION_READ", errno.EINVAL)


def test_what_is_larger_than_a_message_is_refused_before_it_is_sent(fake_server: MakeServer) -> None:
    client, wire = fake_server(answer(max_data_xfer_size=64, write_multiple=True))
    for action in (
        lambda: client.read(PLAIN, 0, 65),
        lambda: client.write(PLAIN, 0, bytes(65)),
        lambda: client.write(PLAIN, 0, bytes(65), posted=True),
        lambda: client.write_multi([RegionWrite(PLAIN, 0, b"x")] * 3),
    ):
        with pytest.raises(VfioUserError, match="at most 64") as refusal:
            action()
        assert refusal.value.errno == errno.E2BIG
    assert wire.silent


def test_what_just_fits_is_sent_and_posted_writes_want_no_reply(fake_server: MakeServer) -> None:
    client, wire = fake_server(answer(max_data_xfer_size=64))
    client.write(PLAIN, 8, bytes(64), posted=True)
    assert wire.receive()[1:] == (Command.REGION_WRITE, NO_REPLY, 0, struct.pack("<QII", 8, PLAIN, 64) + bytes(64), [])
    head = struct.pack("<QII", 8, PLAIN, 64)
    with wire.answering((head + bytes(64), ()), (head, ())) as asked:
        assert client.read(PLAIN, 8, 64) == bytes(64)
        client.write(PLAIN, 8, bytes(64))
    assert [(one.flags, one.error) for one in asked] == [(0, 0)] * 2


def test_write_multi_must_have_been_agreed(fake_server: MakeServer) -> None:
    client, wire = fake_server(answer())
    with pytest.raises(VfioUserError, match="not agreed to write_multiple"):
        client.write_multi([])
    assert wire.silent


@pytest.mark.parametrize(
    ("capabilities", "most"),
    [
        ({"write_multiple": True, "max_data_xfer_size": 8 + 24 * 170 + 23}, 170),
        ({"write_multiple": True, "max_data_xfer_size": 1}, 0),
        ({"write_multiple": False}, 0),
    ],
)
def test_how_many_writes_fit_follows_from_what_the_server_takes(
    fake_server: MakeServer, capabilities: dict[str, int], most: int
) -> None:
    client, _ = fake_server(answer(**capabilities))
    assert client.most_writes == most


def test_threads_may_share_a_client(client: Client) -> None:
    failures: list[int] = []

    def work(at: int) -> None:
        for number in range(20):
            client.write(PLAIN, at, struct.pack("<Q", number))
            if client.read(PLAIN, at, 8) != struct.pack("<Q", number):
                failures.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in (0, 8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda client: client.read(0, -1, 4), "offset -1, region 0, count 4"),
        (lambda client: client.write(1 << 32, 0, b"ring"), "region 4294967296"),
        (lambda client: client.dma_map(1 << 64, 4096), "address 18446744073709551616"),
        (lambda client: client.mask(0, -1), "start -1"),
        (lambda client: client.irq_info(-1), "index -1"),
        (lambda client: client.write_multi([RegionWrite(-1, 0, b"x")]), "region -1"),
    ],
)
def test_a_number_that_no_field_can_hold_is_refused_by_name(
    client: Client, call: Callable[[Client], object], what: str
) -> None:
    with pytest.raises(ProtocolError, match=what):
        call(client)
