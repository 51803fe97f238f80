"""A Linux guest that runs one shell script with devices in its machine, and tells how that went.

It is the machine of ``bellwire boot`` (:class:`bellwired.guest.machine.Machine`), with a minimal root.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from attached import Served
from bellwired.guest.channel import Sink
from bellwired.guest.errors import MachineError, MachineGone
from bellwired.guest.hardware import ENDED
from bellwired.guest.machine import Machine
from bellwired.guest.plan import MIB, Plan, Plugged
from bellwired.guest.qemus import OLDEST, Qemu
from bellwired.guest.toolbox import Toolbox

SCRIPT = "script"
SHOWN = 30
"""Lines of the output and of the console that an error shows."""


class Outcome(NamedTuple):
    """``status`` of the script, what it printed, what the kernel printed.

    The status is None when the guest ended before the script did, by itself: its kernel panicked, or powered off.
    """

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
        """Boot, run ``script``, and switch off.

        An AssertionError when that takes longer than ``timeout``, or QEMU fails: it tells how QEMU ended and what it
        said, and has the last lines of the output and of the console.

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
            try:
                with Machine.start(plan) as machine:
                    status = self._play(machine, reboots, output.write, start + timeout)
            except (MachineError, TimeoutError) as error:
                raise AssertionError(self._failure(error)) from error
        return Outcome(status, self._read("output"), self._read("console"), time.monotonic() - start)

    def _play(self, machine: Machine, reboots: int, sink: Sink, deadline: float) -> int | None:
        """Run the script, and again after each reboot. Its last status."""
        status = None
        try:
            for boots in range(reboots + 1):
                if boots:
                    machine.reboot()
                running = machine.begin(["sh", f"/{SCRIPT}"], sink, sink)
                running.end_input()
                status = running.wait(deadline - time.monotonic())
                if status is None:
                    raise TimeoutError("the guest's script is not done in time")
        except MachineGone as error:
            if str(error) != ENDED:
                raise
            return None
        finally:
            (self._folder / "qemu").write_text(machine.said)
        return status

    def report(self) -> dict[str, str]:
        """What there is to know of a run that went wrong."""
        names = {"the guest's output": "output", "the guest's console": "console", "QEMU": "qemu"}
        return {title: self._read(name) for title, name in names.items()}

    def _failure(self, error: Exception) -> str:
        why = error.in_words if isinstance(error, MachineError) else str(error)
        ends = {title: "\n".join(text.splitlines()[-SHOWN:]) for title, text in self.report().items()}
        return "\n".join([why, *(f"{title} ends with:\n{text}" for title, text in ends.items() if text)])

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_text(errors="replace").replace("\r\n", "\n") if path.exists() else ""


def _preferred(programs: Iterable[str]) -> str:
    """Shell functions that prefer programs to what busybox has under the same name, which its shell does not."""
    named = ((Path(program).name, program) for program in programs)
    return "".join(f'{name}() {{ /{program} "$@"; }}\n' for name, program in named if name.isidentifier())
