"""Options of ``bellwire vmm`` that name one file twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bellwired.commands.cli import main


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file with content that must stay."""
    path = tmp_path / "kept"
    path.write_bytes(b"content")
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--restore", "--console"),
        ("--kernel", "--console"),
        ("--kernel", "--save"),
        ("--initrd", "--console", "--kernel"),
    ],
)
def test_a_file_that_one_option_reads_is_not_written_by_another(
    options: tuple[str, ...], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for option in options[:2] for word in (option, str(kept))]
    assert main(["vmm", *words, *(word for option in options[2:] for word in (option, "/nonexistent"))]) == 1
    assert f"bellwire: {options[0]} and {options[1]} are the same file: {kept}" in capsys.readouterr().err
    assert kept.read_bytes() == b"content"


@pytest.mark.parametrize("there", [False, True])
def test_figures_do_not_replace_the_save(tmp_path: Path, there: bool, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "saved"
    if there:
        path.touch()
    other = tmp_path / "folder/../saved"
    (tmp_path / "folder").mkdir()
    assert main(["vmm", "--guest", "edu", "--save", str(path), "--json", str(other)]) == 1
    assert f"--save and --json are the same file: {path}" in capsys.readouterr().err


def test_a_hard_link_is_the_same_file(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.link(kept, link := kept.with_name("link"))
    assert main(["vmm", "--restore", str(kept), "--console", str(link)]) == 1
    assert "--restore and --console are the same file" in capsys.readouterr().err


def test_a_vmm_does_not_move_its_guest_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "move.sock")
    assert main(["vmm", "--listen", path, "--migrate-to", path]) == 1
    assert "--listen and --migrate-to are the same file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [("--save", "{kept}"), ("--save", "x", "--console", "/dev/null", "--json", "/dev/null")]
)
def test_one_path_for_two_options_is_fine_where_nothing_is_lost(
    words: tuple[str, ...], kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vmm", "--restore", str(kept), *(word.format(kept=kept) for word in words)]) == 1
    assert "is no saved machine" in capsys.readouterr().err
