"""What is wrong on the command line is said in a line or two: what, where, and what may have been meant."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bellwired.commands.cli import main, parser
from daemon.commands import COMMAND

pytestmark = pytest.mark.daemon

MISTAKES = [  # status 2: the usage, and then this
    ("", "the following arguments are required: COMMAND"),
    ("statuss", "there is no command 'statuss'; did you mean status?"),
    ("rnu edu", "there is no command 'rnu'; did you mean run?"),
    ("xyzzy", "there is no command 'xyzzy'; there are run, boot, fuzz-driver, vmm"),
    ("list --jsom", "unrecognized arguments: --jsom; did you mean --json?"),
    ("run edu --sokcet-path x", "; did you mean --socket-path?"),
    ("demo --nope", "unrecognized arguments: --nope\n"),
    ("demo 1", "unrecognized arguments: 1"),
    ("plugins extra", "unrecognized arguments: extra"),
    ("--log-level loud list", "invalid choice: 'loud' (choose from"),
    ("run edu --log-level debgu", "there is no 'debgu'; did you mean debug?"),
    ("--print-completion csh", "did you mean tcsh?"),
    ("--json vmm --guest bell", "--json is for other commands than this"),
    ("--wait run edu", "--wait is for other commands than this"),
    ("--timeout 3 plugins", "--timeout is for other commands than this"),
    ("--runtime-dir", "--runtime-dir: expected one argument"),
    ("list --runtime-dir", "--runtime-dir: expected one argument"),
    ("list --timeout 0", "expected seconds, more than 0 and at most 1000000, got '0'"),
    ("list --timeout soon", "got 'soon'"),
    ("run", "the following arguments are required: DEVICE|FILE.py"),
    ("run edu -o", "argument -o: expected one argument"),
    ("run edu --busy-poll 2000", "--busy-poll: expected 0 to 1000, got '2000'"),
    ("run edu --busy-poll x", "--busy-poll: expected 0 to 1000, got 'x'"),
    ("run edu --fd x", "--fd: expected a number or systemd, got 'x'"),
    ("run edu --fd 3 --socket-path x", "--socket-path: not allowed with argument --fd"),
    ("run edu --socket-path=", "--socket-path: expected a path, got nothing"),
    ("run edu --io-fd-entry 41", "--io-fd-entry: invalid choice: 41"),
    ("run edu --dialect draft", "did you mean draft-2021?"),
    ("run edu --name a/b", "--name: 'a/b': a name has letters, digits"),
    ("run edu --name=", "--name: '': a name has letters, digits"),
    ("start", "expected names of devices, or --all"),
    ("set x", "the following arguments are required: KEY=VALUE"),
    ("regs", "the following arguments are required: name"),
    ("qemu-args", "the following arguments are required: name"),
    ("logs x -n q", "-n/--lines: expected a number, got 'q'"),
    ("new", "the following arguments are required: name"),
    ("new x --kind dma-rng", "there is no 'dma-rng'; did you mean dma-ring?"),
    ("export edu", "the following arguments are required: --as"),
    ("export edu --as c-heder", "there is no 'c-heder'; did you mean c-header?"),
    ("import", "the following arguments are required: FILE"),
    ("import x --diff --check", "--check: not allowed with argument --diff"),
    ("vmm", "one of the arguments --guest --kernel --restore --listen is required"),
    ("vmm --guest bell --kernel x", "--kernel: not allowed with argument --guest"),
    ("vmm --guest bell --memory 1Q", "'1Q': expected a number of MiB, or one that ends in M or G"),
    ("vmm --guest bell --timeout 0", "--timeout: 0: expected more than 0"),
    ("vmm --guest bell --vcpus x", "--cpus/--vcpus: expected 1 to 8, got 'x'"),
    ("vmm --restore x --save y --when=", "--when: expected a text to wait for"),
    ("vmm --guest bell --cpus 0", "--cpus/--vcpus: expected 1 to 8, got '0'"),
    ("vmm --guest bell --cpus 9", "--cpus/--vcpus: expected 1 to 8, got '9'"),
]

FAILURES = [  # status 1
    ("run bel", "there is no device 'bel'\n  did you mean bell?"),
    ("run a --print-capabilities", "there is no device 'a'\n  There are bell"),
    ("run a", "give its file, as in ./a.py\n"),
    ("run ?", "give its file, as in ./mine.py\n"),
    ("run=", "there is no device ''\n  There are bell"),
    ("run edu:x", "edu is one device: there is no 'x' in it\n  ask for edu"),
    ("run .", ".: no device: the folder has no __init__.py"),
    ("run ..", "..: no device: the folder has no __init__.py"),
    ("run /", "/: no device: the folder has no __init__.py"),
    ("run ./nothing", "./nothing: the name of a device's file ends in .py"),
    ("run ./nothing.py", "nothing.py: no such file"),
    ("run edu -o x", "-o x: expected KEY=VALUE"),
    ("run edu -o =3", "-o =3: expected KEY=VALUE"),
    ("run edu -o dma_dela=1", "edu has no option dma_dela: did you mean dma_delay?"),
    ("run edu -o dma_delay=", "dma_delay=: expected a value of type float"),
    ("run edu -o dma_delay=-1", "dma_delay=-1: expected 0 to 3600"),
    ("run edu --fd 99", "--fd 99: not a socket"),
    ("run edu --socket-path /nonexistent/x", "/nonexistent/x: cannot make the socket: No such file or directory"),
    ("run edu --socket-path /tmp", "/tmp: it exists and is not a socket"),
    ("list --runtime-dir /nonexistent", "/nonexistent/control: no daemon is running there"),
    ("--runtime-dir /nonexistent list", "/nonexistent/control: no daemon is running there"),
    (
        "list --config-dir /nonexistent",
        "no such folder\n  --config-dir names the one with devices.d in it",
    ),
    ("status nobody --runtime-dir /nonexistent", "no daemon is running there"),
    ("regs a/b --runtime-dir /nonexistent", "no daemon is running there"),
    ("monitor nobody --runtime-dir /nonexistent", "no daemon is running there"),
    ("set x y --runtime-dir /nonexistent", "y: expected KEY=VALUE"),
    ("export bel --as json", "there is no device 'bel'\n  did you mean bell?"),
    ("import /nonexistent.rdl", "/nonexistent.rdl: no such file"),
    ("check /nonexistent.toml", "/nonexistent.toml: No such file or directory"),
    ("check /tmp", "/tmp: a device's file is called NAME.toml"),
    ("new 1x", "'1x' is no name for a device\n  lower-case letters, digits and _, as in my_nic"),
    ("new class", "'class' is no name for a device"),
    ("vmm --guest nope", "--guest: there is no guest 'nope': there are bell"),
    ("vmm --guest bel", "--guest: there is no guest 'bel': did you mean bell? There are bell"),
    ("vmm --guest ./bell", "--guest: cannot read the guest image bell: No such file or directory"),
    ("vmm --guest bell --initrd x", "--initrd is for --kernel"),
    ("vmm --kernel /etc/passwd", "/etc/passwd: the kernel is neither a bzImage nor an ELF file"),
    ("vmm --kernel /nonexistent", "/nonexistent: No such file or directory"),
    ("vmm --guest bell --parameters /tmp", "/tmp: Is a directory"),
]


def typed(text: str) -> list[str]:
    return ["run", ""] if text == "run=" else text.split()


@pytest.mark.parametrize(("text", "said"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_mistake_on_the_command_line_is_explained(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(typed(text))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("text", "said"), FAILURES, ids=[text for text, _ in FAILURES])
def test_what_cannot_be_done_is_said_in_a_line_and_a_hint(
    text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed(text)) == 1
    error = capsys.readouterr().err
    assert error.startswith("bellwire: ")
    assert said in error
    assert len(error.splitlines()) <= 2


@pytest.mark.parametrize("text", ["--runtime-dir /x list", "list --runtime-dir /x", "list --runtime-dir=/x --json"])
def test_flags_of_several_commands_may_stand_before_the_command(text: str) -> None:
    assert parser().parse_args(text.split()).runtime_dir == Path("/x")


@pytest.mark.parametrize("text", ["--log-level debug list", "list --log-level debug"])
def test_the_log_level_may_stand_on_either_side(text: str) -> None:
    assert parser().parse_args(text.split()).log_level == "debug"


def test_what_stands_after_the_command_counts() -> None:
    assert parser().parse_args(["--runtime-dir", "/x", "list", "--runtime-dir", "/y"]).runtime_dir == Path("/y")


def test_a_terminal_without_greek_letters_gets_all_the_same_help(tmp_path: Path) -> None:
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command in ("run", "demo"):
        done = subprocess.run(
            [*COMMAND, command, "--help"], env=ascii_only, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
