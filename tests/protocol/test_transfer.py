from __future__ import annotations

import errno
import struct
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.backend import (
    ABSENT,
    ERROR,
    LARGE,
    NO_REPLY,
    PLAIN,
    QEMU_PROPOSAL,
    READ_ONLY,
    REPLY,
    WRITE_ONLY,
    FakeDevice,
    Link,
    message,
)
from vfio_user import Capabilities, Command, DmaAccess, ProtocolError, RegionAccess, RegionWrite, VfioUserError
from vfio_user.transfer import pack_writes, unpack_writes

READ, WRITE, MULTI = Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE_MULTI


def access(offset: int, count: int, region: int = PLAIN) -> bytes:
    return struct.pack("<QII", offset, region, count)


def write(offset: int, data: bytes, region: int = PLAIN) -> bytes:
    return access(offset, len(data), region) + data


def entry(offset: int, data: bytes, region: int = PLAIN, count: int | None = None) -> bytes:
    """One entry of REGION_WRITE_MULTI."""
    return struct.pack("<QII8s", offset, region, len(data) if count is None else count, data)


def multi(*entries: bytes, count: int | None = None) -> bytes:
    return struct.pack("<Q", len(entries) if count is None else count) + b"".join(entries)


# -- REGION_READ and REGION_WRITE


def test_a_read_is_answered_with_its_head_and_the_data(link: Link) -> None:
    link.device.memory[PLAIN][8:12] = b"ring"
    assert link.ok(READ, access(8, 4)) == access(8, 4) + b"ring"


def test_a_write_is_answered_with_its_head(link: Link) -> None:
    assert link.ok(WRITE, write(8, b"ring")) == access(8, 4)
    assert link.device.memory[PLAIN][8:12] == b"ring"


@pytest.mark.parametrize(("offset", "count"), [(4095, 1), (4088, 8), (0, 4096), (1, 3), (0, 0)])
def test_any_range_inside_the_region_can_be_accessed(link: Link, offset: int, count: int) -> None:
    assert link.ok(WRITE, write(offset, b"x" * count)) == access(offset, count)
    assert link.ok(READ, access(offset, count))[16:] == b"x" * count


OUTSIDE = [(4096, 1), (4095, 2), (0, 4097), (1 << 63, 8), ((1 << 64) - 1, 1), ((1 << 64) - 4, 8), (4096, 0)]


@pytest.mark.parametrize(("offset", "count"), OUTSIDE)
def test_a_range_outside_the_region_is_refused(link: Link, offset: int, count: int) -> None:
    assert link.refused(READ, access(offset, count)) == errno.EINVAL
    assert link.refused(WRITE, write(offset, b"x" * count)) == errno.EINVAL
    assert set(link.device.calls) == {"before_reply"}


@pytest.mark.parametrize("region", [ABSENT, 6, 8, 9, 0xFFFF_FFFF])
def test_a_region_that_is_not_there_is_refused(link: Link, region: int) -> None:
    assert link.refused(READ, access(0, 1, region)) == errno.EINVAL
    assert link.refused(WRITE, write(0, b"x", region)) == errno.EINVAL


def test_rights_are_enforced(link: Link) -> None:
    assert link.refused(WRITE, write(0, b"x", READ_ONLY)) == errno.EPERM
    assert link.refused(READ, access(0, 1, WRITE_ONLY)) == errno.EPERM
    assert link.ok(READ, access(0, 1, READ_ONLY))
    assert link.ok(WRITE, write(0, b"x", WRITE_ONLY))


@pytest.mark.parametrize("count", [(1 << 20) + 1, 2 << 20, 0xFFFF_FFFF])
def test_a_read_beyond_max_data_xfer_size_is_refused(link: Link, count: int) -> None:
    assert link.refused(READ, access(0, count, LARGE)) == errno.EINVAL


def test_a_smaller_limit_of_ours_holds(device: FakeDevice) -> None:
    with closing(Link(device, limits=Capabilities(max_data_xfer_size=64))) as link:
        link.greet()
        assert link.refused(READ, access(0, 65)) == errno.EINVAL
        assert link.refused(WRITE, write(0, bytes(65))) == errno.EINVAL
        assert len(link.ok(READ, access(0, 64))) == 16 + 64


@pytest.mark.parametrize("payload", [b"", access(0, 4)[:15]])
def test_a_read_of_the_wrong_size_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(READ, payload) == errno.EINVAL


