"""Our structures, numbers and decoding against the C header that is installed here."""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
import subprocess
from collections.abc import Callable
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from kvm_ioctls import (
    Capability,
    CoalescedRing,
    CoalescedWrite,
    Debug,
    FailEntry,
    Hlt,
    InternalError,
    Interrupted,
    IoapicEoi,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MemoryFlags,
    MmioRead,
    MmioWrite,
    MpState,
    MsrRead,
    MsrWrite,
    Shutdown,
    SystemEvent,
    Unknown,
    requests,
    structs,
)
from kvm_ioctls.exits import ExitReason, decode
from kvm_ioctls.ioctl import Ioctl
from kvm_ioctls.vm import IoEventFlags, IrqfdFlags

HEADER = Path("/usr/include/linux/kvm.h")

C_NAMES: dict[type[ctypes.Structure], str] = {
    structs.MpStateStruct: "kvm_mp_state",
    structs.IrqchipState: "kvm_irqchip",
    structs.GuestDebug: "kvm_guest_debug",
}
C_FIELDS: dict[tuple[type[ctypes.Structure], str], str] = {(structs.GuestDebug, "debugreg"): "arch.debugreg"}
NOT_IN_IT = {structs.Struct, structs.Ioregion, structs.IoeventfdPosting}  # ours, and what was never merged
NEWER_THAN_SOME_HEADERS = {"KVM_EXIT_MEMORY_FAULT", "KVM_IOEVENTFD_FLAG_POST_WRITE"}


def c_name(structure: type[ctypes.Structure]) -> str:
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", structure.__name__).lower()
    return C_NAMES.get(structure, f"kvm_{snake}")


def structures() -> list[type[ctypes.Structure]]:
    found = (thing for thing in vars(structs).values() if isinstance(thing, type))
    return [thing for thing in found if issubclass(thing, ctypes.Structure) and thing not in NOT_IN_IT]


def ioctls() -> list[Ioctl]:
    found = (thing for thing in vars(requests).values() if isinstance(thing, Ioctl))
    return [thing for thing in found if thing.name != "KVM_SET_IOREGION"]


def constants() -> dict[str, int]:
    prefixes: dict[str, type[IntEnum | IntFlag]] = {
        "KVM_CAP_": Capability,
        "KVM_EXIT_": ExitReason,
        "KVM_MEM_": MemoryFlags,
        "KVM_MP_STATE_": MpState,
        "KVM_IOEVENTFD_FLAG_": IoEventFlags,
        "KVM_IRQFD_FLAG_": IrqfdFlags,
    }
    return {prefix + name: int(each) for prefix, kind in prefixes.items() for name, each in kind.__members__.items()}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """Compile statements of C against the header, run them, and return what they print."""
    if not HEADER.exists():
        pytest.skip(f"{HEADER} is not installed (Debian: linux-libc-dev), so nothing to compare with")
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, f"{HEADER} is here but no C compiler is: install gcc to compare our structures with it"
    folder = tmp_path_factory.mktemp("header")

    def run(body: str) -> bytes:
        source, program = folder / "ask.c", folder / "ask"
        source.write_text(
            "#include <linux/kvm.h>\n#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n"
            f"int main(void) {{\n{body}\nreturn 0;\n}}\n"
        )
        subprocess.run([compiler, "-o", program, source], check=True, timeout=60)
        return subprocess.run([program], check=True, timeout=10, capture_output=True).stdout

    return run


def parsed(output: bytes) -> dict[str, int]:
    return {name: int(value) for name, value in (line.rsplit(" ", 1) for line in output.decode().splitlines())}


def test_structures_have_the_headers_size_and_offsets(compiled: Callable[[str], bytes]) -> None:
    lines, ours = [], {}
    for structure in structures():
        name = f"struct {c_name(structure)}"
        ours[name] = ctypes.sizeof(structure)
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field in structure._fields_:
            if field[0].startswith("pad"):
                continue
            member = C_FIELDS.get((structure, field[0]), field[0])
            ours[f"{name}.{member}"] = getattr(structure, field[0]).offset
            lines.append(f'printf("{name}.{member} %zu\\n", offsetof({name}, {member}));')
    assert parsed(compiled("\n".join(lines))) == ours


