"""Shadow doorbells: KVM stores the value and signals, where it can; otherwise the VMM does so on a KVM exit."""

from __future__ import annotations

from vfio_user import ShadowBell, ShadowIoEventFd, VfioUserError


def bell_of(region: ShadowIoEventFd, *, in_kernel: bool) -> tuple[ShadowBell | None, str]:
    """The bell of a sub-region, mapped. If the VMM must use messages instead: None, and the reason.

    A relay stores in the device's memory, so a device that shrinks its file would end the VMM. A kernel does not mind.
    """
    try:
        bell = ShadowBell(region)
    except VfioUserError as error:
        return None, str(error)
    if in_kernel:
        return bell, ""
    if region.datamatch is not None:
        why = "a shadow ioeventfd with a value to match needs a patched kernel"
    elif not bell.sealed:
        why = "its shadow memory is not sealed against shrinking, and this kernel cannot store there"
    else:
        return bell, ""
    bell.close()
    return None, why
