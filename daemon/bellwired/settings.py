"""The configuration files, decoded: bellwired.toml for the daemon, one file for each device."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import reprlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from bellwired.box.calls import WORDS, unknown
from bellwired.box.users import span_of
from bellwired.errors import SettingsError
from bellwired.places import Places, warn_of_what_is_not_read
from bellwired.sources import is_path
from bellwired.toml_file import Place, parsed

DEVICES, DAEMON, SUFFIX = "devices.d", "bellwired.toml", ".toml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")

SIZE = re.compile(r"([0-9]+)([KMGT]?)")
PERCENT = re.compile(r"([1-9][0-9]{0,5})%")

Restart = Literal["on-failure", "always", "no"]
Level = Literal["debug", "info", "warning", "error"]
Seconds = Annotated[float, Meta(ge=0.01, le=86400)]
Mode = Annotated[str, Meta(pattern="^0?[0-7]{3}$", description="Permissions of its socket, octal.")]
Count = Annotated[int, Meta(ge=0, le=1000)]
Maps = Annotated[int, Meta(ge=16, le=57344)]
LONGEST = 86400.0  # seconds
Patience = Annotated[float, Meta(ge=0, le=LONGEST)]
HANG = 2.0  # seconds: QEMU gives up on an access after 5
DEATHS = 10
Microseconds = Annotated[int, Meta(ge=0, le=1000)]


Filters = list[dict[str, bool | int | float | str]]


class Device(Struct, frozen=True, kw_only=True, rename="kebab"):
    """A device's file, ``devices.d/NAME.toml``."""

    device: Annotated[
        str,
        Meta(
            description="A bundled device, entry point or plugin by name; or a Python file or package by its path, "
            "from where this file lies."
        ),
    ]
    options: Annotated[
        dict[str, bool | int | float | str], Meta(description="The device's own options, as its plugin declares them.")
    ] = {}
    filters: Annotated[
        Filters,
        Meta(description="Filters between the guest and the device, the first on the guest's side: name, arguments."),
    ] = msgspec.field(name="filter", default_factory=list)
    socket: Annotated[
        str, Meta(description="Where it listens, in the runtime folder or by a full path; NAME.sock unless given.")
    ] = ""
    mode: Mode = "0600"
    owner: Annotated[str, Meta(description="The user that its socket belongs to; the daemon's own unless given.")] = ""
    group: Annotated[str, Meta(description="The group that its socket belongs to; the daemon's own unless given.")] = ""
    restart: Annotated[Restart, Meta(description="When to start another worker after one has ended by itself.")] = (
        "on-failure"
    )
    log_level: Annotated[Level, Meta(description="What its worker logs.")] = "info"
    autostart: Annotated[bool, Meta(description="Whether it starts with the daemon.")] = True
    enabled: Annotated[bool, Meta(description="Whether it may be started at all; bellwire disable says no.")] = True
    io_fd_entry: Annotated[
        Literal[40, 48], Meta(description="Bytes of a GET_REGION_IO_FDS entry: ratified, or libvfio-user's.")
    ] = 40
    dialect: Annotated[
        Literal["ratified", "draft-2021"],
        Meta(description="The text of the protocol that it speaks: ratified, or the draft of January 2021."),
    ] = "ratified"
    busy_poll: Annotated[
        Microseconds, Meta(description="Microseconds that its worker may look for work before it sleeps; 0: none.")
    ] = 0
    max_maps: Annotated[Maps, Meta(description="Maps of its memory that a client may have at a time.")] = 16384
    hello_timeout: Annotated[
        Patience, Meta(description="Seconds for a client to send VERSION, before it is disconnected; 0: no limit.")
    ] = 10.0
    hang_timeout: Annotated[
        Patience,
        Meta(
            description="Seconds in which its worker gets on with nothing of what a client wants, before it is killed "
            "and another goes on with the client; 0: no limit. QEMU gives up on an access after 5."
        ),
    ] = HANG
    sandbox: Annotated[
        list[str],
        Meta(description="What its box allows in addition: sockets, network, processes, files, or a system call."),
    ] = []
    sandbox_read: Annotated[list[str], Meta(description="Files and folders that it may read in addition.")] = []
    sandbox_write: Annotated[
        list[str], Meta(description="Files and folders that it may read, write and make files in, in addition.")
    ] = []
    user: Annotated[
        str, Meta(description="The user of its worker, by name or number; it takes CAP_SETUID and CAP_SETGID.")
    ] = ""
    memory_max: Annotated[
        str, Meta(description="The most memory of its worker, as in 512M; no limit unless given.")
    ] = ""
    tasks_max: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="The most threads and processes of its worker, in its control group or with its own user; "
            "0: no limit.",
        ),
    ] = 0
    cpu_quota: Annotated[
        str,
        Meta(description="The most processor time of its worker, as in 150%: one and a half; no limit if not given."),
    ] = ""

    def __post_init__(self) -> None:
        """Refuse words that no box knows, and sizes that are none."""
        wrong = unknown(self.sandbox)
        if wrong:
            raise ValueError(
                f"sandbox: {', '.join(wrong)}: expected {', '.join(WORDS)}, or the name of a system call of x86-64"
            )
        if self.dialect != "ratified" and self.io_fd_entry != 40:
            raise ValueError(f"io-fd-entry = {self.io_fd_entry}: it goes with the ratified dialect, not {self.dialect}")
        if self.memory_max and not SIZE.fullmatch(self.memory_max):
            raise ValueError(f"memory-max = {self.memory_max!r}: expected bytes, as in 512M")
        if self.cpu_quota and not PERCENT.fullmatch(self.cpu_quota):
            raise ValueError(f"cpu-quota = {self.cpu_quota!r}: expected percent of one processor, as in 150%")

        for each in self.filters:
            if not isinstance(each.get("name"), str) or not each["name"]:
                raise ValueError('a [[filter]] has no name: expected name = "trace", for example')

    @property
    def memory_limit(self) -> int:
        """``memory_max`` in bytes; 0 without a limit."""
        found = SIZE.fullmatch(self.memory_max)
        return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]] if found else 0

    @property
    def cpu_percent(self) -> int:
        """``cpu_quota`` in percent of one processor; 0 without a limit."""
        found = PERCENT.fullmatch(self.cpu_quota)
        return int(found[1]) if found else 0

    @property
    def starts(self) -> bool:
        """Whether it starts by itself."""
        return self.autostart and self.enabled


