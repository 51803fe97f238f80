"""How a command ends: its exit status, and its errors in one line each, with their hints."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from bellwire import BellwireError
from bellwire_vmm.errors import VmmError
from bellwired.commands import complaints
from bellwired.errors import CommandError
from kvm_ioctls import KvmError
from vfio_user import VfioUserError


def status_of(work: Callable[[], int], *, in_json: bool = False, failed: int = 1) -> int:
    """Do a command's ``work``. Returns its status, which is ``failed`` after an error that a user may cause."""
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of the pipe has left
        return 1
    except (BellwireError, VfioUserError, VmmError, KvmError) as error:
        complaints.errors([error], in_json=in_json)
        return failed
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complaints.errors([CommandError(f"{where}{error.strerror or error}")], in_json=in_json)
        return failed
    except KeyboardInterrupt:
        return 130
    return status


def end_after(work: Callable[[], int]) -> NoReturn:
    """Do the ``work`` of a process that was forked for it, and end the process: its caller's frames are not its own."""
    status = 1
    try:
        status = status_of(work)
    except BaseException:  # noqa: BLE001 the boundary of the process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
