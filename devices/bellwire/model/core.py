"""One device instance under the hood: state, config space, BARs, interrupts, and the calls into its hooks."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

from bellwire.declare.block import BlockArray
from bellwire.declare.doorbell import Doorbell, IoRegion
from bellwire.declare.hooks import Tie
from bellwire.declare.layout import Layout
from bellwire.declare.register import Register
from bellwire.model.capabilities import Identity, template
from bellwire.model.config_space import ConfigSpace, Effect
from bellwire.model.dma import Dma
from bellwire.model.host import Host, Timer
from bellwire.model.jobs import Pool
from bellwire.model.limited import LimitedLog
from bellwire.model.signals import Signals
from bellwire.model.space import Space
from bellwire.model.state import State
from bellwire.model.tally import Tally
from bellwire.model.trouble import note, number
from vfio_user import Reader, RegionIndex, Writer

if TYPE_CHECKING:
    from bellwire.device import PciDevice

SLOW_HOOK = 0.010  # seconds; QEMU gives up on an access after 5
_ALL_ONES = (1 << 64) - 1


class Core:
    """What the SDK keeps about one device; device code has no need of it."""

    signals_kind: ClassVar[type[Signals]] = Signals
    dma_kind: ClassVar[type[Dma]] = Dma

    def __init__(self, device: PciDevice, identity: Identity, layout: Layout, options: Mapping[str, Any]) -> None:
        self.device = device
        self.identity = identity
        self.layout = layout
        self.options = dict(options)
        self.host: Host | None = None
        """What runs the device; None before a worker or a test guest does."""
        self.tally = Tally()
        self.log = LimitedLog(logging.getLogger(f"bellwire.device.{type(device).name}"))
        space = template(identity, layout)
        self.state = State(layout, space)
        self.config = ConfigSpace(space, self.state.config, self._react)
        self.signals = self.signals_kind(self)
        self.spaces = {index: Space(self, plan) for index, plan in layout.bars.items()}
        self._ring_hooks = {bell: self.hook(("ring", bell)) for bell in layout.doorbells}
        regions = [region for plan in layout.bars.values() for region in plan.ioregions]
        self._region_reads = {region: self.hook(("read", region)) for region in regions}
        self._region_writes = {region: self.hook(("write", region)) for region in regions}
        self._row_hooks = {region: self.hook(("ring", region)) for region in regions}
        self.by_event: dict[IoRegion, int] = {}
        """Rows of doorbells that are handed over as ioeventfds, and how many doorbells of each."""
        self.rows: dict[BlockArray[Any], tuple[Any, ...]] = {}
        """Those of blocks, made when they are first asked for."""
        self.pools: list[Pool] = []
        """Those that the device has asked for."""
        self.connected = False
        """Whether there is a client, and so a guest's memory."""
        self.dma = self.dma_kind(self)
        self.generation = 0
        """Counts resets: a background result from before the last one is stale."""
        self.timers: WeakSet[Timer] = WeakSet()
        """Those that may still be due: a reset cancels them."""

    def hook(self, tie: Tie) -> Callable[..., Any] | None:
        """The bound method tied to an event, or None."""
        name = self.layout.hooks.get(tie)
        if name is None:
            return None
        hook: Callable[..., Any] = getattr(self.device, name)
        row = tie[1].row
        return hook if row is None else functools.update_wrapper(functools.partial(hook, row), hook)

    def call(self, hook: Callable[..., Any], *arguments: Any) -> Any:
        """Run a hook with the state marked as in flux, and note a slow one."""
        self.state.enter()
        start = time.monotonic()
        try:
            return hook(*arguments)
        finally:
            self.state.leave()
            if time.monotonic() - start > SLOW_HOOK:
                self._slow(hook, time.monotonic() - start)

    def read(self, index: int, offset: int, count: int) -> bytes:
        """Guest read of a region; the caller has checked the bounds."""
        space = self.spaces.get(index)
        if space is not None:
            return space.read(offset, count)
        if index == RegionIndex.CONFIG:
            self._call_vendor("read", offset, count)
            return self.config.read(offset, count)
        return bytes(count)

    def reader(self, index: int, offset: int, count: int) -> Reader:
        """What :meth:`read` does, for a read that comes again and again."""
        space = self.spaces.get(index)
        if space is None:
            return Reader(functools.partial(self.read, index, offset, count))
        return space.reader(offset, count)

    def write(self, index: int, offset: int, data: memoryview) -> None:
        """Guest write of a region; the caller has checked the bounds."""
        space = self.spaces.get(index)
        if space is not None:
            space.write(offset, data)
        elif index == RegionIndex.CONFIG:
            self.config.write(offset, data)
            self.dma.changed()
            self._call_vendor("write", offset, len(data))

    def writer(self, index: int, offset: int, count: int) -> Writer:
        """What :meth:`write` does, for a write that comes again and again."""
        space = self.spaces.get(index)
        if space is None:
            return functools.partial(self.write, index, offset)
        return space.writer(offset, count)

    def running(self, what: str) -> Host:
        """What runs the device; a RuntimeError where nothing does yet, so that it cannot do ``what``."""
        if self.host is None:
            raise RuntimeError(f"a device can {what} once a worker or a test guest runs it: ask in setup()")
        return self.host

    def region_size(self, index: int) -> int:
        """Bytes of a region, 0 where the device has none."""
        if index == RegionIndex.CONFIG:
            return self.config.size
        space = self.spaces.get(index)
        return 0 if space is None else space.size

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

    def ring_value(self, bell: Doorbell, value: int) -> None:
        """``bell`` was rung with ``value``, cut to its size."""
        self.state.rings[bell].add(1)
        hook = self._ring_hooks[bell]
        if hook is not None:
            value &= (1 << 8 * bell.size) - 1
            try:
                self.call(hook, value)
            except Exception as error:
                note(error, f"ring of {bell} with {value:#x}")
                raise

    def ioregion_read(self, region: IoRegion, offset: int, size: int) -> int:
        """Guest read of a stretch handed over whole."""
        hook = self._region_reads[region]
        if hook is None:
            return 0
        try:
            return number(hook, self.call(hook, offset, size)) & (_ALL_ONES >> 64 - 8 * size)
        except Exception as error:
            note(error, f"read of {size} bytes at {offset:#x} of {region}")
            raise

    def ioregion_write(self, region: IoRegion, offset: int, size: int, value: int) -> None:
        """Guest write of a stretch handed over whole."""
        hook = self._region_writes[region]
        if hook is not None:
            try:
                self.call(hook, offset, size, value)
            except Exception as error:
                note(error, f"write of {value:#x} ({size} bytes) at {offset:#x} of {region}")
                raise

    def ring_in_row(self, bell: tuple[IoRegion, int], _count: int) -> None:
        """A doorbell of a row was rung, and its value is lost."""
        region, offset = bell
        hook = self._row_hooks[region]
        if hook is not None:
            try:
                self.call(hook, offset)
            except Exception as error:
                note(error, f"ring of {region} at {offset:#x}")
                raise

    def reset(self) -> None:
        """Power-on state, then the device's own ``reset`` hook."""
        self._forget()
        self.tally.resets += 1
        self.state.reset()
        self.config.reset()
        self.signals.relevel()
        self.call(self.device.reset)

    def snapshot(self) -> bytes:
        """The device as bytes."""
        return self.state.snapshot()

    def restore(self, snapshot: bytes) -> None:
        """Become what :meth:`snapshot` saw. Timers are not in it: the device's ``restored`` hook sets them anew."""
        self.state.restore(snapshot)
        self._forget()
        self.config.refresh()
        self.signals.relevel()
        self.signals.resend()
        self.call(self.device.restored)

    def join(self, connected: bool) -> None:
        """A client has come, or gone: memory is another one."""
        self.connected = connected
        self.dma.changed()

    def finish_jobs(self) -> None:
        """Wait for jobs, which may use views of guest memory that is about to go."""
        for pool in self.pools:
            pool.finish()

    def unimplemented(self, verb: str, register: Register[Any]) -> None:
        """The guest used something documented that the device does not model."""
        self.log.warning((verb, register), "guest %s of %s, which is documented but not implemented", verb, register)

    def _forget(self) -> None:
        """Whatever is under way belongs to the state that was."""
        self.generation += 1
        self.dma.changed()
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()

    def _call_vendor(self, event: str, offset: int, size: int) -> None:
        """Run the hooks of the vendor-specific capabilities that a config access touches."""
        for capability, start in self.config.vendor.items():
            first, last = max(offset, start), min(offset + size, start + capability.size)
            if first < last and (hook := self.hook((event, capability))) is not None:
                self.call(hook, first - start, last - first)

    def _react(self, effect: Effect) -> None:
        if Effect.RESET in effect:
            self.reset()
            return
        if Effect.UNMASKED in effect:
            self.signals.resend()
        if Effect.LEVEL in effect:
            self.signals.relevel()

    def _slow(self, hook: Callable[..., Any], seconds: float) -> None:
        name = getattr(hook, "__qualname__", repr(hook))
        self.log.warning(
            ("slow", name),
            "%s took %.0f ms; a guest's access waits for it (QEMU gives up after 5 s): use after() or background()",
            name,
            seconds * 1000,
        )

    def close(self) -> None:
        """Free the state's files."""
        self.state.close()
