"""DMA by message: how a device without a file descriptor of the guest's RAM reads and writes it."""

from __future__ import annotations

import errno
import os
import select
import threading

from bellwire_vmm.device.peer import Peer
from bellwire_vmm.errors import VmmError
from bellwire_vmm.machine.memory import GuestMemory
from vfio_user import VfioUserError


class DmaMemory:
    """The guest's RAM as a `vfio_user.Memory`. An address without RAM is an error reply to the device (EFAULT)."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def read(self, address: int, count: int) -> bytes:
        """The ``count`` bytes at ``address``."""
        try:
            return self._memory.read(address, count)
        except VmmError as error:
            raise VfioUserError(str(error), errno.EFAULT) from None

    def write(self, address: int, data: bytes) -> None:
        """Store ``data`` at ``address``."""
        try:
            self._memory.write(address, data)
        except VmmError as error:
            raise VfioUserError(str(error), errno.EFAULT) from None


class DmaThread:
    """A thread that answers a device's DMA messages while no vCPU waits for the device and answers them itself."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._serve, name="dma")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _serve(self) -> None:
        waiter = select.poll()
        waiter.register(self._peer.client, select.POLLIN)
        waiter.register(self._stop, select.POLLIN)
        while not self._peer.lost:
            if any(fd == self._stop for fd, _ in waiter.poll()):
                return
            self._peer.answer()
