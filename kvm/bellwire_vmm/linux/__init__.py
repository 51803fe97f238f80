"""An unmodified Linux as the guest: reading its kernel, and starting it as a boot loader would."""

from __future__ import annotations

from bellwire_vmm.linux.guest import Kernel, Linux, read_kernel
from bellwire_vmm.linux.panic import PanicWatch

__all__ = ["Kernel", "Linux", "PanicWatch", "read_kernel"]
