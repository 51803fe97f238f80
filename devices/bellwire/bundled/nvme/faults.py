"""What nvme can do wrong: commands that fail, wait or are lost, a controller that fails, a namespace that is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from bellwire.bundled.nvme.command import ALL_NAMESPACES, AdminOpcode, Command, IoOpcode
from bellwire.bundled.nvme.events import Event
from bellwire.bundled.nvme.features import NAMESPACE_NOTICES, ROOM_TEMPERATURE, FeatureId
from bellwire.bundled.nvme.interception import Fate
from bellwire.bundled.nvme.status import Status
from bellwire.errors import OptionError
from bellwire.faults import Fault, LastingFault
from bellwire.filters import Argument, Duration

if TYPE_CHECKING:
    from bellwire.bundled.nvme.controller import Controller
    from bellwire.bundled.nvme.device import Nvme

ANY = "any"
ZERO_CELSIUS = 273  # kelvins
SPAN = (IoOpcode.READ, IoOpcode.WRITE, IoOpcode.COMPARE, IoOpcode.WRITE_ZEROES, IoOpcode.VERIFY)
"""Commands whose dwords 10 to 12 have the first block and the number of blocks."""
WARNINGS: dict[str, tuple[int, Event]] = {
    "spare": (0x01, Event.SPARE_BELOW_THRESHOLD),
    "temperature": (0x02, Event.TEMPERATURE),
    "reliability": (0x04, Event.RELIABILITY),
    "read-only": (0x08, Event.RELIABILITY),
    "backup": (0x10, Event.RELIABILITY),
}
"""Critical warnings (§5.14.1.2): the bit, and the event that tells of it."""


def word(member: Any) -> str:
    """What users call a member of an enum: ``unrecovered-read-error``."""
    name: str = member.name
    return name.lower().replace("_", "-")


OPCODES = {word(opcode): (True, int(opcode)) for opcode in IoOpcode} | {
    word(opcode): (False, int(opcode)) for opcode in AdminOpcode
}
"""Each command by its name: whether it is for I/O queues, and its opcode."""
STATUSES = {word(status): status for status in Status if status is not Status.SUCCESS}


def controller_of(fault: Fault) -> Controller:
    """The controller of the device that a fault is in."""
    return cast("Nvme", fault.device).controller


class CommandFault(Fault):
    """A fault of commands: of one kind or of all I/O commands, of all blocks or of some."""

    command = Argument(ANY, choices=(ANY, *OPCODES), help="which command: read, write, identify, ...; any: all of I/O")
    nsid = Argument(0, least=0, most=ALL_NAMESPACES, help="of this namespace only; 0: of all")
    first = Argument(0, least=0, help="of reads, writes and the like: only those that touch a block from this one on")
    last = Argument(-1, least=-1, help="and up to this one; -1: to the end")

    verb = "is struck"
    """What happens to the command, for the log."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        where, opcode = f"filter {self.name}: first={self.first},last={self.last}", OPCODES.get(self.command)
        if 0 <= self.last < self.first:
            raise OptionError(f"{where}: the last block is before the first")
        if (self.first or self.last >= 0) and opcode is not None and opcode not in [(True, each) for each in SPAN]:
            raise OptionError(f"{where}: {self.command} has no blocks: {', '.join(map(word, SPAN))} have some")

    def start(self) -> None:
        """Decide on commands from now on. An OptionError for a namespace that the device can never have."""
        most = controller_of(self).namespaces.most
        if most < self.nsid < ALL_NAMESPACES:
            raise OptionError(f"filter {self.name}: nsid={self.nsid}: the device has 1 to {most}")
        super().start()
        self._opcode = OPCODES.get(self.command)
        controller_of(self).engine.interception.add(self._judge)

    def stop(self) -> None:
        """Decide no more."""
        super().stop()
        controller_of(self).engine.interception.remove(self._judge)

    def concerns(self, io: bool, command: Command) -> bool:
        """Whether the fault can strike this command."""
        if not io if self._opcode is None else self._opcode != (io, command.opcode):
            return False
        if self.nsid and command.nsid != self.nsid:
            return False
        if (self.first or self.last >= 0) and io:
            if command.opcode not in SPAN:
                return False
            first = command.cdw10 | command.cdw11 << 32
            last = first + (command.cdw12 & 0xFFFF)
            return last >= self.first and (self.last < 0 or first <= self.last)
        return True

    def _judge(self, qid: int, command: Command) -> Fate | None:
        if not self.concerns(bool(qid), command):
            return None
        if not self.strikes("opcode %#x on queue %d %s", command.opcode, qid, self.verb):
            return None
        return self.fate()

    def fate(self) -> Fate:
        """What becomes of a command that is struck."""
        return Fate()


