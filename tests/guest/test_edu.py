"""One program, on QEMU's own edu and on ours: it must not be able to tell them apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import bare
from attached import Device, Served
from bare import Transcript
from bellwired.guest.toolbox import Toolbox
from vfio_user import Command

pytestmark = pytest.mark.guest

BY_MESSAGE = {Command.DMA_READ, Command.DMA_WRITE}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare.build("edu", tmp_path_factory.mktemp("program"))


@pytest.fixture(scope="module")
def expected(tools: Toolbox, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Transcript:
    """What the program has to say of QEMU's own."""
    return bare.run(tools, tmp_path_factory.mktemp("own"), program, arguments=["-device", "edu"])


def test_the_program_gets_to_its_end_on_qemus_own(expected: Transcript) -> None:
    assert expected.code == 0
    assert "bytes copied there and back 0x1000\n" in expected.text
    assert "interrupts until acknowledged 0x4\ninterrupts in idle time 0x0\n" in expected.text
    assert expected.text.endswith("done\n")


def test_ours_is_the_same(
    tools: Toolbox, program: Path, expected: Transcript, serve: Callable[[Device], Served], tmp_path: Path
) -> None:
    edu = serve(Device("edu"))
    assert bare.run(tools, tmp_path, program, [edu]) == expected
    assert not BY_MESSAGE & set(edu.tap.commands())


def test_ours_is_the_same_where_guest_memory_is_not_shared(
    tools: Toolbox, program: Path, expected: Transcript, serve: Callable[[Device], Served], tmp_path: Path
) -> None:
    """The program polls a register during DMA, so that QEMU does not look at DMA messages until that is answered."""
    edu = serve(Device("edu"))
    assert bare.run(tools, tmp_path, program, [edu], shared=False) == expected
    assert set(edu.tap.commands()) >= BY_MESSAGE
