"""Telemetry: data for the maker of a controller, on demand or after a failure (§5.14.1.7, §5.14.1.8)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from bellwire.bundled.nvme.command import Byte, Command
from bellwire.bundled.nvme.namespace import OUI
from bellwire.bundled.nvme.status import CommandError, Status
from bellwire.bundled.nvme.store import Record

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller

BLOCK = 512
CREATE = 1 << 8
"""The bit in dword 10 that asks for new host-initiated data."""
HOST, CONTROLLER = 0x07, 0x08
MOST = 256 << 10
REGISTERS = ("cc", "csts", "aqa", "asq", "acq", "intms")
"""The registers whose values are in the data."""


class Telemetry:
    """The telemetry logs. ``collect`` gives the data as text. ``record`` keeps the data of a failure in the store.

    All three data areas end with the same block, since there is only one set of data.
    """

    def __init__(self, record: Record, collect: Callable[[], bytes]) -> None:
        self._record = record
        self._collect = collect
        self._host = b""
        self._reason = b""

    def failed(self, reason: str) -> None:
        """Record the data of a failure, unless the data of an earlier one has not been read yet."""
        record = self._record
        if not record.telemetry_news:
            record.telemetry = reason.encode()[:127].ljust(128, b"\0") + self._collect()[:MOST]
            record.telemetry_generation = record.telemetry_generation % 255 + 1
            record.telemetry_news = True

    def seen(self) -> None:
        """The host has read the data of a failure, and does not want it retained."""
        self._record.telemetry_news = False

    def host_page(self, command: Command) -> bytes:
        """Telemetry Host-Initiated (§5.14.1.7)."""
        _check_offset(command)
        if command.cdw10 & CREATE:
            self._host = self._collect()[:MOST]
        return self._page(HOST, self._host, b"")

    def controller_page(self, command: Command) -> bytes:
        """Telemetry Controller-Initiated (§5.14.1.8)."""
        _check_offset(command)
        return self._page(CONTROLLER, self._record.telemetry[128:], self._record.telemetry[:128])

    def _page(self, number: int, data: bytes, reason: bytes) -> bytes:
        header = bytearray(BLOCK)
        last = -(-len(data) // BLOCK)
        struct.pack_into("<B4x3sHHH", header, 0, number, OUI[::-1], last, last, last)
        header[382] = self._record.telemetry_news
        header[383] = self._record.telemetry_generation & 0xFF
        header[384 : 384 + len(reason)] = reason
        return bytes(header) + data.ljust(last * BLOCK, b"\0")


def _check_offset(command: Command) -> None:
    """Telemetry is read in whole blocks (§5.14.1.7)."""
    if (command.cdw12 | command.cdw13 << 32) % BLOCK:
        raise CommandError(Status.INVALID_FIELD, Byte.CDW12)


def describe(controller: Controller) -> bytes:
    """The state of ``controller``, as JSON."""
    return msgspec.json.encode(
        {
            "registers": {name: getattr(controller.device, name) for name in REGISTERS},
            "counters": controller.logs.counters.by_name(),
            "queues": [
                {"id": sq.qid, "size": sq.size, "head": sq.head, "tail": sq.tail, "under way": sq.running}
                for sq in controller.queues.submissions
                if sq.size
            ],
            "namespaces": [
                {"id": space.nsid, "blocks": space.blocks, "block": 1 << space.shift, "attached": space.attached}
                for space in controller.namespaces.allocated
            ],
        }
    )
