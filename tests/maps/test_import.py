"""``bellwire import``: device files from SystemRDL and IP-XACT, and from a map that has changed."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest
import shtab

from bellwire import GuestError
from bellwire.testing import Guest, conformance, serve
from bellwired.commands.cli import Parser, main
from bellwired.commands.cli import parser as command_line
from bellwired.find import find_device
from bellwired.maps import device_file, from_device, from_rdl, to_rdl
from bellwired.maps import register_map as maps
from vfio_user import Client, IrqIndex

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "maps"
EXAMPLE = EXAMPLES / "packet_engine.rdl"


def imported(rdl: Path, folder: Path) -> Path:
    """The device file for a map."""
    found = from_rdl.read(rdl).device
    path = folder / f"{found.name}.py"
    path.write_text(device_file.make(found, rdl.name, None, path))
    return path


def small(folder: Path, registers: str, more: str = "") -> Path:
    """A map with these registers in its only BAR."""
    path = folder / "small.rdl"
    path.write_text(f'`include "bellwire.rdl"\n{more}\naddrmap small {{ {registers} }};\n')
    return path


def only(rdl: Path) -> tuple[maps.Item, list[str]]:
    """The only item of a map, and what was lost of it."""
    found = from_rdl.read(rdl)
    ((item,),) = (bar.items for bar in found.device.bars)
    return item, [f"{place}: {what}" for place, what in found.lost]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- maps of the size of real ones


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packet_engine", "board_control"])
def test_an_example_is_a_device_that_conforms(name: str, tmp_path: Path) -> None:
    device = find_device(str(imported(EXAMPLES / f"{name}.rdl", tmp_path)))
    assert (
        sum(len(plan.placed) for plan in device.layout.bars.values())
        > {"packet_engine": 600, "board_control": 80}[name]
    )
    suite = conformance(device)()
    for test in (each for each in dir(suite) if each.startswith("test_")):
        getattr(suite, test)()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["packet_engine", "board_control"])
def test_an_example_comes_through_export_and_import(name: str, tmp_path: Path) -> None:
    device = from_device.read(find_device(str(imported(EXAMPLES / f"{name}.rdl", tmp_path))))
    exported = tmp_path / "exported.rdl"
    exported.write_text(to_rdl.write(device))
    assert from_rdl.read(exported) == (device, ())


@pytest.mark.slow
def test_a_client_reads_the_reset_values_of_an_example(tmp_path: Path) -> None:
    device = find_device(str(imported(EXAMPLE, tmp_path)))
    with serve(device) as served, Client.connect(served.path) as client:
        assert client.read(0, 0x0, 4) == (0x9E010002).to_bytes(4, "little")
        assert client.read(0, 0x1000 + 5 * 0x40 + 0x20, 4) == (0x200032).to_bytes(4, "little")
        assert client.irq_info(IrqIndex.MSIX).count == 33


@pytest.mark.slow
def test_an_imported_register_does_what_its_access_says(tmp_path: Path) -> None:
    kind: Any = find_device(str(imported(EXAMPLE, tmp_path)))
    with Guest(kind) as guest:
        device = guest.device
        device.events = 0x1F
        guest.write(kind.events, 0x3)
        assert guest.read(kind.events) == 0x1C
        device.sent_frames = 7
        assert guest.read(kind.sent_frames) == 7
        assert guest.read(kind.sent_frames) == 0
        guest.write(kind.control, 0xFFFF_FFFF)
        assert guest.read(kind.control) == 0x3FFF_00FF
        with pytest.raises(GuestError):
            guest.write(kind.power, 9)  # the map names 0, 1 and 2


# -- fields, enumerations, doorbells, blocks, memories


def test_fields_are_flags_and_named_values_beside_them(tmp_path: Path) -> None:
    rdl = small(
        tmp_path,
        'reg { field { sw = rw; encode = gear; desc = "How fast."; } gear[2:1] = 2; field {} on[0:0] = 1; } ctl @ 0x8;',
        "enum gear { SLOW = 2'd0; FAST = 2'd2 { desc = \"With care.\"; }; };",
    )
    path = imported(rdl, tmp_path)
    kind = find_device(str(path)).ctl.kind  # type: ignore[attr-defined]
    assert issubclass(kind, IntFlag)
    assert {name: int(member) for name, member in kind.__members__.items()} == {"ON": 1, "GEAR": 6}
    values = vars(sys.modules[kind.__module__])["CtlGear"]
    assert issubclass(values, IntEnum)
    assert values.FAST == 2
    assert '"""With care."""' in path.read_text()


def test_a_register_that_is_one_enumeration_holds_its_values(tmp_path: Path) -> None:
    rdl = small(
        tmp_path, "reg { field { encode = gear; } gear[7:0] = 1; } ctl @ 0;", "enum gear { A = 8'd1; B = 8'd2; };"
    )
    item, lost = only(rdl)
    assert item == maps.Register(
        "ctl", 0, 4, "rw", 1, 0xFF, content=maps.VALUES, kind="Ctl", values=(maps.Value("A", 1), maps.Value("B", 2))
    )
    assert lost == []


@pytest.mark.parametrize(
    ("properties", "bell"),
    [
        ("bellwire_doorbell = true;", maps.Doorbell("go", 0x10, 4)),
        ("bellwire_doorbell = true; bellwire_value = true;", maps.Doorbell("go", 0x10, 4, value=True)),
        ("bellwire_doorbell = true; bellwire_match = 0x42;", maps.Doorbell("go", 0x10, 4, match=0x42)),
    ],
)
def test_a_property_makes_a_register_a_doorbell(properties: str, bell: maps.Doorbell, tmp_path: Path) -> None:
    rdl = small(tmp_path, f"reg {{ {properties} field {{ sw = w; }} value[31:0]; }} go @ 0x10;")
    assert only(rdl) == (bell, [])
    assert "@SmallRegisters.go.ring" in imported(rdl, tmp_path).read_text()


def test_doorbells_may_share_the_place_of_a_register(tmp_path: Path) -> None:
    rdl = small(tmp_path, 'reg { bellwire_rings = "start=1 stop=0x2"; field {} value[31:0]; } it @ 0x10;')
    bells = [item for item in from_rdl.read(rdl).device.bars[0].items if isinstance(item, maps.Doorbell)]
    assert bells == [maps.Doorbell("start", 0x10, 4, match=1), maps.Doorbell("stop", 0x10, 4, match=2)]


def test_arrays_in_a_row_are_counted_out_and_a_register_array_is_a_block(tmp_path: Path) -> None:
    rdl = small(tmp_path, "regfile { reg { field {} a[31:0]; } x[2] @ 0x0; } rows[3] @ 0x40 += 0x10;")
    item, lost = only(rdl)
    assert isinstance(item, maps.Block)
    assert [(member.name, member.offset) for member in item.members] == [("x0", 0), ("x1", 4)]
    assert (item.offset, item.count, item.stride, lost) == (0x40, 3, 0x10, [])
    item, _ = only(small(tmp_path, "reg { field {} a[31:0]; } x[4] @ 0x20 += 8;"))
    assert isinstance(item, maps.Block)
    assert (item.offset, item.count, item.stride, item.members[0].name) == (0x20, 4, 8, "value")


def test_a_memory_of_whole_pages_is_an_area_and_another_runs_hooks(tmp_path: Path) -> None:
    whole = small(tmp_path, "external mem { memwidth = 32; mementries = 1024; } ram @ 0x1000;")
    assert only(whole) == (maps.Area("ram", 0x1000, 0x1000), [])
    part = small(tmp_path, "external mem { memwidth = 32; mementries = 10; } ram @ 0x1000;")
    assert only(part) == (maps.Range("ram", 0x1000, 40), [])


def test_address_maps_with_the_property_are_bars(tmp_path: Path) -> None:
    rdl = small(
        tmp_path,
        "addrmap { bellwire_bar = 0; bellwire_io = true; bellwire_size = 8; default regwidth = 8;"
        " reg { field {} v[7:0]; } a @ 0x1; } ports @ 0x0;"
        "addrmap { bellwire_bar = 2; reg { field {} v[31:0]; } b @ 0x4; } mmio @ 0x1000;"
        "reg { field {} v[31:0]; } astray @ 0x3000;",
    )
    found = from_rdl.read(rdl)
    shown = [(bar.name, bar.index, bar.kind, bar.size, bar.items[0].offset) for bar in found.device.bars]
    assert shown == [("ports", 0, "io", 8, 1), ("mmio", 2, "memory", 4096, 4)]
    assert found.lost == (("small.astray", "lies in no BAR: give its address map the property bellwire_bar"),)


# -- what a device file cannot say


LOST = [
    (
        "field { sw = rw; onwrite = woclr; } a[0:0]; field {} b[1:1];",
        "a: beside fields of other access, a one that clears",
    ),
    (
        "field { sw = rw; onwrite = woset; } a[0:0]; field {} b[1:1];",
        "a: beside fields of other access, a one that sets",
    ),
    (
        "field { sw = r; onread = rclr; } a[0:0]; field {} b[1:1];",
        "a: beside fields of other access, a read that clears",
    ),
    ("field { sw = r; onread = rclr; } a[0:0]; field { sw = r; } b[1:1];", "b: a read clears the whole register"),
    ("field { sw = w; } a[0:0]; field { sw = r; } b[1:1];", "a: beside fields that can be read, it can be read, too"),
    ("field { sw = rw; onwrite = wot; } a[3:0];", "a: onwrite = wot: a write hook has to do it"),
    ("field { sw = rw; onwrite = wclr; } a[3:0];", "a: onwrite = wclr: a write hook has to do it"),
    ("field { sw = r; onread = rset; } a[3:0];", "a: onread = rset: a read hook has to do it"),
    ("field { sw = rw; onread = rclr; } a[3:0];", "a: onread = rclr beside writes: a read hook has to do it"),
    ("field { sw = rw1; } a[3:0];", "a: sw = rw1: it can be written more than once here"),
    ("field { sw = rw; singlepulse; } a[0:0] = 0;", "a: singlepulse: a hook has to do it"),
    ("field { sw = rw; counter; } a[3:0] = 0;", "a: counter: a hook has to do it"),
    ("field { sw = r; intr; } a[0:0] = 0;", "a: intr: a hook has to do it"),
    ("regwidth = 128; field {} a[127:0];", "has 128 bits, and a register has at most 64: it is left out"),
]


@pytest.mark.parametrize(("fields", "told"), LOST)
def test_what_cannot_be_said_is_told_by_its_name(
    fields: str, told: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rdl = small(here, f"reg {{ {fields} }} it @ 0x0; reg {{ field {{}} v[31:0]; }} other @ 0x100;")
    assert main(["import", str(rdl)]) == 0
    separator = ": " if told.startswith("has ") else "."
    assert f"bellwire: small.it{separator}{told}" in capsys.readouterr().err
    find_device("./small.py")


@pytest.mark.parametrize(
    "items", ["reg { field {} v[31:0]; } many[5000]", "external mem { mementries = 1; memwidth = 32; } many[5000]"]
)
def test_more_elements_than_a_block_has_are_told(items: str, tmp_path: Path) -> None:
    item, lost = only(small(tmp_path, f"reg {{ field {{}} v[31:0]; }} one @ 0x0; {items} @ 0x1000;"))
    assert item.name == "one"
    assert lost == ["small.many[]: has 5000 elements: a block has at most 4096, so it is left out"]


def test_names_that_the_sdk_has_get_an_underscore(tmp_path: Path) -> None:
    item, lost = only(small(tmp_path, "reg { field {} v[31:0]; } dma @ 0x0;"))
    assert item.name == "dma_"
    assert lost == ["small.dma: is called dma_: a device has dma for its own use, or another item has this name"]


def test_what_bits_a_mixed_register_keeps_are_out_of_a_guests_reach(tmp_path: Path) -> None:
    item, _ = only(
        small(tmp_path, "reg { field { onwrite = woclr; } a[0:0]; field {} b[1:1]; field { sw = r; } c[2:2]; } it @ 0;")
    )
    assert isinstance(item, maps.Register)
    assert (item.access, item.writable) == ("rw", 0b010)


# -- importing again


def test_importing_again_makes_only_the_declarations_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rdl = small(here, "reg { field {} v[31:0]; } one @ 0x0;")
    assert main(["import", str(rdl)]) == 0
    device = here / "small.py"
    device.write_text(device.read_text().replace("What it is, in a line.", "Mine.") + "\nMINE = 1\n")
    small(here, "reg { field {} v[31:0]; } one @ 0x0; reg { field {} v[31:0]; } two @ 0x4;")
    assert main(["import", "--check", str(rdl)]) == 1
    assert "small.py is not what" in capsys.readouterr().err
    assert main(["import", "--diff", str(rdl)]) == 0
    assert "+    two = mmio.reg(0x004)" in capsys.readouterr().out
    assert "two" not in device.read_text()
    assert main(["import", str(rdl)]) == 0
    text = device.read_text()
    assert all(words in text for words in ("two = mmio.reg(0x004)", '"""Mine."""', "MINE = 1"))
    assert main(["import", "--check", str(rdl)]) == 0
    assert main(["import", str(rdl)]) == 0
    assert "up to date" in capsys.readouterr().out


def test_declarations_that_were_edited_are_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rdl = small(here, "reg { field {} v[31:0]; } one @ 0x0;")
    assert main(["import", str(rdl)]) == 0
    device = here / "small.py"
    edited = device.read_text().replace("one = mmio.reg(0x000)", "one = mmio.reg(0x000, reset=5)")
    device.write_text(edited)
    capsys.readouterr()
    for words in (["import", str(rdl)], ["import", "--check", str(rdl)]):
        assert main(words) == 1
        assert "the declarations between the marks have been edited" in capsys.readouterr().err
    assert device.read_text() == edited
    assert main(["import", "--diff", str(rdl)]) == 0
    assert "-    one = mmio.reg(0x000, reset=5)" in capsys.readouterr().out
    assert main(["import", "--force", str(rdl)]) == 0
    assert "reset=5" not in device.read_text()


def test_a_file_without_marks_is_left_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rdl = small(here, "reg { field {} v[31:0]; } one @ 0x0;")
    (here / "small.py").write_text("mine = 1\n")
    assert main(["import", "--force", str(rdl)]) == 1
    assert "small.py has no declarations that bellwire import has made" in capsys.readouterr().err
    assert (here / "small.py").read_text() == "mine = 1\n"


def test_json_tells_programs_what_was_written_and_lost(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rdl = small(here, "reg { field { sw = rw1; } v[31:0]; } one @ 0x0;")
    assert main(["import", "--json", str(rdl), "--output", "x.py"]) == 0
    printed = capsys.readouterr()
    told = [["small.one.v", "sw = rw1: it can be written more than once here"]]
    assert json.loads(printed.out) == {"file": "x.py", "changed": True, "lost": told}
    assert printed.err == ""


# -- mistakes, and hostile maps


def test_a_mistake_in_the_map_is_told_with_its_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.rdl").write_text("addrmap bad {\n    reg { field {} v[31:0] } one;\n};\n")
    assert main(["import", "bad.rdl"]) == 1
    assert "bellwire: bad.rdl: line 2: " in capsys.readouterr().err
    assert main(["import", "none.rdl"]) == 1
    assert "bellwire: none.rdl: no such file" in capsys.readouterr().err
    (here / "bad.xml").write_text("<component>")
    assert main(["import", "bad.xml"]) == 1
    assert "bellwire: bad.xml: " in capsys.readouterr().err


def test_what_no_device_can_have_is_refused_by_name(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rdl = small(here, "bellwire_size = 3; reg { field {} v[31:0]; } one @ 0x0;")
    assert main(["import", str(rdl)]) == 1
    assert (
        "small.rdl cannot be a device's map: SmallRegisters.mmio: a BAR's size is a power of two"
        in capsys.readouterr().err
    )
    assert not (here / "small.py").exists()


def test_no_text_of_a_map_becomes_code(tmp_path: Path) -> None:
    evil = '\\"\\"\\"\nimport os\n\\"\\"\\" \\\\'
    rdl = small(
        tmp_path,
        f'name = "{evil}"; bellwire_vendor = 2; desc = "{evil}";'
        f'reg {{ desc = "{evil}"; bellwire_kind = "K: import os"; bellwire_kind_desc = "{evil}";'
        f' bellwire_masks = "A;import=3"; bellwire_rings = "b();import=1";'
        f' field {{ desc = "{evil}"; }} f[1:0]; }} it @ 0x0;',
    )
    path = imported(rdl, tmp_path)
    text = path.read_text()
    assert "import os" in text  # in docstrings
    program = compile(text, str(path), "exec")
    assert "os" not in program.co_names


@pytest.mark.parametrize("module", ["systemrdl", "peakrdl_ipxact"])
def test_the_error_names_the_extra_where_a_library_is_missing(
    module: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    (here / "it.xml").write_text("<component/>")
    assert main(["import", "it.xml"]) == 1
    assert "pip install 'bellwire[maps]'" in capsys.readouterr().err


# -- IP-XACT


@pytest.mark.slow
def test_ip_xact_gives_the_same_registers(tmp_path: Path) -> None:
    """peakrdl-ipxact writes the example, and what is read back has the same registers at the same places."""
    from peakrdl_ipxact import IPXACTExporter
    from systemrdl.compiler import RDLCompiler

    compiler = RDLCompiler()
    compiler.compile_file(str(EXAMPLES / "board_control.rdl"))
    IPXACTExporter().export(compiler.elaborate().top, str(tmp_path / "board.xml"))
    (read,) = from_rdl.read(tmp_path / "board.xml").device.bars
    (expected,) = from_rdl.read(EXAMPLES / "board_control.rdl").device.bars
    assert list(facts(read)) == list(facts(expected))


def facts(bar: maps.BarMap) -> list[tuple[object, ...]]:
    """Place, access, reset value, bits and fields of each register, by name."""
    found: list[tuple[object, ...]] = []
    for item in bar.items:
        members = item.members if isinstance(item, maps.Block) else (item,)
        for member in members:
            if isinstance(member, maps.Register):
                fields = [(field.name, field.low, field.width, len(field.values)) for field in member.fields]
                found.append(
                    (item.name, member.name, item.offset, member.offset, member.reset, member.writable, fields)
                )
    return found


def test_shells_complete_the_maps_file() -> None:
    top = command_line()
    assert isinstance(top, Parser)
    (action,) = (action for action in top.commands["import"]._actions if action.dest == "map")
    assert action.complete == shtab.FILE  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_command_line_loads_the_libraries_only_when_it_imports() -> None:
    program = (
        "import sys; from bellwired.commands.cli import parser; parser();"
        "print([name for name in sys.modules if name.split('.')[0] in ('systemrdl', 'antlr4', 'peakrdl_ipxact')"
        " or name.startswith('bellwired.maps')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
