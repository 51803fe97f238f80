"""Asynchronous events (§5.2): the host submits requests, and the controller completes one when something happens."""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum

from bellwire.bundled.nvme.command import Command
from bellwire.bundled.nvme.identify import EVENT_REQUESTS
from bellwire.bundled.nvme.logs import LogPage
from bellwire.bundled.nvme.status import CommandError, Status


class Event(IntEnum):
    """Events: type, information and log page, as in dword 0 of a completion."""

    INVALID_DOORBELL_REGISTER = LogPage.ERRORS << 16 | 0x00 << 8 | 0
    INVALID_DOORBELL_VALUE = LogPage.ERRORS << 16 | 0x01 << 8 | 0
    RELIABILITY = LogPage.HEALTH << 16 | 0x00 << 8 | 1
    TEMPERATURE = LogPage.HEALTH << 16 | 0x01 << 8 | 1
    SPARE_BELOW_THRESHOLD = LogPage.HEALTH << 16 | 0x02 << 8 | 1
    NAMESPACE_ATTRIBUTE_CHANGED = LogPage.CHANGED_NAMESPACES << 16 | 0x00 << 8 | 2
    TELEMETRY_CHANGED = LogPage.CONTROLLER_TELEMETRY << 16 | 0x02 << 8 | 2
    SANITIZE_COMPLETED = LogPage.SANITIZE << 16 | 0x01 << 8 | 6


LOG_PAGES = (
    LogPage.ERRORS,
    LogPage.HEALTH,
    LogPage.CHANGED_NAMESPACES,
    LogPage.CONTROLLER_TELEMETRY,
    LogPage.SANITIZE,
)
"""The log pages that explain events. One event of each can wait."""
TYPES = (0, 1, 2, 2, 6)
"""The type of the events of each log page."""
ID_WORDS = 9
"""The number of u32 words with one bit for each namespace ID."""


class EventState(ctypes.Structure):
    """The state of events, in the device's state."""

    _fields_ = [
        ("waiting", ctypes.c_uint32),
        ("pending", ctypes.c_uint32),
        ("masked", ctypes.c_uint32),
        ("results", ctypes.c_uint32 * len(LOG_PAGES)),
        ("cids", ctypes.c_uint16 * EVENT_REQUESTS),
        ("changed", ctypes.c_uint32 * ID_WORDS),
    ]
    waiting: int
    """The number of open requests."""
    pending: int
    """A bit for each log page with an event, in ``results``, that waits for a request."""
    masked: int
    """A bit for each log page that the host has still to read. Further events of its type wait until then."""
    results: ctypes.Array[ctypes.c_uint32]
    cids: ctypes.Array[ctypes.c_uint16]
    changed: ctypes.Array[ctypes.c_uint32]
    """A bit for each namespace that has changed since the host last read the list."""


class Events:
    """Open requests and waiting events. One event of each type is kept."""

    def __init__(self, state: EventState) -> None:
        self._state = state

    def reset(self) -> None:
        """Drop requests and events, after a controller reset."""
        ctypes.memset(ctypes.byref(self._state), 0, ctypes.sizeof(self._state))

    @property
    def impossible(self) -> str:
        """What cannot be in a restored state, in words; empty if all can."""
        waiting = self._state.waiting
        return f"{waiting} event requests" if waiting > EVENT_REQUESTS else ""

    def request(self, cid: int) -> None:
        """Add a request. It stays open until there is an event."""
        state = self._state
        if state.waiting == EVENT_REQUESTS:
            raise CommandError(Status.TOO_MANY_EVENT_REQUESTS)
        state.cids[state.waiting] = cid
        state.waiting += 1

    def waits(self, cid: int) -> bool:
        """Whether there is a request with this command id."""
        return cid in self._state.cids[: self._state.waiting]

    def withdraw(self, cid: int) -> bool:
        """Abort a request. False if there is none with this command id."""
        state = self._state
        cids = state.cids[: state.waiting]
        if cid not in cids:
            return False
        cids.remove(cid)
        self._put(cids)
        return True

    def happened(self, event: Event) -> None:
        """An event has happened. It is dropped if one of its type waits, or if the host has not read the last one."""
        state, place = self._state, LOG_PAGES.index(LogPage(event >> 16))
        if not (state.pending | state.masked) >> place & 1:
            state.pending |= 1 << place
            state.results[place] = event

    def seen(self, log_page: int) -> None:
        """The host has read a log page, and does not want the event retained."""
        if log_page in LOG_PAGES:
            self._state.masked &= ~(1 << LOG_PAGES.index(LogPage(log_page)))
        if log_page == LogPage.CHANGED_NAMESPACES:
            self._state.changed[:] = [0] * ID_WORDS

    def namespace_changed(self, nsid: int) -> None:
        """Add a namespace to the list of changed ones."""
        self._state.changed[nsid // 32] |= 1 << nsid % 32

    def changed_page(self, _: Command) -> bytes:
        """Changed Namespace List (§5.14.1.4)."""
        found = [nsid for nsid in range(32 * ID_WORDS) if self._state.changed[nsid // 32] >> nsid % 32 & 1]
        return struct.pack(f"<{len(found)}I", *found).ljust(4096, b"\0")

    def deliver(self) -> tuple[int, int] | None:
        """The result and the command id of a request to complete now, or None."""
        state = self._state
        if not (state.pending and state.waiting):
            return None
        held = {kind for place, kind in enumerate(TYPES) if state.masked >> place & 1}
        for place, kind in enumerate(TYPES):
            if state.pending >> place & 1 and kind not in held:
                cids = state.cids[: state.waiting]
                cid = cids.pop(0)
                self._put(cids)
                state.pending ^= 1 << place
                state.masked |= 1 << place
                return state.results[place], cid
        return None

    def _put(self, cids: list[int]) -> None:
        self._state.waiting = len(cids)
        for place, cid in enumerate(cids):
            self._state.cids[place] = cid
