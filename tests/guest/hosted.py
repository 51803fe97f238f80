"""A daemon under a real systemd that serves the devices of a guest outside, and what can happen to it and its workers.

The devices are plugins, one file each, so that their code can be edited. The systemd is a bed of tests/systemd.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bed import Bed
from bellwired.guest.plan import Plugged
from operating.instance import PLUGINS as PLUGIN_FILES
from operating.varlink import Varlink

UNIT = "bellwired.service"
TAP, HOST, GUEST = "bwchaos0", "10.97.0.1", "10.97.0.2"
CONFIGURATION, STATE, RUNTIME = "/etc/bellwire", "/var/lib/bellwire", "/run/bellwire"
PATIENCE = 60.0  # seconds for a hand-over of a busy machine
SETTINGS = """
restart-limit = 1000
ping-interval = 0.5
ping-timeout = 1.5
"""
# The guest is emulated, so it would take all processors. QEMU gives up on an access after 5 s.
DROP_IN = """
[Service]
AmbientCapabilities=CAP_NET_ADMIN
CapabilityBoundingSet=CAP_NET_ADMIN
PrivateDevices=no
DeviceAllow=/dev/net/tun rw
PrivateNetwork=no
RestrictAddressFamilies=AF_NETLINK AF_INET
Nice=-10
Environment=PYTHONPYCACHEPREFIX=/var/lib/bellwire/compiled
[Unit]
StartLimitIntervalSec=0
"""
PLUGINS = {
    "disk": "from bellwire.bundled.nvme import Nvme\n\n\nclass Disk(Nvme, name='disk'):\n    pass\n",
    "block": "from bellwire.bundled.virtio_blk import VirtioBlk\n\n\nclass Block(VirtioBlk, name='block'):\n    pass\n",
    "shell": "from bellwire.bundled.virtio_console import VirtioConsole\n\n\n"
    "class Shell(VirtioConsole, name='shell'):\n    pass\n",
    "teacher": "from bellwire.bundled.edu import Edu\n\n\nclass Teacher(Edu, name='teacher'):\n    pass\n",
    "ringer": (PLUGIN_FILES / "ringer.py").read_text(),
}
"""The plugins' code, by their names."""
DEVICES = {
    "disk": f'device = "disk"\n[options]\nimage = "{STATE}/disk"\n',
    "block": f'device = "block"\n[options]\nimage = "{STATE}/block"\n',
    "card": f'device = "virtio-net"\n[options]\ntap = "{TAP}"\n',
    "shell": f'device = "shell"\nsandbox = ["sockets"]\nsandbox-write = ["{RUNTIME}"]\n'
    f'[options]\nports = "console=unix:{RUNTIME}/shell.console"\n',
    "teacher": 'device = "teacher"\n[options]\ndma_delay = 0.01\n',
    "ringer": 'device = "ringer"\n',
}
"""The devices' files. The card's code comes with the daemon: a plugin with a tap needs more than its box gives."""


