"""A session tells its ledger of its set-up before it acknowledges it, and another session goes on from there."""

from __future__ import annotations

import mmap
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from protocol.backend import DEADLINE, REPLY, FakeDevice, Wire, message, served
from vfio_user import (
    SERVER,
    Client,
    Command,
    Estate,
    IrqIndex,
    IrqTable,
    Journal,
    Kept,
    Ledger,
    RemoteError,
    Session,
    SetIrqs,
    SetIrqsFlags,
    TimedOut,
)

PAGE = mmap.PAGESIZE


class Book(Ledger):
    """A ledger in this process, with descriptors of its own."""

    def __init__(self) -> None:
        self.entries: dict[str, Kept] = {}

    def keep(self, *entries: Kept) -> None:
        for entry in entries:
            self.drop(entry.key)
            self.entries[entry.key] = entry._replace(fds=tuple(os.dup(fd) for fd in entry.fds))

    def drop(self, *keys: str) -> None:
        for key in keys:
            entry = self.entries.pop(key, None)
            for fd in () if entry is None else entry.fds:
                os.close(fd)

    def clear(self) -> None:
        self.drop(*self.entries)

    def kinds(self) -> list[str]:
        """The kinds of its entries. (A command that is answered may be in it for a moment longer.)"""
        return [key.partition(" ")[0] for key in self.entries if key != "begun"]


@pytest.fixture
def book() -> Iterator[Book]:
    book = Book()
    yield book
    book.clear()


@pytest.fixture
def client(device: FakeDevice, book: Book) -> Iterator[Client]:
    with served(device, ledger=book) as (_, sock), Client(sock, timeout=DEADLINE) as client:
        yield client


@pytest.fixture
def heir() -> Iterator[FakeDevice]:
    """The device in another process."""
    with closing(FakeDevice()) as device:
        yield device


@pytest.fixture
def successor(heir: FakeDevice, book: Book) -> Iterator[Callable[[], Session]]:
    """Make a session that takes over what the ledger has by now."""
    with ExitStack() as stack:

        def make() -> Session:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            session = Session(ours, heir, ledger=Ledger())
            stack.callback(session.close)
            entries = {key: entry._replace(fds=tuple(map(os.dup, entry.fds))) for key, entry in book.entries.items()}
            estate = Estate(entries)
            session.take_over(estate)
            estate.close()
            return session

        yield make


def test_what_the_client_can_take_is_taken_over(client: Client, successor: Callable[[], Session]) -> None:
    assert client.mechanisms is not None
    found = successor().client
    assert found is not None
    assert found.io_fds == client.mechanisms


def test_memory_is_mapped_again_with_the_same_rights(
    client: Client, successor: Callable[[], Session], memfd: Callable[[int], int]
) -> None:
    fd = memfd(4 * PAGE)
    os.pwrite(fd, b"here", PAGE)
    client.dma_map(0x10000, 2 * PAGE, fd=fd, offset=PAGE)
    client.dma_map(0x20000, PAGE, fd=fd, write=False)
    client.dma_map(0x30000, PAGE)
    table = successor().dma
    assert [(each.start, each.size, each.writable, each.view is None) for each in table] == [
        (0x10000, 2 * PAGE, True, False),
        (0x20000, PAGE, False, False),
        (0x30000, PAGE, True, True),
    ]
    (segment,) = table.segments(0x10000, 4, write=True)
    assert segment.view is not None
    assert bytes(segment.view) == b"here"
    segment.view[:] = b"seen"
    assert os.pread(fd, 4, PAGE) == b"seen"


def test_maps_of_one_file_share_a_descriptor_which_goes_with_the_last(
    client: Client, book: Book, memfd: Callable[[int], int]
) -> None:
    fd = memfd(8 * PAGE)
    for page in range(8):
        client.dma_map(page * PAGE, PAGE, fd=fd, offset=page * PAGE)
    assert book.kinds() == ["version", "file", *["map"] * 8]
    client.dma_unmap(0, 7 * PAGE)
    assert book.kinds() == ["version", "file", "map"]
    client.dma_unmap(7 * PAGE, PAGE)
    assert book.kinds() == ["version"]


def test_a_file_that_may_only_be_read_is_not_taken_for_the_same_one_that_may_be_written(
    client: Client, book: Book, memfd: Callable[[int], int]
) -> None:
    fd = memfd(PAGE)
    only = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        client.dma_map(0, PAGE, fd=fd)
        client.dma_map(PAGE, PAGE, fd=only, write=False)
    finally:
        os.close(only)
    assert book.kinds() == ["version", "file", "map", "file", "map"]


