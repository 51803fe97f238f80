"""The patched QEMU with -accel kvm and Linux in it: what rings cost, by KVM's own count of exits."""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bellwired.guest.errors import MachineError
from bellwired.guest.plan import Plugged
from bellwired.guest.qmp import Qmp
from kvm_ioctls import Kvm
from linux import Guest
from nested.linux_runs import Served
from patched import patched
from provision import provision
from qtest import monitor

BLOCKS = 500
PATIENCE = 500.0
BEGIN, END = "the disk is read", "the disk has been read"
READ = f"""
disk=$(ls /dev/nvme0n1 /dev/vda 2>/dev/null)
n=0; until [ -b $disk ]; do n=$((n + 1)); [ $n -lt 400 ] || exit 9; usleep 50000; done
echo {BEGIN}
dd if=$disk of=/dev/null bs=4k count={BLOCKS} iflag=direct 2>/dev/null || exit 1
echo {END}
"""


class Ran(NamedTuple):
    """The device's counts, KVM's count of exits while the disk was read, and what QEMU has traced."""

    tally: dict[str, int]
    exits: int
    trace: str


def mmio_exits(control: Qmp) -> int:
    """Exits of memory-mapped I/O to QEMU, of all processors."""
    words: list[dict[str, Any]] = control.ask("query-stats", target="vcpu")
    stats = [each for word in words for each in word["stats"]]
    return sum(each["value"] for each in stats if each["name"] == "mmio_exits")


def until(file: Path, text: str, alive: Callable[[], bool]) -> None:
    """Wait until the guest has printed this."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists() or text not in file.read_text(errors="replace"):
        assert alive(), "the guest has ended before"
        assert time.monotonic() < deadline, f"the guest does not print {text!r}"
        select.select([], [], [], 0.01)


def read(folder: Path, name: str, *, io_fds: bool = True) -> Ran:
    """Let Linux read BLOCKS blocks of a disk, one after the other."""
    tools = patched(provision(), lambda line: None)
    guest, exits, failures = Guest(tools, folder), [0, 0], []
    served = Served(name, {}, folder)
    control = folder / "control"
    words = ["-qmp", f"unix:{control},server=on,wait=off", "-trace", "vfio_user_shadow"]
    thread: threading.Thread

    def watch() -> None:
        try:
            until(folder / "output", BEGIN, thread.is_alive)
            with closing(monitor(control)) as qmp:
                exits[0] = mmio_exits(qmp)
                until(folder / "output", END, thread.is_alive)
                exits[1] = mmio_exits(qmp)
                qmp.ask("quit")
        except (MachineError, AssertionError, OSError) as error:
            failures.append(error)

    def hold() -> None:
        plugged = Plugged(served.path, properties={"x-no-io-fds": not io_fds})
        script = READ + "exec sleep 1000\n"  # the machine stays until its counters have been read
        outcomes.append(
            guest.run(script, [plugged], modules=["virtio_blk"], arguments=words, accel="kvm", timeout=PATIENCE)
        )

    outcomes: list[Any] = []
    thread = threading.Thread(target=hold)
    thread.start()
    watch()
    thread.join()
    report = guest.report()
    assert not failures, (failures, report)
    assert END in outcomes[0].output, report
    return Ran(served.tally(), exits[1] - exits[0], report["QEMU"])


def posting() -> bool:
    """Whether this kernel stores the values of ioeventfds."""
    with Kvm.open() as kvm, kvm.create_vm() as vm:
        return vm.has_post_write()


def test_rings_of_nvme_are_no_messages_and_no_exits_where_the_kernel_stores_values(tmp_path: Path) -> None:
    ran = read(tmp_path, "nvme")
    rings = ran.tally["rings_shadow"]  # fewer than blocks: Linux keeps the values in memory too, and rings when asked
    assert ran.tally["rings_message"] == 0
    assert rings > BLOCKS / 4
    by = set(re.findall(r"vfio_user_shadow .* by (\w+)", ran.trace))
    if posting():
        assert by == {"KVM"}
        assert ran.exits < rings / 10
    else:
        assert by == {"QEMU"}
        assert ran.exits > rings / 2  # those of the boot are not counted


def test_rings_of_virtio_blk_are_no_exits(tmp_path: Path) -> None:
    ran = read(tmp_path, "virtio-blk")
    assert (ran.tally["rings_message"], ran.tally["rings_ioeventfd"] >= BLOCKS) == (0, True)
    assert ran.exits < BLOCKS / 10


@pytest.mark.parametrize("name", ["nvme", "virtio-blk"])
def test_without_descriptors_each_ring_is_an_exit_and_a_message(tmp_path: Path, name: str) -> None:
    ran = read(tmp_path, name, io_fds=False)
    assert (ran.tally["rings_shadow"], ran.tally["rings_ioeventfd"]) == (0, 0)
    assert ran.exits >= ran.tally["rings_message"] * BLOCKS // (BLOCKS + 300)
    assert ran.tally["rings_message"] >= BLOCKS
