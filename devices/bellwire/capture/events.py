"""The events of a device as packets of a capture: what happens beside the messages."""

from __future__ import annotations

import struct
from collections.abc import Callable

from bellwire.declare.doorbell import IoRegion
from bellwire.filters import Client, Filter, Interrupt, Reset, Ring

RING, VALUE, INTERRUPT, RESET, CAME, LEFT = 3, 4, 5, 9, 10, 11
EVENT = struct.Struct("<BBHIQQIHH")
"""Kind, region or kind of interrupt, width, count or vector, offset, value, detail, bytes of the name and of data.

The name follows in UTF-8. ``detail`` is the place in :data:`MECHANISMS` of a ring, in :data:`OUTCOMES` of an interrupt.
"""
MECHANISMS = ("message", "ioeventfd", "shadow", "ioregionfd")
OUTCOMES = ("lost", "sent", "pending")
OF_A_CAPTURE = "it belongs to a capture, and ends with it"
"""Why the filter of a capture is not taken out by itself."""
_ALL_ONES = (1 << 64) - 1


class Events(Filter, name="capture"):
    """Tells a capture of rings, interrupts, resets, and clients that come and go."""

    kept = OF_A_CAPTURE

    def __init__(self, tell: Callable[[bytes], None]) -> None:
        super().__init__()
        self._tell = tell

    def before_ring(self, ring: Ring) -> None:
        """A doorbell was rung."""
        bell = ring.bell
        width = bell.bell if isinstance(bell, IoRegion) else bell.size
        kind = RING if ring.value is None else VALUE
        value = (ring.value or 0) & _ALL_ONES
        detail = MECHANISMS.index(ring.mechanism)
        offset = bell.offset + ring.offset
        self._tell(_packed(kind, bell.bar.index, width or 0, ring.count, offset, value, detail, ring.name))

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The device has interrupted."""
        level, detail = int(bool(interrupt.level)), OUTCOMES.index(interrupt.outcome)
        name = interrupt.kind.name
        self._tell(_packed(INTERRUPT, int(interrupt.kind), 0, interrupt.vector, 0, level, detail, name))

    def before_reset(self, _: Reset) -> None:
        """The device is reset."""
        self._tell(_packed(RESET))

    def client(self, client: Client) -> None:
        """A client has come or gone."""
        self._tell(_packed(CAME if client.connected else LEFT))


def _packed(
    kind: int,
    region: int = 0,
    width: int = 0,
    count: int = 0,
    offset: int = 0,
    value: int = 0,
    detail: int = 0,
    name: str = "",
) -> bytes:
    encoded = name.encode()
    return EVENT.pack(kind, region, width, count, offset, value, detail, len(encoded), 0) + encoded
