"""Sources and cache of binaries and images: cached by content, never installed."""

from testbed.artifacts.store import Entry, Store

__all__ = ["Entry", "Store"]
