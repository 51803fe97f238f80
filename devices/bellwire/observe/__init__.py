"""Filters that look: the trace, mistakes of drivers, and what a device lacks. See docs/observing.md."""
