"""Asynchronous events (§5.2): the host leaves requests with us, and we complete one when there is news."""

from __future__ import annotations

import ctypes
from enum import IntEnum

from bellwire.bundled.nvme.identify import EVENT_REQUESTS
from bellwire.bundled.nvme.logs import LogPage
from bellwire.bundled.nvme.status import CommandError, Status


class Event(IntEnum):
    """Type, information and log page, as a completion's dword 0 has them."""

    INVALID_DOORBELL_REGISTER = LogPage.ERRORS << 16 | 0x00 << 8 | 0
    INVALID_DOORBELL_VALUE = LogPage.ERRORS << 16 | 0x01 << 8 | 0
    TEMPERATURE = LogPage.HEALTH << 16 | 0x01 << 8 | 1


LOG_PAGES = (LogPage.ERRORS, LogPage.HEALTH)
"""Of the types of events there are, 0 and 1, where the host learns more."""


class EventState(ctypes.Structure):
    """What is remembered of events, in the device's state."""

    _fields_ = [
        ("waiting", ctypes.c_uint32),
        ("pending", ctypes.c_uint32),
        ("masked", ctypes.c_uint32),
        ("results", ctypes.c_uint32 * len(LOG_PAGES)),
        ("cids", ctypes.c_uint16 * EVENT_REQUESTS),
    ]
    waiting: int
    """Requests that the host has left."""
    pending: int
    """A bit for each type of which there is news, in ``results``, that no request could take yet."""
    masked: int
    """A bit for each type of which news is held back until the host has read the log page."""
    results: ctypes.Array[ctypes.c_uint32]
    cids: ctypes.Array[ctypes.c_uint16]


class Events:
    """Requests on one side, news on the other, of which one piece of each type is kept."""

    def __init__(self, state: EventState) -> None:
        self._state = state

    def reset(self) -> None:
        """Requests and news are void after a controller reset."""
        ctypes.memset(ctypes.byref(self._state), 0, ctypes.sizeof(self._state))

    def request(self, cid: int) -> None:
        """Leave a request; it stays open until there is news."""
        state = self._state
        if state.waiting == EVENT_REQUESTS:
            raise CommandError(Status.TOO_MANY_EVENT_REQUESTS)
        state.cids[state.waiting] = cid
        state.waiting += 1

    def withdraw(self, cid: int) -> bool:
        """Take a request back; False where there is none with this command id."""
        state = self._state
        cids = state.cids[: state.waiting]
        if cid not in cids:
            return False
        cids.remove(cid)
        self._put(cids)
        return True

    def happened(self, event: Event) -> None:
        """News; while some waits to be told, or the host has not looked at the last, it adds nothing."""
        state, kind = self._state, event & 7
        if not (state.pending | state.masked) >> kind & 1:
            state.pending |= 1 << kind
            state.results[kind] = event

    def seen(self, log_page: int) -> None:
        """The host has read a log page and does not want the event retained."""
        if log_page in LOG_PAGES:
            self._state.masked &= ~(1 << LOG_PAGES.index(LogPage(log_page)))

    def deliver(self) -> tuple[int, int] | None:
        """Result and command id of a request to complete now, or None."""
        state = self._state
        if not (state.pending and state.waiting):
            return None
        cids = state.cids[: state.waiting]
        cid = cids.pop(0)
        self._put(cids)
        first = state.pending & -state.pending
        state.pending ^= first
        state.masked |= first
        return state.results[first.bit_length() - 1], cid

    def _put(self, cids: list[int]) -> None:
        self._state.waiting = len(cids)
        for place, cid in enumerate(cids):
            self._state.cids[place] = cid
