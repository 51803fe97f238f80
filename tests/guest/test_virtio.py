"""A stock Linux drives our virtio devices, in a stock QEMU: its own drivers, split and packed rings."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attached import JUDGING, Device, Served
from bellwired.guest.toolbox import Toolbox
from linux import Outcome
from rendezvous import joined

pytestmark = pytest.mark.guest

RINGS = pytest.mark.parametrize("packed", ["no", "yes"], ids=["split", "packed"])
AWAIT = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
"""

RANDOM = f"""{AWAIT}
await /sys/class/misc/hw_random/rng_current
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/bytes bs=64k count=4 iflag=fullblock 2>/dev/null
wc -c </bytes
gzip -c /bytes | wc -c
cat /sys/bus/virtio/devices/virtio0/features | cut -c 29-40
grep virtio /proc/interrupts | grep -c input
"""


@RINGS
def test_hwrng_gives_what_virtio_rng_gives(linux: Callable[..., Outcome], packed: str) -> None:
    outcome = linux(RANDOM, Device("virtio-rng", {"packed": packed}), modules=["virtio-rng"])
    name, size, compressed, features, queues = outcome.output.split()
    assert outcome.status == 0
    assert (name, int(size)) == ("virtio_rng.0", 256 << 10)
    assert int(compressed) > int(size), "random bytes do not compress"
    assert features == ("110011100000" if packed == "yes" else "110011000000")
    assert queues == "1"


DISK = f"""{AWAIT}
await /dev/vda
cat /sys/block/vda/size /sys/block/vda/serial /sys/block/vda/cache_type
echo
cat /sys/block/vda/queue/logical_block_size /sys/block/vda/queue/discard_max_bytes
mke2fs -q -t ext4 -O ^has_journal /dev/vda || exit 1
mount -t ext4 -o discard /dev/vda /mnt || exit 2
dd if=/dev/urandom of=/mnt/kept bs=64k count=160 2>/dev/null
dd if=/dev/urandom of=/mnt/gone bs=64k count=160 2>/dev/null
sync
rm /mnt/gone
umount /mnt
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
await /dev/vda
mount -t ext4 /dev/vda /mnt || exit 3
sha256sum </mnt/kept
umount /mnt
dmesg | grep -iE 'vda|virtio.*(fail|error|warn)' | grep -v 'logical blocks' | grep -v EXT4
true
"""


@RINGS
def test_a_filesystem_lives_on_virtio_blk(
    linux: Callable[..., Outcome], tools: Toolbox, tmp_path: Path, packed: str
) -> None:
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    device = Device("virtio-blk", {"image": str(image), "packed": packed, "queues": 2, "serial": "BW1"})
    outcome = linux(DISK, device, modules=["virtio_blk"], programs=["usr/sbin/mke2fs"])
    assert outcome.status == 0
    *facts, digest = outcome.output.splitlines()
    assert facts == ["131072", "BW1write back", "", "512", str(2 << 30)]
    found = tmp_path / "kept"
    dump = [*tools.command("usr/sbin/debugfs"), "-R", f"dump kept {found}", str(image)]
    subprocess.run(dump, check=True, capture_output=True)
    assert f"{hashlib.sha256(found.read_bytes()).hexdigest()}  -" == digest
    assert image.stat().st_blocks * 512 < 20 << 20, "what was deleted has been given back"


LOAD = f"""{AWAIT}
await /dev/vda
fio --name=v --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randrw --bsrange=4k-64k --iodepth=32 \
    --numjobs=4 --size=8m --offset_increment=8m --verify=crc32c --group_reporting --output-format=terse \
    >/tmp/fio 2>&1 || {{ cat /tmp/fio; exit 1; }}
cut -d';' -f5 /tmp/fio
"""


@RINGS
def test_fio_verifies_what_four_jobs_wrote_to_virtio_blk(linux: Callable[..., Outcome], packed: str) -> None:
    device = Device("virtio-blk", {"size": "64M", "packed": packed, "queues": 2})
    outcome = linux(LOAD, device, modules=["virtio_blk"], programs=["usr/bin/fio"])
    assert outcome.status == 0, outcome.output
    assert outcome.output.split()[-1] == "0"


# The guest learns of a port, of its name and of its peer one after the other; a port without a peer reads as empty.
CONSOLE = f"""{AWAIT}
await /sys/class/virtio-ports/vport0p1/name
cat /sys/class/virtio-ports/vport0p1/name
exec 3</dev/vport0p1
n=0; until cat <&3 >/data; [ -s /data ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 8; usleep 50000; done
sha256sum </data
sh </dev/hvc0 >/dev/hvc0 2>&1
"""


@RINGS
def test_a_shell_runs_on_virtio_console_and_a_port_carries_data(
    linux: Callable[..., Outcome], serve: Callable[[Device], Served], tmp_path: Path, packed: str
) -> None:
    ends = {name: tmp_path / name for name in ("console", "data")}
    ports = ",".join(f"{name}=unix:{path}" for name, path in ends.items())
    console = serve(Device("virtio-console", {"ports": ports, "packed": packed}, flags=JUDGING))
    data = os.urandom(1 << 20)
    heard = b""

    def visit() -> None:
        nonlocal heard
        with joined(ends["data"]) as far:
            far.sendall(data)
        with joined(ends["console"]) as far:
            far.sendall(b"echo $((6*7)) is the answer; exit\n")
            while b"42 is the answer" not in heard:
                heard += far.recv(1000)

    with ThreadPoolExecutor(1) as visitor:
        visited = visitor.submit(visit)
        outcome = linux(CONSOLE, console)
        visited.result()
    assert outcome.status == 0
    assert outcome.output.split() == ["data", hashlib.sha256(data).hexdigest(), "-"]
    assert console.mistakes == []
