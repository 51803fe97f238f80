"""Guest memory as device code sees it: read, write, or map it and touch it in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire.errors import GuestError, Unshared
from vfio_user import DmaFault, SharedMap, VfioUserError

if TYPE_CHECKING:
    from bellwire.model.core import Core
    from bellwire.model.host import Host

LARGEST_COPY = 64 << 20
_NOWHERE = SharedMap(1, 0, memoryview(b""))


class Dma:
    """DMA by one device. Every range is the guest's word: outside its memory, it is a GuestError.

    All of it is refused while bus mastering is off (PCI 3.0 §6.2.2).
    """

    __slots__ = ("_core", "_shared", "changes")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._shared = [_NOWHERE, _NOWHERE]  # where memory was last read and written, while nothing changes
        self.changes = 0
        """Counts what may make a view of guest memory stale: maps, clients, resets, writes to config space."""

    def read(self, address: int, size: int) -> bytes:
        """A copy of ``size`` bytes of guest memory, at most 64 MiB."""
        self._check(address, size)
        shared = self._near(address, size, False)
        if shared is not None:
            start = address - shared.start
            return shared.view[start : start + size].tobytes()
        host = self._host()
        try:
            parts = [
                host.dma_read(part.address, part.size) if part.view is None else bytes(part.view)
                for part in host.segments(address, size, False)
            ]
        except VfioUserError as error:
            raise _fault("read", address, size, error) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` into guest memory."""
        source = memoryview(data).cast("B")
        size = len(source)
        self._check(address, size)
        shared = self._near(address, size, True)
        if shared is not None:
            start = address - shared.start
            shared.view[start : start + size] = source
            return
        host = self._host()
        try:
            for part in list(host.segments(address, size, True)):
                start = part.address - address
                piece = source[start : start + part.size]
                if part.view is None:
                    host.dma_write(part.address, piece)
                else:
                    part.view[:] = piece
        except VfioUserError as error:
            raise _fault("write", address, size, error) from error

    def map(self, address: int, size: int, *, write: bool = False) -> list[memoryview]:
        """Views of guest memory, one for each stretch that is contiguous here: no copy is made.

        Use them within the hook: the client may take the memory back between hooks (a view kept for longer
        stays harmless, and shows zeros). Unshared, a GuestError, where the client has not shared the memory: use
        :meth:`read` and :meth:`write`, which work for every client.
        """
        self._check(address, size)
        views = []
        try:
            for part in self._host().segments(address, size, write):
                if part.view is None:
                    raise Unshared(f"DMA map of {size} bytes at {address:#x}: the client has not shared this memory")
                views.append(part.view)
        except VfioUserError as error:
            raise _fault("map", address, size, error) from error
        return views

    def whole(self, address: int, size: int, *, write: bool = False) -> memoryview:
        """One view, though the client may have mapped the memory in pieces, as behind an IOMMU: for rings.

        The same holds as for :meth:`map`. Pieces cost system calls, once while a view of them is kept.
        """
        self._check(address, size)
        try:
            view = self._host().whole(address, size, write)
        except VfioUserError as error:
            raise _fault("map", address, size, error) from error
        if view is None:
            raise Unshared(f"DMA map of {size} bytes at {address:#x}: not shared, or in pieces of huge pages")
        return view

    @property
    def by_message(self) -> bool:
        """Whether the client shares no memory, as far as is known by now: :meth:`read` and :meth:`write` alone work."""
        host = self._core.host
        return host is not None and host.by_message

    def shared_map(self, address: int, *, write: bool = False) -> SharedMap | None:
        """The whole stretch of shared memory around ``address``, for whoever has much to do there, or None.

        The same holds as for :meth:`map`. What is moved there, :meth:`touched` is to be told of.
        """
        self._check(address, 0)
        return self._host().shared_map(address, write)

    def touched(self, size: int) -> None:
        """Device code has moved ``size`` bytes in a :meth:`shared_map`: nothing to do, unless they are counted."""

    @property
    def counts(self) -> dict[str, int]:
        """Bytes so far, where they are counted."""
        return {}

    def changed(self) -> None:
        """Something of that kind has happened: forget where memory was."""
        self.changes += 1
        self._shared = [_NOWHERE, _NOWHERE]

    def _host(self) -> Host:
        host = self._core.host
        if host is None:
            raise GuestError("DMA: the device is not attached to a guest")
        return host

    def _near(self, address: int, size: int, write: bool) -> SharedMap | None:
        """The stretch of shared memory that these bytes lie in, all of them: most often, that of the last time."""
        shared = self._shared[write]
        if not shared.start <= address <= shared.end - size:
            found = self._host().shared_map(address, write)
            if found is None or address + size > found.end:
                return None
            shared = self._shared[write] = found
        return shared

    def _check(self, address: int, size: int) -> None:
        if not self._core.config.bus_master:
            raise GuestError(f"DMA of {size} bytes at {address:#x}: the guest has bus mastering off")
        if not 0 <= size <= LARGEST_COPY:
            raise GuestError(f"DMA of {size} bytes at {address:#x}: at most {LARGEST_COPY} at once")


def _fault(verb: str, address: int, size: int, error: VfioUserError) -> GuestError:
    """What DMA came to; where only part of the range is bad, which."""
    why: object = error
    if isinstance(error, DmaFault):
        part = f"from {error.address:#x} on, " if error.address != address else ""
        why = part + error.why
    return GuestError(f"DMA {verb} of {size} bytes at {address:#x}: {why}")