def test_ioctls_have_the_headers_numbers(compiled: Callable[[str], bytes]) -> None:
    asked = "\n".join(f'printf("{each.name} %lu\\n", (unsigned long){each.name});' for each in ioctls())
    assert parsed(compiled(asked)) == {each.name: each.number for each in ioctls()}


def test_constants_have_the_headers_values(compiled: Callable[[str], bytes]) -> None:
    ours = constants()
    asked = "\n".join(f'#ifdef {name}\nprintf("{name} %d\\n", (int){name});\n#endif' for name in ours)
    asked += "\n" + "".join(  # enumerators, which the preprocessor does not see
        f'printf("KVM_IOEVENTFD_FLAG_{name} %d\\n", 1 << kvm_ioeventfd_flag_nr_{name.lower()});\n'
        for name in ("DATAMATCH", "PIO", "DEASSIGN")
    )
    theirs = parsed(compiled(asked))
    assert theirs == {name: value for name, value in ours.items() if name in theirs}
    assert ours.keys() - theirs.keys() <= NEWER_THAN_SOME_HEADERS


def test_the_ioregion_request_is_what_the_proposal_has() -> None:
    assert requests.SET_IOREGION.number == 0x4040AE49
    offsets = [getattr(structs.Ioregion, field[0]).offset for field in structs.Ioregion._fields_]
    assert offsets == [0, 8, 16, 24, 28, 32, 36]


def page_with(content: bytes) -> mmap.mmap:
    page = mmap.mmap(-1, 3 * 4096)
    page[: len(content)] = content
    return page


NOWHERE = mmap.mmap(-1, mmap.PAGESIZE)  # replies would go there; it is not compared
WRITTEN_BY_C = {
    "run.mmio.phys_addr = 0xd0000004; run.mmio.len = 2; run.mmio.is_write = 1;"
    'memcpy(run.mmio.data, "abcdefgh", 8); run.exit_reason = KVM_EXIT_MMIO;': MmioWrite(0xD0000004, b"ab"),
    "run.mmio.phys_addr = 1ull << 39; run.mmio.len = 8; run.exit_reason = KVM_EXIT_MMIO;": MmioRead(
        1 << 39, 8, NOWHERE
    ),
    "run.io.direction = KVM_EXIT_IO_OUT; run.io.size = 2; run.io.port = 0xcf8; run.io.count = 3;"
    "run.io.data_offset = offsetof(struct kvm_run, io) + 100;"
    'memcpy((char *)&run.io + 100, "123456", 6); run.exit_reason = KVM_EXIT_IO;': IoOut(0xCF8, 2, 3, b"123456"),
    "run.io.direction = KVM_EXIT_IO_IN; run.io.size = 4; run.io.port = 0xcfc; run.io.count = 1;"
    "run.exit_reason = KVM_EXIT_IO;": IoIn(0xCFC, 4, 1, NOWHERE, 0),
    "run.exit_reason = KVM_EXIT_HLT;": Hlt(),
    "run.exit_reason = KVM_EXIT_SHUTDOWN;": Shutdown(),
    "run.exit_reason = KVM_EXIT_INTR;": Interrupted(),
    "run.exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;": IrqWindowOpen(),
    "run.emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION; run.emulation_failure.ndata = 3;"
    "run.emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;"
    'run.emulation_failure.insn_size = 2; memcpy(run.emulation_failure.insn_bytes, "\\xd9\\xe8", 2);'
    "run.exit_reason = KVM_EXIT_INTERNAL_ERROR;": InternalError(1, (1, 0xE8D902, 0), b"\xd9\xe8"),
    "run.internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV; run.internal.ndata = 2;"
    "run.internal.data[0] = 1; run.internal.data[1] = 9; run.internal.data[2] = 7;"
    "run.exit_reason = KVM_EXIT_INTERNAL_ERROR;": InternalError(3, (1, 9), b""),
    "run.fail_entry.hardware_entry_failure_reason = 0x80000021; run.fail_entry.cpu = 5;"
    "run.exit_reason = KVM_EXIT_FAIL_ENTRY;": FailEntry(0x80000021, 5),
    "run.system_event.type = KVM_SYSTEM_EVENT_RESET; run.system_event.ndata = 1;"
    "run.system_event.data[0] = 42; run.exit_reason = KVM_EXIT_SYSTEM_EVENT;": SystemEvent(2, (42,)),
    "run.debug.arch.exception = 1; run.debug.arch.pc = 0x1001; run.debug.arch.dr6 = 0x4000;"
    "run.debug.arch.dr7 = 0x400; run.exit_reason = KVM_EXIT_DEBUG;": Debug(1, 0x1001, 0x4000, 0x400),
    "run.eoi.vector = 0x41; run.exit_reason = KVM_EXIT_IOAPIC_EOI;": IoapicEoi(0x41),
    "run.msr.reason = KVM_MSR_EXIT_REASON_UNKNOWN; run.msr.index = 0x12345;"
    "run.exit_reason = KVM_EXIT_X86_RDMSR;": MsrRead(0x12345, 2, NOWHERE),
    "run.msr.reason = KVM_MSR_EXIT_REASON_UNKNOWN; run.msr.index = 0x12345; run.msr.data = 1ull << 40;"
    "run.exit_reason = KVM_EXIT_X86_WRMSR;": MsrWrite(0x12345, 2, 1 << 40, NOWHERE),
    "run.hypercall.nr = 7; run.exit_reason = KVM_EXIT_HYPERCALL;": Unknown(3, b"\x07" + bytes(63)),
}


