"""Serve a device from a test or a script to a real client: QEMU, another VMM, or a client of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, NamedTuple, TypeVar

from bellwire.device import PciDevice
from bellwire.serve.worker import Worker
from bellwire.unix_sockets import Bound

BACKLOG = 128
Device = TypeVar("Device", bound=PciDevice)


class Serving(NamedTuple, Generic[Device]):
    """A device that is being served, and its socket. Made by :func:`serve`."""

    path: Path
    """The Unix socket that a client connects to."""
    device: Device
    """The device. It runs on a thread of its own, so look at it only while no client uses it."""


@contextlib.contextmanager
def serve(
    device: Device | type[Device], *, path: Path | str | None = None, **options: Any
) -> Iterator[Serving[Device]]:
    """Serve ``device`` for the length of a ``with`` block, on the socket ``path`` or on one in a temporary folder.

    ``device`` is an instance, or a class that is made with ``options``. Clients are served one after the other. An
    error of ``setup`` or ``reset`` comes out of the ``with`` statement. At the end of the block the client is
    disconnected, the device's ``close`` has run, and the thread and the socket are gone.
    """
    instance: Device = device(**options) if isinstance(device, type) else device
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="bellwire-"))
        where = Path(folder, "socket") if path is None else Path(path)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        stack.callback(Bound(listener, where, BACKLOG).remove)
        worker = Worker(instance, listener)
        ready, failed = threading.Event(), []

        def run() -> None:
            try:
                worker.run(ready.set)
            except BaseException as error:  # noqa: BLE001 whatever it is, the thread that waits for us raises it
                failed.append(error)
            ready.set()

        thread = threading.Thread(target=run, name=f"bellwire {instance.name}")
        thread.start()
        try:
            ready.wait()
            if not failed:
                yield Serving(where, instance)
        finally:
            worker.stop()
            thread.join()
        if failed:
            raise failed[0]
