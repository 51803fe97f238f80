"""A hostile guest of nvme: what it may do, and what must hold afterwards."""

from __future__ import annotations

import tempfile
from typing import Any
from unittest import mock

from hypothesis import strategies as st

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.at_once import AtOnce
from bellwire.bundled.nvme.command import COMMAND_SIZE, AdminOpcode, IoOpcode
from bellwire.bundled.nvme.prp import PAGE
from bellwire.bundled.nvme.queues import CompletionQueue
from bellwire.bundled.nvme.status import Status
from bellwire.testing import Guest
from nvme.driver import CC, ENABLE, Driver, TestMachine

MEMORY = 4 << 20
ADDRESSES = st.one_of(
    st.integers(0, MEMORY // PAGE - 1).map(lambda page: page * PAGE),
    st.integers(0, MEMORY),
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([MEMORY - PAGE, MEMORY - 8, (1 << 64) - PAGE, 0]),
)
DWORDS = st.one_of(
    st.integers(0, 0x20),
    st.sampled_from([1 << 16 | 1, 63 << 16 | 1, 63 << 16 | 3, 0x3FF << 16 | 2, 0xFFFF_FFFF, 0x8000_0000]),
    st.integers(0, 0xFFFF_FFFF),
)
OPCODES = st.one_of(
    st.sampled_from([*AdminOpcode, *IoOpcode]).map(int),
    st.integers(0, 255),
)
COMMANDS = st.fixed_dictionaries(
    {
        "opcode": OPCODES,
        "nsid": st.sampled_from([0, 1, 1, 1, 2, 0xFFFF_FFFF, 0xFFFF_FFFE]),
        "prp1": ADDRESSES,
        "prp2": ADDRESSES,
        "dwords": st.lists(DWORDS, max_size=6),
        "flags": st.sampled_from([0, 0, 0, 0, 1, 0x40, 0xFF]),
    }
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("command"), st.integers(0, 2), COMMANDS),
        st.tuples(st.just("doorbell"), st.integers(0, 131), st.one_of(st.integers(0, 70), st.integers(0, 0xFFFF_FFFF))),
        st.tuples(st.just("register"), st.sampled_from([0x0C, 0x10, 0x14, 0x20, 0x24, 0x28, 0x30]), ADDRESSES),
        st.tuples(st.just("register"), st.just(CC), st.sampled_from([ENABLE, ENABLE & ~1, ENABLE | 0x4000, 0x8000])),
        st.tuples(st.just("junk"), ADDRESSES, st.binary(min_size=1, max_size=64)),
        st.tuples(st.just("time"), st.just(0), st.floats(0, 0.01)),
        st.tuples(st.just("move"), st.just(0), st.none()),
    ),
    min_size=1,
    max_size=25,
)
KNOWN = frozenset(int(status) for status in Status)
INPUTS = st.tuples(STEPS, st.sampled_from(["value", "shadow"]), st.booleans())
"""What it does, how its doorbells travel, and whether the disk is an image."""


def leave(_: AtOnce, block: bytes) -> tuple[list[int], list[bytes], int]:
    """In the place of nvme's fast path: all commands are left to the slow one."""
    return [], [block[at : at + COMMAND_SIZE] for at in range(0, len(block), COMMAND_SIZE)], 0


def hostile_guest(drawn: tuple[list[Any], str, bool]) -> None:
    """Play one guest: it gets statuses, or breaks its own controller, which a reset mends.

    Statuses are looked at where they are posted: the guest may have its data put over its own queues.
    """
    steps, doorbells, on_image = drawn
    told: list[int] = []
    post = CompletionQueue.post

    def overhear(queue: CompletionQueue, dma: Any, completions: list[Any]) -> None:
        told.extend(status & 0x7FF for _, _, _, status in completions)
        post(queue, dma, completions)

    with (
        tempfile.NamedTemporaryFile() as image,
        mock.patch.object(CompletionQueue, "post", overhear),
        Guest(
            Nvme,
            memory=MEMORY,
            size=1 << 20,
            image=image.name if on_image else "",
            doorbells=doorbells,
            queues=8,
        ) as guest,
    ):
        driver = Driver(TestMachine(guest))
        driver.enable()
        pairs = [driver.admin, driver.create_queues(1, 16), driver.create_queues(2, 4)]
        for action, where, what in steps:
            if action == "command":
                pairs[where].put(**what)
                pairs[where].ring()
            elif action == "doorbell":
                guest.write(0, what, offset=0x1000 + 4 * where, size=4)
            elif action == "register":
                guest.write(0, what, offset=where, size=4)
            elif action == "move":
                guest.device.core.restore(guest.device.core.snapshot())
            elif action == "time":
                guest.advance(what)
            elif where + len(what) <= MEMORY:
                driver.memory[where : where + len(what)] = what
        guest.advance(1)
        assert set(told) <= KNOWN
        guest.write(Nvme.cc, 0)
        guest.advance(1)
        assert guest.read(Nvme.csts) & 3 == 0
        again = Driver(TestMachine(guest))
        again.enable()
        assert len(again.identify(1)) == PAGE
