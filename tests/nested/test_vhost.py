"""The kernel's own vhost back ends, and virtiofsd, on a kernel that has them: in the bed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from bellwired.guest.initramfs import archive
from bellwired.guest.toolbox import VIRTIOFSD, Toolbox
from nested.boot import run
from nested.test_bed import PYTEST, Bed, bed, kernel_or_skip, tools
from nested.test_linux import BEGIN, stock
from nested.vhost_runs import GUEST, PINGS, PORT, ROUNDS
from python import PROGRAM, python

__all__ = ["bed", "tools"]

pytestmark = [pytest.mark.nested, pytest.mark.long]

HERE = Path(__file__).parent
PATIENCE = 900.0
MODULES = ("virtio_net", "vmw_vsock_virtio_transport")
SERVER = f"""
import socket
server = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
server.bind((socket.VMADDR_CID_ANY, {PORT}))
server.listen()
host, _ = server.accept()
while message := host.recv(64, socket.MSG_WAITALL):
    if message.startswith(b"read"):
        open("/proc/sys/vm/drop_caches", "w").write("3")
        message = b"%64d" % len(open("/shared/given", "rb").read())
    host.sendall(message)
"""
SCRIPT = f"""
for module in /modules/*; do insmod $module; done
mkdir -p /shared
mount -t virtiofs host /shared
sha256sum </shared/given
mkdir -p /shared/tree /tree
for n in $(seq 50); do echo $n >/tree/$n; done
tar -C / -cf - tree | tar -C /shared -xf - && echo "written: $(cat /shared/tree/50)"
ip link set eth0 up
ip addr add {GUEST}/24 dev eth0
/{PROGRAM} -S -B /server.py
poweroff -f
"""


@pytest.fixture(scope="module")
def told(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of one Linux guest."""
    folder = tmp_path_factory.mktemp("vhost")
    modules = tools.kernel.load_order(MODULES)
    files: dict[str, bytes | Path] = {"init": (BEGIN + SCRIPT).encode(), "bin/busybox": tools.busybox}
    files |= {f"modules/{number:02}-{module}.ko": code for number, (module, code) in enumerate(modules.items())}
    files |= {"server.py": SERVER.encode(), **python(tools, ["socket", "encodings.utf_8", "encodings.idna"])}
    initrd = folder / "initrd"
    initrd.write_bytes(archive(files, {"bin/sh": "busybox"}))
    virtiofsd = ["--socket-path", "fs.sock", "--shared-dir", "shared", "--sandbox", "none", "--seccomp", "none"]
    words = [*stock(tools), "--initrd", str(initrd), "--memory", "320"]
    plan = folder / "plan"
    plan.write_text(json.dumps({"words": words, "virtiofsd": [*tools.command(VIRTIOFSD), *virtiofsd]}))
    said: list[bytes] = []
    command = [sys.executable, "-m", "nested.vhost_runs", str(plan)]
    run(tools, kernel_or_skip(tools, "patched"), command, output=said.append, timeout=PATIENCE, folder=HERE.parent)
    text = b"".join(said).decode()
    found: dict[str, Any] = next((json.loads(line) for line in text.splitlines() if line.startswith("{")), {})
    assert found, text
    assert "error" not in found, f"{found['error']}\n{found['console']}"
    return found


def test_the_kernels_back_ends_serve_drivers_that_are_up_to_anything(bed: Bed) -> None:
    bed("patched", *PYTEST, HERE / "vhost_kernel.py", timeout=600)


def test_packets_go_through_vhost_net_and_the_worker_never_wakes_up(told: dict[str, Any]) -> None:
    card = told["card"]
    print(f"{card['done'] / card['seconds']:.0f} pings a second, {card['switches']} wake-ups")
    assert card["done"] == PINGS
    assert card["switches"] == 0


def test_sockets_of_the_host_and_the_guest_talk_and_the_worker_never_wakes_up(told: dict[str, Any]) -> None:
    assert (told["vsock"]["done"], told["vsock"]["switches"]) == (ROUNDS, 0)


def test_linux_mounts_a_folder_of_the_host_and_the_worker_never_wakes_up(told: dict[str, Any]) -> None:
    assert (told["folder"]["done"], told["folder"]["switches"]) == (1 << 20, 0)
    assert "written: 50" in told["console"]
    assert len(told["written"]) == 50


def test_the_guest_powers_off_and_no_ring_has_reached_a_worker(told: dict[str, Any]) -> None:
    assert told["status"] == 0, told["output"]
    for name in ("vsock", "folder"):
        tally = told["tallies"][name]
        assert tally["rings_message"] == 0
