"""Power management: the D-states that a device has, and its wake-up events (PCI Power Management 1.2 §3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, overload

from bellwire.declare.declared import Declared
from bellwire.declare.hooks import mark

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.model.core import Core

Hook = TypeVar("Hook", bound=Callable[[Any, Any], None])

CONTROL = 4
"""Where Power Management Control/Status lies, from the start of the capability."""
STATE = 0x0003
PME_ENABLE, PME_STATUS = 1 << 8, 1 << 15
_VERSION = 3
_D1, _D2, _PME = 9, 10, 11


class PowerState(IntEnum):
    """A device's power state. Software chooses D0 to D3hot; in D3cold the device has auxiliary power at most."""

    D0 = 0
    D1 = 1
    D2 = 2
    D3HOT = 3
    D3COLD = 4


class Power(Declared):
    """``power = Power(wake_from=(PowerState.D3HOT,))``: what the power management capability offers beyond D0 and D3.

    ``d1`` and ``d2`` add these states. ``wake_from`` are the states in which the device can signal a power management
    event (PME). On an instance it is a :class:`PowerControl`.
    """

    def __init__(self, *, d1: bool = False, d2: bool = False, wake_from: Iterable[PowerState] = ()) -> None:
        self.wake_from = frozenset(wake_from)
        self.states = frozenset({PowerState.D0, PowerState.D3HOT}) | ({PowerState.D1} if d1 else frozenset())
        self.states |= {PowerState.D2} if d2 else frozenset()

    def check(self, where: str) -> None:
        """Refuse a wake-up from a state that the device does not have."""
        for state in sorted(self.wake_from - self.states - {PowerState.D3COLD}):
            self.refuse(where, f"wake_from has {PowerState(state).name}, and the device has no such state")

    @property
    def capabilities(self) -> int:
        """Power Management Capabilities (§3.2.3)."""
        more = (PowerState.D1 in self.states) << _D1 | (PowerState.D2 in self.states) << _D2
        return _VERSION | more | sum(1 << _PME + state for state in self.wake_from)

    @property
    def enable(self) -> int:
        """The bits of Control/Status that a guest may write, beside the state: PME_En, if there is a PME."""
        return PME_ENABLE if self.wake_from else 0

    @property
    def status(self) -> int:
        """The bits of Control/Status that a guest clears by a one: PME_Status, if there is a PME."""
        return PME_STATUS if self.wake_from else 0

    @property
    def sticky(self) -> int:
        """The bits of Control/Status that survive a reset: those of a PME that can come from D3cold (§3.2.4)."""
        return PME_ENABLE | PME_STATUS if PowerState.D3COLD in self.wake_from else 0

    @overload
    def __get__(self, device: None, owner: type[PciDevice]) -> Power: ...
    @overload
    def __get__(self, device: PciDevice, owner: type[PciDevice]) -> PowerControl: ...
    def __get__(self, device: PciDevice | None, owner: type[PciDevice]) -> Power | PowerControl:
        return self if device is None else PowerControl(device.core, self)

    def write(self, hook: Hook) -> Hook:
        """Run ``hook(self, state)`` after the guest has changed the power state."""
        return mark(hook, "write", self)


class PowerControl:
    """The power state of one device, and its wake-up event."""

    __slots__ = ("_core", "_declared")

    def __init__(self, core: Core, declared: Power) -> None:
        self._core = core
        self._declared = declared

    @property
    def state(self) -> PowerState:
        """The state that the guest has chosen: D0 to D3hot."""
        return PowerState(self._core.config.power_control & STATE)

    @property
    def wake_enabled(self) -> bool:
        """Whether the guest wants to be woken (PME_En)."""
        return bool(self._core.config.power_control & PME_ENABLE)

    def wake(self) -> bool:
        """Signal a power management event: set PME_Status. True if the guest wants to be woken.

        Nothing happens in a state that ``wake_from`` lacks. The vfio-user protocol has no message for a PME: a guest
        finds the event when it looks at PME_Status, as Linux does once a second for a device that it has suspended.
        """
        if self.state not in self._declared.wake_from:
            return False
        self._core.config.power_control |= PME_STATUS
        return self.wake_enabled
