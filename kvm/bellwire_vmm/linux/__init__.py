"""An unmodified Linux as the guest: reading its kernel, and starting it as a boot loader would."""

from __future__ import annotations

from bellwire_vmm.linux.guest import Kernel, Linux, read_kernel

__all__ = ["Kernel", "Linux", "read_kernel"]
