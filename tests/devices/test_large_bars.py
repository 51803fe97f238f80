"""BARs of up to 64 GiB: they cost memory only where something was written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwire import Bar, DeclarationError, PciDevice
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance, serve
from vfio_user import Client, RegionFlags

GIB = 1 << 30
SIZE = 64 * GIB
LAST = SIZE - 8


class Vast(PciDevice, vendor=0x1234, device=0x64B, class_code=0x058000):
    """Registers at both ends of a BAR, memory at both ends of another, and a doorbell far out."""

    registers = Bar(0, size=SIZE, bits=64, prefetchable=True)
    first = registers.reg(0, reset=1)
    go = registers.doorbell(SIZE // 2)
    last = registers.reg(LAST, size=8, reset=0x1122_3344_5566_7788)
    memory = Bar(2, size=SIZE, bits=64, prefetchable=True)
    every = memory.area(0, SIZE)

    @go.ring
    def note(self) -> None:
        self.first = self.go.rung


TestVast = conformance(Vast)


def held() -> int:
    """Bytes of memory that this process has (proc(5))."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_guest_reads_and_writes_at_the_end() -> None:
    with Guest(Vast) as guest:
        assert guest.read(Vast.last) == 0x1122_3344_5566_7788
        guest.write(Vast.last, 7)
        guest.write(Vast.every, 9, offset=SIZE - 4, size=4)
        guest.ring(Vast.go)
        assert (guest.read(Vast.last), guest.read(2, SIZE - 4, 4), guest.read(Vast.first)) == (7, 9, 1)
        with pytest.raises(IndexError):
            guest.read(0, SIZE - 4, 8)


def test_the_bar_says_its_size_and_kind() -> None:
    with Guest(Vast) as guest:
        guest.config_write(pci.BAR0, (1 << 64) - 1, 8)
        assert guest.config_read(pci.BAR0, 8) == -SIZE & (1 << 64) - 1 | 0b1100


def test_nothing_is_allocated_by_size() -> None:
    before = held()
    with Guest(Vast) as guest:
        guest.write(Vast.last, 7)
        guest.device.every[LAST] = 1
        snapshot = guest.snapshot()
        guest.reset()
        guest.restore(snapshot)
        assert (guest.read(Vast.last), guest.device.every[LAST]) == (7, 1)
        assert len(snapshot) < 1 << 16
        assert held() - before < 64 << 20


def test_offsets_of_a_client_have_64_bits() -> None:
    with serve(Vast) as served, Client.connect(served.path) as client:
        info, fd = client.region_info(2)
        assert (info.size, [tuple(area) for area in info.areas]) == (SIZE, [(0, SIZE)])
        assert RegionFlags.MMAP in info.flags
        assert fd is not None
        client.write(0, LAST, (5).to_bytes(8, "little"))
        client.write(2, SIZE - 4, b"tail")
        assert client.read(0, LAST, 8) == (5).to_bytes(8, "little")
        assert os.pread(fd, 4, SIZE - 4) == b"tail"
        assert os.fstat(fd).st_size == SIZE
        assert os.fstat(fd).st_blocks * 512 <= 4 << 20
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "bits", "said"),
    [(128 * GIB, 64, "at most 64 GiB"), (1 << 70, 64, "at most 64 GiB"), (4 * GIB, 32, "at most 2 GiB: say bits=64")],
)
def test_a_bar_beyond_the_limit_is_refused(size: int, bits: int, said: str) -> None:
    with pytest.raises(DeclarationError, match=said):

        class TooLarge(PciDevice, vendor=2, device=1, class_code=1):
            memory = Bar(0, size=size, bits=bits)
