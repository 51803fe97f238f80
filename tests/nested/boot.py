"""A Linux with /dev/kvm under QEMU's emulation of an AMD processor, on the host's own files.

The host's root is shared by virtiofs and lies below a scratch overlay: everything that is installed here runs there,
and nothing that it writes stays.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bellwired.guest.initramfs import archive
from bellwired.guest.processes import ending
from bellwired.guest.toolbox import Toolbox
from nested.errors import BedError, LateError
from rendezvous import listens

INIT = Path(__file__).with_name("init.sh")
PROCESSOR = "qemu64,+svm,+npt"
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 oops=panic random.trust_cpu=on printk.devkmsg=on no_timer_check"
# What virtiofsd writes to memory, QEMU does not see: it would run code that it has translated from a page's former
# contents. A page that the kernel clears before it is used has no such past.
KERNEL_ARGUMENTS += " init_on_alloc=1"
MANY_FILES = (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2  # virtiofsd keeps each open that was looked at
TAIL = 30  # lines of the console, when something went wrong
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """A kernel to boot: its file, a line that names it, and modules that its first process must load."""

    file: Path
    name: str
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """The machine's size; ``memory`` in MiB."""

    cpus: int = 2
    memory: int = 2048


@dataclass(frozen=True)
class Outcome:
    """How it ended: the command's ``status``, and all that the kernel printed."""

    status: int
    console: str
    seconds: float


def run(
    tools: Toolbox,
    image: Image,
    command: Sequence[str],
    *,
    output: Callable[[bytes], object],
    console: Callable[[bytes], object] | None = None,
    size: Size = Size(),
    timeout: float = 600.0,
    folder: Path | None = None,
    kernel_arguments: str = "",
) -> Outcome:
    """Run ``command`` in ``folder`` (the current one), as root; ``output`` is called with what it prints.

    A LateError when it is not done after ``timeout`` seconds, another BedError when the kernel died of it.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bellwire-bed-") as name:
        place = Path(name)
        initramfs = place / "initramfs"
        initramfs.write_bytes(_initramfs(tools, image, command, size, folder or Path.cwd()))
        log, status = place / "console", place / "status"
        words = [*tools.qemu, "-machine", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        words += ["-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", str(size.cpus)]
        words += ["-object", f"memory-backend-memfd,id=ram,size={size.memory}M,share=on"]
        words += ["-m", f"{size.memory}M", "-machine", "memory-backend=ram"]
        words += ["-kernel", os.fspath(image.file), "-initrd", os.fspath(initramfs)]
        words += ["-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}"]
        words += ["-chardev", f"socket,id=host,path={place / 'host'}"]
        words += ["-device", "vhost-user-fs-pci,chardev=host,tag=host,queue-size=1024"]
        words += ["-chardev", "file,id=output,path=/dev/stdout", "-chardev", f"file,id=status,path={status}"]
        words += ["-device", "virtio-serial-pci", "-device", "virtserialport,nr=1,chardev=output"]
        words += ["-device", "virtserialport,nr=2,chardev=status", "-device", "virtio-rng-pci"]
        words += ["-serial", f"file:{log}"]
        with _sharing(tools, place), _running(words, tools, place) as qemu:
            in_time = _follow(qemu, output, start + timeout)
        printed = log.read_text(errors="replace").replace("\r\n", "\n") if log.exists() else ""
        if console is not None:
            console(printed.encode())
        if not in_time:
            raise LateError(f"not done after {timeout:.0f} s", _tail(printed))
        answer = status.read_text().strip() if status.exists() else ""
        if not answer:
            complaint = (place / "qemu").read_text(errors="replace").strip()
            how = f"the bed's kernel ended before the command did (QEMU {ending(qemu.returncode)})"
            raise BedError(f"{how} {complaint}".strip(), _tail(printed))
        return Outcome(int(answer), printed, time.monotonic() - start)


def _initramfs(tools: Toolbox, image: Image, command: Sequence[str], size: Size, folder: Path) -> bytes:
    modules = tools.kernel.load_order(image.modules)
    settings = {"MODULES": " ".join(modules), "SCRATCH": f"{size.memory // 2}M"}
    environment = {"HOME": os.environ.get("HOME", "/root"), "PATH": os.environ.get("PATH", PATH), "BELLWIRE_BED": "1"}
    lines = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    lines += [f"cd {shlex.quote(os.fspath(folder))} || exit 125", f"exec {shlex.join(command)}"]
    files: dict[str, bytes | Path] = {
        "init": INIT,
        "bin/busybox": tools.busybox,
        "bed/settings": "".join(f"{key}={shlex.quote(value)}\n" for key, value in settings.items()).encode(),
        "bed/command": "\n".join([*lines, ""]).encode(),
    }
    files |= {f"bed/modules/{name}.ko": module for name, module in modules.items()}
    return archive(files, {"bin/sh": "busybox"})


@contextlib.contextmanager
def _sharing(tools: Toolbox, place: Path) -> Iterator[None]:
    """The host's root, for reading only."""
    path = place / "host"
    words = [*tools.virtiofsd, "--socket-path", os.fspath(path), "--shared-dir", "/", "--readonly", "--sandbox", "none"]
    words += ["--seccomp", "none", "--cache", "always", "--rlimit-nofile", "0", "--log-level", "error"]
    words += ["--no-announce-submounts"]  # an overlay cannot lie above what mounts itself
    with _running(words, tools, place, "virtiofsd") as server:
        deadline = time.monotonic() + 20
        while not listens(path):
            if server.poll() is not None or time.monotonic() > deadline:
                raise BedError("virtiofsd does not serve", (place / "virtiofsd").read_text(errors="replace").strip())
            time.sleep(0.01)
        yield


@contextlib.contextmanager
def _running(
    words: Sequence[str], tools: Toolbox, place: Path, name: str = "qemu"
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block; what it complains about is in the file ``name``."""
    with (place / name).open("wb") as log:
        process = subprocess.Popen(
            words,
            env=tools.qemu_environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
        )
        try:
            with process:
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, MANY_FILES)
                try:
                    yield process
                finally:
                    process.kill()
        finally:
            process.wait()


def _follow(process: subprocess.Popen[bytes], output: Callable[[bytes], object], deadline: float) -> bool:
    """Pass on what it prints until it ends; whether it did so by itself."""
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), process.kill)
    timer.start()
    try:
        stream: IO[bytes] | None = process.stdout
        assert stream is not None
        while data := stream.read(1 << 16):
            output(data)
        process.wait()
    finally:
        timer.cancel()
        timer.join()
    return time.monotonic() < deadline


def _tail(console: str) -> str:
    return "\n".join(console.strip().splitlines()[-TAIL:]) or "(the kernel has printed nothing)"
