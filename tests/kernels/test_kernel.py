"""A kernel is found by a word or a path, with its modules, and says what it lacks."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bellwired.guest import kernels, roots
from bellwired.guest.kernel import Kernel, KernelError, release_of
from bellwired.guest.kernels import find_kernel
from bellwired.guest.plan import HOST, Plan
from bellwired.guest.qemus import OLDEST, Qemu

RELEASE = "6.12.0-test"
BUILT_IN = "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/char/virtio_console.ko\n"


def image(release: str = RELEASE) -> bytes:
    """The head of a bzImage (Documentation/arch/x86/boot.rst)."""
    data = bytearray(0x400)
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0x100)
    text = f"{release} (someone@somewhere) #1 SMP\0".encode()
    data[0x300 : 0x300 + len(text)] = text
    return bytes(data)


def module(*depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0retpoline=Y\0"


def tree(folder: Path, modules: Mapping[str, bytes], order: str, built_in: str = BUILT_IN) -> Path:
    """What a kernel's build leaves behind."""
    for path, data in {"arch/x86/boot/bzImage": image(), **modules}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    (folder / "include/config").mkdir(parents=True)
    (folder / "include/config/kernel.release").write_text(f"{RELEASE}\n")
    (folder / "modules.order").write_text(order)
    (folder / "modules.builtin").write_text(built_in)
    return folder


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose running kernel is the test's."""
    monkeypatch.setattr(kernels, "BOOT", tmp_path / "boot")
    monkeypatch.setattr(kernels, "MODULES", tmp_path / "lib/modules")
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib/modules").mkdir(parents=True)
    return tmp_path


def install(root: Path, release: str, built_in: str = BUILT_IN) -> Path:
    (root / "boot" / f"vmlinuz-{release}").write_bytes(image(release))
    modules = root / "lib/modules" / release
    modules.mkdir()
    (modules / "modules.builtin").write_text(built_in)
    return modules


@pytest.mark.parametrize(
    "order",
    [
        "drivers/a/one.o\ndrivers/two.o\n",
        "drivers/a/one.ko\ndrivers/two.ko\n",
        "kernel/drivers/a/one.ko\nkernel/drivers/two.ko\n",
    ],
    ids=["objects (6.2 and newer)", "modules", "modules below kernel/ (before 5.4)"],
)
def test_the_modules_of_a_build_tree_are_those_in_its_order(tmp_path: Path, order: str) -> None:
    folder = tree(tmp_path, {"drivers/a/one.ko": module("two"), "drivers/two.ko": module()}, order)
    kernel = find_kernel(str(folder))
    assert (kernel.release, kernel.build_tree) == (RELEASE, folder)
    assert list(kernel.load_order(["one"])) == ["two", "one"]


def test_the_image_of_a_build_tree_brings_the_tree(tmp_path: Path) -> None:
    folder = tree(tmp_path, {"drivers/two.ko": module()}, "drivers/two.o\n")
    assert find_kernel(str(folder / "arch/x86/boot/bzImage")) == find_kernel(str(folder))


