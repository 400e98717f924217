"""ssh-config: the nodes of a running lab as hosts of OpenSSH's client (ssh_config(5))."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from testbed.exports.base import Export, Exported, Subject, comment, unsaid
from testbed.nodes.attachable import refuse
from testbed.nodes.ssh import sshd

if TYPE_CHECKING:
    from testbed.nodes.base import Login

FILE = "ssh_config"
#: The host key is in the file itself: OpenSSH 8.5 or later reads it by KnownHostsCommand.
HOST = """
Host {node}{address}
  User {user}
  IdentityFile "{key}"
  IdentitiesOnly yes
  ProxyCommand {proxy}
  HostKeyAlias {alias}
  KnownHostsCommand /bin/echo {alias} {host_key}
  UserKnownHostsFile /dev/null
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""
HEAD = """\
# Lab {lab}, by `testbed export --to ssh-config`, for root: ssh -F FILE {node}
# It is valid until the nodes are created again.
"""


class SshConfig(Export):
    """A configuration file of ssh."""

    name = "ssh-config"
    about = "OpenSSH: a configuration file with the nodes of a running lab"
    says: ClassVar[tuple[str, ...]] = (
        "description",
        "networks",
        "links",
        "nodes.*.networks",
        "foreign.nodes",
    )
    reasons: ClassVar[Mapping[str, str]] = {"*": "an SSH configuration has only hosts"}

    def export(self, subject: Subject) -> Exported:
        text = config(subject, list(subject.topology.nodes))
        return Exported(
            {FILE: text}, unsaid(subject.topology, several=False, why=self.reasons["*"])
        )


def config(subject: Subject, names: list[str]) -> str:
    """Return the configuration for some nodes.  Raises NoSuchLab, MachineError, UsageError."""
    topology = subject.topology
    if topology.attached:
        refuse(topology.name, "changed", ": sshd needs files on its nodes")
    nodes = subject.nodes()
    about = comment(topology.description)
    parts = [HEAD.format(lab=topology.name, node=names[0]), f"# {about}\n" if about else ""]
    for name in names:
        addresses = topology.nodes[name].addresses
        address = f"\n  HostName {topology.address(name)}" if addresses else ""
        parts.append(_host(subject, name, address, sshd.login(nodes[name], subject.store)))
    return "".join(parts)


def _host(subject: Subject, name: str, address: str, login: Login) -> str:
    lab = subject.topology.name
    proxy = shlex.join([*subject.testbed, "proxy", "-l", lab, name])
    return HOST.format(
        node=name,
        address=address,
        user=login.user,
        key=str(login.key).replace("%", "%%"),
        proxy=proxy.replace("%", "%%"),
        alias=f"{name}.{lab}",
        host_key=login.host_key,
    )
