"""The identity of a virtual machine: its name, its keys, its link to the cell.

The box does not contain it.  It is a shell script that the machine runs before
any of its services starts (:mod:`testbed.vm.initramfs`).
"""

from __future__ import annotations

import secrets
import shlex
import uuid
from dataclasses import dataclass

from testbed.nodes.ssh.keys import pair

#: The link between a machine and its cell (RFC 3927).  All machines use the same addresses,
#: each on a separate link.
CELL_ADDRESS = "169.254.77.1"
GUEST_ADDRESS = "169.254.77.2"
PREFIX = 30
CELL_MAC = "02:54:00:00:77:01"
GUEST_MAC = "02:54:00:00:77:02"
INTERFACE = "mgmt"
SEED = 64  # bytes of seed for the kernel's random numbers

#: Gives a machine the identity in its variables (:func:`values`).  It starts few programs, because
#: each start takes an emulated machine a twentieth of a second.
SCRIPT = """\
umask 077
test -d /root/.ssh || mkdir /root/.ssh
printf %s "$HOST_KEY" > /etc/ssh/ssh_host_ed25519_key
printf '%s\\n' "$CLIENT_PUBLIC" > /root/.ssh/authorized_keys
printf '%s\\n' "$NAME" > /etc/hostname
printf '127.0.0.1 localhost\\n127.0.1.1 %s\\n' "$NAME" > /etc/hosts
printf '%s\\n' "$MACHINE_ID" > /etc/machine-id
printf '%s\\n' "$HOST_PUBLIC" > /etc/ssh/ssh_host_ed25519_key.pub
chmod 644 /etc/hostname /etc/hosts /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub
"""


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one machine, in OpenSSH's own forms."""

    client: str  #: the private key for logging in
    client_public: str
    host: str  #: the private host key, which identifies the machine
    host_public: str


def make_keys() -> Keys:
    """Generate new keys for one machine."""
    return Keys(*pair(), *pair())


def values(name: str, keys: Keys) -> dict[str, str]:
    """Return the variables of :data:`SCRIPT` for one machine."""
    return {
        "NAME": name,
        "MACHINE_ID": uuid.uuid4().hex,
        "HOST_KEY": keys.host,
        "HOST_PUBLIC": keys.host_public,
        "CLIENT_PUBLIC": keys.client_public,
    }


def script(name: str, keys: Keys) -> str:
    """Return the identity script for a machine that boots, with its variables filled in."""
    given = (f"{word}={shlex.quote(value)}\n" for word, value in values(name, keys).items())
    return "".join(given) + SCRIPT


def seed() -> str:
    """Return the script that seeds the random numbers of a booting machine."""
    return f"printf %s {secrets.token_hex(SEED)} > /dev/urandom\n"


def link(interfaces: int) -> str:
    """Return the script that sets up the link to the cell, after ``interfaces`` other links."""
    batch = [
        f"link set dev eth{interfaces} name {INTERFACE}",
        f"address add {GUEST_ADDRESS}/{PREFIX} dev {INTERFACE}",
        f"link set dev {INTERFACE} up",
    ]
    return f"printf '%s\\n' {shlex.join(batch)} | ip -batch -\n"
