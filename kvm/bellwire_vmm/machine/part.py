"""A part of the machine whose state moves with it: the serial port, the timer, the bus."""

from __future__ import annotations

from typing import Protocol


class Part(Protocol):
    """Something whose state can be taken, and given to a part of the same name in another machine."""

    def state(self) -> bytes:
        """The state, while no vCPU runs."""

    def set_state(self, state: bytes) -> None:
        """Put the part into a state that `state` returned. Raises StateError, and changes nothing, if it is not one."""
