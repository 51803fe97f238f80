"""Expansion ROMs: declared, checked when they are loaded, and read by the guest."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire import Bar, BellwireError, DeclarationError, Option, OptionError, PciDevice, Rom, StateError
from bellwire.declare.rom_image import LARGEST, CodeType, RomError, RomImage, images, padded
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance, option_rom, serve
from bellwired.commands.describe import describe
from bellwired.find import find_device
from vfio_user import Client, RegionFlags, RegionIndex, RemoteError

pytestmark = pytest.mark.slow

VENDOR, DEVICE = 0x1234, 0xB007
RETF = b"\xcb"
own = functools.partial(option_rom, vendor=VENDOR, device=DEVICE)
IMAGE = own(RETF)


def device(rom: Rom) -> type[PciDevice]:
    """A device with this ROM."""

    class Bootable(PciDevice, vendor=VENDOR, device=DEVICE, class_code=0x020000):
        mmio = Bar(0, size=4096)
        boot = rom

    return Bootable


def refused(make: Callable[[], object]) -> str:
    with pytest.raises(BellwireError) as caught:
        make()
    return str(caught.value)


def patched(offset: int, value: bytes, image: bytes = IMAGE) -> bytes:
    return image[:offset] + value + image[offset + len(value) :]


TestBootable = conformance(device(Rom(IMAGE)))


class ByOption(PciDevice, vendor=0x1234, device=0xB007, class_code=0x020000):
    mmio = Bar(0, size=4096)
    firmware = Option(Path(), help="the file with its expansion ROM")
    boot = Rom(firmware, size=0x1_0000)


TestWithoutARom = conformance(ByOption)


# -- as a guest sees it


def test_a_guest_reads_the_file_and_ones_behind_it() -> None:
    with Guest(device(Rom(IMAGE))) as guest:
        assert guest.device.core.region_size(RegionIndex.ROM) == 2048
        assert guest.read(RegionIndex.ROM, 0, 512) == int.from_bytes(IMAGE, "little")
        assert guest.read(RegionIndex.ROM, 2044, 4) == 0xFFFF_FFFF


def test_the_rom_is_an_attribute_of_the_instance() -> None:
    kind = device(Rom(IMAGE, size=4096))
    with Guest(kind) as guest:
        assert guest.device.boot == IMAGE.ljust(4096, b"\xff")  # type: ignore[attr-defined]
    assert isinstance(kind.boot, Rom)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("size", "mask"), [(0, 0xFFFF_F801), (0x1_0000, 0xFFFF_0001), (16 << 20, 0xFF00_0001)])
def test_its_bar_says_how_large_it_is(size: int, mask: int) -> None:
    with Guest(device(Rom(IMAGE, size=size))) as guest:
        guest.config_write(pci.ROM_BAR, 0xFFFF_FFFF, 4)
        assert guest.config_read(pci.ROM_BAR, 4) == mask
        guest.config_write(pci.ROM_BAR, 0xFEB0_0000, 4)
        assert guest.config_read(pci.ROM_BAR, 4) == 0xFEB0_0000 & mask


def test_a_reset_disables_it() -> None:
    with Guest(device(Rom(IMAGE))) as guest:
        guest.config_write(pci.ROM_BAR, 0xFEB0_0001, 4)
        guest.reset()
        assert guest.config_read(pci.ROM_BAR, 4) == 0


def test_a_client_reads_it_and_is_refused_a_write() -> None:
    with serve(device(Rom(IMAGE))) as served, Client.connect(served.path) as client:
        info, fd = client.region_info(RegionIndex.ROM)
        assert (info.flags, info.size, fd) == (RegionFlags.READ, 2048, None)
        assert client.read(RegionIndex.ROM, 0, 2048) == IMAGE.ljust(2048, b"\xff")
        with pytest.raises(RemoteError, match=r"EPERM|not permitted"):
            client.write(RegionIndex.ROM, 0, b"\0\0\0\0")
        with pytest.raises(RemoteError):
            client.read(RegionIndex.ROM, 2047, 2)
        assert client.read(RegionIndex.ROM, 2044, 4) == b"\xff" * 4


def test_a_device_without_a_rom_has_no_such_region() -> None:
    with serve(ByOption) as served, Client.connect(served.path) as client:
        assert client.region_info(RegionIndex.ROM)[0].size == 0
        with pytest.raises(RemoteError):
            client.read(RegionIndex.ROM, 0, 2)


# -- where it comes from


def test_a_path_begins_at_the_file_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
from bellwire import Bar, PciDevice, Rom
class Card(PciDevice, vendor=0x1234, device=0xB007, class_code=0x020000):
    mmio = Bar(0, size=4096)
    boot = Rom("card.rom")
"""
    (tmp_path / "rom_card.py").write_text(source)
    (tmp_path / "card.rom").write_bytes(IMAGE)
    monkeypatch.chdir("/")
    kind = find_device(str(tmp_path / "rom_card.py"))
    with Guest(kind) as guest:
        assert guest.read(RegionIndex.ROM, 0, 2) == 0xAA55


