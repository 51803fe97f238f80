"""The bed's kernels: Linux from the distribution's source package with our patches, or the distribution's own.

Ours is built once and kept outside the checkout, under a name that tells what is in it: another source, patch or
configuration makes another. The source package is fetched once; remove it from the cache to get a newer one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bellwired.guest.archive import Apt, ArchiveError, unpack
from bellwired.guest.caches import caches, only_one
from bellwired.guest.toolbox import Toolbox
from nested.boot import Image
from nested.errors import BedError, LackError

HERE = Path(__file__).parent
PATCHES = HERE.parents[1] / "kvm" / "kernel"
SUITE, SECURITY, SOURCE = "bookworm", "bookworm-security", "linux-source-6.1"
SPACE = 4 << 30  # bytes: the source unpacked, and what is made of it
LAYOUT = 1  # raise it when what is made of the source changes
MODULES = ("overlay", "kvm-amd", "tun")  # of Debian's kernel: what the bed and the tests need
TREE = (
    *("Makefile", "include", "scripts", "arch/x86", "tools/objtool"),
    *("Module.symvers", ".config", "vmlinux", "modules.builtin", "modules.order"),
)
"""What modules are built with, and what decodes addresses."""
COMMANDS = {"gcc": "gcc", "make": "make", "ld": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
            "patch": "patch", "tar": "tar", "xz": "xz-utils", "perl": "perl"}  # fmt: skip
HEADERS = {"libelf.h": "libelf-dev", "stdio.h": "libc6-dev"}
_STEP = re.compile(r"^  (CC|AS|AR|LD|HOSTCC|GEN)\b")

Progress = Callable[[str], object]


@dataclass(frozen=True)
class Recipe:
    """A kernel of our own: fragments of configuration on top of `make tinyconfig`, and patches."""

    name: str
    fragments: tuple[Path, ...]
    patches: tuple[Path, ...] = ()
    modules: bool = False
    """Whether what modules are built with is kept: a folder ``tree`` beside the image, and vmlinux in it."""


def recipes() -> dict[str, Recipe]:
    """What can be built, by name."""
    plain = HERE / "kernel.config"
    usual = (plain, HERE / "vhost.config")
    patches = tuple(sorted(PATCHES.glob("*.patch")))
    return {
        "patched": Recipe("patched", usual, patches),
        "plain": Recipe("plain", usual),
        "debug": Recipe("debug", (plain, HERE / "debug.config"), patches),
        "driver": Recipe("driver", (HERE / "driver.config",), modules=True),
    }


KERNELS = {
    "patched": "Linux 6.1 with KVM_SET_IOREGION, KVM_IOEVENTFD_FLAG_POST_WRITE, and vhost back ends",
    "plain": "the same without the patches",
    "debug": "patched, with KASAN and lockdep",
    "debian": "the kernel of Debian's cloud images, as it is",
}


def image(tools: Toolbox, name: str, progress: Progress) -> Image:
    """One of KERNELS, or a kernel's file; built, if it has not been yet."""
    if name == "debian":
        return Image(tools.kernel.image, tools.kernel.release, MODULES)
    if name not in KERNELS:
        file = Path(name)
        if not file.is_file():
            raise BedError(f"no kernel {name}", f"give a file, or one of {', '.join(KERNELS)}")
        return Image(file, file.name)
    return build(recipes()[name], progress)


def build(recipe: Recipe, progress: Progress) -> Image:
    """The kernel, from the cache if it is there. A BedError says what is missing or has failed."""
    folder = caches() / "nested"
    folder.mkdir(parents=True, exist_ok=True)
    with only_one(folder):
        package = _source(folder, progress)
    version = package.name.split("_")[1]
    made = folder / f"{recipe.name}-{version}-{_digest(recipe, package)}"
    if not made.exists():
        with only_one(folder / f"{recipe.name}.building"):
            if not made.exists():
                check(folder)
                with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as name:
                    _build(recipe, package, Path(name), progress)
                    (Path(name) / "made").rename(made)
    return Image(made / "bzImage", f"{version} {recipe.name}")


def driver_tree(progress: Progress) -> Path:
    """A kernel's tree for ``bellwire boot --kernel``: it finds the mistakes of modules that are built with it."""
    return build(recipes()["driver"], progress).file.parent / "tree"


