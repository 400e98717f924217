"""Ingress: requests from outside a cluster, and load balancing (document 004).

For every cluster with the add-on ``ingress``, whose controller is Contour with Envoy.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import ssl
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.observe.capture import captures
from testbed.roles.kubernetes.ingress import CLASS
from testbed.roles.kubernetes.pki import Authority
from testbed.suites import helpers
from testbed.suites.cluster import service
from testbed.suites.helpers import (
    READY,
    await_output,
    note,
    patient,
    undone,
)
from testbed.suites.services import wait_led

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from testbed.nodes.base import Node
    from testbed.nodes.place import Place, Runs
    from testbed.roles.kubernetes.pki import Pair
    from testbed.suites.cluster import Cluster

pytestmark = pytest.mark.testbed_needs("ingress", "gateway")

WEB = ("web-1", "web-2")  #: the Pods behind the Service web
NOBODY = "nobody"  #: an IngressClass without controller
#: The controllers that document 004 names, with the default class of each.
NAMED: Mapping[str, str] = {"NGINX": "nginx", "Traefik": "traefik", "HAProxy": "haproxy"}
CLOUD = "203.0.113.10"  # of TEST-NET-3 (RFC 5737): the address that a cloud would assign
MANY = 300  #: requests: enough to tell a quarter of them from half
LESS = 0.375  #: between a quarter and half
TURNS = 20  #: the chance that one of two is always chosen, or strictly in turn, is two in a million
ALL = 120.0  #: seconds for a series of requests: long enough for a busy machine
CLIENTS = tuple(range(101, 117))  #: the last octets of additional client addresses


# -- requests ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP client's result: status 0 without an answer."""

    status: int
    page: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the Pod that answered."""
        return str(self.page.get("name", ""))


def ask(observe: Observation, where: Runs, address: str, url: str, *options: str) -> Answer:
    """Request a page by its host name, resolved to the given address."""
    scheme, _, rest = url.partition("://")
    host, port = rest.partition("/")[0], {"http": 80, "https": 443}[scheme]
    argv = [
        "curl", "-sS", "--noproxy", "*", "--max-time", f"{patient(where, helpers.LATE):g}",
        "--resolve", f"{host}:{port}:{address}", "--write-out", "\n%{http_code}", *options, url,
    ]  # fmt: skip
    body, _, status = observe.run(where, argv, check=False).stdout.rpartition("\n")
    with contextlib.suppress(ValueError):
        return Answer(int(status or 0), json.loads(body))
    return Answer(int(status or 0), {})


def served(
    observe: Observation, outside: Node, cluster: Cluster, url: str, *options: str
) -> list[Answer]:
    """Return the answer of each node's Envoy to a client outside.

    Envoy must know the host first.  A request on the node itself shows that, since nothing on
    the way from outside can block that one.  Raises Unsettled if it never does.
    """
    found = []
    for node in cluster.nodes:
        address = cluster.address(node)

        def heard(node: Node = node, address: str = address) -> bool:
            return ask(Observation(), node, address, url, *options).status == 200

        cluster.until(heard, f"a page of {url} by the Envoy of {node.name}")
        found.append(ask(observe, outside, address, url, *options))
    return found


def names(
    observe: Observation, where: Runs, url: str, count: int, *options: str, seconds: float = ALL
) -> list[str]:
    """Return the server of each request, sequential, each over a new connection."""
    argv = [
        "curl", "-sS", "--noproxy", "*", "--max-time", f"{patient(where, seconds):g}",
        "-H", "Connection: close", *options, f"{url}?[1-{count}]",
    ]  # fmt: skip
    lines = observe.run(where, argv, check=False).stdout.splitlines()
    return [json.loads(line)["name"] for line in lines if line.startswith("{")]


def at(host: str, address: str) -> tuple[str, str]:
    """Return curl's option that resolves a host to an address."""
    return "--resolve", f"{host}:80:{address}"


def in_turn(seen: Sequence[str]) -> bool:
    """Tell whether two servers strictly take turns."""
    return len(set(seen)) == 2 and all(one != other for one, other in itertools.pairwise(seen))


# -- objects -------------------------------------------------------------------


def ingress(
    name: str, rules: Mapping[str, Mapping[str, str]], *, of: str = CLASS, tls: str = ""
) -> dict[str, Any]:
    """Return an Ingress: for each host a Service per path; ``tls`` names a Secret."""
    spec: dict[str, Any] = {
        "ingressClassName": of,
        "rules": [
            {"host": host, "http": {"paths": [_path(*one) for one in paths.items()]}}
            for host, paths in rules.items()
        ],
    }
    if tls:
        spec["tls"] = [{"hosts": list(rules), "secretName": tls}]
    return {"kind": "Ingress", "metadata": {"name": name}, "spec": spec}


