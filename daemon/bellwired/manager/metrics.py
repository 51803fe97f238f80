"""OpenMetrics over HTTP, on a UNIX or a TCP socket; off unless ``metrics`` in bellwired.toml says where."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bellwired.errors import CommandError
from bellwired.listen import Listener
from bellwired.manager.life import State
from bellwired.manager.manager import Manager

log = logging.getLogger("bellwired")
LONGEST_REQUEST = 8192
PATIENCE = 3.0
GAUGES = {"connected": "Whether it has a client", "dma_maps": "Stretches of memory that its client shares"}


class Devices(Collector):
    """The counters from the last round of questions to the workers, as metrics."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._numbers: dict[str, dict[str, int]] = {}

    async def refresh(self) -> None:
        """Ask every running worker for its counters."""
        units = [unit for unit in self._manager.units.values() if unit.state is State.RUNNING]
        answers = await asyncio.gather(*(unit.ask("statistics", PATIENCE) for unit in units), return_exceptions=True)
        pairs = zip(units, answers, strict=True)
        self._numbers = {unit.name: dict(answer) for unit, answer in pairs if not isinstance(answer, BaseException)}

    def collect(self) -> Iterator[Metric]:
        """One family for each number."""
        up = GaugeMetricFamily("bellwire_up", "Whether the device accepts clients", labels=["device"])
        restarts = CounterMetricFamily("bellwire_restarts", "Restarts of its worker", labels=["device"])
        memory = GaugeMetricFamily("bellwire_memory_bytes", "Its worker's share of memory (PSS)", labels=["device"])
        for unit in self._manager.units.values():
            up.add_metric([unit.name], unit.state is State.RUNNING)
            restarts.add_metric([unit.name], unit.restarts)
            memory.add_metric([unit.name], unit.memory)
        yield from (up, restarts, memory)
        for key in sorted({key for numbers in self._numbers.values() for key in numbers}):
            kind = GaugeMetricFamily if key in GAUGES else CounterMetricFamily
            about = GAUGES.get(key, f"{key.replace('_', ' ').capitalize()} since its worker was started")
            family = kind(f"bellwire_{key}", about, labels=["device"])
            for name, numbers in self._numbers.items():
                family.add_metric([name], numbers.get(key, 0))
            yield family


@contextlib.asynccontextmanager
async def serving(manager: Manager) -> AsyncIterator[None]:
    """Answer scrapes for the length of the block, at the configured address."""
    where = manager.settings.daemon.metrics
    devices = Devices(manager)
    registry = CollectorRegistry()
    registry.register(devices)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nothing_to_say = (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
        with contextlib.suppress(*nothing_to_say), contextlib.closing(writer):
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
            if request.startswith((b"GET /metrics ", b"GET / ")):
                await devices.refresh()
                head, body = f"200 OK\r\nContent-Type: {CONTENT_TYPE_LATEST}", generate_latest(registry)
            else:
                head, body = "404 Not Found\r\nContent-Type: text/plain", b"GET /metrics\n"
            text = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(text.encode() + body)
            await asyncio.wait_for(writer.drain(), PATIENCE)

    kind, _, path = where.partition(":")
    own: Listener | None = None
    try:
        if kind == "unix":
            own = Listener(Path(path), 0o666)
            server = await asyncio.start_unix_server(answer, sock=own.socket, limit=LONGEST_REQUEST)
        else:
            host, _, port = where.rpartition(":")
            if not host:
                raise ValueError("no address to listen on")
            server = await asyncio.start_server(answer, host.strip("[]"), int(port), limit=LONGEST_REQUEST)
    except (OSError, ValueError, OverflowError, CommandError) as error:
        raise CommandError(f"metrics = {where!r}: {error}", "write unix:PATH or ADDRESS:PORT") from None
    log.info("metrics at %s", where)
    try:
        yield
    finally:
        server.close()  # do not wait for scrapes under way
        if own is not None:
            own.close()
