"""Back ends of vhost-user that exist: virtiofsd, qemu-storage-daemon and passt, each a process that may be killed."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from attached import end, with_us
from bellwired.guest.toolbox import VIRTIOFSD, Toolbox
from rendezvous import listens

PATIENCE = 20.0
GATEWAY, ADDRESS = "192.0.2.1", "192.0.2.2"  # TEST-NET-1 (RFC 5737); passt takes the gateway for the host's loopback


class BackEnd:
    """A program that listens at ``socket``. It may be killed and started again."""

    def __init__(self, words: list[str], socket: Path, log: Path) -> None:
        self.socket = socket
        self._words = words
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. A device that waits for it may connect first, and virtiofsd then removes its socket's name."""
        self.socket.unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(with_us(self._words), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def listen(self) -> None:
        """Start it, and wait until it listens. Nobody may connect before."""
        self.start()
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while not listens(self.socket):
            assert self.process.poll() is None, f"it has ended:\n{self.log}"
            assert time.monotonic() < deadline, f"it does not listen:\n{self.log}"
            select.select([], [], [], 0.01)

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End it."""
        if self.process is not None:
            end(self.process)


@contextlib.contextmanager
def running(words: list[str], socket: Path) -> Iterator[BackEnd]:
    """A back end that ends with the block."""
    back_end = BackEnd(words, socket, socket.with_suffix(".log"))
    try:
        back_end.listen()
        yield back_end
    finally:
        back_end.close()


def virtiofsd(tools: Toolbox, folder: Path, socket: Path) -> list[str]:
    """The command line of a server of ``folder``."""
    words = ["--shared-dir", os.fspath(folder), "--socket-path", os.fspath(socket)]
    return [*tools.command(VIRTIOFSD), *words, "--sandbox", "none", "--log-level", "error"]


def storage_daemon(tools: Toolbox, image: Path, socket: Path, *, queues: int = 1) -> list[str]:
    """The command line of a server of a disk."""
    export = (
        f"type=vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={socket},writable=on,num-queues={queues}"
    )
    disk = f"driver=file,filename={image},node-name=disk"
    return [*tools.command("usr/bin/qemu-storage-daemon"), "--blockdev", disk, "--export", export]


def passt(tools: Toolbox, socket: Path) -> list[str]:
    """The command line of a network for a guest, without a tap and without root."""
    words = ["--vhost-user", "--foreground", "--ipv4-only", "--socket", os.fspath(socket), "--mtu", "1500"]
    words += ["--address", ADDRESS, "--netmask", "24", "--gateway", GATEWAY]
    return [*tools.command("usr/bin/passt"), *words]
