"""Config space at run time: a guest's reads and masked writes, and the effects of these writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Flag, auto

from bellwire.declare.bar import Bar
from bellwire.declare.link import STATUS as LINK_STATUS
from bellwire.declare.power import CONTROL, STATE
from bellwire.declare.vendor import VendorCapability
from bellwire.model import capabilities as pci
from bellwire.model.capabilities import Template


class Effect(Flag):
    """What a write to config space makes the rest of the device do."""

    NONE = 0
    RESET = auto()
    UNMASKED = auto()
    LEVEL = auto()
    POWER = auto()


class ConfigSpace:
    """The config space of one device. ``content`` holds its bytes: a slice of the state file."""

    def __init__(self, space: Template, content: memoryview, react: Callable[[Effect], None]) -> None:
        self._space = space
        self._content = content
        self._react = react
        self._power = space.at[pci.POWER_MANAGEMENT] + CONTROL
        self._keeps = int.from_bytes(space.sticky, "little")
        self.size = len(content)
        self.bus_master = False
        self.intx_enabled = True
        self.msi_enabled = self.msix_enabled = False  # MSI Enable (PCI 3.0 §6.8.1.3), MSI-X Enable (§6.8.2.3)
        self.msix_function_masked = False

    def power_on(self) -> None:
        """Give every field its value after power-on: BARs have no address, decoding and bus mastering are off."""
        self._content[:] = self._space.content
        self.refresh()

    def reset(self) -> None:
        """Give every field its value after power-on, except sticky ones: those keep theirs (PCIe 6.0 §7.4)."""
        if self._keeps:
            kept = int.from_bytes(self._content, "little") & self._keeps
            fresh = int.from_bytes(self._space.content, "little") & ~self._keeps
            self._content[:] = (kept | fresh).to_bytes(self.size, "little")
            self.refresh()
        else:
            self.power_on()

    def refresh(self) -> None:
        """Read the flags that hot paths use from the bytes again: after a reset, a write or a restore."""
        command = self.field(pci.COMMAND)
        self.bus_master = bool(command & pci.BUS_MASTER)
        control = self._capability_control(pci.MSIX)
        self.msi_enabled = bool(self._capability_control(pci.MSI) & 1)
        self.msix_enabled = bool(control & 0x8000)
        self.intx_enabled = not command & pci.INTX_DISABLE and not (self.msi_enabled or self.msix_enabled)
        self.msix_function_masked = bool(control & 0x4000)

    @property
    def at(self) -> Mapping[int, int]:
        """The offset of each capability, by its number."""
        return self._space.at

    @property
    def vendor(self) -> Mapping[VendorCapability, int]:
        """The offset of the body of each vendor-specific capability."""
        return self._space.vendor

    def field(self, offset: int, size: int = 2) -> int:
        """The little-endian field of ``size`` bytes at ``offset``."""
        return int.from_bytes(self._content[offset : offset + size], "little")

    @property
    def interrupt_status(self) -> bool:
        """Interrupt Status: the INTx level that the device drives, even if the guest has disabled INTx."""
        return bool(self._content[pci.STATUS] & pci.STATUS_INTERRUPT)

    @interrupt_status.setter
    def interrupt_status(self, asserted: bool) -> None:
        status = self._content[pci.STATUS] & ~pci.STATUS_INTERRUPT
        self._content[pci.STATUS] = status | (pci.STATUS_INTERRUPT if asserted else 0)

    @property
    def power_control(self) -> int:
        """Power Management Control/Status (PM 1.2 §3.2.4)."""
        return self.field(self._power)

    @power_control.setter
    def power_control(self, value: int) -> None:
        self._store(self._power, value)

    @property
    def link_status(self) -> int:
        """Link Status of the PCI Express capability (PCIe 6.0 §7.5.3.8)."""
        return self.field(self._space.at[pci.EXPRESS] + LINK_STATUS)

    @link_status.setter
    def link_status(self, value: int) -> None:
        self._store(self._space.at[pci.EXPRESS] + LINK_STATUS, value)

    @property
    def errors_detected(self) -> int:
        """What Device Status says of errors (PCIe 6.0 §7.5.3.5): correctable, non-fatal, fatal, unsupported request."""
        return self.field(self._space.at[pci.EXPRESS] + pci.DEVICE_STATUS)

    @errors_detected.setter
    def errors_detected(self, bits: int) -> None:
        self._store(self._space.at[pci.EXPRESS] + pci.DEVICE_STATUS, bits)

    @property
    def error_messages(self) -> int:
        """The messages that Device Control enables (PCIe 6.0 §7.5.3.4): the same bits, in the same order."""
        return self.field(self._space.at[pci.EXPRESS] + pci.DEVICE_CONTROL) & pci.ERRORS_DETECTED

    @property
    def system_errors(self) -> bool:
        """SERR# Enable: messages of uncorrectable errors go out even if Device Control does not enable them."""
        return bool(self.field(pci.COMMAND) & pci.SYSTEM_ERRORS)

    def tell_fatal(self) -> None:
        """Say in the status registers that the device has had a fatal error of its own."""
        self._store(pci.STATUS, self.field(pci.STATUS) | pci.SIGNALED_SYSTEM_ERROR)
        if pci.EXPRESS in self._space.at:
            self.errors_detected |= pci.FATAL_ERROR_DETECTED

    def _store(self, offset: int, value: int) -> None:
        self._content[offset : offset + 2] = value.to_bytes(2, "little")

    def resize(self, bar: Bar, size: int) -> None:
        """Let a BAR say another size. Address bits below the size become zero."""
        width = bar.bits // 8
        at = pci.BAR0 + 4 * bar.index
        address = self.field(at, width)
        self._space.size_bar(bar, size)
        mask = int.from_bytes(self._space.writable[at : at + width], "little")
        kind = int.from_bytes(self._space.content[at : at + width], "little")
        self._content[at : at + width] = (address & mask | kind).to_bytes(width, "little")

    def read(self, offset: int, size: int) -> bytes:
        """A guest's read of ``size`` bytes. The caller has checked the bounds."""
        return bytes(self._content[offset : offset + size])

    def write(self, offset: int, data: memoryview) -> None:
        """A guest's write. It stores writable bits, and clears others by ones. The caller has checked the bounds."""
        before = (self.bus_master, self.msix_function_masked, self.intx_enabled, self.msix_enabled)
        content, writable, power = self._content, self._space.writable, self._power
        clears = self._space.clears
        state = content[power] & STATE
        for position, value in enumerate(data, offset):
            mask = writable[position]
            if mask:
                content[position] = content[position] & ~mask | value & mask
            if clears[position]:
                content[position] &= ~(value & clears[position])
        if content[power] & STATE not in self._space.power_states:  # a write of it changes nothing (PM 1.2 §3.2.4)
            content[power] = content[power] & ~STATE | state
        self.refresh()
        woken = state == 3 and not content[power] & (3 | pci.NO_SOFT_RESET)  # from D3hot to D0
        effect = Effect.RESET if woken or self._asks_for_reset(offset, data) else Effect.NONE
        unmasked = before[1] and not self.msix_function_masked
        if (self.bus_master and not before[0]) or unmasked or (self.msix_enabled and not before[3]):
            effect |= Effect.UNMASKED
        if self.intx_enabled != before[2]:
            effect |= Effect.LEVEL
        if content[power] & STATE != state:
            effect |= Effect.POWER
        if effect:
            self._react(effect)

    def _asks_for_reset(self, offset: int, data: memoryview) -> bool:
        """Whether the write sets Initiate Function Level Reset (PCIe 4.0 §7.5.3.4). The bit always reads as zero."""
        express = self._space.at.get(pci.EXPRESS)
        if express is None:
            return False
        byte = express + 9 - offset  # the upper byte of Device Control
        return 0 <= byte < len(data) and bool(data[byte] << 8 & pci.FUNCTION_LEVEL_RESET)

    def _capability_control(self, number: int) -> int:
        at = self._space.at.get(number)
        return 0 if at is None else self.field(at + 2)
