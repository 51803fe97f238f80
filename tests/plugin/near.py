"""A machine without a guest: its commands run in a shell of the host. It shows what the plugin asks of a machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bellwired.guest.console import Console
from bellwired.guest.errors import CommandFailed, CommandTimeout, MachineError, ModuleInUse
from bellwired.guest.leaks import OFF
from bellwired.guest.machine import Finished
from bellwired.guest.plan import Plan

LOG = "log"
LEAKS = "leaks"
"""While there is such a file, kmemleak finds something."""
LEAK = b"""unreferenced object 0xffff888003a5d300 (size 104):
  comm "sh", pid 71, jiffies 4294893012 (age 8.612s)
  backtrace (crc 0):
    [<ffffffffc0002186>] copier_write+0x66/0x90 [copier]
"""
OOPS = b"""
[    5.123456] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    5.123500] #PF: supervisor write access in kernel mode
[    5.123600] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
[    5.123700] CPU: 0 UID: 0 PID: 100 Comm: sh Tainted: G           O       6.12.0 #1
[    5.123800] RIP: 0010:copier_write+0x20/0x90 [copier]
[    5.123900] Call Trace:
[    5.124000]  <TASK>
[    5.124100]  vfs_write+0x100/0x400
[    5.124200]  </TASK>
[    5.124300] ---[ end trace 0000000000000000 ]---
"""

HUNG = b"""
[   31.000001] INFO: task insmod:71 blocked for more than 30 seconds.
[   31.000002] Call Trace:
[   31.000003]  <TASK>
[   31.000004]  wait_for_completion+0x20/0x90
[   31.000005]  </TASK>
"""


class Near:
    """In the place of a :class:`bellwired.guest.machine.Machine`. What is asked of it is in the file ``log``."""

    machines: ClassVar[list[Near]] = []

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = Console(plan.listeners)

        self.machines.append(self)
        self._number = len(self.machines)
        self._lost = ""
        self._tell("boot " + " ".join(device.id for device in plan.devices))

    @classmethod
    def start(cls, plan: Plan) -> Self:
        return cls(plan)

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: bytes = b"",
        timeout: float | None = None,
        check: bool = False,
    ) -> Finished:
        words = ["sh", "-c", command] if isinstance(command, str) else list(command)
        if "a driver hangs" in words:
            self.console.feed(HUNG)
        if self._lost:
            raise MachineError(self._lost)
        if "/dev/kmsg" in " ".join(words):
            self.console.feed(words[-1].encode() + b"\n")
            return Finished(0, None, b"", b"")
        if "kmemleak" in " ".join(words):
            return Finished(0, None, LEAK, b"") if Path(LEAKS).exists() else Finished(OFF, None, b"", b"")
        if "/sys/bus/pci" in " ".join(words):
            return Finished(0, None, b"", b"")
        if "oops" in " ".join(words):
            self.console.feed(OOPS)
        try:
            done = subprocess.run(
                words, input=input, env=dict(self.plan.environment), capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise CommandTimeout(f"{words[-1]} did not end in {timeout:g} s") from None
        if check and done.returncode:
            raise CommandFailed(f"{words[-1]}: status {done.returncode}: {done.stderr.decode()}")
        return Finished(done.returncode, None, done.stdout, done.stderr)

    def insert(self, module: Path, *parameters: str, timeout: float) -> None:
        if module.stem == "stuck":
            raise CommandTimeout(f"loading stuck.ko has not ended after {timeout:g} s")
        if module.stem == "broken":
            raise MachineError("insmod: broken.ko: Invalid module format")
        self._tell(" ".join(["insmod", module.name, *parameters]))

    def remove(self, name: str, timeout: float) -> None:
        if name == "busy":
            raise ModuleInUse("rmmod: busy is in use")
        if name == "waiting":
            raise CommandTimeout(f"unloading waiting has not ended after {timeout:g} s")
        self._tell(f"rmmod {name}")

    def give_up(self, why: str) -> None:
        self._lost = why

    def reboot(self) -> None:
        self._tell("reboot")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell("end")
        self.console.end()

    def _tell(self, text: str) -> None:
        with Path(LOG).open("a") as log:
            print(f"{self._number}: {text}", file=log)
