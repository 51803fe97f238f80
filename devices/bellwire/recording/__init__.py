"""Recordings: all that came from a guest, in a file, and a device that goes through it again without the guest."""

from bellwire.recording.format import BadRecording, Recorded, read_head
from bellwire.recording.recorder import Record, check_filter
from bellwire.recording.replayer import Difference, Outcome, replay

__all__ = ["BadRecording", "Difference", "Outcome", "Record", "Recorded", "check_filter", "read_head", "replay"]
