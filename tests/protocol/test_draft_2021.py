"""The draft of January 2021 as a dialect: its numbers, entries and messages, ours against its text and against ours."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.backend import ERROR, NO_REPLY, PLAIN, REPLY, Answer, FakeDevice, Link, Wire, message, served
from protocol.guest import GUEST, GuestMemory
from protocol.set_irqs import EVENTFD, INTX, MASK, MSIX, NONE, SET, TRIGGER, UNMASK, count, request
from vfio_user import (
    DIALECTS,
    DRAFT_2021,
    RATIFIED,
    SERVER,
    Client,
    Command,
    Estate,
    FeatureFlags,
    IoEventFd,
    IoRegionFd,
    Journal,
    Kept,
    Ledger,
    Mechanism,
    MigrationFlags,
    ProtocolError,
    RemoteError,
    Session,
    VfioUserError,
    constants,
)
from vfio_user.dialects import DraftCommand
from vfio_user.dma_logging import LoggingControl, LoggingReport
from vfio_user.draft_dirty import DirtyFlags, DirtyRequest, answer_dirty_pages
from vfio_user.in_process import joined
from vfio_user.io_fds import DRAFT_ENTRIES, pack_sub_regions, unpack_sub_regions
from vfio_user.journal import BUSY
from vfio_user.message import Message

NUMBERS = {
    "VERSION": 1, "DMA_MAP": 2, "DMA_UNMAP": 3, "DEVICE_GET_INFO": 4, "DEVICE_GET_REGION_INFO": 5,
    "DEVICE_GET_REGION_IO_FDS": 6, "DEVICE_GET_IRQ_INFO": 7, "DEVICE_SET_IRQS": 8, "REGION_READ": 9,
    "REGION_WRITE": 10, "DMA_READ": 11, "DMA_WRITE": 12, "VM_INTERRUPT": 13, "DEVICE_RESET": 14, "DIRTY_PAGES": 15,
}  # fmt: skip
"""The draft's table of commands, behind its change."""
RESET, INTERRUPT, DIRTY = 14, 13, 15
IO_FDS = Command.DEVICE_GET_REGION_IO_FDS


@pytest.fixture
def draft(device: FakeDevice) -> Iterator[Link]:
    """A session of the dialect, and a raw client that has introduced itself."""
    with closing(Link(device, dialect=DRAFT_2021)) as link:
        assert link.greet().error == 0
        device.calls.clear()
        yield link


def test_its_commands_have_the_numbers_of_its_table() -> None:
    ours = {command.name: int(command) for command in Command if command not in DRAFT_2021.missing}
    assert ours | {command.name: int(command) for command in DraftCommand} == NUMBERS
    assert {number: DRAFT_2021.called(number) for number in (13, 14, 15, 16)} == {
        13: "VM_INTERRUPT",
        14: "DEVICE_RESET",
        15: "DIRTY_PAGES",
        16: "command 16",
    }


def test_reset_is_14_and_what_the_draft_lacks_is_refused(draft: Link) -> None:
    assert draft.ok(RESET) == b""
    assert draft.device.calls == ["reset"]  # no rings before it: a reset discards them
    for number in (INTERRUPT, 16, 17, 18):
        assert draft.refused(number, bytes(16)) == errno.EINVAL
    assert "VM_INTERRUPT: not a command that a client can send" in str(draft.device.refusals[0])


def test_its_server_agrees_to_nothing_that_the_draft_lacks(device: FakeDevice) -> None:
    with closing(Link(device, dialect=DRAFT_2021)) as link:
        answer = link.introduce(write_multiple=True, io_fds=frozenset(constants.IO_FDS))
        assert answer.payload[4:] == b'{"capabilities":{"write_multiple":false,"io_fds":["ioeventfd","ioregionfd"]}}\0'


# -- DEVICE_GET_REGION_IO_FDS: argsz counts the header too

EVENT = bytes.fromhex("1000000000000000 0400000000000000 00000000 00000000 01000000 00000000 4200000000000000")
REGION = bytes.fromhex("2000000000000000 0800000000000000 01000000 01000000 02000000 44332211")
"""The two tables of the draft, by the byte: 40 bytes, and 32 with region_id at 28."""


