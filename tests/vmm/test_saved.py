"""A machine that is saved and restored goes on where it was, as if nothing had happened."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bellwire_vmm.machine.boot import MicroGuest
from bellwire_vmm.saved import file
from bellwire_vmm.saved import machine as saved
from bellwire_vmm.vmm import Machine
from kvm_ioctls import Vcpu, Xcrs
from vmm.program import Program

pytestmark = pytest.mark.kvm

MIB = 1 << 20
COUNTER, NUMBERS, MANY = 0x3_8000, 0x40_0000, 3000
# mov edx, NUMBERS; mov ecx, MANY; then: mov [rdx], ecx; add rdx, 4; inc qword [COUNTER]; dec ecx; jnz
COUNT = (
    b"\xba" + NUMBERS.to_bytes(4, "little") + b"\xb9" + MANY.to_bytes(4, "little")
    + b"\x89\x0a\x48\x83\xc2\x04\x48\xff\x04\x25" + COUNTER.to_bytes(4, "little") + b"\xff\xc9\x75\xee"
)  # fmt: skip


@contextmanager
def saved_file(machine: Machine, folder: Path) -> Iterator[file.SavedFile]:
    """The machine in a file, which has no name any more."""
    with open(folder / "machine", "w+b") as kept:
        os.unlink(kept.name)
        file.write(kept.fileno(), machine.memory, saved.shape_of(machine), saved.take(machine))
        yield file.SavedFile(kept.fileno())


@contextmanager
def moved(machine: Machine, folder: Path) -> Iterator[Machine]:
    """Another machine, which has been restored from a file of the first one; that is gone."""
    with saved_file(machine, folder) as found:
        machine.close()
        with Machine(found.memory, found.shape["cpus"]) as other:
            saved.check(other, found.shape)
            found.load(other.memory)
            saved.give(other, found.state)
            yield other


def stop_at(machine: Machine, moment: int) -> None:
    """Run until the guest has counted so far, at least."""
    seen = threading.Event()

    def watch() -> None:
        while int.from_bytes(machine.memory.read(COUNTER, 8), "little") < moment and not seen.wait(1e-4):
            pass
        machine.stop()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        machine.run(20)
    finally:
        seen.set()
        thread.join()


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moment=st.integers(0, MANY))
def test_a_guest_goes_on_from_any_moment_with_the_result_of_an_undisturbed_run(moment: int, tmp_path: Path) -> None:
    with Machine(8 * MIB) as machine:
        machine.load(MicroGuest(COUNT + Program().leave().code))
        stop_at(machine, moment)
        with moved(machine, tmp_path) as other:
            before = int.from_bytes(other.memory.read(COUNTER, 8), "little")
            assert moment <= before <= MANY
            if before < MANY:
                assert other.resume(20).ok
            assert int.from_bytes(other.memory.read(COUNTER, 8), "little") == MANY
            written = other.memory.read(NUMBERS, 4 * MANY)
            assert written == b"".join(n.to_bytes(4, "little") for n in range(MANY, 0, -1))


def test_a_processor_without_extended_control_registers_moves_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("KVM refuses them where there are none")

    monkeypatch.setattr(Vcpu, "get_xcrs", lambda _: Xcrs())
    monkeypatch.setattr(Vcpu, "set_xcrs", refuse)
    with Machine(8 * MIB) as machine:
        machine.load(MicroGuest(Program().leave().code))
        with moved(machine, tmp_path) as other:
            assert other.resume(20).ok
