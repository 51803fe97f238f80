"""What is kept of a device whose worker ends, or whose daemon does, so that its client can be served on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bellwired.manager.fd_store import SOCKET, Deposit, FdStore, Named, name_of
from bellwired.manager.holder import Holder
from bellwired.manager.reported import Reported
from bellwired.manager.unit_socket import UnitSocket
from bellwired.release import release
from bellwired.workers.parcel import About

RESTARTED, DIED = "the daemon was restarted", "the daemon has died"
FAILED = "another daemon has not taken the device over"


class Kept(Reported):
    """Holds what a worker has set up for its client, and leaves it to the next daemon."""

    path: Path
    """Of its socket."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(name, *arguments)
        self.holder = Holder(name, self._about)
        """What its worker has set up for the client."""
        self.socket = UnitSocket()
        self._deposit = Deposit(name, FdStore())
        self._left = 0.0
        self._retired = False

    @property
    def awaited(self) -> bool:
        """Whether a client of the daemon before waits for it."""
        return self.holder.holds or bool(self._deposit.refusal)

    @property
    def patient(self) -> bool:
        """Whether a client waits for it that no other daemon would go on with."""
        return self.holder.holds and not self._deposit.shared

    def take_up(self, store: FdStore) -> None:
        """Take up the client that the daemon before has left in ``store``. The next start goes on with it.

        What is held from now on is kept in the store, too.
        """
        self._deposit = Deposit(self.name, store)
        if (listener := store.listener(self.name)) is not None:
            self.socket.adopt(self.path, *listener)
        found = self._deposit.take_up(self.holder)
        if found is not None:
            about, reports = found
            self.client = about.client
            for report in reports:
                self._heard(report)
            self.hand_overs.count = about.hand_overs
            self.hand_overs.begin(RESTARTED if about.left else DIED, about.left)

    @property
    def goes_on(self) -> bool:
        """Whether another daemon goes on with its client when this one ends."""
        return self._deposit.outlives and self.holder.holds

    def lend(self) -> list[tuple[Named, int]]:
        """What another daemon needs to go on: descriptors, which stay the unit's, and their names.

        Its worker has left. The unit can go on itself until :meth:`gone`.
        """
        self._left = time.monotonic()
        lent = self._deposit.lend(self.holder) if self.holder.holds else []
        self.holder.leave()
        if (listener := self.socket.lend()) is not None:
            sock, identity = listener
            lent.append(((name_of(SOCKET, self.name), *identity), sock.fileno()))
        return lent

    def take_back(self) -> None:
        """The other daemon has not taken what was lent: be ready to go on with it."""
        self._retired = False
        self._left = 0.0
        self.socket.keep()
        if self._deposit.take_back(self.holder):
            self.hand_overs.begin(FAILED)

    def gone(self) -> None:
        """The other daemon has taken what was lent."""
        self._deposit.leave()
        self._deposit = Deposit(self.name, FdStore())

    def _leave_behind(self) -> None:
        """Close what is open here, and leave the client to the next daemon."""
        self._left = time.monotonic()
        self.holder.note()
        self.holder.leave()
        self._deposit.leave()
        self.socket.close()
        self._settle("the daemon stops")

    def _leave_client(self) -> None:
        """No successor goes on with the client: let go of it."""
        if self._deposit.shared:
            self.holder.leave()
        else:
            self.holder.close()
        self.hand_overs.end()
        self.client = None

    def _client_changed(self) -> None:
        self.holder.note()

    def _about(self) -> About:
        """What the next daemon shall know of the device."""
        return About(release(), self.client, self.hand_overs.count, self._left)
