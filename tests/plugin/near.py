"""A machine without a guest: its commands run in a shell of the host. It shows what the plugin asks of a machine."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from bellwired.guest.console import Console
from bellwired.guest.errors import CommandFailed, CommandTimeout, MachineError
from bellwired.guest.machine import Finished
from bellwired.guest.plan import Plan
from bellwired.guest.reports import Report

LOG = "log"


class Near:
    """In the place of a :class:`bellwired.guest.machine.Machine`. What is asked of it is in the file ``log``."""

    machines: ClassVar[list[Near]] = []

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.console = Console()
        self.reports: list[Report] = []
        self.ended = False
        self.machines.append(self)
        self._number = len(self.machines)
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
        if "/dev/kmsg" in " ".join(words):
            self.console.feed(words[-1].encode() + b"\n")
            return Finished(0, None, b"", b"")
        if "/sys/bus/pci" in " ".join(words):
            return Finished(0, None, b"", b"")
        if "oops" in " ".join(words):
            self.console.feed(b"BUG: unable to handle page fault\n")
            self.reports.append(Report("oops", "BUG: unable to handle page fault"))
        try:
            done = subprocess.run(
                words, input=input, env=dict(self.plan.environment), capture_output=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise CommandTimeout(f"{words[-1]} did not end in {timeout:g} s") from None
        if check and done.returncode:
            raise CommandFailed(f"{words[-1]}: status {done.returncode}: {done.stderr.decode()}")
        return Finished(done.returncode, None, done.stdout, done.stderr)

    def insert(self, module: Path, *parameters: str) -> None:
        if module.stem == "broken":
            raise MachineError("insmod: broken.ko: Invalid module format")
        self._tell(" ".join(["insmod", module.name, *parameters]))

    def remove(self, name: str) -> None:
        if name == "busy":
            raise MachineError("rmmod: busy is in use")
        self._tell(f"rmmod {name}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._tell("end")
        self.ended = True

    def _tell(self, text: str) -> None:
        with Path(LOG).open("a") as log:
            print(f"{self._number}: {text}", file=log)