class FailedCommand(CommandFault, name="nvme-status"):
    """A command fails with a status code."""

    driver = (
        "Tries again a limited number of times if the Do Not Retry bit is clear, at once or after the delay that the "
        "controller has named; else it gives the error to the layer above, as what it is."
    )
    verb = "fails"

    status = Argument("internal-error", choices=tuple(STATUSES), help="the status code, by its name")
    retry = Argument("default", choices=("default", "yes", "no"), help="whether the host may retry it")

    def fate(self) -> Fate:
        """Fail."""
        return Fate(STATUSES[self.status], retry={"yes": True, "no": False}.get(self.retry))


class SlowCommand(CommandFault, name="nvme-slow"):
    """A command takes long, and others overtake it: completions come in another order than the commands."""

    driver = "Tells completions apart by their command ids, in whatever order they come, and has patience."
    verb = "waits"

    by = Duration(0.05, most=3600.0, help="how long")

    def fate(self) -> Fate:
        """Wait."""
        return Fate(wait=self.by)


class LostCommand(CommandFault, name="nvme-lost"):
    """A command never completes."""

    driver = "Aborts the command after its time limit, resets the controller if that does not help, and tries again."
    verb = "is lost"

    def fate(self) -> Fate:
        """Never complete."""
        return Fate(lost=True)


class DoubleCompletion(CommandFault, name="nvme-twice"):
    """A command completes twice."""

    driver = "Refuses a completion whose command id is not that of an open command, says so, and goes on."
    verb = "completes twice"

    def fate(self) -> Fate:
        """Complete twice."""
        return Fate(twice=True)


class FatalStatus(CommandFault, name="nvme-fatal"):
    """The controller fails at a command: it sets CSTS.CFS, and executes nothing until it is reset."""

    driver = "Sees CSTS.CFS, resets the controller, sets its queues up anew, and submits again what was open."
    verb = "breaks the controller down"

    def fate(self) -> Fate:
        """Break down."""
        controller_of(self).break_down(f"fault {self.name}")
        return Fate(lost=True)


class FullQueue(LastingFault, name="nvme-queue-full"):
    """The controller fetches no commands from I/O queues, so that they fill up."""

    driver = "Never moves the tail onto the head: it stops its callers until there is room, and goes on then."

    def begin(self) -> None:
        """Fetch nothing more."""
        controller_of(self).engine.interception.stall()

    def end(self) -> None:
        """Fetch again."""
        controller_of(self).engine.interception.go_on()


class NamespaceGone(LastingFault, name="nvme-namespace-gone"):
    """A namespace is gone: the host is told that the list of namespaces has changed, and does not find it there."""

    driver = "Reads the list of changed namespaces, removes the disk, and fails what is open; it brings it back later."

    nsid = Argument(1, least=1, most=ALL_NAMESPACES - 1, help="which namespace")

    def start(self) -> None:
        """Find the namespace. An OptionError if there is none."""
        found = [space for space in controller_of(self).namespaces.allocated if space.nsid == self.nsid]
        if not found:
            raise OptionError(f"filter {self.name}: nsid={self.nsid}: the device has no such namespace")
        self._space = found[0]
        super().start()

    def begin(self) -> None:
        """Take it away."""
        self._change(gone=True)

    def end(self) -> None:
        """Bring it back."""
        self._change(gone=False)

    def _change(self, *, gone: bool) -> None:
        controller = controller_of(self)
        self._space.gone = gone
        controller.namespaces.refresh()
        controller.events.namespace_changed(self.nsid)
        if controller.features[FeatureId.EVENTS] & NAMESPACE_NOTICES:
            controller.happened(Event.NAMESPACE_ATTRIBUTE_CHANGED)


class Temperature(LastingFault, name="nvme-temperature"):
    """The composite temperature is not that of the room."""

    driver = "Logs the event or hands it to user space, and leaves the controller to its own throttling."

    celsius = Argument(90, least=-60, most=200, help="the temperature")

    def begin(self) -> None:
        """Be hot, or cold."""
        controller = controller_of(self)
        controller.features.temperature = self.celsius + ZERO_CELSIUS
        if controller.features.alarming:
            controller.happened(Event.TEMPERATURE)

    def end(self) -> None:
        """Be as the room again."""
        controller_of(self).features.temperature = ROOM_TEMPERATURE


class CriticalWarning(LastingFault, name="nvme-warning"):
    """The health log has a critical warning, and the host is told of it if it wants that."""

    driver = "Logs the event or hands it to user space; the disk goes on."

    kind = Argument("spare", choices=tuple(WARNINGS), help="which warning")

    def begin(self) -> None:
        """Warn."""
        controller, (bit, event) = controller_of(self), WARNINGS[self.kind]
        controller.features.raised |= bit
        if controller.features[FeatureId.EVENTS] & bit:
            controller.happened(event)

    def end(self) -> None:
        """Take the warning back."""
        controller_of(self).features.raised &= ~WARNINGS[self.kind][0]


NVME_FAULTS: tuple[type[Fault], ...] = (
    FailedCommand,
    SlowCommand,
    LostCommand,
    DoubleCompletion,
    FatalStatus,
    FullQueue,
    NamespaceGone,
    Temperature,
    CriticalWarning,
)
