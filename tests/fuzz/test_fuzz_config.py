"""Config space: what a guest or a client writes there, objects of a mailbox among it, and snapshots of it."""

from __future__ import annotations

import contextlib

from hypothesis import strategies as st

from bellwire import GuestError
from bellwire.testing import Guest
from bellwire.testing.conformance import check_capabilities, check_extended, check_mailboxes, check_resizable
from capable import Capable
from fuzz.fuzzing import INTERESTING, fuzz
from vfio_user import RegionIndex

END = 0x1000
PLACES = [each.at + item.offset for each in Capable.layout.extended for item in each.placed]
GO, ABORT, DISCOVERY = 1 << 31, 1 << 0, 0x0001
OBJECTS = (GO, ABORT, DISCOVERY, 0x1234 | 1 << 16, 3)

Change = tuple[str, int, int, int]


def attack(changes: list[Change]) -> None:
    with Guest(Capable) as guest:
        core = guest.device.core
        for kind, at, value, size in changes:
            at = min(at, END - size)
            data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
            with contextlib.suppress(GuestError):
                match kind:
                    case "write":
                        core.write(RegionIndex.CONFIG, at, memoryview(data))
                    case "read":
                        assert len(core.read(RegionIndex.CONFIG, at, size)) == size
                    case "spoil":
                        core.state.config[at : at + size] = data
                        core.restore(core.snapshot())
                    case _:
                        saved = core.state.saved[Capable.mailbox.counts]
                        saved[at % len(saved)] = value & 0xFF
                        core.restore(core.snapshot())
            guest.advance(0.3)
        core.power_on()
        core.reset()
        guest.enable()
        for check in (check_capabilities, check_extended, check_mailboxes, check_resizable):
            check(guest)
        guest.write(Capable.inject_correctable, 1)
        assert guest.read(Capable.errors.correctable_status) == 1


CHANGES = st.tuples(
    st.sampled_from(("write", "write", "write", "read", "spoil", "counts")),
    st.sampled_from(PLACES) | st.integers(0, END - 1),
    st.sampled_from(OBJECTS) | st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1),
    st.sampled_from((1, 2, 4, 8, 4, 4, 64)),
)
_, test_briefly, test_long = fuzz(attack, st.lists(CHANGES, min_size=1, max_size=30))
