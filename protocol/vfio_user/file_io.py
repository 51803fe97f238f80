"""Guest memory that is reached by reads and writes of a file, because the file cannot be mapped."""

from __future__ import annotations

import errno
import os
import stat

from vfio_user.errors import DmaFault, VfioUserError


class FileIo:
    """A duplicate of ``fd``, in which the memory from ``start`` on lies at ``offset``. Close it.

    /proc/PID/mem is such a file. The client says by the flag BY_FILE_IO of DMA_MAP that its file is one. Raises
    VfioUserError for what is no regular file: reads of a terminal or a pipe could wait for ever.
    """

    def __init__(self, fd: int, start: int, offset: int) -> None:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise VfioUserError("DMA_MAP: file I/O, and the descriptor is no regular file")
        self._fd = os.dup(fd)
        self._lead = offset - start

    def read(self, address: int, count: int) -> bytes:
        """``count`` bytes of memory. Raises DmaFault if the file does not give them."""
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            try:
                step = os.preadv(self._fd, [view[done:]], self._lead + address + done)
            except OSError as error:
                raise _fault(address, count, error) from None
            if not step:
                raise DmaFault(address, count, "the client's file ends before it")
            done += step
        return bytes(data)

    def write(self, address: int, data: bytes | memoryview) -> None:
        """Write memory. Raises DmaFault if the file does not take the bytes."""
        view = memoryview(data)
        done = 0
        while done < len(view):
            try:
                step = os.pwritev(self._fd, [view[done:]], self._lead + address + done)
            except OSError as error:
                raise _fault(address, len(view), error) from None
            if not step:
                raise DmaFault(address, len(view), "the client's file takes no more bytes")
            done += step

    def close(self) -> None:
        """Close the duplicate."""
        os.close(self._fd)


def _fault(address: int, size: int, error: OSError) -> DmaFault:
    return DmaFault(address, size, f"the client's file: {error.strerror}", error.errno or errno.EFAULT)