def test_a_rom_counts_as_one_of_the_devices_files(tmp_path: Path) -> None:
    from bellwired.sources import loaded, stamp

    (tmp_path / "rom_files.py").write_text(
        "from bellwire import PciDevice, Rom\n"
        "class Card(PciDevice, vendor=0x1234, device=0xB007, class_code=0x020000):\n"
        "    boot = Rom('card.rom')\n"
    )
    rom = tmp_path / "card.rom"
    rom.write_bytes(IMAGE)
    find_device(str(tmp_path / "rom_files.py"))
    assert loaded()[str(rom)] == stamp(rom)


def test_an_option_names_the_file(tmp_path: Path) -> None:
    rom = tmp_path / "card.rom"
    rom.write_bytes(IMAGE)
    with Guest(ByOption, firmware=rom) as guest:
        assert guest.device.boot == IMAGE.ljust(0x1_0000, b"\xff")
    suite = conformance(ByOption, firmware=rom)
    suite().test_the_expansion_rom_is_read_only_and_one_that_firmware_accepts()


def test_a_snapshot_with_another_rom_size_is_refused(tmp_path: Path) -> None:
    rom = tmp_path / "card.rom"
    rom.write_bytes(IMAGE)
    with Guest(ByOption) as without, Guest(ByOption, firmware=rom) as guest, pytest.raises(StateError):
        guest.restore(without.snapshot())


def test_the_description_has_its_images() -> None:
    two = own(RETF, last=False) + own(b"", code_type=CodeType.EFI)
    assert describe(device(Rom(two)))["rom"] == {
        "name": "boot",
        "size": 2048,
        "images": [{"offset": 0, "size": 512, "code_type": 0}, {"offset": 512, "size": 512, "code_type": 3}],
    }
    assert describe(ByOption)["rom"] == {"name": "boot", "option": "firmware"}


# -- what is refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the image at 0x0 begins with nothing, expected 55 aa"),
        (b"MZ" * 256, "begins with 4d 5a, expected 55 aa"),
        (IMAGE[:16], "ends before its header does"),
        (patched(0x18, b"\x1e\0"), "Data Structure at 0x1e: expected a dword inside of it"),
        (patched(0x18, b"\0\0"), "Data Structure at 0x0"),
        (patched(0x18, b"\xfc\xff"), "Data Structure at 0xfffc"),
        (patched(0x1C, b"PCIX"), "has b'PCIX' at 0x1c, expected PCIR"),
        (patched(0x2C, b"\x02\0"), "says that it has 1024 bytes"),
        (patched(0x2C, b"\0\0"), "says that it has 0 bytes"),
        (IMAGE[:-1], "says that it has 512 bytes, 24 of them at 0x1c; there are 511"),
        (patched(2, b"\0"), "says in byte 2 that 0 of its 512 bytes are to be copied"),
        (patched(2, b"\x02"), "says in byte 2 that 1024 of its 512 bytes"),
        (patched(0x40, b"\x01"), "the first 512 bytes of the image at 0x0 add up to 0x01, and a BIOS expects zero"),
        (own(RETF, last=False), "the image at 0x200 begins with nothing"),
        (bytes(LARGEST + 1), "it has 16777217 bytes, and a ROM at most 16777216"),
        (option_rom(RETF, vendor=0x8086, device=0x100E), "for 8086:100e: the firmware of 1234:b007 would run none"),
    ],
)
def test_an_image_that_firmware_would_skip_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    assert said in refused(lambda: device(Rom(content)))
    rom = tmp_path / "card.rom"
    rom.write_bytes(content)
    told = refused(lambda: ByOption(firmware=rom))
    assert told.startswith(f"option firmware={rom}: ")
    assert said in told


