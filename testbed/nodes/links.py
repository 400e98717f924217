"""Names of links on the fabric: readable where they fit, derived where they don't."""

from __future__ import annotations

from hashlib import sha256

LONGEST = 15  #: characters of a link's name (IFNAMSIZ of linux/if.h is 16, with the final NUL)


def port_name(machine: str, index: int) -> str:
    """The name of a machine's port on the fabric, by the number of its link.

    >>> port_name("node1", 0), port_name("node1", 2)
    ('node1', 'node1.2')
    """
    return link_name(machine if index == 0 else f"{machine}.{index}")


def link_name(wanted: str) -> str:
    """The name itself if a link can have it, or else one that is derived from it.

    A derived one begins as no node's name does, and is the same at each call.

    >>> link_name("node1.1"), link_name("a-longer-name.100")
    ('node1.1', '_4ce34643c50330')
    """
    if len(wanted) <= LONGEST:
        return wanted
    return f"_{sha256(wanted.encode()).hexdigest()[: LONGEST - 1]}"
