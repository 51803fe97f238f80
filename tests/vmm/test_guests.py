"""The micro guests: prebuilt and freshly built, against the SDK's own devices, in their own process and in this one."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from bellwire import PciDevice
from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import Edu
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire_vmm import guests
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.guests import build
from bellwire_vmm.guests.layout import (
    BATCH,
    Phase,
    Ring,
    Space,
    pack_blk,
    pack_edu,
    pack_pci,
    pack_rings,
    unpack_blk,
    unpack_edu,
    unpack_pci,
    unpack_rings,
)
from bellwire_vmm.vmm import Machine, RunResult
from bellwired.demo.spawn import device_process
from vfio_user import Client
from vmm.sdk import working

pytestmark = pytest.mark.kvm

COUNT, TRIPS = 200, 20
MATCH = 0x42
ring = partial(Ring, count=COUNT, roundtrips=TRIPS)
PATHS = {
    "ioeventfd": ring(bar=1, offset=0x000, counter=0x40),
    "ioeventfd datamatch": ring(bar=1, offset=0x010, counter=0x48, value=MATCH),
    "ioregionfd posted": ring(bar=1, offset=0x020, counter=0x50, errors=0x80, value=None),
    "ioeventfd pio": ring(bar=2, offset=0x000, counter=0x58, space=Space.PORTS),
    "ioregionfd acked": ring(bar=1, offset=0x100, counter=0x60, errors=0x88, value=None),
    "posted": ring(bar=0, offset=0x010, counter=0x68, errors=0x90, value=None),
    "with reply": ring(bar=2, offset=0x004, counter=0x70, errors=0x98, value=None, space=Space.PORTS),
}


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with all guests, built from their sources just now."""
    folder = tmp_path_factory.mktemp("guests")
    try:
        for name in build.GUESTS:
            build.build(name, folder / f"{name}.bin")
    except FileNotFoundError as error:
        pytest.fail(f"{error.filename} is not installed: the guests' sources cannot be checked (apt install gcc)")
    return folder


@pytest.fixture(params=["prebuilt", "rebuilt"])
def guest(request: pytest.FixtureRequest) -> Callable[[str], str | Path]:
    """What `Machine.load` takes for a guest by name."""
    if request.param == "prebuilt":
        return lambda name: name
    folder = request.getfixturevalue("rebuilt")
    return lambda name: folder / f"{name}.bin"


@pytest.fixture
def plug(machine: Machine) -> Iterator[Callable[[type[PciDevice]], ProxyDevice]]:
    with ExitStack() as stack:
        yield lambda kind, **options: machine.plug(Client(stack.enter_context(working(kind, **options))))
        machine.close()


Plug = Callable[..., ProxyDevice]
Guest = Callable[[str], str | Path]


