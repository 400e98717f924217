"""Names of links on the fabric: readable if they fit, otherwise derived from a hash."""

from __future__ import annotations

from hashlib import sha256

LONGEST = 15  #: characters of a link's name (IFNAMSIZ of linux/if.h is 16, with the final NUL)


def port_name(machine: str, index: int) -> str:
    """Return the name of a machine's port on the fabric for a link number.

    >>> port_name("node1", 0), port_name("node1", 2)
    ('node1', 'node1.2')
    """
    return link_name(machine if index == 0 else f"{machine}.{index}")


def link_name(wanted: str) -> str:
    """Return ``wanted`` if it is short enough for a link, else a name derived from it.

    A derived name begins with "_", as no node's name does, and is always the same.

    >>> link_name("node1.1"), link_name("a-longer-name.100")
    ('node1.1', '_4ce34643c50330')
    """
    if len(wanted) <= LONGEST and ":" not in wanted:  # refused by the kernel (dev_valid_name())
        return wanted
    return f"_{sha256(wanted.encode()).hexdigest()[: LONGEST - 1]}"