def io_fds(link: Link, argsz: int) -> Answer:
    return link.ask(IO_FDS, struct.pack("<IIII", argsz, 0, PLAIN, 0))


@pytest.fixture
def subs(device: FakeDevice, eventfd: Callable[[], int]) -> list[IoEventFd | IoRegionFd]:
    return [
        IoEventFd(0x10, 4, eventfd(), datamatch=0x42),
        IoRegionFd(0x20, 8, eventfd(), 0x11223344, posted_writes=True),
    ]


def test_entries_of_ioregionfds_alone_have_32_bytes(draft: Link, subs: list[IoEventFd | IoRegionFd]) -> None:
    draft.device.subs[PLAIN] = [*subs[1:], *subs[1:]]
    answer = io_fds(draft, 4096)
    entry = REGION[:16] + bytes(4) + REGION[20:]  # of fd_index 0
    assert answer.payload == struct.pack("<IIII", 32 + 64, 0, PLAIN, 2) + entry * 2
    assert len(answer.fds) == 1


def test_entries_of_both_kinds_have_one_stride(draft: Link, subs: list[IoEventFd | IoRegionFd]) -> None:
    draft.device.subs[PLAIN] = [*subs]
    answer = io_fds(draft, 32 + 80)
    assert answer.payload == struct.pack("<IIII", 32 + 80, 0, PLAIN, 2) + EVENT + REGION + bytes(8)


def test_too_little_room_is_answered_with_what_is_needed(draft: Link, subs: list[IoEventFd | IoRegionFd]) -> None:
    draft.device.subs[PLAIN] = [*subs]
    answer = io_fds(draft, 32 + 79)
    assert (answer.payload, answer.fds) == (struct.pack("<IIII", 32 + 80, 0, PLAIN, 2), [])
    assert io_fds(draft, 31).error == errno.EINVAL  # "at least the size of the response header"


def test_a_region_id_has_32_bits(draft: Link, eventfd: Callable[[], int]) -> None:
    draft.device.subs[PLAIN] = [IoRegionFd(0, 4, eventfd(), 1 << 32)]
    assert io_fds(draft, 4096).error == errno.EINVAL
    assert "region_id 0x100000000" in str(draft.device.refusals[0])


@given(
    st.lists(
        st.builds(IoRegionFd, st.integers(0, 4), st.just(4), st.just(3), st.integers(0, (1 << 32) - 1))
        | st.builds(IoEventFd, st.integers(0, 4), st.just(4), st.just(3), st.none() | st.integers(0, (1 << 64) - 1)),
        max_size=4,
    )
)
@settings(max_examples=30)
def test_entries_are_read_as_they_were_written(given: list[IoEventFd | IoRegionFd]) -> None:
    entries, fds = pack_sub_regions(given, entries=DRAFT_ENTRIES)
    payload = struct.pack("<IIII", 32 + len(entries), 0, 0, len(given)) + entries
    assert unpack_sub_regions(memoryview(payload), fds, 8, DRAFT_ENTRIES) == given


@given(st.integers(0, 200), st.integers(0, 5), st.binary(max_size=170))
def test_any_entries_are_read_or_refused(argsz: int, number: int, data: bytes) -> None:
    with suppress(ProtocolError):
        unpack_sub_regions(memoryview(struct.pack("<IIII", argsz, 0, 0, number) + data), [1, 2], 64, DRAFT_ENTRIES)


def test_an_ioeventfd_has_40_bytes() -> None:
    payload = struct.pack("<IIII", 64, 0, 0, 1) + EVENT[:32]
    with pytest.raises(ProtocolError, match="an ioeventfd needs an entry of 40 bytes, not 32"):
        unpack_sub_regions(memoryview(payload), [1], 64, DRAFT_ENTRIES)


# -- VM_INTERRUPT: message size 20


def test_an_interrupt_without_an_eventfd_is_a_message(draft: Link) -> None:
    assert draft.session.irqs.trigger(MSIX, 5)
    assert draft.receive()[1:] == (INTERRUPT, NO_REPLY, 0, struct.pack("<I", 5), [])


