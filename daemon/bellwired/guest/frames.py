"""The frames between the host and the agent in a guest, and what may be in them.

A frame is 8 bytes of head (the payload's length, the number of the command, the kind, a zero byte; little-endian) and
a payload of at most 64 KiB. The host numbers its commands.

| kind | from | payload |
|---|---|---|
| START | host | flags, rows, columns, number of words; then folder, words and environment, each ended by a NUL |
| INPUT | host | bytes for the standard input; none: its end |
| SIGNAL | host | the number of a signal, for the command's process group |
| RESIZE | host | rows and columns of the command's terminal |
| SWITCH | host | a folder of the guest, which becomes the root of all later commands; ENDED answers |
| SYNC | host | nothing: dirty pages are written; ENDED answers |
| HELLO | agent | its version; it is the first frame |
| OUTPUT, ERRORS | agent | bytes from the standard output or error |
| TAKEN | agent | how many bytes of input the command has taken: the host may send as many more |
| ENDED | agent | a wait status, as of wait(2); all output came before |

The host sends at most :data:`WINDOW` bytes of input that are not taken, so the agent never has to wait for a command.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bellwired.guest.errors import ChannelError

HEAD = struct.Struct("<IHBB")
START = struct.Struct("<BxHHH")
SIZE = struct.Struct("<HH")
COUNT = struct.Struct("<I")
STATUS = struct.Struct("<i")
MOST = 1 << 16
"""Bytes of a payload."""
WINDOW = 1 << 16
"""Bytes of input that may be on the way to a command."""
MOST_COMMANDS = 32
MOST_WORDS = 4000
VERSION = 1
ON_TERMINAL, OWN_PROGRAM = 1, 2


class Kind(enum.IntEnum):
    """What a frame says."""

    START = 1
    INPUT = 2
    SIGNAL = 3
    RESIZE = 4
    SWITCH = 5
    SYNC = 6
    HELLO = 16
    OUTPUT = 17
    ERRORS = 18
    TAKEN = 19
    ENDED = 20


FIXED = {Kind.HELLO: COUNT.size, Kind.TAKEN: COUNT.size, Kind.ENDED: STATUS.size}
"""The lengths of the agent's payloads that have only one."""
FROM_AGENT = frozenset((*FIXED, Kind.OUTPUT, Kind.ERRORS))


class Frame(NamedTuple):
    """One frame of the agent's."""

    kind: Kind
    command: int
    payload: bytes

    @property
    def number(self) -> int:
        """The payload of HELLO and TAKEN."""
        return int(COUNT.unpack(self.payload)[0])

    @property
    def status(self) -> int:
        """The payload of ENDED: an exit status, or the number of a signal, negated."""
        return os.waitstatus_to_exitcode(STATUS.unpack(self.payload)[0])


class Decoder:
    """Makes frames of the bytes that a guest sends. It holds at most one frame's bytes back."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with ``data``. Raises a ChannelError for what no agent sends."""
        self._held += data
        at = 0
        try:
            while len(self._held) - at >= HEAD.size:
                length, command, kind, zero = HEAD.unpack_from(self._held, at)
                known = _check(kind, length, zero)
                if len(self._held) - at < HEAD.size + length:
                    break
                at += HEAD.size
                payload = bytes(self._held[at : at + length])
                at += length
                yield _checked(Frame(known, command, payload))
        finally:
            del self._held[:at]


def _check(kind: int, length: int, zero: int) -> Kind:
    if kind not in FROM_AGENT:
        raise ChannelError(f"a frame of kind {kind}: the agent sends {', '.join(each.name for each in FROM_AGENT)}")
    known = Kind(kind)
    if length > MOST or length != FIXED.get(known, length):
        raise ChannelError(f"a frame {known.name} of {length} bytes: expected {FIXED.get(known, f'at most {MOST}')}")
    if zero:
        raise ChannelError(f"a frame {known.name} whose last byte of the head is {zero}, not 0")
    return known


def _checked(frame: Frame) -> Frame:
    if frame.kind is Kind.ENDED:
        try:
            _ = frame.status
        except ValueError:
            raise ChannelError(f"a frame ENDED with {frame.payload.hex()}, which is no wait status") from None
    if frame.kind is Kind.HELLO and frame.number != VERSION:
        raise ChannelError(f"an agent of version {frame.number}: expected {VERSION}")
    return frame


def encode(kind: Kind, command: int, payload: bytes = b"") -> bytes:
    """A frame of the host's."""
    assert len(payload) <= MOST
    return HEAD.pack(len(payload), command, kind, 0) + payload


def start(
    words: Sequence[str],
    *,
    folder: str = "/",
    environment: Mapping[str, str] | None = None,
    size: tuple[int, int] | None = None,
    own_program: bool = False,
) -> bytes:
    """The payload of START. ``size`` is that of a terminal, in rows and columns; None: pipes.

    Raises a ChannelError if the words do not fit.
    """
    rows, columns = size or (0, 0)
    flags = (ON_TERMINAL if size is not None else 0) | (OWN_PROGRAM if own_program else 0)
    texts = [folder, *words, *(f"{name}={value}" for name, value in (environment or {}).items())]
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise ChannelError("a command's words and environment cannot have a NUL")
    payload = START.pack(flags, rows, columns, len(words)) + b"".join(text + b"\0" for text in encoded)
    if len(payload) > MOST or len(encoded) > MOST_WORDS or not words:
        raise ChannelError(
            f"a command of {len(words)} words, with its environment {len(payload)} bytes: at most {MOST_WORDS} words "
            f"and {MOST} bytes can be sent"
        )
    return payload
