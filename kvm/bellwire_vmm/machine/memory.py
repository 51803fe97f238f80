"""The guest's RAM: one memfd. It is mapped here, is a memory slot of KVM, and goes to devices by DMA_MAP.

Pages of a file may lie over it, copy-on-write. Other processes do not see these, so such RAM goes to no device.
"""

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
_MAP_FIXED = 0x10  # Python's mmap module has no name for it
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong)
_MAP_FAILED = ctypes.c_void_p(-1).value


class GuestMemory:
    """``size`` bytes of RAM, from guest-physical address 0 on.

    The memfd is sealed against shrinking and growing, so a device that holds it cannot remove pages that this process
    uses. Close the VM, whose slot it is, first.
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % PAGE:
            raise VmmError(f"guest memory of {size:#x} bytes: expected a positive multiple of {PAGE:#x}")
        self.size = size
        self.shared = False
        """Whether a device maps it."""
        self._laid: list[range] = []
        self._written: set[int] | None = None
        self._noting = threading.Lock()
        self._fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, size)
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._bytes = mmap.mmap(self._fd, size)
            self._bytes.madvise(mmap.MADV_DONTDUMP)  # a core dump has nothing of the guest's
        except OSError:
            os.close(self._fd)
            raise
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._bytes)

    @property
    def host_address(self) -> int:
        """The address in this process of guest-physical address 0."""
        if self._anchor is None:
            raise VmmError("the guest memory is closed")
        return ctypes.addressof(self._anchor)

    def share(self) -> int:
        """The memfd, for a device to map. Raises VmmError if pages of a file are laid over it."""
        if self._laid:
            raise VmmError("guest memory that is mapped copy-on-write cannot be shared with a device")
        self.shared = True
        return self._fd

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
            done = os.pwrite(self._fd, data, address)
            address, data = address + done, memoryview(data)[done:]

    def lay(self, address: int, fd: int, offset: int, count: int) -> None:
        """Lay ``count`` bytes of a file over the RAM from ``address`` on: whole pages, mapped copy-on-write.

        The file must not change as long as the RAM is in use. Raises VmmError if there is no RAM, or if a device maps
        it; and OSError if the kernel refuses.
        """
        self._check(address, count)
        if self.shared:
            raise VmmError("guest memory that a device maps cannot be mapped copy-on-write")
        where, protection = self.host_address + address, mmap.PROT_READ | mmap.PROT_WRITE
        if _mmap(where, count, protection, mmap.MAP_PRIVATE | _MAP_FIXED, fd, offset) == _MAP_FAILED:
            raise OSError(ctypes.get_errno(), f"mmap of {count} bytes: {os.strerror(ctypes.get_errno())}")
        self._laid.append(range(address, address + count))

    def stretches(self) -> Iterator[range]:
        """The addresses that may hold anything: all others are zeros, because their pages were never used."""
        start = end = 0
        for used in sorted([*self._laid, *self._in_memfd()], key=lambda each: each.start):
            if used.start > end:
                if end > start:
                    yield range(start, end)
                start = used.start
            end = max(end, used.stop)
        if end > start:
            yield range(start, end)

    def close(self) -> None:
        """Unmap the RAM and close the memfd. May be called twice."""
        if self._anchor is not None:
            self._anchor = None
            self._bytes.close()
            os.close(self._fd)

    def _in_memfd(self) -> Iterator[range]:
        """The stretches of the memfd that have pages."""
        end = 0
        while end < self.size:
            try:
                start = os.lseek(self._fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data from here on
                    raise
                return
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield range(start, end)

    def _check(self, address: int, count: int) -> None:
        if address < 0 or count < 0 or address + count > self.size:
            raise VmmError(f"guest memory ends at {self.size:#x}: no {count} bytes at {address:#x}")