def test_an_eventfd_takes_the_place_of_the_message(draft: Link, eventfd: Callable[[], int]) -> None:
    fd = eventfd()
    draft.ok(SET, request(EVENTFD | TRIGGER, MSIX), fds=[fd])
    assert draft.session.irqs.trigger(MSIX, 0)
    assert (count(fd), draft.silent) == (1, True)


def test_a_masked_interrupt_is_kept(draft: Link) -> None:
    draft.ok(SET, request(NONE | MASK, MSIX))
    assert not draft.session.irqs.trigger(MSIX, 0)
    assert draft.silent
    assert draft.session.irqs.pending(MSIX, 0)


def test_a_level_is_sent_once_and_again_after_an_unmask(draft: Link) -> None:
    for _ in range(2):
        draft.session.irqs.set_level(True)
    assert draft.receive().payload == bytes(4)
    assert draft.silent
    draft.send(SET, request(NONE | UNMASK, INTX))
    draft.session.service()
    assert [draft.receive().command for _ in range(2)] == [INTERRUPT, SET]


def test_no_interrupt_is_sent_before_version_or_to_who_has_left(device: FakeDevice) -> None:
    with closing(Link(device, dialect=DRAFT_2021)) as link:
        assert not link.session.irqs.trigger(MSIX, 0)
        link.session.irqs.set_level(True)
        assert link.silent
        link.greet()
        link.sock.close()
        assert not link.session.irqs.trigger(MSIX, 1)
        assert link.session.irqs.pending(MSIX, 1)


def test_a_hook_may_interrupt_and_keeps_the_data_of_its_write(draft: Link) -> None:
    seen = []

    def hook(region: int, offset: int, data: memoryview) -> None:
        draft.session.irqs.trigger(MSIX, 1)
        seen.append(bytes(data))

    draft.device.on_write = hook
    draft.send(Command.REGION_WRITE, struct.pack("<QII", 0, PLAIN, 8) + b"doorbell")
    draft.session.service()
    assert [draft.receive().command for _ in range(2)] == [INTERRUPT, Command.REGION_WRITE]
    assert seen == [b"doorbell"]


# -- DMA_READ and DMA_WRITE: message size 28 + data


def test_dma_messages_have_a_count_of_32_bits(device: FakeDevice) -> None:
    with served(device, dialect=DRAFT_2021) as (server, sock), closing(Wire(sock)) as wire:
        wire.send(Command.VERSION, bytes(4))
        wire.receive()
        future = server.call(lambda: server.session.dma_write(GUEST, b"data"))
        asked = wire.receive()
        assert (asked.command, asked.payload) == (Command.DMA_WRITE, struct.pack("<QI", GUEST, 4) + b"data")
        wire.reply(asked, struct.pack("<QI", GUEST, 0))  # "the count field in the reply message must be zero"
        future.result()
        future = server.call(lambda: server.session.dma_read(GUEST, 4))
        asked = wire.receive()
        assert (asked.command, asked.payload) == (Command.DMA_READ, struct.pack("<QI", GUEST, 4))
        wire.reply(asked, asked.payload + b"back")
        assert future.result() == b"back"
        future = server.call(lambda: server.session.dma_write(GUEST, b"data"))
        wire.reply(wire.receive(), struct.pack("<QI", GUEST + 1, 0))
        with pytest.raises(ProtocolError, match="DMA_WRITE reply: not for the 4 bytes"):
            future.result()


# -- DIRTY_PAGES


class FakeLog:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def start(self, control: LoggingControl) -> int:
        self.calls.append(f"start {control.ranges}")
        return control.page_size

    def report(self, asked: LoggingReport) -> bytes:
        self.calls.append(f"report {asked.iova:#x} {asked.length:#x} {asked.page_size:#x}")
        return b"\x05".ljust(asked.bitmap_size, b"\0")

    def stop(self) -> None:
        self.calls.append("stop")


def dirty(flags: int, *rest: int, argsz: int = 48) -> memoryview:
    """A request, by the fields of linux/vfio.h."""
    return memoryview(struct.pack("<II", argsz, flags) + struct.pack(f"<{len(rest)}Q", *rest))


