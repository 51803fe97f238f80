from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bellwire_vmm.device.proxy import ProxyDevice
from bellwire_vmm.vmm import Machine
from kvm_ioctls import KICK_SIGNAL, Vm
from vfio_user import Client
from vmm.program import Outcome, Program, execute
from vmm.toy import Toy, served

MIB = 1 << 20


def _held() -> tuple[int, int, int]:
    mapped = Path("/proc/self/maps").read_text()
    mappings = sum(mapped.count(name) for name in ("guest-memory", "kvm-vcpu", "toy-area"))
    return len(os.listdir("/proc/self/fd")), threading.active_count(), mappings


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test of the VMM ends with the descriptors, threads, mappings and signal handler that it began with."""
    handler, before = signal.getsignal(KICK_SIGNAL), _held()
    yield
    signal.signal(KICK_SIGNAL, handler)
    assert all(now <= then for now, then in zip(_held(), before, strict=True))  # less, when garbage of others went


@pytest.fixture
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What the test has left to the garbage collector is gone: a device that holds views of its own state."""
    yield
    caplog.get_records("call").clear()  # a logged error has the frames in which it came up
    gc.collect()


@pytest.fixture
def relaying(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay speaks for ioregionfds, also where the kernel could."""
    monkeypatch.setattr(Vm, "has_ioregion", lambda vm: False)


@pytest.fixture
def unposting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VMM rings shadow doorbells itself, also where the kernel could."""
    monkeypatch.setattr(Vm, "has_post_write", lambda vm: False)


@pytest.fixture
def machine(nothing_left_behind: None) -> Iterator[Machine]:
    with Machine(16 * MIB) as machine:
        yield machine


@pytest.fixture
def serve(machine: Machine) -> Iterator[Callable[[Toy], Client]]:
    """A client of a toy, which is served for as long as the test runs, and closed after its machine."""
    with ExitStack() as stack:
        yield lambda toy: Client(stack.enter_context(served(toy)))
        machine.close()


@pytest.fixture
def plug(machine: Machine, serve: Callable[[Toy], Client]) -> Callable[[Toy], ProxyDevice]:
    """Plug a toy into the machine."""
    return lambda toy: machine.plug(serve(toy))


@pytest.fixture
def run(machine: Machine, tmp_path: Path) -> Callable[[Program], Outcome]:
    """Run a program on the machine to its good end."""

    def run(program: Program) -> Outcome:
        outcome = execute(machine, program, tmp_path)
        assert outcome.run.ok, outcome.run
        return outcome

    return run
