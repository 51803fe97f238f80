"""A QEMU built from Debian's source with the patches of kvm/qemu: one whose guests ring doorbells by file descriptor.

``python tests/guest/patched.py`` (``make qemu``) builds it into the cache and prints how it is started: 40 MB to fetch,
and some minutes on two processors the first time. It is built anew when the source, a patch or the configuration has
changed. The same build has ``x-vfio-user-server``, which serves QEMU's own devices.

A QEMU without the patches is kept as well, for tests of old clients. Most of what was compiled serves it, too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from bellwired.guest.archive import Apt, ArchiveError, run
from bellwired.guest.caches import caches, only_one
from bellwired.guest.toolbox import Toolbox
from debian import download_source
from provision import provision

PATCHES = Path(__file__).resolve().parents[2] / "kvm" / "qemu"
SUITES = ("sid", "trixie-backports")
SOURCE = "qemu"
MESON = ("meson==1.9.0", "pycotap")  # QEMU's configure takes this meson and no older one
OPTIONS = (
    "--target-list=x86_64-softmmu",
    "--without-default-features",
    "--enable-kvm",
    "--enable-tcg",
    "--enable-multiprocess",
    "--enable-vfio-user-server",
    "-Dlibvfio-user:default_library=static",
    "--disable-docs",
    "--disable-fdt",
    "--disable-tools",
    "--disable-werror",
    "--disable-install-blobs",
)
BINARY = "qemu-system-x86_64"
UNPATCHED = "qemu-system-x86_64-unpatched"
OWN_TEST = "tests/qtest/vfio-user-test"
"""The test of the patches in QEMU's own tree. It is built as well, and kept beside the binary."""
LAYOUT = 3  # raise it when what is made changes
NEEDED = {
    "gcc": "gcc",
    "g++": "g++",
    "ninja": "ninja-build",
    "pkg-config": "pkg-config",
    "patch": "patch",
    "dpkg-source": "dpkg-dev",
}
LIBRARIES = {"glib-2.0": "libglib2.0-dev", "json-c": "libjson-c-dev", "cmocka": "libcmocka-dev"}
APPLY = ("patch", "--strip", "1", "--fuzz", "0")
_STEP = re.compile(r"\[(\d+)/(\d+)\]")

Progress = Callable[[str], None]


class BuildError(Exception):
    """There is no such QEMU; the message says what is missing or has failed."""


class BuiltToolbox(Toolbox):
    """The guest tools with a QEMU that was built in the place of Debian's; firmware and all else are Debian's."""

    def __init__(self, tools: Toolbox, binary: Path) -> None:
        super().__init__(tools.folder)
        self._binary = binary

    @property
    def qemu(self) -> list[str]:
        """This QEMU's command line begins so."""
        return [os.fspath(self._binary), *self.firmware]

    @property
    def qemu_environment(self) -> dict[str, str]:
        """It has no parts that are loaded later."""
        return dict(os.environ)


class PatchedToolbox(BuiltToolbox):
    """The guest tools with the patched QEMU."""

    @property
    def own_test(self) -> Path:
        """The test of the patches in QEMU's own tree."""
        return self._binary.with_name(Path(OWN_TEST).name)

    @property
    def unpatched(self) -> BuiltToolbox:
        """The same with the QEMU that the patches were applied to."""
        return BuiltToolbox(self, self._binary.with_name(UNPATCHED))


def patched(tools: Toolbox, progress: Progress) -> PatchedToolbox:
    """The tools, with a QEMU that is built if the cache has none. A BuildError says what stands in the way."""
    return PatchedToolbox(tools, build(progress) / BINARY)


def build(progress: Progress) -> Path:
    """The folder with the binary, from the cache if it is there."""
    folder = caches() / "qemu"
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        description = _source(folder, progress)
    made = folder / f"{description.stem}-{_digest(description)}"
    if not made.exists():
        with only_one(folder / "building"):
            if not made.exists():
                _check()
                with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as name:
                    _build(description, Path(name), progress)
                    (Path(name) / "made").rename(made)
    return made


