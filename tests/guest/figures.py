"""Our virtio devices beside QEMU's own: disks and cards of both in one Linux guest, driven in turns.

``make figures`` runs it in network and user namespaces of its own, so that it takes no privilege: both taps are there.
The guest is emulated (TCG), which is most of what these figures tell; whose device is how much slower is the rest. QEMU
does not ask for doorbells' descriptors: it tells our devices of notifications by message, and its own by ioeventfd.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import iperf
from attached import Device, Plugged, running
from debian import AptError
from linux import Guest
from provision import provision
from toolbox import Toolbox

OURS, THEIRS = "bellwire", "QEMU"
ROUNDS = 3
SECONDS = 3  # for each figure of a round
MIB = 128  # of each disk
FIO = "usr/bin/fio"
LOADS = {
    "read 4k, random, 1 at a time": "--rw=randread --bs=4k --iodepth=1",
    "read 4k, random, 32 at a time": "--rw=randread --bs=4k --iodepth=32",
    "read 128k, in order, 8 at a time": "--rw=read --bs=128k --iodepth=8",
    "write 128k, in order, 8 at a time": "--rw=write --bs=128k --iodepth=8",
}
WHOSE = (OURS, THEIRS)
TAPS = dict(zip(WHOSE, ("bwours", "bwqemu"), strict=True))
NETWORKS = dict(zip(WHOSE, ("10.98.0", "10.98.1"), strict=True))
MACS = dict(zip(WHOSE, ("52:54:00:00:00:01", "52:54:00:00:00:02"), strict=True))

FIND = """
disk() { for d in /sys/block/vd*; do [ "$(cat $d/serial)" = $1 ] && echo /dev/${d##*/}; done; }
card() { for d in /sys/class/net/eth*; do [ "$(cat $d/address)" = $1 ] && echo ${d##*/}; done; }
"""

Figures = dict[tuple[str, str], list[float]]
"""By what was measured and whose device it was: a figure a round."""


def script() -> str:
    """What the guest does: a line for each figure, which begins with ``figure``, what, and whose."""
    lines = [FIND]
    for whose in WHOSE:
        lines += [f"card={MACS[whose]}; card=$(card $card); ip link set $card up"]
        lines += [f"ip addr add {NETWORKS[whose]}.2/24 dev $card"]
        lines += [
            f"n=0; until ping -c 1 -W 1 {NETWORKS[whose]}.1 >/dev/null; do n=$((n+1)); [ $n -lt 20 ] || exit 9; done"
        ]
    for _ in range(ROUNDS):
        for number, load in enumerate(LOADS.values()):
            common = f"--name=x --ioengine=libaio --direct=1 --time_based --runtime={SECONDS} --minimal"
            column = 48 if "--rw=write" in load else 7  # of its terse output: KiB/s
            for whose in WHOSE:
                lines += [f"fio {common} --filename=$(disk {whose}) {load} >/out 2>&1 || {{ cat /out; exit 1; }}"]
                lines += [f"echo figure {number} {whose} $(tail -n 1 /out | cut -d ';' -f {column})"]
        for number, way in enumerate(iperf.WAYS.values(), len(LOADS)):
            for whose in WHOSE:
                lines += [
                    f"iperf3 -f k -c {NETWORKS[whose]}.1 -t {SECONDS} {way} >/out 2>&1 || {{ cat /out; exit 2; }}"
                ]
                lines += [f"echo figure {number} {whose} $(awk '/receiver/ {{ print $7 }}' /out)"]
    return "\n".join(lines) + "\n"


def measure(tools: Toolbox, folder: Path) -> Figures:
    """Run the guest."""
    image = {whose: folder / f"{whose}.img" for whose in WHOSE}
    for path in image.values():
        path.write_bytes(os.urandom(1 << 20) * MIB)
    devices = {
        "blk": Device("virtio-blk", {"image": image[OURS], "serial": OURS, "packed": "no"}),
        "net": Device("virtio-net", {"tap": TAPS[OURS], "mac": MACS[OURS], "packed": "no"}),
    }
    theirs = ["-drive", f"file={image[THEIRS]},format=raw,if=none,id=disk,cache=writeback,aio=threads"]
    theirs += ["-device", f"virtio-blk-pci,drive=disk,serial={THEIRS}"]
    theirs += ["-netdev", f"tap,id=net,ifname={TAPS[THEIRS]},script=no,downscript=no,vhost=off"]
    theirs += ["-device", f"virtio-net-pci,netdev=net,mac={MACS[THEIRS]}"]
    subprocess.run(["ip", "tuntap", "add", TAPS[THEIRS], "mode", "tap", "vnet_hdr"], check=True)
    with ExitStack() as stack:
        for name, device in devices.items():
            stack.enter_context(running(device, folder / name))
        for whose in WHOSE:
            subprocess.run(["ip", "addr", "add", f"{NETWORKS[whose]}.1/24", "dev", TAPS[whose]], check=True)
            subprocess.run(["ip", "link", "set", TAPS[whose], "up"], check=True)
        stack.enter_context(iperf.server(tools))
        outcome = Guest(tools, folder).run(
            script(),
            [Plugged(folder / name / "device") for name in devices],
            modules=["virtio_blk", "virtio_net"],
            programs=[FIO, iperf.PROGRAM],
            arguments=theirs,
            timeout=900,
        )
    if outcome.status:
        raise AssertionError(f"the guest's script has ended with status {outcome.status}:\n{outcome.output}")
    return parse(outcome.output)


def parse(output: str) -> Figures:
    """What the script has printed."""
    names = [*LOADS, *iperf.WAYS]
    figures: Figures = defaultdict(list)
    for line in output.splitlines():
        match line.split():
            case ["figure", number, whose, figure]:
                figures[names[int(number)], whose].append(float(figure))
    return figures


def table(figures: Figures) -> Iterator[str]:
    """Medians, and from the least to the most of all rounds; MiB/s of disks, Mbit/s of cards."""
    yield f"{'':<35}{'bellwire':>26}{'QEMU':>26}{'ratio':>8}"
    for what in dict.fromkeys(what for what, _ in figures):
        divisor, unit = (1024, "MiB/s") if what in LOADS else (1000, "Mbit/s")
        cells = []
        for whose in WHOSE:
            found = [figure / divisor for figure in figures[what, whose]]
            cells.append(f"{statistics.median(found):.0f} {unit} ({min(found):.0f}-{max(found):.0f})")
        ratio = statistics.median(figures[what, OURS]) / statistics.median(figures[what, THEIRS])
        yield f"{what:<35}{cells[0]:>26}{cells[1]:>26}{ratio:>8.2f}"


def main() -> int:
    """Measure, and print the table."""
    try:
        tools = provision()
    except (AptError, OSError) as error:
        print(f"no QEMU guest could be provided: {error}", file=sys.stderr)
        return 1
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bellwire-figures-") as folder:
        figures = measure(tools, Path(folder))
    kernel = tools.kernel.name.removeprefix("vmlinuz-")
    print(
        f"QEMU {tools.qemu_version} (TCG), Linux {kernel}, one processor; the median of {ROUNDS} rounds of {SECONDS} s"
    )
    print(f"{os.cpu_count()} processors here; load when it began: {load:.1f}\n")
    print("\n".join(table(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
