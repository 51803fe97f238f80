"""From a device to SystemRDL, to a device file, and back: the map stays the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bellwire import PciDevice
from bellwired.find import bundled, find_device
from bellwired.maps import device_file, from_device, from_rdl, to_rdl
from bellwired.maps import register_map as maps
from bellwired.maps.from_rdl import Read
from maps.sample import Sample

pytestmark = pytest.mark.slow  # each map is compiled, and each file loaded

DEVICES: dict[str, type[PciDevice]] = {**bundled(), "sample": Sample}
every_device = pytest.mark.parametrize("kind", DEVICES.values(), ids=DEVICES)


def through_rdl(device: maps.Map, folder: Path) -> Read:
    file = folder / "map.rdl"
    file.write_text(to_rdl.write(device))
    return from_rdl.read(file)


def through_python(device: maps.Map, folder: Path) -> maps.Map:
    file = folder / "imported.py"
    file.write_text(device_file.make(device, "map.rdl", None, file))
    return from_device.read(find_device(str(file)))


@every_device
def test_systemrdl_compiler_reads_the_same_map(kind: type[PciDevice], tmp_path: Path) -> None:
    device = from_device.read(kind)
    assert through_rdl(device, tmp_path) == (replace(device, description=tame(device.description)), ())


def tame(text: str) -> str:
    """A text as it is written for SystemRDL's preprocessors."""
    return text.replace("<%", "< %").replace("%>", "% >").replace("`", "'")


@every_device
def test_a_device_file_declares_the_same_map(kind: type[PciDevice], tmp_path: Path) -> None:
    device = from_device.read(kind)
    assert through_python(device, tmp_path) == device


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8)
SENTENCES = st.lists(WORDS, max_size=5).map(" ".join)


@settings(deadline=None, max_examples=25)
@given(
    about=SENTENCES,
    value=st.integers(0, 0xFFFF_FFFF),
    mask=st.integers(0, 0xFFFF_FFFF),
    access=st.sampled_from(["rw", "ro", "wo", "w1c", "w1s", "rc", "constant", "reserved", "unimplemented"]),
)
def test_any_register_comes_through_with_any_words(
    tmp_path_factory: pytest.TempPathFactory, about: str, value: int, mask: int, access: str
) -> None:
    register = maps.Register("it", 0x10, 4, access, value, mask, about)
    bar = maps.BarMap("mmio", 0, 4096, items=(register,))
    device = maps.Map("thing", 0x1234, 1, 0x088000, 0, 0x1234, 1, description="A thing.", bars=(bar,))
    folder = tmp_path_factory.mktemp("words")
    found = through_rdl(device, folder).device.bars[0].items[0]
    assert found == replace(register, description=tame(about))
    assert through_python(device, folder) == device
