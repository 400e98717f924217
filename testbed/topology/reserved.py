"""Names that have a meaning elsewhere, so that nothing of a lab can have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reserved:
    """Names by a regular expression, and why they cannot be used: "... is <why>"."""

    pattern: str
    why: str


#: inet_aton(3), which getaddrinfo(3) asks first, takes a number, decimal, octal or hexadecimal.
ADDRESSES = Reserved(
    "[0-9]+|0x[0-9a-f]*", "a number, which programs take for an IPv4 address (inet_aton(3))"
)
LOOPBACK = Reserved(
    "localhost|ip6-localhost|ip6-loopback", "the loopback address on every machine (/etc/hosts)"
)
#: The kernel keeps settings for all links and for new ones under these names
#: (net.ipv4.conf.all; devinet_sysctl_register() refuses such a link).
SETTINGS = Reserved("all|default", "a folder of the kernel's settings (net.ipv4.conf.*)")
LO = Reserved("lo", "the loopback interface")
#: When no link has the name, ip(8) takes it for the index (ll_name_to_index() of iproute2).
NUMBERED = Reserved("if[0-9]+", "the link with that index for ip(8)")

LINKS = (SETTINGS, LO, NUMBERED)
#: A node's first port on the fabric has its name, as its cgroups and its host name do.
NODES = (
    Reserved("fabric|br-.*", "the name of a part of the fabric between the nodes"),
    *LINKS,
    ADDRESSES,
    LOOPBACK,
    Reserved("tasks", "a file in every cgroup (version 1)"),
)
#: A container's name is its host name.
CONTAINERS = (ADDRESSES, LOOPBACK)


def why(name: str, reserved: Iterable[Reserved]) -> str:
    """Why a name is reserved; empty if it is not.

    >>> why("lo", LINKS), why("eth0", LINKS)
    ('the loopback interface', '')
    """
    return next((one.why for one in reserved if re.fullmatch(one.pattern, name)), "")


def schema(reserved: Iterable[Reserved]) -> dict[str, Any]:
    """The part of a JSON schema that refuses these names."""
    return {"not": {"pattern": f"^({'|'.join(one.pattern for one in reserved)})$"}}
