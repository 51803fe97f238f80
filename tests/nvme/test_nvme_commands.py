"""Which commands nvme takes, and that all that says so agrees."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from bellwire.bundled.nvme.command import AdminOpcode, IoOpcode
from bellwire.bundled.nvme.status import Status
from nvme.driver import Driver

GET_LOG = AdminOpcode.GET_LOG_PAGE
EVERY = 0xFFFF_FFFF


def test_the_effects_log_has_every_command_that_is_taken_and_no_other(driver: Driver) -> None:
    log = driver.log(5, 2048)
    supported = [bool(entry & 1) for entry in struct.unpack("<512I", log)]
    queues = driver.create_queues()
    for opcode in range(256):
        known = queues.do(opcode, nsid=1, dwords=(1 << 31,), prp1=1 << 40).code != Status.INVALID_OPCODE
        assert known == supported[256 + opcode], f"I/O command {opcode:#x}"
    for opcode in set(range(256)) - {AdminOpcode.ASYNC_EVENT_REQUEST}:
        known = driver.admin.do(opcode, flags=1).code != Status.INVALID_OPCODE
        assert known == supported[opcode], f"admin command {opcode:#x}"


@pytest.mark.parametrize(
    ("field", "offset", "commands"),
    [
        ("ONCS", 520, {0: IoOpcode.COMPARE, 1: IoOpcode.WRITE_UNCORRECTABLE, 2: IoOpcode.DATASET_MANAGEMENT,
                       3: IoOpcode.WRITE_ZEROES, 7: IoOpcode.VERIFY, 8: IoOpcode.COPY}),
        ("OACS", 256, {1: AdminOpcode.FORMAT_NVM, 3: AdminOpcode.NAMESPACE_MANAGEMENT, 4: AdminOpcode.DEVICE_SELF_TEST,
                       8: AdminOpcode.DOORBELL_BUFFER_CONFIG}),
    ],
)  # fmt: skip
def test_identify_names_the_optional_commands_that_the_effects_log_has(
    driver: Driver, field: str, offset: int, commands: dict[int, int]
) -> None:
    (bits,) = struct.unpack_from("<H", driver.identify(0x01), offset)
    log = struct.unpack("<512I", driver.log(5, 2048))
    for bit, opcode in commands.items():
        assert bits >> bit & 1 == log[(256 if field == "ONCS" else 0) + opcode] & 1 == 1


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (78, 2, 1),  # CNTLID
        (92, 4, 1 << 8),  # OAES: namespace attribute notices
        (256, 2, 0x11A),  # OACS
        (258, 1, 3),  # ACL, counted from zero
        (259, 1, 3),  # AERL
        (261, 1, 0x1E),  # LPA
        (316, 2, 2),  # EDSTT, minutes
        (318, 1, 1),  # DSTO: one self-test at a time
        (328, 4, 0x6000_0002),  # SANICAP: block erase, no-deallocate inhibited, media not modified afterwards
        (352, 4, 1),  # PELS, 64 KiB
        (520, 2, 0x1DF),  # ONCS
        (524, 1, 0),  # FNA: formats and erases are of one namespace
        (534, 2, 1),  # OCFS
    ],
)
def test_identify_controller_says_what_it_can_do(driver: Driver, offset: int, size: int, value: int) -> None:
    assert int.from_bytes(driver.identify(0x01)[offset : offset + size], "little") == value


def test_the_effects_are_those_that_linux_freezes_io_and_rescans_for(driver: Driver) -> None:
    log = struct.unpack("<512I", driver.log(5, 2048))
    assert [log[opcode] for opcode in (0x80, 0x84, 0x0D, 0x15, 0x06)] == [0x1_0007, 0x2_0003, 0xB, 0x9, 1]
    assert {log[256 + opcode] for opcode in (0x01, 0x04, 0x08, 0x09, 0x19)} == {3}
    assert {log[256 + opcode] for opcode in (0x00, 0x02, 0x05, 0x0C)} == {1}


def test_random_log_requests_end_with_a_status(driver: Driver) -> None:
    chance = random.Random(11)
    for _ in range(300):
        number = chance.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 0x0D, 0x81, chance.randrange(256)])
        done: Any = driver.admin.do(
            GET_LOG,
            nsid=chance.choice([0, 1, EVERY]),
            prp1=chance.choice([0x2000, 0x2004, 1 << 40]),
            prp2=chance.choice([0, 0x3000, 0x3004]),
            dwords=(chance.getrandbits(16) << 16 | chance.randrange(256) << 8 | number, chance.choice([0, 0, 1]),
                    chance.choice([0, 4, 512, chance.getrandbits(32)]), chance.choice([0, chance.getrandbits(32)])),
        )  # fmt: skip
        assert done.code in set(Status)
    assert driver.csts == 1
