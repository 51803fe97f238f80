"""Closes the box around this process, and reports of what it is made.

The order matters. What needs privileges comes first: control group, namespaces, another user. Then the privileges go,
and with them the right to undo any of it. Landlock comes after all files are made that the box itself has to make. The
seccomp filter comes last, because it refuses the calls by which the rest is done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bellwire import PciDevice
from bellwired.box import calls, landlock, library, limits, namespaces, needs, privileges, seccomp
from bellwired.box.needs import Needs
from bellwired.box.wanted import HERE, MISSING, OFF, Part, Wanted

EPERM = 1


@dataclass
class Box:
    """The box that this process is in."""

    parts: list[Part] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    """Sockets and links that the device makes and cannot remove."""
    listener: int = -1
    """For :class:`bellwired.box.refusals.Refusals` of another process."""

    memory_count: int = -1
    """This process's smaps_rollup, open: a boxed process cannot open it."""

    def add(self, name: str, state: str, about: str, hint: str = "") -> None:
        """Report of a part."""
        self.parts.append(Part(name, state, about, hint))


def needs_of(kind: type[PciDevice] | None, files: Sequence[Path], options: Mapping[str, Any], wanted: Wanted) -> Needs:
    """What the bundled device ``kind`` needs, or a plugin whose first file is one of ``files``."""
    found = needs.of_bundled(kind, options) if kind is not None else needs.of_plugin(files, options)
    needs.granted(found, wanted.words, [Path(each) for each in wanted.read], [Path(each) for each in wanted.write])
    return found


def unprivileged(need: Needs, *, listener: bool = True) -> Box:
    """Enter the part of a box that needs no privilege. A process that was privileged stays so within it."""
    box = Box(made=[str(path.absolute()) for path in need.made])
    privileges.open_page_log()
    privileges.hide_memory()
    box.add("memory", HERE, "no other process may read or trace it; it leaves no core dump")
    privileges.no_new_privileges()
    box.add("no_new_privs", HERE, "no program that it starts gains privileges")
    _landlock(box, need)
    _seccomp(box, need, listener=listener)
    return box


def enter(need: Needs, wanted: Wanted, parent: int) -> Box:
    """Enter the whole box of a worker, which ends with its ``parent``."""
    box = Box(made=[str(path.absolute()) for path in need.made])
    limits.join_group(wanted, box.add)
    limits.limit_itself(wanted, box.add)
    _network(box, need)
    _folders(box, need)
    bound = privileges.bind(need.capabilities)
    _user(box, wanted)
    privileges.die_with_parent(parent)  # a change of the user has undone it
    _capabilities(box, need, bound=bound)
    box.parts += (rest := unprivileged(need)).parts
    box.listener = rest.listener
    return box


def _network(box: Box, need: Needs) -> None:
    if need.network:
        box.add("network", OFF, "it uses the host's network, for a tap or because its file says so")
        return
    try:
        namespaces.own_network()
    except OSError as error:
        about = f"it stays in the daemon's network namespace ({error.strerror}); it can open no socket there"
        box.add("network", MISSING, about, "a namespace of its own takes CAP_SYS_ADMIN")
    else:
        box.add("network", HERE, "an empty network namespace of its own")


def _folders(box: Box, need: Needs) -> None:
    if need.mounts:
        box.add("private /tmp", OFF, "it mounts file systems itself, for its tap")
        return
    try:
        covered = namespaces.private_folders([path for path, _ in [*need.rules, *library.rules()]])
    except OSError as error:
        box.add("private /tmp", MISSING, f"no mount namespace ({error.strerror}): Landlock denies /tmp instead")
        return
    need.rules += [(folder, landlock.FOLDER) for folder in covered]
    if covered:
        rest = "" if len(covered) > 1 else "; Landlock denies the other one"
        box.add("private /tmp", HERE, f"empty folders of its own at {' and '.join(map(str, covered))}{rest}")
    else:
        box.add("private /tmp", OFF, "its files lie in /tmp and /var/tmp; Landlock denies the rest of these")


