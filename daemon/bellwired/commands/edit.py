"""``bellwire edit``: edit a device's drop-in, which takes effect only if it is valid."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bellwire.paths import Place, check_folder
from bellwired import settings, terminal
from bellwired.commands import drop_in, show
from bellwired.commands.check import examine
from bellwired.commands.completion import DEVICES, completed
from bellwired.errors import CommandError

NAME = "override"
USUAL = ("sensible-editor", "nano", "vi")
MARK = "# ---- nothing counts from here on ----"


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "edit",
        help="change keys of a device's file, by a drop-in that is checked before it takes effect",
        description="Opens the device's drop-in in $VISUAL or $EDITOR, checks the new text and reloads the daemon. "
        "If the text is not valid, the old drop-in stays, and the text is kept for another try. A drop-in "
        "without a key is removed.",
        parents=[shared],
    )
    completed(parser.add_argument("name"), DEVICES)
    parser.set_defaults(command=edit)


def edit(arguments: argparse.Namespace) -> int:
    """``bellwire edit NAME``."""
    daemon = drop_in.configuration(arguments)
    places, name = daemon.places, arguments.name
    file = drop_in.source(places, name)
    over = drop_in.path(places, name, NAME)
    before = drop_in.read(over)
    draft = _draft(name, file, before or "")
    try:
        _run_editor(draft)
        text = _written(draft).partition(MARK)[0].rstrip("\n") + "\n"
        if text.strip() == (before or "").strip():
            _say(arguments, over, "nothing has changed")
        else:
            content = text if _has_keys(text) else None
            running = drop_in.put(
                daemon, name, over, content, lambda: examine(file, settings.drop_ins(places, name), places)
            )
            _say(arguments, over, "it counts" if running else "it counts from the daemon's next start on")
    except CommandError as error:
        raise CommandError(error.in_words, f"nothing has changed; what you wrote is in {draft}") from None
    shutil.rmtree(draft.parent)
    return 0


def _draft(name: str, file: Path, before: str) -> Path:
    """The text for the editor: the present drop-in, and below it the keys that it can change.

    It lies in a folder of its own, which no other user may enter, together with what the editor writes beside it.
    """
    example = "# [options]\n# key = value\n"
    below = "".join(f"# {line}\n" for line in (drop_in.read(file) or "").splitlines())
    draft = Path(tempfile.mkdtemp(prefix=f"bellwire-{name}-"), f"{name}.toml")
    with Place(draft, follow=False) as place:
        place.create(f"{before or example}\n{MARK}\n# {file}:\n{below}".encode())
    return draft


def _run_editor(draft: Path) -> None:
    words = os.environ.get("VISUAL") or os.environ.get("EDITOR") or next(filter(shutil.which, USUAL), "")
    if not words:
        raise CommandError("there is no editor: set EDITOR")
    try:
        status = subprocess.run([*shlex.split(words), str(draft)], check=False).returncode
    except (OSError, ValueError) as error:
        raise CommandError(f"the editor {words!r} cannot be run: {error}") from None
    if status:
        raise CommandError(f"the editor {words!r} ended with status {status}")


def _written(draft: Path) -> str:
    try:
        check_folder(draft.parent)
        with Place(draft, follow=False) as place, open(place.open(os.O_RDONLY), encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise CommandError(f"not TOML: {error}") from None
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from None


def _has_keys(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines())


def _say(arguments: argparse.Namespace, over: Path, outcome: str) -> None:
    if arguments.json:
        show.as_json({"file": str(over), "outcome": outcome})
    else:
        print(terminal.line(f"{over}: {outcome}"))
