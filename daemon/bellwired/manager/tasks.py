"""Runs tasks in the background, and restarts those that fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

log = logging.getLogger("bellwired")
AT_ONCE = 8
PAUSE = 1.0  # seconds to wait after an unexpected failure


@contextlib.asynccontextmanager
async def alongside(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run the endless ``works`` during the block. A failure is logged, and the work begins again."""

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("%s has failed", work.__name__)
            await asyncio.sleep(PAUSE)

    tasks = [asyncio.create_task(run(work)) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def a_few_at_once(works: Iterable[Awaitable[None]]) -> None:
    """Run all of ``works``, at most ``AT_ONCE`` at the same time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(work: Awaitable[None]) -> None:
        async with room:
            await work

    await asyncio.gather(*(one(work) for work in works))
