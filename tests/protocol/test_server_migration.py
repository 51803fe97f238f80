"""The states of a device that migrates, as a client brings them about, and the data that it reads and writes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import FakeDevice, FakeMovable, Link, served
from vfio_user import (
    Client,
    Command,
    DeviceFeature,
    DeviceState,
    Estate,
    Feature,
    FeatureFlags,
    Kept,
    Ledger,
    MigrationFlags,
    RemoteError,
    VfioUserError,
)
from vfio_user.device_states import STILL, way
from vfio_user.server_migration import ServerMigration

GET, SET, PROBE = FeatureFlags.GET, FeatureFlags.SET, FeatureFlags.PROBE
ERROR, STOP, RUNNING, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P = DeviceState
OURS = (STOP, RUNNING, STOP_COPY, RESUMING, PRE_COPY)
BETWEEN = {  # the states on the way, from the comments in linux/vfio.h
    (RUNNING, STOP_COPY): (STOP,),
    (RUNNING, RESUMING): (STOP,),
    (STOP, PRE_COPY): (RUNNING,),
    (STOP_COPY, RUNNING): (STOP,),
    (STOP_COPY, RESUMING): (STOP,),
    (RESUMING, RUNNING): (STOP,),
    (RESUMING, STOP_COPY): (STOP,),
    (RESUMING, PRE_COPY): (STOP, RUNNING),
    (PRE_COPY, STOP): (RUNNING,),
    (PRE_COPY, RESUMING): (RUNNING, STOP),
}


def test_each_way_is_that_of_vfio() -> None:
    for start, end in itertools.permutations(OURS, 2):
        if (start, end) == (STOP_COPY, PRE_COPY):
            with pytest.raises(VfioUserError, match="from STOP_COPY to PRE_COPY"):
                way(start, end, pre_copy=True)
        else:
            assert way(start, end, pre_copy=True) == (*BETWEEN.get((start, end), ()), end)


@pytest.mark.parametrize("end", [ERROR, RUNNING_P2P, PRE_COPY_P2P, PRE_COPY])
def test_no_way_leads_to_what_the_device_lacks(end: DeviceState) -> None:
    for start in DeviceState:
        with pytest.raises(VfioUserError, match=f"to {end.name}"):
            way(start, end, pre_copy=False)


def test_no_way_leads_out_of_error() -> None:
    for end in OURS:
        with pytest.raises(VfioUserError, match="only DEVICE_RESET leads out of ERROR"):
            way(ERROR, end, pre_copy=True)


@pytest.fixture
def movable() -> FakeMovable:
    return FakeMovable()


@pytest.fixture
def client(device: FakeDevice, movable: FakeMovable) -> Iterator[Client]:
    with served(device, movable=movable) as (_, sock), Client(sock) as client:
        yield client


def told(client: Client, device: FakeDevice) -> str:
    """Why the server has refused: it says so after the reply, so ask something else first."""
    assert client.device_info().num_regions
    return str(device.refusals[-1])


def read_all(client: Client, size: int = 4) -> bytes:
    return b"".join(iter(lambda: client.migration.read(size), b""))


def test_a_device_moves(client: Client, movable: FakeMovable) -> None:
    assert client.migration.flags() == MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY
    client.migration.set_state(STOP_COPY)
    assert movable.still
    assert read_all(client) == b"end of state"
    client.migration.set_state(RESUMING)
    client.migration.write(b"end of ")
    client.migration.write(b"another")
    client.migration.set_state(RUNNING)
    assert (movable.state, movable.still, client.migration.state) == (b"another", False, RUNNING)


def test_what_was_not_read_in_pre_copy_comes_first_in_stop_copy(client: Client) -> None:
    client.migration.set_state(PRE_COPY)
    assert client.migration.read(6) == b"first "
    client.migration.set_state(STOP_COPY)
    assert read_all(client) == b"of stateend of state"


def test_a_device_without_pre_copy_does_not_offer_it(device: FakeDevice) -> None:
    with served(device, movable=FakeMovable(pre_copy=False)) as (_, sock), Client(sock) as client:
        assert client.migration.flags() == MigrationFlags.STOP_COPY
        with pytest.raises(RemoteError):
            client.migration.set_state(PRE_COPY)


@pytest.mark.parametrize("state", [STOP, RUNNING, RESUMING])
def test_data_is_read_in_its_states_only(client: Client, device: FakeDevice, state: DeviceState) -> None:
    client.migration.set_state(state)
    with pytest.raises(RemoteError):
        client.migration.read(4)
    assert f"the device is in {state.name}" in told(client, device)


@pytest.mark.parametrize("state", [STOP, RUNNING, STOP_COPY, PRE_COPY])
def test_data_is_written_in_resuming_only(client: Client, device: FakeDevice, state: DeviceState) -> None:
    client.migration.set_state(state)
    with pytest.raises(RemoteError):
        client.migration.write(b"data")
    assert f"the device is in {state.name}" in told(client, device)


def test_data_that_is_refused_leaves_the_device_in_resuming_as_it_was(client: Client, movable: FakeMovable) -> None:
    client.migration.set_state(RESUMING)
    client.migration.write(b"nonsense")
    for _ in range(2):  # the second time, there is none
        with pytest.raises(RemoteError):
            client.migration.set_state(RUNNING)
        assert (client.migration.state, movable.state, movable.still) == (RESUMING, b"state", True)
    client.migration.write(b"end of it")
    client.migration.set_state(RUNNING)
    assert movable.state == b"it"


def test_more_data_than_a_state_can_have_is_refused(client: Client, device: FakeDevice) -> None:
    client.migration.set_state(RESUMING)
    client.migration.write(bytes(1000))
    with pytest.raises(RemoteError) as refusal:
        client.migration.write(b"x")
    assert refusal.value.errno == errno.EFBIG
    assert "more than the 1000 bytes" in told(client, device)


def test_a_step_that_the_device_refuses_leaves_it_where_the_step_began(client: Client, movable: FakeMovable) -> None:
    movable.fails["save last"] = VfioUserError("not now", errno.EBUSY)
    with pytest.raises(RemoteError) as refusal:
        client.migration.set_state(STOP_COPY)
    assert (refusal.value.errno, client.migration.state) == (errno.EBUSY, STOP)
    client.migration.set_state(PRE_COPY)
    movable.fails["save last"] = VfioUserError("not now")
    with pytest.raises(RemoteError):
        client.migration.set_state(STOP_COPY)
    assert (client.migration.state, movable.still) == (PRE_COPY, False)


def test_a_device_that_cannot_run_again_is_in_error_until_a_reset(
    client: Client, device: FakeDevice, movable: FakeMovable
) -> None:
    client.migration.set_state(STOP)
    movable.fails["go"] = RuntimeError("a mistake")
    with pytest.raises(RemoteError) as refusal:
        client.migration.set_state(RUNNING)
    assert (refusal.value.errno, client.migration.state) == (errno.EIO, ERROR)
    with pytest.raises(RemoteError):
        client.migration.set_state(RUNNING)
    assert [str(failure) for failure in device.failures] == ["a mistake"]
    client.reset()
    assert (client.migration.state, movable.still) == (RUNNING, False)


@pytest.mark.parametrize("state", OURS)
def test_a_reset_leads_to_running(client: Client, movable: FakeMovable, state: DeviceState) -> None:
    client.migration.set_state(state)
    client.reset()
    assert (client.migration.state, movable.still) == (RUNNING, False)
    assert ("reset" in movable.calls) is (state in STILL)


def test_a_reset_leads_to_stop_while_another_device_has_the_files(client: Client, movable: FakeMovable) -> None:
    movable.files_elsewhere = True
    client.reset()
    assert (client.migration.state, movable.still) == (STOP, True)
    movable.files_elsewhere = False
    client.reset()
    assert (client.migration.state, movable.still) == (RUNNING, False)


BAD = {
    "no such feature": (DeviceFeature(GET, 3), errno.ENOTSUP),
    "no way to set": (DeviceFeature(SET, Feature.MIGRATION), errno.ENOTSUP),
    "no way to get": (DeviceFeature(GET, Feature.DMA_LOGGING_START), errno.ENOTSUP),
    "probed with one too many": (DeviceFeature(PROBE | GET | SET, Feature.MIGRATION), errno.ENOTSUP),
    "no state": (DeviceFeature(SET, Feature.MIG_DEVICE_STATE), errno.EINVAL),
    "half a state": (DeviceFeature(SET, Feature.MIG_DEVICE_STATE, bytes(7)), errno.EINVAL),
    "state 8": (DeviceFeature(SET, Feature.MIG_DEVICE_STATE, struct.pack("<II", 8, 0)), errno.EINVAL),
    "argsz for nothing": (DeviceFeature(GET, Feature.MIGRATION), errno.EINVAL),
}


@pytest.mark.parametrize(("request_", "number"), BAD.values(), ids=BAD.keys())
def test_a_wrong_question_is_refused(device: FakeDevice, request_: DeviceFeature, number: int) -> None:
    with contextlib.closing(Link(device, movable=FakeMovable())) as link:
        link.greet()
        assert link.refused(Command.DEVICE_FEATURE, request_.pack()) == number


@pytest.mark.parametrize("feature", [Feature.MIGRATION, Feature.MIG_DEVICE_STATE])
def test_its_features_can_be_probed(device: FakeDevice, feature: Feature) -> None:
    with contextlib.closing(Link(device, movable=FakeMovable())) as link:
        link.greet()
        probe = DeviceFeature(PROBE, feature).pack()
        assert link.ok(Command.DEVICE_FEATURE, probe) == probe


def test_a_read_of_more_than_a_message_is_refused(device: FakeDevice) -> None:
    with contextlib.closing(Link(device, movable=FakeMovable())) as link:
        link.greet()
        assert link.refused(Command.MIG_DATA_READ, struct.pack("<II", 8 + (2 << 20), 2 << 20)) == errno.E2BIG


# -- any order of steps


class Notes(Ledger):
    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {}

    def keep(self, *entries: Kept) -> None:
        self.kept |= {entry.key: entry for entry in entries}

    def drop(self, *keys: str) -> None:
        for key in keys:
            self.kept.pop(key, None)


steps = st.lists(
    st.one_of(st.sampled_from(DeviceState), st.binary(min_size=1, max_size=9), st.just("reset"), st.just("died")),
    max_size=12,
)


@given(steps)
def test_whatever_a_client_asks_the_device_stands_still_in_the_states_that_say_so(
    asked: list[DeviceState | bytes | str],
) -> None:
    movable, notes = FakeMovable(), Notes()
    migration = ServerMigration(movable, notes)
    for each in asked:
        before = migration.state
        try:
            if isinstance(each, DeviceState):
                migration.set_state(each)
                assert migration.state is each
            elif isinstance(each, bytes):
                migration.write(each)
                assert before is RESUMING
            elif each == "reset":
                migration.reset(lambda: None)
                assert migration.state is RUNNING
            else:
                estate, movable = Estate(notes.kept), FakeMovable()
                migration = ServerMigration(movable, notes)
                migration.inherited(estate)
                assert migration.state is (ERROR if before is RESUMING else before)
        except VfioUserError:
            assert migration.state in OURS or before is ERROR
        assert movable.still is (migration.state in STILL)
        assert (migration.state is RUNNING) is (not notes.kept)


# -- the process of the device dies


def inherited(
    state: DeviceState, *, loaded: bool = False, awaiting: bool = False
) -> tuple[ServerMigration, FakeMovable]:
    movable = FakeMovable()
    migration = ServerMigration(movable, Ledger())
    note = {"state": state.name, "loaded": loaded, "awaiting": awaiting}
    migration.inherited(Estate({"migration": Kept("migration", note)}))
    return migration, movable


@pytest.mark.parametrize("awaiting", [False, True])
def test_a_device_that_waited_for_its_files_and_never_ran_takes_none_when_its_client_leaves(awaiting: bool) -> None:
    migration, movable = inherited(STOP, loaded=True, awaiting=awaiting)
    migration.leave(lambda: None)
    assert (("go" in movable.calls), movable.still) == (not awaiting, False)


@pytest.mark.parametrize("state", [STOP_COPY, PRE_COPY])
def test_data_of_a_process_that_has_died_has_no_end_and_can_be_had_again(state: DeviceState) -> None:
    migration, movable = inherited(state)
    assert movable.still is (state is STOP_COPY)
    with pytest.raises(VfioUserError, match="the process that gave the data has died"):
        migration.read(100)
    migration.set_state(RUNNING)
    migration.set_state(STOP_COPY)
    assert bytes(migration.read(100)) == b"end of state"


def test_pre_copy_cannot_go_on_after_the_process_has_died() -> None:
    migration, _ = inherited(PRE_COPY)
    with pytest.raises(VfioUserError, match=r"the process that gave the data has died.*go back to RUNNING"):
        migration.set_state(STOP_COPY)


def test_data_that_was_written_to_a_process_that_has_died_is_an_error() -> None:
    migration, _ = inherited(RESUMING)
    with pytest.raises(VfioUserError, match="the process that took the data has died"):
        migration.set_state(RUNNING)
    with pytest.raises(VfioUserError, match="the process that took the data has died"):
        migration.write(b"x")
    migration.reset(lambda: None)
    assert migration.state is RUNNING


def test_a_state_that_was_loaded_is_not_lost() -> None:
    migration, movable = inherited(STOP, loaded=True)
    assert (migration.state, movable.calls) == (STOP, ["inherit True"])
