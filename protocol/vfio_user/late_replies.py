"""Replies to reads that the backend answers later: see :class:`vfio_user.Late`."""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.accesses import CheckedAccess
from vfio_user.backend import Late
from vfio_user.channel import Channel
from vfio_user.constants import Command
from vfio_user.errors import VfioUserError

Refuse = Callable[[int, int, VfioUserError, bool], None]
"""Answers a command with an errno: its id, the command, the error, and whether a reply is wanted."""
Failed = Callable[[Command, BaseException], VfioUserError]
"""Logs an error of device code. Returns the error that the client gets."""


class LateReplies:
    """Sends them for one session, outside its ``service``. If one cannot be sent, the connection ends."""

    def __init__(self, channel: Channel, refuse: Refuse, failed: Failed) -> None:
        self._channel = channel
        self._refuse = refuse
        self._failed = failed
        self._closed = False

    def expect(self, late: Late, message_id: bytes, access: CheckedAccess) -> None:
        """Let the backend answer a read by ``late``."""

        def answer(found: bytes) -> None:
            if access.reply:
                self._say(lambda: self._channel.send_whole(message_id + access.reply + found))

        def fail(error: Exception) -> None:
            number, wanted = int.from_bytes(message_id, "little"), bool(access.reply)
            refused = error if isinstance(error, VfioUserError) else self._failed(access.command, error)
            self._say(lambda: self._refuse(number, access.command, refused, wanted))

        late.answer, late.fail = answer, fail

    def close(self) -> None:
        """The client has gone: later answers do nothing."""
        self._closed = True

    def _say(self, say: Callable[[], None]) -> None:
        if self._closed:
            return
        try:
            say()
        except VfioUserError:
            self._channel.break_off()
