"""nvme's fast path: which reads and writes it does itself, and which it leaves to the other one."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import IoOpcode
from bellwire.model.dma import Dma
from bellwire.testing import Guest
from nvme.driver import MEMORY, PAGE
from pieces import cut
from vfio_user import DmaFlags, DmaMap

AT = 0x10_0000
"""Where the data goes."""
LIST = 0x8000
"""A page for lists of pages."""
WRITE = IoOpcode.WRITE
CONTENT = bytearray(b"".join(block.to_bytes(512, "little") for block in range(2100)))


def command(
    prp1: int = AT, prp2: int = 0, first: int = 0, count: int = 1, *, nsid: int = 1, opcode: int = 2, flags: int = 0
) -> bytes:
    """A command as the guest writes it; its id is its first block, so that one can be told from the others."""
    return struct.pack(
        "<BBHIQQQQ6I", opcode, flags, first & 0xFFFF, nsid, 0, 0, prp1, prp2,
        first & 0xFFFF_FFFF, first >> 32, count - 1, 0, 0, 0,
    )  # fmt: skip


@contextlib.contextmanager
def with_fds(guest: Guest[Nvme]) -> Iterator[AtOnce]:
    """Both namespaces are in files, where the first one has in its first blocks their numbers."""
    with contextlib.ExitStack() as stack:
        for nsid, content in ((1, CONTENT), (2, b"")):
            disk = guest.device.controller.namespaces[nsid].disk
            disk.view, disk.at_once = memoryview(b""), 0
            disk.fd = os.memfd_create("image", os.MFD_CLOEXEC)
            stack.callback(os.close, disk.fd)
            os.ftruncate(disk.fd, disk.size)
            os.pwrite(disk.fd, content, 0)
        yield guest.device.controller.engine._at_once


@pytest.fixture(params=["memory", "files"])
def fast(guest: Guest[Nvme], request: pytest.FixtureRequest) -> Iterator[AtOnce]:
    """That of a device whose first namespace has in its first blocks their numbers."""
    if request.param == "files":
        with with_fds(guest) as fast:
            yield fast
    else:
        guest.device.controller.namespaces[1].disk.write([CONTENT], 0)
        yield guest.device.controller.engine._at_once


@pytest.fixture
def by_fd(guest: Guest[Nvme]) -> Iterator[AtOnce]:
    """The same in files only."""
    with with_fds(guest) as fast:
        yield fast


@pytest.fixture
def writing(guest: Guest[Nvme]) -> AtOnce:
    """That of a device whose disks have a view."""
    return guest.device.controller.engine._at_once


@pytest.fixture
def pages(guest: Guest[Nvme]) -> Any:
    """Puts a list of pages into guest memory."""

    def put(address: int, *numbers: int) -> int:
        struct.pack_into(f"<{len(numbers)}Q", guest.memory, address, *numbers)
        return address

    return put


@pytest.mark.parametrize(
    "plain",
    [
        command(first=16383),
        command(first=16380, count=4),
        command(nsid=2),
        command(flags=1 << 2),
        command(MEMORY - 512),
        command(AT + 4),
        command(AT, 0xBAD, count=8),  # one page: nobody looks at the second pointer
        command(AT + 512, AT + PAGE, count=8),
        command(AT + 512, AT + PAGE, count=15),
    ],
)
def test_a_plain_read_is_done(fast: AtOnce, plain: bytes) -> None:
    assert fast.transfer(plain) == ([struct.unpack_from("<H", plain, 2)[0]], [], 0)


@pytest.mark.parametrize(
    "other",
    [
        command(opcode=IoOpcode.COMPARE),
        command(flags=1),
        command(flags=1 << 6),
        command(flags=1 << 7),
        command(nsid=0),
        command(nsid=3),
        command(AT + 1),
        command(AT + 2),
        command(first=16384),
        command(first=16383, count=2),
        command(first=1 << 32),
        command(MEMORY - 256, 4),
        command(MEMORY - 256, MEMORY),
        command(MEMORY),
        command(1 << 50),
        command(AT, AT + 4, count=16),
        command(AT, MEMORY, count=16),
        command(AT, 1 << 63, count=16),
        command(AT, AT + PAGE + 4, count=9),
        command(AT + 512, 4, count=8),
        command(AT, LIST + 4, count=24),
        command(AT, MEMORY, count=24),
        command(AT, LIST + PAGE - 8, count=24),
    ],
)
def test_a_read_that_is_not_plain_is_left(fast: AtOnce, other: bytes, pages: Any) -> None:
    for at in range(LIST - 4, LIST + 8):
        pages(at, AT + PAGE, AT + 2 * PAGE)
    pages(LIST + PAGE - 8, AT + PAGE, AT + 2 * PAGE)
    assert fast.transfer(other) == ([], [other], 0)


@pytest.mark.parametrize("count", [2, 3, 32, 255])
@pytest.mark.parametrize("into", [0, 512, PAGE - 512])
def test_pages_in_a_row_are_read_into(fast: AtOnce, guest: Guest[Nvme], pages: Any, count: int, into: int) -> None:
    """The list may end where its page ends, which is the last that the fast path looks at."""
    where = pages(LIST + PAGE - 8 * count, *(AT + PAGE * number for number in range(1, count + 1)))
    size = count * PAGE + PAGE - into
    assert fast.transfer(command(AT + into, where, first=7, count=size >> 9)) == ([7], [], 0)
    numbers = [int.from_bytes(guest.memory[at : at + 512], "little") for at in range(AT + into, AT + into + size, 512)]
    assert numbers == list(range(7, 7 + (size >> 9)))
    assert not any(guest.memory[AT + into + size :][:512])


def scattered(count: int) -> list[int]:
    """Every other page behind AT, from the last to the first."""
    return [AT + 2 * PAGE * number for number in range(count, 0, -1)]


def numbers_in(guest: Guest[Nvme], into: int, spread: list[int]) -> list[int]:
    """The numbers of the blocks that are in memory, from AT + ``into`` on and then in the pages ``spread``."""
    places = [*range(AT + into, AT + PAGE, 512), *(at for page in spread for at in range(page, page + PAGE, 512))]
    return [int.from_bytes(guest.memory[at : at + 512], "little") for at in places]


@pytest.mark.parametrize("into", [0, 512, PAGE - 512])
@pytest.mark.parametrize("sectors", [9, 16, 23, 24, 63, 64, 80, 81, 88])
def test_pages_are_read_into_wherever_they_lie(
    fast: AtOnce, guest: Guest[Nvme], pages: Any, into: int, sectors: int
) -> None:
    spread = scattered(-(-((sectors << 9) + into) // PAGE) - 1)
    where = pages(LIST + PAGE - 8 * len(spread), *spread) if len(spread) > 1 else spread[0]
    assert fast.transfer(command(AT + into, where, first=7, count=sectors)) == ([7], [], 0)
    found = numbers_in(guest, into, spread)
    assert found[:sectors] == list(range(7, 7 + sectors))
    assert not any(found[sectors:])


@pytest.mark.parametrize("sectors", [9, 16, 23, 88])
def test_pages_are_written_from_wherever_they_lie(
    writing: AtOnce, guest: Guest[Nvme], pages: Any, sectors: int
) -> None:
    spread = scattered(-(-(sectors << 9) // PAGE) - 1)
    where = pages(LIST, *spread) if len(spread) > 1 else spread[0]
    for number, page in enumerate((AT, *spread)):
        guest.memory[page : page + PAGE] = bytes([number + 1]) * PAGE
    assert writing.transfer(command(AT, where, first=7, count=sectors, opcode=WRITE)) == ([7], [], 0)
    content = guest.device.controller.namespaces[1].disk.view[: 7 + sectors + 1 << 9]
    assert bytes(content[::512]) == bytes(7) + bytes(1 + n // 8 for n in range(sectors)) + b"\0"


@pytest.mark.parametrize("stray", [0, 4, 9])
@pytest.mark.parametrize("page", [AT + 4, AT + 1, MEMORY, MEMORY - 512, 1 << 63, (1 << 64) - PAGE])
def test_a_read_with_a_wrong_page_is_left(fast: AtOnce, pages: Any, stray: int, page: int) -> None:
    spread = scattered(10)
    spread[stray] = page
    other = command(AT, pages(LIST, *spread), count=88)
    assert fast.transfer(other) == ([], [other], 0)


@pytest.mark.parametrize("where", [LIST + 4, LIST + PAGE - 72, MEMORY, 1 << 63])
def test_a_read_whose_list_is_wrong_or_has_two_pages_is_left(fast: AtOnce, pages: Any, where: int) -> None:
    pages(LIST, *scattered(10))
    other = command(AT, where, count=88)
    assert fast.transfer(other) == ([], [other], 0)


@pytest.mark.parametrize(("count", "is_left"), [(2048, False), (2049, True)])
def test_a_read_of_more_than_a_mebibyte_is_left(fast: AtOnce, pages: Any, count: int, is_left: bool) -> None:
    block = command(AT, pages(LIST, *(AT + PAGE * number for number in range(1, 257))), count=count)
    assert fast.transfer(block) == (([], [block], 0) if is_left else ([0], [], 0))


def test_what_is_done_and_what_is_left_keeps_its_order(fast: AtOnce) -> None:
    block = [command(first=1), command(first=2, opcode=5), command(first=3, nsid=9), command(first=4)]
    assert fast.transfer(b"".join(block)) == ([1, 4], block[1:3], 0)


def test_each_read_is_of_its_own_namespace(fast: AtOnce, guest: Guest[Nvme]) -> None:
    block = [command(AT, first=5), command(AT + 512, first=6, nsid=2), command(AT + 1024, first=7)]
    assert fast.transfer(b"".join(block)) == ([5, 6, 7], [], 0)
    found = [int.from_bytes(guest.memory[AT + at : AT + at + 512], "little") for at in (0, 512, 1024)]
    assert found == [5, 0, 7]


def test_half_a_mebibyte_is_enough_for_one_batch(fast: AtOnce, pages: Any) -> None:
    where = pages(LIST, *(AT + PAGE * number for number in range(1, 32)))
    block = [command(AT, where, first=number, count=256) for number in range(6)]
    assert fast.transfer(b"".join(block)) == ([0, 1, 2, 3], [], 2)


@pytest.mark.parametrize(("budget", "done"), [(512, [1]), (511, []), (1024, [1, 2]), (1023, [1])])
def test_no_more_is_read_than_the_budget_allows(fast: AtOnce, guest: Guest[Nvme], budget: int, done: list[int]) -> None:
    io = guest.device.controller.engine._io
    io.budget = budget
    block = [command(first=1), command(first=2)]
    assert fast.transfer(b"".join(block)) == (done, block[len(done) :], 0)
    assert io.budget == budget - 512 * len(done)


def test_what_was_read_is_counted(fast: AtOnce, guest: Guest[Nvme], monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr(Dma, "touched", lambda _, size: touched.append(size))
    fast.transfer(command(count=3) + command(count=5) + command(nsid=9))
    counters = guest.device.controller.logs.counters
    assert (counters.reads, counters.sectors_read, counters.writes, touched) == (2, 8, 0, [8 * 512])


@pytest.mark.parametrize("count", [1, 8, 9, 40])
def test_a_plain_write_is_done_and_counted(writing: AtOnce, guest: Guest[Nvme], pages: Any, count: int) -> None:
    guest.memory[AT : AT + len(CONTENT)] = CONTENT
    where = AT + PAGE if count < 17 else pages(LIST, *(AT + PAGE * number for number in range(1, 5)))
    block = command(AT, where, first=7, count=count, opcode=WRITE) + command(AT, first=0)
    assert writing.transfer(block) == ([7, 0], [], 0)
    disk = guest.device.controller.namespaces[1].disk
    assert disk.view[: (7 + count + 1) << 9] == bytes(7 << 9) + CONTENT[: count << 9] + bytes(1 << 9)
    counters = guest.device.controller.logs.counters
    assert (counters.writes, counters.sectors_written, counters.reads, counters.sectors_read) == (1, count, 1, 1)


def test_reads_and_writes_share_the_budget_and_are_reported_together(
    writing: AtOnce, guest: Guest[Nvme], monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[int] = []
    monkeypatch.setattr(Dma, "touched", lambda _, size: touched.append(size))
    io = guest.device.controller.engine._io
    io.budget = 2560
    block = [command(first=1, opcode=WRITE), command(first=2, count=4), command(first=3, opcode=WRITE)]
    assert writing.transfer(b"".join(block)) == ([1, 2], [block[2]], 0)
    assert (io.budget, touched) == (0, [2560])


def test_a_write_to_a_read_only_disk_or_one_without_a_view_is_left(writing: AtOnce, guest: Guest[Nvme]) -> None:
    spaces = guest.device.controller.namespaces
    spaces[1].disk.readonly = True
    spaces[2].disk.view = memoryview(b"")
    block = [command(opcode=WRITE), command(opcode=WRITE, nsid=2), command(first=5)]
    assert writing.transfer(b"".join(block)) == ([5], block[:2], 0)


@pytest.mark.parametrize("opcode", [IoOpcode.READ, WRITE])
def test_blocks_behind_the_last_one_of_the_namespace_are_left(
    writing: AtOnce, guest: Guest[Nvme], opcode: IoOpcode
) -> None:
    guest.device.controller.namespaces[1].blocks = 8
    last, beyond = command(first=7, opcode=opcode), command(first=8, opcode=opcode)
    assert writing.transfer(last + beyond) == ([7], [beyond], 0)


def test_a_map_is_looked_up_once_until_maps_change(
    writing: AtOnce, guest: Guest[Nvme], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    usual = guest.shared_map

    def look(address: int, write: bool) -> Any:
        looked.append(write)
        return usual(address, write)

    monkeypatch.setattr(guest, "shared_map", look)
    guest.device.dma.changed()
    for _ in range(2):
        assert writing.transfer(command() + command(AT + PAGE)) == ([0, 0], [], 0)
    assert looked == [True, False]
    guest.device.dma.changed()
    assert writing.transfer(command()) == ([0], [], 0)
    assert looked == [True, False] * 2


def test_a_buffer_is_checked_once_until_maps_change(
    writing: AtOnce, guest: Guest[Nvme], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[int] = []
    usual = writing._views

    def views(prp1: int, prp2: int, length: int) -> Any:
        checked.append(prp1)
        return usual(prp1, prp2, length)

    monkeypatch.setattr(writing, "_views", views)
    block = command(AT) + command(AT + 512) + command(AT, count=2) + command(AT, AT + PAGE, count=9)
    for _ in range(2):
        assert writing.transfer(block) == ([0] * 4, [], 0)
    assert checked == [AT, AT + 512, AT, AT, AT], "one of two pages is checked each time"
    guest.device.dma.changed()
    assert writing.transfer(command(AT)) == ([0], [], 0)
    assert checked[5:] == [AT]


def test_a_buffer_in_memory_that_was_unmapped_is_left(fast: AtOnce, guest: Guest[Nvme]) -> None:
    assert fast.transfer(command()) == ([0], [], 0)
    guest._dma.clear()
    guest.device.dma.changed()
    assert fast.transfer(command()) == ([], [command()], 0)


def test_no_more_than_a_thousand_buffers_of_a_size_are_remembered(fast: AtOnce) -> None:
    for number in range(1100):
        assert fast.transfer(command(512 * number)) == ([0], [], 0)
    assert len(fast._buffers[512]) == 1100 - 1024


def test_a_namespace_with_lost_blocks_is_left(fast: AtOnce, guest: Guest[Nvme]) -> None:
    guest.device.controller.namespaces[1].lost.add(100, 1)
    block = [command(first=1), command(first=2, nsid=2)]
    assert fast.transfer(b"".join(block)) == ([2], block[:1], 0)


def test_a_disk_that_might_wait_is_left(by_fd: AtOnce, guest: Guest[Nvme]) -> None:
    guest.device.controller.namespaces[1].disk.at_once = None
    assert by_fd.transfer(command()) == ([], [command()], 0)


@pytest.mark.parametrize("answer", [OSError(errno.EAGAIN, "wait"), OSError(errno.EIO, "bad"), 511, 0])
def test_a_read_that_would_wait_fails_or_is_cut_short_is_left(
    by_fd: AtOnce, monkeypatch: pytest.MonkeyPatch, answer: OSError | int
) -> None:
    def preadv(*_: object) -> int:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(os, "preadv", preadv)
    assert by_fd.transfer(command()) == ([], [command()], 0)


def large(pages: Any, first: int, into: int, *, nsid: int = 1) -> bytes:
    """A read of 64 KiB to AT + ``into``."""
    where = pages(LIST + into // 256, *range(AT + into + PAGE, AT + into + (64 << 10), PAGE))
    return command(AT + into, where, first=first, count=128, nsid=nsid)


def test_large_reads_that_follow_one_another_are_one_system_call(
    by_fd: AtOnce, guest: Guest[Nvme], pages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, int]] = []
    usual = os.preadv

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
        calls.append((len(views), offset))
        return usual(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    places = ((0, 1), (128, 1), (256, 1), (512, 1), (640, 2), (1000, 1))
    block = [large(pages, first, number << 16, nsid=nsid) for number, (first, nsid) in enumerate(places)]
    assert by_fd.transfer(b"".join(block)) == ([first for first, _ in places], [], 0)
    assert calls == [(3, 0), (1, 512 << 9), (1, 640 << 9), (1, 1000 << 9)]
    for number, (first, nsid) in enumerate(places):
        at = AT + (number << 16)
        found = [int.from_bytes(guest.memory[each : each + 512], "little") for each in (at, at + (64 << 10) - 512)]
        assert found == ([first, first + 127] if nsid == 1 else [0, 0])


@pytest.mark.parametrize(("came", "done"), [(192 << 10, 3), ((192 << 10) - 1, 2), (64 << 10, 1), (1, 0), (-1, 0)])
def test_of_large_reads_those_that_did_not_come_whole_are_left(
    by_fd: AtOnce, guest: Guest[Nvme], pages: Any, monkeypatch: pytest.MonkeyPatch, came: int, done: int
) -> None:
    def preadv(*_: object) -> int:
        if came < 0:
            raise BlockingIOError
        return came

    monkeypatch.setattr(os, "preadv", preadv)
    io, counters = guest.device.controller.engine._io, guest.device.controller.logs.counters
    budget = io.budget
    block = [large(pages, 128 * number, number << 16) for number in range(3)]
    assert by_fd.transfer(b"".join(block)) == ([0, 128, 256][:done], block[done:], 0)
    assert budget - io.budget == done * (64 << 10)
    assert (counters.reads, counters.sectors_read) == (done, 128 * done)


def test_memory_in_several_maps_is_found_map_by_map(fast: AtOnce, guest: Guest[Nvme]) -> None:
    memory = cut(guest, [0x100, 0x101])
    places = [AT - 512, AT, AT + PAGE, AT + PAGE - 512]
    block = [command(place, first=number) for number, place in enumerate(places, 1)]
    assert fast.transfer(b"".join(block)) == ([1, 2, 3, 4], [], 0)
    assert [int.from_bytes(memory[place : place + 512], "little") for place in places] == [1, 2, 3, 4]
    across = command(AT - 256, AT)
    assert fast.transfer(across) == ([], [across], 0)


@pytest.mark.parametrize("why", ["read only", "write only", "nothing there", "bus mastering off"])
def test_memory_that_cannot_be_read_and_written_is_left(fast: AtOnce, guest: Guest[Nvme], why: str) -> None:
    if why == "bus mastering off":
        guest.config_write(4, 0, 2)
    else:
        guest._dma.clear()
        if why != "nothing there":
            flags = DmaFlags.READ if why == "read only" else DmaFlags.WRITE
            guest._dma.map(DmaMap(flags, 0, 0, MEMORY), os.dup(guest._memory_fd))
        guest.device.dma.changed()
    assert fast.transfer(command()) == ([], [command()], 0)
