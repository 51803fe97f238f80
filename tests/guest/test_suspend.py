"""A stock Linux suspends to RAM and to disk with our devices in its machine, and uses them as before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import hibernating
from attached import Device, Served
from bellwired.guest.toolbox import Toolbox
from linux import Outcome
from qtest import monitor
from virtio.namespace import Namespace

pytestmark = pytest.mark.guest

PATIENCE = 240.0  # seconds
TAP, HOST, GUEST = "bwsleep0", "10.97.0.1", "10.97.0.2"
USE = f"""
await() {{ n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }}
bar() {{ sed -n "$(($2 + 1))s/ .*//p" /sys/bus/pci/devices/$1/resource; }}
find() {{ for device in /sys/bus/pci/devices/*; do [ "$(cat $device/device)" = $1 ] && basename $device; done; }}
edu=$(find 0x11e8) bell=$(find 0xbe11)
echo 1 >/sys/bus/pci/devices/$edu/enable
echo 1 >/sys/bus/pci/devices/$bell/enable
port=$(dmesg | sed -n 's/.*0000:00:0.*: \\(ttyS[0-9]*\\) at I\\/O .* is a 16550A$/\\1/p')
stty -F /dev/$port 115200 raw -echo clocal
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0

disk() {{
    dd if=/dev/urandom of=/data bs=64k count=8 2>/dev/null
    dd if=/data of=$1 bs=64k oflag=direct 2>/dev/null && dd if=$1 bs=64k count=8 iflag=direct 2>/dev/null | cmp - /data
}}
reach() {{ ping -q -c 3 -W 2 {HOST} >/dev/null; }}
try() {{ "$@" && echo -n " $name" || echo -n " no-$name"; }}
factorial() {{
    devmem $1 32 5
    while [ $(($(devmem $2 32) & 1)) = 1 ]; do :; done
    [ $(devmem $1 32) = 0x00000078 ]
}}
rings() {{ devmem $(($1 + 0xc)) 32 1; devmem $2 32 1; devmem $2 32 1; [ $(($(devmem $(($1 + 0x40)) 64))) = 2 ]; }}
use() {{
    echo -n "$1:"
    name=edu; try factorial $(($(bar $edu 0) + 8)) $(($(bar $edu 0) + 0x20))
    name=bell; try rings $(($(bar $bell 0))) $(($(bar $bell 1)))
    name=nvme; try disk /dev/nvme0n1
    name=blk; try disk /dev/$ours
    name=net; try reach
    name=rng; dd if=/dev/hwrng of=/bytes bs=1k count=4 iflag=fullblock 2>/dev/null; try [ $(wc -c </bytes) = 4096 ]
    echo console $1 >/dev/hvc0
    echo serial $1 >/dev/$port
    echo
}}
for disk in /sys/block/vd*; do
    case $(cat $disk/serial) in ours) ours=${{disk##*/}};; swap) swap=${{disk##*/}};; esac
done
"""
RAM = f"""{USE}
use before
echo mem >/sys/power/state || exit 1
use after
dmesg | grep -c 'PM: suspend exit'
"""
DISK = f"""
for disk in /sys/block/vd*; do
    [ "$(cat $disk/serial)" = swap ] && cat $disk/dev >/sys/power/resume
done
{USE}
use before
mkswap /dev/$swap >/dev/null && swapon /dev/$swap || exit 1
echo 0 >/sys/power/image_size
echo disk >/sys/power/state || exit 2
use after
dmesg | grep -c 'PM: hibernation: hibernation exit'
"""
WORKING = " edu bell nvme blk net rng"
MODULES = ("virtio_blk", "virtio_net", "virtio-rng")


@pytest.fixture
def all_devices(serve: Callable[[Device], Served], namespace: Namespace, tmp_path: Path) -> list[Served]:
    """Every bundled device; what console and serial port print is in files."""
    devices = [
        Device("edu"),
        Device("bell"),
        Device("nvme", {"size": "16M"}),
        Device("serial", {"backend": f"file:{tmp_path / 'serial'}"}),
        Device("virtio-blk", {"size": "16M", "serial": "ours"}),
        Device("virtio-net", {"tap": TAP, "namespace": namespace.name}),
        Device("virtio-console", {"ports": f"console=file:{tmp_path / 'console'}"}),
        Device("virtio-rng"),
    ]
    served = [serve(device) for device in devices]
    namespace.address(TAP, HOST)
    return served


def test_every_device_works_after_suspend_to_ram(
    linux: Callable[..., Outcome], all_devices: list[Served], tmp_path: Path
) -> None:
    """Once: after that, this machine's firmware leaves it unable to suspend again."""
    control = tmp_path / "qmp"

    def wake() -> None:
        with contextlib.closing(monitor(control)) as machine:
            machine.wait("SUSPEND", PATIENCE)  # the guest has booted and used all devices then
            machine.ask("system_wakeup")

    with ThreadPoolExecutor(1) as waker:
        woken = waker.submit(wake)
        qmp = ["-qmp", f"unix:{control},server=on,wait=off"]
        outcome = linux(RAM, *all_devices, modules=MODULES, arguments=qmp, timeout=PATIENCE)
        woken.result()
    assert outcome.status == 0, outcome.output
    assert outcome.output.splitlines() == [f"{when}:{WORKING}" for when in ("before", "after")] + ["1"]
    for line in ("console", "serial"):
        assert (tmp_path / line).read_text().split() == [line, "before", line, "after"]


@pytest.mark.long
def test_every_device_works_after_hibernation(tools: Toolbox, all_devices: list[Served], tmp_path: Path) -> None:
    swap = tmp_path / "swap"
    with swap.open("wb") as file:
        file.truncate(512 << 20)
    drive = ["-drive", f"file={swap},format=raw,if=none,id=swap", "-device", "virtio-blk-pci,drive=swap,serial=swap"]
    said = hibernating.run(tools, tmp_path, DISK, all_devices, modules=MODULES, arguments=drive, timeout=300)
    assert said == [f"{when}:{WORKING}" for when in ("before", "after")] + ["1"]
    for line in ("console", "serial"):
        assert (tmp_path / line).read_text().split() == [line, "before", line, "after"]
