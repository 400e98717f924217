"""Labs of container networks: created in a second, checked, removed.

``__all__`` is the public interface, described in docs/api.md.  All other modules are private,
except the contracts in :mod:`testbed.nodes.base` and :mod:`testbed.roles.base`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed import errors
    from testbed.api import Lab, follow, lab, labs_running, load
    from testbed.labs.live import LiveContainer, LiveLab
    from testbed.nodes.base import Node, Result
    from testbed.topology import Topology
    from testbed.walk.model import Walk

__version__ = "0.1.0"
__all__ = [
    "Lab",
    "LiveContainer",
    "LiveLab",
    "Node",
    "Result",
    "Topology",
    "Walk",
    "errors",
    "follow",
    "lab",
    "labs_running",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a part of the interface at first use: commands don't need most of it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from testbed import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
