"""What the service manager keeps for the next daemon: its store of descriptors (FDSTORE=1 in sd_notify(3)).

Of each device that runs, the store has the ends of its parcel, and the manager's end of its worker's control socket,
which may have changes that no manager has read yet. A name in the store says which it is, in which format, and of which
device. Only the daemon can put something there: systemd takes these messages from the service's main process alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket

from bellwired.errors import CommandError
from bellwired.manager.holder import Holder
from bellwired.notify import ServiceManager
from bellwired.workers import wire
from bellwired.workers.parcel import FORMAT, About, Parcel
from bellwired.workers.wire import Drop, Keep, WireError

EXIT, ENTRANCE, CHANNEL = "exit", "entrance", "channel"
NAME = re.compile(rf"bellwire(\d+)-({EXIT}|{ENTRANCE}|{CHANNEL})-(.+)")
"""The name of a descriptor in the store: the format, what it is, and the device."""

log = logging.getLogger("bellwired")


class FdStore:
    """The store of ``service_manager``. ``given`` are the sockets that it has passed; the store's own are taken out.

    Without a service manager, nothing is kept.
    """

    def __init__(
        self, service_manager: ServiceManager | None = None, given: dict[str, socket.socket] | None = None
    ) -> None:
        self._service_manager = service_manager
        self.present = service_manager is not None and service_manager.present and os.environ.get("FDSTORE") != "0"
        """Whether the service manager may have a store. systemd tells its size since version 254."""
        self._found: dict[str, dict[str, socket.socket]] = {}
        self._foreign: dict[str, int] = {}
        given = given or {}
        for name in list(given):
            if (match := NAME.fullmatch(name)) is not None:
                form, what, device = match.groups()
                self._found.setdefault(device, {})[what] = given.pop(name)
                if int(form) != FORMAT:
                    self._foreign[device] = int(form)

    @property
    def found(self) -> set[str]:
        """The devices of which the store has something that was not taken yet."""
        return set(self._found)

    def foreign(self, device: str) -> int:
        """The format of what there is of a device, if this version of Bellwire does not know it; else 0."""
        return self._foreign.get(device, 0)

    def take(self, device: str) -> dict[str, socket.socket]:
        """What the store has of ``device``. The caller owns the sockets; the store keeps its own."""
        return self._found.pop(device, {})

    def keep(self, what: str, device: str, sock: socket.socket) -> None:
        """Put a socket into the store, in the place of the last one with that name."""
        if self._service_manager is not None:
            name = _name(what, device)
            self._service_manager.unstore(name)
            self._service_manager.store(name, sock.fileno())

    def drop(self, what: str, device: str, form: int = FORMAT) -> None:
        """Have the store close what it has under a name."""
        if self._service_manager is not None:
            self._service_manager.unstore(_name(what, device, form))

    def forget(self, device: str) -> None:
        """Have the store close everything of ``device``."""
        for sock in self.take(device).values():
            sock.close()
        form = self._foreign.pop(device, FORMAT)
        for what in (EXIT, ENTRANCE, CHANNEL):
            self.drop(what, device, form)


class Deposit:
    """What ``store`` has of the device ``name``."""

    def __init__(self, name: str, store: FdStore) -> None:
        self._name = name
        self._store = store
        self._parcel: Parcel | None = None

    @property
    def used(self) -> bool:
        """Whether the next daemon gets what is held of the device."""
        return self._store.present

    @property
    def refusal(self) -> str:
        """Why what the daemon before has left cannot be taken up; empty if it can."""
        form = self._store.foreign(self._name)
        return (
            ""
            if not form
            else (
                f"another version of Bellwire has left its client here, in format {form}, and this one knows {FORMAT} "
                f"alone: start that version again, or let the client go: bellwire stop {self._name}"
            )
        )

    def check(self) -> None:
        """Raise a CommandError if what the daemon before has left cannot be taken up."""
        if self.refusal:
            raise CommandError(self.refusal)

    def open(self, holder: Holder, channel: socket.socket) -> None:
        """Have everything stored that ``holder`` holds, from now on, and the manager's end of its worker's socket."""
        if not self.used:
            return
        if self._parcel is None:
            self._parcel = Parcel()
            self._store.keep(EXIT, self._name, self._parcel.exit)
            self._store.keep(ENTRANCE, self._name, self._parcel.entrance)
            holder.save(self._parcel)
        self._store.keep(CHANNEL, self._name, channel)

    def worker_ended(self) -> None:
        """The worker has ended, and everything that it has sent was read."""
        if self.used:
            self._store.drop(CHANNEL, self._name)

    def take_up(self, holder: Holder) -> About | None:
        """Give ``holder`` what the daemon before has left. None if there is nothing to go on with."""
        if self.refusal:
            return None
        found = self._store.take(self._name)
        if not found:
            return None
        try:
            self._parcel = Parcel((_checked(found.pop(EXIT)), _checked(found.pop(ENTRANCE))))
            about = holder.unpack(self._parcel)
            if CHANNEL in found:
                _read(_checked(found[CHANNEL]), holder)
        except (KeyError, OSError, WireError) as error:
            log.error("%s: what the daemon before has left of it cannot be used: %s", self._name, error)
            holder.close()
            self.close(holder)
            return None
        finally:
            for sock in found.values():
                sock.close()
        self.worker_ended()
        return about if holder.holds else None

    def close(self, holder: Holder) -> None:
        """Have the store let go of the device."""
        holder.forget_parcel()
        if self._parcel is not None:
            self._parcel.clear()
            self._parcel.close()
            self._parcel = None
        self._store.forget(self._name)

    def leave(self) -> None:
        """Close what is open here. The store keeps its own."""
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None


def _checked(sock: socket.socket) -> socket.socket:
    if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise WireError("it is not a UNIX socket for packets")
    sock.setblocking(False)
    return sock


def _read(channel: socket.socket, holder: Holder) -> None:
    """Take changes over that a worker has sent, and that no manager has read."""
    with contextlib.suppress(BlockingIOError):
        while (received := wire.receive(channel, peek=True)) is not None:
            message, fds = received
            if isinstance(message, Keep | Drop):
                holder.heard(message, fds)
            else:
                wire.close(fds)
            wire.discard(channel)


def _name(what: str, device: str, form: int = FORMAT) -> str:
    return f"bellwire{form}-{what}-{device}"
