"""The metrics of a daemon, as OpenMetrics. Off unless ``metrics`` in bellwired.toml says where.

What is known is collected on the event loop. The files in /proc are read, and the text is made, on another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import platform
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    StateSetMetricFamily,
)
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from bellwire.model.meter import SHIFT
from bellwired import unblocked
from bellwired.manager import descriptors
from bellwired.manager.describe import DISABLED
from bellwired.manager.life import State
from bellwired.manager.manager import Manager
from bellwired.manager.scrapes import Scrapes, listening, log
from bellwired.manager.unit import Unit
from bellwired.release import release
from bellwired.workers import process

PATIENCE = 3.0  # seconds for a worker's counters
STATES = [*map(str, State), DISABLED]
COUNTERS = {
    "clients": ("clients", "Clients that have connected"),
    "reads": ("reads", "Reads of registers, areas and config space that came as messages"),
    "writes": ("writes", "Writes to registers, areas and config space that came as messages"),
    "interrupts": ("interrupts", "Interrupts that were sent"),
    "resets": ("resets", "Resets of the device"),
    "guest_errors": ("guest_errors", "Mistakes of the guest"),
    "failures": ("failures", "Errors that the device's code raised"),
    "faults": ("faults", "Events that were struck by a fault"),
    "dma_read": ("dma_read_bytes", "Bytes that were copied from guest memory"),
    "dma_written": ("dma_written_bytes", "Bytes that were copied to guest memory"),
    "dma_in_place": ("dma_in_place_bytes", "Bytes of guest memory that were used in place"),
}
"""By the key of a worker's statistics: the metric's name after ``bellwire_``, and its help."""
GAUGES = {
    "connected": ("connected", "Whether it has a client"),
    "dma_maps": ("dma_maps", "Maps of its client's memory"),
}
RINGS = "rings_"
"""Keys of statistics that begin with this count rings by mechanism."""


@dataclass(eq=False)
class Known:
    """What is known of one device."""

    name: str
    kind: str
    plugin: str
    state: str
    restarts: int
    hand_overs: int
    pause: float
    pid: int
    numbers: dict[str, int] = field(default_factory=dict)
    meter: dict[str, Any] | None = None


@dataclass(eq=False)
class Snapshot(Collector):
    """All that one scrape tells, except for what is in /proc."""

    devices: list[Known]
    processes: list[tuple[str, str, int]]
    reloads: Mapping[str, int]
    last_reload: tuple[float, bool]
    last_success: float
    lost: int
    descriptors: int

    def collect(self) -> Iterator[Metric]:
        """The families, each with all its samples."""
        yield InfoMetricFamily(
            "bellwire_build", "The version", value={"version": release(), "python": platform.python_version()}
        )
        yield from self._daemon()
        yield from self._devices()
        yield from self._counters()
        yield from self._io()
        yield from self._processes()

    def _daemon(self) -> Iterator[Metric]:
        reloads = CounterMetricFamily("bellwire_reloads", "Reloads of the configuration", labels=["result"])
        for result, count in self.reloads.items():
            reloads.add_metric([result], count)
        yield reloads
        about = "Whether the last start or reload could use all files"
        yield GaugeMetricFamily("bellwire_config_last_reload_successful", about, value=self.last_reload[1])
        about = "When the configuration was last read"
        yield GaugeMetricFamily("bellwire_config_last_reload_timestamp_seconds", about, value=self.last_reload[0])
        about = "When the configuration was last read, and all files could be used; 0 if never"
        yield GaugeMetricFamily("bellwire_config_last_reload_success_timestamp_seconds", about, value=self.last_success)
        about = "Lines of the daemon's log that were lost, because its reader was too slow"
        yield CounterMetricFamily("bellwire_log_lines_lost", about, value=self.lost)
        about = "The descriptors that the daemon may have open"
        yield GaugeMetricFamily("bellwire_max_fds", about, value=self.descriptors)

    def _devices(self) -> Iterator[Metric]:
        info = InfoMetricFamily("bellwire_device", "What it is", labels=["device"])
        states = StateSetMetricFamily("bellwire_device_state", "Its state", labels=["device"])
        up = GaugeMetricFamily("bellwire_up", "Whether the device accepts clients", labels=["device"])
        restarts = CounterMetricFamily("bellwire_restarts", "Restarts of its worker", labels=["device"])
        about = "Workers that have gone on with the client of another"
        taken = CounterMetricFamily("bellwire_hand_overs", about, labels=["device"])
        about = "How long the client had no worker at the last hand-over"
        pause = GaugeMetricFamily("bellwire_hand_over_pause_seconds", about, labels=["device"])
        for device in self.devices:
            version = "" if device.plugin else release()
            info.add_metric([device.name], {"kind": device.kind, "version": version, "plugin": device.plugin})
            states.add_metric([device.name], {state: state == device.state for state in STATES})
            up.add_metric([device.name], device.state == State.RUNNING)
            restarts.add_metric([device.name], device.restarts)
            taken.add_metric([device.name], device.hand_overs)
            pause.add_metric([device.name], device.pause)
        yield from (info, states, up, restarts, taken, pause)

    def _counters(self) -> Iterator[Metric]:
        known = [device for device in self.devices if device.numbers]
        rings = CounterMetricFamily("bellwire_rings", "Rings of doorbells", labels=["device", "mechanism"])
        for device in known:
            for key, count in device.numbers.items():
                if key.startswith(RINGS):
                    rings.add_metric([device.name, key.removeprefix(RINGS)], count)
        yield rings
        for names, kind in ((COUNTERS, CounterMetricFamily), (GAUGES, GaugeMetricFamily)):
            for key, (name, about) in names.items():
                family = kind(f"bellwire_{name}", about, labels=["device"])
                for device in known:
                    if key in device.numbers:
                        family.add_metric([device.name], device.numbers[key])
                if family.samples:
                    yield family

    def _io(self) -> Iterator[Metric]:
        labels = ["device", "direction"]
        operations = CounterMetricFamily("bellwire_io_operations", "Reads and writes, or packets", labels=labels)
        size = CounterMetricFamily("bellwire_io_bytes", "Bytes read and written, or in packets", labels=labels)
        about = "From the fetch of a command, a request or a packet to send, until it is done; for a batch as a whole"
        latency = HistogramMetricFamily("bellwire_io_latency_seconds", about, labels=["device"])
        for device in self.devices:
            if device.meter is None:
                continue
            for direction, (count, moved) in device.meter["totals"].items():
                operations.add_metric([device.name, direction], count)
                size.add_metric([device.name, direction], moved)
            sums = list(itertools.accumulate(device.meter["latency"]))
            ends = [str(2 ** (SHIFT + at) / 1e9) for at in range(len(sums) - 1)] + ["+Inf"]
            latency.add_metric([device.name], list(zip(ends, sums, strict=True)), device.meter["nanoseconds"] / 1e9)
        if operations.samples:
            yield from (operations, size, latency)

    def _processes(self) -> Iterator[Metric]:
        labels = ["process", "device"]
        cpu = CounterMetricFamily("bellwire_process_cpu_seconds", "CPU time, user and system", labels=labels)
        memory = GaugeMetricFamily("bellwire_process_resident_memory_bytes", "Resident memory (RSS)", labels=labels)
        fds = GaugeMetricFamily("bellwire_process_open_fds", "Open file descriptors", labels=labels)
        for role, device, pid in self.processes:
            used = process.usage(pid)
            if used is not None:
                cpu.add_metric([role, device], used.seconds)
                memory.add_metric([role, device], used.resident)
                fds.add_metric([role, device], used.descriptors)
        yield from (cpu, memory, fds)


async def snapshot(manager: Manager) -> Snapshot:
    """What is known now. Every running worker is asked for its counters."""
    units = list(manager.units.values())
    running = [unit for unit in units if unit.state is State.RUNNING]
    answers = await asyncio.gather(*(unit.ask("measures", PATIENCE) for unit in running), return_exceptions=True)
    pairs = zip(running, answers, strict=True)
    measured = {unit.name: answer for unit, answer in pairs if not isinstance(answer, BaseException)}
    devices = [_known(unit, measured.get(unit.name, {})) for unit in units]
    devices += [Known(name, "", "", str(State.FAILED), 0, 0, 0.0, 0) for name in manager.unusable]
    processes = [("manager", "", os.getpid()), ("fork-server", "", manager.spawner.pid)]
    processes += [("worker", device.name, device.pid) for device in devices]
    return Snapshot(
        devices=devices,
        processes=[each for each in processes if each[2]],
        reloads=dict(manager.reloads),
        last_reload=manager.last_reload,
        last_success=manager.last_success,
        lost=unblocked.lost(),
        descriptors=descriptors.limit(),
    )


@contextlib.asynccontextmanager
async def serving(manager: Manager) -> AsyncIterator[None]:
    """Answer scrapes for the length of the block, at the configured address."""

    async def make() -> tuple[str, bytes]:
        registry = CollectorRegistry()
        registry.register(await snapshot(manager))
        return CONTENT_TYPE_LATEST, await asyncio.to_thread(generate_latest, registry)

    async with listening(manager.settings.daemon) as sockets:
        scrapes = [Scrapes(sock, make) for sock in sockets]
        log.info("metrics at %s", manager.settings.daemon.metrics)
        try:
            yield
        finally:
            for each in scrapes:
                await each.close()


def _known(unit: Unit, measured: dict[str, Any]) -> Known:
    state = str(unit.state) if unit.settings.enabled or unit.state is not State.STOPPED else DISABLED
    plugin = next(iter(unit.files), "")
    over = unit.hand_overs
    known = Known(unit.name, unit.settings.device, plugin, state, unit.restarts, over.count, over.pause, unit.pid)
    known.numbers = measured.get("statistics", {})
    known.meter = measured.get("meter")
    return known
