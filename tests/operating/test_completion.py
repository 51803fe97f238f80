"""What the shells complete, each asked as it is when somebody presses Tab."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import shtab

from bellwired.commands.cli import parser
from bellwired.commands.completion import ASK
from bellwired.start import main as start
from operating.instance import PATIENCE, Instance

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
SHELLS = ("bash", "zsh", "fish")


def in_bash(script: Path, line: str) -> str:
    words = line.split(" ")
    text = f"""
        source {shlex.quote(str(script))}
        COMP_WORDS=({" ".join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}
        _shtab_bellwire 2>/dev/null
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return subprocess.run(
        ["bash", "--norc", "-c", text], env=ENVIRONMENT, capture_output=True, text=True, check=True
    ).stdout


def in_fish(script: Path, line: str) -> str:
    text = f"source {shlex.quote(str(script))}; complete -C {shlex.quote(line)}"
    environment = {**ENVIRONMENT, "HOME": str(script.parent), "XDG_CONFIG_HOME": str(script.parent)}
    return subprocess.run(["fish", "-c", text], env=environment, capture_output=True, text=True, check=True).stdout


ZSH = """
PS1='% ' LISTMAX=1000
fpath=({folder} $fpath)
autoload -Uz compinit && compinit -u -D
compadd() {{
    local -a found
    builtin compadd -O found "$@"
    print -rl -- $found >> {found}
    builtin compadd "$@"
}}
finished() {{ print -r -- {end} >> {found} }}
zle -N finished
bindkey '^Xf' finished
print -r -- {end} >> {found}
"""
END = "--end--"


def in_zsh(script: Path, line: str) -> str:
    """It completes for somebody at a terminal alone: what it offers there is written down as it comes."""
    folder, found = script.parent, script.parent / "found"
    shutil.copy(script, folder / "_bellwire")
    (folder / "setup").write_text(ZSH.format(folder=shlex.quote(str(folder)), found=shlex.quote(str(found)), end=END))
    found.write_text("")
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-f", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT, start_new_session=True
    )
    os.close(theirs)
    try:
        os.write(ours, f"source {shlex.quote(str(folder / 'setup'))}\n".encode())
        written(ours, found, 1)
        os.write(ours, f"{line}\t\x18f".encode())
        return written(ours, found, 2)
    finally:
        os.killpg(shell.pid, signal.SIGKILL)  # with what it has forked to complete
        shell.wait()
        os.close(ours)


def written(terminal: int, found: Path, ends: int) -> str:
    """What has been found when so many ends are; meanwhile the terminal is read, or the shell would wait for us."""
    deadline = time.monotonic() + PATIENCE
    shown = b""
    while found.read_text().count(END) < ends:
        assert time.monotonic() < deadline, shown.decode()
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 1 << 16)
    return found.read_text()


RUN: dict[str, Callable[[Path, str], str]] = {"bash": in_bash, "zsh": in_zsh, "fish": in_fish}


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """What the shell offers for the end of a line."""
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / f"bellwire.{shell}"
    script.write_text(shtab.complete(parser(), shell))
    return lambda line: RUN[shell](script, line)


@pytest.mark.slow
def test_commands_are_completed(complete: Callable[[str], str]) -> None:
    shown = complete("bellwire d")
    assert all(command in shown for command in ("demo", "disable", "disconnect"))


@pytest.mark.slow
def test_flags_are_completed(complete: Callable[[str], str]) -> None:
    assert "--follow" in complete("bellwire logs --f")


def test_names_of_devices_are_those_that_the_daemon_has(daemon: Instance, complete: Callable[[str], str]) -> None:
    daemon.configure("stair")
    daemon.reload()
    shown = complete(f"bellwire status --runtime-dir {daemon.runtime} st")
    assert all(name in shown for name in ("steady", "stair"))


@pytest.mark.slow
def test_kinds_of_devices_are_those_that_there_are(complete: Callable[[str], str]) -> None:
    shown = complete("bellwire run virtio-")
    assert all(name in shown for name in ("virtio-blk", "virtio-net", "virtio-rng"))


@pytest.mark.slow
def test_micro_guests_are_completed(complete: Callable[[str], str]) -> None:
    shown = complete("bellwire vmm --guest b")
    assert all(name in shown for name in ("bell", "bell3", "blk"))


@pytest.mark.slow
def test_options_of_the_device_that_is_to_run_are_completed(complete: Callable[[str], str]) -> None:
    shown = complete("bellwire run nvme -o s")
    assert all(name in shown for name in ("size", "serial"))


def test_set_completes_what_may_be_set(daemon: Instance, complete: Callable[[str], str]) -> None:
    name = daemon.add('device = "virtio-blk"')
    shown = complete(f"bellwire set --runtime-dir {daemon.runtime} {name} s")
    assert all(option in shown for option in ("size", "shrink"))
    assert "serial" not in shown


# -- what the shells ask the command


def asked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, list[str]]:
    monkeypatch.setattr(sys, "argv", ["bellwire", ASK, *words])
    return start(), capsys.readouterr().out.splitlines()


def test_a_plugin_is_a_kind_that_is_not_run_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/mine.py").write_text("1 / 0")
    status, found = asked(capsys, monkeypatch, "kinds", "bellwire", "run", "--config-dir", str(tmp_path), "")
    assert status == 0
    assert {"edu", "mine"} <= set(found)


@pytest.mark.parametrize(
    "words", [["devices", "--runtime-dir", "/nowhere"], ["options", "run", "nothing"], ["nonsense"], ["live_options"]]
)
def test_what_goes_wrong_is_not_said_in_the_middle_of_a_command_line(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["bellwire", ASK, *words])
    start()
    said = capsys.readouterr()
    assert (said.out.strip(), said.err) == ("", "")


def test_yes_and_no_are_offered_for_what_is_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = asked(capsys, monkeypatch, "options", "run", "nvme")
    assert {"readonly=", "readonly=yes", "readonly=no", "threads=", "threads=4", "image="} <= set(found)
    assert "image=." not in found
