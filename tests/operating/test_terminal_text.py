"""No text that others have chosen controls the terminal on which it is shown."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwired import terminal
from bellwired.commands.cli import main
from bellwired.commands.completion import main as complete
from bellwired.notify import ServiceManager
from operating.fake_daemon import NASTY, FakeDaemon, replies
from operating.instance import Instance

CONTROLS = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), *"\u061c\u200e\u200f\u2028\u2029"}
CONTROLS |= {*map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def controls(text: str) -> set[str]:
    return CONTROLS & set(text)


@given(st.text())
def test_a_line_has_no_control_character(text: str) -> None:
    shown = terminal.line(text)
    assert not controls(shown)
    shown.encode()
    assert shown == text or set(text) & CONTROLS or not text.isascii()


@given(st.text())
def test_lines_keep_line_ends_and_tabulators_alone(text: str) -> None:
    assert controls(terminal.lines(text)) <= {"\n", "\t"}
    assert terminal.lines(text).count("\n") == text.count("\n")
    assert terminal.lines(terminal.lines(text)) == terminal.lines(text)


@given(st.text())
def test_of_a_paragraph_only_the_first_line_is_not_indented(text: str) -> None:
    assert all(line.startswith("  ") for line in terminal.paragraph(text).split("\n")[1:])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb", r"a\x0ab"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("\u202e", r"\u202e"),
        ("\udcff", r"\udcff"),
        ("häuser 家", "häuser 家"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert terminal.line(text) == shown


def test_a_guarded_stream_writes_no_control_characters_and_colours_by_its_raw_side_alone() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    guarded = terminal.Guarded(file)
    print("a\x1bb\tc", file=guarded)
    guarded.raw.write("\x1b[31m")
    guarded.close()
    assert file.buffer.getvalue() == b"a\\x1bb\tc\n\x1b[31m"


def test_the_standard_streams_are_guarded_for_a_command_and_not_after_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit):
        main(["list", "\x1b[2J", "--no-such-\x1b[2Jflag"])
    assert (sys.stdout, sys.stderr) == before
    assert not controls(capsys.readouterr().err) - {"\n"}


COMMANDS = [
    ["list"],
    ["list", "*"],
    ["status"],
    ["status", "one"],
    ["regs", "one"],
    ["logs", "one"],
    ["monitor"],
    ["reload"],
    ["set", "one", "a=b"],
    ["stop", "one"],
    ["start", "one"],
    ["qemu-args", "one"],
    ["edit", "one"],
    ["enable", "one"],
    ["cat-config"],
]
"""Every command that shows what a daemon has said."""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_what_a_daemon_says_controls_no_terminal(
    tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")  # so that the output has the escape sequences of a terminal's colours
    monkeypatch.setenv("TERM", "xterm-256color")
    with FakeDaemon(tmp_path / "control") as daemon:
        main([*words, "--runtime-dir", str(tmp_path), "--timeout", "5"])
    said = capsys.readouterr()
    assert daemon.called
    text = COLOURS.sub("", said.out + said.err)
    assert not controls(text) - {"\n"}
    assert not [line for line in text.splitlines() if line.startswith("bellwire: forged")]
    assert "]8;" not in text, "a hyperlink"
    assert "does not understand" not in text, "the answers do not fit the API"


@pytest.mark.parametrize("words", COMMANDS[:9], ids=" ".join)
def test_json_is_ascii_and_tells_the_same_text(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeDaemon(tmp_path / "control"):
        main([*words, "--runtime-dir", str(tmp_path), "--timeout", "5", "--json"])
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.isascii()
    assert not controls(text) - {"\n"}
    assert any(NASTY in each for each in strings(text))


def strings(text: str) -> list[str]:
    """Every string in a sequence of JSON texts."""
    found: list[str] = []

    def walk(value: object) -> None:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(key)
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        walk(value)
        text = text[end:].strip()
    return found


def test_a_plugin_that_cannot_be_used_controls_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/bad.py").write_text(f"raise ValueError({NASTY!r})\n")
    (tmp_path / "plugins/\x1b[2J.py").write_text("")
    main(["plugins", "--config-dir", str(tmp_path)])
    main(["run", str(tmp_path / "plugins/bad.py")])
    main(["run", str(tmp_path / "plugins/\x1b[2J.py")])
    said = capsys.readouterr()
    text = said.out + said.err
    assert r"\x1b[2J" in text
    assert not controls(text) - {"\n"}


def test_configuration_controls_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "devices.d").mkdir()
    (tmp_path / "devices.d/one.toml").write_text(f"device = {json.dumps(NASTY)}\n# \x9b\u202e\n")
    (tmp_path / "devices.d/\x1b[2J.toml").write_text("x = 1")
    for words in (["cat-config"], ["cat-config", "one"], ["check", str(tmp_path / "devices.d/one.toml")]):
        main([*words, "--config-dir", str(tmp_path)])
    said = capsys.readouterr()
    assert not controls(said.out + said.err) - {"\n"}


LOGGING = """
import logging, sys
from bellwired import terminal
from bellwired.logs import to_stderr_or_journal
terminal.guard()
to_stderr_or_journal("info", device="one")
text = sys.argv[1]
logging.getLogger("bellwire").warning("said %s", text)
try:
    raise ValueError(text)
