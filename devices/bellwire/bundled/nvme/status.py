"""Status codes of completions (§4.6.1)."""

from __future__ import annotations

from enum import IntEnum

DO_NOT_RETRY = 0x4000
MORE = 0x2000
"""The More bit: the error log has an entry (§4.6.1)."""


class Status(IntEnum):
    """Status code type and status code: the low 11 bits of the status field."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORTED_BY_REQUEST = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_PRP_OFFSET = 0x013
    SANITIZE_FAILED = 0x01C
    SANITIZE_IN_PROGRESS = 0x01D
    WRITE_PROTECTED = 0x020
    COMMAND_INTERRUPTED = 0x021
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    NAMESPACE_NOT_READY = 0x082
    FORMAT_IN_PROGRESS = 0x084

    INVALID_COMPLETION_QUEUE = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ABORT_LIMIT_EXCEEDED = 0x103
    TOO_MANY_EVENT_REQUESTS = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    NAMESPACE_INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_IDENTIFIER_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C
    SELF_TEST_IN_PROGRESS = 0x11D
    COMMAND_SIZE_LIMIT_EXCEEDED = 0x183

    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    GUARD_CHECK_ERROR = 0x282
    COMPARE_FAILURE = 0x285
    ACCESS_DENIED = 0x286

    @property
    def field(self) -> int:
        """The status field without its phase bit. It has Do Not Retry set for errors that a retry would repeat."""
        return self if self in _RETRY else self | DO_NOT_RETRY


_RETRY = frozenset(
    {
        Status.SUCCESS,
        Status.INTERNAL_ERROR,
        Status.ABORTED_BY_REQUEST,
        Status.ABORTED_SQ_DELETION,
        Status.COMMAND_INTERRUPTED,
        Status.CAPACITY_EXCEEDED,
        Status.NAMESPACE_NOT_READY,
        Status.SANITIZE_IN_PROGRESS,
        Status.FORMAT_IN_PROGRESS,
        Status.SELF_TEST_IN_PROGRESS,
    }
)


class CommandError(Exception):
    """A command cannot be done; ``parameter`` is the offset of the byte at fault in the command (§5.14.1.1)."""

    def __init__(self, status: Status, parameter: int = 0xFFFF) -> None:
        super().__init__(status.name)
        self.status = status
        self.parameter = parameter
