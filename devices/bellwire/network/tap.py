"""A tap: a network interface of the kernel whose other end is this process (Documentation/networking/tuntap.rst)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from typing import TypeVar

from bellwire.network.interface import Settings, configure, enter
from bellwire.network.link import HEADER_SIZE, Buffers, LinkError, Offload, Places
from bellwire.pieces import MOST_PIECES, one_call

DEVICE = "/dev/net/tun"
LONGEST_NAME = 15

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
TUNSETVNETLE = 0x400454DC
TUNSETCARRIER = 0x400454E2

IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400

_REQUEST = struct.Struct("16sH22x")  # struct ifreq: name, flags
Result = TypeVar("Result")


class TapEnd:
    """One queue of a tap. The kernel copies packets from and to guest memory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._file = FileIO(fd, closefd=False)  # its readinto() costs less than os.readv()
        self.attached = True

    def fileno(self) -> int:
        """The descriptor of the queue."""
        return self._fd

    def receive(self, buffers: Buffers) -> int:
        """Receive one packet. A LinkError if the interface has been removed."""
        try:
            return os.readv(self._fd, buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _gone(error) from error

    def receive_each(self, into: Places, room: int, packet: memoryview, sizes: list[int]) -> None:
        """Receive packets to these places, while there are any. A LinkError as from :meth:`receive`.

        A copy of a packet costs less than what saves it: a view of its place, and a second piece for what exceeds that.
        """
        (memory, starts), read = into, self._file.readinto
        try:
            for start in starts:
                size = read(packet)
                if not size:
                    return
                sizes.append(size)
                if size > room:
                    return
                packet[10], packet[11] = 1, 0  # NUM_BUFFERS
                memory[start : start + size] = packet[:size]
        except OSError as error:
            raise _gone(error) from error

    def send(self, packet: Buffers) -> bool:
        """Send one packet. False if the kernel refuses it: its header is invalid, or the interface is down."""
        try:
            os.writev(self._fd, packet if len(packet) <= MOST_PIECES else one_call(packet))
        except OSError:
            return False
        return True

    def send_each(self, places: Places, sizes: Sequence[int]) -> list[int]:
        """Send packets of one piece each. Returns the sizes of those that the kernel refuses."""
        (memory, starts), fd, write, dropped = places, self._fd, os.write, []
        for start, size in zip(starts, sizes, strict=True):
            try:
                write(fd, memory[start : start + size])
            except OSError:
                dropped.append(size)
        return dropped


class TapLink:
    """The tap ``name`` with ``pairs`` queues. It is created if it is missing, and set up as ``settings`` say.

    To create or set up a tap, the process needs CAP_NET_ADMIN; to attach to a tap that was made for its user, it does
    not. A tap that the link has created disappears when the link is closed.
    """

    offloads = True

    def __init__(self, name: str, pairs: int = 1, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        if not 1 <= len(name.encode()) <= LONGEST_NAME:
            raise LinkError(f"tap {name!r}: a name of an interface has 1 to {LONGEST_NAME} bytes")
        self.name = name
        self.ends: list[TapEnd] = []
        try:
            apart(lambda: self._open(pairs, settings))
        except OSError as error:
            self.close()
            raise LinkError(f"tap {name}: {_why(error)}") from error
        except BaseException:
            self.close()
            raise

    def offload(self, what: Offload) -> None:
        """Set the offloads of all queues: the kernel has one setting for each interface."""
        self._tell(self.ends[0], TUNSETOFFLOAD, int(what))

    def use(self, pairs: int) -> None:
        """Detach all other queues, so that the kernel steers no packet to them."""
        if len(self.ends) == 1:
            return
        for number, end in enumerate(self.ends):
            if end.attached is not (wanted := number < pairs):
                flags = IFF_ATTACH_QUEUE if wanted else IFF_DETACH_QUEUE
                self._tell(end, TUNSETQUEUE, _REQUEST.pack(b"", flags))
                end.attached = wanted

    def carrier(self, up: bool) -> None:
        """Let the interface show NO-CARRIER while the cable is out. It needs CAP_NET_ADMIN, or a tap of this user."""
        self._tell(self.ends[0], TUNSETCARRIER, struct.pack("i", up))

    def close(self) -> None:
        """Close the queues. A second call does nothing."""
        while self.ends:
            os.close(self.ends.pop().fileno())

    def _tell(self, end: TapEnd, request: int, argument: int | bytes) -> None:
        with contextlib.suppress(OSError):  # the interface may have been removed: the next read reports it
            fcntl.ioctl(end.fileno(), request, argument)

    def _open(self, pairs: int, settings: Settings) -> None:
        enter(settings.namespace)
        path = self._find(settings)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if pairs > 1 else 0)
        for _ in range(pairs):
            end = TapEnd(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            self.ends.append(end)
            fcntl.ioctl(end.fileno(), TUNSETIFF, _REQUEST.pack(self.name.encode(), flags))
            fcntl.ioctl(end.fileno(), TUNSETVNETHDRSZ, struct.pack("i", HEADER_SIZE))
            fcntl.ioctl(end.fileno(), TUNSETVNETLE, struct.pack("i", 1))
        configure(self.name, settings)

    def _find(self, settings: Settings) -> str:
        """The path to open. The thread is in the network namespace already."""
        return DEVICE


def apart(work: Callable[[], Result]) -> Result:
    """Run ``work`` on a new thread. A thread that enters a network namespace leaves it by ending."""
    with ThreadPoolExecutor(1, thread_name_prefix="network") as thread:
        return thread.submit(work).result()


def _gone(error: OSError) -> LinkError:
    return LinkError(f"tap: {error.strerror}: it is gone")


def _why(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "not permitted: it takes CAP_NET_ADMIN, or a tap that was made for this user"
    if error.errno == errno.EBUSY:
        return "somebody else has it open"
    if error.errno == errno.EINVAL:
        return "it exists and is another kind of interface, or has another number of queues"
    return f"{error.strerror or error} ({error.filename})" if error.filename else error.strerror or str(error)
