"""Another user exchanges the folder of a socket or an image for a link, again and again, while root works in it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bellwire import BellwireError
from bellwire.bundled.nvme.store import Store
from bellwire.network.sockets import DatagramLink
from bellwire.storage import Disk
from bellwire.stream import open_stream
from bellwired.listen import Listener

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users"),
]
NOBODY, RENAME_EXCHANGE = 65534, 2
TRIES = 200
WORK: dict[str, Callable[[Path], object]] = {
    "device": lambda folder: Listener(folder / "sock", 0o666).close(),
    "console": lambda folder: open_stream(f"unix:{folder}/sock").close(),
    "log": lambda folder: open_stream(f"file:{folder}/log").close(),
    "network": lambda folder: DatagramLink(folder / "sock", None).close(),
    "image": lambda folder: Disk.open(folder / "disk.img", size=512).close(),
    "store": lambda folder: Store(folder / "store").close(),
}


@pytest.mark.parametrize("what", WORK)
def test_nothing_lands_behind_a_link_that_comes_and_goes(tmp_path: Path, what: str) -> None:
    theirs, secrets = tmp_path / "theirs", tmp_path / "secrets"
    (theirs / "vm").mkdir(parents=True)
    secrets.mkdir()
    (theirs / "link").symlink_to(secrets)
    for path in (theirs, theirs / "vm", theirs / "link"):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = 0
    with exchanging(theirs, b"vm", b"link"):
        for _ in range(TRIES):
            with contextlib.suppress(BellwireError):
                WORK[what](theirs / "vm")
                done += 1
    assert not list(secrets.iterdir())
    assert done, "the folder has never been there: nothing was tried"


@contextlib.contextmanager
def exchanging(folder: Path, one: bytes, other: bytes) -> Iterator[None]:
    """A process of the other user exchanges two names as fast as it can (renameat2(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            while libc.renameat2(fd, one, fd, other, RENAME_EXCHANGE) == 0:
                pass
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it could not exchange them"
