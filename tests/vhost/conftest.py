from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bellwire.bundled.vhost import Vhost
from bellwire.vhost.messages import Request
from vhost.program import Program
from virtio.driver import Driver


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the back end listens."""
    return tmp_path / "sock"


@pytest.fixture
def start(place: Path) -> Iterator[Callable[..., Program]]:
    """Start a back end: ``start(...)``. It ends with the test."""
    with contextlib.ExitStack() as stack:

        def start(**options: Any) -> Program:
            program = Program(place, **options)
            stack.callback(lambda: program.crash() if not program.crashed else None)
            return program

        yield start


@pytest.fixture
def attach(place: Path) -> Iterator[Callable[..., Driver]]:
    """A driver of a device whose back end is at the place: ``attach(...)`` with more options."""
    with contextlib.ExitStack() as stack:

        def attach(**options: Any) -> Driver:
            driver = Driver(Vhost, **{"backend": f"unix:{place}", "type": "rng"} | options)
            stack.callback(driver.close)
            return driver

        yield attach


@pytest.fixture
def memfd() -> Iterator[Callable[[int], int]]:
    """Make a file of this size in memory."""
    with contextlib.ExitStack() as stack:

        def make(size: int) -> int:
            fd = os.memfd_create("test", os.MFD_CLOEXEC)
            stack.callback(os.close, fd)
            os.ftruncate(fd, size)
            return fd

        yield make


@pytest.fixture
def refusal() -> Callable[[Request], bytes]:
    """The answer of a back end that refuses a request."""
    return lambda request: struct.pack("<IIIQ", request, 5, 8, 1)
