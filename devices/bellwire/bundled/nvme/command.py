"""Entries of queues: commands of 64 bytes, and completions of 16 bytes."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

COMMAND_SIZE = 64
COMPLETION_SIZE = 16
COMPLETION = struct.Struct("<IIHHHH")  # result, reserved, SQ head, SQ id, command id, phase and status (§4.6)
COMMAND = struct.Struct("<BBHIQQQQ6I")
ALL_NAMESPACES = 0xFFFF_FFFF


class Command(NamedTuple):
    """A submission queue entry (§4.2), dwords 2 and 3 left together."""

    opcode: int
    flags: int
    cid: int
    nsid: int
    reserved: int
    metadata: int
    prp1: int
    prp2: int
    cdw10: int
    cdw11: int
    cdw12: int
    cdw13: int
    cdw14: int
    cdw15: int

    @classmethod
    def unpack(cls, entry: bytes | memoryview) -> Command:
        """Unpack a command from the 64 bytes of a queue entry."""
        return cls._make(COMMAND.unpack(entry))


class Byte(IntEnum):
    """The byte offset of a field in a command. Error log entries refer to it."""

    OPCODE = 0
    FLAGS = 1
    NSID = 4
    PRP1 = 24
    PRP2 = 32
    CDW10 = 40
    CDW11 = 44
    CDW12 = 48
    CDW13 = 52
    CDW14 = 56


class AdminOpcode(IntEnum):
    """Admin commands (§5)."""

    DELETE_SUBMISSION_QUEUE = 0x00
    CREATE_SUBMISSION_QUEUE = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_COMPLETION_QUEUE = 0x04
    CREATE_COMPLETION_QUEUE = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    DEVICE_SELF_TEST = 0x14
    NAMESPACE_ATTACHMENT = 0x15
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80
    SANITIZE = 0x84


class IoOpcode(IntEnum):
    """NVM commands (§6); Copy is of the NVM Command Set Specification 1.0 (§3.2.2), ratified as TP 4065 to 1.4."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    WRITE_UNCORRECTABLE = 0x04
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09
    VERIFY = 0x0C
    COPY = 0x19