def _path(path: str, backend: str) -> dict[str, Any]:
    of = {"service": {"name": backend, "port": {"number": 80}}}
    return {"path": path, "pathType": "Prefix", "backend": of}


def proxy(name: str, host: str, backend: str, **policy: Any) -> dict[str, Any]:
    """Return Contour's own kind of Ingress, which also sets the load balancing."""
    route = {"services": [{"name": backend, "port": 80}], "loadBalancerPolicy": policy}
    return {
        "kind": "HTTPProxy",
        "metadata": {"name": name},
        "spec": {"virtualhost": {"fqdn": host}, "routes": [route]},
    }


def tls_secret(name: str, pair: Pair) -> dict[str, Any]:
    """Return a Secret with a certificate and its key."""
    data = {"tls.crt": pair.certificate, "tls.key": pair.key}
    return {
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": name},
        "data": {file: base64.b64encode(pem).decode() for file, pem in data.items()},
    }


def addresses(cluster: Cluster, name: str) -> list[str]:
    """Return the addresses in an Ingress's status."""
    found = cluster.find("Ingress", name) or {}
    entries = found.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    return [entry.get("ip", "") for entry in entries]


# -- effects of an Ingress -------------------------------------------------------


@pytest.mark.testbed_claim("k8s-ingress-admits-external")
def test_hosts_and_paths_lead_to_different_services(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    hosts = {"one.test": {"/": "web", "/two": "pair"}, "two.test": {"/": "pair"}}
    wanted = {
        "http://one.test/": WEB,
        "http://one.test/two": ("pair",),
        "http://two.test/": ("pair",),
    }
    address = cluster.address(cluster.control)
    before = [ask(observe, outside, address, url).status for url in wanted]
    assert 200 not in before, "something serves these hosts already"
    with cluster.objects(observe, service("pair", app="pair"), ingress("admits", hosts)):
        for url, pods in wanted.items():
            for node, answer in zip(
                cluster.nodes, served(observe, outside, cluster, url), strict=True
            ):
                observe.holds(
                    answer.name in pods,
                    f"{url} asked for at {node.name} from outside: {answer.status} by "
                    f"{answer.name or 'nobody'}, of {', '.join(pods)}",
                )


@pytest.mark.testbed_claim("k8s-ingress-http")
def test_http_comes_to_the_service(cluster: Cluster, outside: Node, observe: Observation) -> None:
    with cluster.objects(observe, ingress("http", {"http.test": {"/": "web"}})):
        for answer in served(observe, outside, cluster, "http://http.test/"):
            observe.holds(answer.name in WEB, f"{answer.status} by {answer.name or 'nobody'}")
            observe.holds(
                answer.page.get("host") == "http.test", "with the host that was asked for"
            )
        other = ask(observe, outside, cluster.address(cluster.control), "http://other.test/")
        observe.holds(other.status == 404, f"a host of no Ingress: {other.status}")


@pytest.mark.testbed_claim("k8s-ingress-https")
def test_https_comes_to_the_service(cluster: Cluster, outside: Node, observe: Observation) -> None:
    authority = Authority.new("a client's authority")
    pair = authority.issue("https.test", hosts=["https.test"])
    file = "/run/checks-authority.pem"
    places = [outside, *cluster.nodes]
    for place in places:
        place.put(authority.pair.certificate, file)
    wanted = ingress("https", {"https.test": {"/": "web"}}, tls="https")
    try:
        with cluster.objects(observe, tls_secret("https", pair), wanted):
            # curl ends the handshake unless the certificate matches the authority and the host.
            found = served(observe, outside, cluster, "https://https.test/", "--cacert", file)
            for answer in found:
                observe.holds(answer.name in WEB, f"{answer.status} by {answer.name or 'nobody'}")
    finally:
        for place in places:
            place.run(["rm", file])


@pytest.mark.testbed_claim("k8s-ingress-load-balancing")
def test_requests_are_spread_over_the_pods(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    with cluster.objects(observe, ingress("spread", {"spread.test": {"/": "web"}})):
        served(observe, outside, cluster, "http://spread.test/")
        for node in cluster.nodes:
            where = at("spread.test", cluster.address(node))
            seen = names(observe, outside, "http://spread.test/", TURNS, *where)
            observe.holds(
                set(seen) == set(WEB), f"{TURNS} requests at {node.name}: {dict(Counter(seen))}"
            )


#: Arguments: an address, a host, an authority.  Prints the server's certificate and answer.
VISIT = """
import hashlib, json, socket, ssl, sys
address, host, authority = sys.argv[1:]
context = ssl.create_default_context(cadata=authority)
with socket.create_connection((address, 443), 10) as plain:
    with context.wrap_socket(plain, server_hostname=host) as secure:
        shown = secure.getpeercert(binary_form=True)
        asked = "GET / HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n" % host
        secure.sendall(asked.encode())
        answer = b"".join(iter(lambda: secure.recv(65536), b""))
print(json.dumps({"certificate": hashlib.sha256(shown).hexdigest(), "answer": answer.decode()}))
"""
HANDSHAKE = 0x16  #: the first octet of a TLS handshake record (RFC 8446 section 5.1)


@pytest.mark.testbed_claim("k8s-ingress-tls-termination")
def test_tls_ends_at_the_ingress(cluster: Cluster, outside: Node, observe: Observation) -> None:
    authority = Authority.new("a client's authority")
    pair = authority.issue("secure.test", hosts=["secure.test"])
    mine = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair.certificate.decode())).hexdigest()
    address = cluster.address(cluster.other)
    backend = cluster.pod("pair")
    visit = ["python3", "-c", VISIT, address, "secure.test", authority.pair.certificate.decode()]
    with cluster.objects(
        observe,
        service("secure", app="pair"),
        tls_secret("secure", pair),
        ingress("secure", {"secure.test": {"/": "secure"}}, tls="secure"),
    ):
        cluster.until(
            lambda: cluster.other.run(visit, check=False).ok,
            f"a page over TLS by the Envoy of {cluster.other.name}",
        )
        with captures(
            (outside, "eth0", f"tcp port 443 and host {address}"), (backend, "eth0", "tcp port 80")
        ) as (client, server):
            result = observe.run(outside, visit, check=False)
            page = result.json() if result.ok else {}
            server.wait_for(lambda packets: any(p.dport == 80 and p.payload for p in packets))
        note(observe, client, server)
    observe.holds(
        page.get("certificate") == mine, "the client is shown the certificate of the Secret"
    )
    asked = [p.payload for p in client.packets if p.dport == 443 and p.payload]
    observe.holds(
        asked and asked[0][0] == HANDSHAKE and not any(b"HTTP/1.1" in data for data in asked),
        f"{len(asked)} packets of the client, all TLS",
    )
    plain = [p.payload for p in server.packets if b"host: secure.test" in p.payload.lower()]
    observe.holds(
        any(data.startswith(b"GET / HTTP/1.1\r\n") for data in plain),
        "the request arrives at the Pod as plain HTTP",
    )


