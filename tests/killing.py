"""Processes that are killed at any step, without processes: what they leave behind goes on in a successor.

A step is a line of device code. At the chosen one, the state file, the areas and the guest's memory are copied, and all
that the code does after that is lost. What has left the process by then has left it: bytes in a stream, in an image.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import bellwire
from bellwire.model.source import StateFiles
from bellwire.testing import Guest
from vfio_user import DmaFlags, DmaMap

CODE = str(Path(bellwire.__file__).parent)
NOT_THE_DEVICES = tuple(f"{CODE}/{part}" for part in ("testing", "declare", "serve"))


class Killed(BaseException):
    """Ends the code whose effects do not count any more."""


class Remains(NamedTuple):
    """What a process leaves: the bytes of its state file and of its areas' files, and the guest's memory.

    ``files`` are those that device code has kept for a successor, by name, each with its note. Those in memory are
    copied. A socket stays what it is, and then ``file`` is the guest's memory, which its other end may have too; an
    image stays, too. The successor owns them.
    """

    state: bytes
    areas: dict[int, bytes]
    memory: bytes
    files: dict[str, tuple[bytes | int, Mapping[str, Any]]]
    file: int | None


def killed(
    guest: Guest[Any], step: int, action: Callable[[], object], where: Callable[[CodeType], bool] = lambda _: True
) -> Remains | None:
    """Run ``action``, and kill the device at line ``step`` of its functions that ``where`` chooses.

    None if it ends before that.
    """
    found: list[Remains] = []
    left = step

    def count(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0 and not found:
                found.append(remains(guest))
                raise Killed
        return count

    def enter(frame: FrameType, _event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        mine = name.startswith(CODE) and not name.startswith(NOT_THE_DEVICES)
        return count if mine and not found and where(frame.f_code) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        action()
    except Killed:
        pass
    finally:
        sys.settrace(before)
    return found[0] if found else None


def remains(guest: Guest[Any]) -> Remains:
    """What the device of ``guest`` would leave now."""
    state, areas = guest.device.core.state.files
    files = {name: (_kept(fd), note) for name, (fd, note) in guest.kept.items()}
    shared = any(isinstance(data, int) and stat.S_ISSOCK(os.fstat(data).st_mode) for data, _ in files.values())
    file = os.dup(guest._memory_fd) if shared else None
    return Remains(_content(state), {bar: _content(fd) for bar, fd in areas.items()}, bytes(guest.memory), files, file)


class Heir(Guest[Any]):
    """A guest whose device finds files that another process has kept, while it is set up, too."""

    def __init__(self, kind: type[Any], found: dict[str, tuple[int, Mapping[str, Any]]], **options: Any) -> None:
        self.found = found
        """Those that it has not taken."""
        super().__init__(kind, **options)

    def kept_file(self, name: str) -> tuple[int, Mapping[str, Any]] | None:
        return self.found.pop(name, None)

    def use(self, file: int) -> None:
        """Have this file as memory."""
        self._dma.clear()
        os.close(self._memory_fd)
        self._memory_fd = file
        flags = DmaFlags.READ | DmaFlags.WRITE
        self._dma.map(DmaMap(flags=flags, offset=0, address=0, size=os.fstat(file).st_size), os.dup(file))
        shared = self._dma.shared_map(0, True)
        assert shared is not None
        self.memory = shared.view


def succeed(left: Remains, kind: type[Any], **options: Any) -> Heir:
    """A guest whose device goes on with what a killed process has left."""
    with ExitStack() as stack:
        found = {
            name: (os.dup(_file(data, stack)) if isinstance(data, bytes) else data, note)
            for name, (data, note) in left.files.items()
        }
        guest = Heir(kind, found, memory=len(left.memory), **options)
        if left.file is None:
            guest.memory[:] = left.memory
        else:
            guest.use(left.file)
        guest.device.core.reset()
        files = StateFiles(_file(left.state, stack), {bar: _file(data, stack) for bar, data in left.areas.items()})
        guest.device.core.take_over(files, client=True, died=True)
    return guest


def _kept(fd: int) -> bytes | int:
    return _content(fd) if os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:") else os.dup(fd)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _file(data: bytes, stack: ExitStack) -> int:
    fd = os.memfd_create("left", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.pwrite(fd, data, 0)
    return fd
