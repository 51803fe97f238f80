"""docs/observing/view.svg: what ``bellwire view`` shows of a device that a client has just used: ``make picture``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from vfio_user import Client

PICTURE = Path(__file__).parent.parent / "docs" / "observing" / "view.svg"
BELLWIRE = [sys.executable, "-m", "bellwired"]


def draw() -> None:
    """Serve ``edu``, have it compute, and draw it."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "edu.sock")
        words = [
            "run",
            "edu",
            "--name",
            "edu",
            "--socket-path",
            str(socket),
            "--runtime-dir",
            folder,
            "--ready-fd",
            "1",
        ]
        with subprocess.Popen([*BELLWIRE, *words], stdout=subprocess.PIPE) as serving:
            try:
                assert serving.stdout is not None
                serving.stdout.readline()
                with Client.connect(socket) as client:
                    client.write(0, 0x04, (0x1234_5678).to_bytes(4, "little"))
                    client.write(0, 0x08, (10).to_bytes(4, "little"))
                    view = ["view", "edu", "--runtime-dir", folder, "--screenshot", str(PICTURE)]
                    subprocess.run([*BELLWIRE, *view], check=True)
            finally:
                serving.terminate()


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    draw()
