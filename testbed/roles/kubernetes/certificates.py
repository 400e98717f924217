"""The certificates on nodes, and the kubeconfig files of clients.

The authority exists only on the control plane's node and is deleted with it. Each node has only
its own files, readable only by its root.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.marks import mark, marked
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.pki import Authority, Pair, key_pair, kubeconfig
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

MARK = "certificates"
ADMIN = f"{config.FOLDER}/admin.conf"


def install(context: Context, clients: Mapping[str, str]) -> tuple[str, bool]:
    """Install missing certificates on every node.

    All are replaced if the authority is new. ``clients`` are additional users of the API on every
    node, by the names of their files.
    """
    topology = context.topology
    control = KubernetesSection.of(topology).control_plane
    authority, new = _authority(context.node(control))
    mine = hashlib.sha256(authority.pair.certificate).hexdigest()[:12]
    changed = new
    for member in topology.with_role("kubernetes"):
        machine = context.node(member.name)
        wanted = f"{mine} {topology.node_digest(member.name)}"
        if marked(machine, MARK) == wanted:
            continue
        files = node_files(topology, member.name, authority, clients)
        if member.name == control:
            files |= control_files(topology, authority)
        for path, data in files.items():
            machine.put(data, path, mode=0o600)
        mark(machine, MARK, wanted)
        changed = True
    return f"one authority, {len(topology.with_role('kubernetes'))} nodes", changed


def client(node: Node) -> tuple[bytes, Pair]:
    """Return the authority's certificate and the administrator's pair.

    They are read from the control plane's node. Raises LabError if they do not exist yet.
    """
    try:
        said = json.loads(node.get(ADMIN))
        user, cluster = said["users"][0]["user"], said["clusters"][0]["cluster"]
        data = base64.b64decode
        pair = Pair(data(user["client-certificate-data"]), data(user["client-key-data"]))
        return data(cluster["certificate-authority-data"]), pair
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise LabError(
            f"{ADMIN} of {node.name} cannot be read: {error}",
            hint="`testbed up -l LAB` writes it again if the lab is not complete",
        ) from error


def node_files(
    topology: Topology, node: str, authority: Authority, clients: Mapping[str, str]
) -> dict[str, bytes]:
    """Return the files of a node: its kubelet's pairs and kubeconfigs."""
    address = topology.address(node)
    serving = authority.issue(f"system:node:{node}", ["system:nodes"], hosts=[node, address])
    users = {
        "kubelet": authority.issue(f"system:node:{node}", ["system:nodes"]),
        "proxy": authority.issue("system:kube-proxy"),
        **{file: authority.issue(user) for file, user in clients.items()},
    }
    return {
        f"{config.PKI}/ca.crt": authority.pair.certificate,
        **_pair("kubelet", serving),
        **_clients(config.server(topology), authority, users),
    }


def control_files(topology: Topology, authority: Authority) -> dict[str, bytes]:
    """Return the additional files of the control plane's node."""
    tokens = key_pair()
    local = ["localhost", *config.api_hosts(topology)[-1:]]
    return {
        **_pair("apiserver", authority.issue("kube-apiserver", hosts=config.api_hosts(topology))),
        **_pair("apiserver-kubelet", authority.issue("kube-apiserver-kubelet", [ADMINISTRATORS])),
        **_pair("etcd", authority.issue("etcd", hosts=local)),
        f"{config.PKI}/sa.pub": tokens.certificate,
        f"{config.PKI}/sa.key": tokens.key,
        **_clients(
            config.server(topology),
            authority,
            {
                "admin": authority.issue("kubernetes-admin", [ADMINISTRATORS]),
                "controller-manager": authority.issue("system:kube-controller-manager"),
                "scheduler": authority.issue("system:kube-scheduler"),
            },
        ),
    }


ADMINISTRATORS = "system:masters"  # the group with all rights (kubernetes.io, "Using RBAC")


def _authority(node: Node) -> tuple[Authority, bool]:
    """Return the authority of the cluster, and True if it is new."""
    places = (f"{config.PKI}/ca.crt", f"{config.PKI}/ca.key")
    try:
        certificate, key = (node.get(place) for place in places)
        return Authority.load(Pair(certificate, key)), False
    except (FileNotFoundError, ValueError):  # missing, or only partly written
        authority = Authority.new("testbed")
        for place, data in zip(
            places, (authority.pair.certificate, authority.pair.key), strict=True
        ):
            node.put(data, place, mode=0o600)
        return authority, True


def _pair(name: str, pair: Pair) -> dict[str, bytes]:
    return {
        f"{config.PKI}/{name}.crt": pair.certificate,
        f"{config.PKI}/{name}.key": pair.key,
    }


def _clients(server: str, authority: Authority, pairs: Mapping[str, Pair]) -> dict[str, bytes]:
    return {
        f"{config.FOLDER}/{name}.conf": kubeconfig(server, authority.pair.certificate, pair)
        for name, pair in pairs.items()
    }
