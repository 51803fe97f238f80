"""The end that a machine comes to."""

from __future__ import annotations

import contextlib
import math
import socket

from bellwire_vmm.errors import MigrationError, StateError, VmmError
from bellwire_vmm.moving.wire import ADDRESS, MOST_PAGES, PATIENCE, Kind, Wire
from bellwire_vmm.saved import devices, sections
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.saved.file import MOST_DESCRIBED
from bellwire_vmm.vmm import Machine
from kvm_ioctls import KvmError

_CONTENTS = {Kind.PAGES: ADDRESS.size + MOST_PAGES, Kind.STATE: sections.LARGEST}


class Target:
    """Takes the machine of the source at the far end of ``sock``, which it owns. ``shape`` describes that machine.

    The source must describe it within ``patience`` seconds. Make a machine of this shape, and plug in its devices; then
    call `take`. All methods raise MigrationError or StateError, and the source is told the reason.
    """

    def __init__(self, sock: socket.socket, patience: float = PATIENCE) -> None:
        self.received = 0
        self._wire = Wire(sock, "source")
        self._wire.limit(patience)
        try:
            _, length = self._wire.receive({Kind.HELLO: MOST_DESCRIBED})
            described = bytearray(length)
            self._wire.receive_into(memoryview(described))
            self.shape = saved.from_json(described)
        except VmmError as error:
            self.refuse(str(error))
            self.close()
            raise
        self._wire.limit(math.inf)

    def take(self, machine: Machine) -> None:
        """Give ``machine`` the RAM and the state of the source's, and start its devices. The guest is here on return.

        Then call `Machine.resume` at once. After an error ``machine`` is of no use.
        """
        try:
            saved.check(machine, self.shape)
            devices.check(machine)
            self._wire.send(Kind.GOOD)
            saved.give(machine, sections.unpack(self._receive(machine)))
            self._wire.send(Kind.GOOD)
            self._wire.receive({Kind.GO: 0})
            self._start(machine)
            self._wire.send(Kind.GOOD)
        except (VmmError, KvmError) as error:
            self.refuse(str(error))
            raise

    def refuse(self, reason: str) -> None:
        """Tell the source why its machine cannot come."""
        self._wire.fail(reason)

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    def _start(self, machine: Machine) -> None:
        try:
            devices.start(machine)
        except StateError:
            with contextlib.suppress(StateError):
                devices.stop(machine)  # those of the source go on, and need their files
            raise

    def _receive(self, machine: Machine) -> bytearray:
        """Fill RAM with the pages that come. Returns the state, which comes after the last of them."""
        buffer = bytearray(ADDRESS.size + MOST_PAGES)
        while True:
            kind, length = self._wire.receive(_CONTENTS)
            if kind is Kind.STATE:
                state = bytearray(length)
                self._wire.receive_into(memoryview(state))
                return state
            if length <= ADDRESS.size:
                raise MigrationError(f"the source sent PAGES of {length} bytes")
            with memoryview(buffer)[:length] as frame:
                self._wire.receive_into(frame)
                (address,) = ADDRESS.unpack_from(frame)
                try:
                    machine.memory.fill(address, frame[ADDRESS.size :])
                except VmmError as error:
                    raise StateError(f"the source sent PAGES without a place: {error}") from None
            self.received += length - ADDRESS.size
