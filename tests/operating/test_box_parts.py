"""The parts of a box, each by itself: the filter, its lists, Landlock, and what options name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellwire import PciDevice
from bellwire.bundled.nvme import Nvme
from bellwire.bundled.serial import Serial
from bellwire.bundled.vhost import Vhost
from bellwire.bundled.virtio_net import VirtioNet
from bellwired.box import calls, landlock, library, needs, privileges, seccomp
from bellwired.box.calls import GROUPS, SILENT, allowed, remedy, unknown
from bellwired.box.refusals import Refusals
from bellwired.box.seccomp import ALLOW, ERRNO, KILL, LISTENER, assemble, run
from bellwired.box.syscalls import NAMES, NUMBERS
from bellwired.workers import wire
from bellwired.workers.wire import Report
from bellwired.workers.worker_channel import WorkerChannel

PID = 4711
I386 = 0x4000_0003
FILTER = assemble(allowed([], PID), LISTENER)
_REFUSED = """
ptrace process_vm_readv process_vm_writev process_madvise pidfd_open pidfd_getfd pidfd_send_signal kcmp tkill
rt_sigqueueinfo rt_tgsigqueueinfo execve execveat fork vfork unshare setns mount umount2 move_mount open_tree fsopen
fsconfig fsmount fspick mount_setattr pivot_root chroot init_module finit_module delete_module kexec_load
kexec_file_load reboot swapon acct quotactl bpf perf_event_open io_uring_setup io_uring_enter io_uring_register
userfaultfd memfd_secret keyctl add_key request_key name_to_handle_at open_by_handle_at fanotify_init fanotify_mark
inotify_init inotify_init1 inotify_add_watch socket bind connect listen chmod fchmod fchmodat fchmodat2 chown fchown
truncate lchown fchownat utimensat utime setxattr lsetxattr fsetxattr link linkat symlink symlinkat mknod mknodat setuid
setgid setresuid setresgid setgroups capset personality setpriority sched_setaffinity sched_setscheduler
sched_setattr migrate_pages move_pages shmget shmat semget msgget mq_open iopl ioperm modify_ldt syslog sethostname
setdomainname settimeofday clock_settime adjtimex landlock_restrict_self arch_prctl vmsplice lookup_dcookie
remap_file_pages uselib nfsservctl
"""
FORBIDDEN = _REFUSED.split()


def answer(name: str, *arguments: int, code: seccomp.Code = FILTER) -> int:
    return run(code, NUMBERS[name], arguments)


def in_a_child(work: Callable[[], None]) -> int:
    """The status of a child that does ``work``: 0, 1 for an exception, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 the parent sees the status
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("name", FORBIDDEN)
def test_the_base_refuses_what_reaches_others_or_the_kernel(name: str) -> None:
    assert answer(name) == LISTENER


@pytest.mark.parametrize("name", ["read", "epoll_wait", "futex", "openat", "mmap", "rt_sigreturn", "exit_group"])
def test_the_base_allows_what_every_device_does(name: str) -> None:
    assert answer(name) == ALLOW


@given(st.integers(0, (1 << 32) - 1))
def test_the_filter_answers_each_number_as_its_rules_say(number: int) -> None:
    rules = allowed([], PID)
    name = NAMES.get(number, "")
    if number >= seccomp.X32:
        expected = KILL
    elif name in SILENT:
        expected = ERRNO | SILENT[name]
    elif () in rules.get(name, []):
        expected = ALLOW
    else:
        expected = LISTENER  # with no arguments, no check holds that has not been written for zeros
    zeros = {"prlimit64"}
    assert run(FILTER, number) == (ALLOW if name in zeros else expected)


def test_calls_of_other_architectures_end_the_process() -> None:
    assert run(FILTER, NUMBERS["read"], architecture=I386) == KILL
    assert run(FILTER, seccomp.X32 | NUMBERS["read"]) == KILL

    def work() -> None:
        privileges.no_new_privileges()
        seccomp.install(assemble(allowed([], os.getpid()), ERRNO | 1), listener=False)
        ctypes.CDLL(None).syscall(seccomp.X32 | NUMBERS["getpid"])

    assert in_a_child(work) == -signal.SIGSYS


