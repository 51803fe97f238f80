"""Linux drives devices whose data back ends move that exist: virtiofsd, qemu-storage-daemon and passt."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

import vhost_backends
from attached import Device, Served
from bellwire.virtio.transport import NOTIFY
from bellwired.guest.toolbox import Toolbox
from doorbells import written
from linux import Guest
from patched import PatchedToolbox
from vhost_backends import ADDRESS, GATEWAY, BackEnd

pytestmark = pytest.mark.guest

URL = f"http://{GATEWAY}:$port/"
CONTENT = os.urandom(1 << 20) * 8
"""What the network's far end gives."""

SCRIPT = f"""
part() {{ echo "== $1"; }}
await() {{ n=0; until eval "$1"; do n=$((n + 1)); [ $n -lt 2000 ] || fail "$1"; sleep 0.02; done; }}
fail() {{ echo "never: $1"; exit 1; }}
writes() {{ set -- $(cat /sys/block/vda/stat); echo $5; }}
fetch() {{ n=0; until wget -q -T 5 -O /tmp/got {URL}; do n=$((n + 1)); [ $n -lt 20 ] || exit 9; done; }}
part folder
mkdir -p /shared
mount -t virtiofs host /shared || exit 2
sha256sum </shared/given
mkdir /root/tree; for n in $(seq 200); do echo $n >/root/tree/$n; done
tar -C /root -cf - tree | tar -C /shared -xf - || exit 3
part disk
await "[ -b /dev/vda ]"
(fio --name=w --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randrw --bs=4k --iodepth=1 \\
    --size=4m --verify=crc32c --output-format=terse >/tmp/fio 2>&1; echo $? >/tmp/fio-status) &
await '[ $(writes) -gt 100 ]'
part 'kill blk'
await "[ -s /tmp/fio-status ]"
cat /tmp/fio-status
fio --name=v --filename=/dev/vda --ioengine=libaio --direct=1 --rw=randrw --bsrange=4k-64k --iodepth=16 \\
    --size=8m --verify=crc32c --output-format=terse >/tmp/fio 2>&1 || {{ cat /tmp/fio; exit 4; }}
cut -d';' -f5 /tmp/fio
part network
ip link set eth0 up
ip addr add {ADDRESS}/24 dev eth0
fetch
sha256sum </tmp/got
(while cat /shared/given >/dev/null; do touch /tmp/read; done 2>/tmp/lost; touch /tmp/stopped) &
await "[ -e /tmp/read ]"
part 'kill fs'
await "[ -e /tmp/stopped ]"
umount -l /shared
mount -t virtiofs host /shared || exit 5
sha256sum </shared/given
(wget -q -T 5 -O /tmp/drops {URL}drops; touch /tmp/broken) 2>/dev/null &
await "[ -s /tmp/drops ]"
part 'kill net'
await "[ -e /tmp/broken ]"
fetch
sha256sum </tmp/got
dmesg | grep -E 'Oops|BUG|Call Trace|I/O error'
exit 0
"""
KILLED = ["blk", "fs", "net"]


class Giver(socketserver.BaseRequestHandler):
    """Sends the content, by HTTP; or drops without an end, until the connection is broken."""

    over = threading.Event()

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            if b"/drops" not in self.request.recv(4096):
                self.request.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(CONTENT), CONTENT))
                return
            self.request.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not self.over.wait(0.1):
                self.request.sendall(bytes(16 << 10))


@contextlib.contextmanager
def giving() -> Iterator[int]:
    """Somebody on the host's loopback who gives the content to each who connects to this port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Giver) as server:
        thread = threading.Thread(target=server.serve_forever)
        Giver.over.clear()
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            Giver.over.set()
            server.shutdown()
            thread.join()


class Farm(NamedTuple):
    """Three back ends, what they serve, the devices that hand rings to them, and the port of the network's far end."""

    folder: Path
    image: Path
    back_ends: dict[str, BackEnd]
    devices: list[Served]
    port: int


@pytest.fixture
def farm(tools: Toolbox, tmp_path: Path, serve: Callable[[Device], Served]) -> Iterator[Farm]:
    place = tmp_path / "back"
    folder, image = place / "folder", place / "image"
    folder.mkdir(parents=True)
    (folder / "given").write_bytes(CONTENT)
    with image.open("wb") as file:
        file.truncate(64 << 20)
    sockets = {name: place / f"{name}.sock" for name in ("fs", "blk", "net")}
    words = {
        "fs": vhost_backends.virtiofsd(tools, folder, sockets["fs"]),
        "blk": vhost_backends.storage_daemon(tools, image, sockets["blk"]),
        "net": vhost_backends.passt(tools, sockets["net"]),
    }
    options = {"fs": {"tag": "host"}, "blk": {}, "net": {"mac": "52:54:00:12:34:56"}}
    with ExitStack() as stack:
        back_ends = {name: stack.enter_context(vhost_backends.running(words[name], sockets[name])) for name in words}
        devices = [
            serve(Device("vhost", {"type": name, "backend": f"unix:{sockets[name]}"} | options[name])) for name in words
        ]
        yield Farm(folder, image, back_ends, devices, stack.enter_context(giving()))


def kill_each(farm: Farm, output: Path, stop: threading.Event) -> None:
    """Kill the back end that the guest names in its output, and start it again."""
    for name in KILLED:
        while not (output.exists() and f"== kill {name}\n" in output.read_text()):
            if stop.wait(0.02):
                return
        farm.back_ends[name].kill()
        stop.wait(0.5)
        farm.back_ends[name].start()


MODULES = ["virtiofs", "virtio_blk", "virtio_net"]


@pytest.fixture(params=["stock", pytest.param("patched", marks=pytest.mark.long)])
def machine(request: pytest.FixtureRequest) -> Toolbox:
    """The tools with Debian's QEMU, whose kicks are messages, and with ours, whose kicks the back ends get."""
    found: Toolbox = request.getfixturevalue("tools" if request.param == "stock" else "patched_tools")
    return found


def test_linux_uses_a_folder_a_disk_and_a_network_of_real_back_ends(
    machine: Toolbox, farm: Farm, tmp_path: Path, tell: Callable[..., None]
) -> None:
    guest = Guest(machine, tmp_path)
    tell(guest.report)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as killer, contextlib.ExitStack() as stack:
        killing = killer.submit(kill_each, farm, tmp_path / "output", stop)
        stack.callback(stop.set)
        script = f"port={farm.port}\n{SCRIPT}"
        outcome = guest.run(script, farm.devices, modules=MODULES, programs=["usr/bin/fio"])
        killing.result()
    digest = f"{hashlib.sha256(CONTENT).hexdigest()}  -"
    assert outcome.output.splitlines() == [
        *("== folder", digest),
        *("== disk", "== kill blk", "0", "0"),
        *("== network", digest),
        *("== kill fs", digest),
        *("== kill net", digest),
    ]
    assert outcome.status == 0
    assert len(list((farm.folder / "tree").iterdir())) == 200
    assert all("a back end is there again" in device.log for device in farm.devices)
    kicks = [sum(region == 0 and offset >= NOTIFY for region, offset in written(device)) for device in farm.devices]
    if isinstance(machine, PatchedToolbox):
        assert kicks == [0, 0, 0], "each kick went to the back end"
    else:
        assert all(kicks)
