"""The core of one device instance: it joins state, config space, BARs and interrupts, and calls the hooks."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from bellwire.declare.bar import Bar
from bellwire.declare.block import BlockArray
from bellwire.declare.capability import START
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.functions import functions_of
from bellwire.declare.hooks import Tie
from bellwire.declare.layout import Layout
from bellwire.declare.power import STATE, PowerState
from bellwire.declare.register import Register
from bellwire.model import succession
from bellwire.model.capabilities import Identity, template
from bellwire.model.config_space import ConfigSpace, Effect
from bellwire.model.dma import Dma
from bellwire.model.host import Host, Timer
from bellwire.model.jobs import Pool
from bellwire.model.limited import LimitedLog
from bellwire.model.meter import Meter
from bellwire.model.seen import seen
from bellwire.model.signals import Signals
from bellwire.model.source import StateFiles
from bellwire.model.space import of_bar, of_extended
from bellwire.model.state import BUSY, State
from bellwire.model.tally import Tally
from bellwire.model.trouble import note, number
from bellwire.model.wired import News
from vfio_user import DmaMap, DmaUnmap, Reader, RegionIndex, Writer

if TYPE_CHECKING:
    from bellwire.device import PciDevice

SLOW_HOOK = 0.010  # seconds; QEMU gives up on an access after 5
_ALL_ONES = (1 << 64) - 1


class Core:
    """What the SDK keeps about one device. Device code uses the methods of PciDevice, never this class."""

    def __init__(self, device: PciDevice, identity: Identity, layout: Layout, options: Mapping[str, Any]) -> None:
        self.device = device
        self.identity = identity
        self.layout = layout
        self.options = dict(options)
        self.host: Host | None = None
        """The worker's or the test guest's side; None until one of them runs the device."""
        self.tally = Tally()
        self.meter: Meter | None = None
        """Data and latency of a disk or a network card."""
        self.log = LimitedLog(logging.getLogger(f"bellwire.device.{type(device).name}"))
        self.rom = b"" if layout.rom is None else layout.rom.content(self.options, identity.vendor, identity.device)
        """The expansion ROM, as a guest reads it; empty without one."""
        space = template(identity, layout, len(self.rom), multifunction=len(functions_of(type(device))) > 1)
        self.state = State(type(device).name, layout, space, seen(identity, layout, space, len(self.rom)))
        self.config = ConfigSpace(space, self.state.config, self._react)
        self.signals = Signals(self)
        self._own_hooks: dict[Tie, Callable[..., Any]] = {}
        self._parts: dict[Any, Any] = {each.capability: each.capability.part(self) for each in layout.extended}
        self.spaces = {index: of_bar(self, plan) for index, plan in layout.bars.items()}
        self._extended = of_extended(self, layout.extended) if identity.express else None
        self._ring_hooks = {bell: self.hook(("ring", bell)) for bell in layout.doorbells}
        regions = [region for plan in layout.bars.values() for region in plan.ioregions]
        self._region_reads = {region: self.hook(("read", region)) for region in regions}
        self._region_writes = {region: self.hook(("write", region)) for region in regions}
        self._row_hooks = {region: self.hook(("ring", region)) for region in regions}
        self.by_event: dict[IoRegion, int] = {}
        """Rows of doorbells that are offered as ioeventfds, and the number of doorbells of each row."""
        self.rows: dict[BlockArray[Any], tuple[Any, ...]] = {}
        """The rows of each block, made when device code first uses the block."""
        self.pools: list[Pool] = []
        """The pools of the device: their jobs end before guest memory is unmapped."""
        self.connected = False
        """Whether a client is connected. Without one there is no guest memory."""
        self.still = False
        """Whether nothing may run: the device migrates."""
        self.waiting: Callable[[], None] | None = None
        """What the device goes on with, after a state was put in place while it stands still."""
        self.dma = Dma(self)
        self.news = News(self)
        self.generation = 0
        """Counts resets and restores: a background result from before the last one is dropped."""
        self.timers: WeakSet[Timer] = WeakSet()
        """The timers that may still run; a reset cancels them."""

    def hook(self, tie: Tie) -> Callable[..., Any] | None:
        """The bound method that is tied to an event, or None. For a row of a block it gets the row's index."""
        name = self.layout.hooks.get(tie)
        if name is None:
            return self._own_hooks.get(tie)
        hook: Callable[..., Any] = getattr(self.device, name)
        row = tie[1].row
        return hook if row is None else functools.update_wrapper(functools.partial(hook, row), hook)

    def tie(self, event: str, register: Register[Any], hook: Callable[..., Any]) -> None:
        """Run ``hook`` at an event of a register that an extended capability handles itself."""
        self._own_hooks[event, register] = hook

    def part(self, capability: Any) -> Any:
        """What the device has in the place of an extended capability: see :meth:`ExtendedCapability.part`."""
        return self._parts[capability]

    def resize(self, bar: Bar, size: int) -> None:
        """A BAR has another size now: the client must know."""
        self.config.resize(bar, size)
        self.spaces[bar.index].size = size
        if self.host is not None:
            self.host.regions_changed()

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """Run a hook. The state is marked busy meanwhile, and a slow hook is logged."""
        words, start = self.state.words, monotonic()
        words[BUSY] += 1
        try:
            return hook(*arguments)
        finally:
            words[BUSY] -= 1
            if monotonic() - start > SLOW_HOOK:
                self._slow(hook, monotonic() - start)

    def read(self, index: int, offset: int, count: int) -> bytes:
        """A guest's read of ``count`` bytes of region ``index``. The caller has checked the bounds."""
        space = self.spaces.get(index)
        if space is not None:
            return space.read(offset, count)
        if index == RegionIndex.CONFIG:
            return self._read_config(offset, count)
        if index == RegionIndex.ROM and self.rom:
            return self.rom[offset : offset + count]
        return bytes(count)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """A callable that does what :meth:`read` does at this place. The session keeps it for later reads."""
        space = self.spaces.get(index)
        if space is None:
            return Reader(functools.partial(self.read, index, offset, count))
        return space.reader(offset, count)

    def write(self, index: int, offset: int, data: memoryview) -> None:
        """A guest's write of region ``index``. The caller has checked the bounds."""
        space = self.spaces.get(index)
        if space is not None:
            space.write(offset, data)
        elif index == RegionIndex.CONFIG:
            self._write_config(offset, data)

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """A callable that does what :meth:`write` does at this place. The session keeps it for later writes."""
        space = self.spaces.get(index)
        if space is None:
            return functools.partial(self.write, index, offset)
        return space.writer(offset, count)

    def running(self, what: str) -> Host:
        """The host. A RuntimeError that names ``what``, if nothing runs the device yet."""
        if self.host is None:
            raise RuntimeError(f"a device can {what} once a worker or a test guest runs it: ask in setup()")
        return self.host

    def region_size(self, index: int) -> int:
        """The size of region ``index`` in bytes; 0 if the device lacks it."""
        if index == RegionIndex.CONFIG:
            return self.config.size
        if index == RegionIndex.ROM:
            return len(self.rom)
        return self.spaces[index].size if index in self.spaces else 0

    def ring(self, bell: Doorbell, count: int) -> None:
        """``bell`` was rung ``count`` times since the last wake-up."""
        self.state.rings[bell].add(count)
        hook = self._ring_hooks[bell]
        if hook is not None:
            try:
                self.call(hook)
            except Exception as error:
                note(error, f"ring of {bell}")
                raise

    def ring_value(self, bell: Doorbell, value: int, count: int = 1) -> None:
        """``bell`` was rung with ``value``, cut to its size; ``count`` times since the last wake-up."""
        self.state.rings[bell].add(count)
        hook = self._ring_hooks[bell]
        if hook is not None:
            value &= (1 << 8 * bell.size) - 1
            try:
                self.call(hook, value)
            except Exception as error:
                note(error, f"ring of {bell} with {value:#x}")
                raise

    def ioregion_read(self, region: IoRegion, offset: int, size: int) -> int:
        """A guest's read of ``size`` bytes at ``offset`` of an ioregion."""
        hook = self._region_reads[region]
        if hook is None:
            return 0
        try:
            return number(hook, self.call(hook, offset, size)) & (_ALL_ONES >> 64 - 8 * size)
        except Exception as error:
            note(error, f"read of {size} bytes at {offset:#x} of {region}")
            raise

    def ioregion_write(self, region: IoRegion, offset: int, size: int, value: int) -> None:
        """A guest's write of ``size`` bytes at ``offset`` of an ioregion."""
        hook = self._region_writes[region]
        if hook is not None:
            try:
                self.call(hook, offset, size, value)
            except Exception as error:
                note(error, f"write of {value:#x} ({size} bytes) at {offset:#x} of {region}")
                raise

    def ring_in_row(self, bell: tuple[IoRegion, int], _count: int) -> None:
        """A doorbell of a row was rung by an ioeventfd, so the value is lost."""
        region, offset = bell
        hook = self._row_hooks[region]
        if hook is not None:
            try:
                self.call(hook, offset)
            except Exception as error:
                note(error, f"ring of {region} at {offset:#x}")
                raise

    def power_on(self) -> None:
        """Give config space its values after power-on, sticky bits too."""
        self.config.power_on()
        self.follow()

    def reset(self) -> None:
        """Give everything its state after power-on, then call the device's ``reset``."""
        self.forget()
        self.tally.resets += 1
        self.state.reset()
        self.config.reset()
        self.follow()
        self.signals.relevel()
        self.call(self.device.reset)

    def snapshot(self) -> bytes:
        """The state of the device as bytes."""
        self.call(self.device.saving)
        return self.state.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Restore what :meth:`snapshot` gave, perhaps in another version of the device's code: fields go by name.

        A snapshot has no timers: the device's ``restored`` sets them again. A StateError says why the snapshot is
        refused. If the device itself refuses it, it is as after a reset.
        """
        succession.restore(self, snapshot)

    def take_over(
        self,
        files: StateFiles,
        *,
        client: bool,
        died: bool,
        moved: Callable[[], None] = lambda: None,
        loaded: bool = False,
        fatal: bool = False,
    ) -> None:
        """Go on with the state in ``files``, in place of another process that has served this device.

        Call it once, after ``setup`` and :meth:`reset`, when the host is as that process had it, and before anything
        rings or accesses the device. ``client`` says whether a client is connected: its guest must then see the same
        device as before. ``died`` says that the other process may have ended at any point: ``recovered`` is called,
        and not ``restored``. A device that cannot go on from there is reset, and tells the guest (:meth:`fail`).

        A StateError says why the state is refused, and an exception of a hook passes through. Close the device then: a
        reset would clear areas that the guest maps. ``files`` stay the caller's. They still have the state, except for
        what hooks have written to areas. ``moved`` is called when this process's state counts: before ``recovered``,
        after ``restored``. ``loaded`` says that the state has come by a migration, and has not run yet.
        ``fatal`` says that a process which has tried this has died of it: the device is reset, and tells the guest.
        """
        succession.take_over(self, files, client=client, died=died, moved=moved, loaded=loaded, fatal=fatal)

    def fail(self, why: str) -> None:
        """Reset the device, since its state is lost, and let it tell the guest: never in silence.

        All is as after a function-level reset, except what the guest has set up in config space and in the MSI-X table:
        without that it could not be told.
        """
        succession.fail(self, why)

    def follow_state(self) -> None:
        """Let everything follow a state that has been put in place."""
        self.forget()
        self.config.refresh()
        self.follow()

    def join(self, connected: bool) -> None:
        """A client has connected or left: views of guest memory are stale."""
        self.connected = connected
        self.news.joined()

    def remapped(self, _change: DmaMap | DmaUnmap) -> None:
        """The client has mapped or unmapped memory: views of it are stale."""
        self.dma.changed()

    def finish_jobs(self) -> bool:
        """Wait for all jobs: they may use views of guest memory. Returns whether the device has still to get some."""
        left = False
        for pool in self.pools:
            left = pool.finish() or left
        return left

    def unimplemented(self, verb: str, register: Register[Any]) -> None:
        """Log that the guest used a register that the real part has and the model lacks."""
        self.log.warning((verb, register), "guest %s of %s, which is documented but not implemented", verb, register)

    def forget(self) -> None:
        """Cancel timers and drop background results: they belong to the state before."""
        self.generation += 1
        self.dma.changed()
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def follow(self) -> None:
        """Let parts follow their registers, which a reset or a restore has changed."""
        for each in self.layout.extended:
            each.capability.follow(self._parts[each.capability])

    def _read_config(self, offset: int, count: int) -> bytes:
        beyond = max(0, offset + count - START)
        if beyond < count:
            self._call_vendor("read", offset, count - beyond)
        data = self.config.read(offset, count - min(beyond, count))
        if not beyond or self._extended is None:
            return data
        return data + self._extended.read(max(0, offset - START), min(beyond, count))

    def _write_config(self, offset: int, data: memoryview) -> None:
        below = max(0, START - offset)
        if below:
            self.config.write(offset, data[:below])
            self.news.configured()
            self._call_vendor("write", offset, min(below, len(data)))
        if below < len(data) and self._extended is not None:
            self._extended.write(max(0, offset - START), data[below:])

    def _call_vendor(self, event: str, offset: int, size: int) -> None:
        """Run the hooks of the vendor-specific capabilities that a config access touches."""
        for capability, start in self.config.vendor.items():
            first, last = max(offset, start), min(offset + size, start + capability.size)
            if first < last and (hook := self.hook((event, capability))) is not None:
                self.call(hook, first - start, last - first)

    def _react(self, effect: Effect) -> None:
        if Effect.RESET in effect:
            self.reset()
        else:
            if Effect.UNMASKED in effect:
                self.signals.resend()
            if Effect.LEVEL in effect:
                self.signals.relevel()
        power = self.layout.power
        if Effect.POWER in effect and power is not None and (hook := self.hook(("write", power))) is not None:
            self.call(hook, PowerState(self.config.power_control & STATE))

    def _slow(self, hook: Callable[..., Any], seconds: float) -> None:
        name = getattr(hook, "__qualname__", repr(hook))
        self.log.warning(
            ("slow", name),
            "%s took %.0f ms; a guest's access waits for it (QEMU gives up after 5 s): use after() or background()",
            name,
            seconds * 1000,
        )

    def close(self) -> None:
        """Close the files of the state."""
        self.state.close()
