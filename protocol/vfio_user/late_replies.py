"""Replies to reads that the backend answers later: see :class:`vfio_user.Late`."""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.accesses import CheckedAccess
from vfio_user.backend import Late
from vfio_user.channel import HEADER, Channel
from vfio_user.constants import HEADER_SIZE, Command
from vfio_user.errors import VfioUserError
from vfio_user.journal import READ_SIZE, no_marks
from vfio_user.message import Message
from vfio_user.transfer import REGION_ACCESS

Refuse = Callable[[int, int, VfioUserError, bool], None]
"""Answers a command with an errno: its id, the command, the error, and whether a reply is wanted."""
Failed = Callable[[Command, BaseException], VfioUserError]
"""Logs an error of device code. Returns the error that the client gets."""
WAITS = 0xFFFFFFFF
"""What the error field of a read's message is while the read waits. No position in a journal is so large."""


class LateReplies:
    """Sends them for one session, outside its ``service``. If one cannot be sent, the connection ends.

    ``places`` is memory that outlives the process: a read that waits has its message there, for a successor. As with
    other messages, the channel notes that the read is done with right before the kernel gets the reply. It writes that
    note over the word WAITS, in one store.
    """

    def __init__(self, channel: Channel, refuse: Refuse, failed: Failed, places: memoryview | None) -> None:
        self.channel = channel
        self._refuse = refuse
        self._failed = failed
        self._closed = False
        room = memoryview(b"") if places is None else places
        self._places = [room[at : at + READ_SIZE] for at in range(0, len(room), READ_SIZE)]
        self._free = [place for place in self._places if not _waits(place)]

    def expect(self, late: Late, message_id: bytes, access: CheckedAccess) -> None:
        """Let the backend answer a read by ``late``."""
        number, wanted = int.from_bytes(message_id, "little"), bool(access.reply)
        place = self._free.pop() if wanted and self._free else None
        if place is not None:
            head = HEADER.pack(number, access.command, READ_SIZE, 0, WAITS)
            place[:] = head + REGION_ACCESS.pack(access.offset, access.region, access.count)

        def answer(found: bytes) -> None:
            if wanted:
                self._say(place, lambda: self.channel.send_whole(message_id + access.reply + found))

        def fail(error: Exception) -> None:
            refused = error if isinstance(error, VfioUserError) else self._failed(access.command, error)
            self._say(place, lambda: self._refuse(number, access.command, refused, wanted))

        late.answer, late.fail = answer, fail

    def left(self, handle: Callable[[Message], None], but: Message | None) -> None:
        """Let ``handle`` do the reads that a process before has left waiting. It was still at ``but``, if it is one."""
        for place in [place for place in self._places if _waits(place)]:  # a read may wait again, in another place
            number, command, _, flags, _ = HEADER.unpack_from(place)
            payload = memoryview(bytes(place[HEADER_SIZE:]))
            if but is None or (but.id, but.command) != (number, command):
                marks, self.channel.marks = self.channel.marks, no_marks()  # it is none of the journal's messages
                try:
                    handle(Message(number, command, flags, 0, payload, []))
                finally:
                    self.channel.marks = marks
            self._forget(place)

    def close(self) -> None:
        """The client has gone: later answers do nothing."""
        self._closed = True

    def _forget(self, place: memoryview) -> None:
        place[:] = bytes(READ_SIZE)
        self._free.append(place)

    def _say(self, place: memoryview | None, say: Callable[[], None]) -> None:
        if self._closed:
            return
        marks = self.channel.marks
        self.channel.marks = no_marks() if place is None else _word(place)
        try:
            say()
        except VfioUserError:
            self.channel.break_off()
        finally:
            self.channel.marks = marks
        if place is not None:
            self._forget(place)


def _word(place: memoryview) -> memoryview:
    return place[HEADER_SIZE - 4 : HEADER_SIZE].cast("I")


def _waits(place: memoryview) -> bool:
    return _word(place)[0] == WAITS
