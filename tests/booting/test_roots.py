"""How a guest's root is made, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bellwired.guest import folders, roots
from bellwired.guest.kernel import Kernel
from bellwired.guest.machine import Finished
from bellwired.guest.plan import HOST, MINIMAL, Plan, Share
from bellwired.guest.qemus import Qemu

PLAN = Plan(Kernel(Path("bzImage"), "6.12"), Qemu(("qemu-system-x86_64",), (11, 1, 3), "tcg", {}))


class Steps:
    """A guest that notes what it is to do."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.done: list[str] = []

    def tool(self, words: Sequence[str], input: bytes = b"") -> int:
        self.done.append(" ".join(words))
        return 0

    def switch_root(self, folder: str) -> int:
        self.done.append(f"switch to {folder}")
        return 0

    def run(self, command: Sequence[str], *, folder: str) -> Finished:
        self.done.append(command[-1])
        return Finished(0, None, b"", b"")


@pytest.mark.parametrize("root", [HOST, MINIMAL])
def test_nothing_is_written_where_a_folder_of_the_hosts_is_mounted(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kernel, "load_order", lambda kernel, names: {})
    plan = replace(PLAN, root=root, network=True, shares=[Share(tmp_path, "/etc", writable=True)])
    guest = Steps(plan)
    roots.prepare(guest, folders.offer(plan, roots.shares(plan)))
    names = ("/etc/resolv.conf", "/proc/sys/kernel/hostname", "/proc/sys/kernel/printk")
    written = [max(number for number, step in enumerate(guest.done) if name in step) for name in names]
    (mounted,) = (number for number, step in enumerate(guest.done) if step.startswith("mount") and "/etc" in step)
    assert max(written) < mounted