def test_what_c_writes_to_struct_kvm_run_decodes_to_the_same(compiled: Callable[[str], bytes]) -> None:
    cases = "\n".join(
        f"memset(&run, 0, sizeof run); {case} fwrite(&run, sizeof run, 1, stdout);" for case in WRITTEN_BY_C
    )
    written = compiled(f"struct kvm_run run;\n{cases}")
    size = len(written) // len(WRITTEN_BY_C)
    for number, expected in enumerate(WRITTEN_BY_C.values()):
        with page_with(written[number * size : (number + 1) * size]) as page:
            assert decode(page) == expected


def test_what_c_writes_to_the_ring_of_coalesced_writes_drains_to_the_same(compiled: Callable[[str], bytes]) -> None:
    written = compiled(
        "union { struct kvm_coalesced_mmio_ring ring; char page[4096]; } u;"
        "memset(&u, 0, sizeof u); struct kvm_coalesced_mmio *last = &u.ring.coalesced_mmio[169];"
        "u.ring.first = 169; u.ring.last = 0;"
        'last->phys_addr = 1ull << 39; last->len = 3; last->pio = 1; memcpy(last->data, "abcdefgh", 8);'
        "fwrite(&u, sizeof u, 1, stdout);"
    )
    taken: list[CoalescedWrite] = []
    CoalescedRing(memoryview(bytearray(written))).drain(taken.extend)
    assert taken == [CoalescedWrite(1 << 39, b"abc", True)]


def test_replies_land_where_c_reads_them(compiled: Callable[[str], bytes]) -> None:
    where = parsed(
        compiled(
            'printf("mmio %zu\\nmsr %zu\\nerror %zu\\n", offsetof(struct kvm_run, mmio.data),'
            "offsetof(struct kvm_run, msr.data), offsetof(struct kvm_run, msr.error));"
        )
    )
    with page_with(b"") as page:
        MmioRead(0, 4, page).reply(b"abcd")
        assert page[where["mmio"] :][:4] == b"abcd"
        MsrRead(0, 0, page).reply(0x1122334455667788)
        assert page[where["msr"] :][:8] == 0x1122334455667788.to_bytes(8, "little")
        MsrWrite(0, 0, 0, page).fail()
        assert page[where["error"]] == 1
        IoIn(0, 2, 2, page, 4096).reply(b"wxyz")
        assert page[4096:4100] == b"wxyz"
