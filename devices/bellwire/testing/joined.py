"""A device and a client of it in one thread: a test goes through the protocol, and nothing runs beside it."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from bellwire.device import PciDevice
from bellwire.filters.told import tell_at_debug
from bellwire.serve.loop import Loop
from bellwire.serve.served import Served
from vfio_user import Client
from vfio_user.in_process import End, JoinedChannel, client_of


@contextmanager
def joined(device: PciDevice, **options: Any) -> Iterator[Client]:
    """A client, made with ``options``, of ``device``, which is set up before and closed after.

    Whenever the client waits, the device has a turn of its loop: messages, rings, finished threads and timers that are
    due. A reply that does not come then, with all messages handled, is a TimedOut at once.
    """
    loop = Loop()
    served = Served(device, loop)
    served.channel = JoinedChannel
    ours, theirs = End.pair()

    def work() -> None:
        turn()
        if theirs.readable and not ours.readable:  # what comes with descriptors is received by itself
            turn()

    def turn() -> None:
        ready = dict(loop.look())
        session = served.session
        if session is not None and session.waiting:  # what came while it waited for a DMA reply
            ready[session.fileno()] = select.EPOLLIN
        served.turn(ready)
        loop.run(ready)
        loop.run_timers()

    try:
        device.setup()
        device.core.reset()
        tell_at_debug(served.filters)
        served.attach(cast("socket.socket", theirs))
        ours.work = work
        with client_of(ours, **options) as client:
            yield client
    finally:
        served.detach()
        served.filters.clear()
        loop.close()
        device.close()
        device.core.close()
