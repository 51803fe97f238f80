"""What runs in the bed: Linux in `bellwire vmm`, with devices whose data the kernel and virtiofsd move.

``python -m nested.vhost_runs PLAN`` reads a plan (JSON: the words of the VMM, and those of virtiofsd, for the folder
``shared``). It prints what came of it as a line of JSON: how many packets, messages and bytes went, in which time, and
how often each worker ran meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nested.linux_runs import PATIENCE, Served

CID, PORT = 42, 1234
GUEST, HOST = "10.9.0.2", "10.9.0.1"
TAP, MAC = "bell0", "52:54:00:12:34:56"
PINGS, WINDOW, ROUNDS = 3000, 32, 300
ECHO = struct.Struct("!BBHHH")  # ICMP: type, code, checksum, identifier, number


def switches(pid: int) -> int:
    """How often a process's threads have gone to sleep, or were made to."""
    found = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        found += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return found


def ping() -> int:
    """Echo requests to the guest, some at a time; the number of replies."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.settimeout(5.0)
        sent = come = 0
        while come < PINGS:
            while sent < min(PINGS, come + WINDOW):
                body = ECHO.pack(8, 0, 0, 7, sent)
                total = sum(struct.unpack("!4H", body))
                raw.sendto(ECHO.pack(8, 0, 0xFFFF - (total & 0xFFFF) - (total >> 16), 7, sent), (GUEST, 0))
                sent += 1
            try:
                reply = raw.recv(100)
            except TimeoutError:
                break
            come += reply[20] == 0
        return come


def echo(guest: socket.socket) -> int:
    """Messages to the guest and back; how many were the same."""
    same = 0
    for number in range(ROUNDS):
        guest.sendall(b"%4d" % number * 16)
        same += guest.recv(64, socket.MSG_WAITALL) == b"%4d" % number * 16
    return same


def read(guest: socket.socket) -> int:
    """Let the guest read the shared file anew; its size."""
    guest.sendall(b"read".ljust(64))
    return int(guest.recv(64, socket.MSG_WAITALL))


def connect(vmm: subprocess.Popen[bytes]) -> socket.socket:
    """A connection to the guest, when it listens."""
    deadline = time.monotonic() + 2 * PATIENCE
    while vmm.poll() is None and time.monotonic() < deadline:
        guest = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        guest.settimeout(30.0)
        try:
            guest.connect((CID, PORT))
        except OSError:
            guest.close()
            select.select([], [], [], 0.5)
        else:
            return guest
    raise AssertionError("the guest does not listen")


def measure(work: Callable[[], int], served: Served) -> dict[str, float]:
    """Do some work; what came of it, how often the device's worker ran, and the seconds it took."""
    before, start = switches(served.pid), time.monotonic()
    done = work()
    seconds = time.monotonic() - start
    return {"done": done, "switches": switches(served.pid) - before, "seconds": seconds}


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Boot the guest with a card, vsock and a folder, and use each."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        os.chdir(folder)
        Path("shared").mkdir()
        Path("shared/given").write_bytes(bytes(range(256)) * 4096)
        with Path("said").open("wb") as said:
            server = stack.enter_context(subprocess.Popen(plan["virtiofsd"], stdout=said, stderr=said))
        stack.callback(server.kill)
        deadline = time.monotonic() + 60
        while " fs.sock\n" not in Path("/proc/net/unix").read_text():
            assert server.poll() is None, Path("said").read_text()
            assert time.monotonic() < deadline, "virtiofsd does not listen"
            select.select([], [], [], 0.05)
        options = {
            "card": ("virtio-net", {"tap": TAP, "offload": "vhost-net", "mac": MAC}),
            "vsock": ("vhost", {"backend": f"vhost-vsock:{CID}"}),
            "folder": ("vhost", {"backend": f"unix:{folder}/fs.sock", "tag": "host"}),
        }
        served = {}
        for each, (kind, given) in options.items():
            (folder / each).mkdir()
            served[each] = Served(kind, given, folder / each)
        subprocess.run(["/run/bed/busybox", "ip", "addr", "add", f"{HOST}/24", "dev", TAP], check=True)
        plugged = [word for each in served.values() for word in ("--device", os.fspath(each.path))]
        words = [sys.executable, "-m", "bellwired", "vmm", *plan["words"], *plugged, "--console", "console"]
        vmm = stack.enter_context(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        stack.callback(vmm.kill)
        found: dict[str, Any] = {}
        try:
            with connect(vmm) as guest:
                found["card"] = measure(ping, served["card"])
                found["vsock"] = measure(lambda: echo(guest), served["vsock"])
                found["folder"] = measure(lambda: read(guest), served["folder"])
            assert vmm.stdout is not None
            found["output"] = vmm.stdout.read().decode()
            found["status"] = vmm.wait(60)
        except (AssertionError, OSError) as error:
            vmm.send_signal(signal.SIGINT)
            last = vmm.communicate(timeout=60)[0].decode(errors="replace")
            found["error"] = f"{error!r}\n{last}"
        found["console"] = Path("console").read_text(errors="replace").replace("\r\n", "\n")
        found["written"] = sorted(each.name for each in Path("shared/tree").glob("*"))
        found["tallies"] = {each: server.tally() for each, server in served.items()}
        return found


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))), flush=True)
