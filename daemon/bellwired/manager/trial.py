"""Whether a device can be made at all: tried in a process of its own, before one that works is given up for it."""

from __future__ import annotations

import asyncio

from bellwired.errors import CommandError
from bellwired.workers.link import Link
from bellwired.workers.nursery import Nursery
from bellwired.workers.wire import Event, Spawn


async def attempt(nursery: Nursery, order: Spawn, timeout: float) -> None:
    """Import the device and check its options. A CommandError says what is wrong with them."""
    errors: list[str] = []

    def heard(event: Event) -> None:
        errors.append(str(event.fields.get("error", event.kind)))

    link = Link(order.name, heard)
    try:
        child = await nursery.spawn(order, [link.theirs.fileno()])
        link.handed_over()
        await asyncio.wait([child.ended], timeout=timeout)
        if not child.ended.done():
            child.kill()
            raise CommandError(f"{order.name}: {order.device} has not been imported within {timeout:g} s")
    finally:
        link.close()
    if errors:
        raise CommandError(f"{order.name}: {errors[-1]}")
    if child.ended.result() != 0:
        raise CommandError(f"{order.name}: {order.device} cannot be imported: status {child.ended.result()}")
