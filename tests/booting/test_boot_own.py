"""``bellwire boot --vmm own``: what it refuses, what it makes of its words, and a kernel of a few instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bellwired.commands import boot_own
from bellwired.commands.cli import parser
from bellwired.errors import CommandError
from bellwired.guest.kernel import Kernel
from bellwired.guest.plan import Plugged
from vmm.kernels import POWER_OFF, bzimage, say


def parse(*words: str) -> Any:
    return parser().parse_args(["boot", "--vmm", "own", *words])


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    """A program that says which commands it has, as busybox does."""
    path = tmp_path / "busybox"
    path.write_text("#!/bin/sh\necho busybox; echo sh; echo mount\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--", "ls"), "a COMMAND"),
        (("--share", "."), "--share"),
        (("--network",), "--network"),
        (("--gdb",), "--gdb"),
        (("--root-port",), "--root-port"),
    ],
)
def test_what_our_vmm_does_not_have_is_refused(words: tuple[str, ...], what: str) -> None:
    with pytest.raises(CommandError, match=f"nothing for {what}") as caught:
        boot_own.check(parse("edu", *words))
    assert "without --vmm own" in caught.value.hint


@pytest.mark.parametrize(
    ("emulates", "why"), [(True, "KVM only emulates a guest's kernel here"), (None, "KVM cannot be used here")]
)
def test_a_machine_whose_kvm_cannot_run_linux_is_told(
    emulates: bool | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot_own, "emulates_kernels", lambda: emulates)
    with pytest.raises(CommandError, match=why):
        boot_own.check(parse("edu"))


def test_where_kvm_runs_linux_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_own, "emulates_kernels", lambda: False)
    boot_own.check(parse("edu", "--cpus", "2"))


def test_the_guest_inserts_the_modules_with_their_parameters(tmp_path: Path, busybox: Path) -> None:
    (tmp_path / "copier.ko").write_bytes(b"a module")
    kernel = Kernel(tmp_path / "kernel", "6.12")
    made = boot_own.initramfs(kernel, busybox, [[str(tmp_path / "copier.ko"), "debug=1"]])
    assert b"insmod /modules/copier.ko debug=1\n" in made
    assert b"a module" in made


@pytest.mark.kvm
def test_a_kernel_runs_until_it_powers_off(tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, console = tmp_path / "kernel", tmp_path / "console"
    image.write_bytes(bzimage(say(b"hello\r\n") + POWER_OFF))
    devices: list[Plugged] = []
    assert boot_own.boot(parse("--console", str(console)), Kernel(image, "6.12"), busybox, [], devices) == 0
    assert console.read_bytes() == b"hello\r\n"
    assert "The guest powered off" in capsys.readouterr().out


@pytest.mark.kvm
def test_a_kernel_goes_on_when_the_file_of_its_console_is_full(
    tmp_path: Path, busybox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "kernel"
    image.write_bytes(bzimage(say(b"hello\r\n") + POWER_OFF))
    devices: list[Plugged] = []
    assert boot_own.boot(parse("--console", "/dev/full"), Kernel(image, "6.12"), busybox, [], devices) == 0
    assert capsys.readouterr().err.count("/dev/full: No space left on device") == 1
