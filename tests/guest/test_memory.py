"""Guest memory that comes, goes and moves under our devices: a vIOMMU, memory that is plugged, memory not shared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attached import JUDGING, Device, Served
from linux import Outcome
from qtest import monitor
from rendezvous import joined
from virtio.namespace import Namespace

pytestmark = pytest.mark.guest

TAP, HOST, GUEST = "bwmemory0", "10.96.0.1", "10.96.0.2"
MIB = 1 << 20
AWAIT = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
await /dev/nvme0n1
await /dev/vda
"""
TROUBLE = ("refused", "guest error", "failed", "fatal")


def complaints(served: Sequence[Served], folder: Path) -> list[str]:
    """What devices have logged that is about trouble, and all that QEMU says, whose log is below ``folder``."""
    lines = [line for each in served for line in each.log.splitlines() if any(word in line for word in TROUBLE)]
    (log,) = folder.glob("linux-*/qemu")
    return lines + log.read_text().splitlines()


REBOOTS = f"""{AWAIT}
checksum() {{ sha256sum | cut -c -64; }}
for disk in nvme0n1 vda; do
    set -- 0 $(dd if=/dev/$disk bs=4k count=1 iflag=direct 2>/dev/null | tr -d '\\0')
    boots=${{2:-0}}
    [ $boots = 0 ] || [ $(dd if=/dev/$disk bs=64k skip=1 count=4 iflag=direct 2>/dev/null | checksum) = $3 ] || exit 2
    dd if=/dev/urandom of=/new bs=64k count=4 iflag=fullblock 2>/dev/null
    dd if=/new of=/dev/$disk bs=64k seek=1 oflag=direct 2>/dev/null || exit 3
    echo $((boots + 1)) $(checksum </new) | dd of=/dev/$disk bs=4k conv=sync oflag=direct 2>/dev/null || exit 4
done
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0
ping -q -c 3 -W 5 -s 1400 {HOST} >/dev/null && net=works
echo "boot $boots: net $net, $(cut -c 34 /sys/bus/virtio/devices/virtio0/features)$(ls -d /sys/class/iommu/dmar0 2>&1)"
"""


@pytest.mark.long
def test_disks_and_a_card_work_behind_a_viommu_through_three_reboots(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served], namespace: Namespace, tmp_path: Path
) -> None:
    served = [
        serve(Device("nvme", {"size": "16M"}, flags=JUDGING)),
        serve(Device("virtio-blk", {"size": "16M", "queues": 2}, flags=JUDGING)),
        serve(Device("virtio-net", {"tap": TAP, "namespace": namespace.name}, flags=JUDGING)),
    ]
    namespace.address(TAP, HOST)
    outcome = linux(
        REBOOTS,
        *served,
        modules=["virtio_blk", "virtio_net"],
        board=["-device", "intel-iommu,caching-mode=on"],
        append="intel_iommu=on iommu.strict=1",
        reboots=3,
        timeout=240,
    )
    assert outcome.status == 0, outcome.output
    assert outcome.output.splitlines() == [f"boot {n}: net works, 1/sys/class/iommu/dmar0" for n in range(4)]
    assert complaints(served, tmp_path) == []
    assert [each.mistakes for each in served] == [[], [], []]


PLUGGED = f"""{AWAIT}
echo online_movable >/sys/devices/system/memory/auto_online_blocks
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 raw -echo
while [ ! -e /stop ]; do
    for disk in nvme0n1 vda; do
        fio --name=$disk --filename=/dev/$disk --ioengine=libaio --direct=1 --rw=randrw --bsrange=4k-64k --iodepth=16 \
            --size=4m --verify=crc32c --output-format=terse >/tmp/fio 2>&1 || {{ cat /tmp/fio >/failed; break 2; }}
        echo $disk >&3
    done
done &
echo ready >&3
read word <&3
touch /stop
wait
cat /failed 2>/dev/null && exit 1
true
"""


@pytest.mark.long
def test_memory_is_plugged_and_unplugged_under_load(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served], tmp_path: Path
) -> None:
    served = [serve(Device(name, {"size": "16M"})) for name in ("nvme", "virtio-blk")]
    control, line = tmp_path / "qmp", tmp_path / "line"

    def resize() -> None:
        with (
            contextlib.closing(joined(line)) as far,
            far.makefile("rb") as heard,
            contextlib.closing(monitor(control)) as machine,
        ):
            assert heard.readline().strip() == b"ready"
            for size in (256, 64, 192, 0):
                machine.ask("qom-set", path="/machine/peripheral/more", property="requested-size", value=size * MIB)
                machine.wait("MEMORY_DEVICE_SIZE_CHANGE", 60, id="more", size=size * MIB)
                assert heard.readline().strip() in (b"nvme0n1", b"vda"), "a disk has worked meanwhile"
            far.sendall(b"enough\n")

    with ThreadPoolExecutor(1) as administrator:
        resized = administrator.submit(resize)
        outcome = linux(
            PLUGGED,
            *served,
            modules=["virtio_blk", "virtio_mem"],
            programs=["usr/bin/fio"],
            mib=384,
            board=["-m", "384M,maxmem=1G", "-serial", f"unix:{line},server=on,wait=off"],
            arguments=[
                *("-qmp", f"unix:{control},server=on,wait=off"),
                *("-object", f"memory-backend-memfd,id=pluggable,size={256 * MIB},share=on"),
                *("-device", "virtio-mem-pci,id=more,memdev=pluggable,requested-size=0"),
            ],
            timeout=240,
        )
        resized.result()
    assert outcome.status == 0, outcome.output
    assert complaints(served, tmp_path) == []


UNSHARED = """
dmesg | grep -o 'virtio: device refuses features'
ls /dev/vda 2>/dev/null
true
"""


def test_a_virtio_driver_gives_up_at_once_where_memory_is_not_shared(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served]
) -> None:
    disk = serve(Device("virtio-blk", {"size": "16M"}))
    outcome = linux(UNSHARED, disk, modules=["virtio_blk"], shared=False)
    assert outcome.output.splitlines() == ["virtio: device refuses features"]
    assert "the client has not shared (QEMU: -object memory-backend-memfd,share=on)" in disk.log
