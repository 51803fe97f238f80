"""DMA of a device: the first and the last byte of each range, and what is told of a bad one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from bellwire import GuestError, PciDevice
from bellwire.errors import Unshared
from bellwire.testing import Guest
from pieces import cut
from vfio_user import DmaFlags, DmaMap, Segment

SIZE = 1 << 16
LIMIT = 64 << 20


class Mover(PciDevice, vendor=2, device=1, class_code=1, name="mover"):
    pass


@pytest.fixture
def guest() -> Iterator[Guest[Mover]]:
    with Guest(Mover, memory=SIZE) as guest:
        guest.memory[:] = (bytes(range(251)) * 262)[:SIZE]
        yield guest


RANGES = [(0, 1), (0, SIZE), (SIZE - 1, 1), (5, 0), (SIZE - 4096, 4096), (4095, 2), (0x7FFF, 3)]


@pytest.mark.parametrize(("address", "size"), RANGES)
@pytest.mark.parametrize("pieces", [[], [8], range(16)], ids=["whole", "halves", "pages"])
def test_every_byte_of_a_range_is_moved_and_no_other(
    guest: Guest[Mover], address: int, size: int, pieces: list[int]
) -> None:
    memory = cut(guest, pieces)
    dma, before = guest.device.dma, bytes(memory)
    assert dma.read(address, size) == before[address : address + size]
    assert b"".join(dma.map(address, size)) == before[address : address + size]
    data = bytes(byte ^ 0xFF for byte in before[address : address + size])
    for source in (data, bytearray(data), memoryview(data)):
        memory[:] = before
        dma.write(address, source)
        assert memory == before[:address] + data + before[address + size :]


@pytest.mark.parametrize(
    ("address", "size", "where"),
    [
        (SIZE, 1, ""),
        (SIZE - 1, 2, f"from {SIZE:#x} on, "),
        (0, SIZE + 1, f"from {SIZE:#x} on, "),
        (1 << 40, 4, ""),
    ],
)
def test_a_range_that_is_not_all_there_is_refused_with_the_part_that_is_missing(
    guest: Guest[Mover], address: int, size: int, where: str
) -> None:
    dma = guest.device.dma
    why = f"{size} bytes at {address:#x}: {where}the client has mapped nothing there"
    for verb, call in (
        ("read", lambda: dma.read(address, size)),
        ("write", lambda: dma.write(address, bytes(size))),
        ("map", lambda: dma.map(address, size)),
        ("map", lambda: dma.whole(address, size)),
    ):
        with pytest.raises(GuestError) as refused:
            call()
        assert str(refused.value) == f"DMA {verb} of {why}"


@pytest.mark.parametrize(("size", "fine"), [(LIMIT, True), (LIMIT + 1, False), (-1, False)])
def test_64_mib_are_copied_at_once(guest: Guest[Mover], monkeypatch: pytest.MonkeyPatch, size: int, fine: bool) -> None:
    monkeypatch.setattr(guest, "shared_map", lambda *_: None)
    monkeypatch.setattr(guest, "segments", lambda address, size, write: [Segment(address, size, memoryview(b"x"))])
    if fine:
        assert guest.device.dma.read(0, size) == b"x"
    else:
        with pytest.raises(GuestError, match=f"DMA of {size} bytes at 0x0: at most 67108864 at once"):
            guest.device.dma.read(0, size)


def test_all_dma_needs_bus_mastering(guest: Guest[Mover]) -> None:
    dma = guest.device.dma
    guest.config_write(4, 0, 2)
    for call in (
        lambda: dma.read(1, 2),
        lambda: dma.write(1, b"xy"),
        lambda: dma.map(1, 2),
        lambda: dma.whole(1, 2),
    ):
        with pytest.raises(GuestError, match="DMA of 2 bytes at 0x1: the guest has bus mastering off"):
            call()
    with pytest.raises(GuestError, match="bus mastering off"):
        dma.shared_map(1)


def test_a_map_for_one_direction_is_of_no_use_for_the_other(guest: Guest[Mover]) -> None:
    guest._dma.clear()
    for address, flags in ((0, DmaFlags.READ), (0x8000, DmaFlags.WRITE)):
        guest._dma.map(DmaMap(flags, address, address, 0x8000), os.dup(guest._memory_fd))
    dma = guest.device.dma
    dma.changed()
    dma.read(0, 4)
    dma.write(0x8000, b"1234")
    assert dma.map(0, 4)[0].readonly
    assert not dma.map(0x8000, 4, write=True)[0].readonly
    for call in (
        lambda: dma.write(0, b"1"),
        lambda: dma.read(0x8000, 1),
        lambda: dma.map(0, 1, write=True),
        lambda: dma.map(0x8000, 1),
    ):
        with pytest.raises(GuestError, match="the client has not mapped it for"):
            call()


def test_memory_that_is_not_shared_is_copied_by_messages(guest: Guest[Mover], monkeypatch: pytest.MonkeyPatch) -> None:
    guest._dma.clear()
    guest._dma.map(DmaMap(DmaFlags.READ | DmaFlags.WRITE, 0, 0, 0x8000), os.dup(guest._memory_fd))
    guest._dma.map(DmaMap(DmaFlags.READ | DmaFlags.WRITE, 0, 0x8000, 0x1000), None)
    asked: list[tuple[object, ...]] = []

    def read(address: int, size: int) -> bytes:
        asked.append(("read", address, size))
        return b"?" * size

    monkeypatch.setattr(guest, "dma_read", read)
    monkeypatch.setattr(guest, "dma_write", lambda address, data: asked.append(("write", address, bytes(data))))
    dma = guest.device.dma
    dma.changed()
    assert dma.read(0x7FFE, 5) == os.pread(guest._memory_fd, 2, 0x7FFE) + b"???"
    dma.write(0x7FFE, b"abcde")
    assert asked == [("read", 0x8000, 3), ("write", 0x8000, b"cde")]
    assert os.pread(guest._memory_fd, 2, 0x7FFE) == b"ab"
    for call in (lambda: dma.map(0x7FFE, 5), lambda: dma.whole(0x7FFE, 5)):
        with pytest.raises(Unshared, match="DMA map of 5 bytes at 0x7ffe"):
            call()


def test_views_are_stale_after_whatever_may_change_maps(guest: Guest[Mover]) -> None:
    dma, core = guest.device.dma, guest.device.core
    seen = [dma.changes]
    for happens in (
        dma.changed, lambda: core.join(True), guest.reset, lambda: guest.restore(guest.snapshot()),
        lambda: guest.config_write(4, 4, 2),
    ):  # fmt: skip
        happens()
        seen.append(dma.changes)
    assert seen == sorted(set(seen))
    guest.config_read(4, 2)
    assert dma.changes == seen[-1]


def test_the_map_of_the_last_call_is_looked_up_once(guest: Guest[Mover], monkeypatch: pytest.MonkeyPatch) -> None:
    usual, looked = guest.shared_map, []

    def look(address: int, write: bool) -> object:
        looked.append((address, write))
        return usual(address, write)

    monkeypatch.setattr(guest, "shared_map", look)
    dma = guest.device.dma
    dma.changed()
    for address in (4, 0, SIZE - 4):
        dma.read(address, 4)
        dma.write(address, b"1234")
    assert looked == [(4, False), (4, True)]
    dma.changed()
    dma.read(8, 4)
    assert looked[2:] == [(8, False)]


def test_a_device_that_nobody_runs_has_no_memory() -> None:
    device = Mover()
    device.core.config.write(4, memoryview(b"\x04\x00"))
    assert device.dma.by_message is False
    with pytest.raises(GuestError, match="not attached to a guest"):
        device.dma.read(0, 1)


def test_files_of_memory_that_nobody_keeps_are_a_mistake(guest: Guest[Mover]) -> None:
    with pytest.raises(RuntimeError, match=r"call dma.keep_files\(\) in setup\(\)"):
        guest.device.dma.files()
    guest.device.dma.keep_files()
    assert [each.size for each in guest.device.dma.files()] == [SIZE]
