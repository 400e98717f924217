"""Services: their names, and access from inside and outside (document 004).

For every lab with a Kubernetes cluster, with any back end of kube-proxy.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from testbed.claims.observation import Observation
from testbed.observe.capture import captures
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.api import Refused
from testbed.suites.cluster import NAMESPACE, Within, pod, service, web
from testbed.suites.helpers import (
    SOON,
    addresses,
    client_of,
    fetch,
    flows,
    node_address,
    note,
    undone,
)
from testbed.suites.services import (
    CNAME,
    SRV,
    ask,
    destinations,
    enough,
    lookup,
    manifests,
    names,
    served,
    wait_known,
    wait_led,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.nodes.place import Runs
    from testbed.suites.cluster import Cluster, Pod

pytestmark = pytest.mark.testbed_needs("kubernetes")

BACK_ENDS = ("web-1", "web-2")  #: the Pods behind the Service `web`
MERGE = "application/merge-patch+json"  # RFC 7386
STRATEGIC = "application/strategic-merge-patch+json"
NODE_PORTS = range(30000, 32768)  # kube-apiserver's --service-node-port-range, by default
#: An address that a cloud would assign: TEST-NET-3, which no lab's network uses (RFC 5737).
GIVEN = "203.0.113.80"
STARTS = "tcp[tcpflags] & tcp-syn != 0"  # pcap-filter(7): the first packet of a connection
GROUP = "networking.k8s.io"
#: Sends requests repeatedly, each over a new connection.
ASKING = 'while :; do curl -sS --noproxy "*" --max-time 30 "$1" || echo "{}"; done'


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Pod:
    """A client Pod; it is behind none of the Services that it calls itself."""
    return cluster.pod("client")


@pytest.fixture(scope="module")
def inside(client: Pod) -> Within:
    """The client's container, which uses the cluster's DNS by its /etc/resolv.conf."""
    return Within(client, "web")


#: Services with a port on the nodes, by their externalTrafficPolicy.
OPEN = {"open": "Cluster", "open-local": "Local"}


@pytest.fixture(scope="module")
def extra(cluster: Cluster) -> Iterator[None]:
    """Create the Services shared by checks at once: kube-proxy writes at most once a second."""
    objects = [
        # Ports that their Pods don't have, so that one can't be mistaken for the other.
        service("reached", app="pair", port=8001),
        service("named", app="client", port=8002),
        service("sticky", sessionAffinity="ClientIP"),
        service("itself", app="client"),
        service("ported", ports=[{"name": "http", "port": 8005, "targetPort": 80}]),
        service("headless", clusterIP="None", ports=[{"name": "http", "port": 80}]),
        service("balanced", app="client", type="LoadBalancer"),
        *(
            service(name, app="client", type="NodePort", externalTrafficPolicy=policy)
            for name, policy in OPEN.items()
        ),
    ]
    with cluster.objects(Observation(), *objects):
        yield


def path(kind: str, name: str = "") -> str:
    """Return the API's path of a kind, such as "services", or of one object."""
    return f"/api/v1/namespaces/{NAMESPACE}/{kind}" + (f"/{name}" if name else "")


def patched(
    cluster: Cluster, observe: Observation, where: str, patch: Mapping[str, Any], kind: str = MERGE
) -> None:
    """Change an object through the API, and record the patch."""
    cluster.api.ask("PATCH", where, dict(patch), kind=kind)
    observe.note(f"PATCH {where}", patch)


def refusal(cluster: Cluster, observe: Observation, body: Mapping[str, Any]) -> str:
    """Create an object; return the API's reason if it refuses, otherwise ""."""
    said = ""
    try:
        cluster.create(body)
    except Refused as refused:
        said = str(refused)
    observe.note(f"POST a {body['kind']}: {json.dumps(body['spec'])}", said or "created")
    return said


def node_port(spec: Mapping[str, Any]) -> int:
    """Return a Service's port on the nodes, 0 if it has none."""
    return int(spec["ports"][0].get("nodePort", 0))


