"""A guest without an operating system: one freestanding C program, on the processor as the firmware leaves it."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bellwire_vmm.guests.build import FLAGS
from bellwire_vmm.guests.build import SOURCES as SHARED
from bellwired.guest.board import memory
from bellwired.guest.toolbox import Toolbox
from qemu import Attachable, attach, qemu

SOURCES = Path(__file__).parent / "bare"
TEXT_PORT, EXIT_PORT = 0xE9, 0xF4


class Transcript(NamedTuple):
    """The program's exit code, and what it has written."""

    code: int
    text: str


def build(name: str, folder: Path) -> Path:
    """Compile ``bare/NAME.c`` with what the micro guests of our VMM share; a flat image comes out."""
    linked, image = folder / f"{name}.elf", folder / name
    sources = [SOURCES / "start.S", SOURCES / f"{name}.c", SHARED / "cpu.c", SHARED / "config.c"]
    options = ("-I", SHARED, "-T", SOURCES / "bare.ld", "-o", linked)
    subprocess.run(["gcc", *FLAGS, *options, *sources], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["objcopy", "-O", "binary", linked, image], check=True, stdin=subprocess.DEVNULL)
    return image


@contextlib.contextmanager
def started(
    tools: Toolbox,
    folder: Path,
    image: Path,
    devices: Sequence[Attachable] = (),
    *,
    arguments: Sequence[str] = (),
    accel: str = "tcg",
    shared: bool = True,
) -> Iterator[subprocess.Popen[bytes]]:
    """QEMU with the program in it; what that writes is in ``folder/output``. ``arguments`` are more of QEMU's."""
    words = ["-accel", accel, *memory(64, shared=shared), "-kernel", str(image)]
    words += ["-chardev", f"file,id=text,path={folder / 'output'}"]
    words += ["-device", f"isa-debugcon,iobase={TEXT_PORT},chardev=text"]
    words += ["-device", f"isa-debug-exit,iobase={EXIT_PORT},iosize=4"]
    with qemu(tools, folder, *words, *attach(devices), *arguments) as process:
        yield process


def run(
    tools: Toolbox,
    folder: Path,
    image: Path,
    devices: Sequence[Attachable] = (),
    *,
    arguments: Sequence[str] = (),
    shared: bool = True,
    timeout: float = 30.0,
) -> Transcript:
    """Run it to its end; ``arguments`` are more of QEMU's."""
    said = folder / "output"
    with started(tools, folder, image, devices, arguments=arguments, shared=shared) as process:
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program is not done after {timeout:.0f} s:\n{said.read_text()}") from None
    return Transcript(status >> 1, said.read_text())
