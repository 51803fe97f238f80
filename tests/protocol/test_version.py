from __future__ import annotations

import errno
import json
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.backend import ERROR, NO_REPLY, PLAIN, QEMU_PROPOSAL, REPLY, FakeDevice, Link
from vfio_user import Capabilities, Command, FramingError, Mechanism, ProtocolError, RegionAccess, Version
from vfio_user.constants import IO_FDS
from vfio_user.version import QEMU_REPLY


def answered(payload: bytes) -> dict[str, Any]:
    """The capabilities in a VERSION reply."""
    assert payload[-1:] == b"\0"
    capabilities: dict[str, Any] = json.loads(payload[4:-1])["capabilities"]
    return capabilities


# -- numbers


@pytest.mark.parametrize(("proposed", "agreed"), [(0, 0), (1, 1), (2, 2), (3, 2), (0xFFFF, 2)])
def test_the_lower_minor_version_is_agreed(stranger: Link, proposed: int, agreed: int) -> None:
    answer = stranger.greet(minor=proposed)
    assert answer.flags == REPLY
    assert struct.unpack_from("<HH", answer.payload) == (0, agreed)


def test_another_major_version_is_refused_and_ends_the_connection(stranger: Link) -> None:
    stranger.send(Command.VERSION, struct.pack("<HH", 1, 0))
    with pytest.raises(FramingError, match=r"1\.0, expected 0\.0 to 0\.2"):
        stranger.session.service()
    assert stranger.receive()[2:5] == (REPLY | ERROR, errno.EINVAL, b"")


def test_version_without_json_has_the_default_capabilities(stranger: Link) -> None:
    assert answered(stranger.greet(b"").payload) == {}
    assert stranger.session.client == Capabilities()


# -- capabilities


def test_the_reply_to_qemu_fits_its_buffer(stranger: Link) -> None:
    request = 16 + 4 + len(QEMU_PROPOSAL)
    assert request == QEMU_REPLY
    answer = stranger.greet()
    assert 16 + len(answer.payload) <= QEMU_REPLY
    assert answer.fds == []


def test_the_reply_to_qemu_is_one_that_it_believes(stranger: Link) -> None:
    capabilities = answered(stranger.greet().payload)
    assert capabilities["max_msg_fds"] <= 16
    assert capabilities["max_data_xfer_size"] <= 64 << 20
    assert capabilities["max_dma_maps"] <= 65535
    assert capabilities["pgsizes"] >= 4096


NAMES = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "write_multiple", "io_fds")
VALUES = {"write_multiple": True, "io_fds": ["ioeventfd"], "pgsizes": 4096}


@pytest.mark.parametrize("name", NAMES)
def test_a_capability_that_was_proposed_is_answered(stranger: Link, name: str) -> None:
    proposal = json.dumps({"capabilities": {name: VALUES.get(name, 16)}}).encode() + b"\0"
    assert set(answered(stranger.greet(proposal).payload)) == {name}


def test_an_empty_proposal_gets_an_empty_answer(stranger: Link) -> None:
    assert answered(stranger.greet(b'{"capabilities": {}}\0').payload) == {}


def test_capabilities_may_be_missing_altogether(stranger: Link) -> None:
    assert answered(stranger.greet(b"{}\0").payload) == {}


def test_words_that_nobody_knows_are_passed_over(stranger: Link) -> None:
    assert answered(stranger.greet(b'{"capabilities": {"sparse_mmap_fds": 3, "x": null}, "y": []}\0').payload) == {}


@pytest.mark.parametrize("proposed", [True, False])
def test_write_multiple_is_agreed_only_if_both_want_it(stranger: Link, proposed: bool) -> None:
    agreed = answered(stranger.introduce(write_multiple=proposed, io_fds=[]).payload)
    assert agreed == {"write_multiple": proposed, "io_fds": []}


def test_write_multiple_is_not_agreed_with_clients_that_it_slows_down(stranger: Link) -> None:
    assert answered(stranger.introduce(write_multiple=True).payload) == {"write_multiple": False}


