"""Every bundled device in one Linux guest: is it probed, and does what it moves arrive?"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from subprocess import Popen

import pytest

from attached import Device, running
from bellwired.guest.plan import Plugged
from bellwired.guest.toolbox import Toolbox
from interop.hosts import GUEST, HOST, TAP, card, listening
from linux import Guest, Outcome
from rendezvous import joined
from virtio.namespace import Namespace, own_namespace

MIB = 1 << 20
DISK, NET, CONSOLE, SERIAL = 8 * MIB, 8 * MIB, MIB, 4 << 10
"""Bytes that are moved each way."""
PATIENCE = 400.0
PORT = 8001
MODULES = ("nvme", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "8250_pci")
ORDER = ("nvme", "virtio-blk", "virtio-net", "virtio-console", "virtio-rng", "serial", "edu")
"""At 00:01.0 and up."""

COPY = f"""
dd if=$disk of=/file bs=64k skip={DISK >> 16} iflag=direct 2>/dev/null
sum </file
dd if=/file of=$disk bs=64k oflag=direct conv=notrunc,fsync 2>/dev/null && echo written
rm /file
"""
SCRIPTS = {
    "nvme": f"await /dev/nvme0n1; disk=/dev/nvme0n1; {COPY}",
    "virtio-blk": f"await /dev/vda; disk=/dev/vda; {COPY}",
    "virtio-net": f"""
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
n=0; until ping -c 1 -W 1 {HOST} >/dev/null; do n=$((n + 1)); [ $n -lt 20 ] || break; done
nc {HOST} {PORT} >/file </dev/null
sum </file
nc {HOST} {PORT + 1} </file
rm /file
""",
    "virtio-console": f"""
n=0; until port=$(grep -lx data /sys/class/virtio-ports/*/name); do n=$((n + 1)); [ $n -lt 100 ] || break; usleep 50000
done
exec 3<>/dev/$(basename $(dirname $port))
n=0; until head -c {CONSOLE} <&3 >/file; [ -s /file ]; do n=$((n + 1)); [ $n -lt 100 ] || break; usleep 50000; done
sum </file
cat /file >&3
head -n 1 <&3
exec 3>&-
rm /file
""",
    "virtio-rng": """
await /sys/class/misc/hw_random/rng_current
cat /sys/class/misc/hw_random/rng_current
dd if=/dev/hwrng of=/file bs=64k count=1 iflag=fullblock 2>/dev/null
wc -c </file
gzip -c /file | wc -c
rm /file
""",
    "serial": f"""
port=$(basename $(find /sys/devices/pci0000:00/0000:00:06.0/ -name 'ttyS[0-9]*'))
cat /sys/class/tty/$port/type
stty -F /dev/$port 115200 raw -echo crtscts clocal
exec 3<>/dev/$port
echo ready >&3
head -c {SERIAL} <&3 >/file
sum </file
cat /file >&3
head -n 1 <&3
exec 3>&-
""",
    "edu": """
cd /sys/bus/pci/devices/0000:00:07.0
echo 1 >enable
read at _ <resource
devmem $at 32
devmem $((at + 4)) 32 0x12345678; devmem $((at + 4)) 32
devmem $((at + 8)) 32 10
n=0; while [ $(($(devmem $((at + 32)) 32) & 1)) = 1 ]; do n=$((n + 1)); [ $n -lt 100 ] || break; usleep 50000; done
devmem $((at + 8)) 32
cd /
""",
}
HELPERS = """
await() { n=0; until [ -e "$1" ]; do n=$((n + 1)); [ $n -lt 200 ] || return 1; usleep 50000; done; }
sum() { sha256sum | cut -d' ' -f1; }
"""
ONE = """
echo "== {name} $(cut -d' ' -f1 /proc/uptime)"
driver=$(readlink -f /sys/bus/pci/devices/0000:00:0{at}.0/driver); echo driver=${{driver##*/}}
timeout {most} sh /part-{name}
"""
MOST = 120
"""Seconds for one device: a device that does not answer leaves the others their turn."""
SCRIPT = (
    "uname -r\n"
    + "".join(ONE.format(name=name, at=at, most=MOST) for at, name in enumerate(ORDER, 1))
    + "echo \"== end $(cut -d' ' -f1 /proc/uptime)\"\n"
)
FILES = {f"part-{name}": (HELPERS + script).encode() for name, script in SCRIPTS.items()}


@dataclass
class Done:
    """What a boot has shown. ``said`` has a device's lines, ``seconds`` how long its part took in the guest."""

    outcome: Outcome
    release: str
    said: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    """What this side has given, to be read by the guest."""
    returned: dict[str, bytes] = field(default_factory=dict)
    """What came back."""
    missing: dict[str, str] = field(default_factory=dict)
    """Devices that the machine did not have, and why."""


