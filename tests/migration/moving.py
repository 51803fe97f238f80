"""A machine with one device in a worker of its own, whose client can move both to another worker and other memory."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

from bellwire import PciDevice
from bellwire.testing import Serving, serve
from vfio_user import Client, DeviceState, IrqIndex
from vfio_user.mapping import Mapping
from virtio.driver import PAGE, Driver
from virtio.rings import Queue

Found = TypeVar("Found")
PATIENCE = 30.0
COMMAND, MEMORY_AND_MASTER = 0x04, 0x06


class Machine:
    """Serves ``kind`` with ``options``, and has ``size`` bytes of memory at address 0 and all vectors of MSI-X.

    Drivers take it for a :class:`bellwire.testing.Guest`: it has what they use of one.
    """

    def __init__(self, kind: type[PciDevice], *, size: int = 1 << 20, **options: Any) -> None:
        self.kind = kind
        self.size = size
        self.options = options
        self._stack = contextlib.ExitStack()
        self.serving: Serving[PciDevice]
        self.client: Client
        self.memory: memoryview
        self._connect(options)
        if self.client.migration.state is DeviceState.RUNNING:
            self.config_write(COMMAND, MEMORY_AND_MASTER, 2)

    def _connect(self, options: dict[str, Any]) -> None:
        stack = contextlib.ExitStack()
        self._stack.push(stack)
        self.serving = stack.enter_context(serve(self.kind, **options))
        self.client = stack.enter_context(Client.connect(self.serving.path))
        fd = os.memfd_create("guest")
        stack.callback(os.close, fd)
        os.ftruncate(fd, self.size)
        self.memory = Mapping(fd, 0, self.size, write=True).view()
        self.client.dma_map(0, self.size, fd)
        count = self.client.irq_info(IrqIndex.MSIX).count
        self.vectors = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        for each in self.vectors:
            stack.callback(os.close, each)
        self.client.trigger_eventfds(IrqIndex.MSIX, 0, self.vectors)
        if self.kind.layout.msix is not None and self.client.migration.state is DeviceState.RUNNING:
            at = next(at for at in self._capabilities() if self.config_read(at, 1) == 0x11)
            self.config_write(at + 2, self.config_read(at + 2, 2) | 0x8000, 2)

    def _capabilities(self) -> list[int]:
        found, at = [], self.config_read(0x34, 1)
        while at:
            found.append(at)
            at = self.config_read(at + 1, 1)
        return found

    # -- what drivers use

    def read(self, index: int, offset: int, size: int) -> int:
        return int.from_bytes(self.client.read(index, offset, size), "little")

    def write(self, index: int, value: int, *, offset: int, size: int) -> None:
        self.client.write(index, offset, value.to_bytes(size, "little"))

    def config_read(self, offset: int, size: int) -> int:
        return self.read(7, offset, size)

    def config_write(self, offset: int, value: int, size: int) -> None:
        self.write(7, value, offset=offset, size=size)

    def wait(self, condition: Callable[[], object]) -> None:
        """Until the device has come so far."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the device does not come so far"
            self.config_read(0, 4)  # a reply flushes rings, and the worker gets the processor

    def collect(self, some: Callable[[], Iterable[Found]], count: int) -> list[Found]:
        """What ``some`` gives, until it has given ``count``."""
        found: list[Found] = []

        def enough() -> bool:
            found.extend(some())
            return len(found) >= count

        self.wait(enough)
        return found

    # -- moving

    def save(self, *, pre_copy: bool = False) -> bytes:
        """The state of the device, which stands still from then on."""
        migration, parts = self.client.migration, list[bytes]()
        for state in (DeviceState.PRE_COPY, DeviceState.STOP_COPY)[not pre_copy :]:
            migration.set_state(state)
            parts += iter(lambda: migration.read(1 << 16), b"")
        return b"".join(parts)

    def move(self, changed: Callable[[], dict[str, Any]] = dict, *, pre_copy: bool = False) -> None:
        """To another worker and other memory. The one before stands still. ``changed`` gives options, once it does."""
        state, memory = self.save(pre_copy=pre_copy), self.memory
        self.options |= changed()
        self.load(state, memory)

    def load(self, state: bytes, memory: memoryview | bytes) -> None:
        """Go on with this state in another worker."""
        self._connect(self.options)
        self.memory[:] = memory
        self.client.migration.set_state(DeviceState.RESUMING)
        self.client.migration.write(state)
        self.client.migration.set_state(DeviceState.RUNNING)

    def written(self, before: bytes) -> list[int]:
        """The pages that differ from those of ``before``."""
        return [at // PAGE for at in range(0, self.size, PAGE) if self.memory[at : at + PAGE] != before[at : at + PAGE]]

    def dirty(self) -> list[int]:
        """The pages that the log has."""
        bitmap = int.from_bytes(self.client.dirty.report(0, self.size, PAGE), "little")
        return [page for page in range(self.size // PAGE) if bitmap >> page & 1]

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MovingDriver(Driver):
    """A virtio driver whose device is in a worker."""

    def __init__(self, machine: Machine) -> None:
        self.guest: Any = machine
        self.machine = machine
        self.memory = machine.memory
        self.places = dict(self._find())
        self.multiplier = machine.config_read(self.places[2].capability + 16, 4)
        self.queues: dict[int, Queue] = {}
        self._free = PAGE

    def follow(self) -> None:
        """The machine has moved."""
        self.memory = self.machine.memory
        for queue in self.queues.values():
            queue.memory = self.memory


class NvmeMachine:
    """What the driver of an nvme controller uses of a machine."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory

    def read(self, offset: int, size: int) -> int:
        return self.machine.read(0, offset, size)

    def write(self, offset: int, value: int, size: int) -> None:
        self.machine.write(0, value, offset=offset, size=size)

    def step(self) -> None:
        self.machine.config_read(0, 4)
