"""The QEMU with our patches: what a server hands over as file descriptors rings without a message."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from attached import Device, Served, end, running
from bellwired.guest.errors import MachineError
from bellwired.guest.plan import Plugged
from crafted import MEMORY_BAR, PORT_BAR, Crafted, Entry, Reply, entries
from doorbells import drive, gone, rung, served, until, written
from linux import Guest
from machine import ROOT_PORT, Machine
from patched import PatchedToolbox
from vfio_user import Command

__all__ = ["drive", "served"]

pytestmark = pytest.mark.guest

# bell
CONTROL, BELLS, PORTS = 0, 1, 2
WILDCARD, MATCHED, MATCH, FEW = 0x00, 0x10, 0x42, 0x30
PLAIN, WILDCARD_COUNT, MATCHED_COUNT, PORT_COUNT = 0x10, 0x40, 0x48, 0x58
FEW_COUNT, FEW_SEEN = 0xD0, 0xD8
HERE = Path(__file__).parent
DATAMATCH, PIO, CCW = 1, 2, 8
AT = 0x40
PATIENCE = 60.0

Answer = Callable[[int, int], Reply]


# -- our server


def test_a_doorbell_rings_with_no_message(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    for size in (1, 2, 4):
        for _ in range(10):
            function.write(BELLS, WILDCARD, 1, size)
    assert function.read(CONTROL, WILDCARD_COUNT, 8) == 30
    assert written(served) == []


def test_a_doorbell_of_one_value_rings_for_that_and_other_values_are_messages(
    drive: Callable[..., Machine], served: Served
) -> None:
    (function,) = drive(served).functions
    function.write(BELLS, MATCHED, MATCH)
    function.write(BELLS, MATCHED, MATCH + 1)
    assert function.read(CONTROL, MATCHED_COUNT, 8) == 1
    assert written(served) == [(BELLS, MATCHED)]


def test_each_of_a_few_values_rings_and_others_are_messages(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    for value in (*range(8), 5, 5):
        function.write(BELLS, FEW, value)
    assert (function.read(CONTROL, FEW_COUNT, 8), function.read(CONTROL, FEW_SEEN)) == (10, 0xFF)
    assert written(served) == []
    function.write(BELLS, FEW, 8)
    assert function.read(CONTROL, FEW_COUNT, 8) == 10
    assert written(served) == [(BELLS, FEW)]


def test_values_beyond_the_descriptors_of_a_reply_are_messages(
    drive: Callable[..., Machine], serve: Callable[[Device], Served]
) -> None:
    served = serve(Device(f"{HERE / 'many_values.py'}:manyvalues"))
    (function,) = drive(served).functions
    for value in range(40):
        function.write(0, 0x10, value)
    assert function.read(0, 0, 8) == (1 << 40) - 1
    assert written(served) == [(0, 0x10)] * (40 - 16)


def test_a_port_rings_with_no_message(drive: Callable[..., Machine], served: Served) -> None:
    machine = drive(served)
    (function,) = machine.functions
    machine.port_out(function.bars[PORTS], 7)
    assert function.read(CONTROL, PORT_COUNT, 8) == 1
    assert written(served) == []


def test_doorbells_follow_their_bar(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    function.config_write(0x10 + 4 * BELLS, function.bars[BELLS] + 0x10_0000)
    function.bars[BELLS] += 0x10_0000
    function.write(BELLS, WILDCARD, 1)
    function.config_write(0x04, 0, 2)
    function.write(BELLS, WILDCARD, 1)
    function.config_write(0x04, 7, 2)
    function.write(BELLS, WILDCARD, 1)
    assert function.read(CONTROL, WILDCARD_COUNT, 8) == 2
    assert written(served) == []


def test_doorbells_stay_over_a_reset(drive: Callable[..., Machine], served: Served) -> None:
    machine = drive(served)
    (function,) = machine.functions
    machine.control.ask("system_reset")
    machine.port_in(0x80, 1)
    function.enable(0xE000_0000)
    function.write(BELLS, WILDCARD, 1)
    assert function.read(CONTROL, WILDCARD_COUNT, 8) == 1
    assert written(served) == []


def test_posted_writes_stay_posted_and_in_order(drive: Callable[..., Machine], served: Served) -> None:
    (function,) = drive(served).functions
    for number in range(1, 1001):
        function.write(CONTROL, PLAIN, number)
        function.write(BELLS, WILDCARD, number)
    assert [function.read(CONTROL, at, 8) for at in (0x68, 0x90, WILDCARD_COUNT)] == [1000, 0, 1000]
    writes = [seen for seen in served.tap.messages() if seen.command == Command.REGION_WRITE and not seen.is_reply]
    assert all(seen.posted for seen in writes if struct.unpack_from("<QI", seen.start)[1] == CONTROL)


def test_the_property_turns_it_off(drive: Callable[..., Machine], serve: Callable[[Device], Served]) -> None:
    served = serve(Device("bell", qemu={"x-no-io-fds": True}))
    (function,) = drive(served).functions
    function.write(BELLS, WILDCARD, 1)
    assert function.read(CONTROL, WILDCARD_COUNT, 8) == 1
    assert written(served) == [(BELLS, WILDCARD)]
    assert Command.DEVICE_GET_REGION_IO_FDS not in served.tap.commands()


def test_unplugging_lets_all_descriptors_go(drive: Callable[..., Machine], served: Served) -> None:
    machine = drive(arguments=ROOT_PORT)
    machine.power_off()
    machine.control.ask("query-status")  # QEMU has taken the connection
    before = descriptors(machine)
    for times in range(1, 11):
        machine.plug(served)
        assert descriptors(machine) > before
        machine.unplug()
        until(functools.partial(gone, served, times))
    until(lambda: descriptors(machine) == before)  # QEMU frees some of it a moment later


def descriptors(machine: Machine) -> int:
    """How many QEMU has open."""
    return len(os.listdir(f"/proc/{machine.process.pid}/fd"))


# -- Linux

DISKS = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
use() {
    await /dev/nvme0n1; await /dev/vda; await /sys/class/misc/hw_random/rng_current
    for disk in nvme0n1 vda; do
        dd if=/dev/urandom of=/written bs=4k count=64 2>/dev/null
        dd if=/written of=/dev/$disk bs=4k oflag=direct 2>/dev/null || exit 1
        dd if=/dev/$disk of=/read bs=4k count=64 iflag=direct 2>/dev/null || exit 2
        cmp /written /read || exit 3
    done
    dd if=/dev/hwrng of=/dev/null bs=1k count=4 iflag=fullblock 2>/dev/null || exit 4
}
use
for driver in nvme virtio-pci; do
    cd /sys/bus/pci/drivers/$driver
    for device in 0000:*; do
        [ "$(cat $device/class)" = 0x078000 ] && continue  # this script's own way out
        echo $device >unbind; echo $device >bind
    done
done
use
"""