def work_out(tools: Toolbox, folder: Path) -> Done:
    """Boot, use every device, and switch off."""
    sent = {name: os.urandom(size) for name, size in _SIZES.items()}
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        talkers = stack.enter_context(ThreadPoolExecutor())
        options: dict[str, dict[str, object]] = {}
        namespace: Namespace | None
        for name in ("nvme", "virtio-blk"):
            options[name] = {"image": folder / name}
            (folder / name).write_bytes(bytes(DISK) + sent[name])
        options["virtio-console"] = {"ports": f"console=null,data=unix:{folder / 'port'}"}
        options["serial"] = {"backend": f"unix:{folder / 'line'}"}
        taken: list[bytes] = []
        try:
            namespace = stack.enter_context(own_namespace("-interop"))
        except pytest.skip.Exception as reason:
            missing["virtio-net"] = str(reason)
            namespace, options["virtio-net"] = None, {"stream": folder / "network", "listen": "yes"}
        else:
            options["virtio-net"] = _network(stack, namespace, sent["virtio-net"], taken)
        served = [_serve(stack, folder, name, options.get(name, {})) for name in ORDER]
        if namespace is not None:
            namespace.address(TAP, HOST)
        talks = {
            "virtio-console": talkers.submit(_exchange, folder / "port", sent["virtio-console"], wait=False),
            "serial": talkers.submit(_exchange, folder / "line", sent["serial"], wait=True),
        }
        outcome = _boot(tools, folder, [plugged for _, plugged in served])
        for process, _ in served:  # a talker whose device has gone ends
            process.terminate()
        returned = {name: _result(talk) for name, talk in talks.items()}
    returned |= {name: (folder / name).read_bytes()[:DISK] for name in ("nvme", "virtio-blk")}
    returned["virtio-net"] = b"".join(taken)
    return _read(Done(outcome, "", sent=sent, returned=returned, missing=missing))


_SIZES = {"nvme": DISK, "virtio-blk": DISK, "virtio-net": NET, "virtio-console": CONSOLE, "serial": SERIAL}


def _serve(
    stack: contextlib.ExitStack, folder: Path, name: str, options: dict[str, object]
) -> tuple[Popen[bytes], Plugged]:
    """Without the tap: rings by descriptor would overtake what it still forwards."""
    place = folder / f"{name}-served"
    return stack.enter_context(running(Device(name, options), place)), Plugged(place / "device")


def _boot(tools: Toolbox, folder: Path, served: list[Plugged]) -> Outcome:
    guest = Guest(tools, folder)
    outcome = guest.run(SCRIPT, served, files=FILES, modules=MODULES, timeout=PATIENCE)
    assert "== end" in outcome.output, f"{outcome.output[-500:]}\n{outcome.console[-2000:]}"
    return outcome


def _read(done: Done) -> Done:
    """Divide what the script has said by device."""
    done.release, _, rest = done.outcome.output.partition("\n")
    marks = [(found[1], float(found[2]), found) for found in re.finditer(r"^== (\S+) (\S+)\n", rest, re.MULTILINE)]
    for (name, start, found), (_, end, following) in pairwise(marks):
        done.said[name] = rest[found.end() : following.start()].split("\n")[:-1]
        done.seconds[name] = end - start
    return done


def _exchange(path: Path, data: bytes, *, wait: bool) -> bytes:
    """Give the guest the data, take it back, and say goodbye. ``wait`` until the guest is there."""
    with joined(path) as far, far.makefile("rb") as heard:
        far.settimeout(PATIENCE)
        if wait and heard.readline() != b"ready\n":
            return b""
        far.sendall(data)
        back = heard.read(len(data))
        far.sendall(b"goodbye\n")
        heard.read()  # until the device ends
        return back


def _result(talk: Future[bytes]) -> bytes:
    try:
        return talk.result(PATIENCE)
    except OSError:
        return b""


# -- the network


def _network(stack: contextlib.ExitStack, namespace: Namespace, data: bytes, taken: list[bytes]) -> dict[str, object]:
    """Options of the card. Behind it, one server gives the data and one takes what comes back."""

    def take(far: socket.socket) -> None:
        while part := far.recv(MIB):
            taken.append(part)

    stack.enter_context(listening(namespace, PORT, lambda far: far.sendall(data)))
    stack.enter_context(listening(namespace, PORT + 1, take))
    return card(namespace)


def digest(data: bytes) -> str:
    """As the guest prints it."""
    return hashlib.sha256(data).hexdigest()