@contextlib.contextmanager
def everywhere(cluster: Cluster, observe: Observation) -> Iterator[list[Pod]]:
    """Run a Pod on each node of the cluster; the first and last always have some."""
    between = [pod(f"on-{node.name}", node=node.name) for node in cluster.nodes[1:-1]]
    ends = dict.fromkeys(["client", "web-2"] if cluster.nodes[1:] else ["client"])
    with cluster.pods(observe, *between) as made:
        yield [*map(cluster.pod, ends), *made]


# -- the virtual address ------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-svc-virtual-ip")
def test_a_service_has_an_address_that_no_device_has(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    served(cluster, observe, "web")
    spec = cluster.get(observe, "service", "web")["spec"]
    address = str(spec.get("clusterIP", ""))
    observe.holds(
        IPv4Address(address) in cluster.spec.services,
        f"the Service has {address}, of the range {cluster.spec.services}",
    )
    places: list[Runs] = [*cluster.nodes, client, *map(cluster.pod, BACK_ENDS)]
    for place in places:
        held = [str(one.ip) for one in addresses(observe, place)]
        observe.holds(address not in held, f"no device of {place.name} has it, there are {held}")
    for node in cluster.nodes:
        to = destinations(cluster, node, 80, address)
        observe.holds(to, f"rules of {node.name} alone know it: they lead to {to}")
    found = ask(observe, client, f"http://{address}:80/")
    observe.holds(names(found) != [""], f"it answers, by {names(found)}")


@pytest.mark.testbed_claim("k8s-svc-routes-to-pod-ip")
def test_what_goes_to_the_virtual_address_comes_to_a_pods_own(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    spec = served(cluster, observe, "web")
    address, count = spec["clusterIP"], 8
    pods = {one.address: one for one in map(cluster.pod, BACK_ENDS)}
    points = [
        (client, "eth0", f"{STARTS} and host {address}"),
        *((one, "eth0", f"{STARTS} and host {client.address}") for one in pods.values()),
    ]
    with captures(*points) as seen:
        found = ask(observe, client, f"http://{address}:80/", count=count)
    note(observe, *seen)
    observe.holds(
        len(found) == count and set(names(found)) <= set(BACK_ENDS),
        f"{len(found)} connections were answered by {names(found)}",
    )
    sent = [p for p in seen[0].packets if p.is_syn]
    observe.holds(
        len(sent) == count and {p.dst for p in sent} == {address},
        f"the client has sent {len(sent)} of them, all to {address}",
    )
    arrived = [p for one in seen[1:] for p in one.packets if p.is_syn]
    observe.holds(
        sorted(p.sport for p in arrived) == sorted(p.sport for p in sent)
        and {p.dst for p in arrived} <= set(pods),
        f"the same have come to the Pods, for {sorted({p.dst for p in arrived})}",
    )
    observe.holds(
        {p.src for p in arrived} == {client.address}, "the client's address has stayed as it was"
    )
    if cluster.spec.cni == "cilium":
        observe.note("who translates", "Cilium, at the Pod's link: before kube-proxy's rules")
        return
    to = destinations(cluster, client.node, 80, address)
    cluster.rules(observe, client.node)
    observe.holds(
        to == sorted(f"{one}:80" for one in pods),
        f"the rules of {client.node.name} translate {address}:80 to {to}",
    )
    tracked = {
        flow.original.sport: flow.reply.src
        for flow in flows(observe, client.node, "--orig-dst", address)
        if flow.original.src == client.address
    }
    came = {p.sport: p.dst for p in arrived}
    observe.holds(
        came and all(tracked.get(port) == to for port, to in came.items()),
        "connection tracking has each of them, to be answered by the Pod's address",
    )


@pytest.mark.testbed_claim("k8s-svc-reach-by-ip")
@pytest.mark.usefixtures("extra")
def test_every_node_s_pods_reach_a_service_by_its_address(
    cluster: Cluster, observe: Observation
) -> None:
    address = served(cluster, observe, "reached")["clusterIP"]
    with everywhere(cluster, observe) as pods:
        for one in pods:
            page = fetch(observe, one, f"http://{address}:8001/")
            observe.holds(
                page and page["name"] == "pair", f"{one.name} on {one.node.name} reaches {address}"
            )


# -- kinds -------------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-svc-types")
def test_a_service_can_be_of_four_types(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    alias: dict[str, Any] = {
        "kind": "Service",
        "metadata": {"name": "of-externalname"},
        "spec": {"type": "ExternalName", "externalName": "example.org"},
    }
    of_pods = ("ClusterIP", "NodePort", "LoadBalancer")
    wanted = {kind: service(f"of-{kind.lower()}", type=kind) for kind in of_pods}
    wanted["ExternalName"] = alias
    try:
        for kind, body in wanted.items():
            observe.holds(not refusal(cluster, observe, body), f"the API takes the type {kind}")
        for kind in of_pods:
            spec = (cluster.find("Service", f"of-{kind.lower()}") or {}).get("spec", {})
            observe.note(f"the Service of type {kind}", spec)
            observe.holds(spec.get("clusterIP"), f"{kind}: its address is filled in")
            if spec and kind != "ClusterIP":
                number = node_port(spec)
                observe.holds(number in NODE_PORTS, f"{kind}: so is the nodes' port, {number}")
        kept = (cluster.find("Service", "of-externalname") or {}).get("spec", {})
        observe.holds(kept and "clusterIP" not in kept, "ExternalName: it has no address")
        if "dns" in cluster.spec.add_ons:
            name = f"of-externalname.{NAMESPACE}.svc.{config.DOMAIN}"
            wait_known(cluster, client, name, CNAME)
            found = lookup(observe, client, str(cluster.spec.dns), name, CNAME).found
            observe.holds(found == ("example.org",), f"{name} is another name of {found}")
    finally:
        for body in wanted.values():
            cluster.delete("Service", body["metadata"]["name"])
    said = refusal(cluster, observe, service("of-none", type="Other"))
    observe.holds(all(f'"{kind}"' in said for kind in wanted), "there are no others")


# -- endpoints -----------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-svc-single-entry")
def test_all_ready_pods_that_match_are_behind_a_service_and_no_other(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    found = cluster.get(observe, "pods", "-l", "app=web")["items"]
    standing = sorted(one["status"]["podIP"] for one in found)
    cluster.get(observe, "endpointslices", "-l", "kubernetes.io/service-name=web")

    before: set[str] = set()

    def follows(what: str, *more: str) -> None:
        """Wait for new endpoints to appear and old ones to go; then judge."""
        nonlocal before
        wanted = {*standing, *more}
        gone, before = before - wanted, wanted

        def came() -> bool:
            found = set(cluster.endpoints("web"))
            return wanted <= found and not gone & found

        words = " without ".join(", ".join(sorted(some)) for some in (wanted, gone) if some)
        cluster.until(came, f"{what}: the endpoints {words}")
        ready = cluster.endpoints("web")
        observe.holds(ready == sorted(wanted), f"{what}: behind the Service are {ready}")

    follows("the Pods with its label are ready")
    patched(cluster, observe, path("pods", "client"), {"metadata": {"labels": {"app": "web"}}})
    try:
        follows("another Pod gets the label", client.address)
    finally:
        label = {"metadata": {"labels": {"app": "client"}}}
        patched(cluster, observe, path("pods", "client"), label)
    follows("that Pod has lost it")

    gate = f"{NAMESPACE}.test/ready"
    late = pod("late", labels={"app": "web"}, readinessGates=[{"conditionType": gate}])
    try:
        cluster.create(late)
        # It runs; only its readiness gate keeps it unready (kubernetes.io, "Pod readiness").
        cluster.until(lambda: _runs(cluster, "late"), "the Pod late to run")
        follows("a Pod with its label runs, and is not ready")
        for state, more in (("True", [cluster.pod("late").address]), ("False", [])):
            conditions = {"status": {"conditions": [{"type": gate, "status": state}]}}
            where = path("pods", "late/status")
            patched(cluster, observe, where, conditions, STRATEGIC)
            follows(f"its gate says {state}", *more)
    finally:
        cluster.delete("Pod", "late")


def _runs(cluster: Cluster, name: str) -> bool:
    """Tell whether all containers of a Pod run, ready or not."""
    found = cluster.find("Pod", name) or {}
    conditions = found.get("status", {}).get("conditions", [])
    return any(c["type"] == "ContainersReady" and c["status"] == "True" for c in conditions)


@pytest.mark.testbed_claim("k8s-svc-distributes")
def test_connections_are_spread_over_all_pods(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    address = served(cluster, observe, "web")["clusterIP"]
    pods = cluster.endpoints("web")
    assert len(pods) > 1, "one Pod leaves no choice"
    count = enough(len(pods))
    found = ask(observe, client, f"http://{address}:80/", count=count)
    shares = Counter(one.name for one in found)
    observe.note(f"answers of {count} connections", shares)
    observe.holds(len(found) == count and shares[""] == 0, f"all {count} were answered")
    for name in BACK_ENDS:
        observe.holds(shares[name], f"{name} has answered {shares[name]}")
    observe.holds(set(shares) <= set(BACK_ENDS), "and nobody else")


@pytest.mark.testbed_claim("k8s-svc-automatic-routing")
def test_requests_follow_the_pods_by_themselves(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    address = served(cluster, observe, "web")["clusterIP"]
    more = pod(
        "more",
        node=cluster.nodes[-1].name,
        labels={"app": "web"},
        terminationGracePeriodSeconds=90,
        containers=[
            web(
                readinessProbe={"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1},
                # Requests sent before the nodes learn of its end are still answered.
                lifecycle={"preStop": {"sleep": {"seconds": 60}}},
            )
        ],
    )
    argv = ["sh", "-c", ASKING, "sh", f"http://{address}:80/"]
    with client.spawn(argv) as asking:

        def leads(node: Node) -> bool:
            return f"{added.address}:80" in destinations(cluster, node, 80, address)

        def forgotten(node: Node) -> bool:
            return not leads(node)

        def said() -> list[str]:
            lines = asking.out.decode().rpartition("\n")[0].splitlines()
            return [json.loads(line).get("name", "") for line in lines]

        with cluster.pods(observe, more) as (added,):
            for node in cluster.nodes:
                cluster.until(functools.partial(leads, node), f"a rule of {node.name} for more")
            # Among that many answers is one of the new Pod, if it gets any request.
            at = len(said()) + 2
            cluster.until(lambda: len(said()) >= at + enough(3), "more answers")
            observe.holds("more" in said(), "a new Pod answers, too")

            cluster.kubectl(observe, "delete", "pod", "more", "--wait=false")
            for node in cluster.nodes:
                what = f"the end of the rule of {node.name} for a Pod that is to end"
                cluster.until(functools.partial(forgotten, node), what)
            # One request may be in flight, and one is not printed yet.
            at = len(said()) + 2
            cluster.until(lambda: len(said()) >= at + enough(3), "more answers")
        found = said()
    observe.note(f"answers to {' '.join(argv)}", f"{Counter(found)}\n{found}")
    observe.holds("more" not in found[at:], f"none of {len(found) - at} goes to it")
    observe.holds("" not in found, f"of {len(found)} requests all the time none is lost")


# -- names ---------------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-dns-reach-by-name")
@pytest.mark.testbed_needs("dns")
def test_a_service_is_reached_by_its_name(
    cluster: Cluster, client: Pod, inside: Within, observe: Observation
) -> None:
    address = served(cluster, observe, "web")["clusterIP"]
    observe.run(inside, ["cat", "/etc/resolv.conf"])
    long = f"web.{NAMESPACE}.svc.{config.DOMAIN}"
    for name in ("web", f"web.{NAMESPACE}", long):
        found = ask(observe, inside, f"http://{name}/")
        seen = sorted({one.remote for one in found})
        observe.holds(
            seen == [address] and set(names(found)) <= set(BACK_ENDS),
            f"http://{name}/ asks {seen}, and {names(found)} answers",
        )
    said = lookup(observe, client, str(cluster.spec.dns), long).found
    observe.holds(said == (address,), f"the address of {long} is {said}")


@pytest.mark.testbed_claim("k8s-dns-name-and-port")
@pytest.mark.usefixtures("extra")
@pytest.mark.testbed_needs("dns")
def test_a_service_is_reached_by_name_and_port(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    address = served(cluster, observe, "named")["clusterIP"]
    wait_known(cluster, client, f"named.{NAMESPACE}.svc.{config.DOMAIN}")
    pair = cluster.pod("pair")
    for place in (Within(cluster.pod("web-2"), "web"), Within(pair, "a"), Within(pair, "b")):
        found = ask(observe, place, "http://named:8002/")
        observe.holds(
            names(found) == ["client"] and found[0].remote == address,
            f"{place.name} reaches it by name and port, at {address}",
        )
    other = fetch(observe, Within(pair, "a"), "http://named:8003/", seconds=SOON)
    observe.holds(other is None, "by another port nobody is reached")


# -- from outside ----------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-svc-nodeport-every-node")
@pytest.mark.usefixtures("extra")
def test_a_node_port_is_open_on_every_node(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    away = [node for node in cluster.nodes if node.name != client.node.name]
    assert away, "each node has one of its Pods"

    def answered(node: Node, port: int, seconds: float | None = None) -> bool:
        """Tell whether a node's port answers another node, whose traffic is not local to it."""
        asker = cluster.nodes[cluster.nodes.index(node) - 1]
        url = f"http://{cluster.address(node)}:{port}/"
        page = fetch(observe, asker, url, seconds=seconds)
        return bool(page and page["name"] == "client")

    ports = {name: node_port(served(cluster, observe, name)) for name in OPEN}
    assert set(ports.values()) <= set(NODE_PORTS)
    observe.holds_when(
        f"externalTrafficPolicy is Cluster, as it is by default: port {ports['open']} of every "
        "node leads to the Pod, which is on one",
        all(answered(node, ports["open"]) for node in cluster.nodes),
    )
    local = ports["open-local"]
    observe.holds_when(
        f"externalTrafficPolicy is Local: port {local} of the Pod's node does, too",
        answered(client.node, local),
    )
    observe.fails_when(
        "externalTrafficPolicy is Local: nodes without a Pod of the Service do not answer",
        not any(answered(node, local, SOON) for node in away),
    )


@pytest.mark.testbed_claim("k8s-svc-nodeport-external")
@pytest.mark.testbed_needs("gateway")
@pytest.mark.usefixtures("extra")
def test_a_machine_outside_reaches_a_node_port(
    lab: LiveLab, cluster: Cluster, client: Pod, outside: Node, observe: Observation
) -> None:
    ports = {name: node_port(served(cluster, observe, name)) for name in OPEN}

    def seen_at(node: Node, name: str) -> str:
        """Return the client that the Pod sees when its Service is called at a node; "" for none."""
        page = fetch(observe, outside, f"http://{cluster.address(node)}:{ports[name]}/")
        return client_of(page) if page and page["name"] == "client" else ""

    for node in cluster.nodes:
        own = [str(one.ip) for one in addresses(observe, node)]
        seen = seen_at(node, "open")
        observe.holds(
            seen in own, f"by {node.name}: the Pod sees {seen or 'nobody'}, an address of the node"
        )
    home, address = client.node, node_address(lab, outside)
    seen = seen_at(home, "open-local")
    observe.holds(
        seen == address,
        f"with externalTrafficPolicy Local by {home.name}: it sees {seen or 'nobody'}",
    )


@pytest.mark.testbed_claim("k8s-svc-loadbalancer-cloud")
@pytest.mark.usefixtures("extra")
@pytest.mark.testbed_needs("gateway")
def test_a_load_balancer_is_what_a_cloud_makes_it(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    node = cluster.nodes[-1]
    to = ["route", "add", f"{GIVEN}/32", "via", cluster.address(node)]
    with undone(observe, outside, ["ip", *to], ["ip", "route", "del", f"{GIVEN}/32"]):
        served(cluster, observe, "balanced")  # all Service controllers here have handled it by now
        status = cluster.get(observe, "service", "balanced")["status"]["loadBalancer"]
        line = cluster.kubectl(observe, "get", "service", "balanced").stdout.splitlines()[-1]
        cluster.kubectl(observe, "describe", "service", "balanced")
        page = fetch(observe, outside, f"http://{GIVEN}/", seconds=SOON)
        observe.fails_when(
            "the cluster is in no cloud: the Service waits for an address from outside",
            not status and "<pending>" in line and page is None,
        )
        # A cloud's controller does only this in the cluster; it also routes to the nodes.
        given = {"status": {"loadBalancer": {"ingress": [{"ip": GIVEN}]}}}
        patched(cluster, observe, path("services", "balanced/status"), given)
        wait_led(cluster, node, 80, GIVEN)
        page = fetch(observe, outside, f"http://{GIVEN}/")
        cluster.kubectl(observe, "get", "service", "balanced")
        rules = destinations(cluster, node, 80, GIVEN)
        observe.holds_when(
            f"a cloud's controller has given {GIVEN}, and its network brings it to {node.name}: "
            f"rules there lead it to {rules}",
            page and page["name"] == "client" and rules,
        )


# -- Ingress, as an object ---------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-ingress-api-object")
def test_ingress_is_a_resource(cluster: Cluster, observe: Observation) -> None:
    cluster.kubectl(observe, "api-resources", f"--api-group={GROUP}")
    listed = cluster.api.ask("GET", f"/apis/{GROUP}/v1")["resources"]
    found = [one for one in listed if one["name"] == "ingresses"]
    observe.holds(
        [(one["kind"], one["namespaced"]) for one in found] == [("Ingress", True)],
        f"{GROUP}/v1 has ingresses, objects of the kind Ingress",
    )
    to = {"service": {"name": "web", "port": {"number": 80}}}
    spec = {
        "ingressClassName": "of-nobody",
        "defaultBackend": to,
    }  # without controller
    refusal(cluster, observe, {"kind": "Ingress", "metadata": {"name": "stored"}, "spec": spec})
    kept = cluster.find("Ingress", "stored") or {}
    cluster.delete("Ingress", "stored")
    observe.note("the Ingress as it is kept", kept)
    observe.holds(kept.get("spec") == spec, "the API keeps one as it was given")


# -- the examples ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(cluster: Cluster) -> Iterator[Observation]:
    """Return the document's first two manifests, corrected, as objects, and the log."""
    observe = Observation()
    texts = manifests()[:2]
    for one in texts:
        observe.note(
            f"{one.name}, lines {one.lines}: corrected",
            "\n".join([*one.corrections, one.corrected]),
        )
    try:
        cluster.kubectl(observe, "apply", "-f", "-", input="---\n".join(m.corrected for m in texts))
        cluster.wait_available(texts[0].name)
        yield observe
    finally:
        for kind, one in zip(("Deployment", "Service"), texts, strict=True):
            cluster.delete(kind, one.name)


@pytest.mark.testbed_claim("k8s-svc-example-deployment")
def test_the_example_deployment_runs_two_replicas(
    cluster: Cluster, client: Pod, example: Observation, observe: Observation
) -> None:
    observe.evidence.extend(example.evidence)
    found = cluster.get(observe, "deployment", "nginx-deployment")
    wanted, ready = found["spec"]["replicas"], found["status"].get("readyReplicas", 0)
    observe.holds((wanted, ready) == (2, 2), f"{ready} replicas of {wanted} are ready")
    pods = cluster.get(observe, "pods", "-l", "app=nginx")["items"]
    pods = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
    observe.holds(len(pods) == 2, f"{len(pods)} Pods have the label app=nginx")
    for one in pods:
        (container,) = one["spec"]["containers"]
        observe.holds(
            container["image"] == "nginx:latest"
            and [port["containerPort"] for port in container["ports"]] == [80],
            f"{one['metadata']['name']} is of {container['image']} with port 80",
        )
        cluster.wait_serving(cluster.pod(one["metadata"]["name"]), 80)
        page = fetch(observe, client, f"http://{one['status'].get('podIP', '')}:80/")
        observe.holds(page and page["name"] == one["metadata"]["name"], "nginx answers on port 80")


@pytest.mark.testbed_claim("k8s-svc-example-service")
@pytest.mark.testbed_needs("dns")
def test_the_example_service_leads_to_the_example_deployment(
    cluster: Cluster, client: Pod, inside: Within, example: Observation, observe: Observation
) -> None:
    observe.evidence.extend(example.evidence)
    name = "nginx-service"
    spec = cluster.get(observe, "service", name)["spec"]
    observe.holds(
        (spec["type"], bool(spec.get("clusterIP"))) == ("ClusterIP", True)
        and [(port["port"], port["targetPort"]) for port in spec["ports"]] == [(80, 80)],
        f"it is a ClusterIP, {spec.get('clusterIP')}, from port 80 to port 80",
    )
    pods = cluster.get(observe, "pods", "-l", "app=nginx")["items"]
    of_them = [one["metadata"]["name"] for one in pods]
    # All of them are ready; the Service's endpoints follow a moment later.
    cluster.until(lambda: len(cluster.endpoints(name)) >= 2, f"two endpoints of {name}")
    ready = cluster.endpoints(name)
    observe.holds(
        len(ready) == 2 and set(ready) <= {one["status"].get("podIP") for one in pods},
        f"behind it are {ready}, Pods with the label app=nginx",
    )
    served(cluster, observe, name)
    to = destinations(cluster, client.node, 80, spec["clusterIP"])
    observe.holds(to == [f"{one}:80" for one in ready], f"port 80 leads to {to}")
    wait_known(cluster, client, f"{name}.{NAMESPACE}.svc.{config.DOMAIN}")
    found = ask(observe, inside, f"http://{name}/", count=enough(2))
    observe.holds(
        len(names(found)) == 2 and set(names(found)) <= set(of_them),
        f"http://{name}/ is answered by {names(found)}",
    )


@pytest.mark.testbed_claim("k8s-pod-example-manifests-valid")
def test_the_manifests_can_be_used_as_printed(cluster: Cluster, observe: Observation) -> None:
    for one in manifests():
        try:
            parsed = repr(yaml.safe_load(one.printed))
        except yaml.YAMLError as error:
            parsed = f"no YAML: {error}"
        observe.note(f"{one.name}, lines {one.lines}, as printed", f"{one.printed}\n{parsed}")
        taken = cluster.kubectl(
            observe, *("apply", "--dry-run=server", "-f", "-"), input=one.printed, check=False
        )
        observe.holds(taken.ok, f"kubectl takes {one.name}, lines {one.lines}, as printed")
    for one in manifests():
        observe.note(
            f"{one.name}, lines {one.lines}: corrected",
            "\n".join([*one.corrections, one.corrected]),
        )
    # The programs of two of them are missing, but the API accepts the objects.
    text = "---\n".join(one.corrected for one in manifests())
    cluster.kubectl(observe, "apply", "--dry-run=server", "-f", "-", input=text)


# -- beyond the document --------------------------------------------------------------------


def test_a_connection_that_stays_open_stays_with_one_pod(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    """kube-proxy chooses for each connection, not for each request in it."""
    address, count = served(cluster, observe, "web")["clusterIP"], enough(2)
    url = f"http://{address}/?[1-{count}]"
    printed = observe.run(client, ["curl", "-sS", "--noproxy", "*", url]).stdout
    who = Counter(json.loads(line)["name"] for line in printed.splitlines())
    observe.holds(list(who.values()) == [count], f"{count} requests of one connection: {who}")


@pytest.mark.usefixtures("extra")
def test_which_addresses_of_a_node_have_its_ports(cluster: Cluster, observe: Observation) -> None:
    """With nftables primary addresses only (kubernetes.io, kube-proxy's --nodeport-addresses)."""
    port = node_port(served(cluster, observe, "open"))
    node = cluster.nodes[-1]
    if not node.run(["ip", "link", "show", "dev", config.BRIDGE], check=False).ok:
        pytest.skip(f"the nodes have no bridge {config.BRIDGE} with an address of its own")
    (bridge,) = addresses(observe, node, config.BRIDGE)
    wanted = cluster.spec.proxy == "iptables"
    seconds = None if wanted else SOON
    page = fetch(observe, cluster.control, f"http://{bridge.ip}:{port}/", seconds=seconds)
    observe.holds((page is not None) == wanted, f"{bridge.ip}, of a bridge, has it: {wanted}")


@pytest.mark.usefixtures("extra")
def test_a_client_sticks_to_one_pod_where_it_is_asked_for(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    """``sessionAffinity: ClientIP`` (kubernetes.io, "Virtual IPs and Service Proxies")."""
    address, count = served(cluster, observe, "sticky")["clusterIP"], enough(2)
    found = ask(observe, client, f"http://{address}/", count=count)
    observe.holds(len(found) == count, f"all {count} connections were answered")
    observe.holds(len(names(found)) == 1, f"all by {names(found)}")


@pytest.mark.testbed_needs("kubernetes", "hairpin")
@pytest.mark.usefixtures("extra")
def test_a_pod_reaches_itself_through_its_service(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    """It gets another source address: a Pod does not answer packets from its own address.

    kube-proxy gives it one of the node's, Cilium 169.254.42.1 (--ipv4-service-loopback-address).
    """
    address = served(cluster, observe, "itself")["clusterIP"]
    page = fetch(observe, client, f"http://{address}/")
    observe.holds(page and page["name"] == "client", "it answers itself")
    own = [str(one.ip) for one in addresses(observe, client.node)]
    if cluster.spec.cni == "cilium":
        own = ["169.254.42.1"]
    observe.holds(page and client_of(page) in own, f"and sees one of {own} as the client")


def test_pods_on_their_nodes_network_are_behind_a_service(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    port = 8004
    body = pod(
        "on-host",
        node=cluster.nodes[-1].name,
        hostNetwork=True,
        containers=[web(port=port, env=[{"name": "PORT", "value": str(port)},
                                        {"name": "NAME", "value": "on-host"}])],
    )  # fmt: skip
    asked = service("hosts", app="on-host", target=port)
    with cluster.objects(observe, asked, body):
        address = served(cluster, observe, "hosts")["clusterIP"]
        ready = cluster.endpoints("hosts")
        observe.holds(ready == [cluster.address(cluster.nodes[-1])], f"behind it is {ready}")
        page = fetch(observe, client, f"http://{address}/")
        observe.holds(page and page["name"] == "on-host", f"{address} reaches it")


@pytest.mark.testbed_needs("dns")
@pytest.mark.usefixtures("extra")
def test_the_name_of_a_headless_service_has_the_pods_addresses(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    """Each named port also has an SRV record (Kubernetes DNS-Based Service Discovery)."""
    pods = [cluster.pod(name).address for name in BACK_ENDS]
    cluster.wait_endpoints("headless", *pods)
    name = f"headless.{NAMESPACE}.svc.{config.DOMAIN}"
    server = str(cluster.spec.dns)
    wait_known(cluster, client, name, count=len(pods))
    found = lookup(observe, client, server, name)
    observe.holds(found.found == tuple(sorted(pods)), f"{name} has the addresses {found}")
    targets = lookup(observe, client, server, f"_http._tcp.{name}", SRV).found
    observe.holds(
        len(targets) == 2 and all(one.startswith("80 ") for one in targets),
        f"the port http of {name} is at {targets}",
    )


@pytest.mark.testbed_needs("dns")
@pytest.mark.usefixtures("extra")
def test_a_named_port_has_an_srv_record(
    cluster: Cluster, client: Pod, observe: Observation
) -> None:
    name = f"ported.{NAMESPACE}.svc.{config.DOMAIN}"
    wait_known(cluster, client, name)
    found = lookup(observe, client, str(cluster.spec.dns), f"_http._tcp.{name}", SRV).found
    observe.holds(found == (f"8005 {name}",), f"the port http of {name}: {found}")
