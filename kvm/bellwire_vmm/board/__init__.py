"""The board of a PC around a `Machine`: what an operating system needs beside vCPUs, memory and a PCI bus."""

from __future__ import annotations

from bellwire_vmm.board.board import Board

__all__ = ["Board"]
