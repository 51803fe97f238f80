"""A vfio-user device in a slot of the machine: it passes on the guest's accesses and the device's interrupts."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack

from bellwire_vmm.device import capabilities
from bellwire_vmm.device.bar_target import BarTarget
from bellwire_vmm.device.bars import Bar
from bellwire_vmm.device.capabilities import Msi
from bellwire_vmm.device.description import describe
from bellwire_vmm.device.dma import DmaMemory, DmaThread
from bellwire_vmm.device.interrupts import Interrupts
from bellwire_vmm.device.peer import Peer
from bellwire_vmm.device.registrations import Registrations, Route, Standing
from bellwire_vmm.device.rom import Rom, RomTarget
from bellwire_vmm.device.setup import Setup
from bellwire_vmm.device.zones import Zones
from bellwire_vmm.errors import AddressConflictError, StateError
from bellwire_vmm.machine.platform import Platform
from vfio_user import Client, RegionIndex

_COMMAND, _ROM, _LINE = 0x04, range(0x30, 0x34), 0x3C
_DECODE_PORTS, _DECODE_MEMORY = 1, 2
_FOLLOWED = capabilities.MSI, capabilities.MSIX, capabilities.EXPRESS
_FUNCTION_RESET = 0x80  # in the upper byte of Device Control (PCI Express 4.0 §7.5.3.4)

_log = logging.getLogger(__name__)


class ProxyDevice:
    """The device behind ``client``, as the function of ``slot``. `Machine.plug` makes it and owns it.

    The VMM keeps the BARs, the interrupt line register and the MSI-X table. The device keeps the rest of config space.
    ``coalesced`` are the zones whose writes may wait: (BAR, offset, size). Raises DeviceRefusedError for a device that
    cannot be shown to a guest, ZoneRefusedError for a zone, and the errors of the client.
    """

    def __init__(
        self,
        platform: Platform,
        client: Client,
        slot: int,
        *,
        share_memory: bool = True,
        coalesced: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        self.slot = slot
        self.peer = Peer(client, platform.lock)
        self._platform = platform
        self._placed: dict[int, int] = {}  # BAR index -> the address where it is mapped
        self._homes: dict[int, int] = {}  # BAR index -> the address where it was placed first
        self._decoding = 0
        self._line = 0
        with ExitStack() as stack:
            stack.callback(client.close)
            about = describe(client, platform.slots)
            self.vendor, self.device = about.vendor, about.device
            self.identity = about.identity
            self._resettable = about.resettable
            self._capabilities = about.capabilities
            self._bars = about.bars
            self._areas = about.areas
            stack.callback(self._close_areas)
            self._registrations = Registrations(
                platform.vm, [(about.bars[at], found) for at, found in about.regions.items()]
            )
            stack.callback(self._registrations.close)
            self._zones = Zones(platform.coalescing, about, client, coalesced)
            client.memory = DmaMemory(platform.memory)
            client.dma_map(0, platform.memory.size, fd=platform.memory.share() if share_memory else None)
            if not share_memory:
                stack.callback(DmaThread(self.peer).close)
            self._interrupts = Interrupts(platform, client, slot, about.pin, about.msix)
            stack.callback(lambda: self._interrupts.close(tell=not self.peer.lost))
            self._targets = {index: self._target(bar) for index, bar in about.bars.items()}
            stack.callback(self._leave_addresses)
            self._find_places()
            self._place()
            self._stack = stack.pop_all()

    def routes(self) -> list[Route]:
        """How a write to each sub-region reaches the device."""
        return self._registrations.routes()

    def standings(self) -> list[Standing]:
        """How a write to each sub-region reaches the device, and how many accesses to it have exited."""
        return self._registrations.standings()

    @property
    def accesses(self) -> tuple[int, int]:
        """The numbers of reads and of writes of all BARs that have exited to the VMM."""
        targets = self._targets.values()
        return sum(target.reads for target in targets), sum(target.writes for target in targets)

    def reset(self) -> None:
        """Reset the device, as the machine's reset line would, and place its BARs where they were at first."""
        with self._platform.lock, self.peer.tolerant():
            self._leave_bus()
            if self._resettable:
                self.peer.client.reset()
            self._interrupts.reset()  # only now: libvfio-user forgets the eventfds of interrupts at a reset
            self._place()

    def settle(self) -> None:
        """Wait until all interrupts that the device has sent are with KVM. The device has stopped."""
        self._interrupts.settle()

    def ask_again(self) -> None:
        """Have a device that asserts its interrupt pin raise it again: it runs, in a machine that has moved."""
        self._interrupts.ask_again()

    # What moves with the machine (part.Part)

    def state(self) -> bytes:
        """What the VMM keeps of the guest's set-up of this device: BARs, interrupt line and MSI-X table, as `Setup`."""
        with self._platform.lock:
            rom = self._bars.get(RegionIndex.ROM)
            table = self._interrupts.table
            return Setup(
                {str(bar.index): bar.address for bar in self._bars.values()},
                isinstance(rom, Rom) and rom.enabled,
                self._decoding,
                self._line,
                table.content.hex() if table else "",
                self._interrupts.pending,
            ).pack()

    def set_state(self, state: bytes) -> None:
        """Set up the device as `state` says. It has got its own state before, and has not been started."""
        setup = Setup.unpack(state, self._bars.values())
        with self._platform.lock:
            self._leave_bus()
            for bar in self._bars.values():
                bar.address = setup.bars[str(bar.index)]
                if isinstance(bar, Rom):
                    bar.enabled = setup.rom
            self._decoding, self._line = setup.decoding, setup.line
            self._remap()
            self._interrupts.reset()
            if self._interrupts.table is not None:
                self._interrupts.table.restore(bytes.fromhex(setup.table))
            self._follow_interrupts()
            if any(number >= self._interrupts.connected for number in setup.pending):
                raise StateError(f"slot {self.slot}: vectors {setup.pending} are pending, and not all are connected")
            self._interrupts.pend(setup.pending)

    def close(self) -> None:
        """Remove all registrations, and close the connection."""
        with self._platform.lock, self.peer.tolerant():
            self._stack.close()

    # Config space (pci.Function)

    def config_read(self, offset: int, size: int) -> bytes:
        """The guest's read of config space: the device's bytes, with the registers that the VMM keeps put over them."""
        data = bytearray(self.peer.read(RegionIndex.CONFIG, offset, size))
        if self.peer.lost:
            return bytes(data)
        for bar in self._bars.values():
            if bar.register.start < offset + size and offset < bar.register.stop:
                content = bar.content()
                for at in range(max(offset, bar.register.start), min(offset + size, bar.register.stop)):
                    data[at - offset] = content[at - bar.register.start]
        for at in range(offset, offset + size):
            if at == _LINE:
                data[at - offset] = self._line
            elif at in _ROM and RegionIndex.ROM not in self._bars:
                data[at - offset] = 0
        return bytes(data)

    def config_write(self, offset: int, data: bytes) -> None:
        """The guest's write to config space: send it to the device, then apply its effects on what the VMM keeps."""
        with self._platform.lock, self.peer.tolerant():
            self.peer.write(RegionIndex.CONFIG, offset, data)
            self._follow(range(offset, offset + len(data)), data)

    def _follow(self, written: range, data: bytes) -> None:
        for bar in self._bars.values():
            for at in written:
                if at in bar.register:
                    bar.write(at, data[at - written.start])
        if _LINE in written:
            self._line = data[_LINE - written.start]
        if _overlap(written, range(_COMMAND, _COMMAND + 2)):
            command = self.peer.read(RegionIndex.CONFIG, _COMMAND, 2)
            self._decoding = 0 if self.peer.lost else command[0]
        self._remap()
        msi, msix, express = map(self._capabilities.get, _FOLLOWED)
        if msi is not None and _overlap(written, range(msi + 2, msi + 24)):
            size = Msi.size(int.from_bytes(self.peer.read(RegionIndex.CONFIG, msi + 2, 2), "little"))
            self._interrupts.msi_changed(Msi.unpack(self.peer.read(RegionIndex.CONFIG, msi, size)))
        if msix is not None and _overlap(written, range(msix + 2, msix + 4)):
            control = self.peer.read(RegionIndex.CONFIG, msix + 2, 2)
            self._interrupts.msix_changed(int.from_bytes(control, "little"))
        if express is not None and express + 9 in written and data[express + 9 - written.start] & _FUNCTION_RESET:
            self._forget()

    def _follow_interrupts(self) -> None:
        """Connect the interrupts that config space says, after the device has got another state."""
        msi, msix = self._capabilities.get(capabilities.MSI), self._capabilities.get(capabilities.MSIX)
        for at, size in ((msi, 24), (msix, 4)):
            if at is not None:
                self._follow(range(at + 2, at + size), bytes(size - 2))

    # Addresses

    def _target(self, bar: Bar) -> BarTarget | RomTarget:
        if isinstance(bar, Rom):
            return RomTarget(self.peer)
        # A direct store to a mapped area would overtake a posted message, so a device with areas gets no posted writes.
        # PCI does not post writes to I/O ports.
        posted = not bar.ports and not any(self._areas.values())
        relayed = self._registrations.relayed.get(bar.index, ())
        counts = self._registrations.counts.get(bar.index, {})
        shadows = self._registrations.shadows.get(bar.index, {})
        return BarTarget(self.peer, bar, relayed, counts, shadows, self._interrupts.table, posted=posted)

    def _find_places(self) -> None:
        for bar in self._bars.values():
            self._homes[bar.index] = self._platform.window(bar).take(bar.size)

    def _place(self) -> None:
        """Do what firmware does before a guest starts: place BARs, enable decoding, set the interrupt line register."""
        for bar in self._bars.values():
            address = self._homes[bar.index].to_bytes(8, "little")
            for at in range(0, len(bar.register), 4):
                self.config_write(bar.register.start + at, address[at : at + 4])
        pin = self._interrupts.pin
        self.config_write(_LINE, bytes([pin.gsi if pin else 0xFF]))
        self.config_write(_COMMAND, bytes([_DECODE_PORTS | _DECODE_MEMORY, 0]))

    def _remap(self) -> None:
        """Map each BAR where the guest has put it, or nowhere if it does not decode."""
        wanted = {bar.index: bar.address for bar in self._bars.values() if self._answers(bar)}
        for index, address in list(self._placed.items()):
            if wanted.get(index) != address:
                self._unmap(self._bars[index])
        for index, address in wanted.items():
            if index not in self._placed:
                self._map(self._bars[index], address)

    def _answers(self, bar: Bar) -> bool:
        enabled = self._decoding & (_DECODE_PORTS if bar.ports else _DECODE_MEMORY)
        return bool(enabled) and bar.decodable(self._platform.memory.size)

    def _map(self, bar: Bar, address: int) -> None:
        try:
            self._platform.space(bar).add(address, bar.size, self._targets[bar.index])
        except AddressConflictError as error:
            _log.warning("slot %d: BAR%d cannot answer: %s", self.slot, bar.index, error)
            return
        self._placed[bar.index] = address
        for area in self._areas.get(bar.index, ()):
            area.attach(address)
        target = self._targets[bar.index]
        if isinstance(target, BarTarget):
            self._registrations.attach(bar)
            self._zones.attach(bar, target)

    def _unmap(self, bar: Bar) -> None:
        self._zones.detach(bar)
        self._registrations.detach(bar)
        for area in self._areas.get(bar.index, ()):
            area.detach()
        self._platform.space(bar).remove(self._targets[bar.index])
        del self._placed[bar.index]

    def _forget(self) -> None:
        """Forget the guest's set-up, after a reset of the function: no decoding, no BARs, no message interrupts."""
        self._leave_bus()
        with self.peer.tolerant():
            self._interrupts.reset()

    def _leave_bus(self) -> None:
        """Unmap all BARs, and forget their addresses."""
        self._decoding = 0
        for bar in self._bars.values():
            bar.forget()
        self._remap()

    def _leave_addresses(self) -> None:
        self._decoding = 0
        self._remap()
        for bar in self._bars.values():
            if bar.index in self._homes:
                self._platform.window(bar).give_back(self._homes.pop(bar.index))

    def _close_areas(self) -> None:
        for areas in self._areas.values():
            for area in areas:
                area.close()


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