class Daemon(Struct, frozen=True, kw_only=True, rename="kebab"):
    """The daemon's file, ``bellwired.toml``."""

    control_group: Annotated[str, Meta(description="Members of this group may look, but change nothing.")] = ""
    metrics: Annotated[str, Meta(description="OpenMetrics at unix:PATH or ADDRESS:PORT; off unless given.")] = ""
    metrics_mode: Annotated[str, Meta(pattern="^0?[0-7]{3}$", description="Permissions of its UNIX socket, octal.")] = (
        "0666"
    )
    metrics_group: Annotated[str, Meta(description="The group that its UNIX socket belongs to.")] = ""
    worker_users: Annotated[
        str, Meta(description="The users of workers whose device names none, as FIRST-LAST; each name has its own.")
    ] = ""
    log_level: Annotated[Level, Meta(description="What the daemon logs.")] = "info"
    ping_interval: Annotated[Seconds, Meta(description="Between two pings of each worker.")] = 5.0
    ping_timeout: Annotated[
        Seconds, Meta(description="A worker that does not answer for so long is killed, and another started.")
    ] = 15.0
    start_timeout: Annotated[
        Seconds, Meta(description="A worker that does not accept clients for so long after its start is killed.")
    ] = 30.0
    restart_delay: Annotated[
        Seconds, Meta(description="Before the first restart; each further one in a row waits twice as long.")
    ] = 0.1
    restart_delay_max: Annotated[Seconds, Meta(description="The longest wait before a restart.")] = 30.0
    restart_limit: Annotated[
        Count, Meta(description="Restarts within restart-window after which a device is given up.")
    ] = DEATHS
    restart_window: Annotated[Seconds, Meta(description="See restart-limit.")] = 300.0
    stop_timeout: Annotated[Seconds, Meta(description="For a worker to end by itself, before it is killed.")] = 10.0

    def __post_init__(self) -> None:
        """Refuse a range of users that is none."""
        if self.worker_users:
            span_of(self.worker_users)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration. ``errors`` has the files that cannot be used; they do not affect the others."""

    daemon: Daemon
    devices: dict[str, Device]
    sources: dict[str, Path]
    errors: dict[str, SettingsError]
    faults: tuple[SettingsError, ...] = ()
    """What is wrong with bellwired.toml. Each key with a fault has its default in ``daemon``."""
    disabled: frozenset[str] = frozenset()
    """The names in ``errors`` whose files disable the device all the same."""
    since: float = field(default_factory=time.time)
    """When it was read, in seconds since the epoch."""


def load(places: Places) -> Settings:
    """Read all files. A CommandError says which folder cannot be read."""
    warn_of_what_is_not_read()
    main = places.file(DAEMON)
    daemon, faults = tolerant(main) if main else (Daemon(), ())
    devices: dict[str, Device] = {}
    sources: dict[str, Path] = {}
    errors: dict[str, SettingsError] = {}
    disabled = set()
    for path in places.files(DEVICES, SUFFIX):
        name = path.name.removesuffix(SUFFIX)
        sources[name] = path
        try:
            if not NAME.fullmatch(name):
                raise SettingsError(f"{path}: a device's name has letters, digits and _ . @ -, at most 64")
            devices[name] = device(path, drop_ins(places, name))
        except SettingsError as error:
            errors[name] = error
            if _disabled([path, *drop_ins(places, name)]):
                disabled.add(name)
    return Settings(daemon, devices, sources, errors, faults, frozenset(disabled))


def tolerant(path: Path) -> tuple[Daemon, tuple[SettingsError, ...]]:
    """The usable keys of a ``bellwired.toml``, and what is wrong with the others. Those have their defaults.

    A default is never less strict than what the file can say: nobody else may look, and there are no metrics. One bad
    key about metrics turns them off as a whole. The exception is ``worker-users``: without it, workers run as the
    daemon's user, and the rest of their boxes stays.
    """
    try:
        content, place = parsed(path)
    except SettingsError as error:
        return Daemon(), (error,)
    values: dict[str, Any] = {}
    faults, bad = [], []
    for key, value in content.items():
        try:
            values |= _values({key: value}, Daemon, place)
        except SettingsError as error:
            faults.append(error)
            bad.append(key)
    if any(key.startswith("metric") for key in bad):
        values["metrics"] = ""
    return Daemon(**values), tuple(faults)


def used(places: Places) -> Iterator[Path]:
    """The files in effect, bellwired.toml first."""
    main = places.file(DAEMON)
    if main:
        yield main
    for path in places.files(DEVICES, SUFFIX):
        yield path
        yield from drop_ins(places, path.name.removesuffix(SUFFIX))


def drop_ins(places: Places, name: str) -> list[Path]:
    """The drop-ins ``devices.d/NAME.toml.d/*.toml`` in effect. Each overrides those before it."""
    return list(places.files(f"{DEVICES}/{name}{SUFFIX}.d", SUFFIX))


def device(path: Path, over: Iterable[Path] = ()) -> Device:
    """Read a device's file. The drop-ins ``over`` it replace single keys and single options.

    A relative path of the device starts at the file's folder.
    """
    content, place = parsed(path)
    values = _values(content, Device, place)
    for each in over:
        content, place = parsed(each)
        more = _values(content, Device, place)
        more["options"] = {**values.get("options", {}), **more.get("options", {})}
        values |= more
    made = _complete(values, Device, str(path))
    return (
        msgspec.structs.replace(made, device=str(path.absolute().parent / made.device))
        if is_path(made.device)
        else made
    )


def _disabled(files: Iterable[Path]) -> bool:
    """Whether the last of the readable files that sets ``enabled`` sets it to false."""
    enabled: Any = True
    for file in files:
        with contextlib.suppress(SettingsError):
            enabled = table(file).get("enabled", enabled)
    return enabled is False


Table = TypeVar("Table", Device, Daemon)


def read(path: Path, kind: type[Table]) -> Table:
    """Read and decode one file."""
    content, place = parsed(path)
    return _complete(_values(content, kind, place), kind, str(path))


def table(path: Path) -> dict[str, Any]:
    """The table in a TOML file."""
    return parsed(path)[0]


def decode(content: dict[str, Any], kind: type[Table], where: str) -> Table:
    """Decode a table. Checks each key by itself, so that an error can name it."""
    return _complete(_values(content, kind, lambda _: where), kind, where)


def _values(content: dict[str, Any], kind: type[Table], place: Place) -> dict[str, Any]:
    """The values by the names of ``kind``'s fields."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    hints = get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in content.items():
        field = fields.get(key)
        if field is None:
            near = difflib.get_close_matches(key[:64], fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(fields))}"
            raise SettingsError(f"{place(key)}: unknown key {key[:64]}", hint)
        try:
            values[field.name] = msgspec.convert(value, hints[field.name])
            _check(value)
        except msgspec.ValidationError as error:
            told = f"{key} = {_short.repr(value)}: {_expected(hints[field.name], error)}"
            raise SettingsError(f"{place(key)}: {told}") from None
    return values


def _complete(values: dict[str, Any], kind: type[Table], where: str) -> Table:
    for each in msgspec.structs.fields(kind):
        if each.required and each.name not in values:
            raise SettingsError(f"{where}: {each.encode_name} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None


def _check(value: Any) -> None:
    """Refuse numbers that TOML has and JSON lacks, and texts that can be no path."""
    for each in value.values() if isinstance(value, dict) else [value]:
        if isinstance(each, float) and not math.isfinite(each):
            raise msgspec.ValidationError("Expected a finite number")
        if isinstance(each, int) and not -(1 << 63) <= each < 1 << 64:
            raise msgspec.ValidationError("Expected a number of at most 64 bits")
        if isinstance(each, str) and "\0" in each:
            raise msgspec.ValidationError("Expected text without NUL")


def plain(table: Device | Daemon) -> dict[str, Any]:
    """The settings as a TOML file, every key with its value."""
    built: dict[str, Any] = msgspec.to_builtins(table)
    return built


def _expected(hint: Any, error: msgspec.ValidationError) -> str:
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return f"expected {' or '.join(map(str, words))}" if words else str(error).replace("`", "")


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 200