def test_a_kernel_in_the_boot_folder_of_a_root_has_the_modules_of_that_root(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    (tmp_path / "lib/modules").mkdir(parents=True)
    modules = install(tmp_path, RELEASE)
    assert find_kernel(str(tmp_path / "boot" / f"vmlinuz-{RELEASE}")).modules == modules


def test_of_an_image_alone_no_modules_are_known(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(image())
    kernel = find_kernel(str(tmp_path / "image"))
    assert kernel == Kernel(tmp_path / "image", RELEASE)
    with pytest.raises(KernelError, match=f"Linux {RELEASE} has no module nvme") as caught:
        kernel.load_order(["nvme"])
    assert "build tree" in caught.value.hint


def test_the_running_kernel_is_found(installed: Path) -> None:
    modules = install(installed, platform.release())
    kernel = find_kernel("running")
    assert (kernel.release, kernel.modules) == (platform.release(), modules)


def test_a_running_kernel_whose_image_is_not_there_is_an_error(installed: Path) -> None:
    with pytest.raises(KernelError, match="the image of the running kernel is not there") as caught:
        find_kernel("running")
    assert "--kernel debian" in caught.value.hint


def test_a_running_kernel_without_modules_is_an_error(installed: Path) -> None:
    shutil.rmtree(install(installed, platform.release()))
    with pytest.raises(KernelError, match="the modules of the running kernel are not there"):
        find_kernel("running")


def test_a_kernel_without_virtio_is_an_error(installed: Path) -> None:
    install(installed, platform.release(), built_in="kernel/drivers/char/virtio_console.ko\n")
    with pytest.raises(KernelError, match=r"has no virtio_pci$") as caught:
        find_kernel("running")
    assert "CONFIG_VIRTIO_PCI" in caught.value.hint


def test_virtio_that_is_a_module_is_loaded_before_the_guest_is_spoken_to(tmp_path: Path) -> None:
    """Debian 12's kernel for virtual machines is such a one."""
    modules = {
        "virtio_pci.ko": module("virtio", "virtio_ring"),
        "virtio_ring.ko": module("virtio"),
        "virtio_console.ko": module("virtio"),
        "virtio.ko": module(),
    }
    kernel = find_kernel(str(tree(tmp_path, modules, "\n".join(modules), built_in="")))
    plan = Plan(kernel, Qemu(("qemu",), OLDEST, "tcg", {}), root=HOST)
    archive = roots.initramfs(plan)
    assert list(roots.first_modules(kernel)) == ["virtio", "virtio_ring", "virtio_pci", "virtio_console"]
    assert [f"modules/{number:02}\0".encode() in archive for number in range(5)] == [True] * 4 + [False]


@pytest.mark.parametrize(
    ("missing", "error"),
    [
        ("include/config/kernel.release", "no kernel was built here"),
        ("arch/x86/boot/bzImage", "it has no arch/x86/boot"),
    ],
)
def test_a_tree_in_which_no_kernel_was_built_is_an_error(tmp_path: Path, missing: str, error: str) -> None:
    (tree(tmp_path, {}, "") / missing).unlink()
    with pytest.raises(KernelError, match=error):
        find_kernel(str(tmp_path))


def test_a_tree_whose_image_is_of_another_build_is_an_error(tmp_path: Path) -> None:
    (tree(tmp_path, {}, "") / "arch/x86/boot/bzImage").write_bytes(image("6.11.0"))
    with pytest.raises(KernelError, match=f"the tree is of Linux {RELEASE}, and its bzImage of Linux 6.11.0"):
        find_kernel(str(tmp_path))


def test_a_word_that_is_no_kernel_is_an_error() -> None:
    with pytest.raises(KernelError, match="no/where: no such kernel") as caught:
        find_kernel("no/where")
    assert "debian, running" in caught.value.hint


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x7fELF" + bytes(0x400), "no bzImage"),
        (b"", "no bzImage"),
        (image().replace(b"HdrS", b"none"), "no bzImage"),
        (image("\0"), "does not say which release"),
    ],
)
def test_a_file_that_is_no_kernel_is_an_error(tmp_path: Path, data: bytes, error: str) -> None:
    (tmp_path / "image").write_bytes(data)
    with pytest.raises(KernelError, match=error):
        find_kernel(str(tmp_path / "image"))


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 0xFFFF))
def test_any_head_of_an_image_gives_a_release_or_an_error(text: bytes, pointer: int) -> None:
    data = bytearray(image())
    struct.pack_into("<H", data, 0x20E, pointer)
    with tempfile.NamedTemporaryFile() as file, contextlib.suppress(KernelError):
        file.write(data + text)
        file.flush()
        assert len(release_of(Path(file.name))) <= 256


def test_modules_are_loaded_after_what_they_depend_on(tmp_path: Path) -> None:
    for name, needs in {"a": ["b", "c"], "b": ["c"], "c": ["virtio_pci"]}.items():
        (tmp_path / f"{name}.ko").write_bytes(module(*needs))
    (tmp_path / "modules.builtin").write_text(BUILT_IN)
    assert list(Kernel(tmp_path, RELEASE, tmp_path).load_order(["a", "virtio-pci"])) == ["c", "b", "a"]


def test_modules_that_depend_on_each_other_end(tmp_path: Path) -> None:
    for name, needs in {"a": "b", "b": "a"}.items():
        (tmp_path / f"{name}.ko").write_bytes(module(needs))
    assert list(Kernel(tmp_path, RELEASE, tmp_path).load_order(["a"])) == ["b", "a"]


def test_a_name_may_be_written_with_a_hyphen(tmp_path: Path) -> None:
    (tmp_path / "snd-pcm.ko").write_bytes(module())
    kernel = Kernel(tmp_path, RELEASE, tmp_path)
    assert kernel.has("snd_pcm")
    assert kernel.has("snd-pcm")
    assert list(kernel.load_order(["snd-pcm"])) == ["snd_pcm"]


def test_modules_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(module()))
    (tmp_path / "b.ko.gz").write_bytes(gzip.compress(module()))
    assert set(Kernel(tmp_path, RELEASE, tmp_path).load_order(["a", "b"]).values()) == {module()}


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd")
def test_modules_may_be_compressed_by_zstd(tmp_path: Path) -> None:
    (tmp_path / "a.ko").write_bytes(module())
    subprocess.run(["zstd", "-q", "--rm", tmp_path / "a.ko"], check=True)
    assert Kernel(tmp_path, RELEASE, tmp_path).load_order(["a"]) == {"a": module()}


def test_without_zstd_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.ko.zst").write_bytes(b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="compressed by zstd, and there is no zstd"):
        Kernel(tmp_path, RELEASE, tmp_path).load_order(["a"])