except ValueError:
    logging.getLogger("bellwire").exception("failed")
print(text, file=sys.stderr)
"""


def test_the_log_has_no_control_characters_and_no_line_that_is_not_its_own(tmp_path: Path) -> None:
    text = f"{NASTY}\n[one] CRITICAL bellwire: forged"
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, text], capture_output=True, text=True, check=True, timeout=60, encoding="utf-8"
    )
    assert not controls(done.stderr) - {"\n"}
    records = [line for line in done.stderr.splitlines() if line.startswith("[one] ")]
    assert [line.split()[1] for line in records[:2]] == ["WARNING", "ERROR"]
    assert len(records) == 3, "the last one was printed, and is no record"


@pytest.mark.skipif(not shutil.which("bash"), reason="bash completes")
def test_completion_offers_no_word_that_a_shell_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plugins").mkdir()
    for name in ("$(touch ran)", "`touch ran`", "a;b", "good", "\x1b[2J"):
        (tmp_path / f"plugins/{name}.py").write_text("")
    assert complete(["kinds", "bellwire", "run", "--config-dir", str(tmp_path), ""]) == 0
    words = capsys.readouterr().out
    assert "good" in words
    script = 'compgen -W "$WORDS" -- ""'
    subprocess.run(["bash", "-c", script], env={**os.environ, "WORDS": words}, cwd=tmp_path, check=True, timeout=60)
    assert not (tmp_path / "ran").exists()


def test_a_files_name_tells_the_service_manager_nothing_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))

        async def tell() -> None:
            service = ServiceManager()
            service.tell(STATUS="failed: x\nWATCHDOG=trigger")
            service.close()

        asyncio.run(tell())
        assert manager.recv(1000) == b"STATUS=failed: x\\x0aWATCHDOG=trigger"


def test_completion_runs_no_file_that_a_daemon_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    answers = replies()
    answers["Describe"]["device"]["device"] = str(tmp_path / "script.py")
    monkeypatch.setattr("operating.fake_daemon.replies", lambda: answers)
    with FakeDaemon(tmp_path / "control") as daemon:
        complete(["live_options", "bellwire", "set", "one", "--runtime-dir", str(tmp_path), ""])
    assert "Describe" in daemon.called
    assert not (tmp_path / "ran").exists()


def test_what_a_plugin_prints_in_a_worker_controls_no_terminal(instance: Instance) -> None:
    probe = instance.plugins / "probe.py"
    probe.write_text(f"{probe.read_text()}\nimport sys\nprint('\\x1b[2Jprinted', file=sys.stderr, flush=True)\n")
    instance.configure("one")
    with instance:
        assert instance.said("printed").endswith("\\x1b[2Jprinted\n")
