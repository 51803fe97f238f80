"""Kernel modules outside of the kernel's tree, built by its own makefiles (Documentation/kbuild/modules.rst)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bellwired.errors import CommandError
from bellwired.guest.compiler import Compiler, find_compiler
from bellwired.guest.headers import tree_of
from bellwired.guest.kernel import Kernel
from bellwired.guest.progress import Progress, silent

MAKEFILES = ("Makefile", "makefile", "GNUmakefile", "Kbuild")
TOOLS = {"LD": "ld", "AR": "ar", "NM": "nm", "STRIP": "strip", "OBJCOPY": "objcopy", "OBJDUMP": "objdump"}
INHERITED = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "KERNELRELEASE")
"""Variables of a make that this process may run under. They would govern ours."""
NOISE = ("warning: the compiler differs", "  The kernel was built by:", "  You are using:", "Skipping BTF generation")
"""Lines of a build with Debian's headers that say nothing about the module."""
_TREE_VARIABLE = re.compile(r"\$[({]MAKE[)}][^\n]*\s-C\s*\"?\$[({](\w+)[)}]")
_VERMAGIC = re.compile(rb"\0vermagic=([^\0 ]+)")


class BuildError(CommandError):
    """A module does not build. ``output`` is what make and the compiler have printed; a traceback shows it, too."""

    def __init__(self, message: str, hint: str = "", *, output: str = "") -> None:
        super().__init__(message, hint)
        self.output = output
        if output:
            self.add_note(output)


@dataclass(frozen=True)
class Built:
    """The modules of a folder, and the warnings of the compiler; empty if nothing had to be built."""

    modules: tuple[Path, ...]
    warnings: str = ""


def build_modules(folder: Path, kernel: Kernel, progress: Progress = silent) -> Built:
    """Build the modules in ``folder`` for ``kernel``. What is up to date is not built again.

    A makefile that calls the kernel's own (``$(MAKE) -C $(KDIR)``) is run with that variable set; any other one is read
    by kbuild. Only one process at a time builds in a folder. Raises a BuildError, and what :func:`tree_of` and
    :func:`find_compiler` raise.
    """
    folder = folder.resolve()
    if not can_build_in(folder):
        hint = "call the folders of its path otherwise, or move it"
        raise BuildError(f"{folder}: kbuild cannot build in a path with a space or a colon", hint)
    makefile = next((folder / name for name in MAKEFILES if (folder / name).is_file()), None)
    if makefile is None:
        hint = "it takes a Makefile with a line such as obj-m := NAME.o"
        raise BuildError(f"{folder}: there is no module to build ({', '.join(MAKEFILES)})", hint)
    tree, compiler = tree_of(kernel, progress), find_compiler(progress)
    variables = _variables(tree, compiler, debian=kernel.build_tree is None)
    words = _words(folder, makefile, tree)
    with _locked(folder):
        progress.step(f"building {folder} for Linux {kernel.release}")
        warnings = _make([*words, *variables], folder, compiler)
        modules = _modules(folder)
        if any(release_for(module) != kernel.release for module in modules):  # objects of another kernel's build
            _make(["-C", os.fspath(tree), f"M={folder}", "clean", *variables], folder, compiler)
            warnings = _make([*words, *variables], folder, compiler)
            modules = _modules(folder)
    if not modules:
        raise BuildError(f"{folder}: make has built no module", "name one in the Makefile: obj-m := NAME.o")
    return Built(tuple(modules), warnings)


def can_build_in(folder: Path) -> bool:
    """Whether kbuild can build in a folder. make takes a space or a colon in its path for the end of a name."""
    return re.search(r"[\s:]", os.fspath(folder.resolve())) is None


def release_for(module: Path) -> str:
    """The release of the kernel that a module was built for; empty if it does not say."""
    found = _VERMAGIC.search(module.read_bytes())
    return found[1].decode(errors="replace") if found else ""


def _words(folder: Path, makefile: Path, tree: Path) -> list[str]:
    found = _TREE_VARIABLE.search(makefile.read_text(errors="replace"))
    if found:
        return ["-C", os.fspath(folder), f"{found[1]}={tree}"]
    return ["-C", os.fspath(tree), f"M={folder}", "modules"]


def _variables(tree: Path, compiler: Compiler, *, debian: bool) -> list[str]:
    """Variables of make. A kernel's own tree knows its compiler, and only clang has to be named."""
    if not debian:
        config = tree / "include/config/auto.conf"
        by_clang = config.is_file() and "CONFIG_CC_IS_CLANG=y\n" in config.read_text()
        return ["LLVM=1"] if by_clang and "LLVM" not in os.environ else []
    tools = [f"{name}={compiler.command(command)}" for name, command in TOOLS.items()]
    dropped = [] if compiler.aligns else ["CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT="]
    # Debug information in BTF takes pahole, and a kernel whose own BTF is at hand.
    return [f"CC={compiler.command('gcc')}", *tools, *dropped, "CONFIG_DEBUG_INFO_BTF_MODULES=", "DEB_BUILD_ARCH=amd64"]


def _make(words: Sequence[str], folder: Path, compiler: Compiler) -> str:
    """Run make. Its warnings; a BuildError with what it has said if it fails."""
    jobs = f"-j{os.cpu_count() or 1}"
    done = subprocess.run(
        [compiler.command("make"), jobs, "--no-print-directory", *words],
        env=_environment(compiler),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    said = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith(NOISE)).strip()
    if done.returncode:
        raise BuildError(f"{folder}: the module does not build", output=said or done.stdout.strip())
    return said


def _environment(compiler: Compiler) -> Mapping[str, str]:
    """A makefile may call bellwire, to export a register map: it finds this one."""
    ours = {name: value for name, value in os.environ.items() if name not in INHERITED}
    return {**ours, "LC_ALL": "C.UTF-8", "PATH": f"{compiler.path}:{Path(sys.executable).parent}"}


def _modules(folder: Path) -> list[Path]:
    """What kbuild has listed: objects (Linux 6.2 and newer) or modules, relative to the folder or not."""
    order = folder / "modules.order"
    listed = order.read_text().split() if order.is_file() else []
    return [folder / Path(line).with_suffix(".ko") for line in listed]


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
