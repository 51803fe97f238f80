"""Linux's nvme driver under scenarios of faults: it survives, or it fails as the scenario says that a driver may.

One guest runs under all of them, one after the other. Once its disk works, its time limits for I/O are as short as they
can be: a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.virtio_blk import VirtioBlk
from bellwire.faults import Fault
from bellwire.faults.scenario import find_scenario
from bellwire.testing import Serving, serve
from bellwired.guest.machine import Finished, Machine
from bellwired.guest.plan import Plan, Plugged
from bellwired.guest.qemus import inspect
from bellwired.guest.toolbox import Toolbox

pytestmark = pytest.mark.guest
slowly = pytest.mark.long  # each takes seconds: the driver waits for its time limits

LIMITS = """
echo 1 >/sys/module/nvme_core/parameters/io_timeout
echo 5 >/sys/module/nvme_core/parameters/admin_timeout
"""
LIMIT = "echo {:.0f} >/sys/block/nvme0n1/queue/io_timeout"  # milliseconds, of the disk that is there
PATIENCE = 60.0
PLACE = "/sys/bus/pci/devices/0000:00:01.0"
TOOLS = """
until_there() { n=0; until [ -b $1 ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
seconds() { read now rest </proc/uptime; echo ${now%.*}; }
copy() {
    to=${1:-/dev/nvme0n1}
    dd if=/dev/urandom of=/tmp/given bs=4k count=12 2>/dev/null
    dd if=/tmp/given of=$to bs=4k oflag=direct 2>/dev/null &&
        dd if=$to of=/tmp/got bs=4k count=12 iflag=direct 2>/dev/null && cmp /tmp/given /tmp/got
}
"""
COPY = f"{TOOLS} copy"
COPY_OTHER = f"{TOOLS} until_there /dev/vda && copy /dev/vda"
FOR_A_WHILE = f"""{TOOLS}
end=$(($(seconds) + 4))
while [ $(seconds) -lt $end ]; do copy || exit 1; done
"""
BACK = f"{TOOLS} until_there /dev/nvme0n1 && cat /sys/class/nvme/nvme0/state"
GONE = "n=0; while [ -b /dev/nvme0n1 ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done"
ANEW = f"""{TOOLS}
echo 1 >{PLACE}/remove
[ ! -e /dev/nvme0 ] || exit 8
echo 1 >/sys/bus/pci/rescan
until_there /dev/nvme0n1
"""


@dataclass
class Disk:
    """The guest, and the disk that is plugged into it."""

    machine: Machine
    serving: Serving[Nvme]
    other: Serving[VirtioBlk]
    marks: int = 0
    begun: str = ""

    @contextlib.contextmanager
    def under(self, name: str) -> Iterator[list[Fault]]:
        """Let the disk be under a scenario for the length of the block; the other one under one for virtio."""
        self.begun = self.mark()
        serving: Serving[Any] = self.other if name.startswith("virtio-") else self.serving
        faults = find_scenario(name).faults(type(serving.device))
        for fault in faults:
            serving.call(serving.filters.add, fault)
        try:
            yield faults
        finally:
            for fault in faults:
                serving.call(serving.filters.remove, fault)

    def run(self, script: str) -> Finished:
        return self.machine.run(script, timeout=PATIENCE)

    def mark(self) -> str:
        """Have the kernel say something of its own. When that is on the console, so is all that it has said before."""
        self.marks += 1
        mark = f"mark {self.marks} of the test"
        assert self.run(f"echo '<2>{mark}' >/dev/kmsg").status == 0
        assert self.machine.console.wait_for(f"{mark}\r\n".encode(), PATIENCE)
        return mark

    def messages(self) -> str:
        """What the kernel has said since the scenario began."""
        ended = self.mark()
        return self.machine.console.text.partition(self.begun)[2].partition(ended)[0]


@pytest.fixture(scope="module")
def guest(tools: Toolbox) -> Iterator[Disk]:
    qemu = inspect(tuple(tools.qemu), tools.qemu_environment, tuple(tools.virtiofsd))
    with serve(Nvme, size="64M", serial="BELL0001") as serving, serve(VirtioBlk, size="64M") as other:
        plan = Plan(
            tools.kernel,
            qemu,
            busybox=tools.busybox,
            cpus=2,
            devices=[Plugged(serving.path, "disk"), Plugged(other.path, "other")],
            modules=["nvme", "virtio_blk"],
        )
        with Machine.start(plan) as machine:
            machine.run(BACK, timeout=PATIENCE, check=True)
            machine.run(LIMITS + LIMIT.format(1000), timeout=PATIENCE, check=True)
            yield Disk(machine, serving, other)


@pytest.fixture
def disk(guest: Disk) -> Iterator[Disk]:
    """The disk, which works before each scenario and after it; the kernel has reported no mistake of its own."""
    assert guest.run(BACK).stdout == b"live\n"
    yield guest
    assert guest.run(COPY).status == 0
    assert guest.machine.reports == []


def struck(faults: list[Fault]) -> int:
    return sum(fault.trigger.struck for fault in faults)


@pytest.mark.parametrize("name", ["double-irq", "late-irq", "nvme-busy", "nvme-out-of-order"])
def test_linux_notices_nothing(disk: Disk, name: str) -> None:
    assert disk.run(LIMIT.format(30_000)).status == 0  # a busy host may hold up the disk for a second, too
    with disk.under(name) as faults:
        assert disk.run(COPY).status == 0
    assert disk.run(LIMIT.format(1000)).status == 0
    assert struck(faults)
    assert "nvme" not in disk.messages()


@pytest.mark.parametrize("name", ["virtio-late-used", "virtio-short-used"])
def test_another_driver_notices_nothing_either(disk: Disk, name: str) -> None:
    with disk.under(name) as faults:
        assert disk.run(COPY_OTHER).status == 0
    assert struck(faults)
    assert "virtio" not in disk.messages()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("nvme-fatal", "controller is down; will reset: CSTS=0x3", id="nvme-fatal"),
        pytest.param("nvme-twice", "invalid id ", id="nvme-twice"),
        pytest.param("lost-irq", "timeout, completion polled", marks=slowly, id="lost-irq"),
        pytest.param("wrong-vector", "timeout, completion polled", marks=slowly, id="wrong-vector"),
        pytest.param("nvme-lost-command", "timeout, reset controller", marks=slowly, id="nvme-lost-command"),
    ],
)
def test_linux_says_what_was_wrong_and_all_data_is_right(disk: Disk, name: str, message: str) -> None:
    with disk.under(name) as faults:
        assert disk.run(COPY).status == 0
    assert struck(faults)
    assert message in disk.messages()


def test_linux_gives_up_a_read_that_the_media_cannot_serve_at_once(disk: Disk) -> None:
    with disk.under("nvme-media-error") as faults:
        assert disk.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k skip=125 count=1 iflag=direct").status
        assert disk.run("dd if=/dev/nvme0n1 of=/dev/null bs=4k skip=250 count=1 iflag=direct").status == 0
    assert struck(faults) == 1
    assert "critical medium error, dev nvme0n1, sector 1000" in disk.messages()


@slowly
@pytest.mark.parametrize("name", ["hung", "nvme-queue-full", "link-down"])
def test_linux_goes_on_when_the_device_does_and_all_data_is_right(disk: Disk, name: str) -> None:
    with disk.under(name) as faults:
        assert disk.run(FOR_A_WHILE).status == 0
    assert struck(faults)


@slowly
def test_linux_removes_a_namespace_that_is_gone_and_finds_it_again(disk: Disk) -> None:
    with disk.under("nvme-namespace-gone"):
        assert disk.run(GONE).status == 0
        assert disk.run(BACK).stdout == b"live\n"


@slowly
def test_linux_fails_what_is_open_when_the_device_is_gone_and_takes_another_one(disk: Disk) -> None:
    with disk.under("surprise-removal"):
        assert disk.run(FOR_A_WHILE).status == 1
    assert "nvme nvme0: Disabling device after reset failure" in disk.messages()
    assert disk.run(ANEW).status == 0