@pytest.mark.parametrize("payload", [b"", access(0, 4)[:15], access(0, 4) + b"123", access(0, 4) + b"12345"])
def test_a_write_whose_data_does_not_match_its_count_is_refused(link: Link, payload: bytes) -> None:
    assert link.refused(WRITE, payload) == errno.EINVAL


# -- a device that fails


def test_a_hook_that_raises_is_eio_to_the_client_and_told_to_the_backend(link: Link) -> None:
    def hook(region: int, offset: int, count: int) -> bytes:
        raise ZeroDivisionError

    link.device.on_read = hook
    assert link.refused(READ, access(0, 4)) == errno.EIO
    assert [type(error) for error in link.device.failures] == [ZeroDivisionError]
    assert link.ok(WRITE, write(0, b"x")), "and the session lives on"


def test_a_hook_may_refuse_with_an_errno_of_its_own(link: Link) -> None:
    def hook(region: int, offset: int, data: memoryview) -> None:
        raise VfioUserError("not now", errno.EBUSY)

    link.device.on_write = hook
    assert link.refused(WRITE, write(0, b"x")) == errno.EBUSY
    assert [str(error) for error in link.device.refusals] == ["not now"]


@pytest.mark.parametrize("given", [b"", b"123", b"12345"])
def test_a_device_that_gives_another_number_of_bytes_is_eio(link: Link, given: bytes) -> None:
    link.device.on_read = lambda region, offset, count: given
    assert link.refused(READ, access(0, 4)) == errno.EIO


# -- No_reply


def test_a_posted_write_is_done_and_not_answered(link: Link) -> None:
    link.send(WRITE, write(0, b"post"), flags=NO_REPLY)
    link.session.service()
    assert link.silent
    assert link.device.memory[PLAIN][:4] == b"post"


@pytest.mark.parametrize(
    ("command", "payload"),
    [(WRITE, write(4096, b"x")), (WRITE, b""), (READ, access(0, 4)), (MULTI, b"\1"), (99, b""), (1, b"")],
)
def test_a_posted_command_is_not_answered_even_if_it_fails(link: Link, command: int, payload: bytes) -> None:
    link.send(command, payload, flags=NO_REPLY)
    link.session.service()
    assert link.silent


def test_a_posted_write_is_done_before_a_younger_command_is_answered(link: Link) -> None:
    link.raw(message(WRITE, write(0, b"old!"), flags=NO_REPLY) + message(READ, access(0, 4)))
    link.session.service()
    assert link.receive().payload[16:] == b"old!"


def test_rings_go_before_each_command_that_wants_a_reply_and_before_no_other(link: Link) -> None:
    link.raw(
        message(WRITE, write(0, b"1"), flags=NO_REPLY) + message(WRITE, write(0, b"2")) + message(READ, access(0, 1))
    )
    link.session.service()
    assert link.device.calls == ["write", "before_reply", "write", "before_reply", "read"]