def test_linux_rings_every_disk_and_nvme_without_a_message(
    patched_tools: PatchedToolbox, tmp_path: Path, tell: Callable[..., None]
) -> None:
    """Without a tap between them: it would let rings overtake the writes that were posted before."""
    guest = Guest(patched_tools, tmp_path)
    tell(guest.report)
    names = ("nvme", "virtio-blk", "virtio-rng")
    with ExitStack() as stack:
        served = {name: stack.enter_context(running(Device(name), tmp_path / name)) for name in names}
        plugged = [Plugged(tmp_path / name / "device") for name in names]
        outcome = guest.run(DISKS, plugged, modules=["virtio_blk", "virtio-rng"])
        assert outcome.status == 0
        ways = {name: ways_of_ringing(process, tmp_path / name / "log") for name, process in served.items()}
    assert ways == {"nvme": {"shadow"}, "virtio-blk": {"ioeventfd"}, "virtio-rng": {"ioeventfd"}}


def ways_of_ringing(process: subprocess.Popen[bytes], log: Path) -> set[str]:
    """End a device, and find in its summary how it was rung."""
    end(process)
    return set(re.findall(r"rung by (\w+)", log.read_text()))


# -- servers that QEMU must not believe


def test_an_eventfd_stays_as_non_blocking_as_it_was(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int
) -> None:
    drive(craft(entries(Entry(AT), fds=[bell])))
    assert not os.get_blocking(bell)


