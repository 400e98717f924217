"""Who is who in a cluster: the certificates on its nodes, and the files of its clients.

The authority lives on the node of the control plane and nowhere else, and ends with it.
Each node has what is its own, readable by its root alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.pki import Authority, Pair, key_pair, kubeconfig
from testbed.steps.marks import mark, marked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

MARK = "certificates"
ADMIN = f"{config.FOLDER}/admin.conf"


def install(context: Context, clients: Mapping[str, str]) -> tuple[str, bool]:
    """Give every node of the cluster what it lacks; all anew where the authority is new.

    ``clients`` are users beside Kubernetes' own that ask the API from every node, by the names of
    their files.
    """
    topology = context.topology
    control = config.cluster_of(topology).control_plane
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
    """The authority's certificate and the administrator's pair, from the control plane's node.

    Raises LabError where they have not been made yet.
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
    """What every node has: its kubelet's pairs, and what its other daemons ask the API with."""
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
    """What the control plane's node has beside that."""
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
    """The authority of the cluster, and whether it is a new one."""
    places = (f"{config.PKI}/ca.crt", f"{config.PKI}/ca.key")
    try:
        certificate, key = (node.get(place) for place in places)
        return Authority.load(Pair(certificate, key)), False
    except (FileNotFoundError, ValueError):  # none yet, or one that was cut off
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
