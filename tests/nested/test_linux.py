"""Linux as the guest of `bellwire vmm`, on KVM with the processor's own virtualisation, as the bed has it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.archive import ArchiveError
from bellwired.guest.initramfs import archive
from bellwired.guest.toolbox import Toolbox
from nested.boot import run
from nested.errors import LackError
from nested.kernel import image
from nested.vmlinux import vmlinux
from provision import provision

pytestmark = [pytest.mark.nested, pytest.mark.long]

HERE = Path(__file__).parent
PATIENCE = 900.0
MODULES = ("virtio_blk", "virtio-rng", "virtio_net")
SINCE = 20  # interrupts, from the guest's count of them to its end
QUIET = "quiet random.trust_cpu=on"
BEGIN = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /mnt
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
"""
USE = """
echo "$(nproc) processors"
for module in /modules/*; do insmod $module; done
for device in /sys/bus/pci/devices/*; do
    echo "$(cat $device/vendor $device/device $device/class | xargs) $(readlink $device/driver | sed 's:.*/::')"
done
mount -t ext4 /dev/nvme0n1 /mnt
dd if=/dev/urandom of=/mnt/file bs=64k count=16 2>/dev/null
echo "file written: $(sha256sum </mnt/file)"
sync
umount /mnt
echo 3 >/proc/sys/vm/drop_caches
mount -t ext4 /dev/nvme0n1 /mnt
echo "file read: $(sha256sum </mnt/file)"
umount /mnt
dd if=/dev/urandom of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null
echo "disk read: $(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum)"
echo "random bytes: $(dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c)"
ip link set eth0 up
ip addr add 10.9.0.2/24 dev eth0
ping -c 3 -i 0.2 -W 10 10.9.0.1 | grep received
cat /proc/interrupts
echo "hello from the guest" >/dev/hvc0
poweroff -f
"""
REBOOT_THEN_PANIC = """
insmod /modules/*virtio_blk.ko
if [ "$(head -c 5 /dev/vda)" = again ]; then
    echo "and up again"
    grep virtio /proc/interrupts
    echo c >/proc/sysrq-trigger
fi
echo again | dd of=/dev/vda conv=fsync 2>/dev/null
reboot -f
"""
SHELL = """
echo "$(nproc) processors"
exec setsid -c sh </dev/ttyS0 >/dev/ttyS0 2>&1
"""
INTERRUPTS = re.compile(r"^ *\d+:((?: +\d+)+) +PCI-MSIX-0000:00:(\w+)\.0 +\d+-edge", re.MULTILINE)
ROW = re.compile(r"^  BAR(\d)\+(\S+)  (?:\d+ of )?(\D+?)(?: at (0x\w+))?: (\d+) exits$", re.MULTILINE)


@dataclass(frozen=True)
class Told:
    """What came of one run."""

    status: int
    output: str
    console: str
    tallies: dict[str, dict[str, int]]
    after: list[str]
    seconds: float


def initrd(tools: Toolbox, folder: Path, name: str, script: str) -> list[str]:
    """Words that have a kernel run ``script`` as its first process."""
    modules = tools.kernel.load_order(MODULES)
    files: dict[str, bytes | Path] = {"init": (BEGIN + script).encode(), "bin/busybox": tools.busybox}
    files |= {f"modules/{number:02}-{module}.ko": code for number, (module, code) in enumerate(modules.items())}
    path = folder / name
    path.write_bytes(archive(files, {"bin/sh": "busybox"}))
    return ["--initrd", str(path)]


@pytest.fixture(scope="module")
def tools() -> Toolbox:
    try:
        return provision()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no bed could be made: {error}")


def in_bed(tools: Toolbox, kernel: str, folder: Path, plans: list[dict[str, Any]]) -> list[Told]:
    """Boot the bed with ``kernel``, carry out plans there, and tell what came of each."""
    try:
        bed = image(tools, kernel, lambda _: None)
    except LackError as error:
        pytest.skip(f"no kernel could be built: {error} {error.hint}")
    plan = folder / "plan"
    plan.write_text(json.dumps(plans))
    said: list[bytes] = []
    words = [sys.executable, str(HERE / "linux_runs.py"), str(plan)]
    run(tools, bed, words, output=said.append, timeout=PATIENCE, folder=HERE)
    told = [Told(**json.loads(line)) for line in b"".join(said).decode().splitlines() if line.startswith("{")]
    assert len(told) == len(plans), b"".join(said).decode()
    return told


def stock(tools: Toolbox, *more: str) -> list[str]:
    """Words that boot Debian's kernel with little ado."""
    return ["--kernel", str(tools.kernel.image), "--append", " ".join([QUIET, *more]), "--memory", "256"]


