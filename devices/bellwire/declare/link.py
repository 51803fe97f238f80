"""The PCI Express link and port type: what the PCI Express capability says of them (PCIe 6.0 §7.5.3)."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, overload

from bellwire.declare.declared import Declared

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

SPEEDS = (2.5, 5.0, 8.0, 16.0, 32.0, 64.0)
"""GT/s, in the order of their codes, which begin with 1."""
WIDTHS = (1, 2, 4, 8, 12, 16, 32)
STATUS = 0x12
"""Where Link Status lies, from the start of the PCI Express capability."""
_WIDTH, _SLOT_CLOCK, _PORT_NUMBER = 4, 12, 24
TRAINED = 0x03FF
"""The speed and the width in Link Status."""


class PortType(IntEnum):
    """What kind of PCI Express function a device is (§7.5.3.2): those that have a type 0 header."""

    ENDPOINT = 0
    LEGACY = 1
    INTEGRATED = 9
    """A root complex integrated endpoint, which has no link."""


class Link(Declared):
    """``link = Link(speed=16, width=8)``: the fastest speed, in GT/s, and the widest width, in lanes.

    ``port`` is the kind of function. ``slot_clock`` says that the device uses the slot's clock. After power-on the
    link runs at its best. On an instance it is a :class:`LinkControl`.
    """

    def __init__(
        self,
        speed: float = SPEEDS[0],
        width: int = 1,
        *,
        port: PortType = PortType.ENDPOINT,
        slot_clock: bool = False,
    ) -> None:
        self.speed, self.width, self.port = speed, width, port
        self.slot_clock = slot_clock

    def check(self, where: str) -> None:
        """Refuse a speed, a width or a port type that the capability cannot express for an endpoint."""
        if self.speed not in SPEEDS:
            self.refuse(
                where, f"the speed is one of {', '.join(f'{each:g}' for each in SPEEDS)} GT/s, not {self.speed}"
            )
        if self.width not in WIDTHS:
            self.refuse(where, f"the width is one of {', '.join(map(str, WIDTHS))} lanes, not {self.width}")
        if self.port not in PortType.__members__.values():
            self.refuse(where, f"port is a PortType, not {self.port!r}")

    @property
    def capabilities(self) -> int:
        """Link Capabilities (§7.5.3.6): the best speed and width."""
        return self._code(self.speed) | self.width << _WIDTH if self.has_link else 0

    @property
    def status(self) -> int:
        """Link Status (§7.5.3.8) after power-on."""
        return self.capabilities | self.slot_clock << _SLOT_CLOCK if self.has_link else 0

    @property
    def speeds(self) -> int:
        """Link Capabilities 2 (§7.5.3.18): a bit for each speed."""
        return (1 << self._code(self.speed) + 1) - 2 if self.has_link else 0

    @property
    def target(self) -> int:
        """Link Control 2 (§7.5.3.19) after power-on: the best speed."""
        return self._code(self.speed) if self.has_link else 0

    @property
    def has_link(self) -> bool:
        """Whether there is a link: an integrated endpoint has none."""
        return self.port is not PortType.INTEGRATED

    @staticmethod
    def _code(speed: float) -> int:
        return SPEEDS.index(speed) + 1 if speed in SPEEDS else 1

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Link: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> LinkControl: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Link | LinkControl:
        return self if device is None else LinkControl(device.core, self)


class LinkControl:
    """The link of one device: how it has trained."""

    __slots__ = ("_core", "_declared")

    def __init__(self, core: Core, declared: Link) -> None:
        self._core = core
        self._declared = declared

    @property
    def speed(self) -> float:
        """The speed at which the link runs, in GT/s; 0 without a link."""
        code = self._core.config.link_status & 0xF
        return SPEEDS[code - 1] if 1 <= code <= len(SPEEDS) else 0.0

    @property
    def width(self) -> int:
        """The lanes that the link uses; 0 without a link."""
        return self._core.config.link_status >> _WIDTH & 0x3F

    def train(self, speed: float, width: int) -> None:
        """Let the link run at ``speed`` and ``width``, as after a bad cable: the guest sees them in Link Status.

        The link stays so until it is trained again, also over a reset. A ValueError beyond what the link can do.
        """
        declared = self._declared
        if speed not in SPEEDS or speed > declared.speed or not declared.has_link:
            raise ValueError(f"{declared} cannot run at {speed} GT/s: its best is {declared.speed}")
        if width not in WIDTHS or width > declared.width:
            raise ValueError(f"{declared} cannot run with {width} lanes: it has {declared.width}")
        rest = self._core.config.link_status & ~TRAINED
        self._core.config.link_status = rest | SPEEDS.index(speed) + 1 | width << _WIDTH