def test_a_server_is_asked_for_the_size_first(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int
) -> None:
    server = craft(entries(Entry(AT), fds=[bell]))
    (function,) = drive(server).functions
    function.write(MEMORY_BAR, AT, 1)
    assert (rung(bell), server.writes, server.asked) == (1, [], [16, 56, 16])


def test_a_server_that_does_not_know_the_command_gets_messages(
    drive: Callable[..., Machine], craft: Callable[..., Crafted]
) -> None:
    server = craft(lambda *_: None, knows=False)
    (function,) = drive(server).functions
    function.write(MEMORY_BAR, AT, 1)
    function.read(MEMORY_BAR, 0)
    assert server.writes == [(MEMORY_BAR, AT, b"\1\0\0\0")]


@pytest.mark.parametrize(
    ("entry", "region"),
    [
        pytest.param(Entry(AT, kind=1), MEMORY_BAR, id="an-ioregionfd"),
        pytest.param(Entry(AT, kind=99), MEMORY_BAR, id="an-unknown-type"),
        pytest.param(Entry(AT, flags=CCW), MEMORY_BAR, id="a-flag-of-other-machines"),
        pytest.param(Entry(AT, flags=1 << 31), MEMORY_BAR, id="an-unknown-flag"),
        pytest.param(Entry(AT, flags=PIO), MEMORY_BAR, id="a-port-in-memory"),
        pytest.param(Entry(0, flags=0), PORT_BAR, id="memory-among-ports"),
        pytest.param(Entry(AT, size=3), MEMORY_BAR, id="a-size-of-3"),
        pytest.param(Entry(AT, size=16), MEMORY_BAR, id="a-size-of-16"),
        pytest.param(Entry(AT, size=1 << 63), MEMORY_BAR, id="a-huge-size"),
        pytest.param(Entry(AT, size=0, flags=DATAMATCH, datamatch=1), MEMORY_BAR, id="a-value-of-no-size"),
        pytest.param(Entry(AT, size=8, flags=DATAMATCH, datamatch=1 << 32), MEMORY_BAR, id="a-value-too-wide-for-kvm"),
        pytest.param(
            Entry(AT, size=2, flags=DATAMATCH, datamatch=1 << 16), MEMORY_BAR, id="a-value-wider-than-its-size"
        ),
        pytest.param(Entry(4096), MEMORY_BAR, id="just-behind-the-region"),
        pytest.param(Entry(4094, size=4), MEMORY_BAR, id="over-the-regions-end"),
        pytest.param(Entry((1 << 64) - 4, size=8), MEMORY_BAR, id="over-the-end-of-numbers"),
        pytest.param(Entry(AT, fd_index=1), MEMORY_BAR, id="a-descriptor-that-did-not-come"),
        pytest.param(Entry(AT, fd_index=0xFFFF_FFFF), MEMORY_BAR, id="no-descriptor"),
    ],
)
def test_an_entry_that_cannot_be_registered_is_left_to_messages(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, entry: Entry, region: int
) -> None:
    server = craft(entries(entry, fds=[bell], index=region))
    machine = drive(server)
    (function,) = machine.functions
    offset = entry.offset if entry.offset < 16 else AT
    if region == PORT_BAR:
        machine.port_out(function.bars[PORT_BAR], 1)
    else:
        function.write(MEMORY_BAR, offset, 1)
    function.read(MEMORY_BAR, 0)
    assert (rung(bell), [write[:2] for write in server.writes]) == (0, [(region, offset)])


