"""What is kept of a device whose worker ends, or whose daemon does, so that its client can be served on."""

from __future__ import annotations

import time
from typing import Any

from bellwired.manager.fd_store import Deposit, FdStore
from bellwired.manager.holder import Holder
from bellwired.manager.reported import Reported
from bellwired.release import release
from bellwired.workers.parcel import About

RESTARTED, DIED = "the daemon was restarted", "the daemon has died"


class Kept(Reported):
    """Holds what a worker has set up for its client, and leaves it to the next daemon."""

    def __init__(self, name: str, *arguments: Any) -> None:
        super().__init__(name, *arguments)
        self.holder = Holder(name, self._about)
        """What its worker has set up for the client."""
        self._deposit = Deposit(name, FdStore())
        self._left = 0.0

    @property
    def awaited(self) -> bool:
        """Whether a client of the daemon before waits for it."""
        return self.holder.holds or bool(self._deposit.refusal)

    def take_up(self, store: FdStore) -> None:
        """Take up the client that the daemon before has left in ``store``. The next start goes on with it.

        What is held from now on is kept in the store, too.
        """
        self._deposit = Deposit(self.name, store)
        about = self._deposit.take_up(self.holder)
        if about is not None:
            self.client = about.client
            self.hand_overs.count = about.hand_overs
            self.hand_overs.begin(RESTARTED if about.left else DIED, about.left)

    def _leave_behind(self) -> None:
        """Close what is open here, and leave the client to the next daemon."""
        self._left = time.monotonic()
        self.holder.note()
        self.holder.leave()
        self._deposit.leave()

    def _leave_client(self) -> None:
        """No successor goes on with the client: let go of it."""
        self.holder.close()
        self.hand_overs.end()
        self.client = None

    def _client_changed(self) -> None:
        self.holder.note()

    def _about(self) -> About:
        """What the next daemon shall know of the device."""
        return About(release(), self.client, self.hand_overs.count, self._left)
