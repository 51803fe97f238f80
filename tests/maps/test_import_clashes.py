"""``bellwire import`` of maps whose names are different there, and would be the same in Python or hide another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwired.commands.cli import main
from bellwired.find import find_device
from bellwired.maps import from_device
from bellwired.maps import register_map as maps
from bellwired.maps.to_python import Declarations

READS = "sw = rw; hw = r;"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(here: Path, text: str) -> maps.Map:
    """The map of the device that a map has become."""
    (here / "small.rdl").write_text(f'`include "bellwire.rdl"\n{text}\n')
    assert main(["import", "small.rdl"]) == 0
    return from_device.read(find_device(str(here / "small.py")))


def test_fields_that_differ_in_case_are_two_members(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = imported(here, f"addrmap small {{ reg {{ field {{ {READS} }} y; field {{ {READS} }} Y; }} control; }};")
    (register,) = device.registers
    assert [(field.name, field.mask) for field in register.fields] == [("Y", 1), ("Y2", 2)]
    assert "small.control.Y: Y is called Y2" in capsys.readouterr().err


def test_values_that_differ_in_case_are_two_members(here: Path) -> None:
    values = "enum Power { on = 1; ON = 0; };"
    device = imported(here, f"{values} addrmap small {{ reg {{ field {{ {READS} encode = Power; }} p[2]; }} power; }};")
    (register,) = device.registers
    assert [(value.name, value.number) for value in register.values] == [("ON", 1), ("ON2", 0)]


@pytest.mark.parametrize("name", ["mro", "_a_"])
def test_a_member_has_no_name_that_enumerations_reserve(name: str, here: Path) -> None:
    field = f"field {{ {READS} }} {name};"
    device = imported(here, f'addrmap small {{ reg {{ bellwire_kind = "Bits"; {field} }} control; }};')
    assert [register.name for register in device.bars[0].items] == ["control"]


@pytest.mark.parametrize("name", ["Bar", "MsiX", "IntX"])
def test_a_register_does_not_hide_what_declares_the_next_bar(name: str, here: Path) -> None:
    one = f"addrmap {{ bellwire_bar = 0; reg {{ field {{ {READS} }} f[32]; }} {name}; }} one;"
    two = f"addrmap {{ bellwire_bar = 1; reg {{ field {{ {READS} }} f[32]; }} x; }} two @ 0x1000;"
    device = imported(here, f"addrmap small {{ bellwire_msix = 2; {one} {two} }};")
    assert [register.name for register in device.bars[0].items] == [f"{name}_"]


def test_a_register_of_a_row_does_not_hide_what_declares_the_next_one(here: Path) -> None:
    lane = "".join(f"reg {{ field {{ {READS} }} f[32]; }} {name}; " for name in ("reg_value", "doorbell", "last"))
    device = imported(here, f"addrmap small {{ regfile {{ {lane} }} lane[4]; }};")
    assert [register.name for register in device.registers] == ["reg_value", "doorbell_", "last"]


def test_a_plain_register_does_not_hide_the_class_of_another(here: Path) -> None:
    plain, flags = f"reg {{ field {{ {READS} }} f[32]; }} Control;", f"reg {{ field {{ {READS} }} on; }} control;"
    device = imported(here, f"addrmap small {{ {plain} {flags} }};")
    assert [register.kind for register in device.registers] == ["", "Control_"]


def test_two_classes_of_values_have_two_names(here: Path) -> None:
    mode = (
        f"enum Mode {{ FAST = 1; }}; reg Ctl {{ field {{ {READS} encode = Mode; }} mode[2]; field {{ {READS} }} on; }};"
    )
    other = f"reg {{ field {{ {READS} }} a; field {{ {READS} }} b; }} control_mode;"
    device = imported(here, f"{mode} addrmap small {{ {other} Ctl control; }};")
    first, control = device.registers
    assert (first.kind, control.kind) == ("ControlMode", "Control_")
    assert [value.name for value in control.fields[0].values] == ["FAST"]


def test_declarations_that_python_refuses_are_an_error_by_name(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Declarations, "lines", lambda declared: iter(["int('x')"]))
    (here / "small.rdl").write_text(f"addrmap small {{ reg {{ field {{ {READS} }} f; }} a; }};")
    assert main(["import", "small.rdl"]) == 1
    assert "bellwire: small.rdl cannot be a device's map: its declarations clash: invalid literal" in (
        capsys.readouterr().err
    )


def test_a_file_that_is_no_text_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "it.rdl").write_text(f"addrmap it {{ reg {{ field {{ {READS} }} f; }} a; }};")
    (here / "it.py").write_bytes(b"\xff\xfe")
    assert main(["import", "it.rdl"]) == 1
    assert "bellwire: it.py: it is not UTF-8, so it is no device file" in capsys.readouterr().err
    assert (here / "it.py").read_bytes() == b"\xff\xfe"


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "it.rdl").write_text(f"addrmap it {{ reg {{ field {{ {READS} }} f; }} a; }};")
    os.mkfifo(here / "it.py")
    assert main(["import", "it.rdl"]) == 1
    assert "bellwire: it.py: it is a FIFO, expected a file" in capsys.readouterr().err
