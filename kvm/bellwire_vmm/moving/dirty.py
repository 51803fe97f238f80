"""Which pages of RAM have been written: by the guest, by devices, and by the VMM itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.errors import MigrationError
from bellwire_vmm.machine.memory import PAGE
from bellwire_vmm.vmm import Machine
from vfio_user import RemoteError, VfioUserError


class DirtyPages:
    """The writes to the RAM of ``machine`` from `begin` to `end`.

    A device whose server logs no writes may write anywhere: `unlogged` says so, and then all of RAM counts as written
    when the machine has stopped.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._logging: dict[ProxyDevice, int] = {}  # the page size that each device's server has chosen
        self.unlogged = False

    def begin(self) -> None:
        """Begin to log. Raises MigrationError for a device that does not answer."""
        self._machine.memory.log(True)
        self._machine.platform.slots.log(self._machine.ram_slot, True)
        for device in self._machine.devices:
            try:
                self._logging[device] = device.peer.client.dirty.start([(0, self._machine.memory.size)], PAGE)
            except RemoteError:
                self.unlogged = True
            except VfioUserError as error:
                raise MigrationError(f"slot {device.slot}: {error}") from None

    def collect(self) -> list[range]:
        """The runs of addresses that were written since the last call. Raises MigrationError as `begin` does."""
        machine = self._machine
        bits = int.from_bytes(machine.platform.slots.written(machine.ram_slot), "little")
        for device, size in self._logging.items():
            try:
                bits |= in_pages(device.peer.client.dirty.report(0, machine.memory.size, size), size)
            except VfioUserError as error:
                raise MigrationError(f"slot {device.slot}: {error}") from None
        for page in machine.memory.written():
            bits |= 1 << page
        return list(runs(bits & (1 << machine.memory.size // PAGE) - 1))

    def everything(self) -> list[range]:
        """All of RAM that was ever used."""
        return list(self._machine.memory.stretches())

    def end(self) -> None:
        """Log nothing more."""
        self._machine.memory.log(False)
        self._machine.platform.slots.log(self._machine.ram_slot, False)
        for device in self._logging:
            with contextlib.suppress(VfioUserError):
                device.peer.client.dirty.stop()
        self._logging.clear()


def in_pages(bitmap: bytes, size: int) -> int:
    """A bitmap of pages of ``size`` bytes as one of pages of PAGE bytes."""
    bits = int.from_bytes(bitmap, "little")
    if size == PAGE:
        return bits
    found = 0
    for run in runs(bits):  # in units that are right for PAGE
        start, count = run.start // PAGE * size, len(run) // PAGE * size
        first, last = start // PAGE, -(-(start + count) // PAGE)
        found |= (1 << last) - (1 << first)
    return found


def runs(bits: int) -> Iterator[range]:
    """The runs of ones in a bitmap of pages, as addresses."""
    text = bits.to_bytes(-(-bits.bit_length() // 8), "little")
    start: int | None = None
    for at, byte in enumerate(text):
        if byte == (0xFF if start is not None else 0):
            continue
        for bit in range(8):
            page = at * 8 + bit
            if byte >> bit & 1:
                start = page if start is None else start
            elif start is not None:
                yield range(start * PAGE, page * PAGE)
                start = None
    if start is not None:
        yield range(start * PAGE, len(text) * 8 * PAGE)
