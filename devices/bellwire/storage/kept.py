"""The disks of a device whose process may end: a successor, which goes on with its client, has the same files."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellwire.storage.disk import Disk
from bellwire.storage.memory import MemoryDisk

if TYPE_CHECKING:
    from bellwire.device import PciDevice


class KeptDisks:
    """Opens disks for ``device``, each by a name, and keeps them for a successor; without a device, for nobody.

    A successor gets the file that the process before it had open, whatever has become of its path, with its lock, and
    with the memory of a disk in memory.
    """

    def __init__(self, device: PciDevice | None = None) -> None:
        self._device = device
        self._kept: dict[str, tuple[Disk, Mapping[str, Any]]] = {}

    def image(
        self,
        name: str,
        path: Path,
        *,
        readonly: bool = False,
        size: int = 0,
        direct: bool = False,
        block: int = 512,
        folder: int = -1,
        lock: bool = True,
        new: bool = False,
    ) -> Disk:
        """Open an image as :meth:`Disk.open` does, or go on with it unless it is ``new``.

        If the options name another image than before, or want it opened in another way, it is opened anew, but not
        made: a guest has the disk already.
        """
        how = {"path": str(path), "readonly": readonly, "direct": direct}
        found = self._found(name, new)
        if found is not None and how.items() <= found[1].items():
            fd, note = found
            disk = Disk.adopt(fd, path, readonly=readonly, direct=direct, block=block, lock=lock)
            disk.lost = int(note.get("lost", 0))
        else:
            if found is not None:
                fcntl.flock(found[0], fcntl.LOCK_UN)
                os.close(found[0])
                size = 0
            disk = Disk.open(path, readonly=readonly, size=size, direct=direct, block=block, folder=folder, lock=lock)
        self._keep(name, disk, how | {"lost": disk.lost})
        return disk

    def memory(self, name: str, size: int, *, block: int = 512, identity: str = "", new: bool = False) -> MemoryDisk:
        """A disk of memory: the one that the process before has had, with its size and identity, unless it is new."""
        found = self._found(name, new)
        if found is not None and "identity" in found[1]:
            disk = MemoryDisk(os.fstat(found[0]).st_size, block=block, file=found[0])
            identity = str(found[1]["identity"])
        else:
            if found is not None:
                os.close(found[0])
            disk = MemoryDisk(size, block=block)
        self._keep(name, disk, {"identity": identity})
        return disk

    def identity(self, name: str) -> str:
        """The identity of a disk of memory."""
        return str(self._kept[name][1]["identity"])

    def note_losses(self) -> None:
        """Let a successor know which disks have lost writes: a flush of theirs has failed. For the device's thread."""
        for name, (disk, note) in self._kept.items():
            if disk.lost != note.get("lost", 0):
                self._keep(name, disk, {**note, "lost": disk.lost})

    def drop(self, name: str) -> None:
        """Forget a disk that has gone for good."""
        if self._kept.pop(name, None) is not None and self._device is not None:
            self._device.drop_file(name)

    def _found(self, name: str, new: bool) -> tuple[int, Mapping[str, Any]] | None:
        return None if new or self._device is None else self._device.kept_file(name)

    def _keep(self, name: str, disk: Disk, note: Mapping[str, Any]) -> None:
        self._kept[name] = disk, note
        if self._device is not None:
            self._device.keep_file(name, disk.file, note, lasting=True)
