"""Who may connect to the control socket, and how often: users who may only look must lock nobody out."""

from __future__ import annotations

from collections import Counter

from bellwired.manager import descriptors

EACH = 32
"""Connections at a time of one user who may only look."""
LOOKERS = 160
"""Connections at a time of all these users together."""
OWN = 200
"""Connections at a time of the daemon's own user. Root has no limit."""


class Admission:
    """Counts the connections by user."""

    def __init__(self) -> None:
        self._operators: Counter[int] = Counter()
        self._lookers: Counter[int] = Counter()

    def refusal(self, uid: int, *, may_change: bool) -> str:
        """Why one more connection of the user is refused. Empty if it is admitted."""
        if uid == 0:
            return ""
        if may_change:
            return f"user {uid} has {OWN} connections already" if self._operators[uid] >= OWN else ""
        if self._lookers[uid] >= EACH:
            return f"user {uid} has {EACH} connections already"
        if self._lookers.total() >= LOOKERS:
            return f"users who may only look have {LOOKERS} connections already"
        if descriptors.scarce():
            used, limit = descriptors.used(), descriptors.limit()
            return f"no descriptors: {used} of {limit} are used, and the rest is for operators; raise LimitNOFILE="
        return ""

    def came(self, uid: int, *, may_change: bool) -> None:
        """Count a connection."""
        (self._operators if may_change else self._lookers)[uid] += 1

    def went(self, uid: int, *, may_change: bool) -> None:
        """Count a connection no more."""
        counted = self._operators if may_change else self._lookers
        counted[uid] -= 1
        if not counted[uid]:
            del counted[uid]