class Hosted:
    """The daemon in a bed, with its devices configured and running."""

    def __init__(self, bed: Bed, devices: Mapping[str, str] = DEVICES) -> None:
        self.bed = bed
        self.names = list(devices)
        for folder in ("devices.d", "plugins"):
            bed.path(f"{CONFIGURATION}/{folder}").mkdir(parents=True, exist_ok=True)
        for name, code in PLUGINS.items():
            self.write(f"plugins/{name}.py", code)
        for name, text in devices.items():
            self.write(f"devices.d/{name}.toml", text)
        self.write("bellwired.toml", SETTINGS)
        bed.unit(f"{UNIT}.d/chaos.conf", DROP_IN)
        images = " ".join(f"{STATE}/{name}" for name in ("disk", "block"))
        bed.run("sh", "-ec", f"mkdir -p {STATE}; truncate -s 16M {images}; chown -R bellwire:bellwire {STATE}")
        bed.run("ip", "tuntap", "add", "dev", TAP, "mode", "tap", "user", "bellwire", "vnet_hdr")
        bed.run("ip", "address", "add", f"{HOST}/24", "dev", TAP)
        bed.run("ip", "link", "set", TAP, "up")
        bed.run("ip", "link", "set", "lo", "up")
        self._edits = 0

    def write(self, path: str, text: str) -> None:
        """Write a file of the configuration."""
        place = self.bed.path(f"{CONFIGURATION}/{path}")
        fresh = place.with_name(f".{place.name}")
        fresh.write_text(text)
        fresh.rename(place)

    def plugged(self) -> list[Plugged]:
        """The devices for QEMU, by their sockets as they are seen from outside."""
        return [Plugged(self.bed.path(f"{RUNTIME}/{name}.sock")) for name in self.names]

    @property
    def console(self) -> Path:
        """The socket behind the guest's console."""
        return self.bed.path(f"{RUNTIME}/shell.console")

    # -- what it says

    def control(self) -> Varlink:
        """A connection to its control socket."""
        return Varlink(self.bed.path(f"{RUNTIME}/control"))

    def describe(self, name: str) -> dict[str, Any]:
        """A device, as ``bellwire status --json`` has it."""
        with self.control() as control:
            device: dict[str, Any] = control.call("Describe", name=name)["device"]
            return device

    def log(self) -> str:
        """The daemon's part of the journal."""
        return "\n".join(str(entry["MESSAGE"]) for entry in self.bed.journal(_SYSTEMD_UNIT=UNIT))

    # -- what happens to it: each returns the pause in milliseconds, when the guest is served again

    def kill(self, name: str) -> float:
        """SIGKILL for a worker."""
        return self._ended(name, signal.SIGKILL)

    def hang(self, name: str) -> float:
        """SIGSTOP for a worker: the manager's watch has to find out."""
        return self._ended(name, signal.SIGSTOP)

    def edit(self, name: str) -> float:
        """Another edition of a plugin, and ``bellwire reload``."""
        self._edits += 1
        self.write(f"plugins/{name}.py", f"{PLUGINS[name]}\n\nEDITION = {self._edits}\n")
        with self.control() as control:
            outcome = control.call("Reload")["outcome"]
        assert outcome["restarted"] == [name], outcome
        return self._pause(name)

    def restart(self, _: str) -> float:
        """``systemctl restart bellwired``: the longest pause of a device."""
        self.bed.systemctl("restart", UNIT)
        self._await(lambda: all(self._served(name) for name in self.names))
        return max(map(self._pause, self.names))

    def _ended(self, name: str, number: signal.Signals) -> float:
        before = self.describe(name)
        count = before["hand_overs"]["count"]
        with self._process(before["pid"]) as pidfd:
            begun = time.monotonic()
            signal.pidfd_send_signal(pidfd, number)
        self._await(lambda: self.describe(name)["hand_overs"]["count"] > count)
        return (time.monotonic() - begun) * 1e3

    def _served(self, name: str) -> bool:
        device = self.describe(name)
        return device["state"] == "running" and device["client"] is not None

    def _pause(self, name: str) -> float:
        return float(self.describe(name)["hand_overs"]["pause_ms"])

    @contextlib.contextmanager
    def _process(self, inside: int) -> Iterator[int]:
        """A pidfd of the process that has this number inside."""
        pidfd = os.pidfd_open(self._outside(inside))
        try:
            yield pidfd
        finally:
            os.close(pidfd)

    def _outside(self, inside: int) -> int:
        wanted = str(inside)
        for status in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                for line in status.read_text().splitlines():
                    if line.startswith("NSpid:") and line.split()[-1] == wanted and len(line.split()) > 2:
                        pid = int(status.parent.name)
                        if os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.bed.init}/ns/pid"):
                            return pid
        raise AssertionError(f"there is no process {inside} inside")

    def _await(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"no hand-over within {PATIENCE:.0f} s:\n{self.log()[-4000:]}"
            time.sleep(0.002)
