"""Walks of a cluster: Pod to Pod, Pod to Service, and by a port of the nodes from outside."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from hops import all_listed, changed, checked, devices, end, fine, rules, why

from testbed.walk.request import Request
from testbed.walk.run import walk

if TYPE_CHECKING:
    from k8s.conftest import Cluster
    from testbed.walk.model import Leg, Rule, Walk

PORT, NODE_PORT = 8080, 30080
#: One has one Pod, so that each connection has the same way; the other has none.
DOOR = f"""
apiVersion: v1
kind: Service
metadata: {{name: door}}
spec:
  type: NodePort
  selector: {{door: open}}
  ports: [{{port: {PORT}, targetPort: 80, nodePort: {NODE_PORT}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: wall}}
spec: {{selector: {{wall: open}}, ports: [{{port: {PORT}}}]}}
"""
#: Between the nodes, by each backend of a network plugin.
BETWEEN = {
    "vxlan": ["node1:flannel.1 out", "node1:eth0 out", "lan:node1 in", "lan:node2 out",
              "node2:eth0 in", "node2:flannel.1 in"],
    "routes": ["node1:eth0 out", "lan:node1 in", "lan:node2 out", "node2:eth0 in"],
}  # fmt: skip
FROM_POD = ["node1/default/client:eth0 out", "node1:veth* in", "node1:cni0 in"]
FROM_OUTSIDE = ["outside:eth0 out", "lan:outside in", "lan:node1 out", "node1:eth0 in"]
TO_POD = ["node2:cni0 out", "node2:veth* out", "node2/default/web-2:eth0 in"]


@contextlib.contextmanager
def door(cluster: Cluster) -> Iterator[str]:
    """The address of the Service ``door``, whose only Pod is web-2."""
    cluster.kubectl("label", "pod", "web-2", "door=open")
    cluster.kubectl("apply", "-f", "-", input=DOOR)
    try:
        address = cluster.get("service", "door")["spec"]["clusterIP"]
        again = ["--retry", "120", "--retry-all-errors", "--retry-delay", "1"]
        cluster.on("node1", "curl", "-sf", "-m", "5", *again, f"http://{address}:{PORT}/")
        yield address
    finally:
        cluster.kubectl("delete", "service", "door", "wall")
        cluster.kubectl("label", "pod", "web-2", "door-")


def translated(found: Walk) -> list[dict[str, tuple[str, str]]]:
    return [changed(hop) for leg in found.legs for hop in leg.hops if hop.kind == "conntrack"]


def has(met: Sequence[Rule], *parts: str) -> bool:
    """Tell whether a rule has all these parts in its text."""
    return any(all(part in rule.text for part in parts) for rule in met)


def services_walked(
    cluster: Cluster, between: str, kind_of: Callable[[Rule], str], *, nat: str, masquerade: str
) -> None:
    """Check walks of a cluster with :data:`k8s.conftest.PODS`.

    ``nat`` is a part of the rule that translates a Service's address, ``masquerade`` of the one
    that gives packets from outside an address of the node.
    """
    client, web = (cluster.address(name) for name in ("client", "web-2"))
    with door(cluster) as service, cluster.live() as lab:
        found = checked(lab, "node1/default/client", "node2/default/web-2", Request("tcp", 80))
        there = fine(found)
        assert devices(there) == [*FROM_POD, *BETWEEN[between], *TO_POD]
        assert translated(found) == []
        all_listed(lab, there, kind_of)

        found = checked(lab, "node1/default/client", "default/door", Request("tcp", PORT))
        there = fine(found)
        assert devices(there) == [*FROM_POD, *BETWEEN[between], *TO_POD]
        assert translated(found) == [
            {"dst": (service, web), "dport": (f"{PORT}", "80")},
            {"src": (web, service), "sport": ("80", f"{PORT}")},
        ]
        all_listed(lab, there, kind_of)
        assert has(rules(there), nat, web)
        assert not has(rules(there), masquerade)
        assert sources(there) == {client}

        found = checked(lab, "outside", "10.168.0.2", Request("tcp", NODE_PORT))
        there, back = found.legs
        assert fine(found) is there
        assert devices(there) == [*FROM_OUTSIDE, *BETWEEN[between], *TO_POD]
        (to, source, home, answer) = translated(found)
        assert to == {"dst": ("10.168.0.2", web), "dport": (f"{NODE_PORT}", "80")}
        assert answer["src"] == (web, "10.168.0.2")
        masked = source["src"][1]
        assert (source["src"], home["dst"]) == (("10.168.0.1", masked), (masked, "10.168.0.1"))
        shown = json.loads(cluster.on("node1", "ip", "-j", "route", "get", web))
        assert masked == shown[0]["prefsrc"]  # masquerading takes that of the route
        all_listed(lab, there, kind_of)
        all_listed(lab, back, kind_of)
        assert has(rules(there), nat, web)
        assert has(rules(there), masquerade)

        found = walk(lab, "node1/default/client", "default/wall", Request("tcp", PORT))
        last = end(found)
        assert (str(last.spot), devices(found.legs[0])) == ("node1", FROM_POD)
        assert [rule.verdict.lower() for rule in last.rules] == ["reject"]
        assert "sent port unreachable" in why(last)
        all_listed(lab, found.legs[0], kind_of)


def sources(leg: Leg) -> set[str]:
    """The source addresses of the request itself, without those of what carries it."""
    views = [hop.view for hop in leg.hops if hop.kind == "device" and hop.view is not None]
    return {(view.inside or view).src for view in views}