def test_rings_go_before_the_other_commands_too(link: Link) -> None:
    link.ok(Command.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert link.device.calls == ["before_reply"]


# -- DEVICE_RESET


def test_reset_resets(link: Link) -> None:
    assert link.ok(Command.DEVICE_RESET) == b""
    assert link.device.calls == ["reset"]


# -- REGION_WRITE_MULTI


def test_all_writes_are_done_in_order_and_counted(link: Link) -> None:
    order: list[tuple[int, bytes]] = []
    link.device.on_write = lambda region, offset, data: order.append((offset, bytes(data)))
    payload = multi(entry(8, b"a"), entry(0, b"12345678"), entry(8, b"bc"))
    assert link.ok(MULTI, payload) == struct.pack("<Q", 3)
    assert order == [(8, b"a"), (0, b"12345678"), (8, b"bc")]


def test_no_writes_are_none(link: Link) -> None:
    assert link.ok(MULTI, multi()) == struct.pack("<Q", 0)


def test_as_many_writes_as_qemu_queues_are_done(link: Link) -> None:
    assert link.ok(MULTI, multi(*[entry(at, b"\1") for at in range(1024)])) == struct.pack("<Q", 1024)
    assert link.device.memory[PLAIN][:1024] == b"\1" * 1024


BAD_MULTIS = {
    "no count": b"",
    "half a count": bytes(7),
    "count too large": multi(entry(0, b"x"), count=2),
    "count too small": multi(entry(0, b"x"), entry(0, b"x"), count=1),
    "count without end": multi(entry(0, b"x"), count=(1 << 64) - 1),
    "count that wraps around": multi(count=0x0AAA_AAAA_AAAA_AAAB),
    "entry cut short": multi(entry(0, b"x"))[:-1],
    "nothing to write": multi(entry(0, b"")),
    "more than 8 bytes": multi(entry(0, b"x", count=9)),
    "far more than 8 bytes": multi(entry(0, b"x", count=0xFFFF_FFFF)),
    "outside the region": multi(entry(0, b"x"), entry(4095, b"xy")),
    "no such region": multi(entry(0, b"x"), entry(0, b"x", region=9)),
}


@pytest.mark.parametrize("payload", BAD_MULTIS.values(), ids=BAD_MULTIS.keys())
def test_writes_that_cannot_be_are_refused_before_the_first_is_done(link: Link, payload: bytes) -> None:
    assert link.refused(MULTI, payload) == errno.EINVAL
    assert "write" not in link.device.calls


def test_a_write_without_the_right_refuses_them_all(link: Link) -> None:
    assert link.refused(MULTI, multi(entry(0, b"x"), entry(0, b"x", region=READ_ONLY))) == errno.EPERM


def test_writes_up_to_the_one_that_fails_are_counted(link: Link) -> None:
    def hook(region: int, offset: int, data: memoryview) -> None:
        if offset == 2:
            raise RuntimeError

    link.device.on_write = hook
    assert link.ok(MULTI, multi(*[entry(at, b"x") for at in range(4)])) == struct.pack("<Q", 2)
    assert link.refused(MULTI, multi(entry(2, b"x"), entry(3, b"x"))) == errno.EIO


def test_posted_writes_each_stand_for_themselves(link: Link) -> None:
    done = []

    def hook(region: int, offset: int, data: memoryview) -> None:
        if offset == 1:
            raise VfioUserError("not now", errno.EBUSY)
        if offset == 2:
            raise RuntimeError
        done.append(offset)

    link.device.on_write = hook
    link.send(MULTI, multi(*[entry(at, b"x") for at in range(4)]), flags=NO_REPLY)
    link.session.service()
    assert link.silent
    assert done == [0, 3]
    assert [error.errno for error in link.device.refusals] == [errno.EBUSY]
    assert [type(error) for error in link.device.failures] == [RuntimeError]


@pytest.mark.parametrize("proposal", [b"", b"{}\0", QEMU_PROPOSAL.replace(b"true", b"false")])
def test_it_must_have_been_negotiated(stranger: Link, proposal: bytes) -> None:
    stranger.greet(proposal)
    assert stranger.refused(MULTI, multi()) == errno.EINVAL


# -- encode and decode

u64, u32 = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)


@given(st.builds(RegionAccess, u64, u32, u32))
def test_a_region_access_is_read_as_it_was_written(head: RegionAccess) -> None:
    assert RegionAccess.unpack(memoryview(head.pack() + b"data"), "READ") == head


@given(st.builds(DmaAccess, u64, u64))
def test_a_dma_access_is_read_as_it_was_written(head: DmaAccess) -> None:
    assert DmaAccess.unpack(memoryview(head.pack() + b"data"), "READ") == head


@pytest.mark.parametrize("kind", [RegionAccess, DmaAccess])
def test_a_short_head_is_refused_by_name(kind: type[RegionAccess | DmaAccess]) -> None:
    with pytest.raises(ProtocolError, match="SOMETHING: 15 bytes, expected at least 16"):
        kind.unpack(memoryview(bytes(15)), "SOMETHING")


@given(st.lists(st.builds(RegionWrite, u32, u64, st.binary(min_size=1, max_size=8)), max_size=20))
def test_writes_are_read_as_they_were_written(writes: list[RegionWrite]) -> None:
    assert unpack_writes(memoryview(pack_writes(writes))) == writes


@pytest.mark.parametrize("data", [b"", b"123456789"])
def test_a_write_of_no_or_too_many_bytes_is_not_written(data: bytes) -> None:
    with pytest.raises(ProtocolError, match="expected 1 to 8"):
        pack_writes([RegionWrite(0, 0, data)])


def test_an_error_reply_is_a_bare_header_with_the_commands_number_and_id(link: Link) -> None:
    link.send(READ, access(4096, 1), id=0xABCD)
    link.session.service()
    assert link.receive() == (0xABCD, READ, REPLY | ERROR, errno.EINVAL, b"", [])
