"""VERSION: the protocol's version, and the capabilities of both sides."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

from vfio_user.constants import (
    DEFAULT_MAX_DMA_MAPS,
    DEFAULT_MAX_FDS,
    DEFAULT_MAX_TRANSFER,
    DEFAULT_PGSIZES,
    IO_FDS,
    Mechanism,
)
from vfio_user.errors import ProtocolError

NUMBERS = struct.Struct("<HH")
MAJOR, MINOR = 0, 2
LARGEST_JSON = 4096
QEMU_REPLY = 214  # bytes of a VERSION reply with its header: QEMU refuses a longer one
_RANGES = {
    "max_msg_fds": (0, 1 << 16),
    "max_data_xfer_size": (1, 1 << 40),
    "max_dma_maps": (0, 1 << 32),
    "pgsizes": (1, (1 << 64) - 1),
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one side can take. ``named`` are the capabilities that it sent; the others have their default values.

    ``io_fds`` are the mechanisms for sub-regions that it knows; None if it did not send the word. ``fd_index`` is part
    of a server's ``twin_socket``: which descriptor of its reply is the client's end.
    """

    MOST_FDS: ClassVar[int] = 253
    """The kernel's limit for one message, whatever a peer says."""

    max_msg_fds: int = DEFAULT_MAX_FDS
    max_data_xfer_size: int = DEFAULT_MAX_TRANSFER
    max_dma_maps: int = DEFAULT_MAX_DMA_MAPS
    pgsizes: int = DEFAULT_PGSIZES
    write_multiple: bool = False
    twin_socket: bool = False
    io_fds: frozenset[Mechanism] | None = None
    fd_index: int | None = None
    named: frozenset[str] = frozenset()

    @classmethod
    def of(cls, **values: Any) -> Capabilities:
        """Capabilities with these values; exactly these are ``named``."""
        return cls(**values, named=frozenset(values) - {"fd_index"})

    def with_twin(self) -> Capabilities:
        """These capabilities, and a twin socket."""
        return replace(self, twin_socket=True, named=self.named | {"twin_socket"})

    def within(self, proposed: Capabilities) -> Capabilities:
        """What a server with these capabilities answers to ``proposed``: nothing that was not proposed.

        write_multiple is agreed only with clients that propose io_fds. Once it is agreed, QEMU 10.1 to 10.2 sends every
        message by another thread, which is slow. Newer versions of QEMU send the same proposal, so they cannot be told
        apart. They lose little: QEMU joins writes only when more than 1024 are queued.
        """
        values = {name: getattr(self, name) for name in _WORDS if name in proposed.named and name != "twin_socket"}
        if self.twin_socket and proposed.twin_socket and proposed.max_msg_fds:
            values |= {"twin_socket": True, "fd_index": 0}
        if "write_multiple" in values:
            values["write_multiple"] = self.write_multiple and proposed.write_multiple and "io_fds" in values
        if "io_fds" in values:
            values["io_fds"] = (self.io_fds or frozenset()) & (proposed.io_fds or frozenset())
        return Capabilities.of(**values)

    def beyond(self, proposed: Capabilities) -> list[str]:
        """The capabilities in a server's answer that were not ``proposed``. A correct server has none."""
        unasked = set(self.named - proposed.named)
        if self.write_multiple and not proposed.write_multiple:
            unasked.add("write_multiple")
        if self.twin_socket and not proposed.twin_socket:
            unasked.add("twin_socket")
        unasked |= {f"io_fds: {word}" for word in (self.io_fds or frozenset()) - (proposed.io_fds or frozenset())}
        return sorted(unasked)

    def to_json(self) -> dict[str, Any]:
        """The named capabilities, as the JSON of VERSION has them."""
        values = {name: getattr(self, name) for name in _WORDS if name in self.named}
        if "io_fds" in values:
            values["io_fds"] = [word for word in IO_FDS if word in (self.io_fds or ())]
        if "twin_socket" in values:
            values["twin_socket"] = {"supported": self.twin_socket}
            if self.fd_index is not None:
                values["twin_socket"]["fd_index"] = self.fd_index
        return values

    @classmethod
    def from_json(cls, given: Any) -> Capabilities:
        """The capabilities in a peer's JSON. Unknown words are ignored. Raises ProtocolError, naming the field."""
        if not isinstance(given, dict):
            raise ProtocolError("VERSION: capabilities is no object")
        values: dict[str, Any] = {}
        for name, (least, most) in _RANGES.items():
            if name in given:
                values[name] = _number(given[name], name, least, most)
        if values.get("pgsizes", 0) & 0xFFF:
            raise ProtocolError(f"VERSION: pgsizes {values['pgsizes']:#x}, expected pages of 4096 bytes or more")
        if "write_multiple" in given:
            values["write_multiple"] = _truth(given["write_multiple"], "write_multiple")
        if "twin_socket" in given:
            twin = given["twin_socket"]
            if not isinstance(twin, dict):
                raise ProtocolError("VERSION: twin_socket is no object")
            values["twin_socket"] = _truth(twin.get("supported", False), "twin_socket.supported")
            if "fd_index" in twin:
                values["fd_index"] = _number(twin["fd_index"], "twin_socket.fd_index", 0, Capabilities.MOST_FDS)
        if "io_fds" in given:
            words = given["io_fds"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ProtocolError("VERSION: io_fds is no list of words")
            values["io_fds"] = frozenset(word for word in IO_FDS if word in words)
        return cls.of(**values)


_WORDS = tuple(field.name for field in fields(Capabilities) if field.name not in ("fd_index", "named"))


class Version(NamedTuple):
    """A VERSION request or reply."""

    major: int
    minor: int
    capabilities: Capabilities

    def pack(self) -> bytes:
        """The payload: numbers and NUL-terminated JSON."""
        text = json.dumps({"capabilities": self.capabilities.to_json()}, separators=(",", ":"))
        return NUMBERS.pack(self.major, self.minor) + text.encode() + b"\0"

    @classmethod
    def unpack(cls, payload: memoryview) -> Version:
        """The version in a payload, whose JSON may be missing. Raises ProtocolError, naming the field."""
        if len(payload) < NUMBERS.size:
            raise ProtocolError(f"VERSION: {len(payload)} bytes, expected at least {NUMBERS.size}")
        major, minor = NUMBERS.unpack_from(payload)
        text = bytes(payload[NUMBERS.size :])
        if not text:
            return cls(major, minor, Capabilities())
        if len(text) > LARGEST_JSON:
            raise ProtocolError(f"VERSION: {len(text)} bytes of JSON, at most {LARGEST_JSON}")
        if text[-1:] != b"\0":
            raise ProtocolError("VERSION: the JSON is not terminated by a NUL")
        try:
            document = json.loads(text[:-1].decode())
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"VERSION: not JSON: {error}") from None
        if not isinstance(document, dict):
            raise ProtocolError("VERSION: the JSON is no object")
        return cls(major, minor, Capabilities.from_json(document.get("capabilities", {})))


def _number(value: Any, name: str, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(f"VERSION: {name} is {value!r}, expected a number from {least} to {most}")
    return value


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise ProtocolError(f"VERSION: {name} is {value!r}, expected true or false")
    return value
