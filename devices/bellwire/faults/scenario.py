"""A scenario: faults over time, in a small TOML file with a name."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta, Struct

from bellwire.errors import BellwireError
from bellwire.faults.catalogue import faults_of, make_fault
from bellwire.faults.fault import Fault

if TYPE_CHECKING:
    from bellwire.device import PciDevice

SUFFIX = ".toml"
LONGEST = 64 << 10  # bytes of a file
MOST_FAULTS = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TOO_DEEP = re.compile(r"(?:[^\s.=]+\s*\.\s*){16}")
_LIBRARY = files("bellwire.faults") / "library"

Text = Annotated[str, Meta(min_length=1, max_length=2000)]


class ScenarioError(BellwireError, ValueError):
    """A scenario that does not exist, or whose file is wrong. ``hint`` says what to do, if that helps."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Scenario(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Faults that belong together. All of them are put in at the same time; ``after`` of each says when it begins."""

    about: Text
    """What happens, in a sentence."""
    driver: Text
    """What a good driver does."""
    devices: tuple[str, ...] = ()
    """The names of the devices that it is for; empty for every device."""
    fault: Annotated[tuple[dict[str, bool | int | float | str], ...], Meta(min_length=1, max_length=MOST_FAULTS)]
    """The faults: each has its name as ``fault``, and its arguments."""
    name: str = ""

    def faults(self, device: type[PciDevice]) -> list[Fault]:
        """New faults, for a device. A ScenarioError if the scenario is not for it, or if a fault is wrong."""
        self.check(device)
        made = []
        for number, each in enumerate(self.fault, 1):
            arguments: dict[str, Any] = {key: value for key, value in each.items() if key != "fault"}
            arguments["scenario"] = self.name
            try:
                made.append(make_fault(device, str(each["fault"]), arguments))
            except ValueError as error:
                raise ScenarioError(f"scenario {self.name}, fault {number}: {error}") from None
        return made

    def check(self, device: type[PciDevice]) -> None:
        """A ScenarioError if the scenario is for other devices. A device that has all its faults can have it, too."""
        known = faults_of(device)
        if any(each["fault"] not in known for each in self.fault):
            self.check_name(device.name)

    def check_name(self, device: str) -> None:
        """A ScenarioError if the scenario names the devices that it is for, and ``device`` is none of them."""
        if self.devices and device not in self.devices:
            raise ScenarioError(f"scenario {self.name}: it is for {', '.join(self.devices)}, not for {device}")

    def filters(self) -> list[dict[str, bool | int | float | str]]:
        """The faults as filters, in the form of a device's file."""
        return [
            {"name": str(each["fault"]), **{key: value for key, value in each.items() if key != "fault"}}
            | {"scenario": self.name}
            for each in self.fault
        ]

    def to_toml(self) -> str:
        """The scenario as a file has it."""
        lines = [f"about = {_quoted(self.about)}", f"driver = {_quoted(self.driver)}"]
        if self.devices:
            lines.append(f"devices = [{', '.join(map(_quoted, self.devices))}]")
        for each in self.fault:
            lines += ["", "[[fault]]", *(f"{key} = {_value(value)}" for key, value in each.items())]
        return "\n".join(lines) + "\n"


def parse_scenario(text: str, name: str, where: str = "") -> Scenario:
    """A scenario from the text of a file. A ScenarioError says where the file is wrong, and how."""
    where = where or name
    check_name(name, where)
    if len(text) > LONGEST:
        raise ScenarioError(f"{where}: a scenario has at most {LONGEST} bytes")
    if _TOO_DEEP.search(text):
        raise ScenarioError(f"{where}: a key is nested too deeply")
    try:
        content = tomllib.loads(text)
        content.pop("name", None)
        if isinstance(content.get("fault"), dict):
            raise ScenarioError(f"{where}: write [[fault]], not [fault]: a scenario may have several")
        made = msgspec.structs.replace(msgspec.convert(content, Scenario), name=name)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{where}: {str(error).replace('`', '')}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ScenarioError(f"{where}: not TOML: {error}") from None
    for number, each in enumerate(made.fault, 1):
        if not isinstance(each.get("fault"), str):
            raise ScenarioError(f'{where}: fault {number} has no name: fault = "lost-irq"')
    return made


def check_name(name: str, where: str) -> None:
    """A ScenarioError, which begins with ``where``, if no scenario can have this name."""
    if not _NAME.fullmatch(name):
        raise ScenarioError(
            f"{where}: a scenario's name has small letters, digits and -, at most 64: not {name[:80]!r}"
        )


def load_scenario(path: Path) -> Scenario:
    """The scenario in a file, called as the file without its suffix."""
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
        return parse_scenario(content.decode(), path.name.removesuffix(SUFFIX), str(path))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from None


def scenarios() -> dict[str, Scenario]:
    """The scenarios that come with Bellwire, by name."""
    entries = sorted(_LIBRARY.iterdir(), key=lambda entry: entry.name)
    return {
        (name := entry.name.removesuffix(SUFFIX)): parse_scenario(entry.read_text(), name)
        for entry in entries
        if entry.name.endswith(SUFFIX)
    }


def find_scenario(word: str) -> Scenario:
    """A scenario by its name, or by the path of its file: one with a slash, or that ends in ``.toml``."""
    if "/" in word or word.endswith(SUFFIX):
        return load_scenario(Path(word))
    entry = _LIBRARY / f"{word}{SUFFIX}"
    if _NAME.fullmatch(word) and entry.is_file():
        return parse_scenario(entry.read_text(), word)
    near = difflib.get_close_matches(word, scenarios(), n=1)
    raise ScenarioError(
        f"there is no scenario {word[:80]}" + (f": did you mean {near[0]}?" if near else ""),
        "bellwire fault --list shows them; a file is given by its path",
    )


def name_of(word: str) -> str:
    """The name that a scenario has, which is given by it or by the path of its file. The file may be gone."""
    return Path(word).name.removesuffix(SUFFIX)


def for_device(found: Iterable[Scenario], device: type[PciDevice]) -> list[Scenario]:
    """Those scenarios that a device can have."""
    known = faults_of(device)
    return [each for each in found if all(fault["fault"] in known for fault in each.fault)]


def _quoted(text: str) -> str:
    """A basic string of TOML. JSON's escapes are among its own."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _value(value: bool | float | str) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)