def built(tools: Toolbox) -> PatchedToolbox | None:
    """The same, if the cache has such a QEMU: nothing is fetched or built."""
    folder = caches() / "qemu"
    for description in sorted(folder.glob(f"{SOURCE}_*.dsc"))[-1:]:
        made = folder / f"{description.stem}-{_digest(description)}"
        if made.exists():
            return PatchedToolbox(tools, made / BINARY)
    return None


def _patches() -> list[Path]:
    return sorted(PATCHES.glob("*.patch"))


def _digest(description: Path) -> str:
    digest = hashlib.sha256(repr((LAYOUT, OPTIONS, MESON)).encode())
    for file in (description, *_patches()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _source(folder: Path, progress: Progress) -> Path:
    """The source package's description (.dsc): the newest of which all files can be had."""
    found = sorted(folder.glob(f"{SOURCE}_*.dsc"))
    if found:
        return found[-1]
    progress(f"fetching the source of {SOURCE} from Debian")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as name:
            apt = Apt(Path(name) / "apt", SUITES, sources=True)
            files = download_source(apt, SOURCE, Path(name))
            for file in files:  # the description last: with it, the source counts as there
                file.rename(folder / file.name)
    except ArchiveError as error:
        raise BuildError(f"QEMU's source cannot be fetched: {error}") from None
    return folder / files[-1].name


def _check() -> None:
    """A BuildError that names the packages that a build lacks: configure would name one at a time."""
    lacking = {package for command, package in NEEDED.items() if shutil.which(command) is None}
    if "pkg-config" not in lacking:
        known = {
            name for name in LIBRARIES if subprocess.run(("pkg-config", "--exists", name), check=False).returncode == 0
        }
        lacking |= {LIBRARIES[name] for name in LIBRARIES.keys() - known}
    if lacking:
        raise BuildError(f"to build QEMU takes more: apt-get install {' '.join(sorted(lacking))}")


def _build(description: Path, folder: Path, progress: Progress) -> None:
    """Make ``folder/made`` with the binary."""
    progress("unpacking QEMU's source")
    tree, made = folder / "tree", folder / "made"
    try:
        run("dpkg-source", "--no-check", "--extract", os.fspath(description), os.fspath(tree))
        for patch in _patches():
            progress(f"applying {patch.name}")
            run(*APPLY, "--forward", "--input", os.fspath(patch), folder=tree)
        progress("configuring QEMU")
        venv.create(folder / "python", with_pip=True)
        python = folder / "python" / "bin" / "python3"
        run(os.fspath(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *MESON)
        (tree / "build").mkdir()
        run("../configure", f"--python={python}", *OPTIONS, folder=tree / "build")
    except ArchiveError as error:
        raise BuildError(f"QEMU cannot be built: {error}") from None
    made.mkdir()
    _compile(tree / "build", (BINARY, OWN_TEST), made, progress)
    for patch in reversed(_patches()):
        run(*APPLY, "--reverse", "--input", os.fspath(patch), folder=tree)
    _compile(tree / "build", (BINARY,), folder, progress)
    (folder / BINARY).rename(made / UNPATCHED)


def _compile(tree: Path, binaries: Sequence[str], made: Path, progress: Progress) -> None:
    """Run ninja on all processors, and put the binaries into the folder ``made``."""
    start, said = time.monotonic(), [""]
    words = ["nice", "ninja", *binaries]
    with subprocess.Popen(words, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said = [*said[-30:], line]
                if step := _STEP.match(line):
                    progress(f"building QEMU: {step[1]} of {step[2]}, {time.monotonic() - start:.0f} s")
        except BaseException:
            process.terminate()
            raise
    if process.returncode:
        raise BuildError(f"QEMU does not build:\n{''.join(said)}")
    for binary in binaries:
        run("strip", "-o", os.fspath(made / Path(binary).name), os.fspath(tree / binary))


def report(line: str) -> None:
    """Progress for people: one line that changes on a terminal, and otherwise only what is no counter."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif " of " not in line:
        print(line, file=sys.stderr, flush=True)


def main() -> int:
    """Build it, and print where it is."""
    try:
        folder = build(report)
        firmware = provision().firmware
    except (ArchiveError, BuildError, OSError) as error:
        print(f"\nno patched QEMU: {error}", file=sys.stderr)
        return 1
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(" ".join([os.fspath(folder / BINARY), *firmware]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
