"""Addresses in a report become lines of source where debug information is at hand, and stay as they are elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwired.guest import decode
from bellwired.guest.decode import Decoder

SOURCE = """\
int value;
static inline __attribute__((always_inline)) void store(int number)
{
	value = number;
}
__attribute__((noinline)) void one(int number)
{
	store(number);
	__asm__ volatile ("nop; nop; nop; nop");
}
__attribute__((section(".init.text"), noinline)) void two(void)
{
	one(1);
	__asm__ volatile ("nop");
	one(2);
	__asm__ volatile ("nop");
}
"""  # fmt: skip


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with debug information and several sections of code, as a module is."""
    if missing := [command for command in ("gcc", "addr2line", "readelf") if shutil.which(command) is None]:
        pytest.skip(f"no module can be made and decoded: there is no {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("module")
    (folder / "some-driver.c").write_text(SOURCE)
    words = ["gcc", "-g", "-O1", "-c", "-o", "some-driver.ko", str(folder / "some-driver.c")]
    subprocess.run(words, cwd=folder, check=True)
    return folder / "some-driver.ko"


def size(module: Path, name: str) -> str:
    """The function's size, in hexadecimal digits."""
    listed = subprocess.run(["nm", "--print-size", module], capture_output=True, text=True, check=True).stdout
    found = re.search(rf"^\S+ (\S+) T {name}$", listed, re.MULTILINE)
    assert found
    return f"{int(found[1], 16):#x}"


def decoder(module: Path) -> Decoder:
    return Decoder(modules=[module], folders=[module.parent])


def test_an_instruction_is_named_by_its_line(module: Path) -> None:
    printed = f"RIP: 0010:two+0x0/{size(module, 'two')} [some_driver]"
    assert decoder(module).decode(printed) == f"{printed} (some-driver.c:13)"


def test_an_inlined_instruction_is_named_by_both_lines(module: Path) -> None:
    printed = f"RIP: 0010:one+0x0/{size(module, 'one')} [some_driver]"
    assert re.search(r" \(some-driver\.c:[47].*\)$", decoder(module).decode(printed))


def test_a_return_address_is_named_by_the_call_before_it(module: Path) -> None:
    """The first call of two() ends where its first nop begins, on another line."""
    disassembled = subprocess.run(
        ["objdump", "-d", "-j", ".init.text", module], capture_output=True, text=True, check=True
    )
    (first,) = re.findall(r"^\s*([0-9a-f]+):.*\bnop$", disassembled.stdout, re.MULTILINE)[:1]
    printed = f" two+0x{first}/{size(module, 'two')} [some_driver]"
    assert decoder(module).decode(printed).endswith(" (some-driver.c:13)")
    assert decoder(module).decode(f"RIP: 0010:{printed}").endswith(" (some-driver.c:14)")


def test_the_kernels_own_functions_are_found_in_its_vmlinux(module: Path, tmp_path: Path) -> None:
    """It is linked, so its symbols have addresses of their own. A kernel of another build has other sizes."""
    words = ["gcc", "-g", "-O1", "-static", "-nostdlib", "-Wl,-e,two", "-o", str(tmp_path / "vmlinux")]
    subprocess.run([*words, str(module.with_name("some-driver.c"))], check=True)
    decoder = Decoder(tmp_path / "vmlinux", folders=[module.parent])
    printed = f"RIP: 0010:two+0x0/{size(tmp_path / 'vmlinux', 'two')}"
    assert decoder.decode(printed) == f"{printed} (some-driver.c:13)"
    assert decoder.decode("RIP: 0010:two+0x0/0x9999") == "RIP: 0010:two+0x0/0x9999"


@pytest.mark.parametrize(
    "printed",
    [
        " two+0x1/0x2 [other_driver]",
        " three+0x1/0x2 [some_driver]",
        " two+0xffffff/0x2 [some_driver]",
        " two+0x1/0x1 [some_driver]",
        " two+0x1/0x2",
        "nothing",
    ],
    ids=["another module", "another function", "beyond the function", "too small", "the kernel's", "no address"],
)
def test_what_is_not_known_stays_as_it_is(module: Path, printed: str) -> None:
    assert decoder(module).decode(printed) == printed


def test_without_binutils_addresses_stay_as_they_are(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = f" two+0x1/{size(module, 'two')} [some_driver]"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert decoder(module).decode(printed) == printed


def test_a_program_that_does_not_end_is_not_waited_for(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = f" two+0x1/{size(module, 'two')} [some_driver]"
    (tmp_path / "readelf").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "readelf").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(decode, "PATIENCE", 0.05)
    assert decoder(module).decode(printed) == printed


def test_a_file_that_is_no_module_decodes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(b"\x7fELF nonsense")
    assert Decoder(modules=[tmp_path / "a.ko"]).decode(" two+0x1/0x2 [a]") == " two+0x1/0x2 [a]"


PRINTED = st.sampled_from(["one", "+0x", "/0x", "12", "ff", " [", "]", " ", "some_driver", "\n", "RIP: ", "+", "\0"])


@settings(deadline=None)
@given(st.text(max_size=300) | st.lists(PRINTED, max_size=60).map("".join))
def test_any_text_stays_as_it_is_without_files(text: str) -> None:
    assert Decoder().decode(text) == text
