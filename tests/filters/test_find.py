"""Filters by name: what users write, and where a filter of that name comes from."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from bellwire import OptionError
from bellwire.bundled.edu import Edu
from bellwire.filters import Filter, FilterError
from bellwire.filters.find import Wanted, builtin, of_table, parse
from bellwire.testing.guest import Guest
from bellwired import filtering
from bellwired.commands import cli
from bellwired.errors import CommandError
from bellwired.find import find_device
from filters.copier import Copier

OWN = """
from bellwire import Bar, PciDevice
from bellwire.filters import Filter, Read

class Odd(PciDevice, vendor=0x1234, device=0x5678, class_code=0x088000):
    mmio = Bar(0, size=4096)
    one = mmio.reg(0x00)

class Ones(Filter):
    '''Reads are all ones.'''

    def before_read(self, read: Read) -> None:
        read.answer(-1)
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("trace", Wanted("trace")),
        ("delay:read=2ms", Wanted("delay", {"read": "2ms"})),
        ("delay:read=2ms,dma-write=1s", Wanted("delay", {"read": "2ms", "dma_write": "1s"})),
        ("trace:only=status,irq,keep=100", Wanted("trace", {"only": "status,irq", "keep": "100"})),
        ("trace:only=a=b", Wanted("trace", {"only": "a=b"})),
        ("trace:only=", Wanted("trace", {"only": ""})),
    ],
)
def test_a_filter_is_written_as_its_name_and_its_arguments(text: str, wanted: Wanted) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "filter '': expected NAME"),
        (":read=2ms", "expected NAME or NAME:KEY=VALUE"),
        ("delay:", "filter delay: '': expected KEY=VALUE"),
        ("delay:read", "filter delay: 'read': expected KEY=VALUE"),
        ("delay:=2ms", "filter delay: '=2ms': expected KEY=VALUE"),
        ("delay:read=1,read=2", "filter delay: read is given twice"),
        ("x" * 5000, "5000 characters, at most 4096"),
    ],
)
def test_an_error_names_the_part_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dealy", "there is no filter 'dealy': did you mean delay?"),
        ("delay:raed=2ms", "filter delay has no option raed: did you mean read?"),
        ("delay:read=fast", "option read=fast: expected a duration, as 2ms, 10us, 1.5s or 1min"),
        ("delay:read=2h", "expected a duration"),
        ("delay:read=7200s", "option read=7200s: expected at most 3600s"),
        ("count:dma=perhaps", "option dma=perhaps: expected yes or no"),
    ],
)
def test_an_error_says_what_there_is(text: str, message: str) -> None:
    with pytest.raises((FilterError, OptionError)) as error:
        filtering.made(parse(text), Edu)
    assert message in str(error.value)


def test_a_table_of_a_file_names_a_filter_and_its_arguments() -> None:
    assert of_table({"name": "delay", "dma-write": 0.5}) == Wanted("delay", {"dma_write": 0.5})
    with pytest.raises(FilterError, match="has no name"):
        of_table({"read": "2ms"})
    with pytest.raises(FilterError, match="has no name"):
        of_table({"name": 3})


def test_every_filter_of_its_own_has_a_summary_and_its_arguments_have_help() -> None:
    assert {"count", "delay", "trace"} <= builtin().keys()
    for kind in builtin().values():
        assert kind.summary(), kind
        assert all(option.help for option in kind.arguments_of.values()), kind


def test_a_device_s_file_may_have_filters_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(OWN)
    kind = find_device(str(tmp_path / "odd.py"))
    ones = filtering.made(parse("ones"), kind)
    with Guest(kind, filters=[ones]) as guest:
        assert guest.read(0, 0, 4) == 0xFFFF_FFFF
    assert "ones" in [each.name for each in filtering.listed(kind)]


@pytest.mark.parametrize("name", ["odd.py", "odd.one.py"])
def test_a_device_s_file_by_a_relative_path_can_have_filters(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(OWN)
    monkeypatch.chdir(tmp_path)
    kind = find_device(f"./{name}")
    assert filtering.made(parse("count"), kind).name == "count"
    assert filtering.made(parse("ones"), kind).name == "ones"


def test_a_device_s_package_may_have_a_module_of_filters(tmp_path: Path) -> None:
    package = tmp_path / "odder"
    package.mkdir()
    (package / "__init__.py").write_text(OWN.partition("class Ones")[0])
    (package / "filters.py").write_text("from bellwire.filters import Filter\nclass Own(Filter): 'It is here.'\n")
    assert filtering.made(parse("own"), find_device(str(package))).name == "own"


def test_entry_points_bring_filters_and_one_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "bellwire.filters"
        names = {"all": "filters.copier:All", "none": "filters.copier:nothing", "device": "filters.copier:Copier"}
        return [EntryPoint(name, value, group) for name, value in names.items()]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    assert filtering.made(parse("all"), Copier).name == "all"
    with pytest.raises(CommandError, match=r"entry point filters\.copier:Copier: not a bellwire\.filters\.Filter"):
        filtering.made(parse("device"), Copier)
    errors = {each.name: each.error for each in filtering.listed()}
    assert "AttributeError" in errors["none"]
    assert not errors["all"]


def test_a_base_for_filters_has_no_name() -> None:
    class Fault(Filter, name=""):
        pass

    class Lost(Fault):
        pass

    assert (Fault.name, Lost.name) == ("", "lost")


def test_the_command_lists_filters_with_their_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["filters", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["delay"]["arguments"]["read"] == {
        "type": "duration",
        "default": "0s",
        "allowed": "at most 3600s",
        "help": "of a read of a BAR",
    }
    assert cli.main(["filters"]) == 0
    assert "duration (at most 3600s), 0s: of a read of a BAR" in capsys.readouterr().out


def test_run_refuses_a_scenario_for_other_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "edu", "--fault", "nvme-media-error"]) == 1
    assert "scenario nvme-media-error: it is for nvme, not for edu" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["delay:read", "dealy", "delay:raed=1"])
def test_run_refuses_a_wrong_filter_before_it_serves(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "edu", "--filter", text]) == 1
    assert "filter" in capsys.readouterr().err
