"""Bellwire's client and VMM drive servers that others have written.

libvfio-user's sample servers are run from a checkout in which the user has built them (meson, ninja): LIBVFIO_USER
names it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire_vmm.vmm import Machine
from foreign import served_by_qemu, started
from interop.page import Row
from patched import PatchedToolbox
from test_foreign_server import driving_theirs, exercised, transcript
from vfio_user import Client, IrqIndex, RegionIndex, VfioUserError

pytestmark = [pytest.mark.guest, pytest.mark.long, pytest.mark.kvm]

CHECKOUT = "LIBVFIO_USER"
PATIENCE = 20.0
PAGE = 4096
MEMORY = 16 * PAGE

Start = Callable[[str], Path]


@pytest.fixture
def sample(row: Row, tmp_path: Path) -> Iterator[Start]:
    """Start a sample server of libvfio-user's; its socket."""
    with contextlib.ExitStack() as stack:

        def start(name: str) -> Path:
            if not (named := os.environ.get(CHECKOUT)):
                pytest.skip(f"{CHECKOUT} names no checkout of libvfio-user")
            programs = [path for path in Path(named).glob(f"**/samples/{name}") if os.access(path, os.X_OK)]
            if not programs:
                pytest.skip(f"the checkout that {CHECKOUT} names has no {name}: build it (meson, ninja)")
            row.against("libvfio-user's samples")
            path = tmp_path / "sample"
            stack.enter_context(started([os.fspath(programs[0]), os.fspath(path)], path, tmp_path))
            return path

        yield start


def ids(client: Client) -> tuple[int, int]:
    vendor, device = client.read(RegionIndex.CONFIG, 0, 4)[:2], client.read(RegionIndex.CONFIG, 2, 2)
    return int.from_bytes(vendor, "little"), int.from_bytes(device, "little")


# -- libvfio-user


def test_gpio_by_the_client(row: Row, sample: Start) -> None:
    """libvfio-user's gpio-pci-idio-16, by our client"""
    with Client.connect(sample("gpio-pci-idio-16")) as client:
        assert ids(client) == (0x494F, 0x0DC8)
        assert client.region_info(2).info.size == 0x100
        pins = [client.read(2, 0, 1)[0] for _ in range(9)]
        assert pins == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # a third of how often it was read
        client.write(2, 0, b"\1")
        client.reset()
    row.tell("IDs, BAR 2, 9 reads, a write, a reset")


def test_gpio_in_the_vmm(row: Row, sample: Start) -> None:
    """libvfio-user's gpio-pci-idio-16, in our VMM"""
    client = Client.connect(sample("gpio-pci-idio-16"))
    with Machine(16 << 20) as machine:
        device = machine.plug(client)
        assert (device.vendor, device.device) == (0x494F, 0x0DC8)
        assert client.read(2, 0, 1) == b"\0"
    row.tell("plugged in, its memory mapped, a BAR read")


class Words:
    """Guest memory that is served by message."""

    def __init__(self) -> None:
        self.content = bytearray(MEMORY)
        self.messages = 0

    def _checked(self, address: int, count: int) -> slice:
        if address + count > MEMORY:
            raise VfioUserError(f"no memory at {address:#x}")
        self.messages += 1
        return slice(address, address + count)

    def read(self, address: int, count: int) -> bytes:
        """A DMA_READ."""
        return bytes(self.content[self._checked(address, count)])

    def write(self, address: int, data: bytes) -> None:
        """A DMA_WRITE."""
        self.content[self._checked(address, len(data))] = data


@pytest.fixture
def bell() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def test_dma_and_interrupts(row: Row, sample: Start, bell: int) -> None:
    """libvfio-user's server: interrupt, DMA by message"""
    memory = Words()
    with Client.connect(sample("server"), memory=memory) as client:
        assert ids(client) == (0xDEAD, 0xBEEF)
        client.dma_map(0, MEMORY)
        client.trigger_eventfds(IrqIndex.INTX, 0, [bell])
        client.write(0, 0, (int(time.time()) + 2).to_bytes(8, "little"))  # its timer
        deadline = time.monotonic() + PATIENCE
        while memory.messages < 2:  # it writes a page, and reads it back
            assert time.monotonic() < deadline, f"{memory.messages} messages"
            client.poll(0.1)
        ready, _, _ = select.select([bell], [], [], PATIENCE)
        assert ready
        assert os.eventfd_read(bell) == 1
        assert memory.content[: PAGE + 1] == b"A" * PAGE + b"\0"
        client.dma_unmap(0, MEMORY)
    row.tell("INTx after its timer; a page written and read back by DMA messages")


def test_areas(row: Row, sample: Start) -> None:
    """libvfio-user's server: areas that are mapped"""
    with Client.connect(sample("server")) as client:
        info, fd = client.region_info(1)
        assert fd is not None
        try:
            assert [(area.offset, area.size) for area in info.areas] == [(0, PAGE), (2 * PAGE, PAGE)]
            with mmap.mmap(fd, PAGE, offset=info.offset) as area:
                area[:4] = b"area"
                assert client.read(1, 0, 4) == b"area"
                client.write(1, 0, b"wire")
                assert area[:4] == b"wire"
        finally:
            os.close(fd)
    row.tell("2 areas of BAR 1; what one side writes the other reads")


# -- QEMU's own devices


@pytest.fixture
def qemus(row: Row, patched_tools: PatchedToolbox, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Serve a device of QEMU's; its socket."""
    row.against(f"QEMU {patched_tools.qemu_version} (x-vfio-user-server)")
    with contextlib.ExitStack() as stack:
        yield lambda *words: stack.enter_context(served_by_qemu(patched_tools, tmp_path, *words))


def test_qemus_edu(row: Row, qemus: Callable[..., Path]) -> None:
    """QEMU's edu, by a micro guest in our VMM"""
    found = exercised(Client.connect(qemus("edu")))
    assert found.intx.factorial == found.msi.factorial == 3_628_800
    row.tell("10! by INTx and by MSI, and DMA")


def test_qemus_nvme(row: Row, qemus: Callable[..., Path], tmp_path: Path) -> None:
    """QEMU's nvme, by our client"""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(2048 * 512))
    drive = f"file={disk},format=raw,if=none,id=drive"
    with driving_theirs(qemus("nvme,drive=drive,serial=it", "-drive", drive)) as driver:
        told = transcript(driver)
    for start in (0, 8, 2040):
        assert disk.read_bytes()[start * 512 :][:4096] == bytes([start & 0xFF | 1]) * 4096
    assert told[-1] == 2048  # blocks
    row.tell("3 writes and 3 reads of 4 KiB compared, one past the end refused")


def test_qemus_e1000(row: Row, qemus: Callable[..., Path]) -> None:
    """QEMU's e1000, in our VMM"""
    client = Client.connect(qemus("e1000,mac=52:54:00:12:34:56"))
    with Machine(16 << 20) as machine:
        device = machine.plug(client)
        assert (device.vendor, device.device) == (0x8086, 0x100E)
        low, high = client.read(0, 0x5400, 4), client.read(0, 0x5404, 2)
        assert (low + high).hex() == "525400123456"
    row.tell("IDs, and its address in BAR 0")
