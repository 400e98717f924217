"""Pods: shared resources of containers, and connections (documents 000, 001, 004).

For every cluster of two nodes or more.  A "network" of a container is that of its process:
the programs that inspect it are the node's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.errors import LabError
from testbed.observe.capture import captures
from testbed.observe.taps import INTERPRETER
from testbed.roles.kubernetes import config
from testbed.suites import helpers
from testbed.suites.cluster import Within, pod, sleeper, web
from testbed.suites.cri import containers
from testbed.suites.helpers import (
    SOON,
    Inside,
    addresses,
    between,
    client_of,
    fetch,
    flows,
    fresh_name,
    link,
    link_down,
    links,
    listeners,
    namespace,
    note,
    patient,
    ping,
    same,
    serving,
    wait_closed,
)
from testbed.suites.measuring import (
    P50,
    THROUGHPUT,
    Rounds,
    Way,
    measured_server,
    need_iperf3,
    on_one_cpu,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from testbed.nodes.base import Node
    from testbed.nodes.place import Runs
    from testbed.suites.cluster import Cluster, Pod

pytestmark = pytest.mark.testbed_needs("kubernetes")

FOUR = ("single-1", "single-2", "single-3", "single-4")  # with one container each, on one node
TALK, DECLARED = "talk", "declared"  # with containers that talk; one also declares a port
APPS = ("a", "b", "local")
HOSTS = ("host-1", "host-2")  # on the network of their node
MORTAL = "mortal"
PORT = 8080  #: that the container b listens on, and no Pod's configuration mentions
OTHER_PORT = 8081  #: that DECLARED's configuration has, without a listener
LOCAL_PORT = 8090  #: on 127.0.0.1 only
NODE_PORT = 8077  #: of servers outside containers
FOLDER = "/run/testbed-files"  #: on the node; a volume of TALK's container a
#: A web server that listens on 127.0.0.1 only.
LOCAL = f"""
cat > /tmp/nginx.conf <<END
user www-data;
events {{}}
pid /tmp/nginx.pid;
http {{ server {{ listen 127.0.0.1:{LOCAL_PORT}; return 200 '{{"name": "local"}}'; }} }}
END
exec nginx -c /tmp/nginx.conf -g "daemon off;"
"""
FLAG = "--pod-infra-container-image"
PAUSE = "/pause"


def _talking(name: str, node: Node, **of_b: Any) -> dict[str, Any]:
    """Return a Pod of three containers: a client, and two servers."""
    return pod(
        name,
        node=node.name,
        containers=[
            sleeper("a", volumeMounts=[{"name": "files", "mountPath": "/node"}]),
            web("b", PORT, **of_b),
            web("local", command=["sh", "-c", LOCAL]),
        ],
        volumes=[{"name": "files", "hostPath": {"path": FOLDER, "type": "DirectoryOrCreate"}}],
    )


@pytest.fixture(scope="module")
def made(cluster: Cluster) -> Iterator[dict[str, Pod]]:
    """The Pods of these checks by name, started at once, with their servers listening."""
    first, last = cluster.nodes[0], cluster.nodes[-1]
    bodies = [
        *(pod(name, node=last.name) for name in (*FOUR, MORTAL)),
        *(pod(f"on-{node.name}", node=node.name) for node in cluster.nodes[1:-1]),
        _talking(TALK, first),
        _talking(DECLARED, first, ports=[{"containerPort": OTHER_PORT}]),
        *(pod(name, node=first.name, containers=[sleeper()], hostNetwork=True) for name in HOSTS),
    ]
    try:
        with cluster.pods(Observation(), *bodies) as found:
            by_name = {one.name: one for one in found}
            for name in (TALK, DECLARED):
                cluster.wait_serving(by_name[name], LOCAL_PORT)
            yield by_name
    finally:
        first.run(["rm", "-rf", FOLDER])


def network(pod: Pod, container: str) -> Inside:
    """Return the network of a container's process, with the node's programs."""
    prefix = ("nsenter", f"--target={pod.containers[container]}", "--net")
    return Inside(pod.node, f"{pod.name}/{container}", prefix)


def namespaces(observe: Observation, pod: Pod) -> dict[str, str]:
    """Return each container's network namespace; the infrastructure's under ""."""
    processes = {"": pod.pid, **pod.containers}
    argv = ["readlink", *(f"/proc/{process}/ns/net" for process in processes.values())]
    found = observe.run(pod.node, argv).stdout.split()
    return dict(zip(processes, found, strict=True))


def own_addresses(observe: Observation, pod: Pod, container: str) -> set[str]:
    """Return the addresses of a container, without its loopback's."""
    found = addresses(observe, network(pod, container))
    return {str(address.ip) for address in found if not address.ip.is_loopback}


