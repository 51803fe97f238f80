"""What two VMMs say to each other while a machine moves: frames on a UNIX stream socket.

A frame is four letters, the length of its content (64 bits, little-endian), and the content. The source sends HELLO
with the machine's description as JSON, then PAGES (an address and the bytes from there on) in any number, then STATE
(`saved.sections`), then GO. The target answers HELLO, STATE and GO with GOOD, or with FAIL and a reason; it may say
FAIL at any time. Until GO the guest belongs to the source. A source that leaves before lets the target end.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import time
from enum import Enum

from bellwire_vmm.errors import MigrationError

PATIENCE = 60.0
"""Seconds without a word from the other end, after which a migration fails."""

MOST_PAGES = 1 << 20
"""Bytes of RAM in a frame."""

ADDRESS = struct.Struct("<Q")
_FRAME = struct.Struct("<4sQ")
_LONGEST_REASON = 4096
_LAST_WORD = 1.0  # seconds, to say or to hear why an end gives up


class Kind(Enum):
    """What a frame is."""

    HELLO = b"MVM1"
    PAGES = b"PAGE"
    STATE = b"STAT"
    GO = b"GO!!"
    GOOD = b"GOOD"
    FAIL = b"FAIL"


class Wire:
    """One end. It owns ``sock``. All methods raise MigrationError when the other end is gone, silent or malformed.

    ``other`` is what messages call the other end. ``sent`` counts bytes.
    """

    def __init__(self, sock: socket.socket, other: str) -> None:
        self._sock = sock
        self._other = other
        self.sent = 0
        self._seconds = self._deadline = math.inf

    def limit(self, seconds: float) -> None:
        """From now on, all calls may take ``seconds`` together, however the other end spreads what it says."""
        self._seconds, self._deadline = seconds, time.monotonic() + seconds

    def send(self, kind: Kind, *parts: bytes | bytearray | memoryview) -> None:
        """Send a frame, whose content is ``parts`` one after the other."""
        try:
            for part in (_FRAME.pack(kind.value, sum(map(len, parts))), *parts):
                self._arm()
                self._sock.sendall(part)
        except OSError as error:
            raise self._lost(error) from None
        self.sent += _FRAME.size + sum(map(len, parts))

    def fail(self, reason: str) -> None:
        """Tell the other end why this one gives up, if it still listens."""
        self.limit(_LAST_WORD)
        with contextlib.suppress(MigrationError):
            self.send(Kind.FAIL, reason.encode()[:_LONGEST_REASON])

    def receive(self, limits: dict[Kind, int]) -> tuple[Kind, int]:
        """Receive the head of a frame: its kind, and the length of the content that follows.

        ``limits`` are the kinds that may come, and the most bytes of each. A FAIL is raised with its reason.
        """
        head = bytearray(_FRAME.size)
        self.receive_into(memoryview(head))
        name, length = _FRAME.unpack(head)
        try:
            kind = Kind(name)
        except ValueError:
            raise MigrationError(f"the {self._other} speaks another language: a frame begins with {name!r}") from None
        if kind is Kind.FAIL:
            reason = bytearray(min(length, _LONGEST_REASON))
            self.receive_into(memoryview(reason))
            raise RefusedError(f"the {self._other} gives up: {reason.decode(errors='replace')}")
        if length > limits.get(kind, -1):
            raise MigrationError(f"the {self._other} sent {kind.name} of {length} bytes, which is not what comes now")
        return kind, length

    def receive_into(self, view: memoryview) -> None:
        """Receive as many bytes as ``view`` has."""
        while view:
            try:
                self._arm()
                got = self._sock.recv_into(view)
            except OSError as error:
                raise self._silent(error) from None
            if not got:
                raise MigrationError(f"the {self._other} has closed the connection")
            view = view[got:]

    def expect_good(self) -> None:
        """Wait for GOOD. Raises RefusedError, with the reason, for FAIL."""
        kind, _ = self.receive({Kind.GOOD: 0, Kind.HELLO: 1 << 64})
        if kind is Kind.HELLO:  # a vfio-user server repeats the first four bytes of what it does not understand
            raise MigrationError(f"the {self._other} is no VMM that waits for a guest; is it the socket of a device?")

    def abort(self) -> None:
        """Let what another thread does on this connection fail at once."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._sock.close()

    def _arm(self) -> None:
        """Let the next call of the socket wait for no longer than it may."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(min(PATIENCE, left))

    def _lost(self, error: OSError) -> MigrationError:
        """The error of a failed send: what the other end has said last explains it best."""
        lost = self._silent(error)
        self.limit(_LAST_WORD)
        try:
            self.receive({})
        except RefusedError as refused:
            return refused
        except MigrationError:
            pass
        return lost

    def _silent(self, error: OSError) -> MigrationError:
        if isinstance(error, TimeoutError):
            if self._seconds < math.inf:
                return MigrationError(f"the {self._other} has taken longer than {self._seconds:.3g} s")
            return MigrationError(f"the {self._other} has not moved for {PATIENCE:g} s")
        return MigrationError(f"the connection to the {self._other} failed: {error.strerror or error}")


class RefusedError(MigrationError):
    """The other end has said that it gives up."""
