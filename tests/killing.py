"""Processes that are killed at any step, without processes: what they leave behind goes on in a successor.

A step is a line of device code. At the chosen one, the state file, the areas and the guest's memory are copied, and all
that the code does after that is lost. What has left the process by then has left it: bytes in a stream, in an image.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import bellwire
from bellwire.model.source import StateFiles
from bellwire.testing import Guest

CODE = str(Path(bellwire.__file__).parent)
NOT_THE_DEVICES = tuple(f"{CODE}/{part}" for part in ("testing", "declare", "serve"))


class Killed(BaseException):
    """Ends the code whose effects do not count any more."""


class Remains(NamedTuple):
    """What a process leaves: the bytes of its state file and of its areas' files, and the guest's memory.

    ``files`` are those that device code has kept for a successor, by name, each with its note.
    """

    state: bytes
    areas: dict[int, bytes]
    memory: bytes
    files: dict[str, tuple[bytes, Mapping[str, Any]]]


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
    files = {name: (_content(fd), note) for name, (fd, note) in guest.kept.items()}
    return Remains(_content(state), {bar: _content(fd) for bar, fd in areas.items()}, bytes(guest.memory), files)


def succeed(left: Remains, kind: type[Any], **options: Any) -> Guest[Any]:
    """A guest whose device goes on with what a killed process has left."""
    guest = Guest(kind, memory=len(left.memory), **options)
    guest.memory[:] = left.memory
    guest.device.core.reset()
    with ExitStack() as stack:
        guest.left = {name: (os.dup(_file(data, stack)), note) for name, (data, note) in left.files.items()}
        files = StateFiles(_file(left.state, stack), {bar: _file(data, stack) for bar, data in left.areas.items()})
        guest.device.core.take_over(files, client=True, died=True)
    return guest


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _file(data: bytes, stack: ExitStack) -> int:
    fd = os.memfd_create("left", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    os.pwrite(fd, data, 0)
    return fd
