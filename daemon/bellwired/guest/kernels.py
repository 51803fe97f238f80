"""Which kernel a guest boots: a file, a build tree, the host's own one, or Debian's."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

from bellwired.guest.fetch import fetch_guest_tools
from bellwired.guest.kernel import VIRTIO, Kernel, KernelError, release_of
from bellwired.guest.progress import Progress, silent
from bellwired.guest.toolbox import Toolbox

DEBIAN, RUNNING = "debian", "running"
WORDS = (DEBIAN, RUNNING)
BOOT, MODULES = Path("/boot"), Path("/lib/modules")
IMAGE = "arch/x86/boot/bzImage"
_RELEASE = "include/config/kernel.release"


def find_kernel(
    word: str = DEBIAN, progress: Progress = silent, fetch: Callable[[Progress], Toolbox] = fetch_guest_tools
) -> Kernel:
    """The kernel that ``word`` names.

    ``debian`` is Debian's kernel for virtual machines, which is fetched if the cache has it not. ``running`` is the
    kernel that this machine runs. Everything else is the path of a bzImage or of a kernel's build tree. Raises a
    KernelError if there is no such kernel or it lacks virtio, and an ArchiveError if Debian's cannot be fetched.
    """
    if word == DEBIAN:
        return fetch(progress).kernel
    if word == RUNNING:
        return check_virtio(_running())
    path = Path(word)
    if path.is_dir():
        return check_virtio(_tree(path.resolve()))
    if not path.exists():
        hint = f"give a bzImage, a kernel's build tree, or one of {', '.join(WORDS)}"
        raise KernelError(f"{word}: no such kernel", hint)
    return check_virtio(_image(path.resolve()))


def check_virtio(kernel: Kernel) -> Kernel:
    """The kernel itself. A KernelError if its modules are known and virtio is not among them."""
    lacking = [name for name in VIRTIO if not kernel.has(name)]
    if lacking and kernel.modules is not None and (kernel.modules / "modules.builtin").exists():
        options = " and ".join(f"CONFIG_{name.upper()}" for name in lacking)
        hint = f"build it with {options}, or take --kernel {DEBIAN}"
        raise KernelError(f"{kernel.image}: Linux {kernel.release} has no {' and no '.join(lacking)}", hint)
    return kernel


def _running() -> Kernel:
    release = platform.release()
    image, modules = BOOT / f"vmlinuz-{release}", MODULES / release
    hint = f"give another kernel, such as --kernel {DEBIAN}"
    if not image.exists() and (modules / "vmlinuz").exists():
        image = modules / "vmlinuz"  # where Fedora and Arch have it
    if not image.exists():
        raise KernelError(f"{image}: the image of the running kernel is not there (is this a container?)", hint)
    if not modules.is_dir():
        raise KernelError(f"{modules}: the modules of the running kernel are not there", hint)
    release_of(image)  # it can be read
    return Kernel(image, release, modules, _headers(modules))


def _image(image: Path) -> Kernel:
    """A file: the image of a build tree, or one whose modules are installed."""
    release = release_of(image)
    tree = image.parents[3] if len(image.parents) > 3 and image == image.parents[3] / IMAGE else None
    if tree is not None and _is_tree(tree):
        return _tree(tree)
    for root in (image.parent.parent, Path("/")):  # a kernel in ROOT/boot has modules in ROOT/lib/modules
        for modules in (root / "lib/modules" / release, root / "usr/lib/modules" / release):
            if modules.is_dir():
                return Kernel(image, release, modules, _headers(modules))
    return Kernel(image, release)


def _tree(tree: Path) -> Kernel:
    """A tree in which a kernel was built."""
    image = tree / IMAGE
    if not _is_tree(tree):
        raise KernelError(f"{tree}: no kernel was built here ({_RELEASE} is not there)", "run make in it first")
    if not image.exists():
        raise KernelError(f"{tree}: it has no {IMAGE}", "run make bzImage in it first")
    release = (tree / _RELEASE).read_text().strip()
    booted = release_of(image)
    if booted != release:
        hint = "the build is not finished: run make in it"
        raise KernelError(f"{tree}: the tree is of Linux {release}, and its bzImage of Linux {booted}", hint)
    return Kernel(image.resolve(), release, tree, tree)


def _is_tree(folder: Path) -> bool:
    return (folder / _RELEASE).is_file()


def _headers(modules: Path) -> Path | None:
    """What ``make -C`` takes for a kernel whose modules are installed; None without its headers."""
    build = modules / "build"
    return build.resolve() if (build / "Makefile").exists() else None
