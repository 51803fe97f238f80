"""The program that runs commands in a guest: a static one of a few KiB, prebuilt, with its sources in C."""

from pathlib import Path

PROGRAM = Path(__file__).parent / "bellwire-agent"