def ask(payload: memoryview, log: FakeLog) -> bytes:
    return b"".join(answer_dirty_pages(Message(1, DIRTY, 0, 0, payload, []), log).parts)


def test_a_log_is_started_read_and_stopped() -> None:
    log = FakeLog()
    assert ask(dirty(1), log) == b""
    bitmap = ask(dirty(4, 0x10000, 0x9000, 4096, 16, 0), log)
    assert bitmap == struct.pack("<QQQ", 4096, 16, 0) + b"\x05".ljust(16, b"\0")
    assert ask(dirty(2), log) == b""
    assert log.calls == ["start ()", "report 0x10000 0x9000 0x1000", "stop"]


BAD_DIRTY = {
    "short": memoryview(bytes(7)),
    "argsz": dirty(1, argsz=7),
    "no flag": dirty(0),
    "two flags": dirty(3),
    "unknown flag": dirty(8),
    "no range": dirty(4),
    "cut": dirty(4, 0, 4096, 4096, 8),
    "empty range": dirty(4, 0, 0, 4096, 8, 0),
    "wraps around": dirty(4, 4096, (1 << 64) - 4096 + 1, 4096, 8, 0),
    "page size": dirty(4, 0, 4096, 4095, 8, 0),
    "no page size": dirty(4, 0, 4096, 0, 8, 0),
    "little room": dirty(4, 0, 9 * 4096, 4096, 1, 0),
    "much room": dirty(4, 0, 4096, 4096, (1 << 20) + 1, 0),
}


@pytest.mark.parametrize("payload", BAD_DIRTY.values(), ids=BAD_DIRTY)
def test_a_request_about_dirty_pages_that_cannot_be_is_refused(payload: memoryview) -> None:
    log = FakeLog()
    with pytest.raises(ProtocolError, match="DIRTY_PAGES"):
        ask(payload, log)
    assert log.calls == []


@given(st.binary(max_size=64) | st.binary(min_size=40, max_size=48).map(lambda data: dirty(4).tobytes() + data))
def test_any_request_about_dirty_pages_is_read_or_refused(data: bytes) -> None:
    with suppress(VfioUserError):
        found = DirtyRequest.unpack(memoryview(data))
        assert DirtyRequest.unpack(memoryview(found.pack())) == found
        assert found.flags is DirtyFlags.GET_BITMAP or found.report is None


def test_a_successor_does_it_again_where_the_ratified_number_would_be_an_access(device: FakeDevice) -> None:
    """15 is REGION_WRITE_MULTI elsewhere: that may not be done twice."""
    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        journal = Journal.of(SERVER, Estate(), Ledger())
        before = Session(ours, device, dialect=DRAFT_2021, journal=journal)
        wire.send(Command.VERSION, bytes(4))
        before.service()
        wire.receive()
        wire.send(DIRTY, bytes(dirty(2)))
        assert before._channel.receive() is not None
        before._channel.marks[BUSY] = before._channel.start
        kept = {"journal": Kept("journal", {}, (os.dup(journal.fd),)), "version": Kept("version", {})}
        estate = Estate(kept)
        sock = socket.socket(fileno=os.dup(ours.fileno()))
        after = Session(sock, device, dialect=DRAFT_2021, journal=Journal.of(SERVER, estate, Ledger()))
        after.take_over(estate)
        after.finish(estate, again=False)
        estate.close()
        assert wire.receive()[1:4] == (DIRTY, REPLY, 0)
        after.close()
        before.close()


# -- ours against ours


def assert_(what: bool) -> None:
    assert what


