"""Tells the service manager about the daemon, and takes the sockets that it passes (sd_notify(3), sd_listen_fds(3)).

Uses systemd-python if it is installed. Without it, this module sends the few bytes of sd_notify itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from bellwired.errors import CommandError

FIRST_FD = 3
PATIENCE = 1.0  # seconds for a service manager whose queue is full


def notify(**state: str) -> None:
    """Send ``notify(READY="1", STATUS="...")``. Without a service manager, do nothing."""
    text = "\n".join(f"{key}={value}" for key, value in state.items())
    try:
        from systemd import daemon
    except ImportError:
        _send(text)
    else:
        with contextlib.suppress(OSError):
            daemon.notify(text)


def extension(seconds: float) -> dict[str, str]:
    """For :func:`notify`: allow the current start, reload or stop so many seconds from now on."""
    return {"EXTEND_TIMEOUT_USEC": str(round(seconds * 1e6))}


def reloading() -> None:
    """Say that a reload has begun. ``notify(READY="1")`` ends it."""
    notify(RELOADING="1", MONOTONIC_USEC=str(time.monotonic_ns() // 1000))


def watchdog_interval() -> float:
    """Seconds between two signs of life that the watchdog expects; 0 without a watchdog."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    text = os.environ.get("WATCHDOG_USEC", "0")
    return int(text) / 1e6 if text.isdecimal() else 0.0


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


def _send(text: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),  # a service manager that does not listen is no reason to stop
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
    ):
        sock.settimeout(PATIENCE)
        sock.connect(address)
        sock.sendall(text.encode())
