"""A Linux guest that runs one shell script with devices in its machine, and tells how that went.

It is the machine of ``bellwire boot`` (:class:`bellwired.guest.machine.Machine`), with a minimal root.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attached import Served
from bellwired.guest.errors import MachineGone
from bellwired.guest.machine import Machine
from bellwired.guest.plan import MIB, Plan, Plugged
from bellwired.guest.qemus import OLDEST, Qemu
from bellwired.guest.toolbox import Toolbox

SCRIPT = "script"


class Outcome(NamedTuple):
    """``status`` of the script (None when the guest ended before it did), what it printed, what the kernel printed."""

    status: int | None
    output: str
    console: str
    seconds: float


class Guest:
    """A guest in the making; its files are in ``folder``, and stay there for whoever wants to know what happened."""

    def __init__(self, tools: Toolbox, folder: Path) -> None:
        self._tools = tools
        self._folder = folder
        self._output = folder / "output"
        self._console = folder / "console"

    def run(
        self,
        script: str,
        devices: Sequence[Served | Plugged] = (),
        *,
        files: Mapping[str, bytes | Path] | None = None,
        programs: Sequence[str] = (),
        modules: Sequence[str] = (),
        arguments: Sequence[str] = (),
        board: Sequence[str] = (),
        append: str = "",
        cpus: int = 1,
        mib: int = 256,
        accel: str = "tcg",
        shared: bool = True,
        reboots: int = 0,
        timeout: float = 240.0,
    ) -> Outcome:
        """Boot, run ``script``, and switch off. An AssertionError when that takes longer than ``timeout``.

        ``programs`` are paths in Debian's packages; for the rest, see :class:`Plan`. Between ``reboots``, the script is
        run again each time. The folder's files grow meanwhile: ``output``, ``console``.
        """
        start = time.monotonic()
        tools = self._tools
        content: dict[str, bytes | Path] = {SCRIPT: (_preferred(programs) + script).encode(), "mnt/.here": b""}
        for program in programs:
            content |= tools.program(program)
        with self._output.open("wb", buffering=0) as output, self._console.open("wb", buffering=0) as console:
            plan = Plan(
                tools.kernel,
                Qemu(tuple(tools.qemu), OLDEST, accel, tools.qemu_environment),
                [each if isinstance(each, Plugged) else each.plugged for each in devices],
                busybox=tools.busybox,
                modules=modules,
                files={**content, **(files or {})},
                append=append,
                cpus=cpus,
                memory=mib * MIB,
                ports=0,
                board=board,
                arguments=arguments,
                shared=shared,
                listeners=(console.write,),
                boot_time=timeout,
            )
            with Machine.start(plan) as machine:
                status = None
                try:
                    for boots in range(reboots + 1):
                        if boots:
                            machine.reboot()
                        running = machine.begin(["sh", f"/{SCRIPT}"], output.write, output.write)
                        running.end_input()
                        status = running.wait(start + timeout - time.monotonic())
                        if status is None:
                            raise AssertionError(f"the guest is not done after {timeout:.0f} s")
                except MachineGone:
                    status = None
                finally:
                    (self._folder / "qemu").write_text(machine.said)
        return Outcome(status, self._read("output"), self._read("console"), time.monotonic() - start)

    def report(self) -> dict[str, str]:
        """What there is to know of a run that went wrong."""
        names = {"the guest's output": "output", "the guest's console": "console", "QEMU": "qemu"}
        return {title: self._read(name) for title, name in names.items()}

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""


def _preferred(programs: Iterable[str]) -> str:
    """Shell functions that prefer programs to what busybox has under the same name, which its shell does not."""
    named = ((Path(program).name, program) for program in programs)
    return "".join(f'{name}() {{ /{program} "$@"; }}\n' for name, program in named if name.isidentifier())
