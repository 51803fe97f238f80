"""What a test asks for: the devices of its machine, the driver's modules, and how long the machine lives."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest

if TYPE_CHECKING:
    from bellwire import PciDevice

MARK = "bellwire"
Scope = Literal["function", "module", "session"]
SCOPES = ("function", "module", "session")
_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")  # QEMU's id_wellformed()


@dataclass(frozen=True)
class WantedDevice:
    """A device of a machine: its class, or what ``bellwire run`` takes, with its options and a name for the test."""

    kind: type[PciDevice] | str
    options: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Wanted:
    """A machine that a test asks for. Tests that ask for the same one share it for the length of ``scope``."""

    devices: tuple[WantedDevice, ...]
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    scope: Scope = "module"
    timeout: float | None = None
    trace: bool = True
    reset: bool = True
    root_port: bool = False
    guest: Mapping[str, Any] = field(default_factory=dict)
    """More for the machine, by the names of :class:`bellwired.guest.plan.Plan`."""


def device(kind: type[PciDevice] | str, *, id: str = "", **options: Any) -> WantedDevice:
    """A device for :func:`machine` with options: ``device(Copier, most=4096)``, ``device("nvme", size="64M")``.

    ``kind`` is a class, the name of a bundled device or plugin, or a path as ``bellwire run`` takes it. ``id`` is a
    name for :meth:`Vm.device`, where a machine has several devices of one class. Raises a ValueError for one that QEMU
    does not take.
    """
    if id and not _ID.fullmatch(id):
        raise ValueError(f"id={id!r}: expected a letter, then letters, digits, - . or _")
    return WantedDevice(kind, options, id)


def machine(
    devices: Sequence[type[PciDevice] | WantedDevice | str],
    *,
    module: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    parameters: str | Sequence[str] = (),
    scope: Scope = "module",
    fresh: bool = False,
    timeout: float | None = None,
    trace: bool = True,
    reset: bool = True,
    root_port: bool = False,
    **guest: Any,
) -> pytest.MarkDecorator:
    """A decorator for tests, classes and ``pytestmark``: the test's ``vm`` is a Linux guest with these devices.

    ``module`` is the driver: a ``.ko`` file, or a sequence of them in the order in which they are loaded. A relative
    path starts at the test's folder, at pytest's root, or where pytest runs. If the file's folder has a Makefile, the
    module is built first. A name without ``.ko`` is a module of the guest's kernel. ``parameters`` are for the last
    module, as insmod takes them.

    Tests that ask for the same machine share one boot for the length of ``scope``: ``"module"`` or ``"session"``. The
    driver is loaded before each test and removed after it, and then the devices are reset, unless ``reset`` is False.
    ``fresh`` (or the scope ``"function"``) boots for the test alone. With ``root_port``, each device is behind a PCI
    Express root port of its own, so its link and its errors are as in a real machine.

    A command of the guest, or loading or removing the driver, may take ``timeout`` seconds. ``trace`` keeps each
    access, ring, hook, DMA and interrupt for the report of a failing test; it makes devices slower. The other keywords
    are those of a guest (:class:`bellwired.guest.plan.Plan`); ``memory`` may be a text, too: ``"512M"``. A TypeError or
    a ValueError says which keyword is wrong.
    """
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        raise TypeError(f"devices= is a list of devices, not {devices!r}")
    if scope not in SCOPES:
        raise ValueError(f"scope={scope!r}: expected one of {', '.join(SCOPES)}")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: expected seconds, more than 0")
    if guest:
        from bellwired.testing.guest import checked  # it imports the guest, which other runs of pytest do without

        guest = checked(guest)
    modules = [module] if isinstance(module, str | os.PathLike) else module
    wanted = Wanted(
        devices=tuple(each if isinstance(each, WantedDevice) else WantedDevice(each) for each in devices),
        modules=tuple(os.fspath(each) for each in modules),
        parameters=tuple(parameters.split() if isinstance(parameters, str) else parameters),
        scope="function" if fresh else scope,
        timeout=timeout,
        trace=trace,
        reset=reset,
        root_port=root_port,
        guest=guest,
    )
    mark: pytest.MarkDecorator = getattr(pytest.mark, MARK)(wanted)
    return mark


def wanted_by(node: pytest.Item) -> Wanted:
    """What the nearest mark of a test says: :func:`machine`, or ``pytest.mark.bellwire`` with the same keywords."""
    __tracebackhide__ = True
    mark = node.get_closest_marker(MARK)
    if mark is None:
        pytest.fail(
            f"{node.nodeid} uses the fixture vm and does not say which machine: "
            "decorate it with @machine(devices=[...]) of bellwire.pytest",
            pytrace=False,
        )
    first: object = mark.args[0] if mark.args else None
    if not isinstance(first, Wanted):
        (first,) = machine(*mark.args, **mark.kwargs).args
    return cast("Wanted", first)


def find_module(name: str, places: Sequence[Path]) -> Path:
    """The file of a module, in the first of ``places`` that has it or a Makefile for it. The test fails without."""
    __tracebackhide__ = True
    for place in places:
        path = place / name
        if path.exists() or (path.parent / "Makefile").exists():
            return path.absolute()
    where = ", ".join(map(str, places))
    pytest.fail(f"there is no module {name}, and no Makefile beside it, in {where}", pytrace=False)