def test_a_map_that_is_refused_is_not_kept(client: Client, book: Book, memfd: Callable[[int], int]) -> None:
    client.dma_map(0, PAGE, fd=memfd(PAGE))
    before = {key: entry for key, entry in book.entries.items() if key != "begun"}
    with pytest.raises(RemoteError):
        client.dma_map(0, PAGE, fd=memfd(PAGE))
    assert {key: entry for key, entry in book.entries.items() if key != "begun"} == before


def test_a_successor_knows_the_files_of_maps_and_forgets_them_with_the_last(
    client: Client, book: Book, successor: Callable[[], Session], memfd: Callable[[int], int]
) -> None:
    client.dma_map(0, PAGE, fd=memfd(PAGE))
    table = successor().dma
    table.unmap(slice(0, 1))
    assert len(table) == 0


def test_interrupts_go_to_the_eventfds_that_were_set(
    client: Client, book: Book, successor: Callable[[], Session], eventfd: Callable[[], int]
) -> None:
    fds = [eventfd() for _ in range(4)]
    client.trigger_eventfds(IrqIndex.MSIX, 2, fds)
    client.release_eventfds(IrqIndex.MSIX, 3, 1)
    irqs = successor().irqs
    assert [irqs.trigger(IrqIndex.MSIX, vector) for vector in range(8)] == [
        False,
        False,
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert os.eventfd_read(fds[2]) == 1
    client.disable(IrqIndex.MSIX)
    assert book.kinds() == ["version"]


def test_the_line_is_raised_again_when_the_guest_has_unmasked_it(book: Book, eventfd: Callable[[], int]) -> None:
    line, unmask = eventfd(), eventfd()
    before = IrqTable([1], lambda fd, callback: None, lambda fd: None, book)
    for action, fd in ((SetIrqsFlags.TRIGGER, line), (SetIrqsFlags.UNMASK, unmask)):
        before.apply(SetIrqs(SetIrqsFlags.DATA_EVENTFD | action, IrqIndex.INTX, 0, 1), [os.dup(fd)])
    before.clear()
    watched: dict[int, Callable[[], None]] = {}
    after = IrqTable([1], watched.__setitem__, watched.__delitem__)
    after.take_over(Estate(dict(book.entries)))
    book.entries.clear()
    after.set_level(True)
    assert os.eventfd_read(line) == 1
    os.eventfd_write(unmask, 1)
    (rung,) = watched.values()
    rung()
    assert os.eventfd_read(line) == 1
    after.clear()
    assert watched == {}


def test_the_twin_socket_is_taken_over_in_the_middle_of_a_reply(
    device: FakeDevice, heir: FakeDevice, book: Book
) -> None:
    """The process before dies with half a reply received: the stream goes on behind it."""
    ours, theirs = socket.socketpair()
    with closing(Wire(theirs)) as wire:
        before = Session(ours, device, ledger=book, journal=Journal.of(SERVER, Estate(), book), timeout=0.05)
        wire.send(Command.VERSION, bytes(4) + b'{"capabilities":{"twin_socket":{"supported":true}}}\0')
        before.service()
        (end,) = wire.receive().fds
        with closing(Wire(socket.socket(fileno=os.dup(end)))) as twin:
            reply = message(Command.DMA_READ, bytes(8) + (4).to_bytes(8, "little") + b"late", id=1, flags=REPLY)
            twin.raw(reply[:20])
            with pytest.raises(TimedOut):
                before.dma_read(0, 4)
            entries = {key: entry._replace(fds=tuple(map(os.dup, entry.fds))) for key, entry in book.entries.items()}
            estate = Estate(entries)
            after = Session(os_socket(ours), heir, ledger=Ledger(), journal=Journal.of(SERVER, estate, Ledger()))
            after.take_over(estate)
            estate.close()
            twin.receive()
            twin.raw(reply[20:])
            future: list[bytes] = []
            thread = threading.Thread(target=lambda: future.append(after.dma_read(0, 4)))
            thread.start()
            asked = twin.receive()
            twin.reply(asked, reply[16:32] + b"back")
            thread.join(DEADLINE)
            assert future == [b"back"]
            after.close()
            before.close()


def os_socket(of: socket.socket) -> socket.socket:
    """The socket in another process."""
    return socket.socket(fileno=os.dup(of.fileno()))