@pytest.mark.parametrize("size", [1, 1024, 3000, 0x1_0001, 32 << 20, -2048])
def test_a_size_that_no_bar_has_is_refused(size: int) -> None:
    assert "a ROM's size is a power of two from 0x800 to 0x1000000" in refused(lambda: device(Rom(IMAGE, size=size)))


def test_a_file_larger_than_its_size_is_refused() -> None:
    large = own(bytes(3000))
    assert "more than size=0x800" in refused(lambda: device(Rom(large, size=2048)))


@pytest.mark.parametrize("name", ["missing.rom", "/dev/zero", "."])
def test_what_is_no_file_is_refused(name: str) -> None:
    with pytest.raises(DeclarationError, match=r"No such file|it is no file"):
        device(Rom(name))


def test_an_option_that_names_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.rom", tmp_path, Path("/dev/zero")):
        with pytest.raises(OptionError, match=f"option firmware={path}: "):
            ByOption(firmware=path)


def test_other_sources_are_refused() -> None:
    assert "give a path, bytes or an option, not int" in refused(lambda: device(Rom(5)))  # type: ignore[arg-type]
    assert "its option is a path" in refused(lambda: device(Rom(Option("x"))))  # type: ignore[arg-type]


def test_a_second_rom_is_refused() -> None:
    def two() -> None:
        class Two(PciDevice, vendor=0x1234, device=0xB007, class_code=1):
            one = Rom(IMAGE)
            other = Rom(IMAGE)

    assert "declares Rom twice" in refused(two)


# -- images


def test_images_follow_each_other() -> None:
    first = own(bytes(600), last=False)
    second = option_rom(b"", vendor=1, device=2, code_type=CodeType.EFI)
    assert images(first + second + b"padding") == [
        RomImage(0, 1024, CodeType.BIOS, 0x1234, 0xB007),
        RomImage(1024, 512, CodeType.EFI, 1, 2),
    ]


@given(st.binary(max_size=2000), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF), st.booleans())
def test_an_image_that_was_made_here_is_accepted(code: bytes, vendor: int, device: int, padding: bool) -> None:
    made = option_rom(code, vendor=vendor, device=device)
    (found,) = images(made + b"\xff" * padding)
    assert found == RomImage(0, len(made), CodeType.BIOS, vendor, device)


def test_an_image_has_an_end() -> None:
    with pytest.raises(ValueError, match="at most 130560"):
        own(bytes(130560))


@given(st.binary(max_size=64), st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), max_size=6))
def test_damaged_images_are_refused_or_read_within_bounds(code: bytes, damage: list[tuple[int, int]]) -> None:
    content = bytearray(own(code, last=False) + own(code))
    for at, value in damage:
        content[at] = value
    with contextlib.suppress(RomError):
        found = images(bytes(content))
        assert all(each.size > 0 and each.offset + each.size <= len(content) for each in found)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_within_bounds(content: bytes) -> None:
    with contextlib.suppress(RomError):
        images(b"\x55\xaa" + content)


@given(st.integers(1, 20000), st.sampled_from([0, 2048, 32768]))
def test_padding_fills_a_power_of_two_with_ones(count: int, size: int) -> None:
    made = padded(bytes(count), size)
    assert made.startswith(bytes(count))
    assert set(made[count:]) <= {0xFF}
    assert len(made).bit_count() == 1
    assert len(made) >= max(count, size, 2048)
