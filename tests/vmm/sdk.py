"""Devices of the SDK, served by a worker on a thread of this process."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator

from bellwire import PciDevice
from bellwire.filters import Filter
from bellwire.serve.worker import Worker


@contextlib.contextmanager
def working(
    kind: Callable[..., PciDevice], *, filters: Iterable[Filter] = (), **options: object
) -> Iterator[socket.socket]:
    """A socket to a device, whose worker ends with it; ``filters`` stand before the device."""
    ours, theirs = socket.socketpair()
    interval = sys.getswitchinterval()
    worker = Worker(kind(**options), connection=theirs)
    for each in filters:
        worker.served.filters.add(each)
    thread = threading.Thread(target=worker.run, name=kind.__name__)
    thread.start()
    try:
        yield ours
    finally:
        worker.stop()
        thread.join()
        ours.close()
        sys.setswitchinterval(interval)
