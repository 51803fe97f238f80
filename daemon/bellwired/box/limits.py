"""The limits of a box: in a control group if there is one, else by resource limits (setrlimit(2)), which do less."""

from __future__ import annotations

import resource
from collections.abc import Callable

from bellwired.box import groups
from bellwired.box.wanted import HERE, MISSING, Wanted

UNIT = "a unit with Delegate=memory cpu pids, as the shipped one has"
Add = Callable[[str, str, str, str], None]
"""Takes a part's name, state, description and hint."""


def join_group(wanted: Wanted, add: Add) -> None:
    """Enter the device's control group, whose limits the manager has set. Raises an OSError if that fails."""
    if not wanted.control_group:
        return
    groups.join(wanted.control_group)
    add("control group", HERE, "its own: all that it has started ends with it", "")
    if wanted.memory_max and "memory" in wanted.controllers:
        most = f"at most {wanted.memory_max >> 20} MiB, files in memory included (memory.max)"
        add("memory-max", HERE, f"{most}; the kernel ends a worker that needs more", "")
    if wanted.cpu_quota and "cpu" in wanted.controllers:
        add("cpu-quota", HERE, f"at most {wanted.cpu_quota}% of one processor's time (cpu.max)", "")
    if wanted.tasks_max and "pids" in wanted.controllers:
        add("tasks-max", HERE, f"at most {wanted.tasks_max} threads and processes (pids.max)", "")


def limit_itself(wanted: Wanted, add: Add) -> None:
    """Limit the memory of this process, if no control group does."""
    if wanted.cpu_quota and "cpu" not in wanted.controllers:
        add("cpu-quota", MISSING, f"its processor time is not limited: {_lack(wanted)}", UNIT)
    if not wanted.memory_max or "memory" in wanted.controllers:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = wanted.memory_max if hard == resource.RLIM_INFINITY else min(hard, wanted.memory_max)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    except (OSError, ValueError) as error:
        hint = f"{UNIT}; or one that allows prlimit64(2): SystemCallFilter=prlimit64"
        add("memory-max", MISSING, f"its memory is not limited: {error}; {_lack(wanted)}", hint)
    else:
        about = f"its private memory is limited to {most >> 20} MiB (RLIMIT_DATA); files in memory are not counted"
        add("memory-max", HERE, about, "")


def limit_user(wanted: Wanted, add: Add) -> None:
    """Limit the threads and processes of this process's user, if no control group limits them. That user is set."""
    if not wanted.tasks_max or "pids" in wanted.controllers:
        return
    if wanted.user > 0:  # the kernel counts by user, and does not count root's
        resource.setrlimit(resource.RLIMIT_NPROC, (wanted.tasks_max, wanted.tasks_max))
        about = f"at most {wanted.tasks_max} threads and processes of user {wanted.user} (RLIMIT_NPROC)"
        add("tasks-max", HERE, about, "")
    else:
        about = f"its threads are not limited: {_lack(wanted)}, and it has no user of its own"
        add("tasks-max", MISSING, about, f'{UNIT}; or user = "NAME" in its file: the kernel counts by user')


def _lack(wanted: Wanted) -> str:
    return wanted.lack or "its control group lacks the controller"
