"""QEMU's command line for a machine."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

from bellwired.find import names
from bellwired.guest import board
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import Plan, Plugged
from bellwired.guest.qemus import Qemu


def test_no_device_of_the_board_has_the_name_of_a_bundled_device() -> None:
    called = [*names(()), "port0", "channel", "network"]
    plan = Plan(
        Kernel(Path("bzImage"), "6.1"),
        Qemu(("qemu-system-x86_64",), (10, 1, 0), "tcg"),
        devices=[Plugged(Path(name), name) for name in called],
        network=True,
    )
    words = board.command_line(plan, board.Ends(3, 4, 5, 6), [])
    devices = [each for flag, each in itertools.pairwise(words) if flag == "-device"]
    ids = Counter(re.findall(r'(?:\bid=|"id":")([^",]+)', " ".join(devices)))
    assert set(called) < set(ids)
    assert max(ids.values()) == 1, ids
