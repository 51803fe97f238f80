"""A Linux kernel for a guest: its image, its modules, and the tree that it was built in."""

from __future__ import annotations

import functools
import gzip
import lzma
import re
import struct
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bellwired.errors import CommandError

VIRTIO = ("virtio_pci", "virtio_console")  # what every guest of bellwire boot talks through
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
_MAGIC, _MAGIC_AT, _VERSION_AT, _BASE = b"HdrS", 0x202, 0x20E, 0x200
_LONGEST_VERSION = 256  # bytes, more than any kernel has


class KernelError(CommandError):
    """A kernel cannot be used, or it lacks what a guest needs. The message names the file and what was expected."""


@dataclass(frozen=True)
class Kernel:
    """``image`` is a bzImage and ``release`` its name for itself, as ``uname -r`` prints it.

    ``modules`` is the folder of the modules: /lib/modules/RELEASE or the like, or the build tree. It is None if
    nothing is known of modules. ``build_tree`` is what ``make -C`` takes to build modules (KDIR), or None.
    """

    image: Path
    release: str
    modules: Path | None = None
    build_tree: Path | None = None

    @property
    def vmlinux(self) -> Path | None:
        """The kernel with its symbols, for decoding addresses; None if it is not there."""
        found = self.build_tree / "vmlinux" if self.build_tree else None
        return found if found and found.is_file() else None

    def has(self, name: str) -> bool:
        """Whether the module ``name`` can be loaded, or is built in."""
        return _plain(name) in self._files or _plain(name) in self._built_in

    def file(self, name: str) -> Path | None:
        """The file of the module ``name``, which may be compressed; None if there is none."""
        return self._files.get(_plain(name))

    def load_order(self, names: Iterable[str]) -> dict[str, bytes]:
        """The modules ``names``, uncompressed, each after those that it depends on. What is built in is left out.

        Raises a KernelError if the kernel has one of them neither as a module nor built in.
        """
        loaded: dict[str, bytes] = {}
        for name in names:
            self._load(name, loaded, ())
        return loaded

    def _load(self, name: str, loaded: dict[str, bytes], wanted_by: tuple[str, ...]) -> None:
        name = _plain(name)
        if name in loaded or name in wanted_by or name in self._built_in:
            return
        if name not in self._files:
            what = f"Linux {self.release} has no module {name}"
            if self.modules is None:
                raise KernelError(what, "where its modules are is not known: give the kernel's build tree")
            raise KernelError(f"{what} in {self.modules}", "a kernel that has it, as a module or built in, is needed")
        module = uncompressed(self._files[name])
        depends = _DEPENDS.search(module)
        for needed in filter(None, depends[1].decode(errors="replace").split(",") if depends else ()):
            self._load(needed, loaded, (*wanted_by, name))
        loaded[name] = module

    @functools.cached_property
    def _files(self) -> dict[str, Path]:
        """Where each module is, by name."""
        if self.modules is None:
            return {}
        order = self.modules / "modules.order"
        in_tree = self.modules == self.build_tree
        paths = self._ordered(order) if in_tree and order.is_file() else self.modules.rglob("*.ko*")
        return {_plain(path.name.partition(".")[0]): path for path in paths if _is_module(path)}

    def _ordered(self, order: Path) -> Iterator[Path]:
        """What a build has listed: objects (Linux 6.2 and newer), modules, or modules below a folder ``kernel``."""
        assert self.modules is not None
        for line in order.read_text().split():
            path = self.modules / line.removeprefix("kernel/" if not (self.modules / line).exists() else "")
            yield path.with_suffix(".ko")

    @functools.cached_property
    def _built_in(self) -> frozenset[str]:
        listed = self.modules / "modules.builtin" if self.modules else None
        if listed is None or not listed.is_file():
            return frozenset()
        return frozenset(_plain(Path(line).stem) for line in listed.read_text().split())


def release_of(image: Path) -> str:
    """The release that a bzImage says it is (Documentation/arch/x86/boot.rst, kernel_version). Reads its head only.

    Raises a KernelError if it is no bzImage.
    """
    try:
        with image.open("rb") as file:
            head = file.read(0x10000)
    except PermissionError:
        raise KernelError(f"{image}: may not be read", f"make it readable: sudo chmod a+r {image}") from None
    except OSError as error:
        raise KernelError(f"{image}: {error.strerror}") from None
    if head[_MAGIC_AT : _MAGIC_AT + 4] != _MAGIC:
        hint = "it is an uncompressed kernel" if head[:4] == b"\x7fELF" else "expected arch/x86/boot/bzImage of a build"
        raise KernelError(f"{image}: no bzImage ({_MAGIC.decode()} is not at {_MAGIC_AT:#x})", hint)
    (pointer,) = struct.unpack_from("<H", head, _VERSION_AT)
    words = head[_BASE + pointer :][:_LONGEST_VERSION].partition(b"\0")[0].split()
    if not pointer or not words:
        raise KernelError(f"{image}: it does not say which release it is (kernel_version at {_VERSION_AT:#x})")
    return words[0].decode("ascii", "replace")


def uncompressed(module: Path) -> bytes:
    """The bytes of a module, whose suffix says how it is compressed."""
    match module.suffix:
        case ".xz":
            return lzma.decompress(module.read_bytes())
        case ".gz":
            return gzip.decompress(module.read_bytes())
        case ".zst":
            return _zstd(module)
    return module.read_bytes()


def _zstd(module: Path) -> bytes:
    try:
        done = subprocess.run(("zstd", "-dcq", module), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError:
        raise KernelError(f"{module}: it is compressed by zstd, and there is no zstd", "install zstd") from None
    if done.returncode:
        raise KernelError(f"{module}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _is_module(path: Path) -> bool:
    return path.name.endswith((".ko", ".ko.xz", ".ko.gz", ".ko.zst")) and path.is_file()


def _plain(name: str) -> str:
    """The kernel takes - and _ for the same letter in the names of modules."""
    return name.replace("-", "_")