# -- controllers of an Ingress ---------------------------------------------------


@pytest.mark.testbed_claim("k8s-ingress-needs-controller")
def test_an_ingress_of_which_no_controller_is_does_nothing(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    mine = ingress("mine", {"mine.test": {"/": "web"}})
    idle = ingress("idle", {"idle.test": {"/": "web"}}, of=NOBODY)
    with cluster.objects(observe, idle, mine):
        mine_too = served(observe, outside, cluster, "http://mine.test/")
        assert all(one.status == 200 for one in mine_too), "it serves not even what is its own"
        cluster.until(lambda: addresses(cluster, "mine"), "the address of the Ingress mine")
        # By now the controller knows every older Ingress that it will handle.
        at_first = cluster.get(observe, "ingress", "idle")
        observe.holds(at_first["spec"]["ingressClassName"] == NOBODY, "the API has it as asked for")
        observe.holds(not addresses(cluster, "idle"), "it has no address")
        for node in cluster.nodes:
            status = ask(observe, outside, cluster.address(node), "http://idle.test/").status
            observe.holds(status == 404, f"its host at {node.name}: {status}")
        patch = json.dumps({"spec": {"ingressClassName": CLASS}})
        cluster.kubectl(observe, "patch", "ingress", "idle", "--type=merge", f"--patch={patch}")
        for answer in served(observe, outside, cluster, "http://idle.test/"):
            observe.holds(answer.status == 200, f"given to {CLASS}, it is served: {answer.status}")
        cluster.until(lambda: addresses(cluster, "idle"), "the address of the Ingress idle")
        cluster.get(observe, "ingress", "idle")
        observe.holds(
            addresses(cluster, "idle") == addresses(cluster, "mine") != [], "and has addresses"
        )


@pytest.mark.testbed_claim("k8s-ingress-controllers")
def test_a_controller_serves_what_is_of_its_class(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    classes = {"Contour": CLASS, **NAMED}
    installed = {one["metadata"]["name"] for one in cluster.get(observe, "ingressclasses")["items"]}
    hosts = {name: f"{name.lower()}.test" for name in classes}
    objects = [
        ingress(name.lower(), {hosts[name]: {"/": "web"}}, of=classes[name]) for name in classes
    ]
    with cluster.objects(observe, *reversed(objects)):
        # Contour's was created last: once it is served, the others would be.
        for name, of in classes.items():
            url = f"http://{hosts[name]}/"
            if of in installed:
                found = served(observe, outside, cluster, url)
                observe.holds_when(
                    f"the controller of the class is there: {name}",
                    all(answer.name in WEB for answer in found),
                )
            else:
                found = [
                    ask(observe, outside, cluster.address(node), url) for node in cluster.nodes
                ]
                observe.fails_when(
                    f"nobody has installed the controller of the class: {name}",
                    all(answer.status == 404 for answer in found),
                )


# -- ways into a cluster ---------------------------------------------------------


@contextlib.contextmanager
def as_a_cloud_would(
    cluster: Cluster, observe: Observation, outside: Node, name: str
) -> Iterator[None]:
    """Set a Service's external address, and route it to a node, as a cloud would."""
    body = {"status": {"loadBalancer": {"ingress": [{"ip": CLOUD}]}}}
    cluster.kubectl(
        observe, "patch", "service", name, "--subresource=status", "--type=merge",
        f"--patch={json.dumps(body)}",
    )  # fmt: skip
    route = [f"{CLOUD}/32", "via", cluster.address(cluster.control)]
    with undone(observe, outside, ["ip", "route", "add", *route], ["ip", "route", "del", *route]):
        yield


@pytest.mark.testbed_claim("k8s-svc-external-mechanisms")
def test_a_service_is_reached_from_outside_in_each_way(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    address = cluster.address(cluster.control)
    with cluster.objects(
        observe,
        ingress("ways", {"ways.test": {"/": "web"}}),
        service("by-node-port", type="NodePort"),
        service("by-balancer", type="LoadBalancer", allocateLoadBalancerNodePorts=False),
    ):
        answer = served(observe, outside, cluster, "http://ways.test/")[0]
        observe.holds(answer.name in WEB, f"by Ingress: {answer.status}")
        (port,) = cluster.get(observe, "service", "by-node-port")["spec"]["ports"]
        wait_led(cluster, cluster.control, port["nodePort"])
        name = reached(observe, outside, f"http://{address}:{port['nodePort']}/")
        observe.holds(name in WEB, f"by NodePort {port['nodePort']}: {name or 'nobody'}")
        pending = cluster.get(observe, "service", "by-balancer")
        assert pending["status"] == {"loadBalancer": {}}, "someone gives addresses already"
        with as_a_cloud_would(cluster, observe, outside, "by-balancer"):
            wait_led(cluster, cluster.control, 80, CLOUD)
            name = reached(observe, outside, f"http://{CLOUD}/")
            observe.holds(name in WEB, f"by LoadBalancer at {CLOUD}: {name or 'nobody'}")


def reached(observe: Observation, where: Runs, url: str) -> str:
    """Return the server that answers; "" if none does."""
    return "".join(names(observe, where, url, 1, seconds=helpers.LATE))


# -- load balancing --------------------------------------------------------------


def by_proxy(cluster: Cluster, observe: Observation) -> list[str]:
    """Return the servers that kube-proxy chooses for connections from one Pod."""
    address = cluster.get(observe, "service", "web")["spec"]["clusterIP"]
    return names(observe, cluster.pod("client"), f"http://{address}/", TURNS)


@contextlib.contextmanager
def balanced(
    cluster: Cluster, outside: Node, observe: Observation, backend: str, **policy: Any
) -> Iterator[str]:
    """Yield a host whose requests Envoy balances by a policy of Contour's."""
    name = str(policy["strategy"]).lower()
    host = f"{name}.test"
    with cluster.objects(observe, proxy(name, host, backend, **policy)):
        served(observe, outside, cluster, f"http://{host}/")
        yield host


@pytest.mark.testbed_claim("k8s-svc-lb-round-robin")
def test_round_robin_is_the_ingress_controllers(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    seen = by_proxy(cluster, observe)
    observe.fails_when(
        f"kube-proxy in mode {cluster.spec.proxy} balances: {' '.join(seen)}",
        len(seen) == TURNS and not in_turn(seen),
    )
    with balanced(cluster, outside, observe, "web", strategy="RoundRobin") as host:
        where = at(host, cluster.address(cluster.control))
        seen = names(observe, outside, f"http://{host}/", TURNS, *where)
        observe.holds_when(
            f"Contour is told RoundRobin, and Envoy balances: {' '.join(seen)}",
            len(seen) == TURNS and in_turn(seen),
        )


@pytest.mark.testbed_claim("k8s-svc-lb-ip-hash")
def test_a_hash_of_the_address_is_the_ingress_controllers(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    seen = by_proxy(cluster, observe)
    observe.fails_when(
        f"kube-proxy in mode {cluster.spec.proxy} balances: one client comes to {' '.join(seen)}",
        set(seen) == set(WEB),
    )
    policy = {"strategy": "RequestHash", "requestHashPolicies": [{"hashSourceIP": True}]}
    network = cluster.lab.topology.nodes[outside.name].ports[0].interfaces[0].network
    clients = [str(network.network_address + last) for last in CLIENTS]
    with (
        balanced(cluster, outside, observe, "web", **policy) as host,
        more_addresses(observe, outside, clients),
    ):
        chosen = [
            {
                name
                for node in cluster.nodes
                for name in names(
                    Observation(), outside, f"http://{host}/", 3, *at(host, cluster.address(node)),
                    "--interface", client,
                )
            }
            for client in clients
        ]  # fmt: skip
    observe.note(
        "clients and their Pods", {c: sorted(p) for c, p in zip(clients, chosen, strict=True)}
    )
    observe.holds_when(
        "Contour is told RequestHash of the source's address: at every Envoy a client has one Pod",
        all(len(pods) == 1 for pods in chosen),
    )
    observe.holds_when("and not all have the same", set().union(*chosen) == set(WEB))


@contextlib.contextmanager
def more_addresses(observe: Observation, where: Node, wanted: Sequence[str]) -> Iterator[None]:
    """Add addresses to eth0 for the time of the block."""
    script = 'for one; do ip address "$0" "$one/32" dev eth0; done'
    add, delete = (["sh", "-c", script, how, *wanted] for how in ("add", "del"))
    with undone(observe, where, add, delete):
        yield


#: Arguments: a name, a port.  A page has the name; the page /hold never ends.
SLOW = """
import http.server, json, sys, time
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        page = json.dumps({"name": sys.argv[1]}).encode() + b"\\n"
        held = self.path.startswith("/hold")
        self.send_response(200)
        self.send_header("Content-Length", str(len(page) + held))
        self.end_headers()
        self.wfile.write(page)
        self.wfile.flush()
        while held:
            time.sleep(60)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
server = Server(("", int(sys.argv[2])), Answer)
print("ready", flush=True)
server.serve_forever()
"""
SLOW_PORT = 8000


@contextlib.contextmanager
def one_held(where: Place, url: str, *options: str) -> Iterator[str]:
    """Hold a request open for the time of the block; yield its server."""
    argv = ["curl", "-sS", "-N", "--noproxy", "*", *options, f"{url}hold"]
    with where.spawn(argv) as running:
        await_output(running, b"}\n")
        yield str(json.loads(running.out.partition(b"\n")[0])["name"])


@pytest.mark.testbed_claim("k8s-svc-lb-least-connection")
def test_the_least_busy_is_the_ingress_controllers_choice(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    client = cluster.pod("client")
    with contextlib.ExitStack() as stack:
        for pod in map(cluster.pod, WEB):
            argv = ["python3", "-c", SLOW, pod.name, str(SLOW_PORT)]
            await_output(stack.enter_context(pod.spawn(argv)), READY)
        stack.enter_context(cluster.objects(observe, service("slow", target=SLOW_PORT)))
        address = cluster.get(observe, "service", "slow")["spec"]["clusterIP"]
        wait_led(cluster, client.node, 80, address)
        assert reached(observe, client, f"http://{address}/"), "nobody serves the Service slow"
        with one_held(client, f"http://{address}/") as busy:
            share = Counter(names(observe, client, f"http://{address}/", MANY))[busy] / MANY
        observe.fails_when(
            f"kube-proxy in mode {cluster.spec.proxy} balances: of {MANY} connections {share:.0%} "
            f"are given to {busy}, which has one already",
            share > LESS,
        )
        host = stack.enter_context(
            balanced(cluster, outside, observe, "slow", strategy="WeightedLeastRequest")
        )
        where = at(host, cluster.address(cluster.control))
        with one_held(outside, f"http://{host}/", *where) as busy:
            share = Counter(names(observe, outside, f"http://{host}/", MANY, *where))[busy] / MANY
        observe.holds_when(
            f"Contour is told WeightedLeastRequest: of {MANY} requests {share:.0%} are given to "
            f"{busy}, which has one already",
            share < LESS,
        )
