"""A machine that moves to another process while its guest runs: both ends."""

from __future__ import annotations

from bellwire_vmm.moving.source import HandedOverError, Moved, Policy, Round, Source
from bellwire_vmm.moving.target import Target

__all__ = ["HandedOverError", "Moved", "Policy", "Round", "Source", "Target"]
