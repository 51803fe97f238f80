"""The manager's file descriptors: how many are used, and who may have the last ones.

A daemon with many devices may reach its limit (RLIMIT_NOFILE, ``LimitNOFILE=`` of its unit). The last descriptors are
kept for the callers of the control socket, so that an operator can find out and stop a device.
"""

from __future__ import annotations

import contextlib
import os
import resource

from bellwired.errors import CommandError

RESERVE = 48
"""Descriptors that no start of a device may take."""
LAST = 16
"""Of these, the number that only operators may take: not users who may only look, and not scrapes of metrics."""


def used() -> int:
    """The number of descriptors that this process has open."""
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))  # Linux before 6.2 has no size here
    return limit()


def limit() -> int:
    """The number that it may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def demand(count: int) -> None:
    """Check that a device may take ``count`` descriptors. Raises a CommandError if it may not."""
    taken, most = used(), limit()
    if taken + count + RESERVE > most:
        raise CommandError(
            f"too many open files: {taken} of {most} descriptors are used, a device needs {count}, and {RESERVE} are "
            "kept for operators; raise LimitNOFILE= of the daemon's unit"
        )


def scarce() -> bool:
    """Whether the rest is for operators alone."""
    return used() + LAST >= limit()
