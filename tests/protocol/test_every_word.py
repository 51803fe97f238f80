"""The tables of docs/protocol.md have every command, flag and capability; and what they claim is so."""

from __future__ import annotations

import contextlib
import errno
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from enum import IntEnum, IntFlag, StrEnum
from inspect import getmembers, isclass

import pytest

from docs.documents import DOCS, rows, section
from protocol.backend import MAPPED, PLAIN, READ_ONLY, REPLY, FakeDevice, FakeMovable, Link
from protocol.guest import PAGE, mapping, unmapping
from protocol.set_irqs import request
from vfio_user import (
    Capabilities,
    Command,
    DmaFlags,
    IrqIndex,
    RegionFlags,
    RegionInfo,
    RegionWrite,
    SetIrqsFlags,
    VfioUserError,
    constants,
)
from vfio_user.constants import IO_FDS, UnmapFlags
from vfio_user.in_process import joined
from vfio_user.tap import Piece

ENUMS = {
    name: kind
    for name, kind in getmembers(constants, isclass)
    if issubclass(kind, IntEnum | IntFlag) and kind.__module__ == constants.__name__
}


def tables() -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for row in rows(section(DOCS / "protocol.md", "Every word")):
        if "server" in row:
            found[row[0]] = []
        else:
            found[next(reversed(found))].append(row)
    return found


TABLES = tables()


def claimed(name: str, side: int) -> set[str]:
    """The words of a table that the server (side -3) or the client (-2) has."""
    return {row[0] for row in TABLES[name] if row[side] == "yes"}


SERVER, CLIENT = -3, -2


def test_every_kind_of_number_has_a_table() -> None:
    assert set(TABLES) == {*ENUMS, "Capabilities"}
    others = [kind for _, kind in getmembers(constants, isclass) if issubclass(kind, StrEnum)]
    assert constants.Mechanism in others  # words for people, and for io_fds: no numbers of the wire


def test_every_number_is_listed_with_its_name() -> None:
    for name, kind in ENUMS.items():
        assert [(row[0], int(row[1])) for row in TABLES[name]] == [(member.name, int(member)) for member in kind], name


def test_every_answer_is_yes_or_no() -> None:
    assert {row[side] for table in TABLES.values() for row in table for side in (SERVER, CLIENT)} == {"yes", "no"}


# -- what the tables claim

GOOD = {
    Command.DMA_MAP: mapping(0, PAGE),
    Command.DMA_UNMAP: unmapping(0, PAGE),
    Command.DEVICE_GET_INFO: struct.pack("<IIII", 16, 0, 0, 0),
    Command.DEVICE_GET_REGION_INFO: struct.pack("<IIIIQQ", 32, 0, PLAIN, 0, 0, 0),
    Command.DEVICE_GET_REGION_IO_FDS: struct.pack("<IIII", 16, 0, PLAIN, 0),
    Command.DEVICE_GET_IRQ_INFO: struct.pack("<IIII", 16, 0, IrqIndex.MSIX, 0),
    Command.DEVICE_SET_IRQS: request(SetIrqsFlags.DATA_NONE | SetIrqsFlags.MASK),
    Command.REGION_READ: struct.pack("<QII", 0, PLAIN, 4),
    Command.REGION_WRITE: struct.pack("<QII", 0, PLAIN, 4) + b"abcd",
    Command.DEVICE_RESET: b"",
    Command.REGION_WRITE_MULTI: struct.pack("<QQII8s", 1, 0, PLAIN, 4, b"abcd"),
    Command.DEVICE_FEATURE: struct.pack("<II", 8, constants.FeatureFlags.PROBE | constants.Feature.MIGRATION),
    Command.MIG_DATA_READ: struct.pack("<II", 8, 0),
    Command.MIG_DATA_WRITE: struct.pack("<II", 8, 0),
}
"""A request of each command that a client sends after VERSION."""


@pytest.fixture
def agreed(device: FakeDevice) -> Iterator[Link]:
    """A session and a client that propose all that there is."""
    with closing(Link(device, movable=FakeMovable())) as link:
        link.introduce(write_multiple=True, io_fds=frozenset(IO_FDS), max_msg_fds=16)
        yield link


