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
from bellwired.workers.wire import Drop, Keep, Report, WireError

EXIT, ENTRANCE, CHANNEL, SOCKET = "exit", "entrance", "channel", "socket"
Named = tuple[str, int, int]
"""A name, and for a listening socket the device and inode of its path."""
OF_CLIENT = ("connected", "introduced", "mapped", "left")
NAME = re.compile(rf"bellwire(\d+)-({EXIT}|{ENTRANCE}|{CHANNEL}|{SOCKET})-(.+)")
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
        self.shared = False
        """Whether another daemon has what was given, and goes on if this one ends."""
        self._identities: dict[str, tuple[int, int]] = {}
        self._found: dict[str, dict[str, socket.socket]] = {}
        self._foreign: dict[str, int] = {}
        given = given or {}
        for name in list(given):
            if (match := NAME.fullmatch(name)) is not None:
                form, what, device = match.groups()
                self._found.setdefault(device, {})[what] = given.pop(name)
                if int(form) != FORMAT:
                    self._foreign[device] = int(form)

    @classmethod
    def of(cls, given: dict[str, tuple[socket.socket, tuple[int, int]]]) -> FdStore:
        """What another daemon has given: sockets by name, with device and inode of the path of one that listens."""
        store = cls(None, {name: sock for name, (sock, _) in given.items()})
        store.shared = True
        store._identities = {name: identity for name, (_, identity) in given.items()}
        return store

    def listener(self, device: str) -> tuple[socket.socket, tuple[int, int]] | None:
        """The listening socket of ``device``, if there is one. The caller owns it."""
        sock = self._found.get(device, {}).pop(SOCKET, None)
        if sock is None or (identity := self._identities.get(name_of(SOCKET, device))) is None:
            return None
        return sock, identity

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
            name = name_of(what, device)
            self._service_manager.unstore(name)
            self._service_manager.store(name, sock.fileno())

    def drop(self, what: str, device: str, form: int = FORMAT) -> None:
        """Have the store close what it has under a name."""
        if self._service_manager is not None:
            self._service_manager.unstore(name_of(what, device, form))

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
    def outlives(self) -> bool:
        """Whether another daemon can go on with what is held, now."""
        return self._store.present or self._store.shared

    @property
    def shared(self) -> bool:
        """Whether another daemon goes on with what is held if this one ends."""
        return self._store.shared

    @property
    def refusal(self) -> str:
        """Why what the daemon before has left cannot be taken up; empty if it can."""
        form = self._store.foreign(self._name)
        if not form:
            return ""
        left = (
            f"another version of Bellwire has left its client here, in format {form}, and this one knows {FORMAT} alone"
        )
        return f"{left}: start that version again, or let the client go: bellwire stop {self._name}"

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

    def take_up(self, holder: Holder) -> tuple[About, list[Report]] | None:
        """Give ``holder`` what the daemon before has left. None if there is nothing to go on with.

        The reports are of the client, and no manager has read them.
        """
        if self.refusal:
            return None
        found = self._store.take(self._name)
        if not found.keys() & {EXIT, ENTRANCE, CHANNEL}:
            return None
        try:
            self._parcel = Parcel((_checked(found.pop(EXIT)), _checked(found.pop(ENTRANCE))))
            about = holder.unpack(self._parcel)
            reports = _read(_checked(found[CHANNEL]), holder) if CHANNEL in found else []
        except (KeyError, OSError, WireError) as error:
            log.error("%s: what the daemon before has left of it cannot be used: %s", self._name, error)
            holder.close()
            self.close(holder)
            return None
        finally:
            for sock in found.values():
                sock.close()
        self.worker_ended()
        return (about, reports) if holder.holds else None

    def lend(self, holder: Holder) -> list[tuple[Named, int]]:
        """The ends of the parcel with all that ``holder`` holds, and their names. Raises a CommandError."""
        if self._parcel is None:
            self._parcel = Parcel()
            holder.save(self._parcel)
        else:
            holder.note()
        if holder.unsaved:
            raise CommandError(f"{self._name} cannot be handed over: {holder.unsaved}")
        ends = {EXIT: self._parcel.exit, ENTRANCE: self._parcel.entrance}
        return [((name_of(what, self._name), 0, 0), sock.fileno()) for what, sock in ends.items()]

    def take_back(self, holder: Holder) -> bool:
        """Give ``holder`` what is in the parcel now. Whether there is anything to go on with."""
        if self._parcel is not None and not holder.holds:
            holder.unpack(self._parcel)
        return holder.holds

    def close(self, holder: Holder) -> None:
        """Have the store let go of the device."""
        holder.forget_parcel()
        if self._parcel is not None:
            if not self.shared:
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


def _read(channel: socket.socket, holder: Holder) -> list[Report]:
    """Take changes over that a worker has sent, and that no manager has read. Returns its reports of the client."""
    reports = []
    with contextlib.suppress(BlockingIOError):
        while (received := wire.receive(channel, peek=True)) is not None:
            message, fds = received
            if isinstance(message, Keep | Drop):
                holder.heard(message, fds)
            else:
                wire.close(fds)
                if isinstance(message, Report) and message.kind in OF_CLIENT:
                    reports.append(message)
            wire.discard(channel)
    return reports


def name_of(what: str, device: str, form: int = FORMAT) -> str:
    """The name of a descriptor in the store."""
    return f"bellwire{form}-{what}-{device}"