def test_a_descriptor_that_is_no_eventfd_is_passed_over(
    drive: Callable[..., Machine], craft: Callable[..., Crafted]
) -> None:
    reading, writing = os.pipe()
    try:
        server = craft(entries(Entry(AT), fds=[writing]))
        (function,) = drive(server).functions
        function.write(MEMORY_BAR, AT, 1)
        function.read(MEMORY_BAR, 0)
        assert [write[:2] for write in server.writes] == [(MEMORY_BAR, AT)]
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(Entry(AT), Entry(AT), id="twice-any-size"),
        pytest.param(Entry(AT), Entry(AT, size=4), id="any-size-and-one"),
        pytest.param(Entry(AT, size=4), Entry(AT), id="one-size-and-any"),
        pytest.param(Entry(AT, size=4), Entry(AT, size=4, flags=DATAMATCH, datamatch=1), id="any-value-and-one"),
        pytest.param(
            Entry(AT, size=4, flags=DATAMATCH, datamatch=1),
            Entry(AT, size=4, flags=DATAMATCH, datamatch=1),
            id="one-value",
        ),
    ],
)
def test_of_two_entries_that_overlap_the_first_counts(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int, first: Entry, second: Entry
) -> None:
    server = craft(entries(first, second, fds=[bell]))
    (function,) = drive(server).functions
    function.write(MEMORY_BAR, AT, 1)
    function.read(MEMORY_BAR, 0)
    assert (rung(bell), server.writes) == (1, [])


def test_one_descriptor_may_serve_many_entries(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int
) -> None:
    server = craft(entries(*(Entry(8 * number) for number in range(256)), fds=[bell]))
    (function,) = drive(server).functions
    for number in range(256):
        function.write(MEMORY_BAR, 8 * number, 1)
    assert (rung(bell), server.writes) == (256, [])


def _head(argsz: int, count: int, array: int = 0, ask: int = 0) -> Answer:
    """A reply whose numbers do not fit: ``array`` bytes after the head, once the client offers room for ``ask``."""

    def answer(argsz_asked: int, region: int) -> Reply:
        head = struct.pack("<IIII", argsz, 0, region, count)
        return (head + bytes(array) if argsz_asked >= ask else head), ()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(_head(56, 0xFFFF_FFFF, 40, 56), id="an-oversized-count"),
        pytest.param(_head(0xFFFF_FFFF, 1), id="an-oversized-argsz"),
        pytest.param(_head(15, 1), id="an-argsz-below-its-head"),
        pytest.param(_head(56, 0, 40, 56), id="no-entries-in-many-bytes"),
        pytest.param(_head(56, 3, 40, 56), id="a-stride-of-13"),
        pytest.param(_head(96, 1, 80, 96), id="a-stride-of-80"),
        pytest.param(_head(56, 1, 0), id="entries-that-do-not-come"),
        pytest.param(_head(56, 1, 40), id="more-than-was-asked-for"),
        pytest.param(lambda argsz, region: (b"\0" * 8, ()), id="half-a-head"),
        pytest.param(lambda argsz, region: None, id="a-server-that-ends"),
        pytest.param(
            lambda argsz, region: (struct.pack("<IIII", 56, 0, region, 1), ()) if argsz == 16 else None,
            id="a-server-that-ends-in-between",
        ),
    ],
)
def test_no_reply_ends_qemu(drive: Callable[..., Machine], craft: Callable[..., Crafted], answer: Answer) -> None:
    """The device comes while the machine runs: one that is there from the start, and dies, ends any QEMU at a reset."""
    server = craft(answer)
    machine = drive(arguments=ROOT_PORT)
    with contextlib.suppress(MachineError):  # QEMU may say that it does not want the device
        machine.plug(server)
    assert server.asked
    assert machine.control.ask("query-status")["status"] == "running"


def test_seventeen_descriptors_do_not_end_qemu(
    drive: Callable[..., Machine], craft: Callable[..., Crafted], bell: int
) -> None:
    server = craft(entries(*(Entry(8 * number, fd_index=number) for number in range(17)), fds=[bell] * 17))
    machine = drive(server)
    assert machine.control.ask("query-status")
