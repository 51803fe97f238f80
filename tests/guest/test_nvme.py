"""A stock Linux on our nvme, in a stock QEMU; afterwards the image on the host holds what the guest wrote."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device, Served
from bellwired.guest.board import memory
from bellwired.guest.toolbox import Toolbox
from linux import Outcome
from qemu import attach, qemu

pytestmark = pytest.mark.guest

NVME, MKE2FS, FIO = "usr/sbin/nvme", "usr/sbin/mke2fs", "usr/bin/fio"
AWAIT = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done; }
await /dev/nvme0n1
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return path


def nvme(image: Path, **options: object) -> Device:
    return Device("nvme", {"image": str(image), "serial": "BELL0001", **options})


# Linux looks at the namespaces side by side: which of them is named first is left to chance.
LOOK = f"""{AWAIT}
await /dev/nvme0n2
nvme list | grep ^/dev/ | tr -s ' ' | cut -d ' ' -f 3- | sort
nvme id-ctrl /dev/nvme0 | grep -E '^(sn|mn|ver|nn|mdts) '
nvme smart-log /dev/nvme0 | grep critical_warning
nvme error-log /dev/nvme0 | grep -c error_count
nvme get-log /dev/nvme0 --log-id=0x99 --log-len=64 2>/dev/null && exit 1
nvme error-log /dev/nvme0 --log-entries=1 | grep status_field
nvme get-feature /dev/nvme0 -f 7
for space in nvme0n1 nvme0n2; do
    cat /sys/block/$space/size /sys/block/$space/queue/logical_block_size /sys/block/$space/queue/write_cache
done
dmesg | grep -iE 'nvme.*(fail|timeout|error|unable|invalid)'
true
"""


def test_linux_and_nvme_cli_see_what_there_is(linux: Callable[..., Outcome], image: Path) -> None:
    outcome = linux(LOOK, nvme(image, block_size=4096, namespaces=2, size="64M"), programs=[NVME])
    assert outcome.status == 0
    assert outcome.output.splitlines() == [
        "BELL0001 Bellwire NVMe 0x1 67.11 MB / 67.11 MB 4 KiB + 0 B 1 ",
        "BELL0001 Bellwire NVMe 0x2 67.11 MB / 67.11 MB 4 KiB + 0 B 1 ",
        "sn        : BELL0001            ",
        "mn        : Bellwire NVMe                           ",
        "mdts      : 8",
        "ver       : 0x10400",
        "nn        : 32",
        "critical_warning\t\t\t: 0",
        "64",
        "status_field\t: 0x4109 (Invalid Log Page: The log page indicated is invalid)",
        "get-feature:0x07 (Number of Queues), Current value:0x003f003f",
        *("131072", "4096", "write back") * 2,
    ]


FILES = f"""{AWAIT}
mke2fs -q -t ext4 -O ^has_journal /dev/nvme0n1 || exit 1
mount -t ext4 /dev/nvme0n1 /mnt || exit 2
dd if=/dev/urandom of=/mnt/kept bs=64k count=100 2>/dev/null
dd if=/dev/urandom of=/mnt/gone bs=64k count=200 2>/dev/null
sync
before=$(sha256sum </mnt/kept)
umount /mnt
echo 0000:00:01.0 >/sys/bus/pci/drivers/nvme/unbind
echo 0000:00:01.0 >/sys/bus/pci/drivers/nvme/bind
await /dev/nvme0n1
mount -t ext4 -o discard /dev/nvme0n1 /mnt || exit 3
[ "$before" = "$(sha256sum </mnt/kept)" ] || exit 4
rm /mnt/gone
sync
fstrim /mnt || exit 5
umount /mnt
mount -t ext4 /dev/nvme0n1 /mnt
sha256sum </mnt/kept
umount /mnt
dd if=/dev/nvme0n1 bs=1M 2>/dev/null | sha256sum
"""


def test_a_file_system_survives_remounting_and_rebinding_and_gives_its_space_back(
    linux: Callable[..., Outcome], image: Path, tools: Toolbox
) -> None:
    outcome = linux(FILES, nvme(image), programs=[NVME, MKE2FS])
    assert outcome.status == 0, outcome.output
    whole = outcome.output.split()[2]
    assert whole == hashlib.sha256(image.read_bytes()).hexdigest()
    assert image.stat().st_blocks * 512 < 12 << 20, "the space of the deleted file was not given back"
    check = [*tools.command("usr/sbin/e2fsck"), "-fn", str(image)]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0


LOAD = f"""{AWAIT}
fio --name=v --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --rw=randrw --bsrange=4k-64k --iodepth=32 \
    --numjobs=4 --size=12m --offset_increment=12m --verify=crc32c --group_reporting --output-format=terse \
    >/tmp/fio 2>&1 || {{ cat /tmp/fio; exit 1; }}
