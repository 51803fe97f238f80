"""What QEMU and Linux make of a device's capabilities: the table in docs/qemu.md."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import capable
from attached import Device
from bellwire import CorrectableError, UncorrectableError
from bellwired.guest.qmp import Qmp
from capable import Capable
from linux import Outcome
from machine import Machine
from qtest import monitor
from rendezvous import joined

pytestmark = pytest.mark.guest

LSPCI, SETPCI = "usr/bin/lspci", "usr/bin/setpci"
SLOT = "01:00.0"
SCRIPT = f"""
device=/sys/bus/pci/devices/0000:{SLOT}
setpci() {{ /{SETPCI} -s {SLOT} "$@"; }}
till() {{ n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }}
stty -F /dev/ttyS1 raw -echo
echo 1 >$device/enable
echo === as found; lspci -n -vvv -s {SLOT} 2>/dev/null
echo === bytes; lspci -n -xxxx -s {SLOT} 2>/dev/null
echo === written
setpci ECAP23+0c.l=12345678; setpci ECAP23+0c.l
setpci ECAP0f+6.w=8001; setpci ECAP1b+6.w=0001
lspci -n -vvv -s {SLOT} 2>/dev/null
echo === data objects
for word in 00000001 00000003 00000001; do setpci ECAP2e+10.l=$word; done
setpci ECAP2e+8.l=80000000
for n in 1 2 3; do setpci ECAP2e+14.l; setpci ECAP2e+14.l=0; done
setpci ECAP2e+0c.l
echo === errors
setpci ECAP0b+0c.l={int(CorrectableError.BAD_TLP):x}; setpci ECAP0b+08.l={int(UncorrectableError.POISONED_TLP):x}
lspci -n -vvv -s {SLOT} 2>/dev/null
echo errors >/dev/ttyS1
till "grep -q 'BadTLP 1' $device/aer_dev_correctable"
echo counted >/dev/ttyS1
till "grep -q '^TLP 1' $device/aer_dev_nonfatal"
echo === log; dmesg
echo === asleep
echo 0 >$device/enable
echo vfio-pci >$device/driver_override
echo 0000:{SLOT} >/sys/bus/pci/drivers/vfio-pci/bind
power=$device/power
till 'grep -q suspended $power/runtime_status'
setpci CAP_PM+4.w
active=$(cat $power/runtime_active_time)
setpci ECAP0b+10.l=1
till '[ $(cat $power/runtime_active_time) != $active ]'
echo woken
"""
SHOWN = [
    r"PME\(D0-,D1-,D2-,D3hot\+,D3cold-\)",
    r"LnkCap:\tPort #0, Speed 16GT/s, Width x8",
    r"LnkSta:\tSpeed 16GT/s, Width x8",
    r"LTR\+",
    r"Capabilities: \[100 v2\] Advanced Error Reporting",
    r"Device Serial Number 02-42-57-ff-fe-00-00-01",
    r"Vendor Specific Information: ID=0010 Rev=1 Len=014",
    r"Designated Vendor-Specific: Vendor=1234 ID=0007 Rev=0 Len=16",
    r"Latency Tolerance Reporting",
    r"ATSCap:\tInvalidate Queue Depth: 10",
    r"PASIDCap: Exec- Priv-, Max PASID Width: 10",
    r"Access Control Services",
    r"BAR 0: current size: 2MB, supported: 2MB",
    r"Data Object Exchange",
]


@contextlib.contextmanager
def monitored(path: Path) -> Iterator[Qmp]:
    with contextlib.closing(monitor(path)) as control:
        yield control


def inject(control: Qmp, error: str) -> None:
    """Let the root port send two messages at once, so that Linux looks at the devices behind it too (docs/qemu.md).

    The same for the device itself comes first: it has no effect.
    """
    control.ask("stop")
    for port in ("card", "root", "root"):
        control.ask("human-monitor-command", **{"command-line": f"pcie_aer_inject_error {port} {error}"})
    control.ask("cont")


@pytest.fixture
def said(linux: Callable[..., Outcome], tmp_path: Path) -> dict[str, str]:
    """What the guest has said, by the step of the script. One boot does for all."""
    qmp, line = tmp_path / "qmp", tmp_path / "line"
    iommu = ["-device", "intel-iommu,caching-mode=on"]  # vfio-pci needs one
    board = ["-device", "pcie-root-port,id=root,slot=1", "-qmp", f"unix:{qmp},server=on,wait=off"]
    board += ["-serial", f"unix:{line},server=on,wait=off"]

    def visit() -> None:
        with joined(line) as far, far.makefile("rb") as lines, monitored(qmp) as control:
            for heard, error in ((b"errors\n", "BAD_TLP"), (b"counted\n", "POISON_TLP")):
                assert lines.readline() == heard
                inject(control, error)

    with ThreadPoolExecutor(1) as visitor:
        visited = visitor.submit(visit)
        device = Device(capable.__file__, qemu={"bus": "root", "id": "card"})
        outcome = linux(
            SCRIPT,
            device,
            board=[*iommu, *board],
            programs=[LSPCI, SETPCI],
            modules=["vfio-pci"],
            append="intel_iommu=on",
        )
        visited.result()
    assert outcome.status == 0, outcome.output
    return dict(re.findall(r"^=== (.+)\n((?:(?!=== ).*\n)*)", outcome.output, re.MULTILINE))


def test_linux_finds_and_uses_every_capability(said: dict[str, str]) -> None:
    for shown in SHOWN:
        assert re.search(shown, said["as found"]), shown
    assert (seen := changed_by_qemu(said["bytes"])) == {"sizes.capability0"}, seen

    assert said["written"].startswith("12345678\n")
    assert "ATSCtl:\tEnable+, Smallest Translation Unit: 01" in said["written"]
    assert "PASIDCtl: Enable+ Exec- Priv-" in said["written"]

    assert said["data objects"].split() == ["00000001", "00000003", "00011234", "00000000"]

    assert re.search(r"CESta:\t.*BadTLP\+", said["errors"])
    assert re.search(r"UESta:\t.* TLP\+", said["errors"])
    assert "HeaderLog: 00112233 44556677 8899aabb ccddeeff" in said["errors"]
    assert re.search(r"DevSta:\tCorrErr\+ NonFatalErr\+ FatalErr-", said["errors"])

    reported = rf"pci 0000:{SLOT}: .*"
    for line in (r"PCIe Bus Error: severity=Correctable", r"\[ 6\] BadTLP", r"severity=Uncorrectable \(Non-Fatal\)",
                 r"\[12\] TLP +\(First\)", r"TLP Header: 00112233 44556677 8899aabb ccddeeff"):  # fmt: skip
        assert re.search(reported + line, said["log"]), line
    assert "message received from 0000:00:01.0" in said["log"]
    assert f"message received from 0000:{SLOT}" not in said["log"]
    # Linux has suspended the device that vfio-pci has and nobody uses, and finds its wake-up event within a second.
    assert said["asleep"].split() == ["010b", "woken"]
    assert "DOE:" not in said["log"]  # Linux has asked the mailbox for its protocols, and has nothing to say


def changed_by_qemu(dump: str) -> set[str]:
    """The registers of extended capabilities that do not have their reset value in what lspci prints."""
    rows = dict(re.findall(r"^([0-9a-f]+): ((?:[0-9a-f]{2} ?){16})$", dump, re.MULTILINE))
    content = b"".join(bytes.fromhex(row) for row in rows.values())
    assert len(content) == 4096
    return {
        item.name
        for each in Capable.layout.extended
        for item in each.placed
        if item.reset != int.from_bytes(content[(at := each.at + item.offset) : at + item.size], "little")
    }


COMMAND, SERR = 0x04, 1 << 8


def test_qemu_stops_when_it_is_told_of_an_error(drive: Callable[..., Machine]) -> None:
    machine = drive(Device(capable.__file__))
    (function,) = machine.functions
    function.config_write(COMMAND, function.config_read(COMMAND, 2) | SERR, 2)
    assert machine.control.ask("query-status")["status"] == "running"
    function.write(2, Capable.stop.offset, UncorrectableError.MALFORMED_TLP)
    machine.control.wait("STOP")
    assert machine.control.ask("query-status")["status"] == "internal-error"
