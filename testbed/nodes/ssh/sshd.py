"""SSH for nodes without a server: sshd on standard input and output, one process a login.

Nothing listens on the node.  The keys are stored on the node, so they end with it, and root's own
``~/.ssh`` is not used.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from testbed.errors import CommandError, MachineError
from testbed.nodes.base import Login
from testbed.nodes.ssh.keys import pair

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node

PROGRAM = "sshd"  #: the program, and the artifact for nodes that share this machine's files
FOLDER = "/run/testbed/ssh"  # on a node
KEY, HOST, AUTHORIZED, CONFIG, SERVER = (
    f"{FOLDER}/{name}" for name in ("key", "host_key", "authorized_keys", "sshd_config", "server")
)
PRIVATE = 0o600
#: sshd_config(5).  PAM is off because a node has no PAM configuration for sshd.
SETTINGS = f"""\
HostKey {HOST}
AuthorizedKeysFile {AUTHORIZED}
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""
#: sshd's processes before the login run as this user in this folder (sshd(8), FILES).
SEPARATE = """\
mkdir -p -m 755 /run/sshd
grep -q ^sshd: /etc/passwd || echo 'sshd:x:74:65534:sshd:/run/sshd:/usr/sbin/nologin' >>/etc/passwd
"""
#: From OpenSSH 9.8 (10.0), sshd is several programs; arguments: the folder of its files.
HELPERS = {"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"}
HELPERS_FOLDER = "tree/usr/lib/openssh"


def login(node: Node, store: Store) -> Login:
    """Return a login to any node: by its own server, or by sshd that is started for each login.

    Raises MachineError if the node has no sshd and cannot use one of this machine.
    """
    own = node.login()
    if own is not None:
        return own
    try:
        server = node.get(SERVER).decode()
        public = node.get(f"{HOST}.pub").decode()
    except FileNotFoundError:
        server, public = _set_up(node, store)

    def join() -> int:
        argv = [server, "-i", "-f", CONFIG, "-E", f"{FOLDER}/log"]
        return node.attach(argv, tty=False)

    return Login(node.kept(KEY), public, join)


def _set_up(node: Node, store: Store) -> tuple[str, str]:
    server, settings = _server(node, store)
    client, client_public = pair()
    host, host_public = pair()
    node.run(["sh", "-c", SEPARATE])
    node.keep(client.encode(), KEY)
    node.put(host.encode(), HOST, mode=PRIVATE)
    node.put(f"{client_public}\n".encode(), AUTHORIZED, mode=PRIVATE)
    node.put(settings.encode(), CONFIG)
    node.put(host_public.encode(), f"{HOST}.pub")
    node.put(server.encode(), SERVER)  # the last one: with it, the set-up is complete
    return server, host_public


def _server(node: Node, store: Store) -> tuple[str, str]:
    """Return the path of sshd on a node, and its settings."""
    with contextlib.suppress(CommandError):
        return node.run(["sh", "-c", f"command -v {PROGRAM}"]).stdout.strip(), SETTINGS
    if not node.shares_files:
        raise MachineError(
            f"node {node.name} has no SSH server",
            missing=[PROGRAM],
            hint=f"install openssh-server on it, or use `testbed exec {node.name}`",
        )
    program = store.binary(PROGRAM)
    server = node.provide(program)
    here, there = (PurePosixPath(one).parents[1] / HELPERS_FOLDER for one in (program, server))
    found = {key: name for key, name in HELPERS.items() if Path(here, name).exists()}
    return server, SETTINGS + "".join(f"{key} {there / name}\n" for key, name in found.items())
