"""The daemon under systemd restarts, dies and is upgraded, and its clients go on: what they have set up is stored."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from bed import Bed
from bellwire.bundled.bell import Bell
from bellwired import messages
from test_manager import SERVICE, configure, socket_of, status
from vfio_user import Client, Disconnected, IoEventFd, VfioUserError

pytestmark = pytest.mark.systemd
PATIENCE = 60.0  # seconds
IN_STORE = 3  # descriptors of a device
PLUGIN = """
from bellwire.bundled.bell import Bell

class Steady(Bell, vendor=0x1234, device=0xBE12, repeats=True):
    '''A bell whose accesses may be done twice.'''
"""


class Busy:
    """A client of a bell that writes, reads back, rings by eventfd and reads the count, over and over, on a thread."""

    def __init__(self, client: Client) -> None:
        self._client = client
        bells = [sub for sub in client.io_fds(1) if isinstance(sub, IoEventFd) and sub.offset == Bell.wildcard.offset]
        self._bell = bells[0].fd
        self._stopped = threading.Event()
        self._turned = threading.Condition()
        self.turns = 0
        self.longest = 0.0
        """The seconds of the longest turn since :meth:`after`."""
        self.error: BaseException | None = None
        self._holds = self._still = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def goes_on(self) -> None:
        """Return when it has done a turn that began after this call. Raises what has ended it."""
        with self._turned:
            wanted = self.turns + 2
            self._turned.wait_for(lambda: self.turns >= wanted or self.error is not None, PATIENCE)
            if self.error is not None:
                raise self.error
            assert self.turns >= wanted

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """No turn is under way in the block."""
        with self._turned:
            self._holds = True
            assert self._turned.wait_for(lambda: self._still, PATIENCE)
        try:
            yield
        finally:
            with self._turned:
                self._holds = False
                self._turned.notify_all()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._turned:
                    self._still = True
                    self._turned.notify_all()
                    self._turned.wait_for(lambda: not self._holds)
                    self._still = False
                begun = time.monotonic()
                self._turn(self.turns + 1)
                with self._turned:
                    self.turns += 1
                    self.longest = max(self.longest, time.monotonic() - begun)
                    self._turned.notify_all()
        except (VfioUserError, AssertionError) as error:
            with self._turned:
                self.error = error
                self._turned.notify_all()

    def _turn(self, number: int) -> None:
        self._client.write(0, Bell.plain.offset, number.to_bytes(4, "little"))
        assert self._read(Bell.plain.offset, 4) == number
        os.eventfd_write(self._bell, 1)
        assert self._read(Bell.wildcard_count.offset, 8) == number

    def _read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._client.read(0, offset, size), "little")


def stored(systemd: Bed) -> int:
    """The number of descriptors that systemd keeps."""
    return int(systemd.show(SERVICE, "NFileDescriptorStore"))


def main_pid(systemd: Bed) -> str:
    return systemd.show(SERVICE, "MainPID")


@pytest.fixture
def bellwired(systemd: Bed) -> Iterator[Bed]:
    """A daemon with one device."""
    systemd.forget()
    plugins = systemd.path("/etc/bellwire/plugins")
    plugins.mkdir(exist_ok=True)
    (plugins / "steady.py").write_text(PLUGIN)
    configure(systemd, "devices.d/bell", 'device = "steady"\n')
    systemd.start(SERVICE)
    yield systemd
    systemd.stop(SERVICE, "bellwired.socket")
    systemd.systemctl("reset-failed")
    systemd.systemctl("revert", SERVICE)
    for file in systemd.path("/etc/bellwire").rglob("*.toml"):
        file.unlink()
    assert not [entry for entry in systemd.journal(_SYSTEMD_UNIT=SERVICE) if "Traceback" in entry["MESSAGE"]]


@pytest.fixture
def busy(bellwired: Bed) -> Iterator[Busy]:
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client, Busy(client) as busy:
        busy.goes_on()
        yield busy


def taken_over(systemd: Bed, act: Callable[[], object]) -> str:
    """Do ``act``, and wait until a new daemon has taken the client over. What its journal says."""
    systemd.forget()
    act()
    return str(systemd.heard(MESSAGE_ID=messages.TAKEN_OVER, BELLWIRE_DEVICE="bell")["MESSAGE"])


def kill(systemd: Bed, busy: Busy, *words: str) -> None:
    """Run a command that kills what serves, and return when it has ended. The client asks for nothing meanwhile.

    It may otherwise wait for a reply for ever: docs/operating.md says which one a death loses.
    """
    worker = systemd.path(f"/proc/{status(systemd, 'bell')['pid']}")
    with busy.holding():
        systemd.run(*words)
        deadline = time.monotonic() + PATIENCE
        while worker.exists():
            assert time.monotonic() < deadline
            os.sched_yield()


def test_a_restart_keeps_the_client(bellwired: Bed, busy: Busy, record_property: Callable[[str, object], None]) -> None:
    for turn in (1, 2):
        before = main_pid(bellwired)
        bellwired.systemctl("restart", SERVICE)
        assert main_pid(bellwired) != before
        busy.goes_on()
        told = status(bellwired, "bell")
        assert told["hand_overs"]["count"] == turn
        assert told["hand_overs"]["reason"] == "the daemon was restarted"
        assert told["client"]["capabilities"], "the client is known as before"
    record_property("pause", busy.longest)


def test_a_daemon_that_is_killed_is_followed_by_another_that_goes_on(bellwired: Bed, busy: Busy) -> None:
    for _ in range(2):
        taken_over(bellwired, lambda: kill(bellwired, busy, "kill", "-KILL", main_pid(bellwired)))
        busy.goes_on()
    assert status(bellwired, "bell")["hand_overs"]["reason"] == "the daemon has died"


def test_a_fork_server_that_is_killed_costs_no_client(bellwired: Bed, busy: Busy) -> None:
    taken_over(bellwired, lambda: kill(bellwired, busy, "pkill", "--signal=KILL", "--parent", main_pid(bellwired)))
    busy.goes_on()
    bellwired.systemctl("restart", SERVICE)
    busy.goes_on()


def test_an_upgrade_keeps_the_client(bellwired: Bed, busy: Busy) -> None:
    folders = ("daemon", "devices", "protocol", "kvm")
    bellwired.run("mkdir", "-p", "/opt/next")
    bellwired.run("cp", "-r", *(f"/srv/bellwire/src/{folder}" for folder in folders), "/opt/next")
    with bellwired.path("/opt/next/daemon/bellwired/manager/kept.py").open("a") as newer:
        newer.write('\nRESTARTED = "the daemon was upgraded"\n')
    places = ":".join(f"/opt/next/{folder}" for folder in folders)
    bellwired.unit(f"{SERVICE}.d/next.conf", f"[Service]\nEnvironment=PYTHONPATH={places}\n")
    bellwired.systemctl("restart", SERVICE)
    busy.goes_on()
    assert status(bellwired, "bell")["hand_overs"]["reason"] == "the daemon was upgraded"


def test_a_worker_that_dies_after_a_restart_has_a_successor(bellwired: Bed, busy: Busy) -> None:
    bellwired.systemctl("restart", SERVICE)
    taken_over(bellwired, lambda: kill(bellwired, busy, "kill", "-KILL", str(status(bellwired, "bell")["pid"])))
    busy.goes_on()


def test_what_is_stored_does_not_grow_and_goes_with_the_device(bellwired: Bed) -> None:
    assert stored(bellwired) == IN_STORE
    for _ in range(2):
        with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
            client.io_fds(1)
            assert stored(bellwired) == IN_STORE
            bellwired.systemctl("restart", SERVICE)
            assert stored(bellwired) == IN_STORE
    bellwired.run("bellwire", "stop", "bell")
    assert stored(bellwired) == 0


def test_a_stop_ends_the_client(bellwired: Bed) -> None:
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        bellwired.stop(SERVICE)
        with pytest.raises(Disconnected):
            client.read(0, 0, 4)
    assert [path.name for path in bellwired.path("/run/bellwire").iterdir()] == ["control"]


def test_a_device_without_a_client_starts_anew(bellwired: Bed) -> None:
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        client.write(0, Bell.plain.offset, bytes([42, 0, 0, 0]))
    bellwired.heard(MESSAGE_ID=messages.CLIENT_LEFT, BELLWIRE_DEVICE="bell")
    bellwired.systemctl("restart", SERVICE)
    with Client.connect(socket_of(bellwired, "bell"), timeout=PATIENCE) as client:
        assert client.read(0, Bell.plain.offset, 4) == bytes(4)
    assert status(bellwired, "bell")["hand_overs"]["count"] == 0
