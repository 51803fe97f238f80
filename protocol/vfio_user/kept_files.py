"""Descriptors of a client's files, kept for a device that hands guest memory on to another process."""

from __future__ import annotations

import os
import stat

MOST_FILES = 64
"""Files of one client that are kept. A VMM has one for each piece of its memory, and maps parts of it many times."""


class KeptFile:
    """A descriptor of its own for a file, shared by all maps of that file. :meth:`release` it once for each."""

    def __init__(self, files: KeptFiles, key: tuple[int, int], fd: int) -> None:
        self.fd = fd
        self.maps = 0
        self._files = files
        self._key = key

    def release(self) -> None:
        """A map of the file has gone. With the last one, the descriptor is closed."""
        self.maps -= 1
        if not self.maps:
            self._files.forget(self._key)
            os.close(self.fd)


class KeptFiles:
    """The files of one client, by device and inode."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], KeptFile] = {}

    def __len__(self) -> int:
        return len(self._files)

    def keep(self, fd: int) -> KeptFile | None:
        """Keep the file of ``fd``, which the caller keeps too. None above the limit, and for what is no regular file.

        Anonymous inodes belong to many files, so an inode identifies a regular file alone.
        """
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None
        key = status.st_dev, status.st_ino
        file = self._files.get(key)
        if file is None:
            if len(self._files) >= MOST_FILES:
                return None
            file = self._files[key] = KeptFile(self, key, os.dup(fd))
        file.maps += 1
        return file

    def forget(self, key: tuple[int, int]) -> None:
        """The file has no map any more."""
        del self._files[key]