@pytest.fixture(scope="module")
def use(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Devices in use, on a kernel that has ioregionfds."""
    folder = tmp_path_factory.mktemp("use")
    plan = {
        "devices": {
            "nvme": {"image": "disk", "queues": 2},
            "virtio-blk": {"image": "raw", "size": "8M"},
            "virtio-rng": {},
            "virtio-console": {"ports": "console=file:said"},
            "edu": {},
            "virtio-net": {"tap": "bell0"},
        },
        "links": {"bell0": "10.9.0.1/24"},
        "words": [*stock(tools), *initrd(tools, folder, "use", USE), "--cpus", "2"],
        "before": [
            ["truncate", "-s", "16M", "disk"],
            [*tools.command("usr/sbin/mke2fs"), "-q", "-t", "ext4", "disk"],
        ],
        "after": [
            [*tools.command("usr/sbin/debugfs"), "-R", "dump /file file", "disk"],
            ["sha256sum", "file"],
            ["sh", "-c", "head -c 1M raw | sha256sum"],
            ["cat", "said"],
        ],
    }
    (told,) = in_bed(tools, "patched", folder, [plan])
    return told


@pytest.fixture(scope="module")
def ends(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> list[Told]:
    """Ways to end, on a distribution's kernel: a reboot and then a panic; a person at the terminal who leaves."""
    folder = tmp_path_factory.mktemp("ends")
    unpacked = folder / "vmlinux"
    unpacked.write_bytes(vmlinux(tools.kernel.image.read_bytes()))
    panic = {
        "devices": {"virtio-blk": {"size": "1M"}},
        "words": [*stock(tools, "pci=nomsi"), *initrd(tools, folder, "panic", REBOOT_THEN_PANIC)],
    }
    shell = {
        "words": ["--kernel", str(unpacked), "--append", QUIET, *initrd(tools, folder, "shell", SHELL)],
        "keys": [("1 processors", ""), ("# ", "echo $((6 * 7))\r"), ("42\r\n", "\x1d\x1d\x1d")],
    }
    return in_bed(tools, "debian", folder, [panic, shell])


@pytest.fixture
def panic(ends: list[Told]) -> Told:
    return ends[0]


@pytest.fixture
def shell(ends: list[Told]) -> Told:
    return ends[1]


def lines(text: str, title: str) -> list[str]:
    """What follows ``title`` on the lines that begin with it."""
    return [line.removeprefix(title).strip() for line in text.splitlines() if line.startswith(title)]


def interrupts(console: str) -> Counter[int]:
    """How many MSI-X interrupts of each slot the guest has counted."""
    counted: Counter[int] = Counter()
    for counts, slot in INTERRUPTS.findall(console):
        counted[int(slot, 16)] += sum(map(int, counts.split()))
    return counted


def test_linux_boots_on_two_processors_and_powers_off(use: Told) -> None:
    assert use.status == 0, use
    assert lines(use.console, "2 processors")
    assert re.search(r"^The guest powered off after [\d.]+ s\.$", use.output, re.MULTILINE)


def test_its_own_drivers_find_the_devices(use: Told) -> None:
    assert [line.strip() for line in use.console.splitlines() if line.startswith("0x")] == [
        "0x1b36 0x0008 0x060000",
        "0x1234 0xbe5d 0x010802 nvme",
        "0x1af4 0x1042 0x010000 virtio-pci",
        "0x1af4 0x1044 0x00ff00 virtio-pci",
        "0x1af4 0x1043 0x078000 virtio-pci",
        "0x1234 0x11e8 0x00ff00",
        "0x1af4 0x1041 0x020000 virtio-pci",
    ]


def test_a_file_on_nvme_is_the_same_for_the_guest_and_on_the_host_afterwards(use: Told) -> None:
    (written,), (read,) = lines(use.console, "file written: "), lines(use.console, "file read: ")
    assert written == read
    assert use.after[1].split()[0] == written.split()[0]


def test_virtio_devices_do_what_they_are_for(use: Told) -> None:
    assert lines(use.console, "disk read: ") == [use.after[2].strip()]
    assert lines(use.console, "random bytes: ") == ["2048"]
    assert "3 packets received" in use.console
    assert use.after[3].strip() == "hello from the guest"


def test_every_doorbell_is_registered_and_its_rings_cost_no_exits(use: Told) -> None:
    rows = ROW.findall(use.output)
    assert [mechanism for _, _, mechanism, _, _ in rows] == ["shadow kernel", *["ioeventfd"] * 4]
    for _, _, _, address, exits in rows:
        assert address
        assert exits == "0"
    for name in ("nvme", "virtio-blk", "virtio-rng", "virtio-console", "virtio-net"):
        assert use.tallies[name]["rings_shadow" if name == "nvme" else "rings_ioeventfd"] > 0
        assert use.tallies[name]["rings_message"] == 0


def test_the_guest_counts_the_interrupts_that_the_devices_raised(use: Told) -> None:
    seen = interrupts(use.console)
    raised = {slot: tally["interrupts"] for slot, tally in enumerate(use.tallies.values(), 1)}
    for slot in (1, 2, 3, 4, 6):
        assert 0 < seen[slot] <= raised[slot] <= seen[slot] + SINCE


def test_a_reboot_starts_again_with_the_same_devices_and_a_panic_ends_it(panic: Told) -> None:
    assert panic.status == 3, panic
    assert "The guest reboots." in panic.output
    assert "and up again" in panic.console
    assert "The guest's kernel panicked: Kernel panic - not syncing: sysrq triggered crash" in panic.output
    assert panic.tallies["virtio-blk"]["clients"] == 2


def test_a_device_interrupts_by_its_pin_where_the_guest_wants_it_so(panic: Told) -> None:
    counted = re.search(r"^ *1[6-9]: +(\d+) +IO-APIC +1[6-9]-fasteoi +virtio0$", panic.console, re.MULTILINE)
    assert counted
    assert 0 < int(counted[1]) <= panic.tallies["virtio-blk"]["interrupts"]


def test_an_unpacked_kernel_runs_a_shell_on_the_terminal_until_the_escape_is_typed(shell: Told) -> None:
    assert shell.status == 0, shell
    assert "\n42\n" in shell.output
    assert "The guest was ended from the keyboard" in shell.output
    assert shell.output.endswith("the terminal is as it was")
