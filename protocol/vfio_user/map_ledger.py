"""The entries of guest memory in a ledger: one for each map, and one for each file, which many maps may share."""

from __future__ import annotations

import fcntl
import os
import stat
from collections import Counter
from collections.abc import Iterator

from vfio_user.ledger import Estate, Kept, Ledger


class MapLedger:
    """Tells ``ledger`` of maps. A map is ``flags``, ``offset``, ``address`` and ``size``, as in DMA_MAP."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.deaf = type(ledger) is Ledger
        """Whether nothing is kept, so that the ledger need not be told."""
        self._files: dict[int, str] = {}  # the file of each map, by the map's address
        self._maps: Counter[str] = Counter()  # maps of each file

    def keep(self, request: tuple[int, int, int, int], fd: int | None) -> None:
        """Memory was mapped; ``fd`` has it, if it is shared."""
        flags, offset, address, size = request
        note: dict[str, int | str] = {"flags": flags, "offset": offset, "address": address, "size": size}
        entries = []
        if fd is not None:
            note["file"] = file = _file(fd, address)
            if not self._maps[file]:
                entries.append(Kept(file, {}, (fd,)))
            self._count(address, file)
        self._ledger.keep(*entries, Kept(f"map {address}", note))

    def drop(self, addresses: list[int]) -> None:
        """Maps have gone."""
        keys = []
        for address in addresses:
            keys.append(f"map {address}")
            file = self._files.pop(address, None)
            if file is not None:
                self._maps[file] -= 1
                if not self._maps[file]:
                    del self._maps[file]
                    keys.append(file)
        self._ledger.drop(*keys)

    def inherited(self, estate: Estate) -> Iterator[tuple[tuple[int, int, int, int], int | None]]:
        """The maps in ``estate``, each with a descriptor of its own. The ledger has them already."""
        files: dict[str, int] = {}
        try:
            for key, note in estate.below("map"):
                file = note.get("file")
                if file is not None:
                    if file not in files:
                        files[file] = estate.take(file)[0]
                    self._count(note["address"], file)
                estate.take(key)
                fd = None if file is None else os.dup(files[file])
                yield (note["flags"], note["offset"], note["address"], note["size"]), fd
        finally:
            for fd in files.values():
                os.close(fd)

    def _count(self, address: int, file: str) -> None:
        self._files[address] = file
        self._maps[file] += 1


def _file(fd: int, address: int) -> str:
    """The ledger's key of a file: the same for two descriptors if they give the same bytes, with the same rights."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):  # of a device, each open file may be something else
        return f"file at {address}"
    return f"file {status.st_dev} {status.st_ino} {fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE}"
