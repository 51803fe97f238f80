"""The files of a capture: of bounded size, in turn, and readable whatever ends the process that writes them.

The files come as descriptors that somebody else has opened, because a worker in its box opens none. Each record is
written by one system call and is never changed afterwards. So a process that is killed leaves whole records.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence

SMALLEST = 1 << 16
"""The fewest bytes that a file of a capture may have."""
STOPPED = "it was stopped"
"""Why a capture has ended that somebody has ended in order."""


class Files:
    """Writes records to ``fds``, which it owns, each of at most ``limit`` bytes. ``head`` begins every file.

    When a file is full, the next one is emptied and takes over, and after the last one the first. With one descriptor
    the capture ends there. It also ends when a write fails: that never reaches the device.
    """

    def __init__(self, fds: Sequence[int], limit: int, head: bytes, tail: bytes = b"") -> None:
        self.ended = ""
        """Why nothing more is written; empty while the capture goes on."""
        self.ends_early: Callable[[str], object] = lambda _: None
        """Called once with the reason, if the capture ends by itself: its file or the disk is full."""
        self.records = 0
        self.turns = 0
        """How often another file has taken over."""
        self.written = 0
        """Bytes in all files together, those too that have been overwritten since."""
        self.size = 0
        """Bytes in the present file."""
        self._fds = list(fds)
        self._limit = max(limit, SMALLEST)
        self._head = head
        self._tail = tail
        self._present = 0
        self._begin()

    def write(self, record: bytes) -> bool:
        """Write a whole record. False if it was not written, because the capture has ended."""
        if self.ended:
            return False
        if self.size + len(record) + len(self._tail) > self._limit and not self._turn(len(record)):
            return False
        self._put(record)
        self.records += not self.ended
        return not self.ended

    def close(self, why: str = STOPPED) -> None:
        """End the capture and close the descriptors."""
        if not self.ended:
            self._put(self._tail)
        self.ended = self.ended or why
        while self._fds:
            os.close(self._fds.pop())

    def _turn(self, needed: int) -> bool:
        """Go on in the next file. False if there is none, or if the record would not fit in an empty one."""
        if len(self._head) + needed + len(self._tail) > self._limit:
            return False
        self._put(self._tail)
        if len(self._fds) == 1:
            if not self.ended:
                self._end(f"the file has {self._limit} bytes, which is the limit")
            return False
        self._present = (self._present + 1) % len(self._fds)
        self.turns += 1
        self._begin()
        return not self.ended

    def _begin(self) -> None:
        try:
            os.ftruncate(self._fds[self._present], 0)
        except OSError as error:
            self._end(f"the next file cannot be emptied: {error.strerror}")
            return
        self.size = 0
        self._put(self._head)

    def _put(self, record: bytes) -> None:
        """Write at the end. A record that finds no room is taken back, so that all records are whole."""
        if self.ended:
            return
        fd = self._fds[self._present]
        try:
            written = os.pwrite(fd, record, self.size)
            if written < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            why = f"a write failed: {error.strerror}"
            try:
                os.ftruncate(fd, self.size)
            except OSError:
                why += ", and the last record is not whole"
            self._end(why)
            return
        self.size += written
        self.written += written

    def _end(self, why: str) -> None:
        self.ended = why
        self.ends_early(why)


def check_files(fds: Sequence[int]) -> str:
    """Why a capture cannot be written to these descriptors; empty if it can."""
    for fd in fds:
        try:
            mode, flags = os.fstat(fd).st_mode, fcntl.fcntl(fd, fcntl.F_GETFL)
        except OSError as error:
            return f"fd {fd}: {error.strerror}"
        if not stat.S_ISREG(mode):
            return "captures and recordings are written to regular files"
        if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND:
            return "the files of a capture must be open for writing, and not for appending"
    return "" if fds else "a capture needs a file"
