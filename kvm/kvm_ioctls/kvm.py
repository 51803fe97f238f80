"""/dev/kvm itself."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Self

from . import requests
from .cpuid import Cpuid
from .errors import IoctlError, UnavailableError
from .handle import Handle
from .ioctl import invoke
from .vm import Vm

API_VERSION = 12
"""The only version of the API: api.rst 4.1 tells programs to refuse any other."""

_REMEDY = {
    errno.ENOENT: "load kvm_amd or kvm_intel; in a virtual machine, have nested virtualisation turned on",
    errno.EACCES: "join the group that owns it (often `kvm`), or run as root",
    errno.EPERM: "allow the device in this container or service (--device=/dev/kvm, DeviceAllow=/dev/kvm)",
    errno.ENXIO: "the CPU's virtualisation is disabled: turn SVM or VT-x on in the firmware",
    errno.ENODEV: "the CPU's virtualisation is disabled: turn SVM or VT-x on in the firmware",
}


class Kvm(Handle):
    """The system: what this kernel can do, and the maker of virtual machines."""

    @classmethod
    def open(cls, path: str | os.PathLike[str] = "/dev/kvm") -> Self:
        """Open KVM. Raises `UnavailableError`, with a remedy, if that is impossible."""
        try:
            kvm = cls(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            code = error.errno or errno.EIO
            remedy = _REMEDY.get(code, "is this KVM's device node?")
            raise UnavailableError(code, f"cannot open {path}: {os.strerror(code)}; {remedy}") from None
        try:
            version = kvm.api_version()
        except IoctlError as error:
            kvm.close()
            raise UnavailableError(errno.ENOTTY, f"{path} is not KVM: {error.strerror}") from None
        if version != API_VERSION:
            kvm.close()
            raise UnavailableError(
                errno.EPROTO, f"{path} speaks version {version} of the KVM API, expected {API_VERSION}"
            )
        return kvm

    def api_version(self) -> int:
        """KVM_GET_API_VERSION (api.rst 4.1): the version of the API, 12 on every current kernel."""
        return invoke(self.fd, requests.GET_API_VERSION)

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION (api.rst 4.4): 0 for no; 1, or a number that `cap` explains, for yes."""
        return invoke(self.fd, requests.CHECK_EXTENSION, int(cap), cap=int(cap))

    def create_vm(self) -> Vm:
        """KVM_CREATE_VM (api.rst 4.2): a machine with no memory and no CPU."""
        return Vm(invoke(self.fd, requests.CREATE_VM, 0, type=0), self.vcpu_mmap_size())

    def supported_cpuid(self) -> Cpuid:
        """KVM_GET_SUPPORTED_CPUID (api.rst 4.46): the leaves that hardware and KVM can both honour."""
        return Cpuid.fetch(self.fd, requests.GET_SUPPORTED_CPUID)

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE (api.rst 4.5): the bytes of `struct kvm_run` and the pages after it."""
        return invoke(self.fd, requests.GET_VCPU_MMAP_SIZE)

    def msr_index_list(self) -> tuple[int, ...]:
        """KVM_GET_MSR_INDEX_LIST (api.rst 4.3): the MSRs that a guest has and `Vcpu.get_msrs` can read."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(struct.pack("=I", room), 4 + 4 * room)
            try:
                invoke(self.fd, requests.GET_MSR_INDEX_LIST, buffer, nmsrs=room)
            except IoctlError as error:
                (needed,) = struct.unpack_from("=I", buffer)
                if error.errno != errno.E2BIG or needed <= room:
                    raise
                room = needed
            else:
                (count,) = struct.unpack_from("=I", buffer)
                return struct.unpack_from(f"={count}I", buffer, 4)
