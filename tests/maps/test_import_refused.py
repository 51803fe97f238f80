"""``bellwire import`` of files that the compiler cannot take, and its end by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bellwired.commands.cli import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, where the command runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ("<component/>", "this is no IP-XACT: its root has no namespace"),
        (
            '<component xmlns="http://www.accellera.org/XMLSchema/IPXACT/1685-2014"><memoryMaps><memoryMap><name>m</name>'
            "<addressBlock><name>b</name><baseAddress>BASE</baseAddress></addressBlock></memoryMap></memoryMaps>"
            "</component>",
            "it has a number that cannot be read",
        ),
    ],
)
def test_the_error_says_what_is_wrong_with_xml(
    inside: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "it.xml").write_text(inside)
    assert main(["import", "it.xml"]) == 1
    assert f"bellwire: it.xml: {said}" in capsys.readouterr().err


@pytest.mark.slow  # a process of its own loads the compiler
def test_ctrl_c_ends_the_compiler_which_would_go_on(here: Path) -> None:
    (here / "it.rdl").write_text("addrmap it {};")
    program = """
import os, signal
from systemrdl.compiler import RDLCompiler
from bellwired.commands.cli import main

def interrupted(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass

RDLCompiler.compile_file = interrupted
main(["import", "it.rdl"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_embedded_perl_that_does_not_end_is_an_error(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *words, **options: run(*words, **{**options, "timeout": 0.2}))
    (here / "it.rdl").write_text("<% while (1) {} %> addrmap it {};")
    assert main(["import", "it.rdl"]) == 1
    assert "bellwire: it.rdl: its embedded Perl does not end" in capsys.readouterr().err
