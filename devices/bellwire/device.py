"""What a device author derives from."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

from bellwire.declare.bar import Bar
from bellwire.declare.block import BlockArray
from bellwire.declare.declared import hexadecimal
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import Layout, check_rung, plan
from bellwire.declare.option import parse_options
from bellwire.declare.register import Register
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.errors import DeclarationError, GuestError, OptionError
from bellwire.model.capabilities import Identity
from bellwire.model.core import Core
from bellwire.model.dma import Dma
from bellwire.model.host import Timer
from bellwire.model.jobs import Job, Pool
from bellwire.model.traced import TracedCore

Stand = TypeVar("Stand", bound=Callable[..., None])

Kept = Bar | BlockArray[Any] | Register[Any] | Doorbell | Saved[Any] | SavedBytes

NOBODY = 0xFFFF
_NAME = re.compile(r"[\w-]+")  # it becomes part of a socket's path
_WIDTHS = {"vendor": 16, "device": 16, "class_code": 24, "revision": 8}


class PciDevice:
    """A PCI device.

    A subclass says who it is in its class line, declares what it has in its body, and reacts in methods tied
    to those declarations::

        class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
            irq = MsiX(1)
            mmio = Bar(0, size=4096)
            ...

    Class keywords: ``vendor`` and ``device`` (16 bits), ``class_code`` (24 bits: base class, sub-class,
    interface), ``revision`` (8 bits), ``subsystem`` (vendor, id), ``express`` (False for a conventional PCI
    device, which has no function-level reset), ``no_soft_reset`` (False for a device that is reset when the guest
    takes it from D3hot to D0; else it is as it was), ``name`` (what users call it; the class's name in lower case
    unless given). A subclass inherits them. Without ``vendor`` the class is a base for others.

    Hooks run one at a time on the device's own thread, and a hook has finished before the guest's access is
    answered.
    """

    name: ClassVar[str] = ""
    layout: ClassVar[Layout]
    identity: ClassVar[Identity | None] = None

    core: Core
    dma: Dma
    log: logging.Logger

    def __init_subclass__(
        cls,
        *,
        vendor: int | None = None,
        device: int | None = None,
        class_code: int | None = None,
        revision: int | None = None,
        subsystem: tuple[int, int] | None = None,
        express: bool | None = None,
        no_soft_reset: bool | None = None,
        name: str | None = None,
        **keywords: Any,
    ) -> None:
        if keywords:
            raise DeclarationError(
                f"{cls.__qualname__}: no class keyword {', '.join(keywords)}; "
                "there are vendor, device, class_code, revision, subsystem, express, no_soft_reset, name"
            )
        super().__init_subclass__()
        cls.layout = plan(cls)
        cls.identity = _identity(cls, vendor, device, class_code, revision, subsystem, express, no_soft_reset)
        cls.name = name if name is not None else cls.__name__.lower()
        if not _NAME.fullmatch(cls.name):
            raise DeclarationError(f"{cls.__qualname__}: name={cls.name!r}: a name has letters, digits, - and _")
        if cls.identity is not None:
            check_rung(cls.__qualname__, cls.layout)
            _claim(cls)

    def __init__(self, **options: Any) -> None:
        if self.identity is None:
            raise DeclarationError(
                f"{type(self).__qualname__} is a base for devices: give a subclass vendor=, device= and class_code="
            )
        values = parse_options(self.layout.options, options, self.name)
        self.log = logging.getLogger(f"bellwire.device.{self.name}")
        kind = TracedCore if self.log.isEnabledFor(logging.DEBUG) else Core
        self.core = kind(self, self.identity, self.layout, values)
        self.dma = self.core.dma
        self.core.state.reset()
        self.core.config.reset()
        self.check_options()

    def check_options(self) -> None:
        """Called when the device is made: an OptionError where options do not go together. Override it.

        What one option can be by itself, its declaration says. Open nothing here: a daemon makes a device to try out
        options while another one that has them runs.
        """

    def setup(self) -> None:
        """Called once before the first guest comes: open what the options name. Override it."""

    def reset(self) -> None:
        """Called after registers and saved fields have been reset, and once after :meth:`setup`. Override it."""

    def restored(self) -> None:
        """Called after a snapshot has been put back: set timers anew. Override it."""

    def close(self) -> None:
        """Called once at the end: close what :meth:`setup` opened. Override it."""

    @property
    def connected(self) -> bool:
        """Whether there is a client, and so a guest's memory."""
        return self.core.connected

    @property
    def bus_master(self) -> bool:
        """Whether the guest has bus mastering on: without it there is no DMA and no message-signalled interrupt."""
        return self.core.config.bus_master

    def warn(self, message: str, *arguments: object) -> None:
        """Log a warning of what a guest can cause, at a rate that it cannot choose; ``self.log`` has no such limit.

        ``message`` takes its arguments as the logging module does. Each message counts by itself.
        """
        self.core.log.warning(message, message, *arguments)

    def storage(self, bar: Bar) -> memoryview:
        """The bytes that the registers of ``bar`` are stored in, by their offsets, up to the last register's end.

        ``Device.status.load(self.storage(Device.mmio))`` is what a register holds, whatever its read hook would say.
        Device code that is in a hurry may look at single bytes of it.
        """
        return self.core.state.registers[bar.index]

    def read_bar(self, index: int, offset: int, size: int) -> bytes:
        """What a guest's read of ``size`` bytes at ``offset`` of BAR ``index`` gives; hooks run. GuestError outside it.

        For devices that have a second way to their own registers, as an index and a data register.
        """
        self._check_bounds("read", index, offset, size)
        return self.core.read(index, offset, size)

    def write_bar(self, index: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Do what a guest's write of ``data`` at ``offset`` of BAR ``index`` does; hooks run. GuestError outside it."""
        self._check_bounds("write", index, offset, len(data))
        self.core.write(index, offset, memoryview(data))

    def reset_registers(self, *, keep: Iterable[Kept] = ()) -> None:
        """A soft reset: registers, doorbells' counts and saved fields get the values that they have after power-on.

        All but those in ``keep``; a BAR or a block stands for all that lies in it. Nothing else changes: config space
        (and so where BARs lie, decoding, bus mastering), what the guest has set up of its interrupts, areas, timers
        and background work. No hook runs, :meth:`reset` neither. Pending timers are yours to cancel.
        """
        kept = {each for item in keep for each in (item.items if isinstance(item, BlockArray) else [item])}
        self.core.state.reset_registers(frozenset(kept))

    def ring_by_event(self, row: IoRegion, count: int | None = None) -> None:
        """Hand the doorbells of ``row`` over as ioeventfds from now on, all of them or the first ``count``.

        Call it in :meth:`setup`. The others stay messages, and run the write hook.
        """
        if not row.bell:
            raise DeclarationError(f"{row}: only an ioregion with bell= is a row of doorbells")
        self.core.by_event[row] = row.size // row.bell if count is None else count

    def change(self, option: str, value: object) -> None:
        """Give an option another value while the device runs: what a user does with ``bellwire set``.

        An OptionError where there is no such option or value, or no ``set`` hook for it.
        """
        changed = parse_options(self.layout.options, {option: value}, self.name)
        hook = self.core.hook(("set", self.layout.options[option]))
        if hook is None:
            raise OptionError(f"option {option} of {self.name} is for the start: restart the device with another value")
        self.core.call(hook, changed[option])
        self.core.options |= changed

    def after(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        """Run ``callback(*arguments)`` on the device's thread in ``seconds``; a reset cancels it."""
        core = self.core
        timer = core.running("set timers").after(seconds, _named(lambda: core.call(callback, *arguments), callback))
        core.timers.add(timer)
        return timer

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback()`` on the device's thread whenever ``fd`` can be read, whether or not there is a guest.

        Resets change nothing about it. A descriptor that is not read from is told of again and again:
        :meth:`unwatch` it while there is no use for what it has, and before it is closed.
        """
        core = self.core
        core.running("watch descriptors").watch_fd(fd, _named(lambda: core.call(callback), callback))

    def unwatch(self, fd: int) -> None:
        """Watch ``fd`` no longer; nothing happens if nobody did."""
        if self.core.host is not None:
            self.core.host.unwatch_fd(fd)

    def join_pool(self, pool: Pool) -> None:
        """Count ``pool``, made elsewhere, among the device's own: before guest memory goes, its jobs are waited for."""
        self.core.pools.append(pool)

    def background(self, work: Callable[..., Any], *arguments: Any, done: Callable[[Any], None] | None = None) -> None:
        """Run ``work(*arguments)`` on another thread, then ``done(result)`` on the device's.

        ``work`` must not touch registers, saved fields or interrupts. If it raises, that is logged and
        ``done`` is not called; nor is it after a reset.
        """
        core = self.core
        generation = core.generation

        def finished(result: Any) -> None:
            if done is not None and core.generation == generation:
                core.call(done, result)

        core.running("work in the background").background(lambda: work(*arguments), _named(finished, done))

    def pool(self, threads: int, done: Callable[[list[Job]], None]) -> Pool:
        """``threads`` of the device's own, for work that comes thick and fast. Ask in :meth:`setup`.

        ``done(jobs)`` runs on the device's thread, with all that have finished since it last ran. What
        :meth:`background` says of ``work`` goes for jobs too, but that they may use views of guest memory that
        were made for them: it is not taken back before they have ended. A reset cancels nothing:
        :meth:`Pool.settle` does. Close it in :meth:`close`.
        """
        pool = self.core.running("have a pool").pool(threads, _named(lambda jobs: self.core.call(done, jobs), done))
        self.join_pool(pool)
        return pool

    def _check_bounds(self, verb: str, index: int, offset: int, size: int) -> None:
        space = self.core.spaces.get(index)
        length = 0 if space is None else space.size
        if not 0 <= offset <= offset + size <= length:
            raise GuestError(f"{verb} of {size} bytes at {offset:#x} of BAR {index}, which has {length:#x}")


def _identity(
    cls: type[PciDevice],
    vendor: int | None,
    device: int | None,
    class_code: int | None,
    revision: int | None,
    subsystem: tuple[int, int] | None,
    express: bool | None,
    no_soft_reset: bool | None,
) -> Identity | None:
    """What the class line says, over what the base class said."""
    base = cls.identity
    given = {"vendor": vendor, "device": device, "class_code": class_code, "revision": revision}
    for key, value in given.items():
        if value is not None and not 0 <= value < 1 << _WIDTHS[key]:
            raise DeclarationError(
                f"{cls.__qualname__}: {key}={hexadecimal(value)} does not fit in {_WIDTHS[key]} bits"
            )
    if base is None:
        missing = [key for key in ("vendor", "device", "class_code") if given[key] is None]
        if len(missing) == 3:
            return None
        if missing:
            raise DeclarationError(f"{cls.__qualname__}: {' and '.join(missing)} missing in the class line")
        base = Identity(0, 0, 0, 0, 0, 0, express=True, no_soft_reset=True)
    if vendor == NOBODY:
        raise DeclarationError(
            f"{cls.__qualname__}: vendor={NOBODY:#x} is what an empty slot reads as (PCI 3.0 §6.2.1)"
        )
    own_vendor, own_device = _first(vendor, base.vendor), _first(device, base.device)
    sub_vendor, sub_device = subsystem or (base.subsystem_vendor or own_vendor, base.subsystem or own_device)
    if not (0 <= sub_vendor < 1 << 16 and 0 <= sub_device < 1 << 16):
        raise DeclarationError(f"{cls.__qualname__}: subsystem is a pair of 16-bit numbers")
    return Identity(
        vendor=own_vendor,
        device=own_device,
        class_code=_first(class_code, base.class_code),
        revision=_first(revision, base.revision),
        subsystem_vendor=sub_vendor,
        subsystem=sub_device,
        express=_first(express, base.express),
        no_soft_reset=_first(no_soft_reset, base.no_soft_reset),
    )


def _named(stand_in: Stand, callback: object) -> Stand:
    """``stand_in`` under the name of the device code that it calls: the log says whose failure it was."""
    stand_in.__name__ = getattr(callback, "__name__", "device code")
    return stand_in


def _first(given: Any, inherited: Any) -> Any:
    return inherited if given is None else given


def _claim(cls: type[PciDevice]) -> None:
    """Two devices of one scope may not answer to one name: a user could ask for only one of them."""
    module = sys.modules.get(cls.__module__)
    names: dict[tuple[str, str], str] = module.__dict__.setdefault("__bellwire_names__", {}) if module else {}
    scope = cls.__qualname__.rpartition(".")[0]
    holder = names.setdefault((scope, cls.name), cls.__qualname__)
    if holder != cls.__qualname__:
        raise DeclarationError(
            f"{cls.__qualname__} and {holder} of {cls.__module__} are both named {cls.name!r}: give one name="
        )
