"""Reads of registers that only look at memory, answered while the worker waits.

A driver that polls a register sends the same read again and again, and waits for each answer. So the driver's speed
is the time that the server takes between two reads. Four system calls are part of it (wait, receive, look for rings,
send); a C server makes them too. The rest is Python. Therefore a *plain* read does not take the way of other
messages: from the loop through a turn, the framing, the session and the device's model, and back.

A read is plain if it has passed its checks before (:mod:`vfio_user.accesses`), and if its answer comes from the bytes
of a register that has no hook and no side effect. Such an answer runs no device code, does not wait, and cannot fail.
What is left to do is to keep the order of events. These come before a reply:

* *What was received before the read.* So the buffer must be empty, and one receive must bring one whole message
  without descriptors, and nothing behind it.
* *Rings*, because a reply flushes them. A ring is in its eventfd before the read is in the socket. So the code looks
  for rings after it has received the read. The result of the wait proves nothing: the wait ended before.
* *Everything else on the loop*: timers, finished threads, descriptors that device code watches. The wait reports
  them. If a message has come and nothing else has happened, the wait always returns the same list, and comparing two
  lists is cheap. If timers are armed, the wait knows when the next is due, so a driver that never stops polling
  delays none.

The read is taken out of the buffer before the reply is sent, as :mod:`vfio_user.journal` asks for.

If one of these does not hold, the loop ends. The received bytes stay in the channel, and take the way of any message.

A write, or a read with a hook, is taken from the receive too if it has passed its checks before and has come alone.
The session does it as any other. Device code may change everything that this loop relies on, so the loop ends then,
with nothing left to do.

What was tried: the first wait was once inside this loop, which put every ring through it too. Replies once went
through the channel's own method to send. Now a turn that begins with anything else does not enter this loop. The loop
calls methods of the socket, of epolls and of a dict, and none of this package: the channel lends its buffer and its
socket.
"""

from __future__ import annotations

from collections.abc import Callable

from vfio_user.accesses import CheckedAccess, CheckedAccesses
from vfio_user.channel import ANCILLARY, CUT, PREFIX_SIZE, RECEIVE, SEND, Channel, unpack_prefix
from vfio_user.journal import clear_read
from vfio_user.loan import Ready


def answer_plain_reads(
    channel: Channel,
    accesses: CheckedAccesses,
    wait: Callable[[], Ready],
    alone: Ready,
    rung: Callable[[int], object],
    perform: Callable[[bytes, CheckedAccess, memoryview], None],
) -> Ready:
    """Answer plain reads as long as they come one at a time. Returns what ``wait`` returned last.

    The caller has waited, and got ``alone``: a message has come, and nothing else has happened. ``rung(0)`` tells
    whether a doorbell has rung since. ``perform`` does another known access, and then the result is empty. A message
    that is not answered here stays in the channel.
    """
    loan = channel.lend()
    if loan is None:
        return alone
    buffer, room, receive, send = loan
    plain, blank = accesses.plain.get, clear_read
    while True:
        try:
            count, ancillary, flags, _ = receive(room, ANCILLARY, RECEIVE)
        except OSError:
            return alone
        access = None
        if count >= PREFIX_SIZE and not ancillary and not flags & CUT:
            message_id, key = unpack_prefix(buffer)
            access = plain(key) if count == PREFIX_SIZE else None
            if access is None and (other := accesses.known.get(key)) is not None and other.size == count:
                perform(message_id, other, channel.lent(count))
                return []
        if access is None or rung(0):
            channel.received(count, ancillary, flags)
            return alone
        access.times += 1
        channel.position += count
        reply = message_id + access.reply + access.reader()
        try:
            blank(buffer, 0)
            sent = send(reply, SEND)
        except OSError:
            sent = 0
        if sent != len(reply):
            channel.send_rest_of(reply, sent)
            return alone
        ready = wait()
        if ready != alone:
            return ready
