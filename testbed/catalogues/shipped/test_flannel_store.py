"""Document 004, flannel's data store: etcd, or the Kubernetes API.

Lab: two-node.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest

from testbed.roles.etcd import CLIENT_PORT, endpoint
from testbed.roles.flannel.daemon import PREFIX, network_config
from testbed.suites.helpers import READY, await_output, observe_until, rules, undone, wait_until
from testbed.suites.overlay import ThirdHost, overlay, third_host, third_subnet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network

    from testbed.claims.observation import Observation
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Running

API_PORT = 18080
HOST = "third"
FOLDER = "/run/flannel-store"
ASKS_ETCD = b"subnet manager: Etcd"  #: flanneld's log line with its subnet store

#: The part of the Kubernetes API that flanneld uses: its node, a list of all nodes, a watch
#: without events, and patches of the node's annotations.  All of it is in memory.
API = """
import http.server, json, sys, threading, urllib.parse
name, cidr, port = sys.argv[1:]
node = {"kind": "Node", "apiVersion": "v1",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "annotations": {}},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}, "status": {}}

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        print(self.command, self.path, flush=True)

    def say(self, what):
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if url.path != "/api/v1/nodes":
            self.say(node)
        elif "watch" not in query:
            self.say({"kind": "NodeList", "apiVersion": "v1",
                      "metadata": {"resourceVersion": "1"}, "items": [node]})
        else:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            threading.Event().wait()

    def do_PATCH(self):
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        added = patch.get("metadata", {}).get("annotations") or {}
        node["metadata"]["annotations"].update(added)
        self.say(node)

server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
server.daemon_threads = True
print("ready", flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def kubernetes_api(third: ThirdHost, subnet: IPv4Network) -> Iterator[Running]:
    """Run an API server on the third host, and log its requests.

    It knows one node, with this podCIDR.
    """
    argv = ["python3", "-I", "-S", "-c", API, HOST, str(subnet), str(API_PORT)]
    with third.spawn(argv) as running:
        await_output(running, READY)
        yield running


def flanneld(third: ThirdHost, name: str, *options: str) -> Running:
    """Start flanneld on the third host; it writes its lease to ``FOLDER/name``."""
    argv = [
        "env",
        f"NODE_NAME={HOST}",
        third.node.provide(third.lab.context.store.binary("flanneld")),
        f"--subnet-file={FOLDER}/{name}",
        "--iptables-forward-rules=false",
        f"--iface={third.interface}",
        *options,
    ]
    return third.spawn(argv)


def has_lease(third: ThirdHost, name: str) -> bool:
    return third.run(["test", "-s", f"{FOLDER}/{name}"], check=False).ok


@pytest.mark.testbed_changes
@pytest.mark.testbed_claim("flannel-needs-etcd")
@pytest.mark.testbed_needs("etcd", "flannel-vxlan", "gateway", "flannel-defaults")
def test_flannel_needs_etcd_unless_kubernetes_keeps_its_subnets(
    lab: LiveLab, observe: Observation
) -> None:
    subnet = third_subnet(lab)
    config = f"{FOLDER}/net-conf.json"
    by_etcd = (f"--etcd-endpoints={endpoint(lab.topology)}", f"--etcd-prefix={PREFIX}")
    by_kubernetes = (
        "--kube-subnet-mgr",
        f"--kube-api-url=http://127.0.0.1:{API_PORT}",
        f"--net-config-path={config}",
    )
    refuse = f"OUTPUT -p tcp --dport {CLIENT_PORT} -j REJECT --reject-with tcp-reset".split()
    with third_host(lab) as third:
        with third.flanneld() as leased:
            observe.note("flanneld with etcd in reach has leased", str(leased))
        third.run(["mkdir", "-p", FOLDER])
        own = json.dumps(network_config(overlay(lab)))
        third.run(["tee", config], input=own.encode())
        with (
            undone(observe, third, ["iptables", "-A", *refuse], ["iptables", "-D", *refuse]),
            flanneld(third, "etcd", *by_etcd) as without,
            kubernetes_api(third, subnet) as api,
            flanneld(third, "kubernetes", *by_kubernetes) as other,
        ):
            wait_until(
                lambda: has_lease(third, "kubernetes") or ASKS_ETCD in other.err,
                "a lease of flanneld --kube-subnet-mgr",
            )
            started = has_lease(third, "kubernetes")

            def tried(notes: Observation) -> bool:
                found = rules(notes, third, "filter")
                return any(rule.packets for rule in found if rule.target == "REJECT")

            observe_until(observe, tried, "flanneld's try to reach etcd")
            waits = not has_lease(third, "etcd")
            observe.note("flanneld, etcd out of reach", without.err.decode(errors="replace"))
            observe.note("flanneld --kube-subnet-mgr", other.err.decode(errors="replace"))
            observe.note("what it asked the Kubernetes API", api.out.decode())
        if started:
            observe.run(third, ["cat", f"{FOLDER}/kubernetes"])
    observe.holds_when("its subnets are kept in etcd, as is the default: without, it waits", waits)
    observe.fails_when(
        "its subnets are kept by Kubernetes (--kube-subnet-mgr): without any etcd it has "
        f"{subnet}, the node's podCIDR",
        started,
    )
