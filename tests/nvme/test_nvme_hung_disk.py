"""A disk that hangs: a block device whose file lies in a file system that is frozen (fsfreeze(8))."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bellwire.bundled.nvme.command import IoOpcode
from bellwire.storage.aio import Transfer
from devices.serving import PATIENCE
from nvme.driver import PAGE
from nvme.driving import ServedMachine, driving

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="only root may freeze a file system")]


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


class Frozen:
    """A disk that hangs until it is told to go on, or for ten seconds: a test must not leave it frozen."""

    def __init__(self, image: str, folder: Path) -> None:
        self.image = image
        self.file = folder / "disk"
        """What is behind it: a write to it hangs in the system call that begins it."""
        self._folder = folder
        self._guard: subprocess.Popen[bytes] | None = None

    def hang(self) -> None:
        run("fsfreeze", "-f", str(self._folder))
        thaw = 'sleep 10 & trap "kill $!; exit" TERM; wait; exec fsfreeze -u "$0"'
        self._guard = subprocess.Popen(["sh", "-c", thaw, str(self._folder)], stderr=subprocess.DEVNULL)

    def go_on(self) -> bool:
        """False when nobody has come in time."""
        if self._guard is None:
            return True
        if in_time := self._guard.poll() is None:
            self._guard.terminate()
            run("fsfreeze", "-u", str(self._folder))
        self._guard.wait()
        self._guard = None
        return in_time


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Frozen]:
    with contextlib.ExitStack() as stack:
        folder, system = tmp_path / "mounted", tmp_path / "system"
        folder.mkdir()
        system.touch()
        os.truncate(system, 32 << 20)
        run("mkfs.ext4", "-q", str(system))
        try:
            run("mount", "-o", "loop", str(system), str(folder))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"nothing can be mounted here: {error.stderr}")
        stack.callback(run, "umount", str(folder))
        (folder / "disk").touch()
        os.truncate(folder / "disk", 4 << 20)
        device = run("losetup", "--show", "-f", str(folder / "disk"))
        stack.callback(run, "losetup", "-d", device)
        frozen = Frozen(device, folder)
        stack.callback(frozen.go_on)
        yield frozen


@pytest.mark.parametrize("waits", ["a reset", "memory taken back"])
def test_while_a_disk_hangs_the_other_threads_go_on(disk: Frozen, waits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[Transfer] = []
    monkeypatch.setattr(Transfer, "run", slow.append)
    with driving(image=disk.image, block_size=PAGE, direct=True) as driver:
        machine = driver.machine
        assert isinstance(machine, ServedMachine)
        machine.client.dma_map(1 << 40, PAGE)
        queues = driver.create_queues(1, 64)
        page = driver.allocate(PAGE)
        driver.memory[page : page + PAGE] = b"x" * PAGE
        disk.hang()
        cid = queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(0,))
        queues.ring()
        asked = threading.Event()

        def ask() -> None:
            asked.set()
            if waits == "a reset":
                machine.client.reset()
            else:
                machine.client.dma_unmap(1 << 40, PAGE)

        waiting = threading.Thread(target=ask, name="waiting")
        waiting.start()
        assert asked.wait(PATIENCE)
        waiting.join(0.5)  # the worker is waiting for the disk by now, and this thread runs all the same
        assert waiting.is_alive()
        assert disk.go_on()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        if waits == "memory taken back":
            assert [done.status for done in queues.wait(cid)] == [0]
    assert slow == []
    with open(disk.image, "rb") as device:
        assert device.read(PAGE) == b"x" * PAGE


def test_while_a_write_cannot_even_begin_the_other_threads_go_on(disk: Frozen) -> None:
    with driving(image=str(disk.file), block_size=PAGE, direct=True) as driver:
        queues = driver.create_queues(1, 64)
        page = driver.allocate(PAGE)
        disk.hang()
        cid = queues.put(IoOpcode.WRITE, nsid=1, prp1=page, dwords=(0,))
        queues.ring()
        machine = driver.machine
        assert isinstance(machine, ServedMachine)
        waiting = threading.Thread(target=machine.read, args=(0, 4), name="waiting")
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert disk.go_on()
        waiting.join(PATIENCE)
        assert not waiting.is_alive()
        assert [done.status for done in queues.wait(cid)] == [0]
