"""The box of a device, as its manager knows it: what it is to be, what it is, and what it leaves behind."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import msgspec

from bellwired.box.needs import remove_made
from bellwired.box.wanted import Part, Wanted
from bellwired.settings import Device


class Boxed:
    """The box of one device's worker."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        """What the last worker's box is made of."""
        self._made: list[Path] = []

    def wanted(self, settings: Device) -> Wanted:
        """The box that a device's file asks for."""
        return Wanted(
            words=settings.sandbox,
            read=settings.sandbox_read,
            write=settings.sandbox_write,
            memory_max=settings.memory_limit,
        )

    def entered(self, fields: dict[str, Any]) -> None:
        """The worker has entered it, and says what it is made of."""
        self.parts = msgspec.convert(fields["parts"], list[Part])
        self._made = [Path(path) for path in fields["made"]]

    def left(self) -> None:
        """The worker has ended: remove the sockets and links that it could not remove."""
        for path in self._made:
            with contextlib.suppress(OSError):  # another process has taken it
                remove_made(path)
        self._made = []