@pytest.mark.parametrize(
    ("proposed", "agreed"),
    [
        ([], []),
        (["ioeventfd"], ["ioeventfd"]),
        (["ioregionfd", "ioeventfd", "shadow"], ["ioeventfd", "ioregionfd", "shadow"]),
        (["shadow", "telepathy"], ["shadow"]),
    ],
)
def test_io_fds_is_answered_with_what_both_know(stranger: Link, proposed: list[str], agreed: list[str]) -> None:
    proposal = json.dumps({"capabilities": {"io_fds": proposed}}).encode() + b"\0"
    assert answered(stranger.greet(proposal).payload) == {"io_fds": agreed}


def test_a_server_that_lacks_shadow_does_not_offer_it(device: FakeDevice) -> None:
    with closing(Link(device, limits=Capabilities(io_fds=frozenset({Mechanism.IOEVENTFD})))) as link:
        assert answered(link.introduce(io_fds=frozenset({"shadow"})).payload) == {"io_fds": []}


# -- what cannot be


BAD_JSON = [
    b"{",
    b"{}",  # no NUL
    b'{"capabilities": {}}\0\0',
    b"\0",
    b"\xff\0",
    b"{} ",
    b"[]\0",
    b"3\0",
    b"null\0",
    b'{"capabilities": []}\0',
    b'{"capabilities": null}\0',
    b"[" * 4000 + b"\0",
    b"1" * 4095 + b"\0",
    b" " * 5000 + b"{}\0",
]


@pytest.mark.parametrize("json", BAD_JSON, ids=range(len(BAD_JSON)))
def test_json_that_cannot_be_is_refused(stranger: Link, json: bytes) -> None:
    assert stranger.refused(Command.VERSION, bytes(4) + json) == errno.EINVAL
    assert "VERSION" in str(stranger.device.refusals[0])
    assert stranger.session.client is None


BAD_FIELDS: dict[str, list[object]] = {
    "max_msg_fds": [-1, 65537, 1.5, "16", True, None, [], 1 << 70],
    "max_data_xfer_size": [0, -1, 1 << 41, "x", 1e9],
    "max_dma_maps": [-1, (1 << 32) + 1, {}],
    "pgsizes": [0, 1, 2048, 4097, -4096, 1 << 64, "4096"],
    "write_multiple": [0, 1, "true", None],
    "twin_socket": [True, {"supported": 1}, []],
    "io_fds": ["ioeventfd", {"ioeventfd": True}, [1], None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, bad in BAD_FIELDS.items() for value in bad])
def test_a_capability_that_cannot_be_is_refused_by_name(stranger: Link, name: str, value: object) -> None:
    proposal = json.dumps({"capabilities": {name: value}}).encode() + b"\0"
    assert stranger.refused(Command.VERSION, bytes(4) + proposal) == errno.EINVAL
    assert name in str(stranger.device.refusals[0])


EDGES = {
    "max_msg_fds": (0, 65536),
    "max_data_xfer_size": (1, 1 << 40),
    "max_dma_maps": (0, 1 << 32),
    "pgsizes": (4096, (1 << 64) - 4096),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, edges in EDGES.items() for value in edges])
def test_the_least_and_the_most_of_a_capability_are_taken(name: str, value: int) -> None:
    assert getattr(Capabilities.from_json({name: value}), name) == value


def test_the_longest_json_is_taken(stranger: Link) -> None:
    assert stranger.greet(b"{}".rjust(4095) + b"\0").error == 0


def test_a_twin_socket_that_says_nothing_is_not_supported() -> None:
    assert Capabilities.from_json({"twin_socket": {}}).twin_socket is False


@pytest.mark.parametrize("length", [0, 1, 3])
def test_version_without_its_numbers_is_refused(stranger: Link, length: int) -> None:
    assert stranger.refused(Command.VERSION, bytes(length)) == errno.EINVAL


def test_a_refused_client_may_try_again(stranger: Link) -> None:
    stranger.refused(Command.VERSION, b"")
    assert stranger.greet().flags == REPLY


def test_a_second_version_is_refused(link: Link) -> None:
    assert link.refused(Command.VERSION, bytes(4) + QEMU_PROPOSAL) == errno.EINVAL


