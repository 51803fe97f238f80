"""Our devices beside QEMU's own: NVMe controllers, virtio disks and cards of both in one Linux guest, in turns.

The benchmark runs it in network and user namespaces of its own, so that it takes no privilege: both taps are there.
The guest is emulated (TCG), which is most of what these figures tell; whose device is how much slower is the rest. QEMU
does not ask for doorbells' descriptors: it tells our devices of notifications by message, and its own by ioeventfd.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import iperf
from attached import Device, running
from bellwired.guest.archive import ArchiveError
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from linux import Guest
from provision import provision

OURS, THEIRS = "bellwire", "QEMU"
WHOSE = (OURS, THEIRS)
SECONDS = 2  # of iperf3, for each figure of a round
RUNTIME = "1500ms"  # of fio
MIB = 128  # of each disk
FIO = "usr/bin/fio"
DISKS = ("nvme", "virtio-blk")
TAPS = dict(zip(WHOSE, ("bwours", "bwqemu"), strict=True))
NETWORKS = dict(zip(WHOSE, ("10.98.0", "10.98.1"), strict=True))
MACS = dict(zip(WHOSE, ("52:54:00:00:00:01", "52:54:00:00:00:02"), strict=True))


class Load(NamedTuple):
    """What the guest's program is told, and which word of its last line has the figure."""

    name: str
    unit: str
    options: str
    word: int


# fio's terse output has KiB/s and requests a second, of reads and of writes
LOADS = (
    Load("4 KiB random read, depth 1", "/s", "--rw=randread --bs=4k --iodepth=1", 8),
    Load("4 KiB random read, depth 32", "/s", "--rw=randread --bs=4k --iodepth=32", 8),
    Load("128 KiB sequential read, depth 8", "KiB/s", "--rw=read --bs=128k --iodepth=8", 7),
    Load("128 KiB sequential write, depth 8", "KiB/s", "--rw=write --bs=128k --iodepth=8", 48),
)
# iperf3's last line has kbit/s, or of datagrams how many were lost and sent
FLOWS = (
    Load("TCP, guest to host", "kbit/s", "", 7),
    Load("TCP, host to guest", "kbit/s", "--reverse", 7),
    Load("UDP of 64 bytes, guest to host", "datagrams", "--udp --bandwidth 0 --length 64", 11),
    Load("UDP of 64 bytes, host to guest", "datagrams", "--udp --bandwidth 0 --length 64 --reverse", 11),
)

FIND = """
nvme() { for d in /sys/block/nvme*; do grep -q $1 $d/device/serial && echo /dev/${d##*/}; done; }
virtio_blk() { for d in /sys/block/vd*; do grep -q $1 $d/serial && echo /dev/${d##*/}; done; }
card() { for d in /sys/class/net/eth*; do grep -q $1 $d/address && echo ${d##*/}; done; }
"""


class Figure(NamedTuple):
    """What was measured, whose device it was, and what came out."""

    what: str
    whose: str
    value: float
    unit: str


def script(rounds: int) -> str:
    """What the guest does: a line for each figure, which begins with ``figure``, what, and whose."""
    lines = [FIND]
    for whose in WHOSE:
        lines += [f"card={MACS[whose]}; card=$(card $card); ip link set $card up"]
        lines += [f"ip addr add {NETWORKS[whose]}.2/24 dev $card"]
        lines += [
            f"n=0; until ping -c 1 -W 1 {NETWORKS[whose]}.1 >/dev/null; do n=$((n+1)); [ $n -lt 20 ] || exit 9; done"
        ]
    fio = f"fio --name=x --ioengine=libaio --direct=1 --time_based --runtime={RUNTIME} --minimal"
    for number in range(rounds):
        for whose in WHOSE if number % 2 else WHOSE[::-1]:
            for disk in DISKS:
                at = f"$({disk.replace('-', '_')} {whose})"
                for load in LOADS:
                    found = f"$(tail -n 1 /out | cut -d ';' -f {load.word})"
                    lines += [f"{fio} --filename={at} {load.options} >/out 2>&1 || {{ cat /out; exit 1; }}"]
                    lines += [f"echo figure@{disk}: {load.name}@{whose}@{found}@{load.unit}"]
            client = f"iperf3 -f k -c {NETWORKS[whose]}.1 -t {SECONDS}"
            for load in FLOWS:
                found = f"$(awk '/receiver/ {{ print ${load.word} }}' /out)"
                lines += [f"{client} {load.options} >/out 2>&1 || {{ cat /out; exit 2; }}"]
                lines += [f"echo figure@{load.name}@{whose}@{found}@{load.unit}"]
    return "\n".join(lines) + "\n"


