"""REGION_WRITE_MULTI: how a server does the writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vfio_user.accesses import CheckedAccesses
from vfio_user.constants import MessageFlags
from vfio_user.errors import VfioUserError
from vfio_user.getters import Reply
from vfio_user.message import Message
from vfio_user.transfer import MULTI, unpack_writes

_NO_REPLY = int(MessageFlags.NO_REPLY)


def write_many(
    message: Message,
    accesses: CheckedAccesses,
    call: Callable[..., Any],
    refuse: Callable[[int, int, VfioUserError, bool], None],
) -> Reply:
    """Do the writes of a message. All are checked before the first; the reply says how many were done.

    The first write that the device refuses ends the command. Under No_reply the client cannot learn of it, so the
    others are still done, each as a posted REGION_WRITE.
    """
    accesses.many_come()
    checked = accesses.write_among_many
    writes = [(checked(region, at, len(data)), data) for region, at, data in unpack_writes(message.payload)]
    done = 0
    for access, data in writes:
        assert access.writer is not None
        access.times += 1
        try:
            call(access.command, access.writer, memoryview(data))
        except VfioUserError as error:
            if message.flags & _NO_REPLY:
                refuse(message.id, message.command, error, False)
                continue
            if done == 0:
                raise
            break
        done += 1
    return Reply([MULTI.pack(done)])
