"""Tries in a separate process whether a device can be made, before a working device is restarted."""

from __future__ import annotations

import asyncio

from bellwired.errors import CommandError
from bellwired.workers.spawner import Spawner
from bellwired.workers.wire import Report, Spawn
from bellwired.workers.worker_channel import WorkerChannel


async def attempt(spawner: Spawner, order: Spawn, timeout: float) -> None:
    """Import the device and check its options. A CommandError says what is wrong with them."""
    errors: list[str] = []

    def heard(event: Report) -> None:
        if event.kind in ("refused", "crashed"):
            errors.append(str(event.fields["error"]))

    channel = WorkerChannel(order.name, heard)
    try:
        child = await spawner.spawn(order, [channel.theirs.fileno()])
        channel.handed_over()
        await asyncio.wait([child.ended], timeout=timeout)
        if not child.ended.done():
            child.kill()
            raise CommandError(f"{order.name}: {order.device} has not been imported within {timeout:g} s")
    finally:
        channel.close()
    if errors:
        raise CommandError(f"{order.name}: {errors[-1]}")
    if child.ended.result() != 0:
        raise CommandError(f"{order.name}: {order.device} cannot be imported: status {child.ended.result()}")
