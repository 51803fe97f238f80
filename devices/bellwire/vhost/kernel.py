"""The kernel's own back ends: vhost-net, which moves packets of a tap, and vhost-vsock.

Threads of the kernel move the data. They find guest memory in this process, where it is mapped. What the client takes
back is replaced here by other memory, so that they never reach what is not the guest's.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bellwire.vhost.backend import Listener, Ring
from bellwire.vhost.errors import BackendError, BackendLost
from bellwire.vhost.memory import Piece
from bellwire.vhost.node import NONE, Ioctl, Node
from vfio_user.eventfds import SIZE, take

NET = Path("/dev/vhost-net")
VSOCK = Path("/dev/vhost-vsock")
RINGS = 2
"""Rings of a node: one to receive and one to send."""
LEAST_CID, MOST_CID = 3, 0xFFFF_FFFE
"""Addresses that a guest may have (vsock(7)): below them are the hypervisor's and the host's, above is any."""


class KernelBackend:
    """The common base: a :class:`~bellwire.vhost.backend.Backend` of ``count`` nodes, each with two rings."""

    tracks = False
    connection = None
    needs_addresses = True

    def __init__(self, path: Path, count: int = 1) -> None:
        self.nodes: list[Node] = []
        self._table: list[Piece] = []
        self._listener: Listener | None = None
        self._error = NONE
        try:
            for _ in range(count):
                self.nodes.append(Node(path))
            self.prepare()
        except BaseException:
            self.close()
            raise
        self.features = self.nodes[0].features
        self.most_queues = RINGS

    def prepare(self) -> None:
        """Set the nodes up, before there is a driver. Override it if there is something to do."""

    def enable(self, index: int, on: bool) -> None:
        """Let a ring that has been set up run, or pause. Override it."""
        raise NotImplementedError

    def config(self, size: int) -> bytes | None:
        """None: the front end has the configuration. Override it if the kernel decides about it."""
        return None

    def limited(self) -> AbstractContextManager[None]:
        """No limit: the kernel answers."""
        return contextlib.nullcontext()

    def listen(self, listener: Listener) -> None:
        """Report to ``listener``: errors of rings, and nothing else."""
        self._listener = listener
        self._error = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        listener.watch(self._error, self._ring_failed)

    def accept(self, features: int) -> None:
        """Tell all nodes."""
        for node in self.nodes:
            node.accept(features)

    def share(self, table: Sequence[Piece]) -> None:
        """Tell all nodes. BackendLost if one does not forget what the client takes back: closing it makes it forget."""
        gone = [piece for piece in self._table if piece not in table]
        try:
            for node in self.nodes:
                node.share(table)
        except BackendError as error:
            if gone:
                raise BackendLost(f"the client takes memory back, but {error}") from None
            raise
        self._table = list(table)

    def track(self, queues: int, size: int, *, fresh: bool) -> None:
        """Nothing: the kernel returns buffers in order, so the rings tell what was in flight."""

    record = None

    def inherit(self, fd: int, note: Mapping[str, Any]) -> None:
        """Nothing: there is no record."""
        os.close(fd)

    def start(self, ring: Ring) -> None:
        """Set a ring up. It runs once :meth:`enable` says so."""
        node, index = self.place(ring.number)
        node.set_up(index, ring, self._table)
        node.wire(Ioctl.SET_VRING_ERR, index, self._error)

    def kick(self, index: int, fd: int) -> None:
        """The kernel polls ``fd``, and does not read it: its count grows, and means nothing."""
        node, at = self.place(index)
        node.wire(Ioctl.SET_VRING_KICK, at, fd)

    def call(self, index: int, fd: int) -> None:
        """When this returns, the descriptor before it is not signalled any more."""
        node, at = self.place(index)
        node.wire(Ioctl.SET_VRING_CALL, at, fd)

    def stop(self, index: int) -> int:
        """Pause a ring, let go of its descriptors, and tell where it has stopped. BackendLost if it goes on."""
        node, at = self.place(index)
        try:
            self.enable(index, False)
            for which in (Ioctl.SET_VRING_KICK, Ioctl.SET_VRING_CALL, Ioctl.SET_VRING_ERR):
                node.wire(which, at, NONE)
            return node.base(at)
        except BackendError as error:
            raise BackendLost(f"ring {index} does not stop: {error}") from None

    def reset(self) -> None:
        """Nothing: what a driver may set has been set anew when the next one runs."""

    def set_config(self, offset: int, data: bytes) -> None:
        """Nothing: no driver may write to it."""

    def close(self) -> None:
        """Close the nodes."""
        if self._listener is not None:
            self._listener.unwatch(self._error)
            self._listener = None
            os.close(self._error)
        while self.nodes:
            self.nodes.pop().close()

    def known(self, table: Sequence[Piece], rings: Sequence[int]) -> None:
        """Never called: a node is of one process."""

    def hang_up(self) -> None:
        """Close the nodes: nobody else has them."""
        self.close()

    def forget(self) -> None:
        """Nothing: there is no record."""

    def place(self, number: int) -> tuple[Node, int]:
        """The node that has ring ``number`` of the device, and the ring's number there."""
        return self.nodes[number // RINGS], number % RINGS

    def _ring_failed(self) -> None:
        """The kernel has found a ring or a descriptor that is wrong."""
        take(self._error, bytearray(SIZE))
        if self._listener is not None:
            self._listener.failed("the kernel reports an error in a ring")


class VhostNet(KernelBackend):
    """The kernel moves packets between the rings and the queues of a tap: ``taps`` has a descriptor for each pair.

    The descriptors stay the caller's. The tap delivers packets with a header of 12 bytes (TUNSETVNETHDRSZ), as the
    driver has them, so the kernel passes all of it on.
    """

    def __init__(self, taps: Sequence[int]) -> None:
        self._taps = list(taps)
        super().__init__(NET, len(self._taps))
        self.most_queues = len(self._taps)

    def enable(self, index: int, on: bool) -> None:
        """Join a ring to the tap's queue, or part them: NET_SET_BACKEND."""
        node, at = self.place(index)
        node.wire(Ioctl.NET_SET_BACKEND, at, self._taps[index // RINGS] if on else NONE)


class VhostVsock(KernelBackend):
    """The kernel connects the guest's sockets to the host's (vsock(7)). The guest has the address ``cid``."""

    def __init__(self, cid: int) -> None:
        self._cid = cid
        self._enabled: set[int] = set()
        super().__init__(VSOCK)

    def prepare(self) -> None:
        """Reserve the address. BackendError if another guest has it."""
        self.nodes[0].set_cid(self._cid)

    def enable(self, index: int, on: bool) -> None:
        """Run when the driver has set both rings up: the kernel takes them together."""
        before = len(self._enabled)
        (self._enabled.add if on else self._enabled.discard)(index)
        if (before == RINGS) is not (len(self._enabled) == RINGS):
            self.nodes[0].run(on)

    def config(self, size: int) -> bytes | None:
        """The guest's address (§5.10.4)."""
        return struct.pack("<Q", self._cid)