def test_a_filter_fits_the_kernels_limit() -> None:
    assert len(assemble(allowed(GROUPS, PID), LISTENER)) < 4096


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("kill", (PID, 15), (PID + 1, 15)),
        ("tgkill", (PID, 1, 6), (1, 1, 6)),
        ("prlimit64", (0, 7), (PID + 1, 7)),
        ("clone", (0x3D0F00,), (0x11,)),
        ("clone", (0x3D0F00,), (0x3D0F00 | 0x1000_0000,)),
        ("prctl", (15,), (4,)),
        ("prctl", (0x53564D41,), (22,)),
        ("socketpair", (1, 0x80001), (1, 2)),
        ("socketpair", (1, 5), (2, 1)),
        ("ioctl", (0, 0x5421), (0, 0x5412)),
    ],
)
def test_the_filter_looks_at_arguments(name: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert answer(name, *good) == ALLOW
    assert answer(name, *bad) == LISTENER


def test_no_group_allows_what_no_device_may_have() -> None:
    everything = allowed([*GROUPS], PID)
    deep = (
        "seccomp io_uring_setup bpf ptrace userfaultfd perf_event_open keyctl init_module process_vm_writev pidfd_getfd"
    )
    assert not set(deep.split()) & set(everything)


def test_the_word_that_allows_a_call_allows_it() -> None:
    for name in FORBIDDEN:
        word = remedy(name, 2)
        assert answer(name, 2, code=assemble(allowed([word], PID), LISTENER)) == ALLOW


def test_words_that_no_box_knows_are_found() -> None:
    assert unknown(["sockets", "kcmp", "nonsense", "seccomp", "aio"]) == ["nonsense", "seccomp", "aio"]


def test_the_listener_of_a_box_is_closed_when_its_last_process_has_ended() -> None:
    ours, theirs = socket.socketpair()

    def work() -> None:
        privileges.no_new_privileges()
        listener = seccomp.install(FILTER, listener=True)
        socket.send_fds(theirs, [b"."], [listener])

    with ours, theirs:
        assert in_a_child(work) == 0
        _, (listener,), _, _ = socket.recv_fds(ours, 1, 1)
    refusals = Refusals(listener, lambda *_: None)
    assert select.select([refusals], [], [], 0)[0], "it stays ready for ever"
    assert not refusals.answer()
    assert refusals.fileno() == -1


def test_landlock_leaves_what_is_named_and_denies_the_rest(tmp_path: Path) -> None:
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    read, written, other = (tmp_path / name for name in ("read", "written", "other"))
    for path in (read, written, other):
        path.write_text("before")

    def work() -> None:
        privileges.no_new_privileges()
        rules = [(read, landlock.READ), (written, landlock.WRITE)]
        landlock.restrict(library.rules(), rules, landlock.version())
        assert read.read_text() == "before"
        written.write_text("after")
        attempts: list[Callable[[], object]] = [other.read_text, lambda: read.write_text("x"), other.unlink]
        for attempt in attempts:
            with pytest.raises(PermissionError):
                attempt()

    assert in_a_child(work) == 0
    assert (read.read_text(), written.read_text(), other.read_text()) == ("before", "after", "before")


def test_landlock_follows_no_link_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() or not landlock.version():
        pytest.skip("plants a link as another user, against Landlock")
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_text("secret")
    folder.mkdir()
    (folder / "image").symlink_to(secret)
    os.chown(folder, 54321, 54321)
    os.lchown(folder / "image", 54321, 54321)

    def work() -> None:
        privileges.no_new_privileges()
        landlock.restrict(library.rules(), [(folder / "image", landlock.WRITE)], landlock.version())
        with pytest.raises(PermissionError):
            secret.read_text()

    assert in_a_child(work) == 0


def test_a_disk_needs_its_images_alone() -> None:
    found = needs.of_bundled(Nvme, {"image": "/a/one,/b/two", "readonly": True})
    assert found.rules == [(Path("/a/one"), landlock.READ), (Path("/b/two"), landlock.READ)]
    assert found.files == [(Path("/a/one"), False), (Path("/b/two"), False)]
    assert found.calls == {"block"}
    assert needs.of_bundled(Nvme, {"image": "/a", "size": "1M", "direct": "yes"}).files == [(Path("/a"), True)]


def test_a_serial_line_may_make_its_socket_and_nothing_else_there() -> None:
    found = needs.of_bundled(Serial, {"backend": "unix:/run/x/line"})
    assert (Path("/run/x"), landlock.SOCKETS) in found.rules
    assert found.made == [Path("/run/x/line")]
    assert "connecting" not in found.calls


def test_a_tap_keeps_the_hosts_network_and_one_capability() -> None:
    found = needs.of_bundled(VirtioNet, {"tap": "tap0"})
    assert (found.network, found.mounts, found.capabilities) == (True, False, {needs.CAP_NET_ADMIN})
    assert needs.of_bundled(VirtioNet, {"tap": "tap0", "macvtap": "eth0"}).mounts


def test_a_vhost_device_sees_the_folder_of_its_back_end_and_may_connect() -> None:
    found = needs.of_bundled(Vhost, {"backend": "unix:/run/x/fs.sock"})
    assert found.rules == [(Path("/run/x"), landlock.NAMES)]
    assert found.calls == {"connecting"}
    assert found.made == []


@pytest.mark.parametrize(
    ("kind", "options"), [(Vhost, {"backend": "vhost-net:tap0"}), (VirtioNet, {"tap": "tap0", "offload": "vhost-net"})]
)
def test_a_card_whose_packets_the_kernel_moves_opens_its_node_and_the_tap(
    kind: type[PciDevice], options: dict[str, str]
) -> None:
    found = needs.of_bundled(kind, options)
    assert {(Path("/dev/vhost-net"), landlock.WRITE), (needs.TUN, landlock.WRITE)} <= set(found.rules)
    assert (found.calls, found.capabilities) == ({"tap", "vhost"}, {needs.CAP_NET_ADMIN})


def test_the_kernels_vsock_takes_its_node_and_no_network() -> None:
    found = needs.of_bundled(Vhost, {"backend": "vhost-vsock:42"})
    assert found == needs.Needs(rules=[(Path("/dev/vhost-vsock"), landlock.WRITE)], calls={"vhost"})


def test_the_kernels_back_ends_are_asked_for_what_the_device_needs_and_no_more() -> None:
    code = assemble(allowed(["vhost"], PID), LISTENER)
    asked = {request for request in range(0xAF00, 0xB000) if answer("ioctl", 3, request, code=code) == ALLOW}
    assert asked == {0xAF01}
    assert answer("ioctl", 3, 0x4008AF03, code=code) == ALLOW, "SET_MEM_TABLE"
    assert answer("ioctl", 3, 0x4008AF04, code=code) == LISTENER, "SET_LOG_BASE"
    assert answer("ioctl", 3, 0x4008AF03) == LISTENER


def test_wrong_options_need_nothing() -> None:
    assert needs.of_bundled(Nvme, {"image": 3}) == needs.Needs()


def test_a_plugin_gets_its_code_and_the_paths_among_its_options(tmp_path: Path) -> None:
    plugin, image, folder = tmp_path / "mine.py", tmp_path / "disk.img", tmp_path / "roms"
    plugin.write_text("")
    (tmp_path / "beside.py").write_text("")
    image.write_text("")
    folder.mkdir()
    found = dict(
        needs.of_plugin([plugin], {"disk": str(image), "roms": str(folder), "text": "/nonexistent", "n": 3}).rules
    )
    assert found == {
        plugin: landlock.READ, tmp_path: landlock.NAMES, tmp_path / "beside.py": landlock.READ,
        image: landlock.WRITE, folder: landlock.READ,
    }  # fmt: skip


def test_a_link_beside_a_plugin_that_leads_nowhere_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "card.py").touch()
    for name in ("loop.py", "loop"):
        (tmp_path / name).symlink_to(name)
    found = needs.of_plugin([tmp_path / "card.py"], {})
    assert {path for path, _ in found.rules} == {tmp_path, tmp_path / "card.py"}


