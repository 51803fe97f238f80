"""The sockets that the service manager passes (sd_listen_fds(3)), by systemd-python if it is installed."""

from __future__ import annotations

import os
import socket

from bellwired.errors import CommandError

FIRST_FD = 3


def listeners() -> dict[str, socket.socket]:
    """The sockets that the service manager passed, by name. The caller owns them."""
    found = {}
    for fd, name in passed().items():
        try:
            given = found[name] = socket.socket(fileno=fd)
        except OSError as error:
            raise CommandError(f"descriptor {fd}, {name} by LISTEN_FDNAMES: {error.strerror}") from None
        given.set_inheritable(False)
    return found


def passed() -> dict[int, str]:
    """The descriptors that the service manager passed to this process, with their names. The second call finds none."""
    try:
        from systemd.daemon import listen_fds_with_names
    except ImportError:
        pass
    else:
        wrong = os.environ.get("LISTEN_FDS", "")
        try:
            passed: dict[int, str] = listen_fds_with_names(unset_environment=True)
        except OSError as error:
            raise CommandError(f"LISTEN_FDS={wrong}: {error.strerror}", "the service manager sets it") from error
        return passed
    mine = os.environ.pop("LISTEN_PID", "") == str(os.getpid())
    text = os.environ.pop("LISTEN_FDS", "") or "0"
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if not mine:
        return {}
    count = int(text) if text.isdecimal() and len(text) < 5 else -1
    if count < 0:
        raise CommandError(f"LISTEN_FDS={text}: expected a number of descriptors", "the service manager sets it")
    return {FIRST_FD + at: names[at] if at < len(names) and names[at] else "unknown" for at in range(count)}
