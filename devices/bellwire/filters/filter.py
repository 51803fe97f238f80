"""Filter: the class that everything derives from that looks at a device's events, or changes them."""

from __future__ import annotations

import difflib
import functools
import inspect
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from bellwire.declare.option import Option, parse_options
from bellwire.errors import DeclarationError
from bellwire.filters.argument import Argument
from bellwire.filters.events import (
    Client,
    DmaRange,
    DmaRead,
    DmaView,
    DmaWrite,
    Hook,
    Interrupt,
    Read,
    Reset,
    Ring,
    Write,
)
from bellwire.model.host import Timer

if TYPE_CHECKING:
    from bellwire.device import PciDevice
    from bellwire.filters.stack import Stack

KINDS = (
    "read",
    "write",
    "config_read",
    "config_write",
    "ring",
    "dma_read",
    "dma_write",
    "interrupt",
    "reset",
    "hook",
)
"""The events that have a ``before_`` and an ``after_`` method."""
NEWS = ("dma_map", "dma_view", "client")
"""The events that a filter can only look at."""


class Filter:
    """A filter stands between guest and device. It looks at events, and may change, delay, drop or answer them.

    A subclass overrides the methods of the events that it wants. It is put into the paths of these events only::

        from bellwire.filters import Argument, Filter, Read

        class Busy(Filter):
            '''The status register shows BUSY for the first reads.'''

            times = Argument(3, least=0, help="reads that show BUSY")

            def start(self):
                self.left = self.times

            def after_read(self, read: Read) -> None:
                if read.place.name == "status" and self.left:
                    self.left -= 1
                    read.value |= 0x80

    A ``before_`` method runs on the way to the model, an ``after_`` method on the way back. Events of the guest (read,
    write, ring, reset) pass the filters from the first to the last, then the model, and come back from the last to the
    first. Events of the device (DMA, interrupt) begin at the last filter. A filter that drops or answers an event ends
    its way: the filters behind and the model do not get it, and those before it get their ``after_``. If the model
    raises, ``after_`` methods still run, and :attr:`Event.error` has the error.

    All methods run on the device's thread. They must not block it: what takes time is a :meth:`after`. A filter that
    raises is reported and taken out, and the device goes on; with ``strict`` the error goes to the caller instead.
    """

    name: ClassVar[str] = ""
    """What users call it: by default the class's name in lower case. One with an empty name is a base for others."""
    arguments_of: ClassVar[dict[str, Option[Any]]] = {}
    """The declared arguments by name."""
    strict: ClassVar[bool] = False
    """Whether an error of the filter goes to the caller, for filters that are checks of a test."""

    delays: ClassVar[bool] = False
    """Whether the filter delays events of the guest: then all of them go by way of one queue, to stay in order."""

    in_place: bool = False
    """Whether device code may use guest memory in place while the filter looks at DMA: for filters that only look.

    Such a filter gets the DMA that device code copies, and :meth:`dma_view` for the rest. Without it, as soon as one
    filter has a method for DMA, device code gets no views of guest memory: it must copy, and filters see all bytes.
    """

    innermost: ClassVar[bool] = False
    """Whether it stands behind all others, those too that are put in later."""

    kept: ClassVar[str] = ""
    """Why it stays in as long as the device runs, so that users cannot take it out. Empty: they can."""

    seed = Argument(0, help="where its random numbers begin")

    device: PciDevice
    """The device; valid from :meth:`start` to :meth:`stop`."""
    _stack: Stack | None = None

    def __init_subclass__(cls, *, name: str | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        members = {each: member for base in reversed(cls.__mro__) for each, member in vars(base).items()}
        cls.arguments_of = {each: member for each, member in members.items() if isinstance(member, Option)}
        cls.arguments_of["seed"] = cls.arguments_of.pop("seed")  # last in lists
        for option in cls.arguments_of.values():
            option.check(cls.__qualname__)
        if isinstance(vars(cls).get("name"), Option):
            raise DeclarationError(f"{cls.__qualname__}.name: an argument cannot be called name: the filter is")
        cls.name = name if name is not None else cls.__name__.lower()
        for each in vars(cls):
            if each.startswith(("before_", "after_")) and each not in METHODS:
                near = difflib.get_close_matches(each, METHODS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(METHODS)}"
                raise DeclarationError(f"{cls.__qualname__}.{each}: a filter has no such event: {hint}")

    def __init__(self, **arguments: Any) -> None:
        self.arguments: dict[str, Any] = parse_options(self.arguments_of, arguments, f"filter {self.name}")
        """The arguments that were given; the others have their defaults."""

    def __str__(self) -> str:
        given = ",".join(f"{name}={self.arguments_of[name].text(value)}" for name, value in self.arguments.items())
        return f"{self.name}:{given}" if given else self.name

    @classmethod
    def summary(cls) -> str:
        """The first line of its docstring, as plain text."""
        return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0].replace("``", "")

    @functools.cached_property
    def random(self) -> random.Random:
        """Random numbers that depend on ``seed`` alone."""
        return random.Random(self.seed)

    @property
    def now(self) -> float:
        """The time in seconds, of the clock that :meth:`after` uses."""
        assert self._stack is not None
        return self._stack.now

    def after(self, seconds: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        """Run ``callback(*arguments)`` on the device's thread in ``seconds``. A reset of the device does not cancel it.

        It does not run once the filter is taken out.
        """
        if self._stack is None:
            raise RuntimeError(f"filter {self.name} is in no device: set timers from start() on")
        return self._stack.after(self, seconds, callback, *arguments)

    def release(self) -> None:
        """Let everything go on that a filter delays."""
        if self._stack is not None:
            self._stack.release()

    def leave(self) -> None:
        """Take itself out, when the event that is under way has passed."""
        if self._stack is not None:
            self.after(0, self._stack.remove, self)

    def wants(self, method: str) -> bool:
        """Whether it wants to be put into the paths of ``method``, as ``"before_read"``, which it overrides.

        Override it if that depends on arguments. It is asked whenever the paths are built.
        """
        return True

    def report(self) -> dict[str, Any]:
        """What it has found, as JSON can hold it: ``bellwire filter NAME list`` shows it. Keep it small."""
        return {}

    # -- its life

    def start(self) -> None:
        """It is put in: perhaps before the device's ``setup``. Override it to set up what the filter keeps.

        If it raises, the filter is not in, and :meth:`stop` is not called: check first, and change the device then.
        """

    def conclude(self) -> None:
        """A test's guest ends, and the test has not failed: raise here what it must fail with."""

    def beside(self, other: Filter) -> None:
        """Another filter is about to be put in. Override it to raise a FilterError if the two do not go together."""

    def stop(self) -> None:
        """It is taken out, or the device ends. Override it to close what :meth:`start` opened."""

    # -- events: each method costs nothing unless a filter overrides it

    def before_read(self, read: Read) -> None:
        """The guest reads a BAR or the ROM: ``read.answer(value)``, ``read.delay(seconds)``."""

    def after_read(self, read: Read) -> None:
        """The model has answered: ``read.value`` may be changed."""

    def before_write(self, write: Write) -> None:
        """The guest writes a BAR: ``write.value`` may be changed; ``drop()``, ``delay(seconds)``, ``again()``."""

    def after_write(self, write: Write) -> None:
        """The model has the write."""

    def before_config_read(self, read: Read) -> None:
        """The guest reads config space: as :meth:`before_read`."""

    def after_config_read(self, read: Read) -> None:
        """The model has answered: ``read.value`` may be changed."""

    def before_config_write(self, write: Write) -> None:
        """The guest writes config space: as :meth:`before_write`."""

    def after_config_write(self, write: Write) -> None:
        """The model has the write."""

    def before_ring(self, ring: Ring) -> None:
        """The guest has rung a doorbell, by any mechanism: ``drop()``, ``delay(seconds)``, ``again()``."""

    def after_ring(self, ring: Ring) -> None:
        """The ring's hook has run."""

    def before_dma_read(self, read: DmaRead) -> None:
        """The device reads guest memory: ``read.answer(data)``, ``read.fail(why)``."""

    def after_dma_read(self, read: DmaRead) -> None:
        """The bytes are there: ``read.data`` may be changed."""

    def before_dma_write(self, write: DmaWrite) -> None:
        """The device writes guest memory: ``write.data`` may be changed; ``drop()``, ``delay(seconds)``, ``fail()``."""

    def after_dma_write(self, write: DmaWrite) -> None:
        """The bytes are in guest memory."""

    def before_interrupt(self, interrupt: Interrupt) -> None:
        """The device interrupts: ``interrupt.vector`` may be changed; ``drop()``, ``delay(seconds)``, ``again()``."""

    def after_interrupt(self, interrupt: Interrupt) -> None:
        """The interrupt was sent, is pending, or is lost: see ``interrupt.outcome``."""

    def before_reset(self, reset: Reset) -> None:
        """The device is about to be reset: ``reset.drop()``."""

    def after_reset(self, reset: Reset) -> None:
        """The device has been reset."""

    def before_hook(self, hook: Hook) -> None:
        """A method of the device is about to run."""

    def after_hook(self, hook: Hook) -> None:
        """It has run, or has raised ``hook.error``."""

    def dma_map(self, range: DmaRange) -> None:
        """The client has mapped or unmapped guest memory."""

    def dma_view(self, view: DmaView) -> None:
        """Device code gets a view of guest memory. It happens only while all filters of DMA are :attr:`in_place`."""

    def client(self, client: Client) -> None:
        """A client has connected, or has left."""


METHODS = tuple(f"{when}_{kind}" for kind in KINDS for when in ("before", "after")) + NEWS
