"""Names with a meaning elsewhere, which parts of a lab cannot have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reserved:
    """A regular expression for reserved names, and the reason.

    The reason completes the sentence "... is <why>".
    """

    pattern: str
    why: str


#: getaddrinfo(3) first tries inet_aton(3), which accepts decimal, octal and hexadecimal numbers.
ADDRESSES = Reserved(
    "[0-9]+|0x[0-9a-f]*", "a number, which programs take for an IPv4 address (inet_aton(3))"
)
LOOPBACK = Reserved(
    "localhost|ip6-localhost|ip6-loopback", "the loopback address on every machine (/etc/hosts)"
)
#: Names of the kernel's settings for all links and for new links
#: (net.ipv4.conf.all; devinet_sysctl_register() refuses such a link).
SETTINGS = Reserved("all|default", "a folder of the kernel's settings (net.ipv4.conf.*)")
LO = Reserved("lo", "the loopback interface")
#: If no link has the name, ip(8) interprets it as an index (iproute2, ll_name_to_index()).
NUMBERED = Reserved("if[0-9]+", "the link with that index for ip(8)")

#: Links that drivers create in each new network namespace (ip-sysctl.rst, fb_tunnels_only_for_
#: init_net).
TUNNELS = Reserved(
    "(tunl|gre|gretap|erspan|sit|ip6tnl|ip6gre|ip_vti|ip6_vti)0",
    "a tunnel that the kernel may create in every network namespace",
)

LINKS = (SETTINGS, LO, NUMBERED, TUNNELS)
#: A node's name is also that of its first port on the fabric, its cgroups and its host.
NODES = (
    Reserved("fabric|br-.*", "the name of a part of the fabric between the nodes"),
    *LINKS,
    ADDRESSES,
    LOOPBACK,
    Reserved("tasks", "a file in every cgroup (version 1)"),
)
#: A container's name is also its host name.
CONTAINERS = (ADDRESSES, LOOPBACK)


def why(name: str, reserved: Iterable[Reserved]) -> str:
    """Return why a name is reserved; empty if it is not.

    >>> why("lo", LINKS), why("eth0", LINKS)
    ('the loopback interface', '')
    """
    return next((one.why for one in reserved if re.fullmatch(one.pattern, name)), "")


def schema(reserved: Iterable[Reserved]) -> dict[str, Any]:
    """Return the part of a JSON schema that rejects these names."""
    return {"not": {"pattern": f"^({'|'.join(one.pattern for one in reserved)})$"}}