def measure(tools: Toolbox, folder: Path, rounds: int) -> list[Figure]:
    """Run the guest."""
    ours, theirs = _disks(folder)
    ours["net"] = Device("virtio-net", {"tap": TAPS[OURS], "mac": MACS[OURS], "packed": "no"})
    theirs += ["-netdev", f"tap,id=net,ifname={TAPS[THEIRS]},script=no,downscript=no,vhost=off"]
    theirs += ["-device", f"virtio-net-pci,netdev=net,mac={MACS[THEIRS]}"]
    subprocess.run(["ip", "tuntap", "add", TAPS[THEIRS], "mode", "tap", "vnet_hdr"], check=True)
    with ExitStack() as stack:
        for name, device in ours.items():
            stack.enter_context(running(device, folder / name))
        for whose in WHOSE:
            subprocess.run(["ip", "addr", "add", f"{NETWORKS[whose]}.1/24", "dev", TAPS[whose]], check=True)
            subprocess.run(["ip", "link", "set", TAPS[whose], "up"], check=True)
        stack.enter_context(iperf.server(tools))
        outcome = Guest(tools, folder).run(
            script(rounds),
            [Plugged(folder / name / "device") for name in ours],
            modules=["virtio_blk", "virtio_net"],
            programs=[FIO, iperf.PROGRAM],
            arguments=theirs,
            timeout=900,
        )
    if outcome.status:
        raise AssertionError(f"the guest's script has ended with status {outcome.status}:\n{outcome.output}")
    return list(parse(outcome.output))


def _disks(folder: Path) -> tuple[dict[str, Device], list[str]]:
    """Ours as devices to serve, and QEMU's as its arguments; each has an image of its own."""
    ours, theirs = {}, []
    for disk in DISKS:
        image = {whose: folder / f"{disk}.{whose}" for whose in WHOSE}
        for path in image.values():
            path.write_bytes(os.urandom(1 << 20) * MIB)
        packed = {"packed": "no"} if disk == "virtio-blk" else {}
        ours[disk] = Device(disk, {"image": image[OURS], "serial": OURS, **packed})
        theirs += ["-drive", f"file={image[THEIRS]},format=raw,if=none,id={disk},cache=writeback,aio=threads"]
        model = disk if disk == "nvme" else f"{disk}-pci"
        theirs += ["-device", f"{model},drive={disk},serial={THEIRS}"]
    return ours, theirs


def parse(output: str) -> Iterator[Figure]:
    """What the script has printed, in units of ours."""
    for line in output.splitlines():
        match line.split("@"):
            case ["figure", what, whose, value, "KiB/s"]:
                yield Figure(what, whose, float(value) * 1024 / 1e6, "MB/s")
            case ["figure", what, whose, value, "kbit/s"]:
                yield Figure(what, whose, float(value) / 8e3, "MB/s")
            case ["figure", what, whose, value, "datagrams"]:
                lost, _, sent = value.partition("/")
                yield Figure(what, whose, (int(sent) - int(lost)) / SECONDS, "/s")
            case ["figure", what, whose, value, unit]:
                yield Figure(what, whose, float(value), unit)


def main() -> int:
    """Measure, and print what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    try:
        tools = provision()
    except (ArchiveError, OSError) as error:
        print(f"no QEMU guest could be provided: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="bellwire-figures-") as folder:
        json.dump(measure(tools, Path(folder), arguments.rounds), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
