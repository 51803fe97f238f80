"""Any bytes in place of messages, to a server and to a client that speak the draft of January 2021."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from fuzz import test_fuzz_client, test_fuzz_messages
from fuzz.fuzzing import fuzz, mutated
from protocol.backend import PLAIN, message
from vfio_user import DRAFT_2021
from vfio_user.dialects import DraftCommand

SEEDS = [
    message(DraftCommand.DEVICE_RESET),
    message(DraftCommand.VM_INTERRUPT, bytes(4)),
    message(DraftCommand.DIRTY_PAGES, struct.pack("<II", 8, 1)),
    message(DraftCommand.DIRTY_PAGES, struct.pack("<IIQQQQQ", 48, 4, 0, 4096, 4096, 8, 0)),
    message(6, struct.pack("<IIII", 96, 0, PLAIN, 0)),
]
GOOD = test_fuzz_client.recorded(DRAFT_2021) + SEEDS[1]


def attack(drawn: tuple[bool, bytes]) -> None:
    server, data = drawn
    (test_fuzz_messages if server else test_fuzz_client).attack(data, DRAFT_2021)


to_server = st.tuples(st.just(True), mutated([*SEEDS, *test_fuzz_messages.SEEDS, b"".join(SEEDS)]))
to_client = st.tuples(st.just(False), mutated([GOOD, GOOD, GOOD[:96]]))
_, test_briefly, test_long = fuzz(attack, to_server | to_client)
