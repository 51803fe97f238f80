"""Several functions in one file: which they are, what the header says, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bellwire import Bar, DeclarationError, Option, PciDevice
from bellwire.declare.functions import functions_of
from bellwire.model import capabilities as pci
from bellwire.testing import Guest, conformance
from bellwired.commands import parts
from bellwired.commands.attach import libvirt_xml, qemu_command
from bellwired.commands.describe import describe
from bellwired.errors import CommandError
from bellwired.find import find_device, find_functions


class Engine(PciDevice, vendor=0x1234, device=0xF0, class_code=0x088000):
    mmio = Bar(0, size=4096)
    speed = Option(5)


class Console(PciDevice, vendor=0x1234, device=0xF1, class_code=0x078000):
    mmio = Bar(0, size=4096)
    rate = Option(9600)


class Alone(PciDevice, vendor=0x1234, device=0xF2, class_code=0x088000):
    mmio = Bar(0, size=4096)


functions = [Engine, Console]

TestEngine = conformance(Engine)
TestConsole = conformance(Console)
TestAlone = conformance(Alone)

CARD = """
from bellwire import Bar, Option, PciDevice

class Engine(PciDevice, vendor=0x1234, device=0xF0, class_code=0x088000):
    mmio = Bar(0, size=4096)
    speed = Option(5)

