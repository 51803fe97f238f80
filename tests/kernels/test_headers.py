"""Headers for Debian's kernels come from its archive; other kernels bring their own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bellwired.guest import compiler
from bellwired.guest.archive import ArchiveError
from bellwired.guest.headers import PROGRAMS, adapt, tree_of
from bellwired.guest.kernel import Kernel, KernelError
from bellwired.guest.toolbox import LOADER
from kernels.signed_archive import SignedArchive


def test_a_kernel_with_a_build_tree_needs_no_headers(tmp_path: Path) -> None:
    assert tree_of(Kernel(tmp_path / "bzImage", "6.12.0", build_tree=tmp_path)) == tmp_path


@pytest.mark.parametrize("release", ["6.12.0", "6.12.0-amd64", "6.12.1-arch1-1", "6.12.1+deb13-cloud-arm64"])
def test_a_kernel_that_is_not_debians_needs_a_tree(release: str, tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"no headers of Linux .* are known") as caught:
        tree_of(Kernel(tmp_path / "bzImage", release))
    assert "build tree" in caught.value.hint


@pytest.mark.slow
@pytest.mark.parametrize("release", ["6.12.1+deb13-cloud-amd64", "6.1.0-9-amd64"])
def test_headers_that_the_archive_has_no_more_are_an_error(signed: SignedArchive, tmp_path: Path, release: str) -> None:
    signed.publish({"libc6": "1.0"})
    with pytest.raises(ArchiveError, match=r"has no headers of Linux .* any more") as caught:
        tree_of(Kernel(tmp_path / "bzImage", release))
    assert caught.value.hint.startswith("remove ")


RELEASE, VERSION = "6.12.1+deb13-cloud-amd64", "6.12.1+deb13"


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """Headers whose programs print their arguments, in another folder than that in which they were made."""
    made = tmp_path / "made"
    headers = made / f"root/usr/src/linux-headers-{RELEASE}"
    kbuild = made / f"root/usr/lib/linux-kbuild-{VERSION}"
    for name, suffix in PROGRAMS.items():
        program = kbuild / f"{name}{suffix}"
        program.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2("/bin/echo", program)
    (made / "root" / LOADER).parent.mkdir(parents=True)
    (made / "root" / LOADER).symlink_to("/lib64/ld-linux-x86-64.so.2")
    headers.mkdir(parents=True)
    (headers / "Makefile").write_text(f"include /usr/src/linux-headers-{VERSION}-common/Makefile\n")
    (headers / "scripts").symlink_to(f"../../lib/linux-kbuild-{VERSION}/scripts")
    (headers.parent / f"linux-headers-{VERSION}-common").mkdir()
    (headers.parent / f"linux-headers-{VERSION}-common/Makefile").write_text("all:;@echo included\n")
    adapt(made, RELEASE, VERSION)
    return made.rename(tmp_path / "moved there")


@pytest.mark.parametrize("name", ["scripts/basic/fixdep", "scripts/mod/modpost"])
def test_a_copied_folder_runs_its_programs(name: str, moved: Path) -> None:
    done = subprocess.run([f"./{name}", "a b", "c"], cwd=moved / "build", capture_output=True, text=True, check=True)
    assert done.stdout == "a b c\n"


def test_a_copied_folder_includes_its_makefile(moved: Path) -> None:
    done = subprocess.run(["make", "-s"], cwd=moved / "build", capture_output=True, text=True, check=True)
    assert done.stdout == "included\n"


def test_a_copied_compiler_gets_its_own_place(tmp_path: Path) -> None:
    programs = tmp_path / "made/root/usr/bin"
    programs.mkdir(parents=True)
    shutil.copy2("/bin/echo", programs / "gcc-14")
    (programs / "gcc").symlink_to("gcc-14")
    (tmp_path / "made/root" / LOADER).parent.mkdir(parents=True)
    (tmp_path / "made/root" / LOADER).symlink_to("/lib64/ld-linux-x86-64.so.2")
    compiler.adapt(tmp_path / "made/root")
    there = (tmp_path / "made").rename(tmp_path / "moved there")
    done = subprocess.run([there / "root/usr/bin/gcc", "-c"], capture_output=True, text=True, check=True)
    root = there / "root/usr/bin/../.."
    assert done.stdout == f"-B{root}/usr/bin --sysroot={root} -c\n"
