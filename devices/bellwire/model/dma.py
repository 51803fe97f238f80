"""DMA: device code copies guest memory, or maps it and uses it in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bellwire.errors import GuestError, Unshared
from vfio_user import DmaFault, DmaUnmap, SharedFile, SharedMap, VfioUserError

if TYPE_CHECKING:
    from bellwire.model.core import Core
    from bellwire.model.host import Host

LARGEST_COPY = 64 << 20
_NOWHERE = SharedMap(1, 0, memoryview(b""))


class Dma:
    """DMA by one device.

    The guest chooses addresses and sizes, so each range is checked: a range outside guest memory raises a GuestError.
    So does all DMA while bus mastering is off (PCI 3.0 §6.2.2). Addresses are guest physical (or IOMMU) addresses.
    """

    __slots__ = ("_core", "_in_place", "_read", "_source", "_target", "_written", "changes", "going", "keeps_files")

    def __init__(self, core: Core) -> None:
        self._core = core
        self._read = self._written = self._in_place = 0
        self._source = self._target = _NOWHERE  # the maps that were last read and written, with bus mastering on
        self.changes = 0
        """Changes whenever a view of guest memory may be stale: maps, clients, resets, writes to config space."""
        self.keeps_files = False
        self.going: DmaUnmap | None = None
        """What is about to be unmapped."""

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes, at most 64 MiB, from guest memory. A GuestError if they are not all there."""
        start, end, view = self._source
        if start <= address <= address + size <= end and size <= LARGEST_COPY:
            self._read += size
            return view[address - start : address - start + size].tobytes()
        self._check(address, size)
        host = self._host().copier
        found = host.shared_map(address, False)
        if found is not None and address + size <= found.end:
            self._source = found
            self._read += size
            return found.view[address - found.start : address - found.start + size].tobytes()
        try:
            parts = [
                host.dma_read(part.address, part.size) if part.view is None else bytes(part.view)
                for part in host.segments(address, size, False)
            ]
        except VfioUserError as error:
            raise _fault("read", address, size, error) from error
        self._read += size
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` to guest memory. A GuestError if the range is not all there, or not writable."""
        source = data if type(data) is bytes else memoryview(data).cast("B")
        size = len(source)
        start, end, view = self._target
        if start <= address <= address + size <= end and size <= LARGEST_COPY:
            view[address - start : address - start + size] = source
            self._written += size
            return
        self._check(address, size)
        host = self._host().copier
        found = host.shared_map(address, True)
        if found is not None and address + size <= found.end:
            self._target = found
            found.view[address - found.start : address - found.start + size] = source
            self._written += size
            return
        try:
            for part in list(host.segments(address, size, True)):
                start = part.address - address
                piece = memoryview(source)[start : start + part.size]
                if part.view is None:
                    host.dma_write(part.address, piece)
                else:
                    part.view[:] = piece
        except VfioUserError as error:
            raise _fault("write", address, size, error) from error
        self._written += size

    def map(self, address: int, size: int, *, write: bool = False) -> list[memoryview]:
        """Views of guest memory, without a copy: one for each part that is contiguous in this process.

        Use the views within the hook. The client may unmap the memory between hooks; an older view then shows zeros,
        and does no harm. If the client does not share the memory, Unshared (a GuestError) is raised:
        :meth:`read` and :meth:`write` work for every client.
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
        self._in_place += size  # device code is taken to use all of them
        return views

    def whole(self, address: int, size: int, *, write: bool = False) -> memoryview:
        """One view of guest memory, even if the client has mapped it in pieces, as behind an IOMMU.

        It is meant for rings of queues. The rules are those of :meth:`map`. Memory in pieces costs system calls to join
        it; these are made once, as long as a view of it is kept.
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
        """Whether the client has mapped memory but shares none so far: only :meth:`read` and :meth:`write` work."""
        host = self._core.host
        return host is not None and host.by_message

    def peek(self, address: int, size: int) -> bytes:
        """As :meth:`read`, but past all filters: for bytes that do not count as read by the device."""
        self._check(address, size)
        host = self._host()
        try:
            return host.peek(address, size)
        except VfioUserError as error:
            raise _fault("read", address, size, error) from error

    @property
    def copied(self) -> bool:
        """Whether filters must see all DMA: :meth:`map` and :meth:`whole` then find no memory that is shared."""
        host = self._core.host
        return host is not None and host.copied

    def shared_map(self, address: int, *, write: bool = False) -> SharedMap | None:
        """The whole shared map that contains ``address``, for device code that moves much there; None if there is none.

        The rules are those of :meth:`map`. Device code reports what it has moved by :meth:`touched`.
        """
        self._check(address, 0)
        return self._host().shared_map(address, write)

    def keep_files(self) -> None:
        """Keep the files of guest memory, for :meth:`files`. Call it in ``setup``."""
        self.keeps_files = True

    def files(self) -> list[SharedFile]:
        """Guest memory that may be written, with the files in which it lies: for a process that moves data itself.

        The descriptors are valid until the client unmaps memory; ``memory_changed`` tells when to ask again. The list
        is empty without a client, and for memory that the client does not share as a file. A RuntimeError if the device
        has not asked for them by :meth:`keep_files`.
        """
        if not self.keeps_files:
            raise RuntimeError("dma.files(): no files of guest memory are kept: call dma.keep_files() in setup()")
        host, going = self._core.host, self.going
        if host is None or not self._core.connected:
            return []
        return [each for each in host.files() if going is None or not _covers(going, each.address)]

    def touched(self, size: int) -> None:
        """Device code has moved ``size`` bytes in a :meth:`shared_map`."""
        self._in_place += size

    @property
    def counts(self) -> dict[str, int]:
        """The bytes moved so far: those that were copied, by direction, and those that were used in place."""
        return {"dma_read": self._read, "dma_written": self._written, "dma_in_place": self._in_place}

    def changed(self) -> None:
        """Views may be stale: count that in :attr:`changes`, and look maps up again."""
        self.changes += 1
        self._source = self._target = _NOWHERE

    def _host(self) -> Host:
        host = self._core.host
        if host is None:
            raise GuestError("DMA: the device is not attached to a guest")
        return host

    def _check(self, address: int, size: int) -> None:
        if not self._core.config.bus_master:
            raise GuestError(f"DMA of {size} bytes at {address:#x}: the guest has bus mastering off")
        if not 0 <= size <= LARGEST_COPY:
            raise GuestError(f"DMA of {size} bytes at {address:#x}: at most {LARGEST_COPY} at once")


def _covers(going: DmaUnmap, address: int) -> bool:
    """Whether a map that begins at ``address`` is unmapped. Size 0 stands for all maps."""
    return not going.size or going.address <= address < going.address + going.size


def _fault(verb: str, address: int, size: int, error: VfioUserError) -> GuestError:
    """The GuestError for a DMA that failed. If only a part of the range is bad, it names that part."""
    why: object = error
    if isinstance(error, DmaFault):
        part = f"from {error.address:#x} on, " if error.address != address else ""
        why = part + error.why
    return GuestError(f"DMA {verb} of {size} bytes at {address:#x}: {why}")
