"""A machine whose plan is wrong is refused, and nobody waits for it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from bellwired.guest import roots
from bellwired.guest.hardware import Hardware
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import Plan
from bellwired.guest.qemus import Qemu


def test_a_mistake_in_the_plan_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def initramfs(plan: Plan) -> NoReturn:
        raise TypeError("a file is bytes or a path")

    monkeypatch.setattr(roots, "initramfs", initramfs)
    with pytest.raises(TypeError, match="a file is bytes or a path"):
        Hardware(Plan(Kernel(Path("bzImage"), "6.12"), Qemu(("qemu",), (10, 1, 1), "tcg")))
