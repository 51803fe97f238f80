"""What ``bellwire export`` writes says what the device is: compilers take it, and its numbers are the device's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bellwire import Bar, Doorbell, IoRegion, PciDevice, Register
from bellwired.commands.cli import main
from bellwired.find import bundled
from bellwired.maps import from_device, to_c, to_json, to_markdown, to_rust
from bellwired.maps.register_map import Map, runs
from maps.sample import Sample

DEVICES: dict[str, type[PciDevice]] = {**bundled(), "sample": Sample}
GCC = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
LANGUAGES = {
    "C99": ["gcc", "-x", "c", "-std=c99", *GCC],
    "C11": ["gcc", "-x", "c", "-std=gnu11", "-Wundef", *GCC],
    "C++": ["g++", "-x", "c++", "-std=c++11", *GCC],
}
every_device = pytest.mark.parametrize("kind", DEVICES.values(), ids=DEVICES)


def expected(kind: type[PciDevice]) -> Iterator[tuple[str, int]]:
    """The names that a driver uses, and their numbers, from the device's own layout."""
    assert kind.identity is not None
    yield from (("VENDOR_ID", kind.identity.vendor), ("DEVICE_ID", kind.identity.device))
    yield from (("CLASS_CODE", kind.identity.class_code), ("REVISION", kind.identity.revision))
    if kind.layout.msix is not None:
        yield "MSIX_VECTORS", kind.layout.msix.count
    for plan in kind.layout.bars.values():
        if plan.bar.index != kind.layout.msix_bar:
            yield f"{plan.bar.name.upper()}_BAR", plan.bar.index
            yield f"{plan.bar.name.upper()}_BAR_SIZE", plan.bar.size
        for item in plan.placed:
            if isinstance(item, Register | Doorbell | IoRegion):
                yield from of_item(item)


def of_item(item: Register[Any] | Doorbell | IoRegion) -> Iterator[tuple[str, int]]:
    row = re.fullmatch(r"(\w+)\[(\d+)\]\.(\w+)", item.name)
    name = f"{row[1]}_{row[3]}".upper() if row else item.name.upper()
    yield (f"{name}({row[2]})" if row else name), item.offset
    if isinstance(item, Doorbell) and item.match is not None:
        yield f"{name}_MATCH", item.match
    if isinstance(item, Register):
        yield f"{name}_RESET_VALUE", item.reset
        for word, member in item.kind.__members__.items() if item.kind else ():
            one = int(member).bit_count() == 1
            if one or item.name == "colour" or word == "BOTH":
                yield f"{name}_{word}", int(member)


def lines_of(text: str) -> list[str]:
    return text.strip().splitlines()


@pytest.mark.slow  # three compilers
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_header_compiles_without_a_warning_and_has_the_devices_numbers(language: str, tmp_path: Path) -> None:
    program, numbers = ["#include <stdio.h>"], []
    for name, kind in DEVICES.items():
        (tmp_path / f"{name}.h").write_text(to_c.write(from_device.read(kind)))
        program.append(f'#include "{name}.h"')
        prefix = name.replace("-", "_").upper()
        numbers += [(f"{prefix}_{word}", number) for word, number in expected(kind)]
    program.append("int main(void) {")
    program += [f'printf("%llu\\n", (unsigned long long)({word}));' for word, _ in numbers]
    program += ["return 0; }", ""]
    source = tmp_path / "print.c"
    source.write_text("\n".join(program))
    subprocess.run([*LANGUAGES[language], str(source), "-o", str(tmp_path / "print")], check=True)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    assert len(numbers) > 400
    assert dict(zip((word for word, _ in numbers), map(int, printed.split()), strict=True)) == dict(numbers)


@pytest.mark.slow  # rustc
def test_the_module_compiles_without_a_warning_and_has_the_devices_numbers(tmp_path: Path) -> None:
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("rustc is not installed: what is exported for Rust was not compiled")
    program, numbers = ["#![allow(dead_code)]"], []
    for name, kind in DEVICES.items():
        module = name.replace("-", "_")
        (tmp_path / f"{module}.rs").write_text(to_rust.write(from_device.read(kind)))
        program.append(f"mod {module};")
        for word, number in expected(kind):
            place, _, row = word.partition("(")
            numbers.append((f"{module}::{place.lower() + '(' + row if row else word}", number))
    program += ["fn main() {", *(f'println!("{{}}", {word} as u64);' for word, _ in numbers), "}"]
    (tmp_path / "main.rs").write_text("\n".join(program))
    words = [rustc, "--edition", "2021", "-D", "warnings", "-o", str(tmp_path / "print"), str(tmp_path / "main.rs")]
    subprocess.run(words, check=True)
    printed = subprocess.run([tmp_path / "print"], capture_output=True, text=True, check=True).stdout
    assert dict(zip((word for word, _ in numbers), map(int, printed.split()), strict=True)) == dict(numbers)