@pytest.mark.parametrize("command", [command for command in Command if command != Command.VERSION])
def test_any_command_before_version_is_refused(stranger: Link, command: Command) -> None:
    assert stranger.refused(command, bytes(32)) == errno.EINVAL
    assert "VERSION must come first" in str(stranger.device.refusals[0])


def test_a_posted_write_before_version_does_nothing(stranger: Link) -> None:
    head = RegionAccess(0, PLAIN, 4).pack()
    stranger.send(Command.REGION_WRITE, head + b"abcd", flags=NO_REPLY)
    stranger.session.service()
    assert stranger.silent
    assert stranger.device.calls == []


@pytest.mark.parametrize("command", [0, 11, 12, 14, 19, 99, 0xFFFF])
def test_commands_that_no_client_may_send_are_refused(link: Link, command: int) -> None:
    assert link.refused(command, bytes(32)) == errno.EINVAL


@pytest.mark.parametrize("kind", [2, 7, 15])
def test_a_message_of_no_known_type_is_refused(link: Link, kind: int) -> None:
    answer = link.ask(Command.DEVICE_RESET, flags=kind)
    assert answer[2:5] == (REPLY | ERROR, errno.EINVAL, b"")


@pytest.mark.parametrize("kind", [2, 7, 15])
def test_a_version_of_no_known_type_is_refused(device: FakeDevice, kind: int) -> None:
    with closing(Link(device)) as link:
        answer = link.ask(Command.VERSION, bytes(4), flags=kind)
        assert answer[2:5] == (REPLY | ERROR, errno.EINVAL, b"")


def test_a_posted_version_is_taken_and_not_answered(device: FakeDevice) -> None:
    with closing(Link(device)) as link:
        link.send(Command.VERSION, bytes(4), flags=NO_REPLY)
        assert link.ok(Command.DEVICE_RESET) == b""


def test_an_unasked_reply_is_passed_over(link: Link, eventfd: Callable[[], int]) -> None:
    link.send(Command.DMA_READ, bytes(16), flags=REPLY, fds=[eventfd()])
    assert link.ok(Command.DEVICE_RESET) == b""


def test_a_reply_to_an_access_is_no_access(link: Link) -> None:
    link.send(Command.REGION_WRITE, RegionAccess(0, PLAIN, 4).pack() + b"ring", flags=REPLY)
    assert link.ok(Command.DEVICE_RESET) == b""
    assert "write" not in link.device.calls


# -- encode and decode


capabilities = st.fixed_dictionaries(
    {},
    optional={
        "max_msg_fds": st.integers(0, 1 << 16),
        "max_data_xfer_size": st.integers(1, 1 << 40),
        "max_dma_maps": st.integers(0, 1 << 32),
        "pgsizes": st.integers(1, (1 << 52) - 1).map(lambda pages: pages << 12),
        "write_multiple": st.booleans(),
        "twin_socket": st.booleans(),
        "io_fds": st.frozensets(st.sampled_from(IO_FDS)),
    },
).map(lambda values: Capabilities.of(**values))


@given(minor=st.integers(0, 0xFFFF), theirs=capabilities)
def test_version_is_read_as_it_was_written(minor: int, theirs: Capabilities) -> None:
    version = Version(0, minor, theirs)
    assert Version.unpack(memoryview(version.pack())) == version


@given(ours=capabilities, theirs=capabilities)
def test_no_answer_goes_beyond_the_proposal(ours: Capabilities, theirs: Capabilities) -> None:
    assert ours.within(theirs).beyond(theirs) == []


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(payload: bytes) -> None:
    with suppress(ProtocolError):
        Version.unpack(memoryview(payload))


@given(st.none() | st.booleans() | st.floats() | st.integers() | st.text() | st.lists(st.text() | st.integers()))
@settings(max_examples=50)
def test_any_value_of_a_capability_is_read_or_refused_by_name(value: object) -> None:
    for name in (*NAMES, "twin_socket"):
        try:
            Capabilities.from_json({name: value})
        except ProtocolError as error:
            assert name in str(error)  # noqa: PT017
