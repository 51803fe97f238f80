"""What the host does while Linux looks on: it plugs a device in, takes it out, kills it, and plugs another one in.

The guest says on its second serial port how far it is, and waits for an answer.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from attached import kill
from bellwired.guest.plan import Plugged
from bellwired.guest.qmp import Qmp
from qtest import monitor
from rendezvous import joined

SLOT = "/sys/bus/pci/devices/0000:01:00.0"
TALK = """
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
say() { echo "$1" >&3; read -r answer <&3; }
await() {
    tries=0
    until eval "$1"; do
        tries=$((tries + 1))
        [ $tries -lt 2000 ] || { echo "never: $1"; dmesg | tail; exit 1; }
        sleep 0.02
    done
}
part() { echo "== $1"; }
"""
"""The guest's side of the conversation: put it before a script."""


class Host:
    """The host's side of the conversation."""

    def __init__(self, far: socket.socket, control: Qmp) -> None:
        self._far = far
        self._lines = far.makefile("rb")
        self.control = control

    def hears(self, text: str) -> None:
        assert self._lines.readline().decode().strip() == text

    def answers(self) -> None:
        self._far.sendall(b"go on\n")

    def plug(self, path: Path) -> None:
        self.control.ask("device_add", bus="root", id="it", **json.loads(Plugged(path).argument))

    def close(self) -> None:
        self._lines.close()


def slot(folder: Path) -> Sequence[str]:
    """QEMU's arguments for an empty slot, and for the two sockets in ``folder`` that :func:`come_and_go` needs."""
    return (
        *("-device", "pcie-root-port,id=root,slot=1", "-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
        *("-serial", f"unix:{folder}/line,server=on,wait=off"),
    )


def come_and_go(folder: Path, first: Path, process: subprocess.Popen[bytes], second: Path) -> None:
    """Plug ``first`` in, take it out, plug it in, kill its ``process``, and plug ``second`` in when it is out."""
    with (
        joined(folder / "line") as far,
        closing(monitor(folder / "qmp")) as control,
        closing(Host(far, control)) as host,
    ):
        host.hears("ready")
        host.plug(first)
        host.answers()
        host.hears("plugged")
        control.ask("device_del", id="it")
        host.answers()
        host.hears("unplugged")
        control.wait("DEVICE_DELETED", device="it")
        host.plug(first)
        host.answers()
        host.hears("again")
        kill(process)
        host.answers()
        host.hears("pulled")
        control.wait("DEVICE_DELETED", device="it")
        host.plug(second)
        host.answers()
        host.hears("back")
        host.answers()