cut -d';' -f5 /tmp/fio
"""


def test_fio_verifies_what_four_jobs_wrote_at_depth_32(linux: Callable[..., Outcome], image: Path) -> None:
    outcome = linux(LOAD, nvme(image), programs=[FIO])
    assert outcome.status == 0, outcome.output
    assert outcome.output.split()[-1] == "0"


RESETS = f"""{AWAIT}
load() {{
    fio --name=v --filename=/dev/nvme0n1 --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=32 \
        --size=8m --verify=crc32c --loops=3 --output-format=terse >/tmp/fio 2>&1
}}
(until [ -e /stop ]; do load || exit 1; done) &
for n in 1 2 3; do usleep 300000; nvme reset /dev/nvme0 || exit 1; done
echo flr >/sys/bus/pci/devices/0000:00:01.0/reset_method || exit 3
for n in 1 2; do usleep 300000; echo 1 >/sys/bus/pci/devices/0000:00:01.0/reset || exit 4; done
touch /stop
wait $! || {{ cat /tmp/fio; exit 2; }}
dmesg | grep -c 'timeout, '
true
"""


def test_resets_under_load_lose_nothing(linux: Callable[..., Outcome], image: Path) -> None:
    outcome = linux(RESETS, nvme(image), programs=[NVME, FIO])
    assert outcome.status == 0, outcome.output
    assert outcome.output.strip() == "0"


DIRTY = f"""{AWAIT}
dd if=/dev/zero bs=1M count=8 2>/dev/null | tr '\\0' 'B' >/tmp/eight
"""
BUFFERED = f"""{DIRTY}
dd if=/tmp/eight of=/dev/nvme0n1 bs=1M 2>/dev/null
"""
UNFLUSHED = f"""{DIRTY}
dd if=/tmp/eight of=/dev/nvme0n1 bs=64k oflag=direct 2>/dev/null || exit 1
echo {{how}} >/proc/sysrq-trigger
sleep 60
"""


def check_eight_megabytes(image: Path) -> None:
    content = image.read_bytes()
    assert content[: 8 << 20] == b"B" * (8 << 20)
    assert not any(content[8 << 20 :])


def test_what_was_in_the_guests_cache_at_power_off_is_in_the_image(linux: Callable[..., Outcome], image: Path) -> None:
    assert linux(BUFFERED, nvme(image)).status == 0
    check_eight_megabytes(image)


@pytest.mark.parametrize("how", ["o", "b"], ids=["power-off", "no-shutdown-at-all"])
def test_what_the_guest_never_flushed_is_in_the_image(linux: Callable[..., Outcome], image: Path, how: str) -> None:
    assert linux(UNFLUSHED.replace("{how}", how), nvme(image)).status is None
    check_eight_megabytes(image)


REFUSED = f"""{AWAIT}
cat /sys/block/nvme0n1/ro
dd if=/dev/zero of=/dev/nvme0n1 count=1 2>/dev/null && exit 1
dd if=/dev/nvme0n1 bs=4k count=1 2>/dev/null | sha256sum
"""


def test_a_read_only_namespace_is_read_only_to_linux(linux: Callable[..., Outcome], image: Path) -> None:
    outcome = linux(REFUSED, nvme(image, readonly="yes"))
    assert outcome.output.split()[:2] == ["1", hashlib.sha256(bytes(4096)).hexdigest()]


BOOT = bytes.fromhex(
    "31c0 8ed8"  # xor ax, ax; mov ds, ax
    "b042 e6e9"  # 'B' to the debug console
    "b442 be207c cd13"  # extended read of what DAP says, from the drive that the firmware has named in DL
    "7208"  # jc failed
    "a00090 e6e9"  # the first byte of what has been read, to the debug console
    "e6f4 f4"  # end
    "b045 e6e9 e6f4 f4"  # failed: 'E'; end
).ljust(0x20, b"\x90") + struct.pack("<BBHHHQ", 16, 0, 1, 0x9000, 0, 1)  # DAP: a block to 0:9000h, from block 1


@pytest.mark.parametrize("block_size", [512, 4096])
def test_seabios_boots_from_blocks_of_either_size(
    tools: Toolbox, serve: Callable[[Device], Served], image: Path, tmp_path: Path, block_size: int
) -> None:
    with image.open("r+b") as file:
        file.write(BOOT.ljust(510, b"\0") + b"\x55\xaa")
        file.seek(block_size)
        file.write(b"1")
    disk = serve(nvme(image, block_size=block_size))
    said = tmp_path / "said"
    words = ["-accel", "tcg", *memory(64, shared=True), *attach([disk])]
    words += ["-chardev", f"file,id=text,path={said}", "-device", "isa-debugcon,iobase=0xe9,chardev=text"]
    words += ["-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    with qemu(tools, tmp_path, *words) as process:
        process.wait(30)
    assert said.read_text() == "B1"


COPIED = f"""{AWAIT}
dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=8 oflag=direct 2>/dev/null
dd if=/dev/nvme0n1 bs=64k count=8 iflag=direct 2>/dev/null | sha256sum
"""


def test_memory_that_is_not_shared_serves_too(linux: Callable[..., Outcome], image: Path) -> None:
    outcome = linux(COPIED, nvme(image), shared=False)
    assert outcome.output.split()[:1] == [hashlib.sha256(image.read_bytes()[: 512 << 10]).hexdigest()]
