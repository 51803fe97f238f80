"""Modules are built outside of the kernel's tree, with headers and a compiler from the cache."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from bellwired.commands.boot import FAILED
from bellwired.guest import build
from bellwired.guest.archive import ArchiveError
from bellwired.guest.build import BuildError, build_modules, release_for
from bellwired.guest.compiler import fetch_compiler
from bellwired.guest.headers import tree_of
from bellwired.guest.toolbox import Toolbox
from daemon.commands import COMMAND

pytestmark = pytest.mark.guest

SOURCE = """\
#include <linux/module.h>
static int __init start(void) { return 0; }
static void __exit stop(void) { }
module_init(start);
module_exit(stop);
MODULE_LICENSE("GPL");
"""
OWN_MAKEFILE = """\
KERNEL_TREE ?= /nowhere
obj-m := tiny.o
all: note
\t$(MAKE) -C $(KERNEL_TREE) M=$(CURDIR) modules
note:
\ttouch $@
"""


@pytest.fixture(scope="module")
def built(tools: Toolbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose module has been built by the makefile in it."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "tiny.c").write_text(SOURCE)
    (folder / "Makefile").write_text(OWN_MAKEFILE)
    try:
        tree_of(tools.kernel)
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no headers: {error}")
    assert build_modules(folder, tools.kernel) == build.Built((folder / "tiny.ko",))
    return folder


def test_a_module_is_for_the_kernel_that_was_asked_for(built: Path, tools: Toolbox) -> None:
    assert release_for(built / "tiny.ko") == tools.kernel.release


def test_the_folders_own_makefile_is_run(built: Path) -> None:
    assert (built / "note").exists()


def test_what_is_up_to_date_is_not_built_again(built: Path, tools: Toolbox) -> None:
    before = (built / "tiny.ko").stat().st_mtime_ns
    build_modules(built, tools.kernel)
    assert (built / "tiny.ko").stat().st_mtime_ns == before


def test_errors_are_the_compilers_own(tools: Toolbox, tmp_path: Path) -> None:
    (tmp_path / "tiny.c").write_text(SOURCE.replace("return 0;", "return nothing;"))
    (tmp_path / "Kbuild").write_text("obj-m := tiny.o\n")
    with pytest.raises(BuildError) as caught:
        build_modules(tmp_path, tools.kernel)
    assert str(caught.value) == f"{tmp_path}: the module does not build"
    assert re.search(r"tiny\.c:2:40: error: .nothing. undeclared", caught.value.output)
    assert caught.value.__notes__ == [caught.value.output]


def test_bellwire_boot_builds_and_shows_what_the_compiler_says(built: Path, tmp_path: Path) -> None:
    """With nothing to run, it boots nothing."""
    (tmp_path / "tiny.c").write_text(SOURCE.replace("return 0;", "return nothing;"))
    (tmp_path / "Kbuild").write_text("obj-m := tiny.o\n")
    words = [*COMMAND, "boot", "--headers", "--build", str(built)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    for told in ("headers: ", "compiler: ", f"module: {built / 'tiny.ko'}", "QEMU "):
        assert f"\n{told}" in f"\n{done.stderr}"
    words = [*COMMAND, "boot", "--build", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == FAILED
    assert re.search(r"^\S*tiny\.c:2:40: error: .nothing. undeclared", done.stderr, re.MULTILINE)
    assert done.stderr.endswith(f"bellwire: {tmp_path}: the module does not build\n")


def test_debians_compiler_builds_where_the_machine_has_none(
    tools: Toolbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module warns, which is told, and the folder has no makefile of its own for make to run."""
    (tmp_path / "tiny.c").write_text(SOURCE.replace("return 0;", "int unused; return 0;"))
    (tmp_path / "Kbuild").write_text("obj-m := tiny.o\n")
    commands = tmp_path / "commands"  # all that the machine has, except a compiler
    commands.mkdir()
    for folder in os.defpath.split(":"):
        for path in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if not re.search(r"gcc|cc$|make|ld|objcopy|as$", path.name) and not (commands / path.name).exists():
                (commands / path.name).symlink_to(path)
    try:
        fetch_compiler()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no compiler: {error}")
    monkeypatch.setenv("PATH", str(commands))
    made = build_modules(tmp_path, tools.kernel)
    assert made.modules == (tmp_path / "tiny.ko",)
    assert "unused variable" in made.warnings
    assert b"GCC: (Debian 14" in (tmp_path / "tiny.ko").read_bytes()
