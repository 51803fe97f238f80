"""Where a ring goes on: the base that a back end is given, and what can be known of it after a crash."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bellwire.model.dma import Dma
from bellwire.vhost.backend import Ring
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece, inside
from bellwire.virtio import Virtqueue

_WORD = struct.Struct("<H")
_ELEMENT = struct.Struct("<I")
WRAP = 1 << 15


def base_of(queue: Virtqueue, *, packed: bool) -> int:
    """The base of a ring that is not in other hands."""
    if not packed:
        return queue.next
    return queue.next | queue.next_wrap << 15 | queue.used << 16 | queue.used_wrap << 31


def ring_of(queue: Virtqueue, *, packed: bool) -> Ring:
    """The ring as a back end gets it."""
    base = base_of(queue, packed=packed)
    return Ring(queue.index, queue.size, queue.desc, queue.driver, queue.device_area, base)


def lie_in(table: Sequence[Piece], queues: Sequence[Virtqueue], *, packed: bool) -> bool:
    """Whether the driver has enabled rings, and all their parts lie in the shared memory of ``table``."""
    rings = [ring_of(queue, packed=packed) for queue in queues if queue.enabled]
    return bool(rings) and all(inside(table, *part) for ring in rings for part in ring.parts(packed=packed))


def set_base(queue: Virtqueue, base: int, *, packed: bool) -> None:
    """Keep the base at which a back end has stopped, with no buffer in its hands. BackendLost if it cannot be."""
    if not packed:
        if base > 0xFFFF:
            raise BackendLost(f"{queue}: the back end has stopped at {base:#x}, at most 0xffff expected")
        queue.next = queue.used = base
    else:
        taken, used = base & 0xFFFF, base >> 16
        if max(taken & ~WRAP, used & ~WRAP) >= queue.size:
            raise BackendLost(f"{queue}: the back end has stopped at {base:#x}, beyond a ring of {queue.size}")
        queue.next, queue.next_wrap = taken & ~WRAP, taken >> 15
        queue.used, queue.used_wrap = used & ~WRAP, used >> 15
        queue.journal.settle(used)
    queue.out = 0


def resume(queue: Virtqueue, dma: Dma, *, packed: bool, sure: bool) -> None:
    """Set the position of a ring whose back end has gone without a word, so that what was in flight is done again.

    The used ring tells how many buffers have come back. A back end that has tracked what was in flight lets the next
    one find the rest itself. Any other does again what follows in the available ring, which is right if all buffers
    came back in order. Raises BackendError if they did not: which ones are missing is then unknown. With ``sure`` that
    is not looked at.
    """
    if packed:
        if sure:
            return
        raise BackendError(f"{queue}: the back end has gone with the position of a packed ring")
    size = queue.size
    used_ring = dma.whole(queue.device_area, 4 + 8 * size)
    avail_ring = dma.whole(queue.driver, 4 + 2 * size)
    used, available = (_WORD.unpack_from(ring, 2)[0] for ring in (used_ring, avail_ring))
    in_flight = available - used & 0xFFFF
    if in_flight > size:
        raise BackendError(f"{queue}: {in_flight} buffers in flight in a ring of {size}")
    if in_flight and not sure:
        for position in range(used - (size - in_flight), used):
            head = _WORD.unpack_from(avail_ring, 4 + 2 * (position % size))[0]
            if _ELEMENT.unpack_from(used_ring, 4 + 8 * (position % size))[0] != head:
                raise BackendError(
                    f"{queue}: the back end has gone with {in_flight} buffers, and had returned others out of order: "
                    "which are missing, only a back end with VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD could tell"
                )
    queue.next = queue.used = used
    queue.out = 0