def test_a_plugin_may_connect_to_a_socket_among_its_options_that_listens_and_else_make_it(tmp_path: Path) -> None:
    place = tmp_path / "sock"
    absent = needs.of_plugin([], {"backend": f"unix:{place}"})
    assert absent.made == [place]
    assert "listening" in absent.calls
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(place))
        nobody_listens = needs.of_plugin([], {"backend": f"unix:{place}"})
        assert nobody_listens.made == [place]
        listener.listen()
        found = needs.of_plugin([], {"backend": f"unix:{place}"})
    assert (found.made, found.calls, found.rules) == ([], {"connecting"}, [(tmp_path, landlock.NAMES)])


def test_every_listed_call_exists() -> None:
    named = {*calls.HOT.split(), *calls.BASE.split(), *(name for rules in GROUPS.values() for name in rules)}
    assert named <= set(NUMBERS)


def test_only_the_first_report_of_a_box_counts_since_a_device_may_send_more() -> None:
    async def exchange() -> list[Report]:
        heard: list[Report] = []
        channel = WorkerChannel("dut", heard.append)
        for number in range(2):
            with open("/dev/null") as file:
                wire.send(channel.theirs, Report("boxed", {"number": number}), [file.fileno()])
        channel.close()
        return heard

    before = os.listdir("/proc/self/fd")
    assert [report.fields["number"] for report in asyncio.run(exchange())] == [0]
    assert len(os.listdir("/proc/self/fd")) == len(before)
