"""What makes one virtual machine differ from another: its name, its keys, its way to us.

Nothing of it is in the box.  It is a shell script that the machine runs before
any service of it starts (:mod:`testbed.vm.initramfs`).
"""

from __future__ import annotations

import secrets
import shlex
import uuid
from dataclasses import dataclass

#: The link between a machine and its cell (RFC 3927); every machine has the same, each its own.
CELL_ADDRESS = "169.254.77.1"
GUEST_ADDRESS = "169.254.77.2"
PREFIX = 30
CELL_MAC = "02:54:00:00:77:01"
GUEST_MAC = "02:54:00:00:77:02"
INTERFACE = "mgmt"
SEED = 64  # bytes that random numbers begin with


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one machine, in OpenSSH's own forms."""

    client: str  #: the private key that opens it
    client_public: str
    host: str  #: the private key that it shows to be itself
    host_public: str


def make_keys() -> Keys:
    """New keys, of this machine only."""
    return Keys(*_pair(), *_pair())


def _pair() -> tuple[str, str]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode()


def script(name: str, keys: Keys) -> str:
    """The script that makes a machine of a box this one."""
    shown = {
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
        "/etc/machine-id": f"{uuid.uuid4().hex}\n",
        "/etc/ssh/ssh_host_ed25519_key.pub": f"{keys.host_public}\n",
    }
    secret = {
        "/etc/ssh/ssh_host_ed25519_key": keys.host,
        "/root/.ssh/authorized_keys": f"{keys.client_public}\n",
    }
    # As few programs as can be: to start one takes an emulated machine a twentieth of a second.
    lines = ["umask 077", "test -d /root/.ssh || mkdir /root/.ssh"]
    lines += [
        f"printf %s {shlex.quote(text)} > {path}" for path, text in {**secret, **shown}.items()
    ]
    lines.append(f"chmod 644 {' '.join(shown)}")
    return "\n".join(lines) + "\n"


def seed() -> str:
    """The script that makes a machine that boots draw other numbers than any before it."""
    return f"printf %s {secrets.token_hex(SEED)} > /dev/urandom\n"


def link(interfaces: int) -> str:
    """The script that sets up the link to us, after ``ethN`` for each of the ``interfaces``."""
    batch = [
        f"link set dev eth{interfaces} name {INTERFACE}",
        f"address add {GUEST_ADDRESS}/{PREFIX} dev {INTERFACE}",
        f"link set dev {INTERFACE} up",
    ]
    return f"printf '%s\\n' {shlex.join(batch)} | ip -batch -\n"
