from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from kvm_ioctls import KICK_SIGNAL, Kvm, install_kick_handler
from realmode import Guest


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm.open() as kvm:
        yield kvm


@pytest.fixture
def boot(kvm: Kvm) -> Iterator[Callable[..., Guest]]:
    """Make a `Guest`, closed when the test ends."""
    with ExitStack() as stack:
        yield lambda code, **options: stack.enter_context(Guest(kvm, code, **options))


@pytest.fixture
def eventfd() -> Iterator[Callable[[], int]]:
    """Make an eventfd, closed when the test ends."""
    with ExitStack() as stack:

        def make() -> int:
            fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            stack.callback(os.close, fd)
            return fd

        yield make


@pytest.fixture
def kick_handler() -> Iterator[None]:
    before = signal.getsignal(KICK_SIGNAL)
    install_kick_handler()
    yield
    signal.signal(KICK_SIGNAL, before)
