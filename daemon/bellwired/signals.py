"""The names of signals, for people."""

from __future__ import annotations

import signal


def signal_name(number: int) -> str:
    """As ``SIGTERM``; ``signal 35`` for one that has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
