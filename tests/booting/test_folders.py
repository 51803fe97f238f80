"""The folders of the host's that a guest sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellwired.guest import folders
from bellwired.guest.board import FIRST_ROOT_PORT
from bellwired.guest.errors import MachineError
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import Plan, Share
from bellwired.guest.qemus import Qemu

PLAN = Plan(Kernel(Path("bzImage"), "6.12"), Qemu(("qemu-system-x86_64",), (11, 1, 3), "tcg", {}))


def test_there_are_as_many_folders_as_slots_below_the_root_ports() -> None:
    shares = [Share(Path("/"), f"/{number}") for number in range(folders.MOST + 1)]
    assert len(folders.offer(PLAN, shares[:-1])) == FIRST_ROOT_PORT - folders.FIRST_SLOT
    with pytest.raises(MachineError, match="9 folders for the guest: the machine has places for 8"):
        folders.offer(PLAN, shares)
