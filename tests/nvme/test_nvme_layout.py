"""Where nvme's registers lie and which bits a host can set (NVMe 1.4 §3.1), and the limits of what it may cause."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from bellwire import OptionError
from bellwire.bundled.nvme import (
    Nvme,
    admin,
    at_once,
    command,
    device,
    engine,
    features,
    guest_pages,
    history,
    identify,
    io,
    journal,
    logs,
    lost_blocks,
    management,
    namespace,
    namespaces,
    optional,
    prp,
    queues,
    registers,
    sanitize,
    self_test,
    status,
    store,
    telemetry,
    timestamp,
)
from bellwire.bundled.nvme import format as formats
from bellwire.bundled.nvme.registers import Registers
from bellwire.declare.register import Register
from bellwire.declare.saved import SavedBytes

ADDRESS = 0xFFFF_FFFF_FFFF_F000


def test_the_registers_lie_where_the_text_has_them() -> None:
    """Offset, size, access, and the bits that a host can set."""
    found = {
        register.name: (register.offset, register.size, register.access_word, register.writable)
        for register in vars(Registers).values()
        if isinstance(register, Register)
    }
    assert found == {
        "cap": (0x00, 8, "constant", (1 << 64) - 1),
        "vs": (0x08, 4, "constant", 0xFFFF_FFFF),
        "intms": (0x0C, 4, "w1s", 0xFFFF_FFFF),
        "intmc": (0x10, 4, "w1c", 0xFFFF_FFFF),
        "cc": (0x14, 4, "rw", 0x00FF_FFF1),
        "csts": (0x1C, 4, "ro", 0xFFFF_FFFF),
        "nssr": (0x20, 4, "reserved", 0xFFFF_FFFF),
        "aqa": (0x24, 4, "rw", 0x0FFF_0FFF),
        "asq": (0x28, 8, "rw", ADDRESS),
        "acq": (0x30, 8, "rw", ADDRESS),
        "cmbloc": (0x38, 4, "reserved", 0xFFFF_FFFF),
        "cmbsz": (0x3C, 4, "reserved", 0xFFFF_FFFF),
    }
    assert (Registers.mmio.index, Registers.mmio.size, Registers.mmio.bits) == (0, 1 << 14, 64)


def test_doorbells_are_four_bytes_apart() -> None:
    """§3.1.24, §3.1.25: CAP.DSTRD is 0. Only the last value counts, and the write is posted."""
    for bells, offset, size in ((Registers.admin_bells, 0x1000, 8), (Registers.io_bells, 0x1008, 512)):
        assert (bells.offset, bells.size, bells.bell, bells.latest, bells.posted) == (offset, size, 4, True, True)


def test_capabilities_say_what_the_controller_can() -> None:
    """§3.1.1: MQES 1023, CQR, TO 10 s, the NVM command set, pages of 4 KiB only."""
    assert Registers.cap.reset == 1023 | 1 << 16 | 20 << 24 | 1 << 37
    assert Registers.vs.reset == 0x0001_0400
    assert (Registers.irq.count, Registers.msi.count) == (65, 1)
    assert (registers.QUEUES, registers.ENTRIES, registers.PAGE, registers.READY_TIMEOUT) == (64, 1024, 4096, 20)
    assert (registers.ENABLE, registers.READY, registers.FATAL) == (1, 1, 2)
    assert (registers.SHUTDOWN_BUSY, registers.SHUTDOWN_DONE, registers.SHUTDOWN_MASK) == (4, 8, 12)


def test_fields_of_commands_lie_where_the_text_has_them() -> None:
    assert (command.COMMAND_SIZE, command.COMPLETION_SIZE, command.ALL_NAMESPACES) == (64, 16, 0xFFFF_FFFF)
    assert (admin.CONTIGUOUS, admin.INTERRUPTS, admin.RETAIN_EVENT, admin.NOT_ABORTED) == (1, 2, 1 << 15, 1)
    assert (formats.METADATA_OR_PROTECTION, formats.USER_DATA_ERASE, guest_pages.SCATTERED) == (0x1F0, 1, 0xC3)
    assert (io.FORCE_UNIT_ACCESS, io.DEALLOCATE, io.ATTRIBUTE_DEALLOCATE) == (1 << 30, 1 << 25, 4)
    assert (optional.FORCE_UNIT_ACCESS, optional.PROTECTION) == (1 << 30, 0xF << 26)
    assert (management.CREATE, management.DELETE, management.ATTACH, management.DETACH) == (0, 1, 0, 1)
    assert (sanitize.BLOCK_ERASE, sanitize.UNRESTRICTED_EXIT, sanitize.NO_DEALLOCATE) == (2, 8, 1 << 9)
    assert (telemetry.CREATE, telemetry.HOST, telemetry.CONTROLLER) == (1 << 8, 7, 8)
    assert (features.SAVE, features.NAMESPACE_NOTICES, features.TELEMETRY_NOTICES) == (1 << 31, 1 << 8, 1 << 10)
    assert (features.COALESCING_DISABLED, features.TEMPERATURE_WARNING, features._ALL_SENSORS) == (1 << 16, 2, 15)
    assert (status.DO_NOT_RETRY, status.MORE) == (1 << 14, 1 << 13)


def test_fields_of_pages_lie_where_the_text_has_them() -> None:
    assert (sanitize.IDLE, sanitize.UNKNOWN_TIME, sanitize.CAPABILITIES) == (0xFFFF, 0xFFFF_FFFF, 0x6000_0002)
    assert (self_test.RESULTS, self_test.DISK_SEGMENT, self_test.MINUTES) == (20, 2, 2)
    bits = (self_test.NSID_VALID, self_test.LBA_VALID, self_test.TYPE_VALID, self_test.CODE_VALID)
    assert bits == (1, 2, 4, 8)
    assert (logs.SUPPORTED, logs.CHANGES_DATA, logs.CHANGES_NAMESPACES, logs.CHANGES_INVENTORY) == (1, 2, 4, 8)
    assert (logs.ENTRY_SIZE, logs.ALONE_IN_NAMESPACE, logs.ALONE, logs.UNIT) == (64, 1 << 16, 2 << 16, 1000)
    assert (history.HEADER_SIZE, history.EVENT_HEADER_LENGTH, history.REVISION, history.SIZE_UNITS) == (512, 21, 1, 1)
    assert (namespace.EUI64_DESCRIPTOR, namespace.NGUID_DESCRIPTOR, namespace.UUID_DESCRIPTOR) == (1, 2, 3)
    assert (timestamp.SIZE, timestamp.MASK, timestamp.ORIGIN_HOST) == (8, (1 << 48) - 1, 2)
    assert (telemetry.BLOCK, prp.ENTRY, prp.PAGE, management.PAGE) == (512, 8, 4096, 4096)


def test_what_a_host_may_cause_is_bounded() -> None:
    assert (identify.EVENT_REQUESTS, identify.ERROR_ENTRIES, identify.ABORTS) == (4, 64, 4)
    assert (guest_pages.MDTS, guest_pages.LARGEST, logs.ERRORS_SIZE) == (8, 1 << 20, 64 * 64)
    assert (namespace.LARGEST_COPY, namespace.COPY_RANGES, namespace.FORMATS) == (4 << 20, 128, (9, 12))
    assert (namespaces.LEAST_IDS, namespaces.MOST_IDS, lost_blocks.MOST_RANGES) == (32, 256, 1024)
    assert (journal.SLOTS, journal.JOURNAL_SIZE, queues.BATCH, engine.BURST) == (256, 256 * 72, 16, 256)
    assert (io.AT_ONCE, io.SECTOR_SHIFT, at_once.ENOUGH, optional.PIECE) == (2 << 20, 9, 512 << 10, 1 << 20)
    assert (history.MOST_BYTES, telemetry.MOST, store.LARGEST) == (127 * 512, 512 * 512, 64 << 20)
    assert (self_test.SAMPLES, self_test.PIECE, features.WORDS) == (16, 1 << 20, 16 + 65)
    assert (device.BLOCK_SIZES, device.DEFAULT_SIZE, features.ROOM_TEMPERATURE) == ((512, 4096), 64 << 20, 298)


def test_options_have_the_defaults_that_the_documentation_names() -> None:
    nvme = Nvme()
    assert (nvme.size, nvme.shrink, nvme.readonly, nvme.direct) == (0, False, False, False)
    assert (nvme.namespaces, nvme.threads, nvme.queues, nvme.block_size) == (0, 4, 64, 512)
    assert (nvme.image, nvme.serial, nvme.capacity, nvme.doorbells) == ("", "", 0, "value")


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("threads", (1, 64), (0, 65)),
        ("queues", (1, 64), (0, 65)),
        ("namespaces", (0, 256), (-1, 257)),
        ("size", (0, 512), (-1,)),
        ("capacity", (0, 512), (-1,)),
        ("block_size", (512, 4096), (1024, 513)),
        ("doorbells", ("value", "shadow"), ("none",)),
    ],
)
def test_the_last_value_that_an_option_takes_and_the_first_that_it_does_not(
    option: str, good: tuple[object, ...], bad: tuple[object, ...]
) -> None:
    def make(value: object) -> Nvme:
        options: dict[str, Any] = {option: value}
        return Nvme(**options)

    for value in good:
        assert getattr(make(value), option) == value
    for value in bad:
        with pytest.raises(OptionError, match=option):
            make(value)


def test_a_snapshot_has_65_queues_of_each_kind_and_a_word_for_each_feature() -> None:
    sizes = {name: state.size for name, state in vars(Nvme).items() if isinstance(state, SavedBytes)}
    assert sizes["submission_state"] == 65 * ctypes.sizeof(queues.SubmissionQueue)
    assert sizes["completion_state"] == 65 * ctypes.sizeof(queues.CompletionQueue)
    assert (sizes["feature_state"], sizes["error_state"], sizes["journal_state"]) == (4 * 81, 4096, 256 * 72)