def test_a_field_of_several_bits_has_mask_shift_and_values() -> None:
    header = to_c.write(from_device.read(Sample))
    for line in (
        "#define SAMPLE_CONTROL_MODE_MASK 0x0000000eU /* How fast it is. */",
        "#define SAMPLE_CONTROL_MODE_SHIFT 1U",
        "#define SAMPLE_CONTROL_MODE_FAST 5U /* As fast as it can. */",
        "#define SAMPLE_CONTROL_LEVEL_MASK 0x0000ff00U",
        "#define SAMPLE_COLOUR_BLUE 0x7U",
        "#define SAMPLE_LARGE_RESET_VALUE 0x0000000100000001ULL",
        "#define SAMPLE_LANES_BASE(n) (0x400U + (n) * 0x20U) /* 8 bytes, rw: Where the lane's ring is. */",
        "#define SAMPLE_ROWS_BELL(n) (0x100U + (n) * 0x4U) /* one of the doorbells */",
        "#define SAMPLE_STOP_MATCH 0x2U /* the value that rings */",
    ):
        assert line in header.splitlines()


def test_no_description_ends_a_comment_of_the_header() -> None:
    first = to_c.write(from_device.read(Sample)).splitlines()[0]
    assert first.startswith("/* ")
    assert first.index("*/") == len(first) - 2
    assert "This paragraph is for authors" not in first


@every_device
def test_names_in_the_header_are_unique(kind: type[PciDevice]) -> None:
    names = re.findall(r"^#define (\w+)", to_c.write(from_device.read(kind)), re.MULTILINE)
    assert len(names) == len(set(names)) > 5


class Clash(PciDevice, vendor=0x1234, device=1, class_code=0x088000):
    """Has two declarations for which a driver would use the same name."""

    mmio = Bar(0, size=4096)
    go = mmio.reg(0x0)
    go_reset_value = mmio.reg(0x4, reset=5)


def test_the_later_of_two_equal_names_gets_an_underscore() -> None:
    header = to_c.write(from_device.read(Clash)).splitlines()
    assert "#define CLASH_GO_RESET_VALUE 0x00000000U" in header
    assert "#define CLASH_GO_RESET_VALUE_ 0x004U" in header


@every_device
def test_json_is_read_back_as_the_same_map(kind: type[PciDevice]) -> None:
    device = from_device.read(kind)
    assert msgspec.json.decode(to_json.write(device), type=Map) == device


def test_the_schema_has_a_description_of_every_object() -> None:
    schema = json.loads(to_json.write_schema(from_device.read(Sample)))
    objects = {"Map", "BarMap", "Register", "Field", "Value", "Doorbell", "Range", "Area", "Block", "Vectors"}
    assert set(schema["$defs"]) == objects
    assert all(each["description"] and each["additionalProperties"] is False for each in schema["$defs"].values())


def test_the_page_has_a_table_of_each_bar_and_of_each_register_with_fields() -> None:
    page = to_markdown.write(from_device.read(Sample))
    for line in (
        "## BAR 0: mmio",
        "| `0x004` | `control` | 4 bytes, rw | `0xa100` |  |",
        "| `0x040` | `go` | doorbell of 4 bytes |  | Starts it. |",
        "### control",
        "| `3:1` | `MODE` | rw | How fast it is. 0 OFF; 5 FAST (As fast as it can) |",
        "### lanes[n].state",
        "| INTx | INTB |",
    ):
        assert line in page.splitlines()


@pytest.mark.parametrize("name", ["c-header", "rust", "rdl", "markdown", "json", "json-schema"])
def test_the_command_prints_every_format(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for device in bundled():
        assert main(["export", device, "--as", name]) == 0
    assert len(lines_of(capsys.readouterr().out)) > 100


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "edu", "--as", "c-header", "--output", str(tmp_path / "edu.h")]) == 0
    assert "#define EDU_DEVICE_ID 0x11e8U" in (tmp_path / "edu.h").read_text()
    assert main(["export", "edu", "--as", "c-header", "--output", str(tmp_path / "none/edu.h")]) == 1
    assert f"{tmp_path / 'none/edu.h'}: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mask", "spans"), [(0, []), (1, [(0, 1)]), (0xF0, [(4, 4)]), (0x8000_0005, [(0, 1), (2, 1), (31, 1)])]
)
def test_runs_are_the_spans_of_ones(mask: int, spans: list[tuple[int, int]]) -> None:
    assert list(runs(mask)) == spans