class Console(PciDevice, vendor=0x1234, device=0xF1, class_code=0x078000):
    mmio = Bar(0, size=4096)
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of a class that a test makes."""
    made = ModuleType("made_functions")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


def made(module: ModuleType, number: int, **body: Any) -> type[PciDevice]:
    class Made(PciDevice, vendor=0x1234, device=number, class_code=0x088000, name=f"made-{number}"):
        mmio = Bar(0, size=4096)

    Made.__module__ = module.__name__
    return Made


def card(tmp_path: Path, listed: str = "functions = [Engine, Console]") -> str:
    path = tmp_path / "card_of_functions.py"
    path.write_text(f"{CARD}\n{listed}\n")
    return str(path)


def test_a_list_in_the_module_makes_devices_functions_of_one() -> None:
    assert functions_of(Engine) == functions_of(Console) == (Engine, Console)
    assert functions_of(Alone) == (Alone,)


def test_only_several_functions_set_the_bit_in_the_header() -> None:
    for kind, header in ((Engine, 0x80), (Console, 0x80), (Alone, 0)):
        with Guest(kind) as guest:
            assert guest.config_read(pci.HEADER_TYPE, 1) == header


def test_something_else_with_the_name_is_no_list_of_functions(module: ModuleType) -> None:
    kind = made(module, 1)
    for other in (len, {"a": kind}, "text", [], [1, 2], None):
        module.functions = other  # type: ignore[attr-defined]
        assert functions_of(kind) == (kind,)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (lambda kind, module: [kind] * 2, "a class is listed twice"),
        (lambda kind, module: [kind, 5], "5 is no device: list classes"),
        (lambda kind, module: [kind, PciDevice], "is no device: list classes"),
        (lambda kind, module: [kind, *(made(module, 2 + n) for n in range(8))], "has 1 to 8 functions, not 9"),
    ],
)
def test_a_list_that_no_device_can_have_is_refused(module: ModuleType, more: Any, said: str) -> None:
    kind = made(module, 1)
    module.functions = more(kind, module)  # type: ignore[attr-defined]
    with pytest.raises(DeclarationError, match=said):
        kind()


def test_a_package_lists_the_functions_of_its_modules(tmp_path: Path) -> None:
    folder = tmp_path / "package_of_functions"
    folder.mkdir()
    (folder / "both.py").write_text(CARD)
    (folder / "__init__.py").write_text("from .both import Engine, Console\nfunctions = [Console, Engine]\n")
    kinds = find_functions(f"{folder}/")
    assert [kind.name for kind in kinds] == ["console", "engine"]
    with Guest(kinds[0]) as guest:
        assert guest.config_read(pci.HEADER_TYPE, 1) == 0x80


# -- how they are found


def test_a_file_stands_for_all_its_functions(tmp_path: Path) -> None:
    assert [kind.name for kind in find_functions(card(tmp_path))] == ["engine", "console"]
    assert [kind.name for kind in find_functions(card(tmp_path) + ":console")] == ["console"]


def test_a_number_or_a_name_stands_for_one_function(tmp_path: Path) -> None:
    path = card(tmp_path)
    assert [find_device(f"{path}:{word}").name for word in ("0", "1", "engine")] == ["engine", "console", "engine"]


@pytest.mark.parametrize(
    ("listed", "word", "said"),
    [
        ("functions = [Engine, Console]", "", "has 2 functions, each with a socket of its own .say which: .*:0"),
        ("functions = [Engine, Console]", ":2", "has no function 2 .it has functions 0 to 1"),
        ("functions = [Engine, Console]", ":99999999999999999999", "has no function"),
        ("functions = [Engine, Console]", ":other", "has no device 'other'"),
        ("", ":1", "has no device '1'"),
    ],
)
def test_what_names_no_single_function_is_refused(tmp_path: Path, listed: str, word: str, said: str) -> None:
    with pytest.raises(CommandError) as caught:
        find_device(card(tmp_path, listed) + word)
    assert re.search(said, caught.value.in_words)


def test_the_only_class_in_a_list_is_the_device(tmp_path: Path) -> None:
    path = card(tmp_path, "functions = [Console]")
    assert [kind.name for kind in (find_device(path), *find_functions(path))] == ["console", "console"]
    with Guest(find_device(path)) as guest:
        assert guest.config_read(pci.HEADER_TYPE, 1) == 0


def test_a_wrong_list_in_a_file_is_told_with_the_file(tmp_path: Path) -> None:
    path = card(tmp_path, "functions = [Engine, Engine]")
    with pytest.raises(DeclarationError, match=rf"functions of {path}: a class is listed twice"):
        find_functions(path)


# -- how they are attached


def test_the_functions_of_a_slot_are_numbered_in_qemus_line() -> None:
    line = qemu_command([Path("/run/a"), Path("/run/b")], ["tcg"], slot=0x10)
    devices = [json.loads(word) for word in line.split("'") if word.startswith("{")]
    assert [(each["socket"]["path"], each["addr"], each["multifunction"]) for each in devices] == [
        ("/run/a", "10.0", True),
        ("/run/b", "10.1", True),
    ]
    assert "addr" not in qemu_command(Path("/run/a"), ["tcg"])


def test_libvirt_gets_the_same() -> None:
    xml = libvirt_xml([Path("/run/a"), Path("/run/b")], slot=5)
    assert xml.count("-device") == 2
    assert "5.1" in xml


def test_a_description_names_all_functions() -> None:
    assert describe(Engine)["functions"] == ["engine", "console"]
    assert describe(Alone)["functions"] == ["alone"]


# -- what ``bellwire run`` refuses before it starts any of them


def asked(**given: Any) -> argparse.Namespace:
    values: dict[str, Any] = {
        "device": "card.py",
        "name": None,
        "socket_path": None,
        "fd": None,
        "debug": False,
        "options": [],
        "capture": None,
        "timeline": None,
        "record": None,
    }
    return argparse.Namespace(**(values | given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fd": 3}, "--fd is for one function"),
        ({"debug": True}, "--debug is for one function"),
        ({"options": ["sped=3"]}, "-o sped=3: no function has an option sped"),
    ],
)
def test_what_functions_cannot_share_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CommandError, match=said):
        parts.check(asked(**given), [Engine, Console])


def test_each_function_gets_its_name_its_socket_and_its_options() -> None:
    arguments = asked(options=["speed=7", "rate=1200"], socket_path=Path("/run/s"))
    one, other = (parts.Part(arguments, "card", number, kind) for number, kind in enumerate((Engine, Console)))
    assert (one.name, one.path, one.arguments.options) == ("card.0", Path("/run/s.0"), ["speed=7"])
    assert (other.name, other.arguments.device, other.arguments.options) == ("card.1", "card.py:1", ["rate=1200"])
    assert parts.Part(asked(), "card", 1, Console).path.name == "bellwire-card.1.sock"
