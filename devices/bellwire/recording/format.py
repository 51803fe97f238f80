"""The file of a recording.

It begins with :data:`MAGIC`, the version, and a head in JSON. Records follow: each has a kind (one letter), the length
of its body, and the body, which is numbers and bytes in the order of the kind. Numbers are LEB128: seven bits a byte,
the lowest first. Bytes have their length before them. A record that is not whole ends the recording: the process that
wrote it was killed.

An *input* came from the guest, or from the loop. What the device did because of it comes next, then its end. What
the device did is recorded as it did it, before any filter. An interrupt that went on at once has an ``i`` right behind
its ``I``. One that a filter has lost has none; one that a filter has held back has it later, outside any input.

| kind | what | body |
|---|---|---|
| B | the recording begins | resets so far, whether a client is connected |
| R | input: a read | µs, region, offset, count |
| W | input: a write | µs, region, offset, times, bytes |
| G | input: a ring | µs, BAR, offset, offset in a row, count, times, whether it has a value, value |
| X | input: a reset | µs, times |
| H | input: a callback of the loop | µs, name, whether it gets jobs, for each job its number and errno |
| r | end of a read | bytes |
| e | end of another input | |
| f | end of an input that has raised | the error's class |
| N | a client has come or gone | µs, whether it is connected |
| M | a range of guest memory | µs, whether it is mapped, whether it may be written, address, size |
| S | the client has given a state, of another device of this kind | µs, bytes that follow, size, its bytes |
| P | the device is powered on again | µs |
| K | the client has taken interrupts | µs, the pending bits that are left |
| d | the device has read guest memory | address, size, why it failed, bytes |
| D | the device writes guest memory | address, size, CRC-32, the first bytes |
| x | and that has failed | why |
| I | the device interrupts | kind, vector, level (2: none) |
| i | an interrupt has passed the filters | kind, vector, level, how often, whether it was sent |
| T | the device has read the clock | nanoseconds |
| E | the device has got random bytes | bytes |
| Z | the recording was ended in order | |

µs are the microseconds since the input before. The bytes of ``d`` and ``S`` are deflated (RFC 1951) where that makes
them shorter; a number before them says so. A large state has several records ``S``, of which the last says that no
bytes follow.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bellwire.errors import BellwireError

MAGIC = b"BWREC\r\n\x1a"
VERSION = 2
LARGEST_HEAD = 1 << 20
LARGEST = (64 << 20) + (1 << 12)
"""The most bytes of a record: those of the largest DMA, and what goes with them."""
INPUTS = "RWGXH"
ENDS = "ref"
FIRST = 16
"""The bytes of a DMA write that are kept, for reports. All of them count for the CRC."""
PIECE = 16 << 20
"""The most bytes of a state in a record."""
LARGEST_STATE = 1 << 30
"""The most bytes of a state: small records can stand for many zeros."""
_SHORTEST = 64  # bytes that are worth deflating
_NUMBER = 10  # bytes of the longest number: 64 bits


class BadRecording(BellwireError, ValueError):
    """A file that is no recording, or of another version, or damaged."""


class Recorded(NamedTuple):
    """The head of a recording: which device it was, with which options, as a user writes them."""

    device: str
    options: dict[str, str]
    release: str


class Entry(NamedTuple):
    """A record: its number in the file, from 0, its kind and its body."""

    number: int
    kind: str
    body: bytes


def head(recorded: Recorded) -> bytes:
    """The beginning of a file."""
    text = json.dumps(recorded._asdict(), sort_keys=True).encode()
    return MAGIC + bytes([VERSION]) + number(len(text)) + text


def record(kind: str, *parts: int | bytes) -> bytes:
    """A record. Bytes get their length before them."""
    body = b"".join(number(part) if isinstance(part, int) else number(len(part)) + part for part in parts)
    return kind.encode() + number(len(body)) + body


def number(value: int) -> bytes:
    """A number in LEB128."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def deflated(data: bytes) -> tuple[int, bytes]:
    """``data`` and 0; or its deflated form and 1, if that is shorter."""
    if len(data) >= _SHORTEST:
        packed = zlib.compress(data, 1, -15)
        if len(packed) < len(data):
            return 1, packed
    return 0, data


def inflated(packed: int, data: bytes, size: int) -> bytes:
    """The bytes that :func:`deflated` got: ``size`` of them. A BadRecording if they are not as many."""
    if packed:
        inflater = zlib.decompressobj(-15)
        try:
            data = inflater.decompress(data, size + 1)
        except zlib.error as error:
            raise BadRecording(f"a recording is damaged: {error}") from None
    if len(data) != size:
        raise BadRecording(f"a recording is damaged: {len(data)} bytes where {size} were recorded")
    return data


class Body:
    """Reads the numbers and bytes of a body, in order. A BadRecording if it ends before."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._at = 0

    def number(self) -> int:
        """The next number, of at most 64 bits."""
        value, body = 0, self._entry.body
        for shift in range(_NUMBER):
            if self._at >= len(body):
                break
            byte = body[self._at]
            self._at += 1
            value |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return value & (1 << 64) - 1
        raise self._bad()

    def bytes(self) -> bytes:
        """The next bytes."""
        length = self.number()
        if length > len(self._entry.body) - self._at:
            raise self._bad()
        self._at += length
        return self._entry.body[self._at - length : self._at]

    def text(self) -> str:
        """The next bytes as text."""
        return self.bytes().decode(errors="replace")

    def _bad(self) -> BadRecording:
        return BadRecording(f"record {self._entry.number} ({self._entry.kind}) of the recording is damaged")


def read_head(file: BinaryIO) -> Recorded:
    """The head of a recording; ``file`` then stands at the first record. A BadRecording if it has none."""
    if file.read(len(MAGIC)) != MAGIC:
        raise BadRecording("this is no recording of a device")
    version = file.read(1)
    if version != bytes([VERSION]):
        raise BadRecording(f"a recording of version {int.from_bytes(version, 'little')}: {VERSION} expected")
    size = _read_number(file)
    if size is None or size > LARGEST_HEAD:
        raise BadRecording("the head of the recording is damaged")
    try:
        found: dict[str, Any] = json.loads(file.read(size))
        options = {str(key): str(value) for key, value in found["options"].items()}
        return Recorded(str(found["device"]), options, str(found["release"]))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise BadRecording("the head of the recording is damaged") from None


def entries(path: Path) -> Generator[Entry, None, None]:
    """The records of a file, up to the last one that is whole. Close it, or read it to its end: the file is open."""
    with path.open("rb") as file:
        read_head(file)
        at = 0
        while (kind := file.read(1)) and (size := _read_number(file)) is not None:
            if size > LARGEST:
                raise BadRecording(f"record {at} of the recording has {size} bytes, at most {LARGEST} expected")
            body = file.read(size)
            if len(body) < size:
                return
            yield Entry(at, kind.decode("latin-1"), body)
            at += 1


def _read_number(file: BinaryIO) -> int | None:
    """A number; None at the end of the file."""
    value = 0
    for shift in range(_NUMBER):
        byte = file.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << 7 * shift
        if byte[0] < 0x80:
            return value
    raise BadRecording("the recording is damaged: a number of more than 64 bits")
