"""The board of a PC around a `Machine`: what an operating system wants beside vCPUs, memory and a PCI bus."""

from __future__ import annotations

from bellwire_vmm.board.board import Board

__all__ = ["Board"]
