"""ATS and PASID: the device asks for translated addresses, and names address spaces (§10.5.1, §7.8.9).

Both are declared only: a guest's driver or its IOMMU driver finds them and turns them on. The vfio-user protocol has no
message for a translation request, so DMA of the device goes on as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from bellwire.declare.capability import ExtendedCapability

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

_DEEPEST, _WIDEST = 32, 20
_PAGE_ALIGNED = 1 << 5
_ATS_ENABLE, _ATS_UNIT = 1 << 15, 0x1F
_PASID_ENABLE, _EXECUTE, _PRIVILEGED = 1 << 0, 1 << 1, 1 << 2


class Ats(ExtendedCapability):
    """``ats = Ats(queue_depth=32)``: address translation services.

    ``queue_depth`` is the number of invalidate requests that the device takes at once, 1 to 32. With ``page_aligned``
    the untranslated addresses in its requests are multiples of 4096.
    """

    number = 0x0F
    title = "ATS"

    def __init__(self, queue_depth: int = _DEEPEST, *, page_aligned: bool = True) -> None:
        super().__init__(8)
        self.queue_depth = queue_depth
        able = queue_depth % _DEEPEST | (_PAGE_ALIGNED if page_aligned else 0)  # a depth of 32 is written as 0
        self.able = self.own("capability", 0x04, size=2, reset=able)
        self.control = self.own("control", 0x06, size=2, access="rw", writable=_ATS_ENABLE | _ATS_UNIT)

    def check(self, where: str) -> None:
        """Refuse a depth that the capability cannot express."""
        if not 1 <= self.queue_depth <= _DEEPEST:
            self.refuse(where, f"the queue depth is 1 to {_DEEPEST}, not {self.queue_depth}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Ats: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> AtsState: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Ats | AtsState:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> AtsState:
        """What the guest has set."""
        return AtsState(self, core.state.registers[self])


class AtsState:
    """What the guest has set in the ATS capability."""

    def __init__(self, declared: Ats, content: memoryview) -> None:
        self._control = declared.control
        self._content = content

    @property
    def enabled(self) -> bool:
        """Whether the guest has turned ATS on."""
        return bool(self._control.load(self._content) & _ATS_ENABLE)

    @property
    def smallest_unit(self) -> int:
        """The smallest translation unit that the guest has set, in bytes."""
        return 4096 << (self._control.load(self._content) & _ATS_UNIT)


class Pasid(ExtendedCapability):
    """``pasid = Pasid(bits=20)``: process address space IDs of 1 to 20 bits.

    ``execute`` and ``privileged`` say whether the device can ask for these permissions.
    """

    number = 0x1B
    title = "PASID"

    def __init__(self, bits: int = _WIDEST, *, execute: bool = False, privileged: bool = False) -> None:
        super().__init__(8)
        self.bits = bits
        permissions = (_EXECUTE if execute else 0) | (_PRIVILEGED if privileged else 0)
        self.able = self.own("capability", 0x04, size=2, reset=permissions | (bits & 0x1F) << 8)
        self.control = self.own("control", 0x06, size=2, access="rw", writable=_PASID_ENABLE | permissions)

    def check(self, where: str) -> None:
        """Refuse a width that the capability cannot express."""
        if not 1 <= self.bits <= _WIDEST:
            self.refuse(where, f"a PASID has 1 to {_WIDEST} bits, not {self.bits}")

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Pasid: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> PasidState: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Pasid | PasidState:
        return self if device is None else device.core.part(self)

    def part(self, core: Core) -> PasidState:
        """What the guest has set."""
        return PasidState(self, core.state.registers[self])


class PasidState:
    """What the guest has set in the PASID capability."""

    def __init__(self, declared: Pasid, content: memoryview) -> None:
        self._control = declared.control
        self._content = content

    @property
    def enabled(self) -> bool:
        """Whether the guest has turned PASIDs on."""
        return bool(self._control.load(self._content) & _PASID_ENABLE)

    @property
    def execute(self) -> bool:
        """Whether requests may ask for permission to execute."""
        return bool(self._control.load(self._content) & _EXECUTE)

    @property
    def privileged(self) -> bool:
        """Whether requests may be in privileged mode."""
        return bool(self._control.load(self._content) & _PRIVILEGED)
