"""QEMU's own devices behind its vfio-user server (x-vfio-user-server, libvfio-user inside), in our VMM and client."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire.bundled.edu import Edu
from bellwire.bundled.nvme.command import IoOpcode
from bellwire_vmm.guests.layout import EduResults, pack_edu, unpack_edu
from bellwire_vmm.vmm import Machine
from foreign import PATIENCE, served_by_qemu
from nvme.driver import MEMORY, Driver, transfer
from nvme.driving import ServedMachine, driving
from patched import PatchedToolbox
from vfio_user import Client, IrqIndex, RegionIndex
from vmm.sdk import working

pytestmark = [pytest.mark.guest, pytest.mark.kvm]

READ, WRITE = IoOpcode.READ, IoOpcode.WRITE
Foreign = Callable[..., Path]


@pytest.fixture
def foreign(patched_tools: PatchedToolbox, tmp_path: Path) -> Iterator[Foreign]:
    """Serve a device of QEMU's; its socket."""
    with contextlib.ExitStack() as stack:
        yield lambda *words: stack.enter_context(served_by_qemu(patched_tools, tmp_path, *words))


# -- edu


def exercised(client: Client, *, unacknowledged: int = 0) -> EduResults:
    """What the micro guest finds when it uses an edu."""
    with Machine(16 << 20) as machine:
        machine.plug(client)
        machine.load("edu", pack_edu(10, unacknowledged=unacknowledged))
        run = machine.run(PATIENCE)
        assert run.ok, run
        return unpack_edu(machine.memory)


def test_a_guest_finds_the_same_in_both_edus(foreign: Foreign) -> None:
    theirs = exercised(Client.connect(foreign("edu")))
    with working(Edu, dma_delay=0.001) as sock:
        ours = exercised(Client(sock))
    assert (theirs.identification, theirs.liveness) == (ours.identification, ours.liveness)
    for kind in ("intx", "msi"):
        one, other = getattr(theirs, kind), getattr(ours, kind)
        assert one._replace(arrivals=0, raised_arrivals=0) == other._replace(arrivals=0, raised_arrivals=0)


def test_its_line_is_not_raised_again_while_it_is_asserted(foreign: Foreign) -> None:
    """libvfio-user takes the UNMASK eventfd and drops it: to a client, the server's INTx is no level."""
    client = Client.connect(foreign("edu"))
    assert not client.irq_info(IrqIndex.INTX).flags & 0x6  # neither maskable nor automasked, as it says itself
    with pytest.raises(AssertionError, match="still running"):
        exercised_briefly(client)


def exercised_briefly(client: Client) -> None:
    """As :func:`exercised`, with a handler that leaves the line up once."""
    with Machine(16 << 20) as machine:
        machine.plug(client)
        machine.load("edu", pack_edu(10, unacknowledged=1))
        run = machine.run(2)
        assert run.ok, run


def test_a_reset_of_the_device_leaves_its_interrupts_connected(foreign: Foreign) -> None:
    """libvfio-user forgets the eventfds at a reset, so the VMM hands them over again."""
    with Machine(16 << 20) as machine:
        device = machine.plug(Client.connect(foreign("edu")))
        for _ in range(2):
            device.reset()
            machine.load("edu", pack_edu(10, unacknowledged=0))
            run = machine.run(PATIENCE)
            assert run.ok, run
        assert unpack_edu(machine.memory).intx.factorial == 3628800


# -- nvme


@contextlib.contextmanager
def driving_theirs(path: Path) -> Iterator[Driver]:
    """A driver of an enabled controller, as `nvme.driving` makes for ours."""
    with contextlib.ExitStack() as stack:
        fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, MEMORY)
        mapping = mmap.mmap(fd, MEMORY)
        stack.callback(mapping.close)
        view = stack.enter_context(memoryview(mapping))
        interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        stack.callback(os.close, interrupt)
        client = stack.enter_context(contextlib.closing(Client.connect(path)))
        client.dma_map(0, MEMORY, fd)
        client.write(RegionIndex.CONFIG, 0x10, (0xC000_0000).to_bytes(4, "little"))
        client.write(RegionIndex.CONFIG, 0x04, b"\6\0")
        at = capability(client, 0x11)
        client.write(RegionIndex.CONFIG, at + 2, b"\0\x80")
        for vector in range(2):
            client.trigger_eventfds(IrqIndex.MSIX, vector, [interrupt])
        driver = Driver(ServedMachine(client, view, interrupt))
        driver.enable()
        yield driver


def capability(client: Client, number: int) -> int:
    """Where a capability is in config space."""
    at = client.read(RegionIndex.CONFIG, 0x34, 1)[0]
    while at:
        found, following = client.read(RegionIndex.CONFIG, at, 2)
        if found == number:
            return at
        at = following
    raise AssertionError(f"no capability {number:#x}")


def transcript(driver: Driver) -> list[object]:
    """Write, read back, and make a mistake."""
    queues = driver.create_queues(1)
    page = driver.allocate(4096)
    told: list[object] = []
    for start in (0, 8, 2040):
        driver.memory[page : page + 4096] = bytes([start & 0xFF | 1]) * 4096
        told.append(transfer(queues, WRITE, page, start, 8).status)
        driver.memory[page : page + 4096] = bytes(4096)
        told.append(transfer(queues, READ, page, start, 8).status)
        told.append(set(driver.memory[page : page + 4096]))
    told.append(transfer(queues, READ, page, 2044, 8).code)
    told.append(int.from_bytes(driver.identify(0, 1)[:8], "little"))
    return told


def test_a_driver_finds_the_same_in_both_nvmes(foreign: Foreign, tmp_path: Path) -> None:
    for name in ("theirs", "ours"):
        (tmp_path / name).write_bytes(bytes(2048 * 512))
    drive = f"file={tmp_path / 'theirs'},format=raw,if=none,id=drive"
    with driving_theirs(foreign("nvme,drive=drive,serial=it", "-drive", drive)) as driver:
        theirs = transcript(driver)
    with driving(image=str(tmp_path / "ours")) as driver:
        ours = transcript(driver)
    assert theirs == ours
    assert (tmp_path / "theirs").read_bytes() == (tmp_path / "ours").read_bytes()


# -- e1000


def test_an_e1000_is_plugged_in_and_read(foreign: Foreign) -> None:
    client = Client.connect(foreign("e1000,mac=52:54:00:12:34:56"))
    with Machine(16 << 20) as machine:
        device = machine.plug(client)
        assert (device.vendor, device.device) == (0x8086, 0x100E)
        low, high = (int.from_bytes(client.read(0, at, 4), "little") for at in (0x5400, 0x5404))
        assert (low.to_bytes(4, "little") + (high & 0xFFFF).to_bytes(2, "little")).hex() == "525400123456"
        assert int.from_bytes(client.read(0, 0x8, 4), "little") & 2  # the link is up
