"""Machines with devices that move while their guests ring, and what happens when one end fails."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from bellwire.bundled.bell import Bell
from bellwire.bundled.edu import Edu
from bellwire_vmm.errors import MigrationError, StateError, VmmError
from bellwire_vmm.guests.layout import pack_rings
from bellwire_vmm.machine.boot import MicroGuest
from bellwire_vmm.moving import HandedOverError, Policy, Source, Target
from bellwire_vmm.moving.wire import Kind, Wire
from bellwire_vmm.saved import devices
from bellwire_vmm.vmm import Machine
from vfio_user import Client, DeviceState, RemoteError, VfioUserError
from vmm import toy
from vmm.program import Program
from vmm.test_guests import PATHS
from vmm.test_moving import COUNT, STOP, move, number
from vmm.test_saved_devices import GUESTS, NUMBERS, check_bell, plugged
from vmm.toy import Toy

pytestmark = pytest.mark.kvm

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("name", GUESTS)
def test_a_guest_moves_with_its_device_and_no_ring_or_byte_is_lost(name: str, tmp_path: Path) -> None:
    kind, options, parameters, check = GUESTS[name]
    arriving = options
    if "image" in options:
        (tmp_path / "numbers").write_bytes(NUMBERS)
        options = options | {"image": str(tmp_path / "numbers")}
        arriving = options | {"incoming": True}
    with plugged(kind, **options) as here, Machine(16 * MIB) as machine:
        here(machine)
        machine.load(name, parameters)
        with ExitStack() as stack:

            def other(target: Target) -> Machine:
                there = stack.enter_context(plugged(kind, **arriving))
                made = stack.enter_context(Machine(target.shape["memory"]))
                there(made)
                return made

            ends = move(machine, other)
            assert (ends.here_error, ends.there_error) == (None, None)
            assert ends.there is not None
            result = ends.there.resume(60)
            assert result.ok, result
            check(ends.there.memory)


def test_all_of_memory_is_copied_again_for_a_device_whose_server_logs_no_writes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(*_: object) -> int:
        raise RemoteError("DEVICE_FEATURE", errno.ENOTTY)

    with plugged(Bell) as here, Machine(16 * MIB) as machine, plugged(Bell) as there, Machine(16 * MIB) as other:
        here(machine)
        there(other)
        monkeypatch.setattr(type(machine.devices[0].peer.client.dirty), "start", lacking)
        machine.load("bell", pack_rings(list(PATHS.values())))
        ends = move(machine, lambda _: other, Policy(pause=30))
        assert ends.moved is not None
        assert ends.moved.rest == sum(map(len, machine.memory.stretches()))
        result = other.resume(60)
        assert result.ok, result
        check_bell(other.memory)


def test_a_pause_for_all_of_memory_that_is_too_long_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> int:
        raise RemoteError("DEVICE_FEATURE", errno.ENOTSUP)

    with plugged(Bell) as here, Machine(16 * MIB) as machine, plugged(Bell) as there, Machine(16 * MIB) as other:
        here(machine)
        there(other)
        monkeypatch.setattr(type(machine.devices[0].peer.client.dirty), "start", lacking)
        monkeypatch.setattr(Source, "_expected", lambda _: 2.0)
        machine.load(MicroGuest(COUNT + Program().leave().code))
        ends = move(machine, lambda _: other)
        assert str(ends.here_error) == (
            "a device's server logs no writes, so all of RAM is copied in the pause: that would take 2.0 s, and at "
            "most 0.5 s are allowed"
        )


def test_a_device_whose_server_offers_no_migration_keeps_its_guest_here() -> None:
    with toy.served(Toy("wildcard")) as sock, Machine(16 * MIB) as machine:
        machine.plug(Client(sock))
        machine.load(MicroGuest(COUNT + Program().leave().code))
        ends = move(machine, lambda target: Machine(target.shape["memory"]))
        assert str(ends.here_error) == "slot 1: 1234:be11 offers no migration, so it stays here"
        machine.memory.write(STOP, b"\1")
        assert machine.resume(20).ok


def test_a_device_is_told_from_a_vmm_that_waits_for_a_guest() -> None:
    with toy.served(Toy("wildcard")) as sock, Machine(16 * MIB) as machine:
        source = Source(machine, sock, "")
        with pytest.raises(MigrationError, match="the target is no VMM that waits for a guest"):
            source.approach()
        source.close()


def test_a_target_that_cannot_take_the_state_leaves_guest_and_devices_at_work_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise StateError("section 'slot 1 data' is torn")

    with plugged(Bell) as here, Machine(16 * MIB) as machine, plugged(Bell) as there, Machine(16 * MIB) as other:
        here(machine)
        there(other)
        machine.load("bell", pack_rings(list(PATHS.values())))
        with monkeypatch.context() as patched:
            patched.setattr("bellwire_vmm.saved.machine.give", refuse)
            ends = move(machine, lambda _: other)
        assert str(ends.there_error) == "section 'slot 1 data' is torn"
        assert str(ends.here_error) == "the target gives up: section 'slot 1 data' is torn"
        result = machine.resume(60)
        assert result.ok, result
        check_bell(machine.memory)


@pytest.mark.usefixtures("collected")
def test_a_target_that_cannot_start_gives_the_image_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind, options, parameters, check = GUESTS["nvme"]
    (tmp_path / "numbers").write_bytes(NUMBERS)
    options = options | {"image": str(tmp_path / "numbers")}
    with (
        plugged(kind, **options) as here,
        Machine(16 * MIB) as machine,
        plugged(kind, **options, incoming=True) as there,
        Machine(16 * MIB) as other,
    ):
        here(machine)
        there(other)
        machine.load("nvme", parameters)
        start = devices.start

        def refuse(started: Machine) -> None:
            start(started)
            if started is other:
                raise StateError("slot 2 does not start")

        monkeypatch.setattr(devices, "start", refuse)
        ends = move(machine, lambda _: other)
        assert str(ends.here_error) == "the target gives up: slot 2 does not start"
        result = machine.resume(60)
        assert result.ok, result
        check(machine.memory)


def test_a_device_that_does_not_run_again_is_told_with_what_went_wrong_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise VfioUserError("another device has the image")

    with plugged(Edu) as edu, Machine(16 * MIB) as machine:
        edu(machine)
        migration = type(machine.devices[0].peer.client.migration)

        def fail() -> None:
            with devices.stopped(machine):
                monkeypatch.setattr(migration, "set_state", refuse)
                raise StateError("no room")

        both = r"^no room; and a device does not run again: slot 1, 1234:11e8: another device has the image$"
        with pytest.raises(StateError, match=both):
            fail()


def test_a_device_that_refuses_to_stop_is_named_and_the_others_go_on() -> None:
    with plugged(Edu) as edu, plugged(Bell) as bell, Machine(16 * MIB) as machine:
        edu(machine)
        bell(machine)
        first, second = (device.peer.client.migration for device in machine.devices)
        second.set_state(DeviceState.RESUMING)
        second.write(b"half a state")
        with pytest.raises(StateError, match=r"^slot 2, 1234:be11: "):
            devices.stop(machine)
        states = [first.state]
        with pytest.raises(StateError):
            devices.start(machine)
        assert [*states, first.state] == [DeviceState.STOP_COPY, DeviceState.RUNNING]


class Bare:
    """A target that is played by the test, frame by frame."""

    def __init__(self, machine: Machine) -> None:
        left, right = socket.socketpair()
        self.source = Source(machine, left, "")
        self.wire = Wire(right, "source")

    def take(self, *kinds: Kind) -> None:
        """Take frames until there has been one of each kind, and say GOOD after each that wants an answer."""
        for wanted in kinds:
            kind = None
            while kind is not wanted:
                kind, length = self.wire.receive(dict.fromkeys(Kind, 1 << 30))
                self.wire.receive_into(memoryview(bytearray(length)))
            self.wire.send(Kind.GOOD)


@pytest.mark.parametrize(
    ("kinds", "error"), [((Kind.HELLO,), MigrationError), ((Kind.HELLO, Kind.STATE), HandedOverError)]
)
def test_a_target_that_dies_before_its_last_word_or_after_it_was_told_to_start(
    machine: Machine, kinds: tuple[Kind, ...], error: type[MigrationError]
) -> None:
    machine.load(MicroGuest(COUNT + Program().leave().code))
    bare = Bare(machine)

    def play() -> None:
        bare.take(*kinds)
        if len(kinds) > 1:
            bare.wire.receive({Kind.GO: 0})
        bare.wire.close()

    caught: list[VmmError] = []

    def approach() -> None:
        try:
            bare.source.approach()
        except VmmError as failed:
            caught.append(failed)
        machine.stop()

    threads = [threading.Thread(target=each) for each in (play, approach)]
    for thread in threads:
        thread.start()
    machine.resume(30)
    threads[1].join()
    if not caught:
        with pytest.raises(VmmError) as raised:
            bare.source.finish()
        caught.append(raised.value)
    threads[0].join()
    bare.source.close()
    assert type(caught[0]) is error
    if error is HandedOverError:
        assert "after it was told to start the guest, which ends here" in str(caught[0])
    else:
        before = number(machine, 0x3_8000)
        machine.memory.write(STOP, b"\1")
        assert machine.resume(20).ok
        assert number(machine, 0x3_8000) >= before
