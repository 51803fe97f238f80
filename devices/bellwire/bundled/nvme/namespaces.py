"""The namespaces of a controller, by their IDs from 1 on (§6.1)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from bellwire.bundled.nvme.command import ALL_NAMESPACES, Byte
from bellwire.bundled.nvme.namespace import Namespace
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.storage import Disk

LEAST_IDS, MOST_IDS = 32, 256
"""The least and the largest number of namespace IDs. The host may make namespaces, so there are spare IDs."""


class Namespaces:
    """Namespaces by their IDs, of which ``most`` are valid. ``spare`` bytes are for those that the host makes.

    An ID is active while its namespace is attached; a namespace that is not attached is allocated only (§6.1.5).
    """

    def __init__(self, namespaces: Iterable[Namespace], *, spare: int = 0, retired: Iterable[Disk] = ()) -> None:
        self._all = {space.nsid: space for space in namespaces}
        self._retired = list(retired)
        self._spare = spare
        self.most = max([LEAST_IDS, *self._all])
        self.closed: Status | None = None
        """The status with which all I/O is refused during a sanitize operation; else None."""
        self.open: dict[int, Namespace] = {}
        """The namespaces that accept I/O."""
        self.refresh()

    def refresh(self) -> None:
        """Update :attr:`open`, after a namespace was attached, detached, held or freed."""
        self.open = {
            space.nsid: space
            for space in self.allocated
            if space.attached and space.held is None and self.closed is None
        }

    def __getitem__(self, nsid: int) -> Namespace:
        """The namespace of an I/O command. A CommandError if it accepts no I/O (§6.1.5)."""
        space = self.open.get(nsid)
        if space is None:
            if self.closed is not None:
                raise CommandError(self.closed)
            space = self.active(nsid)
            raise CommandError(space.held or Status.INTERNAL_ERROR)
        return space

    @property
    def allocated(self) -> list[Namespace]:
        """All namespaces, by ID."""
        return [space for _, space in sorted(self._all.items())]

    @property
    def attached(self) -> list[Namespace]:
        """The attached namespaces, by ID."""
        return [space for space in self.allocated if space.attached]

    def find(self, nsid: int) -> Namespace | None:
        """The namespace with a valid ID, or None. Raises Invalid Namespace or Format for an invalid ID."""
        if not 0 < nsid <= self.most:
            raise CommandError(Status.INVALID_NAMESPACE, Byte.NSID)
        return self._all.get(nsid)

    def existing(self, nsid: int) -> Namespace:
        """The namespace with this ID, attached or not."""
        space = self.find(nsid)
        if space is None:
            raise CommandError(Status.INVALID_FIELD, Byte.NSID)
        return space

    def active(self, nsid: int) -> Namespace:
        """The attached namespace with this ID."""
        space = self.existing(nsid)
        if not space.attached:
            raise CommandError(Status.INVALID_FIELD, Byte.NSID)
        return space

    def addressed(self, nsid: int) -> tuple[Namespace, ...]:
        """The namespaces that ``nsid`` stands for in I/O: one, or all for FFFFFFFFh."""
        if nsid != ALL_NAMESPACES:
            return (self[nsid],)
        if self.closed is not None:
            raise CommandError(self.closed)
        return tuple(self.open.values())

    def hold(self, spaces: Iterable[Namespace], why: Status | None) -> None:
        """Refuse I/O of these namespaces from now on; None accepts it again."""
        for space in spaces:
            space.held = why
        self.refresh()

    def close_for(self, why: Status | None) -> None:
        """Refuse all I/O from now on; None accepts it again."""
        self.closed = why
        self.refresh()

    def add(self, space: Namespace) -> None:
        """Add a namespace."""
        self._all[space.nsid] = space
        self.refresh()

    def remove(self, space: Namespace) -> None:
        """Remove a deleted namespace. The image of one that the device was started with stays open and locked."""
        del self._all[space.nsid]
        if space.made:
            space.disk.close()
        else:
            self._retired.append(space.disk)
        self.refresh()

    @property
    def disks(self) -> list[Disk]:
        """The disks of all namespaces."""
        return [*(space.disk for space in self.allocated), *self._retired]

    @property
    def capacity(self) -> int:
        """The bytes of all namespaces, and of those that the host can make (TNVMCAP)."""
        return self._spare + sum(space.disk.size for space in self.allocated if not space.made) + self._retired_size

    @property
    def unallocated(self) -> int:
        """The bytes that are left for namespaces that the host makes (UNVMCAP)."""
        made = sum(space.disk.size for space in self.allocated if space.made)
        return max(0, self._spare + self._retired_size - made)

    @property
    def _retired_size(self) -> int:
        return sum(disk.size for disk in self._retired)

    def free_id(self) -> int:
        """The lowest ID that no namespace has."""
        for nsid in range(1, self.most + 1):
            if nsid not in self._all:
                return nsid
        raise CommandError(Status.NAMESPACE_IDENTIFIER_UNAVAILABLE)

    def close(self) -> None:
        """Close the disks."""
        for disk in self.disks:
            disk.close()


def id_list(spaces: Iterable[Namespace], above: int) -> bytes:
    """Namespace ID list, 4096 bytes: the IDs above ``above`` (§5.15.2.3)."""
    found = [space.nsid for space in spaces if space.nsid > above][:1024]
    return struct.pack(f"<{len(found)}I", *found).ljust(4096, b"\0")
