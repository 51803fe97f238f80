"""A worker's end of its ledger: the manager is told, and has told it what a worker before it has left."""

from __future__ import annotations

import errno
import json
import logging
import select
import socket
import time

from bellwired.workers import wire
from bellwired.workers.wire import Drop, Inherit, Keep, Named, Report, WireError
from vfio_user import Estate, Kept, Ledger

PATIENCE = 5.0  # seconds that a change, or an estate, is waited for
AGAIN = 0.005  # seconds until descriptors that the kernel did not take are sent again
BATCH = 64  # entries in a message at most

log = logging.getLogger("bellwire.worker")


class ManagersLedger(Ledger):
    """Sends each change to the manager, and returns once it is sent: the kernel delivers it, whatever happens then."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def keep(self, *entries: Kept) -> None:
        """Send entries, in one message if they fit."""
        for batch in batches(entries):
            named = [(entry.key, json.dumps(entry.note), len(entry.fds)) for entry in batch]
            self.send(Keep(named), [fd for entry in batch for fd in entry.fds])

    def drop(self, *keys: str) -> None:
        """Send the keys."""
        if keys:
            self.send(Drop(list(keys)), [])

    def clear(self) -> None:
        """Send that there are no entries any more."""
        self.send(Drop([]), [])

    def send(self, message: Keep | Drop | Report, fds: list[int]) -> None:
        """Send, and wait if the socket is full, or if too many descriptors of the user's processes are under way.

        A change that cannot be told ends the worker: its successor does it.
        """
        deadline, told = time.monotonic() + PATIENCE, False
        while True:
            try:
                wire.send(self._channel, message, fds)
                return
            except BlockingIOError:
                if not self._room(deadline):
                    raise WireError("the manager does not take what a successor of this worker needs") from None
            except ConnectionError:
                return  # the manager has gone, and this worker ends with it
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or time.monotonic() >= deadline:
                    raise
                if not told:
                    log.warning("waiting: too many descriptors are under way between processes of this user")
                    told = True
                time.sleep(AGAIN)

    def _room(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._channel, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def batches(entries: tuple[Kept, ...]) -> list[list[Kept]]:
    """The entries, as many together as one message takes."""
    found: list[list[Kept]] = []
    fds = 0
    for entry in entries:
        if not found or len(found[-1]) == BATCH or fds + len(entry.fds) > wire.MOST_FDS:
            found.append([])
            fds = 0
        found[-1].append(entry)
        fds += len(entry.fds)
    return found


def inherit(channel: socket.socket) -> Estate:
    """Read what a worker before this one has left. Raises a WireError if it does not come whole."""
    deadline = time.monotonic() + PATIENCE
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    entries: dict[str, Kept] = {}
    while True:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WireError("the manager has not sent what the worker before has left")
        received = wire.receive(channel)
        if received is None:
            raise WireError("the manager has gone")
        message, fds = received
        if not isinstance(message, Inherit):
            wire.close(fds)
            continue
        entries |= {entry.key: entry for entry in unpacked(message.entries, fds)}
        if message.last:
            return Estate(entries, hung=message.hung)


def unpacked(named: list[Named], fds: list[int]) -> list[Kept]:
    """The entries of a message with their descriptors. Raises a WireError, and closes all, if some are missing."""
    if sum(count for _, _, count in named) != len(fds):
        wire.close(fds)
        raise WireError(f"{len(fds)} descriptors came, {sum(count for _, _, count in named)} were expected")
    found, left = [], list(fds)
    for key, note, count in named:
        found.append(Kept(key, json.loads(note), tuple(left[:count])))
        del left[:count]
    return found
