"""A micro guest that writes and reads an nvme: its I/O doorbells are ioeventfds, and cost no exit."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.guests import build
from bellwire_vmm.guests.layout import NvmeResults, Phase, pack_nvme, unpack_nvme
from bellwire_vmm.vmm import Machine, RunResult
from bellwired.demo.spawn import device_process
from vfio_user import Client, RegionIndex
from vmm.sdk import working

pytestmark = pytest.mark.kvm

SIZE = 1 << 20
COUNT, TRIPS = 100, 20
QUEUES = 2
CSTS, IO_BELLS = 0x1C, 0x1008
NUMBERS = struct.pack(f"<{SIZE // 8}Q", *range(SIZE // 8))


class Bench(NamedTuple):
    """A disk in a machine, with its image on the host."""

    machine: Machine
    nvme: Nvme
    plugged: ProxyDevice
    image: Path

    def run(self, *, shadowed: bool, guest: str | Path = "nvme") -> tuple[RunResult, NvmeResults]:
        """Run the guest to its good end."""
        self.machine.load(guest, pack_nvme(polled=COUNT, waited=TRIPS, shadowed=shadowed))
        run = self.machine.run(60)
        assert run.ok, run
        assert self.plugged.peer.read(RegionIndex.BAR0, CSTS, 4) == b"\1\0\0\0"  # and all rings are in before that
        return run, unpack_nvme(self.machine.memory)

    def rings(self) -> dict[str, int]:
        """How many rings have reached the device, by their way."""
        tally = self.nvme.core.tally
        return {mechanism: tally.rung(mechanism) for mechanism in tally.rings}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "numbers"
    path.write_bytes(NUMBERS)
    return path


@pytest.fixture(params=[("shadow", 512), ("shadow", 4096), ("value", 512)], ids=lambda each: f"{each[0]}-{each[1]}")
def bench(request: pytest.FixtureRequest, machine: Machine, image: Path) -> Iterator[Bench]:
    doorbells, block_size = request.param
    made: list[Nvme] = []

    def nvme(**options: object) -> Nvme:
        made.append(Nvme(image=str(image), doorbells=doorbells, block_size=block_size, queues=QUEUES, **options))
        return made[0]

    with ExitStack() as stack:
        plugged = machine.plug(Client(stack.enter_context(working(nvme))))
        yield Bench(machine, weakref.proxy(made[0]), plugged, image)
        machine.close()
    made.clear()
    gc.collect()  # its queues are structures in its state, which goes when they do


shadow = pytest.mark.parametrize("bench", [("shadow", 512), ("shadow", 4096)], indirect=True, ids=["512", "4096"])
value = pytest.mark.parametrize("bench", [("value", 512)], indirect=True, ids=["512"])


def written(block_size: int) -> bytes:
    """What the image holds when the guest has flipped the bits of its first blocks."""
    length = (COUNT + TRIPS) * block_size
    return bytes(byte ^ 0xFF for byte in NUMBERS[:length]) + NUMBERS[length:]


def exits_while_polling(run: RunResult) -> tuple[int, int]:
    marks = {mark.value: mark for mark in run.marks}
    begin, end = marks[Phase.RINGS], marks[Phase.RINGS_END]
    return end.runs - begin.runs - 1, end.mmio_exits - begin.mmio_exits


def test_what_the_guest_wrote_and_nothing_else_is_in_the_image(bench: Bench) -> None:
    _, seen = bench.run(shadowed=bench.nvme.doorbells == "shadow")
    assert (seen.block_size, seen.blocks) == (bench.nvme.block_size, SIZE // bench.nvme.block_size)
    assert (seen.polled, seen.waited, seen.wrong, seen.failed) == (COUNT, TRIPS, 0, 0)
    assert bench.image.read_bytes() == written(seen.block_size)
    counters = bench.nvme.controller.logs.counters
    assert (counters.reads, counters.writes, counters.errors) == (2 * (COUNT + TRIPS), COUNT + TRIPS, 0)


@pytest.mark.parametrize("bench", [("shadow", 512)], indirect=True, ids=["512"])
def test_a_guest_built_from_its_source_just_now_does_the_same(bench: Bench, tmp_path: Path) -> None:
    built = tmp_path / "nvme.bin"
    build.build("nvme", built)
    _, seen = bench.run(shadowed=True, guest=built)
    assert (seen.polled, seen.waited, seen.wrong, seen.failed) == (COUNT, TRIPS, 0, 0)


@shadow
def test_io_doorbells_are_ioeventfds_and_cost_no_exit(bench: Bench) -> None:
    bells = [each for each in bench.plugged.routes() if each.offset >= IO_BELLS]
    assert [(each.offset, each.mechanism) for each in bells] == [
        (IO_BELLS + 4 * number, "ioeventfd") for number in range(2 * QUEUES)
    ]
    run, seen = bench.run(shadowed=True)
    assert seen.rings > 0
    assert exits_while_polling(run) == (0, 0)
    assert [each.exits for each in bench.plugged.standings() if each.route in bells] == [0] * len(bells)


@shadow
def test_every_ring_reaches_the_device_by_event_and_the_event_index_spares_some(bench: Bench) -> None:
    _, seen = bench.run(shadowed=True)
    assert bench.rings()["ioeventfd"] == seen.rings
    assert bench.rings()["message"] == 0
    assert seen.rings < seen.moves


@value
def test_doorbells_by_value_cost_an_exit_each_unless_the_kernel_stores_the_values(bench: Bench) -> None:
    run, seen = bench.run(shadowed=False)
    assert seen.rings == seen.moves
    by_bell = bench.nvme.core.tally.rings["shadow"]
    assert sum(count for name, (count,) in by_bell.items() if name.startswith("io_bells")) == seen.rings
    assert [bench.rings()[way] for way in ("ioeventfd", "ioregionfd", "message")] == [0, 0, 0]
    polled = seen.rings - 2 * 3 * TRIPS  # a tail and a head for each of three commands
    assert exits_while_polling(run) == ((0, 0) if bench.machine.vm.has_post_write() else (polled, polled))


def test_an_nvme_in_a_process_of_its_own(machine: Machine, image: Path) -> None:
    with device_process("nvme", f"image={image}", "doorbells=shadow", f"queues={QUEUES}") as sock:
        device = machine.plug(Client(sock, timeout=60))
        machine.load("nvme", pack_nvme(polled=COUNT, waited=TRIPS, shadowed=True))
        run = machine.run(60)
        assert run.ok, run
        assert exits_while_polling(run) == (0, 0)
        machine.unplug(device)
    assert image.read_bytes() == written(512)


def test_the_guest_says_what_it_cannot_do(machine: Machine) -> None:
    machine.load("nvme", pack_nvme(polled=1, waited=0))
    assert machine.run(10).text.startswith("no device 0xbe5d1234 on the bus")
