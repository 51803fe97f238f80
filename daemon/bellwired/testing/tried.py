"""The scenario of a test, which knows whether it has tested anything."""

from __future__ import annotations

from typing import Self

import msgspec

from bellwire import PciDevice
from bellwire.faults import Fault
from bellwire.faults.scenario import Scenario


class Tried(Scenario, frozen=True, kw_only=True):
    """A scenario that keeps the faults that it has made."""

    made: list[Fault] = msgspec.field(default_factory=list)

    @classmethod
    def of(cls, scenario: Scenario) -> Self:
        """The same scenario, which has made no faults."""
        return cls(**msgspec.structs.asdict(scenario))

    def faults(self, device: type[PciDevice]) -> list[Fault]:
        """New faults, for a device."""
        found = Scenario.faults(self, device)
        self.made.extend(found)
        return found

    @property
    def struck(self) -> bool:
        """Whether any of them has struck."""
        return any(fault.trigger.struck for fault in self.made if hasattr(fault, "trigger"))
