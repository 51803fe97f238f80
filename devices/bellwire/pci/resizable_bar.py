"""Resizable BAR: the guest chooses how large a BAR is (§7.8.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, overload

from bellwire.declare.bar import Area, Bar
from bellwire.declare.capability import ExtendedCapability
from bellwire.declare.declared import is_power_of_two
from bellwire.declare.register import Register

if TYPE_CHECKING:
    from bellwire.declare.layout import Layout
    from bellwire.device import PciDevice
    from bellwire.model.capabilities import Template
    from bellwire.model.core import Core

_MIB = 20
"""The smallest size is 2 to this power, and has the code 0."""
_LARGEST = 16
"""The code of 64 GiB, the largest BAR. (From code 28 on, sizes would have their bits in the control register.)"""
_SIZE, _SIZE_MASK = 8, 0x3F00
_BARS = 5


class ResizableBars(ExtendedCapability):
    """``sizes = ResizableBars({frame: (1 << 20, 1 << 24)})``: BARs, and the sizes in bytes that each may have.

    The first size is what the BAR has after a reset. The BAR itself is declared with its largest size: registers
    and areas may lie beyond the guest's reach. On an instance it gives the present size of each BAR.
    """

    number = 0x15
    title = "resizable BAR"

    def __init__(self, sizes: Mapping[Bar, Sequence[int]]) -> None:
        super().__init__(4 + 8 * len(sizes))
        self.sizes = {bar: tuple(each) for bar, each in sizes.items()}
        self.controls: dict[Bar, Register[int]] = {}
        for number, (bar, choices) in enumerate(self.sizes.items()):
            codes = [_code(size) for size in choices if _possible(size)]
            able = sum(1 << 4 + code for code in codes)
            first = codes[0] if codes else 0
            count = len(self.sizes) << _BARS if number == 0 else 0
            self.own(f"capability{number}", 0x04 + 8 * number, reset=able)
            self.controls[bar] = self.own(
                f"control{number}",
                0x08 + 8 * number,
                access="rw",
                reset=bar.index & 7 | count & 0xE0 | first << _SIZE,
                writable=_SIZE_MASK,
            )
        self.handled = [("write", register) for register in self.controls.values()]

    def check(self, where: str) -> None:
        """Refuse sizes that are no power of two from 1 MiB on, or that do not go with the BAR's own."""
        if not 1 <= len(self.sizes) <= 6:
            self.refuse(where, f"1 to 6 BARs are resizable, not {len(self.sizes)}")
        for bar, choices in self.sizes.items():
            for size in choices:
                if not _possible(size):
                    self.refuse(where, f"a size is a power of two from 1 MiB to 64 GiB, not {size:#x}")
            if not choices or max(choices) != bar.size or len(set(choices)) < len(choices):
                self.refuse(
                    where, f"{bar.name} has {bar.size:#x} bytes: that is the largest size, and each is named once"
                )
            if bar.io:
                self.refuse(where, f"{bar.name} has I/O ports: only memory is resizable")

    def check_among(self, where: str, layout: Layout) -> None:
        """Refuse a BAR that the device does not have, and what must be in reach at every size."""
        super().check_among(where, layout)
        for bar, choices in self.sizes.items():
            plan = layout.bars.get(bar.index)
            if plan is None or plan.bar is not bar:
                self.refuse(where, f"its BAR {bar.name} is not declared in {where}")
            for item in plan.placed:
                if not isinstance(item, Register | Area) and item.offset + item.size > min(choices):
                    item.refuse(where, f"it lies beyond {min(choices):#x}, the smallest size of {bar.name}")

    def shape(self, space: Template) -> None:
        """Give the BARs the size that they have after a reset."""
        for bar, choices in self.sizes.items():
            space.size_bar(bar, choices[0])

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> ResizableBars: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> BarSizes: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> ResizableBars | BarSizes:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> BarSizes:
        """The present sizes."""
        return BarSizes(core, self)

    def follow(self, part: BarSizes) -> None:
        """Make the BARs as large as the registers say now."""
        part.follow()


class BarSizes:
    """The present sizes of the resizable BARs of one device: ``self.sizes[Device.frame]``, in bytes."""

    def __init__(self, core: Core, declared: ResizableBars) -> None:
        self._core = core
        self._declared = declared
        self._content = core.state.registers[declared]
        self._applied = {bar: bar.size for bar in declared.sizes}
        for register in declared.controls.values():
            core.tie("write", register, self._chosen)

    def __getitem__(self, bar: Bar) -> int:
        code = (self._declared.controls[bar].load(self._content) & _SIZE_MASK) >> _SIZE
        return 1 << _MIB + code

    def _chosen(self, _: int) -> None:
        """The guest has chosen a size."""
        self.follow()

    def follow(self) -> None:
        """Make each BAR as large as its control register says: after the guest's write, a reset or a restore.

        A size that the BAR cannot have leaves it as it was.
        """
        for bar, choices in self._declared.sizes.items():
            register = self._declared.controls[bar]
            if self[bar] not in choices:
                rest = register.load(self._content) & ~_SIZE_MASK
                register.store(self._content, rest | _code(self._applied[bar]) << _SIZE)
            if self[bar] != self._applied[bar]:
                self._applied[bar] = self[bar]
                self._core.resize(bar, self[bar])


def _possible(size: int) -> bool:
    return is_power_of_two(size) and _code(size) in range(_LARGEST + 1)


def _code(size: int) -> int:
    return size.bit_length() - 1 - _MIB
