"""The leaks of a module are read through the guest. Debian's kernel has no kmemleak, so a stand-in answers here."""

from __future__ import annotations

from typing import Any

import pytest

from bellwired.guest.errors import CommandFailed
from bellwired.guest.leaks import OFF, SCRIPT, read_leaks
from bellwired.guest.machine import Finished
from kernels.test_reports import LEAKS


class Guest:
    """Answers the script as a guest would."""

    def __init__(self, status: int, output: str = "", errors: str = "") -> None:
        self.answer = Finished(status, None, output.encode(), errors.encode())
        self.asked: list[str] = []

    def run(self, command: str, **_: Any) -> Finished:
        self.asked.append(command)
        return self.answer


def test_the_leaks_of_a_module_are_reported() -> None:
    guest: Any = Guest(0, LEAKS)
    (report,) = read_leaks(guest, ["broken"])
    assert report.title == "unreferenced object 0xffff888003a5d300 (size 104)"
    assert guest.asked == [SCRIPT]


def test_a_kernel_without_kmemleak_has_no_leaks() -> None:
    guest: Any = Guest(OFF)
    assert read_leaks(guest) == []


def test_a_file_that_cannot_be_read_is_an_error() -> None:
    guest: Any = Guest(1, errors="cat: read error")
    with pytest.raises(CommandFailed, match="/sys/kernel/debug/kmemleak cannot be read: cat: read error"):
        read_leaks(guest)
