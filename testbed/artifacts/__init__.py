"""Where binaries and images come from: cached by content, never half-written, never installed."""

from testbed.artifacts.store import Entry, Store

__all__ = ["Entry", "Store"]
