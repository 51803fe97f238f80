"""What ``bellwire new`` writes: a working device to start from, its test, and drivers for it.

The files are in the folder ``templates``: those of each kind, and those that all kinds have (``common``). In them
``@name@`` stands for the device's name, ``@NAME@`` for the same in upper case, and ``@Kind@`` for its class.
"""

from __future__ import annotations

import difflib
import keyword
import os
import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from bellwire.paths import Place, make_folders
from bellwired.errors import CommandError

KINDS = {
    "plain": "registers, a doorbell, DMA and an interrupt: it adds up numbers",
    "dma-ring": "a ring of descriptors in guest memory: it copies",
    "virtio": "a device type of virtio with one queue: it answers buffers",
    "serial": "a serial port, a 16450",
    "framebuffer": "a picture in memory that is shown",
}
"""The kinds of devices, and what each begins with."""
PLAIN = "plain"

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_IMPORTED = ("bellwire", "pytest")
_TAKEN = frozenset(
    """Bar Guest GuestError IntEnum IntFlag IntX LineStatus MsiX Option Path PciDevice Result Saved Status VirtioDevice
    Virtqueue""".split()  # noqa: SIM905  # a list of them would take a line each
)
"""Names that the files use already."""
_OF_C = frozenset(
    """auto bool break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
    current""".split()  # noqa: SIM905
)
"""Words that a driver in C has for itself."""
_BEGINNINGS = frozenset(
    """adj apic bitmap chrdev cmsg cpumask devres ei elf f folio gdt guid hlist hrtimer idr idt kernfs klist ldt list
    llist mod need nice node nodes pci pci_sec pci_x pv readlink rlimit sections seek setattr smp tiocpkt uart va vfs
    zones""".split()  # noqa: SIM905
)
"""With these, a driver's functions or numbers have the names of some in Linux's headers: PCI_STATUS, idr_remove."""
_OF_LINUX = frozenset(
    """alarm attribute bio cdev cgroup completion console cred dentry device file filename flock fpu ida inode iocb key
    kfifo kobject kref kset module msr mutex page path property resource rseq rusage scatterlist seccomp semaphore
    siginfo spinlock stat statx sysinfo termio termios timezone tm tracepoint user virtqueue winsize xarray
    zone""".split()  # noqa: SIM905
)
"""Structures of Linux that drivers include: the driver's own gets a longer name."""


def write(name: str, folder: Path, kind: str = PLAIN) -> Mapping[Path, str]:
    """Write the files of a device into ``folder``: each path, and what it is. Nothing is overwritten.

    A CommandError if the name cannot be one, if there is no such kind, or if a file is there already.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise CommandError(f"there is no kind {kind!r}", f"{meant}There are {', '.join(KINDS)}")
    _check(name)
    own = {
        f"{name}.py": ("device.py.in", "the device"),
        f"test_{name}.py": ("test.py.in", f"its test, with no VM: pytest {folder / f'test_{name}.py'}"),
        f"test_{name}_driver.py": ("driver_test.py.in", "the driver's test, in a Linux guest that boots for it"),
        f"{name}.toml": ("config.toml.in", "its configuration, for devices.d"),
        f"driver/{name}.c": ("driver.c.in", "a driver for Linux"),
        f"driver/{name}_user.py": ("user.py.in", "a driver in user space"),
    }
    common = {
        "driver/Makefile": ("Makefile.in", f"builds the driver: {_make(folder / 'driver')}"),
        "driver/user_pci.py": ("user_pci.py.in", "what drivers in user space need"),
    }
    templates = files("bellwired") / "templates"
    texts: dict[str, tuple[str, str]] = {
        path: (_read(templates / kind / file, name), about) for path, (file, about) in own.items()
    }
    texts |= {path: (_read(templates / "common" / file, name), about) for path, (file, about) in common.items()}
    header = f"driver/{name}_regs.h"
    for path in (*texts, header):
        if os.path.lexists(folder / path):
            raise CommandError(f"{folder / path} exists already", "choose another name, or move it away")
    try:
        make_folders(folder / "driver")
        for path, (text, _) in texts.items():
            _create(folder / path, text)
        _create(folder / header, _header(folder / f"{name}.py"))
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None
    written = {folder / path: about for path, (_, about) in texts.items()}
    return written | {folder / header: "the numbers that drivers use, made from the device"}


def _make(folder: Path) -> str:
    """The command that builds the driver, or why there is none."""
    from bellwired.guest.build import can_build_in

    if can_build_in(folder):
        return f"make -C {folder}"
    return "move it first, since kbuild cannot build in a path with a space or a colon"


def _create(path: Path, text: str) -> None:
    with Place(path, follow=False) as place:
        place.create(text.encode())


def _check(name: str) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise CommandError(f"{name!r} is no name for a device", "lower-case letters, digits and _, as in my_nic")
    if name in sys.stdlib_module_names or name in _IMPORTED:
        raise CommandError(f"{name!r} is no name for a device", "a module that its test imports has this name")
    if name in _OF_C:
        raise CommandError(f"{name!r} is no name for a device", "its driver is in C, which has this word for itself")
    if name in _BEGINNINGS:
        hint = f"its driver's names would be Linux's own: take a longer one, as {name}_card"
        raise CommandError(f"{name!r} is no name for a device", hint)


def _read(template: Traversable, name: str) -> str:
    """A template with the device's name in it."""
    kind = "".join(word.capitalize() for word in name.split("_") if word)
    if kind in _TAKEN or keyword.iskeyword(kind):
        kind += "Device"
    if kind.startswith("Test"):  # pytest would take it for a class of tests
        kind = f"Pci{kind}"
    text = template.read_text()
    if name in _OF_LINUX:
        text = text.replace("struct @name@ ", "struct @name@_card ")
    return text.replace("@name@", name).replace("@NAME@", name.upper()).replace("@Kind@", kind)


def _header(device: Path) -> str:
    """The header for drivers, as ``bellwire export`` writes it."""
    from bellwired.find import find_device
    from bellwired.maps import from_device, to_c

    return to_c.write(from_device.read(find_device(str(device.absolute()))))
