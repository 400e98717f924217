"""Ansible: an inventory of a running lab.

Nodes with an SSH server are reached by ssh, all others by a connection plugin beside the
inventory, which needs nothing on the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from testbed.exports.base import Export, Exported, Subject, comment, dump, unsaid
from testbed.nodes.ssh import export as ssh

INVENTORY, SETTINGS, PLUGINS = "inventory.yml", "ansible.cfg", "connection_plugins"
PLUGIN = "testbed"  #: the name of the connection, which Ansible looks up as a file of that name
TEMPORARY = "/tmp/.ansible"  # root's home may be this machine's, which nodes cannot write to
HEAD = """\
# Lab {lab}, by `testbed export --to ansible`, for root: ansible -m ping all
# in this folder, where {settings} names the inventory.
"""
#: Ansible names a kept connection after the host alone, and other labs have hosts of this name.
CONFIGURATION = f"""\
[defaults]
inventory = {INVENTORY}
connection_plugins = {PLUGINS}
interpreter_python = auto_silent
pipelining = True

[ssh_connection]
ssh_args = -o ControlMaster=no
"""


class Ansible(Export):
    """An inventory, its settings, and what its connections need."""

    name = "ansible"
    about = "Ansible: a folder with the inventory of a running lab"
    says: ClassVar[tuple[str, ...]] = (
        "description", "networks", "links", "nodes.*.networks", "nodes.*.roles", "foreign.nodes",
    )  # fmt: skip
    reasons: ClassVar[Mapping[str, str]] = {"*": "an inventory has only hosts and groups"}

    def export(self, subject: Subject) -> Exported:
        topology = subject.topology
        by_ssh = [name for name, node in subject.nodes().items() if node.login() is not None]
        names = [name for name in topology.nodes if name in by_ssh]
        head = HEAD.format(lab=topology.name, settings=SETTINGS)
        if about := comment(topology.description):
            head += f"# {about}\n"
        found = {
            INVENTORY: head + dump(_inventory(subject, names)),
            SETTINGS: CONFIGURATION,
        }
        if names:
            found[ssh.FILE] = ssh.config(subject, names)
        if len(names) < len(topology.nodes):
            source = Path(__file__).with_name("connection.py")
            found[f"{PLUGINS}/{PLUGIN}.py"] = source.read_text(encoding="utf-8")
        return Exported(found, unsaid(topology, several=False, why=self.reasons["*"]))


def _inventory(subject: Subject, by_ssh: list[str]) -> dict[str, Any]:
    topology = subject.topology
    hosts = {name: _host(subject, name, by_ssh=name in by_ssh) for name in topology.nodes}
    # No node of a lab with roles has an underscore in its name, so no group has a host's name.
    groups: dict[str, Any] = {
        f"role_{role.replace('-', '_')}": {
            "hosts": {node.name: {} for node in topology.with_role(role)}
        }
        for role in topology.roles
    }
    common = {
        "testbed_lab": topology.name,
        "testbed_command": list(subject.testbed),
        "testbed_networks": {n.name: n.words for n in topology.networks.values() if n.link < 0},
    }
    return {"all": {"vars": common, "hosts": hosts, **({"children": groups} if groups else {})}}


def _host(subject: Subject, name: str, *, by_ssh: bool) -> dict[str, Any]:
    ports = subject.topology.nodes[name].ports
    about = {"testbed_addresses": {p.network: str(p.address) for p in ports if p.address}}
    if by_ssh:
        return {"ansible_ssh_common_args": f"-F '{{{{ inventory_dir }}}}/{ssh.FILE}'", **about}
    return {"ansible_connection": PLUGIN, "ansible_remote_tmp": TEMPORARY, **about}
