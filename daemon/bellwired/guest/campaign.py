"""Fuzzes a driver: a Linux guest whose device says wrong things, until the kernel reports a mistake or hangs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bellwire import PciDevice
from bellwire.faults import Fault
from bellwire.faults.changed import Fuzz
from bellwire.faults.scenario import Scenario
from bellwire.faults.shrink import shrink
from bellwire.testing import Serving, serve
from bellwired.guest.errors import CommandTimeout, MachineError
from bellwired.guest.machine import Machine
from bellwired.guest.plan import Plan, Plugged

HANG = "hang"
PLACE = "/sys/bus/pci/devices/0000:00:01.0"
IMPATIENT = "echo 10 >/proc/sys/kernel/hung_task_timeout_secs"
ANEW = f"""
[ ! -e {PLACE} ] || echo 1 >{PLACE}/remove
echo 1 >/sys/bus/pci/rescan
"""
"""Has the driver find the device anew, so that it is set up while the device says wrong things."""
DISK = """
n=0; until [ -b /dev/{disk} ] || [ $n -ge 40 ]; do n=$((n + 1)); usleep 50000; done
dd if=/dev/urandom of=/dev/{disk} bs=4k count=20 oflag=direct
dd if=/dev/{disk} of=/dev/null bs=4k count=20 iflag=direct
"""
CARD = """
ip link set eth0 up
ip addr add 10.97.0.2/24 dev eth0
ping -c 5 -W 1 10.97.0.1
ip link set eth0 down
"""
PORT = """
for port in /dev/ttyS1 /dev/ttyS2 /dev/ttyS3 /dev/ttyS4 /dev/ttyS5; do
    stty -F $port 115200 raw -echo clocal || continue
    head -c 200 /dev/urandom >$port
    cat /proc/tty/driver/serial
done
"""


@dataclass(frozen=True)
class Work:
    """What a guest does with a device: the modules that it needs, and the script that makes the driver work."""

    script: str
    modules: tuple[str, ...] = ()
    append: str = ""


WORK: Mapping[str, Work] = {
    "nvme": Work(
        DISK.format(disk="nvme0n1"),
        ("nvme",),
        "nvme_core.io_timeout=1 nvme_core.admin_timeout=1",
    ),
    "virtio-blk": Work(DISK.format(disk="vda"), ("virtio_blk",)),
    "virtio-net": Work(CARD, ("virtio_net",)),
    "serial": Work(PORT),
}
"""By the name of a bundled device."""


@dataclass(frozen=True)
class Found:
    """A mistake of the guest: its kind, as "oops" or "hang", and what was printed."""

    kind: str
    title: str
    text: str


@dataclass
class Result:
    """What a campaign has found, and what it has tried."""

    runs: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    """How often what was changed, and where: the coverage."""
    found: Found | None = None
    seed: int = 0
    """Of the run in which it was found."""
    all: list[dict[str, Any]] = field(default_factory=list)
    """The changes of that run."""
    least: list[dict[str, Any]] = field(default_factory=list)
    """Those of them that it takes."""
    again: bool = False
    """Whether the least changes have led to the same kind of mistake once more."""


class Runs(Protocol):
    """What a campaign needs: see :class:`Bed`."""

    kind: type[PciDevice]

    def run(self, faults: Sequence[Fault]) -> Found | None:
        """Let the driver work under these faults."""


class Bed:
    """A guest with one device, whose driver works while the device says wrong things. It is booted when it is needed.

    ``plan`` makes the machine's plan from the device. A script may take ``patience`` seconds.
    """

    def __init__(
        self,
        kind: type[PciDevice],
        options: Mapping[str, Any],
        work: Work,
        plan: Callable[[Plugged], Plan],
        patience: float,
    ) -> None:
        self.kind = kind
        self.boots = 0
        self._options = options
        self._work = work
        self._plan = plan
        self._patience = patience
        self._stack = contextlib.ExitStack()
        self._running: tuple[Machine, Serving[PciDevice]] | None = None

    def run(self, faults: Sequence[Fault]) -> Found | None:
        """Let the driver work under these faults: what it has done wrong, if anything."""
        machine, serving = self._machine()
        before, hang = len(machine.reports), ""
        for fault in faults:
            serving.call(serving.filters.add, fault)
        try:
            machine.run(ANEW + self._work.script, timeout=self._patience)
        except (CommandTimeout, MachineError) as error:
            hang = str(error)
        finally:
            for fault in faults:
                if fault in dict(serving.filters).values():
                    serving.call(serving.filters.remove, fault)
        reports = machine.reports[before:]
        if not reports and not hang:
            return None
        self.close()
        if reports:
            return Found(str(reports[0].kind), reports[0].title, machine.decoded(reports[0]))
        return Found(HANG, hang.partition("\n")[0], machine.console.tail())

    def close(self) -> None:
        """End the guest; the next run boots another one."""
        self._running = None
        self._stack.close()

    def _machine(self) -> tuple[Machine, Serving[PciDevice]]:
        if self._running is None:
            self.boots += 1
            serving: Serving[PciDevice] = self._stack.enter_context(serve(self.kind, **self._options))
            machine = self._stack.enter_context(Machine.start(self._plan(Plugged(serving.path, "fuzzed"))))
            for module in self._work.modules:
                machine.load(module)
            machine.run(IMPATIENT, timeout=self._patience)
            self._running = machine, serving
        else:
            self._running[1].reset()
        return self._running


def campaign(bed: Runs, *, runs: int, seed: int, told: Callable[[str], object], **arguments: Any) -> Result:
    """Fuzz with the seeds from ``seed`` on, until a mistake is found or ``runs`` have passed; shrink what was found.

    ``arguments`` are those of :class:`bellwire.faults.changed.Fuzz`. ``told`` gets a line for each run.
    """
    result = Result()
    for number in range(seed, seed + runs):
        fuzz = Fuzz(seed=number, **arguments)
        found = bed.run([fuzz])
        result.runs += 1
        result.changes.update(fuzz.report()["changed"])
        told(f"seed {number}: {len(fuzz.changes)} changes: {found.title if found else 'nothing found'}")
        if found is not None:
            result.found, result.seed, result.all = found, number, fuzz.changes
            _shrink(bed, result, told)
            break
    return result


def _shrink(bed: Runs, result: Result, told: Callable[[str], object]) -> None:
    assert result.found is not None
    kind = result.found.kind

    def fails(changes: list[dict[str, Any]]) -> bool:
        found = bed.run(made(bed.kind, changes))
        told(f"with {len(changes)} of the changes: {found.title if found else 'nothing'}")
        return found is not None and found.kind == kind

    result.again = fails(result.all)
    result.least = shrink(result.all, fails, tries=30) if result.again else result.all


def made(kind: type[PciDevice], changes: Sequence[dict[str, Any]]) -> list[Fault]:
    """New faults that make these changes."""
    return scenario(changes, "x", "x").faults(kind)


def scenario(changes: Sequence[dict[str, Any]], device: str, about: str) -> Scenario:
    """Changes as a scenario."""
    return Scenario(
        name=f"fuzzed-{device}", about=about, driver=Fuzz.driver, devices=(), fault=tuple(map(dict, changes))
    )


@contextlib.contextmanager
def bedded(*arguments: Any) -> Iterator[Bed]:
    """A bed for the length of a ``with`` block: see :class:`Bed`."""
    bed = Bed(*arguments)
    try:
        yield bed
    finally:
        bed.close()