def test_our_client_and_our_server_speak_it(device: FakeDevice, subs: list[IoEventFd | IoRegionFd]) -> None:
    memory = GuestMemory(4096)
    interrupts: list[int] = []
    device.subs[PLAIN] = [*subs]
    with (
        served(device, dialect=DRAFT_2021) as (server, sock),
        Client(sock, dialect=DRAFT_2021, memory=memory, interrupt=interrupts.append) as client,
    ):
        assert client.mechanisms == frozenset((Mechanism.IOEVENTFD, Mechanism.IOREGIONFD))
        assert client.most_writes == 0
        client.write(PLAIN, 8, b"abcd")
        assert client.read(PLAIN, 8, 4) == b"abcd"
        client.reset()
        assert device.calls[-1] == "reset"
        event, region = client.io_fds(PLAIN)
        assert isinstance(region, IoRegionFd)
        assert (event.offset, region.offset, region.user_data) == (0x10, 0x20, 0x11223344)
        for fd in (event.fd, region.fd):
            os.close(fd)
        device.on_read = lambda *_: server.session.dma_read(GUEST, 8)
        assert client.read(PLAIN, 0, 8) == memory.data[:8]
        device.on_write = lambda _region, _offset, data: server.session.dma_write(GUEST, data)
        client.write(PLAIN, 0, b"by message")
        assert memory.data[:10] == b"by message"
        device.on_write = lambda *_: assert_(server.session.irqs.trigger(MSIX, 3))
        client.write(PLAIN, 0, b"ring")
        assert interrupts == [3]
        with pytest.raises(VfioUserError, match="DEVICE_FEATURE: the dialect draft-2021 has no such command"):
            client.device_feature(FeatureFlags.GET, 1)


def test_there_is_no_migration_in_it(device: FakeDevice) -> None:
    with joined(device, server={"dialect": DRAFT_2021}, dialect=DRAFT_2021) as (client, _):
        assert client.migration.flags() == MigrationFlags(0)
        with pytest.raises(VfioUserError, match="MIG_DATA_READ: the dialect draft-2021 has no such command"):
            client.migration.read(4096)
        with pytest.raises(VfioUserError, match="MIG_DATA_WRITE: the dialect draft-2021 has no such command"):
            client.migration.write(b"state")


def test_what_the_device_writes_is_logged(device: FakeDevice) -> None:
    memory = GuestMemory(16 * 4096)
    device.on_write = lambda _region, offset, data: server.session.dma_write(GUEST + 4096 * offset, data)
    with (
        served(device, dialect=DRAFT_2021) as (server, sock),
        Client(sock, dialect=DRAFT_2021, memory=memory) as client,
    ):
        client.dma_map(GUEST, 16 * 4096)
        assert client.dirty.start([], 4096) == 4096
        for page in (1, 9):
            client.write(PLAIN, page, b"written")
        assert client.dirty.report(GUEST, 16 * 4096, 4096) == b"\2\2".ljust(8, b"\0")
        assert client.dirty.report(GUEST, 16 * 4096, 4096) == bytes(8)
        client.dirty.stop()
        with pytest.raises(RemoteError):
            client.dirty.report(GUEST, 4096, 4096)


@pytest.mark.parametrize("ours", DIALECTS.values(), ids=DIALECTS)
def test_who_speaks_the_other_dialect_is_told_so_at_a_reset(device: FakeDevice, ours: object) -> None:
    theirs = RATIFIED if ours is DRAFT_2021 else DRAFT_2021
    with served(device, dialect=ours) as (_, sock), Client(sock, dialect=theirs) as client:
        with pytest.raises(RemoteError) as refusal:
            client.reset()
        assert refusal.value.errno == errno.EINVAL


@pytest.mark.parametrize("payload", [b"", bytes(3), bytes(5)])
def test_an_interrupt_of_the_wrong_size_is_refused(
    fake_server: Callable[..., tuple[Client, Wire]], payload: bytes
) -> None:
    raised: list[int] = []
    client, wire = fake_server(dialect=DRAFT_2021, interrupt=raised.append, answer=bytes(4))
    wire.raw(message(INTERRUPT, payload))
    client.poll(1)
    assert wire.receive()[1:4] == (INTERRUPT, REPLY | ERROR, errno.EINVAL)
    assert raised == []


def test_an_interrupt_that_wants_a_reply_gets_one(fake_server: Callable[..., tuple[Client, Wire]]) -> None:
    client, wire = fake_server(dialect=DRAFT_2021, answer=bytes(4))
    wire.raw(message(INTERRUPT, bytes(4)))
    client.poll(1)
    assert wire.receive()[1:5] == (INTERRUPT, REPLY, 0, b"")
