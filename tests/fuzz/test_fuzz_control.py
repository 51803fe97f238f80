"""varlink on the control socket: any bytes of a caller. The next caller is answered."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bellwired.listen import Listener
from bellwired.manager.foreground import Desk
from bellwired.settings import Device
from fuzz.fuzzing import fuzz, mutated
from operating.varlink import Varlink

PATIENCE = 0.003  # seconds for answers: the caller does not wait for all
SEEDS = [
    b'{"method":"org.varlink.service.GetInfo"}\0',
    b'{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.bellwire.Manager"}}\0',
    b'{"method":"org.bellwire.Manager.List","parameters":{"statistics":true}}\0',
    b'{"method":"org.bellwire.Manager.Describe","parameters":{"name":"one"}}\0',
    b'{"method":"org.bellwire.Manager.Set","parameters":{"name":"one","option":"a","value":"b"},"oneway":true}\0',
    b'{"method":"org.bellwire.Manager.Monitor","more":true}\0{"method":"org.bellwire.Manager.About"}\0',
    b'{"method":"org.bellwire.Manager.Log","parameters":{"name":"one","follow":true},"more":true}\0',
    b'{"method":"org.bellwire.Manager.Reload"}\0',
]


@contextlib.contextmanager
def serving() -> Iterator[None]:
    """Serve the control interface of one device, on a thread."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        socket_at[:] = [Path(folder, "control")]
        listener = Listener(socket_at[0])
        with contextlib.closing(listener), Desk("one", Device(device="bell"), "/nowhere", listener):
            yield


def attack(data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(PATIENCE)
        caller.connect(str(socket_at[0]))
        with contextlib.suppress(OSError):
            caller.sendall(data)
            while caller.recv(1 << 16):
                pass
    with Varlink(socket_at[0]) as next_one:
        assert [device["name"] for device in next_one.call("List")["devices"]] == ["one"]


socket_at: list[Path] = []
test_corpus, test_briefly, test_long = fuzz(attack, mutated(SEEDS), "control", around=serving)
