"""The guest's RAM: one memfd. It is mapped here, is a memory slot of KVM, and goes to devices by DMA_MAP."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Iterator

from bellwire_vmm.errors import VmmError

PAGE = mmap.PAGESIZE


class GuestMemory:
    """``size`` bytes of RAM, from guest-physical address 0 on.

    The memfd is sealed against shrinking and growing, so a device that holds it cannot remove pages that this process
    uses. Close the VM, whose slot it is, first.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE:
            raise VmmError(f"guest memory of {size:#x} bytes: expected a positive multiple of {PAGE:#x}")
        self.size = size
        self._written: set[int] | None = None
        self._noting = threading.Lock()
        self.fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._bytes = mmap.mmap(self.fd, size)
            self._bytes.madvise(mmap.MADV_DONTDUMP)  # a core dump has nothing of the guest's
        except OSError:
            os.close(self.fd)
            raise
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._bytes)

    @property
    def host_address(self) -> int:
        """The address in this process of guest-physical address 0."""
        if self._anchor is None:
            raise VmmError("the guest memory is closed")
        return ctypes.addressof(self._anchor)

    def read(self, address: int, count: int) -> bytes:
        """Read ``count`` bytes at ``address``. Raises VmmError if there is no RAM."""
        self._check(address, count)
        return self._bytes[address : address + count]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address``. Raises VmmError if there is no RAM."""
        self._check(address, len(data))
        self._bytes[address : address + len(data)] = bytes(data)
        if self._written is not None and data:
            with self._noting:
                self._written.update(range(address // PAGE, (address + len(data) - 1) // PAGE + 1))

    def clear(self, address: int, count: int) -> None:
        """Write ``count`` zeros at ``address``. Raises VmmError if there is no RAM."""
        self.write(address, bytes(count))

    def log(self, wanted: bool) -> None:
        """Begin or end the log of pages that `write` changes, for `written`."""
        self._written = set() if wanted else None

    def written(self) -> set[int]:
        """The numbers of the pages that `write` has changed since the last call. KVM does not see these writes."""
        with self._noting:
            taken, self._written = self._written or set(), set()
        return taken

    def fill(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address`` of a machine that does not run yet. Cheaper than `write`: no page is mapped.

        Raises VmmError if there is no RAM.
        """
        self._check(address, len(data))
        while data:
            done = os.pwrite(self.fd, data, address)
            address, data = address + done, memoryview(data)[done:]

    def stretches(self) -> Iterator[range]:
        """The addresses that may hold anything: all others are zeros, because their pages were never used."""
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self.fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data from here on
                    raise
                return
            end = os.lseek(self.fd, start, os.SEEK_HOLE)
            yield range(start, end)

    def close(self) -> None:
        """Unmap the RAM and close the memfd. May be called twice."""
        if self._anchor is not None:
            self._anchor = None
            self._bytes.close()
            os.close(self.fd)

    def _check(self, address: int, count: int) -> None:
        if address < 0 or count < 0 or address + count > self.size:
            raise VmmError(f"guest memory ends at {self.size:#x}: no {count} bytes at {address:#x}")
