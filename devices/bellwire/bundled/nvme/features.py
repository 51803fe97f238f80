"""Features that the host can get and set (§5.13, §5.21)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

from bellwire.bundled.nvme.command import ALL_NAMESPACES, AdminOpcode, Byte, Command
from bellwire.bundled.nvme.registers import QUEUES
from bellwire.bundled.nvme.status import CommandError, Status

SAVE = 1 << 31
ROOM_TEMPERATURE = 298  # kelvins
TEMPERATURE_WARNING = 1 << 1  # of the health log's critical warnings, and of the events that the host may want
NAMESPACE_NOTICES, TELEMETRY_NOTICES = 1 << 8, 1 << 10  # of the events that the host may want


class FeatureId(IntEnum):
    """Feature identifiers (§5.21.1)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    WRITE_CACHE = 0x06
    QUEUES = 0x07
    COALESCING = 0x08
    VECTOR = 0x09
    ATOMICITY = 0x0A
    EVENTS = 0x0B
    TIMESTAMP = 0x0E


class Select(IntEnum):
    """The value that Get Features asks for: current, default, saved or capabilities (§5.13)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class Feature(NamedTuple):
    """One feature: its value after a reset, and the bits that a host can set."""

    default: int
    settable: int
    per_namespace: bool = False


FEATURES: Mapping[FeatureId, Feature] = {
    FeatureId.ARBITRATION: Feature(7, 0xFFFF_FF07),
    FeatureId.POWER_MANAGEMENT: Feature(0, 0),
    FeatureId.TEMPERATURE_THRESHOLD: Feature(343, 0x0000_FFFF),
    FeatureId.ERROR_RECOVERY: Feature(0, 0, per_namespace=True),
    FeatureId.WRITE_CACHE: Feature(1, 1),
    FeatureId.QUEUES: Feature(0, 0),
    FeatureId.COALESCING: Feature(0, 0x0000_FFFF),
    FeatureId.VECTOR: Feature(0, 0),
    FeatureId.ATOMICITY: Feature(0, 1),
    FeatureId.EVENTS: Feature(0, 0x0000_00FF | NAMESPACE_NOTICES | TELEMETRY_NOTICES),
    FeatureId.TIMESTAMP: Feature(0, 1),  # what it is set to is data
}
COALESCING_DISABLED = 1 << 16
WORDS = 16 + QUEUES + 1
"""The number of u32 words of state. Each feature has the word with its number; vector configurations follow."""
_VECTORS = 16
_TOO_COLD = 0  # the word of the lower temperature threshold: no feature has this number
_ALL_SENSORS = 15


class Features:
    """The features of one controller; ``words`` lie in its state."""

    def __init__(self, words: memoryview, queues: int, namespaces: int) -> None:
        self.words = words
        self._granted = (queues - 1) << 16 | queues - 1
        self._namespaces = namespaces
        self.temperature = ROOM_TEMPERATURE
        """The composite temperature in kelvins."""
        self.raised = 0
        """Critical warnings that a fault has raised (§5.14.1.2)."""

    def reset(self) -> None:
        """Set all features to their defaults (§7.3.2)."""
        for number in range(WORDS):
            self.words[number] = 0
        for identifier, feature in FEATURES.items():
            self.words[identifier] = feature.default

    def __getitem__(self, identifier: FeatureId) -> int:
        value: int = self.words[identifier]
        return value

    @property
    def write_cache(self) -> bool:
        """Whether writes may stay in the host's page cache until a flush (§5.21.1.6)."""
        return bool(self.words[FeatureId.WRITE_CACHE])

    def coalesces(self, vector: int) -> bool:
        """Whether interrupts of ``vector`` may be coalesced (§5.21.1.9)."""
        return not self.words[_VECTORS + vector] & COALESCING_DISABLED

    @property
    def warnings(self) -> int:
        """The critical warnings. One is set if the temperature is not between the thresholds (§5.21.1.4)."""
        good = self.words[_TOO_COLD] < self.temperature < self.words[FeatureId.TEMPERATURE_THRESHOLD]
        return self.raised | (0 if good else TEMPERATURE_WARNING)

    @property
    def alarming(self) -> bool:
        """Whether there is a warning that the host wants to hear of (§5.21.1.11)."""
        return bool(self.warnings & self.words[FeatureId.EVENTS])

    def get(self, command: Command) -> int:
        """Get Features. Returns the result dword."""
        identifier, feature = _find(command)
        select = command.cdw10 >> 8 & 7
        if select > Select.CAPABILITIES:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW10)
        if select == Select.CAPABILITIES:
            changeable = feature.settable or identifier in (FeatureId.QUEUES, FeatureId.VECTOR)
            return bool(changeable) << 2 | feature.per_namespace << 1
        self._check_namespace(command)
        if identifier is FeatureId.QUEUES:
            return self._granted
        if identifier is FeatureId.VECTOR:
            vector = self._vector(command)
            return vector | (self.words[_VECTORS + vector] if select == Select.CURRENT else 0)
        word = self._threshold(command) if identifier is FeatureId.TEMPERATURE_THRESHOLD else int(identifier)
        default = 0 if word == _TOO_COLD else feature.default
        return self.words[word] if select == Select.CURRENT else default

    def set(self, command: Command, *, queues_exist: bool) -> int:
        """Set Features. Returns the result dword."""
        identifier, feature = _find(command)
        value = command.cdw11
        if command.cdw10 & SAVE:
            raise CommandError(Status.FEATURE_NOT_SAVEABLE, Byte.CDW10)
        self._check_namespace(command)
        if 0 < command.nsid < ALL_NAMESPACES and not feature.per_namespace:
            raise CommandError(Status.FEATURE_NOT_NAMESPACE_SPECIFIC, Byte.NSID)
        if identifier is FeatureId.QUEUES:
            if queues_exist:
                raise CommandError(Status.COMMAND_SEQUENCE_ERROR, Byte.CDW10)
            if 0xFFFF in (value & 0xFFFF, value >> 16):
                raise CommandError(Status.INVALID_FIELD, Byte.CDW11)
            return self._granted
        if identifier is FeatureId.VECTOR:
            self.words[_VECTORS + self._vector(command)] = value & COALESCING_DISABLED
            return 0
        if identifier is FeatureId.POWER_MANAGEMENT and value & 0x1F:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW11)  # there is only one power state
        if identifier is FeatureId.ERROR_RECOVERY and value:
            raise CommandError(Status.FEATURE_NOT_CHANGEABLE, Byte.CDW11)
        word = self._threshold(command) if identifier is FeatureId.TEMPERATURE_THRESHOLD else int(identifier)
        self.words[word] = value & feature.settable
        return 0

    def _threshold(self, command: Command) -> int:
        """The number of the word of the upper or lower threshold (§5.21.1.4). There is only one sensor."""
        sensor, kind = command.cdw11 >> 16 & 15, command.cdw11 >> 20 & 3
        everyone = sensor == _ALL_SENSORS and command.opcode == AdminOpcode.SET_FEATURES
        if kind > 1 or (sensor and not everyone):
            raise CommandError(Status.INVALID_FIELD, Byte.CDW11)
        return _TOO_COLD if kind else FeatureId.TEMPERATURE_THRESHOLD

    def _vector(self, command: Command) -> int:
        vector = command.cdw11 & 0xFFFF
        if vector > QUEUES:
            raise CommandError(Status.INVALID_FIELD, Byte.CDW11)
        return vector

    def _check_namespace(self, command: Command) -> None:
        """Refuse an unknown namespace. None and all stand for the controller (§5.21)."""
        if self._namespaces < command.nsid < ALL_NAMESPACES:
            raise CommandError(Status.INVALID_NAMESPACE, Byte.NSID)


def _find(command: Command) -> tuple[FeatureId, Feature]:
    number = command.cdw10 & 0xFF
    try:
        identifier = FeatureId(number)
    except ValueError:
        raise CommandError(Status.INVALID_FIELD, Byte.CDW10) from None
    return identifier, FEATURES[identifier]
