"""``bellwire replay``: a device goes again through what ``bellwire run --record`` has recorded, without a guest."""

from __future__ import annotations

import argparse
import keyword
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bellwire import OptionError, PciDevice
from bellwire.recording import BadRecording, Outcome, Record, Recorded, read_head, replay
from bellwire.serve.blame import told
from bellwired import terminal
from bellwired.commands import show
from bellwired.commands.capture import opened
from bellwired.commands.completion import KINDS, completed
from bellwired.commands.export import write
from bellwired.errors import CommandError
from bellwired.find import bundled, find_device
from bellwired.places import Places
from bellwired.release import release
from bellwired.sources import is_path
from bellwired.workers.captures import WHOLE

TEST = '''\
"""{name} answers as it did when it was recorded."""

from pathlib import Path

{load}
from bellwire.recording import replay

RECORDING = Path(__file__).with_name({recording!r})


def test_{name}_answers_as_recorded() -> None:
    outcome = replay(RECORDING, {kind}{options})
    assert outcome.inputs == {inputs}
    assert [str(each) for each in outcome.differences] == []
'''


def add_parsers(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "replay",
        help="take a device again through what was recorded, without a guest, and compare its answers",
        description="Takes a device through a recording that `bellwire run --record` has made: every access, ring and "
        "DMA of the guest, with no guest. Says where the device answers differently, and ends with status 1 then. "
        "The device's code runs outside any box.",
        parents=[shared],
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the recording")
    device = parser.add_argument(
        "device",
        nargs="?",
        metavar="DEVICE|FILE.py",
        help="the device, as bellwire run takes it; without it, the bundled device that was recorded",
    )
    completed(device, KINDS)
    parser.add_argument(
        "-o",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set an option of the device to another value than the recorded one. Options with paths must be given",
    )
    parser.add_argument("--to-test", type=Path, metavar="FILE", help="write a test for pytest that does the same")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """``bellwire replay FILE [DEVICE]``."""
    try:
        return _run(arguments)
    except BadRecording as error:
        raise CommandError(f"{arguments.file}: {error}") from None


def _run(arguments: argparse.Namespace) -> int:
    with arguments.file.open("rb") as file:
        recorded = read_head(file)
    if arguments.device is None and recorded.device not in bundled():
        raise CommandError(f"the recorded device, {recorded.device!r}, is not a bundled one", "name its file: FILE.py")
    folders = Places.of(arguments.config_dir, arguments.runtime_dir).plugins
    kind = find_device(arguments.device or recorded.device, folders)
    options = _options(recorded, kind, arguments.options)
    if arguments.to_test is not None:
        _check_place(arguments.to_test, arguments.file)
        _check_module(arguments.device or "", arguments.file)
    if not arguments.json:
        print(terminal.line(f"{arguments.file}: recorded of {recorded.device}, replayed with {kind.name}"))
    try:
        with told(f"{kind.__name__}.__init__"):
            outcome = replay(arguments.file, kind, **options)
    except OptionError as error:
        raise CommandError(str(error), "-o KEY=VALUE gives an option another value than the recorded one") from None
    _tell(arguments, recorded, outcome)
    if not outcome.inputs:
        raise BadRecording("no input is in the recording, so nothing was compared")
    if arguments.to_test is not None:
        write(arguments.to_test, _test(arguments, kind, options, outcome))
        if not arguments.json:
            print(terminal.line(f"{arguments.to_test}: written"))
    return 1 if outcome.differences else 0


def recorder(arguments: argparse.Namespace, device: PciDevice, stack: ExitStack) -> Record:
    """The filter that records for ``bellwire run --record FILE``."""
    (fd,) = stack.enter_context(opened(arguments.record, 1))
    record = Record(device, os.dup(fd), WHOLE, named=arguments.device, release=release())
    if record.files.ended:
        record.files.close()
        raise CommandError(f"{arguments.record}: {record.files.ended}")
    return record


def _options(recorded: Recorded, kind: type[PciDevice], given: list[str]) -> dict[str, str]:
    """The recorded options, and those that are given in their place.

    A recorded path is never used: the device would write to the very files that it had then.
    """
    values: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise CommandError(f"-o {text}: expected KEY=VALUE")
        values[key] = value
    declared = kind.layout.options
    for key, value in recorded.options.items():
        if key in values or key not in declared or value == declared[key].text(declared[key].default):
            continue
        if "/" in value or isinstance(declared[key].default, Path):
            hint = f"give a copy, as it was before the recording: -o {key}=COPY; or -o {key}= for none"
            raise CommandError(f"it was recorded with {key}={value}, and a replay may write to it", hint)
        values[key] = value
    return values


def _tell(arguments: argparse.Namespace, recorded: Recorded, outcome: Outcome) -> None:
    if arguments.json:
        found = [each._asdict() for each in outcome.differences]
        show.as_json({"recorded": recorded.device, **outcome._asdict(), "differences": found})
        return
    for each in outcome.differences:
        print(terminal.line(str(each)))
    end = (
        ""
        if outcome.complete
        else "; the recording has no end: its writer was killed, or its file or the disk was full"
    )
    said = f"{len(outcome.differences)} differences" if outcome.differences else "identical"
    print(f"{outcome.inputs} inputs, {outcome.outputs} answers compared: {said}{end}")


def _check_place(test: Path, recording: Path) -> None:
    folder = recording.absolute().parent
    if test.absolute().parent != folder:
        raise CommandError(f"--to-test {test}: the test lies beside its recording, in {folder}", "move one of them")
    if os.path.lexists(test):
        raise CommandError(f"--to-test: {test} exists already", "choose another name, or move it away")


def _check_module(device: str, recording: Path) -> None:
    """A test imports the device's module, so the file lies beside it, and its name is one of a module."""
    named = Path(device.partition(":")[0])
    if not is_path(device):
        return
    if not named.stem.isidentifier() or keyword.iskeyword(named.stem):
        raise CommandError(f"--to-test: the test cannot import {named}", "rename it: letters, digits and _")
    if named.resolve().parent != recording.resolve().parent:
        hint = f"copy the recording to {named.resolve().parent}"
        raise CommandError(f"--to-test: the test imports {named}, so the recording must lie beside it", hint)


def _test(arguments: argparse.Namespace, kind: type[PciDevice], options: dict[str, str], outcome: Outcome) -> str:
    """A test that does the same. It lies beside the recording."""
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    named = (arguments.device or "").partition(":")[0]
    module = Path(named).stem if is_path(named) else kind.__module__
    load = f"from {module} import {kind.__qualname__}"
    name = kind.name.replace("-", "_")
    return TEST.format(
        name=name,
        recording=arguments.file.name,
        load=load,
        kind=kind.__qualname__,
        options=given,
        inputs=outcome.inputs,
    )
