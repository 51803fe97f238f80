"""A Linux guest's whole session with its nvme, captured: tshark takes every message apart, and finds none malformed."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from attached import Device
from bellwired.guest.archive import ArchiveError
from capture.reading import packets
from capture.test_dissector import BAD
from capture.test_events import strict, told
from capture.tshark import fetch_tshark
from linux import Outcome

pytestmark = pytest.mark.guest
SESSION = """
n=0; until [ -e /dev/nvme0n1 ]; do n=$((n + 1)); [ $n -lt 200 ] || exit 9; usleep 50000; done
dd if=/dev/urandom of=/dev/nvme0n1 bs=64k count=64 oflag=direct 2>/dev/null || exit 1
dd if=/dev/nvme0n1 of=/dev/null bs=64k count=64 iflag=direct 2>/dev/null || exit 2
"""


def test_tshark_decodes_the_nvme_session_of_a_linux_guest(linux: Callable[..., Outcome], tmp_path: Path) -> None:
    try:
        tshark = fetch_tshark()
    except (ArchiveError, OSError) as error:
        pytest.skip(f"no tshark could be provided: {error}")
    written, capture = tmp_path / "nvme.pcapng", tmp_path / "copy.pcapng"
    timeline = tmp_path / "nvme.json"
    flags = ("--capture", str(written), "--timeline", str(timeline))
    outcome = linux(SESSION, Device("nvme", {"size": "64M"}, flags=flags))
    assert outcome.status == 0
    shutil.copyfile(written, capture)  # the device runs on
    captured = packets(capture)
    rows = tshark.fields(capture, ["frame.protocols", "vfio_user.command", "vfio_user.register"], tmp_path)
    assert len(rows) == len(captured) > 500
    assert tshark.run("-r", capture, "-Y", BAD, home=tmp_path) == ""
    protocols = Counter(row["frame.protocols"].split(":")[-1] for row in rows)
    assert set(protocols) == {"vfio-user", "bellwire"}
    commands = {int(row["vfio_user.command"]) for row in rows if row["vfio_user.command"]}
    assert commands >= {1, 2, 3, 4, 5, 7, 8, 9, 10}
    events = tshark.fields(capture, ["bellwire.kind", "bellwire.outcome"], tmp_path, "bellwire")
    assert Counter(row["bellwire.kind"] for row in events)["5"] > 100
    assert "1" in {row["bellwire.outcome"] for row in events}
    shown = {name for phase, name in told(strict(timeline.read_text() + "]")) if phase == "i"}
    assert {"MSIX 0", "MSIX 1", "reset", "client comes"} <= shown
    named = {row["vfio_user.register"] for row in rows}
    assert named >= {"cap", "vs", "cc", "csts", "aqa", "asq", "acq"}
