"""A device node of the kernel's vhost: ioctls on one descriptor (include/uapi/linux/vhost.h of Linux)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

from bellwire.vhost.backend import Ring
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece, inside

NONE = -1
"""In the place of a descriptor: from now on none."""

_U64 = struct.Struct("<Q")
_INT = struct.Struct("<i")
_STATE = struct.Struct("<II")  # struct vhost_vring_state: ring, number
_FILE = struct.Struct("<Ii")  # struct vhost_vring_file: ring, descriptor
_ADDRESS = struct.Struct("<IIQQQQ")  # struct vhost_vring_addr: ring, flags, descriptors, used, available, log
_TABLE = struct.Struct("<II")  # struct vhost_memory: number of regions, padding
_REGION = struct.Struct("<QQQQ")  # struct vhost_memory_region: guest address, size, address in this process, flags


class Ioctl(IntEnum):
    """All that this module asks for."""

    GET_FEATURES = 0x8008AF00
    SET_FEATURES = 0x4008AF00
    SET_OWNER = 0xAF01
    SET_MEM_TABLE = 0x4008AF03
    SET_VRING_NUM = 0x4008AF10
    SET_VRING_ADDR = 0x4028AF11
    SET_VRING_BASE = 0x4008AF12
    GET_VRING_BASE = 0xC008AF12
    SET_VRING_KICK = 0x4008AF20
    SET_VRING_CALL = 0x4008AF21
    SET_VRING_ERR = 0x4008AF22
    NET_SET_BACKEND = 0x4008AF30
    VSOCK_SET_GUEST_CID = 0x4008AF60
    VSOCK_SET_RUNNING = 0x4004AF61


class Node:
    """An open node. It has guest memory by addresses of this process, which is its owner, and knows two rings: 0 and 1.

    Every method may raise BackendError: the kernel has refused an ioctl. :meth:`close` returns when the kernel has
    forgotten guest memory and all descriptors.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise BackendLost(f"{path}: {_why(path, error)}") from None
        try:
            self.features = _U64.unpack(self._ask(Ioctl.GET_FEATURES, bytes(_U64.size)))[0]
            self._ask(Ioctl.SET_OWNER)
        except BaseException:
            self.close()
            raise

    def accept(self, features: int) -> None:
        """The driver has accepted ``features``. Those that the node does not offer are left out."""
        self._ask(Ioctl.SET_FEATURES, _U64.pack(features & self.features))

    def share(self, table: Sequence[Piece]) -> None:
        """Guest memory is ``table``, and nothing else. On return no ring uses any other."""
        regions = [_REGION.pack(piece.address, piece.size, piece.mapped_at, 0) for piece in table]
        self._ask(Ioctl.SET_MEM_TABLE, b"".join([_TABLE.pack(len(regions), 0), *regions]))

    def set_up(self, index: int, ring: Ring, table: Sequence[Piece]) -> None:
        """Place a ring, which is not in use, at addresses that lie in ``table``."""
        desc, avail, used = (_here(table, address) for address in (ring.desc, ring.avail, ring.used))
        self._ask(Ioctl.SET_VRING_NUM, _STATE.pack(index, ring.size))
        self._ask(Ioctl.SET_VRING_BASE, _STATE.pack(index, ring.base))
        self._ask(Ioctl.SET_VRING_ADDR, _ADDRESS.pack(index, 0, desc, used, avail, 0))

    def base(self, index: int) -> int:
        """Where a ring that is not in use any more has been stopped."""
        state = self._ask(Ioctl.GET_VRING_BASE, _STATE.pack(index, 0))
        number: int = _STATE.unpack(state)[1]
        return number

    def wire(self, which: Ioctl, index: int, fd: int) -> None:
        """Use ``fd``, or NONE, as a ring's kick, call, error or back end. What was there before is unused on return."""
        self._ask(which, _FILE.pack(index, fd))

    def set_cid(self, cid: int) -> None:
        """Give a node of vsock the guest's address."""
        self._ask(Ioctl.VSOCK_SET_GUEST_CID, _U64.pack(cid))

    def run(self, on: bool) -> None:
        """Let a node of vsock use both rings, or none."""
        self._ask(Ioctl.VSOCK_SET_RUNNING, _INT.pack(on))

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)

    def _ask(self, request: Ioctl, payload: bytes = b"") -> bytes:
        try:
            if not payload:
                fcntl.ioctl(self._fd, request)
                return b""
            buffer = bytearray(payload)
            fcntl.ioctl(self._fd, request, buffer)
        except OSError as error:
            raise BackendError(f"the kernel refuses VHOST_{request.name}: {_meaning(request, error)}") from error
        return bytes(buffer)


def _here(table: Sequence[Piece], address: int) -> int:
    """The address in this process of what the guest has at ``address``."""
    piece = inside(table, address, 1)
    if piece is None:
        raise BackendError(f"a ring at {address:#x}, where the client shares no memory")
    return piece.mapped_at + address - piece.address


def _why(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        module = path.name.replace("-", "_")
        return f"there is none: load the kernel's module (modprobe {module}), and let the service have the device"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "not permitted: it takes the group of the device (often kvm), and DeviceAllow= in a unit"
    return error.strerror or str(error)


def _meaning(request: Ioctl, error: OSError) -> str:
    if request is Ioctl.SET_MEM_TABLE and error.errno == errno.E2BIG:
        return "guest memory is in more pieces than the module vhost takes (max_mem_regions)"
    if request is Ioctl.VSOCK_SET_GUEST_CID and error.errno == errno.EADDRINUSE:
        return "another guest has this address"
    return error.strerror or str(error)
