"""Reads of registers that only look at memory, answered while the worker waits.

A driver that polls a register sends the same read again and again and waits for each answer: what the server does
between two of them is all that the driver waits for. System calls are four of it (wait, receive, look for rings,
send), and a C server makes them too. What is left is Python, so a read that is *plain* does not take the way of other
messages, from the loop through a turn, the framing, the session and the device's model, and back.

A read is plain if it has passed its checks before (:mod:`vfio_user.accesses`), and what answers it can neither run
device code, nor wait, nor fail: it looks at the bytes of a register that has no hook and no side effect. Then nothing
is left to do but to keep the order of things. Before a reply come

* *what was received before it*: the buffer must be empty, and one receive must bring one whole message without
  descriptors, and nothing behind it;
* *rings*, since a reply flushes them. A ring is in its eventfd before the read is in the socket, so it is looked for
  when the read has been received. That the wait has told of none proves nothing: it ended before;
* *everything else on the loop*: timers, finished threads, descriptors that device code watches. The wait tells of
  them: it gives the same list each time that a message has come and nothing else has happened, and to see that two
  lists are equal is cheap. Where timers are armed, the wait knows when the next is due, so a driver that never stops
  polling holds up none of them.

Whatever is not so ends the loop, and what was received stays in the channel, for the way that any message takes.

The first wait was in this loop once, so that each ring went through it too; and replies went through the channel's
own way to send. Now a turn that begins with anything else does not come here, and the loop calls methods of the
socket, of epolls and of a dict, and none of ours: the channel lends it its buffer and its socket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vfio_user.accesses import CheckedAccess
from vfio_user.channel import ANCILLARY, CUT, PREFIX_SIZE, RECEIVE, SEND, Channel, Ready, unpack_prefix


def answer_plain_reads(
    channel: Channel,
    plain: Mapping[bytes, CheckedAccess],
    wait: Callable[[], Ready],
    alone: Ready,
    rung: Callable[[int], object],
) -> Ready:
    """Answer reads that are ``plain`` for as long as they come one at a time; returns what ``wait`` gave last.

    Something has come: ``wait`` has given ``alone``, which is to say that nothing else has happened. ``rung(0)`` tells
    whether anything has since that comes first. What is not answered stays in the channel.
    """
    loan = channel.lend()
    if loan is None:
        return alone
    buffer, room, receive, send = loan
    known = plain.get
    while True:
        try:
            count, ancillary, flags, _ = receive(room, ANCILLARY, RECEIVE)
        except OSError:
            return alone
        access = None
        if count == PREFIX_SIZE and not ancillary and not flags & CUT:
            message_id, key = unpack_prefix(buffer)
            access = known(key)
        if access is None or rung(0):
            channel.received(count, ancillary, flags)
            return alone
        access.times += 1
        channel.position += count
        reply = message_id + access.reply + access.reader()
        try:
            sent = send(reply, SEND)
        except OSError:
            sent = 0
        if sent != len(reply):
            channel.send_rest_of(reply, sent)
            return alone
        ready = wait()
        if ready != alone:
            return ready