def _user(box: Box, wanted: Wanted) -> None:
    if wanted.user < 0:
        box.add("user", OFF, f"the daemon's own, {os.geteuid()}", 'user = "NAME" in its file gives it another one')
    else:
        privileges.become(wanted.user, wanted.group)
        box.add("user", HERE, f"user {wanted.user}, group {wanted.group}")
    limits.limit_user(wanted, box.add)


def _capabilities(box: Box, need: Needs, *, bound: bool) -> None:
    try:
        kept = privileges.keep_only(need.capabilities)
    except OSError as error:
        about = f"it keeps all of the daemon's: capset(2) fails ({error.strerror})"
        box.add("capabilities", MISSING, about, "a unit that allows capset: SystemCallFilter=capset")
        return
    about = f"only those that its tap needs ({kept:#x})" if kept else "none"
    box.add("capabilities", HERE, about + (", and none can be gained (bounding set)" if bound and not kept else ""))


def _landlock(box: Box, need: Needs) -> None:
    version = landlock.version()
    hint = "Linux 5.13 or newer with lsm=landlock,..., and a unit that allows landlock_create_ruleset(2) and its family"
    if not version:
        box.add("files", MISSING, "Landlock cannot be had: it reaches all files of its user", hint)
    elif need.mounts:
        box.add("files", OFF, "Landlock forbids the mounts that its tap needs: it reaches all files of its user")
    else:
        landlock.restrict(library.rules(), need.rules, version, network=need.network)
        rules = sorted({(str(path.absolute()), rights) for path, rights in need.rules})
        own = ", ".join(f"{path} ({_rights(rights)})" for path, rights in rules) or "none of its own"
        box.add("files", HERE, f"Landlock {version}: Python's library, and {own}")
        if version < landlock.NEWEST:
            lacks = "signals and abstract sockets (6)" if version >= 5 else "ioctls of devices (5), signals (6)"
            box.add("files, newer", MISSING, f"Landlock {version} does not restrict {lacks}", "Linux 6.12 or newer")


def _seccomp(box: Box, need: Needs, *, listener: bool) -> None:
    if not seccomp.available():
        hint = "a kernel with CONFIG_SECCOMP_FILTER, and a unit that allows seccomp(2)"
        box.add("system calls", MISSING, "seccomp filters cannot be had: it may use every call", hint)
        return
    rules = calls.allowed(need.calls, os.getpid())
    told = "a refused one is logged by its name"
    if listener:
        try:
            box.listener = seccomp.install(seccomp.assemble(rules, seccomp.LISTENER), listener=True)
        except OSError as error:  # another filter of this process has a listener
            listener, told = False, f"a refused one is not logged: {error.strerror}"
    if not listener:
        seccomp.install(seccomp.assemble(rules, seccomp.ERRNO | EPERM), listener=False)
    more = f", with {', '.join(sorted(need.calls))}" if need.calls else ""
    box.add("system calls", HERE, f"seccomp: {len(rules)} are allowed{more}; {told}")


def _rights(rights: landlock.Fs) -> str:
    if landlock.Fs.EXECUTE in rights:
        return "run"
    if rights in (landlock.SOCKETS, landlock.LINKS):
        return "make a socket" if rights == landlock.SOCKETS else "make a link"
    if rights == landlock.NAMES:
        return "names"
    return "write" if landlock.Fs.WRITE_FILE in rights else "read"


def why_refused(error: BaseException | None) -> str:
    """A hint for an error of a boxed device that may come from its box; empty for other errors."""
    seen = 0
    while error is not None and seen < 10:
        if isinstance(error, PermissionError):
            with contextlib.suppress(TypeError):
                where = f" {os.fsdecode(error.filename)}" if error.filename else ""
                return f"perhaps its box refuses{where}: bellwire sandbox says what is in it"
        error, seen = error.__cause__ or error.__context__, seen + 1
    return ""