def _digest(recipe: Recipe, package: Path) -> str:
    digest = hashlib.sha256(f"{LAYOUT} {package.name}".encode())
    for file in (*recipe.fragments, *recipe.patches):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _source(folder: Path, progress: Progress) -> Path:
    """The source package."""
    found = sorted(folder.glob(f"{SOURCE}_*.deb"))
    if found:
        return found[-1]
    progress(f"fetching {SOURCE} of Debian {SUITE}")
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as name:
            (fetched,) = Apt(Path(name) / "apt", (SUITE,), security=SECURITY).download_named([SOURCE])
            return fetched.rename(folder / fetched.name)
    except ArchiveError as error:
        hint = f"put the package there by hand: {folder}"
        raise LackError(f"the kernel's source cannot be fetched: {error}", hint) from None


def check(folder: Path) -> None:
    """A LackError that names what is missing for a build: make would say it later, in its own way."""
    missing = {command: package for command, package in COMMANDS.items() if shutil.which(command) is None}
    if "gcc" not in missing:
        missing |= {header: package for header, package in HEADERS.items() if not _compiles(header)}
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        raise LackError(f"to build a kernel takes {', '.join(missing)}", f"apt-get install {packages}")
    free = shutil.disk_usage(folder).free
    if free < SPACE:
        raise LackError(
            f"to build a kernel takes {SPACE >> 30} GiB of disk, and {free / (1 << 30):.1f} are free in {folder}",
            "make room there, or name another place by XDG_CACHE_HOME",
        )


def _compiles(header: str) -> bool:
    words = ("gcc", "-fsyntax-only", "-x", "c", "-include", header, "/dev/null")
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _build(recipe: Recipe, package: Path, folder: Path, progress: Progress) -> None:
    """Make ``folder/made`` with the image, its configuration, and what the build said."""
    progress("unpacking the kernel's source")
    unpack([package], folder / "package")
    (archive,) = (folder / "package" / "usr" / "src").glob("linux-source-*.tar.xz")
    tree, made = folder / "tree", folder / "made"
    tree.mkdir()
    made.mkdir()
    run_quietly(["tar", "--extract", "--file", archive, "--directory", tree, "--strip-components", "1"], folder)
    for patch in recipe.patches:
        progress(f"applying {patch.name}")
        run_quietly(["patch", "--strip", "1", "--fuzz", "0", "--forward", "--input", patch], tree)
    configure(tree, recipe.fragments)
    targets = ("bzImage", *(("modules",) if recipe.modules else ()))
    compile_image(tree, f"building the {recipe.name} kernel", progress, targets)
    shutil.copy(tree / "arch/x86/boot/bzImage", made)
    shutil.copy(tree / ".config", made / "config")
    if recipe.modules:
        _keep(tree, made / "tree")


def _keep(tree: Path, kept: Path) -> None:
    """Keep what modules are built with: about a tenth of the tree."""
    objects = shutil.ignore_patterns("*.o", "*.a", "*.cmd", "*.c", "*.S")
    for name in TREE:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        if (tree / name).is_dir():
            shutil.copytree(tree / name, kept / name, symlinks=True, ignore=objects)
        else:
            shutil.copy(tree / name, kept / name)


def configure(tree: Path, fragments: tuple[Path, ...]) -> None:
    """tinyconfig and the fragments; what they ask for and the kernel will not have is a BedError."""
    run_quietly(["make", "-s", "tinyconfig"], tree)
    run_quietly(["scripts/kconfig/merge_config.sh", "-m", ".config", *fragments], tree)
    run_quietly(["make", "-s", "olddefconfig"], tree)
    have = set((tree / ".config").read_text().splitlines())
    want = [line for file in fragments for line in file.read_text().splitlines() if line.startswith("CONFIG_")]
    if lacking := [line for line in want if line not in have]:
        raise BedError(f"this source does not take {', '.join(lacking)}", "a dependency has changed, it seems")


def compile_image(tree: Path, title: str, progress: Progress, targets: Sequence[str] = ("bzImage",)) -> None:
    """`make bzImage`, or other targets, on all processors."""
    start, steps, said = time.monotonic(), 0, []
    words = ["nice", "make", f"-j{os.cpu_count()}", *targets]
    with subprocess.Popen(words, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                steps += _STEP.match(line) is not None
                if not line.startswith("  "):
                    said.append(line)
                progress(f"{title}: {steps} files, {time.monotonic() - start:.0f} s")
        except SystemExit:
            process.terminate()
            raise
    if process.returncode:
        raise BedError("the kernel does not build", "".join(said[-30:]))


def run_quietly(words: list[str | Path], folder: Path) -> None:
    """Run a command in ``folder``; a BedError with its last words when it fails."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        complaint = (done.stdout + done.stderr).strip().splitlines()
        raise BedError(f"{Path(words[0]).name} failed", "\n".join(complaint[-20:]))
