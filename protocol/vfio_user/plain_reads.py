"""Accesses that are known and come alone, answered while the worker waits: plain reads of registers above all.

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
The session does it as any other, but need not look for rings again. Device code may set timers, receive messages, or
give the channel another buffer. So the loop asks for all of that again before it goes on.

What was tried: the first wait was once inside this loop, which put every ring through it too. Replies once went
through the channel's own method to send. Now a turn that begins with anything else does not enter this loop. For a
plain read, the loop calls methods of the socket, of epolls and of a dict, and none of this package: the channel lends
its buffer and its socket. To do writes in here, without the session, brought 1 %.
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
    sleeper: Callable[[], Callable[[], Ready]],
    alone: Ready,
    rung: Callable[[int], object],
    perform: Callable[[bytes, CheckedAccess, memoryview, bool], bool],
) -> Ready:
    """Answer known accesses as long as they come one at a time. Returns what the last wait returned.

    The caller has waited, and got ``alone``: a message has come, and nothing else has happened. ``rung(0)`` tells
    whether a doorbell has rung since. ``sleeper`` gives what waits; device code may change that. ``perform`` does an
    access that is not plain, after the rings. If it returns False, the session has kept other commands: the result is
    empty then, as it is if bytes were received meanwhile. A message that is not answered here stays in the channel.
    """
    loan = channel.lend()
    if loan is None:
        return alone
    buffer, room, receive, send = loan
    known, blank, wait = accesses.known.get, clear_read, sleeper()
    while True:
        try:
            count, ancillary, flags, _ = receive(room, ANCILLARY, RECEIVE)
        except OSError:
            return alone
        access = None
        if count >= PREFIX_SIZE and not ancillary and not flags & CUT:
            message_id, key = unpack_prefix(buffer)
            access = known(key)
        if access is None or access.size != count or (access.reply and rung(0)):
            channel.received(count, ancillary, flags)
            return alone
        if access.plain:
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
        else:
            loan = channel.lend() if perform(message_id, access, channel.lent(count), True) else None
            if loan is None:
                return []
            buffer, room, receive, send = loan
            wait = sleeper()
        ready = wait()
        if ready != alone:
            return ready