def check_rings(machine: Machine, run: RunResult) -> None:
    assert run.ok, run
    marks = {mark.value: mark for mark in run.marks}
    for index, (name, result) in enumerate(zip(PATHS, unpack_rings(machine.memory), strict=True)):
        assert (result.rung, result.received) == (COUNT, COUNT), name
        assert (result.answered, result.received_in_all, result.disorder) == (TRIPS, COUNT + TRIPS, 0), name
        assert len(result.ring_ticks) == len(result.ram_ticks) == -(-COUNT // BATCH)
        assert len(result.trip_ticks) == TRIPS
        assert all(ticks > 0 for ticks in (*result.ring_ticks, *result.trip_ticks))
        begin, end = (marks[index << 8 | phase] for phase in (Phase.RINGS, Phase.RINGS_END))
        exits = end.runs - begin.runs - 1, end.mmio_exits - begin.mmio_exits
        free = name.startswith(("ioeventfd", "ioregionfd") if machine.vm.has_ioregion() else "ioeventfd")
        assert exits == ((0, 0) if free else (COUNT, 0 if name == "with reply" else COUNT)), name


@pytest.mark.parametrize("name", ["bell", "bell3"])
def test_every_path_of_the_bell_delivers_all_and_ioeventfds_cost_no_exit(
    machine: Machine, plug: Plug, guest: Guest, name: str
) -> None:
    plug(Bell)
    machine.load(guest(name), pack_rings(list(PATHS.values())))
    check_rings(machine, machine.run(30))


def test_the_bell_in_a_process_of_its_own(machine: Machine) -> None:
    with device_process("bell") as sock:
        device = machine.plug(Client(sock, timeout=60))  # it has yet to start
        ioregionfd = "ioregionfd kernel" if machine.vm.has_ioregion() else "ioregionfd relay"
        shadow = "shadow kernel" if machine.vm.has_post_write() else "shadow relay"
        assert [each.mechanism for each in device.routes()] == [
            "ioeventfd",
            "ioeventfd datamatch",
            ioregionfd,
            shadow,
            ioregionfd,
            *["ioeventfd datamatch"] * 8,
            "ioeventfd",
        ]
        machine.load("bell3", pack_rings(list(PATHS.values())))
        check_rings(machine, machine.run(30))
        machine.unplug(device)


@pytest.mark.parametrize(("number", "factorial"), [(0, 1), (12, 479001600), (13, 1932053504), (40, 0)])
def test_edu_computes_copies_and_interrupts(
    machine: Machine, plug: Plug, guest: Guest, number: int, factorial: int
) -> None:
    plug(Edu, dma_delay=0.001)
    machine.load(guest("edu"), pack_edu(number, 512, 2))
    run = machine.run(20)
    assert run.ok, run
    seen = unpack_edu(machine.memory)
    for kind, arrivals in ((seen.intx, 3), (seen.msi, 1)):
        assert (kind.factorial, kind.factorial_status) == (factorial, 1)
        assert (kind.to_device_status, kind.from_device_status, kind.copied) == (0x100, 0x100, 512)
        assert (kind.raised_arrivals, kind.arrivals) == (arrivals, arrivals + 3)


def test_pci_sizes_bars_and_moves_a_doorbell(machine: Machine, plug: Plug, guest: Guest) -> None:
    plug(Edu)
    plug(Bell)
    machine.load(
        guest("pci"),
        pack_pci(vendor=0x1234, device=0xBE11, doorbell_bar=1, doorbell=0, counter=0x40, new_address=0xD000_0000),
    )
    run = machine.run(20)
    assert run.ok, run
    seen = unpack_pci(machine.memory)
    assert seen.functions == 3
    assert [(each.size, each.flags & 1) for each in seen.bars if each.size][:3] == [(4096, 0), (4096, 0), (16, 1)]
    steps = seen.old_place, seen.after_move, seen.at_old_place, seen.decoding_off, seen.decoding_on, seen.moved_back
    assert steps == (1, 2, 2, 2, 3, 4)


def test_a_virtio_disk_is_read_and_its_notifications_cost_no_exit(
    machine: Machine, plug: Plug, guest: Guest, tmp_path: Path
) -> None:
    image = tmp_path / "numbers"
    image.write_bytes(struct.pack("<4096Q", *range(4096)))
    device = plug(VirtioBlk, image=image)
    assert [each.mechanism for each in device.routes()] == ["ioeventfd"]
    machine.load(guest("blk"), pack_blk(polled=COUNT, waited=TRIPS))
    run = machine.run(30)
    assert run.ok, run
    seen = unpack_blk(machine.memory)
    assert (seen.sectors, seen.polled, seen.waited, seen.wrong, seen.failed) == (64, COUNT, TRIPS, 0, 0)
    marks = {mark.value: mark for mark in run.marks}
    begin, end = marks[Phase.RINGS], marks[Phase.RINGS_END]
    assert (end.runs - begin.runs - 1, end.mmio_exits - begin.mmio_exits) == (0, 0)


def test_a_guest_that_does_not_find_its_device_says_so(machine: Machine) -> None:
    machine.load("edu", pack_edu(1))
    run = machine.run(10)
    assert not run.ok
    assert run.code == 1
    assert run.text.startswith("no device 0x11e81234 on the bus")


def test_a_guest_with_the_wrong_parameters_says_so(machine: Machine) -> None:
    machine.load("bell", pack_edu(1))
    assert machine.run(10).text.startswith("the parameter page is not bell's (line ")


def test_git_tracks_every_guest() -> None:
    folder = Path(guests.__file__).parent
    listed = subprocess.run(["git", "ls-files", "bin"], cwd=folder, capture_output=True, text=True, check=False)
    if listed.returncode == 0:  # not so in an unpacked source archive
        assert listed.stdout.split() == [f"bin/{name}.bin" for name in sorted(build.GUESTS)]
    assert guests.names() == sorted(build.GUESTS)