def test_the_server_answers_the_commands_that_it_is_said_to(agreed: Link) -> None:
    answered = {command.name for command in GOOD if agreed.ask(command, GOOD[command]).error != errno.ENOTSUP}
    assert answered == claimed("Command", SERVER) - {"VERSION", "DMA_READ", "DMA_WRITE"}


@pytest.mark.parametrize("name", ["DmaFlags", "UnmapFlags"])
def test_the_server_takes_the_flags_of_maps_that_it_is_said_to(
    link: Link, memfd: Callable[[int], int], name: str
) -> None:
    taken = set()
    for flag in ENUMS[name]:
        if isinstance(flag, DmaFlags):
            answer = link.ask(Command.DMA_MAP, mapping(0, PAGE, flags=flag | DmaFlags.READ), fds=[memfd(PAGE)])
            link.ok(Command.DMA_UNMAP, unmapping(0, 0, flags=UnmapFlags.ALL))
        else:
            answer = link.ask(Command.DMA_UNMAP, unmapping(0, 0 if flag == UnmapFlags.ALL else PAGE, flags=flag))
        if not answer.error:
            taken.add(flag.name)
    assert taken == claimed(name, SERVER)


def test_the_server_sends_the_flags_of_regions_that_it_is_said_to(link: Link) -> None:
    seen = RegionFlags(0)
    for index in (PLAIN, MAPPED, READ_ONLY):
        asked = struct.pack("<IIIIQQ", 4096, 0, index, 0, 0, 0)
        payload = link.ask(Command.DEVICE_GET_REGION_INFO, asked).payload
        seen |= RegionFlags(int.from_bytes(payload[4:8], "little")) | RegionInfo.unpack(memoryview(payload))[0].flags
    assert {flag.name for flag in seen} == claimed("RegionFlags", SERVER)


def test_the_server_takes_the_flags_of_interrupts_that_it_is_said_to(link: Link) -> None:
    taken = SetIrqsFlags(0)
    for data in SetIrqsFlags.data_kinds():
        for action in SetIrqsFlags.actions():
            if not link.ask(Command.DEVICE_SET_IRQS, request(data | action, IrqIndex.INTX, data=b"\1")).error:
                taken |= data | action
    assert {flag.name for flag in taken} == claimed("SetIrqsFlags", SERVER)


def test_the_server_agrees_to_the_capabilities_that_it_is_said_to(stranger: Link) -> None:
    words = [row[0] for row in TABLES["Capabilities"]]
    assert {field.name for field in fields(Capabilities)} - {"named", "fd_index"} <= set(words)
    values = {"write_multiple": True, "twin_socket": {"supported": True}, "io_fds": ["ioeventfd"], "pgsizes": 4096}
    proposal = json.dumps({"capabilities": {word: values.get(word, 16) for word in words}}).encode() + b"\0"
    reply = stranger.greet(proposal).payload
    assert set(json.loads(reply[4:-1])["capabilities"]) == claimed("Capabilities", SERVER)


def test_the_client_sends_the_commands_that_it_is_said_to(device: FakeDevice) -> None:
    sent: set[str] = set()

    class Listener:
        def received(self, pieces: Sequence[Piece], fds: int) -> None:
            if not int.from_bytes(b"".join(pieces)[8:12], "little") & REPLY:
                sent.add(Command(int.from_bytes(b"".join(pieces)[2:4], "little")).name)

        def sent(self, pieces: Sequence[Piece], fds: int) -> None: ...

    with joined(device) as (client, session):
        session.tap(Listener())
        client.device_info()
        client.io_fds(PLAIN)
        client.mask(client.irq_info(IrqIndex.MSIX).index)
        client.read(PLAIN, 0, 4)
        client.write(PLAIN, 0, b"abcd")
        client.write_multi([RegionWrite(PLAIN, 0, b"abcd")])
        client.dma_map(0, PAGE)
        client.dma_unmap_all()
        client.reset()
        for ask in (client.migration.flags, lambda: client.migration.read(8), lambda: client.migration.write(b"x")):
            with contextlib.suppress(VfioUserError):
                ask()
    assert sent == claimed("Command", CLIENT) - {"VERSION", "DMA_READ", "DMA_WRITE"}
