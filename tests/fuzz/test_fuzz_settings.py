"""Configuration files: a device's, a drop-in of it, and bellwired.toml, each in a part of the input."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from bellwired import settings
from bellwired.commands.cat_config import origins
from bellwired.errors import CommandError
from bellwired.places import Places
from fuzz.fuzzing import fuzz, mutated

PART = b"\n#--\n"
DEVICE = b'device = "nvme"\nsocket = "/run/x"\nmode = "0660"\nowner = "ada"\nrestart = "always"\nbusy-poll = 20\n'
OPTIONS = b'[options]\nimage = "disk.img"\nsize = 4096\nrate = 0.5\non = true\n'
DAEMON = b'control-group = "x"\nmetrics = "unix:/run/m"\nping-interval = 1.5\nrestart-limit = 3\nlog-level = "info"\n'
SEEDS = [
    PART.join([DEVICE + OPTIONS, b"options.size = 5\n", DAEMON]),
    b'device = "./a.py"\n[options.x]\ny = 1\n[[options.z]]\n',
    b"a = [[[[{}]]]]\nb = 1979-05-27T07:32:00Z\nc = 0x1F\nd = '''\n'''\n",
]


def attack(data: bytes) -> None:
    device, drop_in, daemon = [*data.split(PART, 2), b"", b""][:3]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = Path(folder)
        file, over = root / "devices.d/one.toml", root / "devices.d/one.toml.d/a.toml"
        over.parent.mkdir(parents=True)
        file.write_bytes(device)
        over.write_bytes(drop_in)
        (root / "bellwired.toml").write_bytes(daemon)
        found = settings.load(Places.of(root, root))
        assert set(found.devices) | set(found.errors) <= {"one"}
        for error in (*found.errors.values(), *found.faults):
            assert len(error.in_words) < 2000
        if "one" in found.devices:
            settings.plain(found.devices["one"])
            with contextlib.suppress(CommandError):
                origins([file, over])


test_corpus, test_briefly, test_long = fuzz(attack, mutated(SEEDS), "settings")
