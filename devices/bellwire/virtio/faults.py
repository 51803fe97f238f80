"""What a virtio device can do wrong: it needs a reset, returns buffers late or short, or refuses features."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from bellwire.errors import OptionError
from bellwire.faults import Fault, LastingFault
from bellwire.filters import Argument, Duration, Ring
from bellwire.virtio.chain import Chain

if TYPE_CHECKING:
    from bellwire.virtio.device import VirtioDevice

Finish = Callable[[Iterable[Chain]], None]


class Layers:
    """Functions of faults that stand in the place of a method, the one that was put in last first.

    Each gets the method behind it, and then the arguments.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.functions: list[Callable[..., Any]] = []

    def __call__(self, *arguments: Any) -> Any:
        """Call the functions, and behind them the method."""
        method = self._method
        for function in self.functions:
            method = functools.partial(function, method)
        return method(*arguments)


class VirtioFault(Fault):
    """A fault of a virtio device. It puts its own function in front of a method, and takes it out at its end."""

    def start(self) -> None:
        """Nothing is in front of a method yet."""
        self._placed: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []
        super().start()

    def stop(self) -> None:
        """Put everything back."""
        super().stop()
        for methods, name, function in self._placed:
            methods[name].functions.remove(function)
            if not methods[name].functions:
                del methods[name]

    @property
    def card(self) -> VirtioDevice:
        """The device."""
        return cast("VirtioDevice", self.device)

    def place(self, owner: object, name: str, function: Callable[..., Any]) -> None:
        """Let ``function`` run in front of the method ``name`` of ``owner``, as :class:`Layers` calls it."""
        methods = vars(owner)
        if name not in methods:
            methods[name] = Layers(getattr(owner, name))
        methods[name].functions.append(function)
        self._placed.append((methods, name, function))


class UsedFault(VirtioFault):
    """A fault of buffers that the device returns."""

    queue = Argument(-1, least=-1, most=65535, help="the virtqueue; -1: all")

    def start(self) -> None:
        """See each buffer that is returned. An OptionError if the device has no such queue."""
        count = len(self.card.virtqueues)
        if self.queue >= count:
            raise OptionError(f"filter {self.name}: queue={self.queue}: the device has 0 to {count - 1}")
        super().start()
        for queue in self.card.virtqueues:
            if self.queue in (-1, queue.index):
                self.place(queue, "finish", self._finished)

    def _finished(self, finish: Finish, chains: Iterable[Chain]) -> None:
        finish([chain for chain in chains if self.returned(chain, finish)])

    def returned(self, chain: Chain, finish: Finish) -> bool:
        """The device returns a buffer: False if it does not go back to the driver now."""
        return True


class ShortUsed(UsedFault, name="virtio-short-used"):
    """The used length of a buffer is less than what the device has written to it."""

    driver = "Uses no more bytes than the used length says, and refuses a buffer that is too short for its header."

    missing = Argument(0, least=0, help="how many bytes less; 0: all")

    def returned(self, chain: Chain, finish: Finish) -> bool:
        """Shorten the length."""
        if chain.written and self.strikes("a buffer of %s is short", chain.queue):
            chain.written = max(0, chain.written - self.missing) if self.missing else 0
        return True


class LateUsed(UsedFault, name="virtio-late-used"):
    """A buffer comes back late, and others overtake it."""

    driver = "Takes buffers back in whatever order they come, each by its id."

    by = Duration(0.05, most=3600.0, help="how late")

    def start(self) -> None:
        """No buffer waits yet."""
        self._waiting: deque[tuple[Chain, Finish, int]] = deque()
        super().start()

    def stop(self) -> None:
        """Return what waits, with the device's next turn."""
        super().stop()
        for each in self._waiting:
            self.device.after(0, self._return, *each)

    def returned(self, chain: Chain, finish: Finish) -> bool:
        """Keep it for a while."""
        if not self.strikes("a buffer of %s is late", chain.queue):
            return True
        self._waiting.append((chain, finish, chain.queue.generation))
        self.after(self.by, self._return_first)
        return False

    def _return_first(self) -> None:
        self._return(*self._waiting.popleft())

    def _return(self, chain: Chain, finish: Finish, generation: int) -> None:
        if chain.queue.generation == generation:
            finish([chain])
            self.catch_up(chain.queue.flush)


class LostUsed(UsedFault, name="virtio-lost-used"):
    """A buffer never comes back."""

    driver = "Gives a request a time limit where its kind has one, and resets the device; else its caller waits."

    def returned(self, chain: Chain, finish: Finish) -> bool:
        """Keep it for ever."""
        return not self.strikes("a buffer of %s is lost", chain.queue)


class NeedsReset(LastingFault, name="virtio-needs-reset"):
    """The device sets DEVICE_NEEDS_RESET, and uses no queue until the driver has reset it. Events are rings."""

    driver = "Reads the status at the configuration interrupt, resets the device, and submits again what was open."

    def before_ring(self, ring: Ring) -> None:
        """A ring may be the event at which it begins."""
        self.holds()

    def begin(self) -> None:
        """Need a reset."""
        cast("VirtioDevice", self.device).broken(f"fault {self.name}")


class RefusedFeatures(VirtioFault, name="virtio-refuse-features"):
    """The device does not accept the features that the driver has chosen: FEATURES_OK does not stay set."""

    driver = "Reads the status again, sets FAILED, and gives the device up with an error that says why."

    def start(self) -> None:
        """Stand before the agreement."""
        super().start()
        self.place(self.card, "agree_on_features", self._agree)

    def _agree(self, agree: Callable[[], bool]) -> bool:
        return not self.strikes("features are refused") and agree()


class FewerFeatures(VirtioFault, LastingFault, name="virtio-fewer-features"):
    """The device does not offer some features. Events are looks at the offer."""

    driver = "Does without, by another way, or gives the device up if it cannot."

    without = Argument("29", help="the feature bits, as 29+34")

    def start(self) -> None:
        """Stand before the offer. An OptionError for a bit that is not on offer."""
        where = f"filter {self.name}: without={self.without}"
        try:
            self._missing = {int(bit) for bit in self.without.split("+")}
        except ValueError:
            raise OptionError(f"{where}: expected feature bits, as 29+34") from None
        if not self._missing <= (offered := self.card.offered()):
            raise OptionError(f"{where}: the device offers {'+'.join(map(str, map(int, sorted(offered))))}")
        super().start()
        self.place(self.card, "offered", self._offered)

    def _offered(self, offered: Callable[[], set[int]]) -> set[int]:
        return offered() - self._missing if self.holds() else offered()


VIRTIO_FAULTS: tuple[type[Fault], ...] = (
    ShortUsed,
    LateUsed,
    LostUsed,
    NeedsReset,
    RefusedFeatures,
    FewerFeatures,
)