def port_of(observe: Observation, pod: Pod) -> str:
    """Return the node's end of a Pod's veth pair."""
    index = link(observe, pod, "eth0")["link_index"]
    names = [one["ifname"] for one in links(observe, pod.node, "type", "veth")
             if one["ifindex"] == index]  # fmt: skip
    assert len(names) == 1, f"{pod.node.name} has no link with the index {index}"
    return str(names[0])


def page(
    observe: Observation, place: Runs, address: object, port: int = 80
) -> dict[str, Any] | None:
    return fetch(observe, place, f"http://{address}:{port}/")


# -- containers of the runtime -----------------------------------------------------


@pytest.mark.testbed_claim("k8s-pod-containers-share-netns")
def test_containers_of_a_pod_are_in_one_namespace(
    made: dict[str, Pod], observe: Observation
) -> None:
    one, other = (namespaces(observe, made[name]) for name in (TALK, DECLARED))
    apps = {one[name] for name in APPS}
    observe.holds(len(apps) == 1, f"{', '.join(APPS)} of {TALK} are in one network namespace")
    observe.holds(not apps & set(other.values()), f"no container of {DECLARED} is in it")
    host = namespace(observe, made[TALK].node, 1)
    observe.holds(host not in apps, "it is not the node's")


@pytest.mark.testbed_claim("k8s-pod-two-runtime-containers")
def test_four_pods_are_eight_containers_of_the_runtime(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    node = made[FOUR[0]].node
    pods = cluster.get(observe, "pods", *FOUR)["items"]
    uids = "|".join(one["metadata"]["uid"] for one in pods)
    of_ours = f'labels."io.kubernetes.pod.uid"~="^({uids})$"'
    found = set(cluster.ctr(observe, node, "containers", "list", "--quiet", of_ours).split())
    infra = {made[name].ids[""] for name in FOUR}
    apps = {made[name].ids["web"] for name in FOUR}
    observe.note("infrastructure containers", sorted(infra))
    observe.note("application containers", sorted(apps))
    observe.holds_when(
        f"containerd itself is asked: it has {len(found)} containers for the four Pods, an "
        "infrastructure and an application container for each",
        len(infra) == len(apps) == 4 and found == infra | apps,
    )
    told = set(containers(observe, node, config.CONTAINERD_SOCKET))
    observe.fails_when(
        f"it is asked by CRI, as the kubelet does: ListContainers has {len(told & found)} of them",
        told & found == apps,
    )


@pytest.mark.testbed_claim("k8s-pod-infra-same-image")
def test_infrastructure_containers_have_one_image(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    running = {one.ids[""]: one for one in made.values()}
    for node in cluster.nodes:
        kind = 'labels."io.cri-containerd.kind"==sandbox'
        lines = cluster.ctr(observe, node, "containers", "list", kind).splitlines()[1:]
        images = dict(line.split()[:2] for line in lines)
        used = set(images.values())
        observe.holds(len(used) == 1, f"on {node.name} they have the image {', '.join(used)}")
        ours = {name for name, one in running.items() if one.node.name == node.name}
        observe.holds(ours <= set(images), f"those of the Pods on {node.name} are among them")


@pytest.mark.testbed_claim("k8s-pod-infra-image-kubelet-flag")
def test_the_kubelet_takes_the_flag(cluster: Cluster, observe: Observation) -> None:
    node = cluster.control
    kubelet = node.provide(cluster.lab.context.store.binary("kubelet"))
    assert observe.run(node, [kubelet, "--version"]).ok
    taken = observe.run(
        node, [kubelet, f"{FLAG}=docker.io/library/nginx", "--version"], check=False
    )
    observe.holds(taken.ok, f"the kubelet can be started with {FLAG}")
    # Today containerd's own configuration decides.
    configured = observe.run(node, ["grep", "sandbox_image", config.CONTAINERD_FILE]).stdout
    kind = 'labels."io.cri-containerd.kind"==sandbox'
    lines = cluster.ctr(observe, node, "containers", "list", kind).splitlines()[1:]
    image = lines[0].split()[1]
    assert f'"{image}"' in configured, "the infrastructure's image is not the configured one"


@pytest.mark.testbed_claim("k8s-pod-infra-shares-netns-with-apps")
def test_infrastructure_and_applications_share_a_namespace(
    made: dict[str, Pod], observe: Observation
) -> None:
    for name in (TALK, FOUR[0]):
        one = made[name]
        program = observe.run(one.node, ["readlink", f"/proc/{one.pid}/exe"]).stdout.strip()
        assert program == PAUSE, f"the infrastructure's process is {program}"
        found = namespaces(observe, one)
        observe.holds(
            len(found) > 1 and len(set(found.values())) == 1,
            f"{PAUSE} of {name} and {', '.join(one.containers)} are in one network namespace",
        )


@pytest.mark.testbed_claim("k8s-pod-one-netns-per-pod")
def test_eight_containers_are_in_four_namespaces(
    made: dict[str, Pod], observe: Observation
) -> None:
    found = [list(namespaces(observe, made[name]).values()) for name in FOUR]
    every = [one for of_pod in found for one in of_pod]
    assert len(every) == 8
    observe.holds(len(set(every)) == 4, f"they are in {len(set(every))} network namespaces")
    observe.holds(all(len(set(of_pod)) == 1 for of_pod in found), "the two of a Pod in the same")


# -- Pods ------------------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-pod-made-of-containers")
def test_a_pod_has_one_container_or_more(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    for name, wanted in ((FOUR[0], ["web"]), (TALK, list(APPS))):
        status = cluster.get(observe, "pod", name)["status"]["containerStatuses"]
        names = sorted(one["name"] for one in status)
        observe.holds(names == wanted, f"{name} consists of {', '.join(names)}")

    def taken(*parts: dict[str, Any]) -> bool:
        """Tell whether the API would accept a Pod of these containers, without creating it."""
        body = {"apiVersion": "v1", **pod(fresh_name())}
        body["spec"]["containers"] = list(parts)
        words = ("create", "--dry-run=server", "--filename=-")
        return cluster.kubectl(observe, *words, input=body, check=False).ok

    observe.holds(taken(sleeper("a")), "the API takes a Pod of one container")
    observe.holds(taken(sleeper("a"), sleeper("b")), "and one of two")
    observe.holds(not taken(), "it refuses one of none")


@pytest.mark.testbed_claim("k8s-pod-smallest-unit")
def test_the_pod_is_the_smallest_unit_that_is_scheduled(
    cluster: Cluster, observe: Observation
) -> None:
    kinds = cluster.kubectl(observe, "api-resources", "--no-headers").stdout.splitlines()
    observe.holds(
        not any(line.split()[-1] == "Container" for line in kinds), "the API has no containers"
    )
    core = cluster.kubectl(observe, "get", "--raw", "/api/v1").json()["resources"]
    bound = [one["name"] for one in core if one["name"].endswith("/binding")]
    observe.holds(bound == ["pods/binding"], f"what can be bound to a node: {', '.join(bound)}")
    nodes = cluster.get(observe, "nodes")["items"]
    most = max(_millicores(one["status"]["allocatable"]["cpu"]) for one in nodes)
    half = {"requests": {"cpu": f"{most * 6 // 10}m"}}
    alone, both = fresh_name(), fresh_name()
    bodies = [
        pod(alone, containers=[sleeper("a", resources=half)]),
        pod(both, containers=[sleeper("a", resources=half), sleeper("b", resources=half)]),
    ]
    try:
        for body in bodies:
            cluster.create(body)
        decided = {name: _scheduled(cluster, name) for name in (alone, both)}
        observe.note("what the scheduler has decided", decided)
    finally:
        for name in (alone, both):
            cluster.delete("Pod", name)
    assert decided[alone]["status"] == "True", "one container of that size fits on a node"
    observe.holds(
        decided[both]["status"] == "False" and decided[both].get("reason") == "Unschedulable",
        "two of that size, of one Pod, are on no node: they are not placed one by one",
    )


def _millicores(text: str) -> int:
    """Parse a CPU quantity of the API, "2" or "1900m", into millicores."""
    return int(text[:-1]) if text.endswith("m") else int(float(text) * 1000)


def _scheduled(cluster: Cluster, name: str) -> dict[str, Any]:
    """Wait for a Pod's condition PodScheduled, and return it."""

    def condition() -> dict[str, Any] | None:
        found = cluster.find("Pod", name) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return next((dict(c) for c in conditions if c["type"] == "PodScheduled"), None)

    return cluster.until(condition, f"the scheduler's word on {name}")


# -- one address for all containers -------------------------------------------------------


@pytest.mark.testbed_claim("k8s-pod-each-container-own-ip")
def test_each_container_has_an_address_of_its_own(
    made: dict[str, Pod], observe: Observation
) -> None:
    a, b = (own_addresses(observe, made[TALK], name) for name in ("a", "b"))
    observe.holds(a and b and not a & b, f"a has {', '.join(a)}, b has {', '.join(b)}")


@pytest.mark.testbed_claim("k8s-pod-containers-share-ip")
def test_all_containers_have_the_pods_address(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    address = cluster.get(observe, "pod", TALK)["status"]["podIP"]
    for name in APPS:
        found = own_addresses(observe, made[TALK], name)
        observe.holds(found == {address}, f"{name} has {', '.join(found)}, the Pod {address}")


@pytest.mark.testbed_claim("k8s-pod-own-ip-and-netns")
def test_each_pod_has_an_address_and_a_namespace(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    node = made[TALK].node
    host = namespace(observe, node, 1)
    plain = [made[name] for name in (TALK, DECLARED, *FOUR)]
    found = {one.name: namespaces(observe, one)[""] for one in plain}
    given = {one.name: one.address for one in plain}
    observe.note("addresses", given)
    observe.holds_when(
        "Pods are as they are by default: no two have an address or a namespace in common",
        len(set(found.values())) == len(set(given.values())) == len(plain)
        and host not in found.values(),
    )
    for one in (made[name] for name in HOSTS):
        observe.fails_when(
            f"hostNetwork is set: {one.name} has {one.address} and the node's namespace",
            one.address == cluster.address(node)
            and set(namespaces(observe, one).values()) == {host},
        )


@pytest.mark.testbed_claim("k8s-pod-model-host")
def test_a_pod_can_have_the_nodes_network(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    one = made[HOSTS[0]]
    status = cluster.get(observe, "pod", one.name)["status"]
    observe.holds(
        status["podIP"] == status["hostIP"] == cluster.address(one.node),
        f"with hostNetwork the Pod's address is {status['podIP']}, the node's own",
    )
    host = namespace(observe, one.node, 1)
    observe.holds(
        set(namespaces(observe, one).values()) == {host}, "its containers are in the node's"
    )


@pytest.mark.testbed_claim("k8s-pod-unique-ip")
def test_every_pod_has_a_unique_address(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    every = cluster.get(observe, "pods", "--all-namespaces")["items"]
    running = [
        one
        for one in every
        if one["status"]["phase"] == "Running" and "deletionTimestamp" not in one["metadata"]
    ]
    plain = [one["status"]["podIP"] for one in running if not one["spec"].get("hostNetwork")]
    observe.holds_when(
        f"the {len(plain)} Pods with a network of their own are looked at",
        len(plain) >= len(FOUR) and len(set(plain)) == len(plain),
    )
    shared = {made[name].address for name in HOSTS}
    observe.fails_when(
        f"hostNetwork is set: two Pods of a node have {', '.join(shared)}", len(shared) == 1
    )


# -- over localhost ----------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-pod-localhost")
def test_containers_of_a_pod_talk_over_localhost(
    made: dict[str, Pod], observe: Observation
) -> None:
    talk = made[TALK]
    found = {one.address for one in listeners(observe, network(talk, "local"))
             if one.port == LOCAL_PORT}  # fmt: skip
    assert found == {"127.0.0.1"}, f"the server listens on {found}"
    observe.holds(
        page(observe, Within(talk, "a"), "127.0.0.1", LOCAL_PORT),
        "a gets the page of a server that listens on 127.0.0.1 in another container",
    )
    others = page(observe, made[HOSTS[0]], "127.0.0.1", LOCAL_PORT)
    observe.holds(not others, "whoever is not of the Pod does not get it on 127.0.0.1")
    by_address = page(observe, made[FOUR[0]], talk.address, LOCAL_PORT)
    observe.holds(not by_address, "nor at the Pod's address")


@pytest.mark.testbed_claim("k8s-pod-localhost-without-network")
def test_localhost_needs_no_network(made: dict[str, Pod], observe: Observation) -> None:
    talk = made[TALK]
    a, port = network(talk, "a"), port_of(observe, talk)
    with captures((talk.node, port, f"tcp port {LOCAL_PORT}")) as (seen,):
        answered = page(observe, a, "127.0.0.1", LOCAL_PORT)
    note(observe, seen)
    observe.holds(answered, "a is answered on 127.0.0.1")
    observe.holds(not seen.packets, f"nothing of that passes {port}, the Pod's link to its node")
    server = made[FOUR[0]].address
    with link_down(observe, talk.node, port):
        cut = not ping(observe, talk, server, seconds=SOON)
        answered = page(observe, a, "127.0.0.1", LOCAL_PORT)
    assert cut, "the Pod still reaches another Pod"
    observe.holds(answered, f"with {port} down a is answered on 127.0.0.1 all the same")


@pytest.mark.testbed_claim("k8s-pod-http-a-to-b")
def test_a_gets_an_http_answer_from_b(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    assert made, "the Pods run"
    asked = ["curl", "-sS", "--max-time", f"{patient(cluster.control, helpers.LATE):g}", "-i"]
    argv = ["exec", TALK, "--container=a", "--", *asked, f"http://localhost:{PORT}/"]
    answer = cluster.kubectl(observe, *argv, check=False).stdout
    observe.holds(
        answer.startswith("HTTP/1.1 200 ") and f'"name": "{TALK}"' in answer,
        f"curl in a has the page of http://localhost:{PORT}/, where b listens",
    )


@pytest.mark.testbed_claim("k8s-pod-ip-usable-inside")
def test_the_pods_address_serves_inside(made: dict[str, Pod], observe: Observation) -> None:
    talk = made[TALK]
    packets = f"tcp port {PORT}"
    a = network(talk, "a")
    with captures((a, "lo", packets), (talk, "eth0", packets)) as (lo, eth0):
        answer = page(observe, a, talk.address, PORT)
    note(observe, lo, eth0)
    observe.holds(
        answer and answer["name"] == TALK, f"a has b's page at the Pod's address {talk.address}"
    )
    observe.holds(lo.packets and not eth0.packets, "its packets pass lo, and none passes eth0")


@pytest.mark.testbed_claim("k8s-pod-separate-ports")
def test_containers_of_a_pod_need_ports_of_their_own(
    made: dict[str, Pod], observe: Observation
) -> None:
    a = network(made[TALK], "a")

    def refused(port: int) -> bool:
        """Tell whether a server in container a finds the port in use."""
        words = f"import socket; socket.create_server(('', {port}))"
        result = observe.run(a, [*INTERPRETER, words], check=False)
        return "Address already in use" in result.stderr

    observe.holds(refused(PORT), f"b has the port {PORT}: a server in a cannot have it, too")
    observe.holds(not refused(OTHER_PORT), f"it can have {OTHER_PORT}, which nobody has")


@pytest.mark.testbed_claim("k8s-pod-port-mapping-defines-communication")
def test_declared_ports_decide_what_is_reached(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    reached: dict[str, list[int]] = {}
    for name in (TALK, DECLARED):
        spec = cluster.get(observe, "pod", name)["spec"]["containers"]
        observe.note(f"ports of {name}", {one["name"]: one.get("ports") for one in spec})
        asked = {port: page(observe, network(made[name], "a"), "127.0.0.1", port)
                 for port in (PORT, OTHER_PORT)}  # fmt: skip
        reached[name] = [port for port, answer in asked.items() if answer]
    observe.note("answered", reached)
    observe.holds(
        reached[TALK] != reached[DECLARED],
        f"where b declares port {OTHER_PORT} a is answered on other ports than where it declares "
        f"none: {reached[DECLARED]} and {reached[TALK]}",
    )


# -- between Pods --------------------------------------------------------------------------


#: Arguments are seconds and addresses: pings and fetches from each, all at once.  A Pod that runs
#: may not listen yet, or may close a connection while it starts: each error is tried again.
ASK_ALL = """
seconds=$1; shift
for address; do
  ping -n -q -c 1 -W "$seconds" "$address" > /dev/null && echo "ping $address" &
  curl -sS -o /dev/null --noproxy '*' --max-time "$seconds" --retry-max-time "$seconds" \
    --retry 60 --retry-delay 1 --retry-all-errors "http://$address/" && echo "TCP $address" &
done
wait
"""


def _asks(observe: Observation, one: Pod, others: Sequence[Pod]) -> set[str]:
    """Return the answers that a Pod gets: "ping ADDRESS", "TCP ADDRESS"."""
    seconds = f"{patient(one, helpers.LATE):g}"
    argv = ["sh", "-c", ASK_ALL, "sh", seconds, *(other.address for other in others)]
    return set(observe.run(one, argv).stdout.splitlines())


@pytest.mark.testbed_claim("k8s-pod-to-pod")
def test_every_pod_reaches_every_other(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    standing = [cluster.pod(name) for name in ("client", "web-1", "web-2")]
    others = [made[f"on-{node.name}"] for node in cluster.nodes[1:-1]]
    every = [*standing, *others, made[FOUR[0]]]
    places = {one.node.name for one in every}
    assert places == {node.name for node in cluster.nodes}, "a node has no Pod that is asked"
    for one in every:
        others = [other for other in every if other is not one]
        answers = _asks(observe, one, others)
        silent = {f"{how} {other.address}" for how in ("ping", "TCP") for other in others} - answers
        observe.holds(
            not silent,
            f"{one.name} on {one.node.name} is answered by {len(others)} Pods on "
            f"{len(places)} nodes, by ping and by TCP"
            + (f", but not: {', '.join(sorted(silent))}" if silent else ""),
        )


@pytest.mark.testbed_claim("k8s-pod-no-nat-no-port-mapping")
def test_nothing_is_translated_between_pods(cluster: Cluster, observe: Observation) -> None:
    client, server = cluster.pod("client"), cluster.pod("web-2")
    assert client.node.name != server.node.name
    packets = f"tcp port 80 and host {server.address}"
    with captures((client, "eth0", packets), (server, "eth0", packets)) as (here, there):
        answer = page(observe, client, server.address)
        if answer:
            wait_closed(here, there)
    note(observe, here, there)
    seen = client_of(answer) if answer else "nobody"
    observe.holds(seen == client.address, f"{client.address} asks, and the server sees {seen}")
    sent, got = (
        sorted(repr(same(p)) for p in between(one.packets, client.address, server.address))
        for one in (here, there)
    )
    observe.holds(
        sent and sent == got,
        f"the {len(sent)} packets are the same at both ends: addresses, ports and contents",
    )
    ports = {p.sport for p in here.packets if p.is_syn}
    for node in (client.node, server.node):
        every = flows(observe, node, "--orig-dst", server.address, "--orig-port-dst", "80")
        tracked = [flow for flow in every if flow.original.sport in ports]
        observe.holds(
            tracked and not any(flow.is_translated for flow in tracked),
            f"{node.name} tracks the connection, and translates nothing of it",
        )


@pytest.mark.testbed_claim("k8s-pod-model-overlay")
@pytest.mark.testbed_needs("pods-over-vxlan")
def test_packets_between_nodes_are_wrapped(cluster: Cluster, observe: Observation) -> None:
    client, server = cluster.pod("client"), cluster.pod("web-2")
    points = [(node, "eth0", "ip") for node in (client.node, server.node)]
    with captures(*points) as seen:
        answer = page(observe, client, server.address)
    assert answer, "no answer comes"
    both = {client.address, server.address}
    for one in seen:
        inside = [made for p in one.packets if (made := p.vxlan())]
        ours = [(vni, p) for vni, p in inside if {p.src, p.dst} == both]
        observe.note(f"tcpdump on {one}, in VXLAN", "\n".join(f"VNI {vni} {p}" for vni, p in ours))
        asked = [p for _, p in ours if p.payload.startswith(b"GET / ")]
        observe.holds(asked, f"{one} has the request, wrapped in a datagram between the nodes")
        bare = [p for p in one.packets if {p.src, p.dst} == both]
        observe.holds(not bare, f"{one} has none of the Pods' packets unwrapped")


# -- outside Pods ----------------------------------------------------------------------------


@pytest.mark.testbed_claim("k8s-pod-inside-and-outside")
@pytest.mark.testbed_needs("gateway")
def test_a_pod_reaches_pods_and_the_world(
    cluster: Cluster, outside: Node, observe: Observation
) -> None:
    client, server = cluster.pod("client"), cluster.pod("web-2")
    answer = page(observe, client, server.address)
    observe.holds(answer and answer["name"] == "web-2", "a Pod of another node answers")
    with serving(outside, NODE_PORT):
        answer = page(observe, client, cluster.address(outside), NODE_PORT)
    observe.holds(answer and answer["name"] == outside.name, "a machine outside answers")
    if answer:
        seen = client_of(answer)
        observe.holds(
            seen == cluster.address(client.node), f"it sees {seen}, the address of the Pod's node"
        )


@pytest.mark.testbed_claim("k8s-pod-to-node-ip")
def test_a_pod_reaches_its_node_by_address(cluster: Cluster, observe: Observation) -> None:
    client = cluster.pod("client")
    address = cluster.get(observe, "pod", "client")["status"]["hostIP"]
    with serving(client.node, NODE_PORT):
        answer = page(observe, client, address, NODE_PORT)
    observe.holds(answer and answer["name"] == client.node.name, f"its server answers at {address}")
    observe.holds(ping(observe, client, address), "it answers a ping")


@pytest.mark.testbed_claim("k8s-pod-to-node-loopback")
def test_a_pod_reaches_its_node_over_loopback(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    client, host = cluster.pod("client"), made[HOSTS[0]]
    node = client.node
    assert host.node.name == node.name
    with serving(node, NODE_PORT, "127.0.0.1"):
        answer = page(observe, network(host, "sleeper"), "127.0.0.1", NODE_PORT)
        own = page(observe, client, "127.0.0.1", NODE_PORT)
    observe.holds_when(
        "hostNetwork is set: the node's server on 127.0.0.1 answers",
        answer and answer["name"] == node.name,
    )
    observe.fails_when("the Pod has a network of its own: nobody answers there", not own)


@pytest.mark.testbed_claim("k8s-pod-node-files-devices")
def test_files_of_the_node_come_over_the_network(
    made: dict[str, Pod], observe: Observation
) -> None:
    talk = made[TALK]
    text = fresh_name("words")
    talk.node.put(text.encode(), f"{FOLDER}/file")

    def read(container: str) -> str:
        return observe.run(Within(talk, container), ["cat", "/node/file"], check=False).stdout

    assert read("a") == text, "a does not see the node's file by its volume"
    assert read("b") != text, "b, which has the same network and no volume, sees the file"
    port = port_of(observe, talk)
    with link_down(observe, talk.node, port):
        cut = not ping(observe, talk, made[FOUR[0]].address, seconds=SOON)
        found = read("a")
    assert cut, "the Pod still reaches another Pod"
    observe.holds(found != text, f"with {port} down, a no longer reads the node's file")


# -- measurements ------------------------------------------------------------------------------

LOCALHOST, NEIGHBOUR, FAR = "localhost", "a Pod of the same node", "a Pod of another node"
ROUNDS = 9
OCTETS = 30_000_000


@pytest.fixture(scope="module")
def measured(cluster: Cluster) -> Rounds:
    """Measure a Pod to itself, to a Pod beside it and to one of another node, in turn."""
    client, beside, far = (cluster.pod(name) for name in ("client", "web-1", "web-2"))
    assert client.node.name == beside.node.name != far.node.name
    need_iperf3(client.node, far.node)
    prefix = on_one_cpu(client.node)
    targets = {LOCALHOST: "127.0.0.1", NEIGHBOUR: beside.address, FAR: far.address}
    ways = [Way(name, client, address, prefix=prefix) for name, address in targets.items()]
    rounds = Rounds()
    with (
        measured_server(client, "127.0.0.1"),
        measured_server(beside),
        measured_server(far),
    ):
        for _ in range(ROUNDS):
            for way in ways:
                rounds.stream(way, OCTETS)
            rounds.trips(*ways)
    return rounds


@pytest.mark.testbed_claim("k8s-pod-localhost-latency")
@pytest.mark.testbed_alone
def test_localhost_is_the_shortest_way(observe: Observation, measured: Rounds) -> None:
    measured.keep(observe)
    for other in (NEIGHBOUR, FAR):
        longer = measured.decide(observe, P50, other, LOCALHOST)
        if longer is not None:
            observe.holds(longer, f"a round trip to {other} takes longer than over localhost")


@pytest.mark.testbed_claim("k8s-pod-localhost-throughput")
@pytest.mark.testbed_alone
def test_localhost_carries_most(observe: Observation, measured: Rounds) -> None:
    measured.keep(observe)
    for other in (NEIGHBOUR, FAR):
        more = measured.decide(observe, THROUGHPUT, LOCALHOST, other)
        if more is not None:
            observe.holds(more, f"localhost carries more than the way to {other}")


# -- the end of an infrastructure container: last, because it replaces its Pod ------------------


@pytest.mark.testbed_claim("k8s-pod-infra-container-needed")
def test_every_pod_needs_its_infrastructure_container(
    cluster: Cluster, made: dict[str, Pod], observe: Observation
) -> None:
    for one in made.values():
        program = observe.run(one.node, ["readlink", f"/proc/{one.pid}/exe"]).stdout.strip()
        observe.holds(program == PAUSE, f"{one.name} has one, whose process is {program}")
    before = cluster.pod(MORTAL)
    observe.run(before.node, ["kill", "-KILL", str(before.pid)])

    def replaced() -> Pod | None:
        """Return the Pod with new containers, once all of them run."""
        try:
            now = cluster.pod(MORTAL)
        except LabError:  # it is not running at this moment
            return None
        both = {"": now.ids[""], **{name: now.ids[name] for name in now.containers}}
        other = not set(both.values()) & set(before.ids.values())
        return now if other and set(both) == set(before.ids) else None

    observe.note("containers before", dict(before.ids))
    after = cluster.until(replaced, f"{MORTAL}, made anew by its kubelet")
    observe.note("containers after", dict(after.ids))
    observe.holds(after, "where it dies the kubelet makes another, and all containers anew")
