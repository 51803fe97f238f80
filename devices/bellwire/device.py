"""PciDevice: the class that every device derives from."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from bellwire.declare.bar import Bar
from bellwire.declare.block import BlockArray
from bellwire.declare.declared import Declared, hexadecimal
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.layout import Layout, check_conventional, check_rung, plan
from bellwire.declare.option import parse_options
from bellwire.declare.register import Register
from bellwire.declare.saved import Saved, SavedBytes
from bellwire.errors import DeclarationError, GuestError, OptionError, StateError
from bellwire.model.capabilities import Identity
from bellwire.model.core import Core
from bellwire.model.dma import Dma
from bellwire.model.host import Timer
from bellwire.model.jobs import Job, Pool
from bellwire.model.outside import Chancy, Outside
from bellwire.model.wired import Wired
from bellwire.pci.error_reporting import Aer, UncorrectableError

Stand = TypeVar("Stand", bound=Callable[..., None])

Kept = Bar | BlockArray[Any] | Register[Any] | Doorbell | Saved[Any] | SavedBytes

_NO_VENDOR = {0xFFFF: "an empty slot (PCI 3.0 §6.2.1)", 0x0001: "a device that is not ready yet (PCIe 4.0 §2.3.2)"}
_NAME = re.compile(r"[\w-]+")  # a device's name becomes part of a socket's path
_WIDTHS = {"vendor": 16, "device": 16, "class_code": 24, "revision": 8}


class PciDevice(Wired, Chancy):
    """A PCI device.

    A subclass has three parts. The class line gives the device's identity. The body declares BARs, registers,
    doorbells and interrupts. Methods that are tied to these declarations (hooks) react to the guest::

        class Copier(PciDevice, vendor=0x1234, device=0x11F0, class_code=0x088000):
            irq = MsiX(1)
            mmio = Bar(0, size=4096)
            ...

    Class keywords: ``vendor`` and ``device`` (16 bits), ``class_code`` (24 bits: base class, sub-class,
    interface), ``revision`` (8 bits), ``subsystem`` (vendor, id), ``express`` (False for a conventional PCI
    device, which has no function-level reset), ``no_soft_reset`` (False for a device that is reset when the guest
    takes it from D3hot to D0; a device keeps its state by default), ``repeats`` (True if hooks that were cut short,
    because the process died, may run again; by default such an access fails), ``name`` (what users call the device; by
    default the class's name in lower case), ``faults`` (what it can do wrong on demand, as
    :class:`bellwire.faults.Fault` tells). A subclass inherits all of them except ``name``. A class without vendor,
    device and class_code of its own or of its base cannot be instantiated: it is a base for devices.

    All hooks of a device run on one thread, one at a time. A hook has finished before the client gets the answer to
    the guest's access. An impossible declaration raises a DeclarationError when the class is defined.
    """

    name: ClassVar[str] = ""
    repeats: ClassVar[bool] = False
    layout: ClassVar[Layout]
    identity: ClassVar[Identity | None] = None
    faults: ClassVar[tuple[type[Any], ...]] = ()
    """Faults that this device alone has: subclasses of :class:`bellwire.faults.Fault`."""

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
        repeats: bool | None = None,
        name: str | None = None,
        faults: Iterable[type[Any]] = (),
        **keywords: Any,
    ) -> None:
        if keywords:
            raise DeclarationError(
                f"{cls.__qualname__}: no class keyword {', '.join(keywords)}; "
                "there are vendor, device, class_code, revision, subsystem, express, no_soft_reset, repeats, name and "
                "faults"
            )
        super().__init_subclass__()
        cls.layout = plan(cls)
        cls.faults = (*cls.faults, *faults)
        cls.identity = _identity(cls, vendor, device, class_code, revision, subsystem, express, no_soft_reset)
        if repeats is not None:
            cls.repeats = repeats
        cls.name = name if name is not None else cls.__name__.lower()
        if not _NAME.fullmatch(cls.name):
            raise DeclarationError(f"{cls.__qualname__}: name={cls.name!r}: a name has letters, digits, - and _")
        if cls.identity is not None:
            check_rung(cls.__qualname__, cls.layout)
            if not cls.identity.express:
                check_conventional(cls.__qualname__, cls.layout)
            if cls.layout.rom is not None:
                cls.layout.rom.check_ids(cls.__qualname__, cls.identity.vendor, cls.identity.device)
            _claim(cls)

    def __init__(self, **options: Any) -> None:
        if self.identity is None:
            raise DeclarationError(
                f"{type(self).__qualname__} is a base for devices: give a subclass vendor=, device= and class_code="
            )
        values = parse_options(self.layout.options, options, self.name)
        self.log = logging.getLogger(f"bellwire.device.{self.name}")
        self.outside = Outside()
        self.core = Core(self, self.identified(values), self.layout, values)
        self.dma = self.core.dma
        self.core.state.reset()
        self.core.power_on()
        self.check_options()

    def identified(self, _options: Mapping[str, Any]) -> Identity:
        """The identity in config space: that of the class line. Override it where the options decide about it."""
        assert self.identity is not None
        return self.identity

    def check_options(self) -> None:
        """Called when the device is made. Override it to raise an OptionError where options contradict each other.

        The bounds of a single option belong in its declaration (:class:`~bellwire.declare.option.Option`). Open
        nothing here: a daemon makes a device to check options, while another device that uses the same files runs.
        """

    def setup(self) -> None:
        """Called once, before the first client connects. Override it to open the files that the options name."""

    def reset(self) -> None:
        """Called once after :meth:`setup`, and after every reset. Override it to reset what the device itself keeps.

        Registers and saved fields have their reset values already, and timers are cancelled.
        """

    def saving(self) -> None:
        """Called before a snapshot is taken. Override it to store in saved fields what is kept elsewhere.

        Raise a StateError to refuse the snapshot. A VM that was to be saved or moved then stays where it is.
        """

    def check_state(self) -> None:
        """Called when a snapshot has been restored, before :meth:`restored`. Raise a StateError if it cannot be right.

        A snapshot may be damaged, or made up. The device is then as after a reset. Override it to check what hooks rely
        on: indices, counts and lengths in saved fields.
        """

    def restored(self) -> None:
        """Called after a snapshot has been restored. Override it to set timers again: a snapshot has none."""

    def recovered(self, torn: bool) -> None:
        """Called in place of :meth:`restored`, if the process that served this device before has died.

        ``torn`` says that a hook was cut short: only a part of what it assigns may be in registers and saved fields.
        Override it to go on from there, or raise a StateError to say that the device cannot: it is then reset, and
        :meth:`failed` tells the guest. Any other error is logged, and does the same, as does the end of the process, or
        a hang. Without an override, that is what happens if ``torn``; otherwise :meth:`restored` runs.
        """
        if torn:
            raise StateError(f"{type(self).__name__}.recovered does not say how to go on after a hook was cut short")
        self.restored()

    def failed(self) -> None:
        """Called after a reset that the guest has not asked for: a process has died, and the device's state with it.

        The guest's set-up in config space and MSI-X is as before, so interrupts work. Override it to tell the guest as
        the device's specification says. Without an override, config space tells it: Signaled System Error in the status
        register (PCI 3.0 §6.2.3), on PCI Express Fatal Error Detected in Device Status (PCIe 6.0 §7.5.3.5), and an
        Uncorrectable Internal Error if the device has :class:`~bellwire.Aer`.
        """
        self.core.config.tell_fatal()
        for each in self.layout.extended:
            if isinstance(each.capability, Aer):
                self.core.part(each.capability).report(UncorrectableError.INTERNAL)

    def close(self) -> None:
        """Called once, when the worker ends. Override it to close what :meth:`setup` opened."""

    @property
    def connected(self) -> bool:
        """Whether a client is connected. Without one there is no guest memory."""
        return self.core.connected

    @property
    def bus_master(self) -> bool:
        """Whether the guest has turned bus mastering on (PCI 3.0 §6.2.2).

        While it is off, DMA and message-signalled interrupts raise a GuestError.
        """
        return self.core.config.bus_master

    def warn(self, message: str, *arguments: object) -> None:
        """Log a warning at a limited rate: a guest can cause the warning, but cannot fill the log with it.

        ``message`` is a format of the logging module, and ``arguments`` are its values. The limit counts each
        ``message`` separately. ``self.log`` has no limit.
        """
        self.core.log.warning(message, message, *arguments)

    def storage(self, bar: Bar) -> memoryview:
        """The bytes of the registers of ``bar``, from offset 0 of the BAR to the end of its last register.

        ``Device.status.load(self.storage(Device.mmio))`` is the stored value of a register; its read hook does not
        run. Code on a hot path may look at single bytes.
        """
        return self.core.state.registers[bar.index]

    def read_bar(self, index: int, offset: int, size: int) -> bytes:
        """Read ``size`` bytes at ``offset`` of BAR ``index`` as a guest would: hooks run.

        For devices with a second way to their registers, such as an index register and a data register. A read
        outside the BAR raises a GuestError.
        """
        self._check_bounds("read", index, offset, size)
        return self.core.read(index, offset, size)

    def write_bar(self, index: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``offset`` of BAR ``index`` as a guest would: hooks run. A GuestError outside the BAR."""
        self._check_bounds("write", index, offset, len(data))
        self.core.write(index, offset, memoryview(data))

    def reset_registers(self, *, keep: Iterable[Kept] = ()) -> None:
        """A soft reset: give registers, doorbell counts and saved fields their values after power-on.

        Those in ``keep`` are left alone; a BAR or a block in it stands for everything that lies there. Nothing else
        changes: config space (BAR addresses, decoding, bus mastering), the interrupt set-up, areas, timers and
        background work stay as they are. No hook runs, and :meth:`reset` does not run either. Device code cancels
        pending timers itself.
        """
        kept: set[Declared] = {
            each for item in keep for each in (item.items if isinstance(item, BlockArray) else [item])
        }
        kept.update(saved for each in self.layout.extended for saved in each.capability.saved)
        self.core.state.reset_registers(frozenset(kept))

    def ring_by_event(self, row: IoRegion, count: int | None = None) -> None:
        """Offer the doorbells of ``row`` to the client as ioeventfds: all of them, or the first ``count``.

        Call it in :meth:`setup`. The ring hook of the row then runs for these doorbells, and the value of a ring is
        lost. The other doorbells of the row arrive as messages and run the write hook.
        """
        if not row.bell:
            raise DeclarationError(f"{row}: only an ioregion with bell= is a row of doorbells")
        self.core.by_event[row] = row.size // row.bell if count is None else count

    def change(self, option: str, value: object) -> None:
        """Give an option a new value while the device runs, as ``bellwire set`` does.

        An OptionError if the device has no such option, if the value is not allowed, or if the option has no
        ``set`` hook.
        """
        changed = parse_options(self.layout.options, {option: value}, self.name)
        hook = self.core.hook(("set", self.layout.options[option]))
        if hook is None:
            raise OptionError(f"option {option} of {self.name} is for the start: restart the device with another value")
        self.core.call(hook, changed[option])
        self.core.options |= changed

    def after(self, seconds: float, callback: Callable[..., None], *arguments: Any) -> Timer:
        """Run ``callback(*arguments)`` on the device's thread in ``seconds``.

        A reset cancels it, and so does :meth:`Timer.cancel`. Call it from :meth:`setup` on: a RuntimeError before that.
        """
        core = self.core
        timer = core.running("set timers").after(seconds, _named(lambda: core.call(callback, *arguments), callback))
        core.timers.add(timer)
        return timer

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Run ``callback()`` on the device's thread whenever ``fd`` can be read, with a client or without one.

        A reset does not end the watch. The watch is level-triggered: ``callback`` runs again and again until the
        device reads from ``fd``, so :meth:`unwatch` it while its data cannot be used. The device keeps ownership of
        ``fd``, and must :meth:`unwatch` it before it closes it.
        """
        core = self.core
        core.running("watch descriptors").watch_fd(fd, _named(lambda: core.call(callback), callback))

    def unwatch(self, fd: int) -> None:
        """End the watch of ``fd``. Nothing happens if ``fd`` was not watched."""
        if self.core.host is not None:
            self.core.host.unwatch_fd(fd)

    def join_pool(self, pool: Pool) -> None:
        """Treat ``pool``, made elsewhere, as the device's own: its jobs end before guest memory is unmapped."""
        self.core.pools.append(pool)

    def background(self, work: Callable[..., Any], *arguments: Any, done: Callable[[Any], None] | None = None) -> None:
        """Run ``work(*arguments)`` on another thread, then ``done(result)`` on the device's thread.

        ``work`` must not touch registers, saved fields or interrupts. If ``work`` raises, the error is logged and
        ``done`` does not run. ``done`` does not run either if the device was reset in the meantime.
        """
        core = self.core
        generation = core.generation

        def finished(result: Any) -> None:
            if done is not None and core.generation == generation:
                core.call(done, result)

        core.running("work in the background").background(lambda: work(*arguments), _named(finished, done))

    def pool(self, threads: int, done: Callable[[list[Job]], None]) -> Pool:
        """Make a pool of ``threads`` threads for this device, for thousands of jobs a second. Call it in :meth:`setup`.

        ``done(jobs)`` runs on the device's thread, with all jobs that have finished since it last ran. A job must not
        touch registers, saved fields or interrupts. It may use views of guest memory that were made for it: the SDK
        waits for jobs, and calls ``done``, before it unmaps guest memory. A reset does not cancel jobs: call
        :meth:`Pool.settle` in :meth:`reset`. The device owns the pool, and closes it in :meth:`close`.
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
    """The identity that the class line gives; what it leaves out comes from the base class."""
    base = cls.identity
    given = {"vendor": vendor, "device": device, "class_code": class_code, "revision": revision}
    for key, value in given.items():
        if not isinstance(value, int | None):
            raise DeclarationError(f"{cls.__qualname__}: {key}={value!r} is no number")
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
    if vendor in _NO_VENDOR:
        raise DeclarationError(f"{cls.__qualname__}: vendor={vendor:#x} is what a guest reads of {_NO_VENDOR[vendor]}")
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
    """Give ``stand_in`` the name of the device code that it calls, so that the log names that code if it fails."""
    stand_in.__name__ = getattr(callback, "__name__", "device code")
    return stand_in


def _first(given: Any, inherited: Any) -> Any:
    return inherited if given is None else given


def _claim(cls: type[PciDevice]) -> None:
    """Refuse a second device of the same name in one scope: a user could reach only one of the two."""
    module = sys.modules.get(cls.__module__)
    names: dict[tuple[str, str], str] = module.__dict__.setdefault("__bellwire_names__", {}) if module else {}
    scope = cls.__qualname__.rpartition(".")[0]
    holder = names.setdefault((scope, cls.name), cls.__qualname__)
    if holder != cls.__qualname__:
        raise DeclarationError(
            f"{cls.__qualname__} and {holder} of {cls.__module__} are both named {cls.name!r}: give one name="
        )
