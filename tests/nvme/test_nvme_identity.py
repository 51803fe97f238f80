"""Identify Controller byte by byte (§5.15.2.2): what a host believes of the controller from then on."""

from __future__ import annotations

import contextlib
import uuid

import pytest

from bellwire.bundled.nvme import Nvme
from bellwire.bundled.nvme.identify import Abilities, ControllerIdentity, text
from bellwire.bundled.nvme.namespace import Namespace, common_capabilities
from bellwire.storage import MemoryDisk
from bellwire.testing import Guest

ABILITIES = Abilities(
    namespace_ids=0x1122,
    capacity=0x0102_0304_0506_0708_090A,
    unallocated=0x0203_0405_0607_0809,
    self_test_minutes=7,
    sanitize=0x2000_0002,
    event_log_units=3,
)

FIELDS = {
    "VID": (0, 2, 0x1B36),
    "SSVID": (2, 2, 0x1AF4),
    "MDTS": (77, 1, 8),
    "CNTLID": (78, 2, 1),
    "VER": (80, 4, 0x0001_0400),
    "OAES": (92, 4, 1 << 8),
    "CNTRLTYPE": (111, 1, 1),
    "OACS": (256, 2, 0x11A),
    "ACL": (258, 1, 3),
    "AERL": (259, 1, 3),
    "FRMW": (260, 1, 0b11),
    "LPA": (261, 1, 0b11110),
    "ELPE": (262, 1, 63),
    "NPSS": (263, 1, 0),
    "WCTEMP": (266, 2, 70 + 273),
    "CCTEMP": (268, 2, 80 + 273),
    "TNVMCAP": (280, 16, ABILITIES.capacity),
    "UNVMCAP": (296, 16, ABILITIES.unallocated),
    "EDSTT": (316, 2, 7),
    "DSTO": (318, 1, 1),
    "SANICAP": (328, 4, 0x2000_0002),
    "PELS": (352, 4, 3),
    "SQES": (512, 1, 0x66),
    "CQES": (513, 1, 0x44),
    "NN": (516, 4, 0x1122),
    "ONCS": (520, 2, 0b1_1101_1111),
    "VWC": (525, 1, 0b111),
    "OCFS": (534, 2, 1),
    "SGLS": (536, 4, 0),
    "MP of power state 0": (2048, 2, 2500),
}


@pytest.fixture
def page() -> bytes:
    return ControllerIdentity(0x1B36, 0x1AF4, "S1").page(ABILITIES)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_the_controller(page: bytes, field: str) -> None:
    at, size, value = FIELDS[field]
    assert int.from_bytes(page[at : at + size], "little") == value


def test_names_are_padded_with_spaces_and_a_page_is_a_page(page: bytes) -> None:
    assert page[4:24] == b"S1".ljust(20)
    assert page[24:64] == b"Bellwire NVMe".ljust(40)
    assert page[64:72] == b"1".ljust(8)
    assert len(page) == 4096


def test_what_is_not_a_field_here_is_zero(page: bytes) -> None:
    known = {place for at, size, _ in FIELDS.values() for place in range(at, at + size)} | set(range(4, 72))
    known |= set(range(768, 1024))
    assert not any(byte for place, byte in enumerate(page) if place not in known)


def test_config_space_has_error_reporting_and_a_serial_number_of_the_controllers_own() -> None:
    numbers = {}
    for serial in ("S1", "S2"):
        with Guest(Nvme, serial=serial) as guest:
            errors, number = (each.at for each in guest.device.layout.extended)
            assert [guest.config_read(at, 4) for at in (errors, number)] == [number << 20 | 0x2_0001, 0x1_0003]
            numbers[serial] = guest.config_read(number + 4, 8)
            guest.device.core.reset()
            assert guest.config_read(number + 4, 8) == numbers[serial]
    assert numbers["S1"] != numbers["S2"]
    assert {value >> 40 for value in numbers.values()} == {0x024257}


def test_the_subsystems_name_follows_from_the_serial_number(page: bytes) -> None:
    name = page[768:1024].rstrip(b"\0").decode()
    assert name == f"nqn.2014-08.org.nvmexpress:uuid:{ControllerIdentity(1, 2, 'S1').uuid}"
    assert ControllerIdentity(1, 2, "S2").nqn.decode() != name


def test_text_that_is_no_ascii_or_too_long_still_fits() -> None:
    assert text("caf\u00e9", 6) == b"caf?  "
    assert text("too long", 3) == b"too"


WHO = uuid.UUID(int=0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10)

COMMON = {
    "NSFEAT": (24, 1, 1 << 3),
    "NLBAF": (25, 1, 1),
    "MC and DPC": (27, 2, 0),
    "DLFEAT": (33, 1, 0b1001),
    "LBAF0": (128, 4, 9 << 16),
    "LBAF1": (132, 4, 12 << 16),
}


@pytest.mark.parametrize("field", COMMON)
def test_a_field_of_what_all_namespaces_have_in_common(field: str) -> None:
    at, size, value = COMMON[field]
    assert int.from_bytes(common_capabilities()[at : at + size], "little") == value


def test_nothing_else_is_common() -> None:
    known = {place for at, size, _ in COMMON.values() for place in range(at, at + size)}
    found = common_capabilities()
    assert len(found) == 4096
    assert not any(byte for place, byte in enumerate(found) if place not in known)


@pytest.mark.parametrize(("shift", "flbas"), [(9, 0), (12, 1)])
@pytest.mark.parametrize("readonly", [False, True])
def test_a_namespace_says_how_large_it_is_and_who(shift: int, flbas: int, readonly: bool) -> None:
    with contextlib.closing(MemoryDisk(1 << 20)) as disk:
        disk.readonly = readonly
        namespace = Namespace(1, disk, 1 << shift, WHO)
        page = namespace.identify()
    blocks = (1 << 20) >> shift
    assert [int.from_bytes(page[at : at + 8], "little") for at in (0, 8, 16)] == [blocks] * 3
    assert page[26] == flbas
    assert int.from_bytes(page[48:64], "little") == 1 << 20
    most = (4 << 20) >> shift
    assert (int.from_bytes(page[74:76], "little"), int.from_bytes(page[76:80], "little"), page[80]) == (most, most, 127)
    assert page[99] == int(readonly)
    assert page[104:120] == namespace.nguid
    assert page[120:128] == namespace.eui64
    assert page[128:136] == common_capabilities()[128:136]
    assert len(page) == 4096
    kinds = {3: namespace.uuid.bytes, 2: namespace.nguid, 1: namespace.eui64}
    listed = b"".join(bytes([kind, len(name), 0, 0]) + name for kind, name in kinds.items())
    assert namespace.descriptors() == listed.ljust(4096, b"\0")
