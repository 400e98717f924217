"""Document 004, CNI's plugins, called by hand and by a cluster.

Lab: k8s-two-node.  Only one node is given a second network, and only while a Pod that joins
it runs.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address, ip_interface
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.roles.kubernetes import config
from testbed.suites import helpers
from testbed.suites.cluster import NAMESPACE, SECOND, Within, pod
from testbed.suites.helpers import (
    SOON,
    addresses,
    answers,
    client_of,
    comes,
    fetch,
    kind,
    last_host,
    link,
    links,
    namespace,
    outside_node,
    routes,
    scratch_machine,
    undone,
)

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node, Result
    from testbed.suites.cluster import Cluster, Pod
    from testbed.suites.helpers import Inside

RESULTS = "/var/lib/cni/results"  #: folder in which libcni stores the result of each call


def plugins(lab: LiveLab, node: Node) -> str:
    """Return a node's folder of the reference plugins."""
    (folder,) = lab.context.store.path_dirs("cni-plugins")
    return node.provide(folder)


def containerd(lab: LiveLab, node: Node) -> str:
    """Return the path of a node's containerd."""
    return node.provide(lab.context.store.binary("containerd", "docker"))


@dataclass(frozen=True, slots=True)
class Joined:
    """One call of CNI's ADD by containerd, as stored by libcni.

    ``container`` is the id of its container, ``arguments`` come from the kubelet, ``plugins`` is
    the network's configuration at that time, ``result`` the result of the call.
    """

    container: str
    network: str
    interface: str
    arguments: Mapping[str, str]
    plugins: Mapping[str, Any]
    result: Mapping[str, Any]

    @property
    def pod(self) -> tuple[str, str]:
        """Namespace and name of the Pod."""
        names = ("K8S_POD_NAMESPACE", "K8S_POD_NAME")
        return (self.arguments.get(names[0], ""), self.arguments.get(names[1], ""))

    @property
    def addresses(self) -> list[str]:
        """Addresses assigned by the plugin, without their prefix lengths."""
        found = [str(ip_interface(one["address"]).ip) for one in self.result.get("ips", ())]
        return list(dict.fromkeys(found))


def calls(node: Node) -> list[Joined]:
    """Return the calls of containers still joined to a network, without the loopback's."""
    # Each file is one line without a line end (libcni's cache, of kind cniCacheV1).
    script = f"for file in {RESULTS}/*; do [ -f $file ] && cat $file && echo; done; true"
    found = []
    for line in filter(str.strip, node.run(["sh", "-c", script]).stdout.splitlines()):
        with contextlib.suppress(json.JSONDecodeError):  # a file that is being written
            found.append(json.loads(line))
    return [
        Joined(
            container=one["containerId"],
            network=one["networkName"],
            interface=one["ifName"],
            arguments=dict(one.get("cniArgs") or ()),
            plugins=json.loads(base64.b64decode(one["config"])),
            result=one["result"],
        )
        for one in found
        if one["ifName"] != "lo"
    ]


def joined(observe: Observation, pod: Pod) -> list[Joined]:
    """Return the calls for any of a Pod's containers, recorded."""
    found = [one for one in calls(pod.node) if one.container in set(pod.ids.values())]
    for one in found:
        observe.note(f"{pod.node.name}: CNI's ADD for {pod.name}, from {RESULTS}", vars_of(one))
    return found


def vars_of(call: Joined) -> dict[str, Any]:
    """Return the fields of a call to record as evidence."""
    return {
        "container": call.container,
        "network": call.network,
        "plugins": [one["type"] for one in call.plugins.get("plugins", ())],
        "interface": call.interface,
        "arguments": call.arguments,
        "result": call.result,
    }


def wait_settled(cluster: Cluster, node: Node) -> None:
    """Wait until no Pod that is gone from the API still has its network.

    Networks are removed from Pods with the configuration at that time: it must not change
    before.
    """

    def settled() -> bool:
        asked = f"/api/v1/pods?fieldSelector=spec.nodeName%3D{node.name}"
        there = {
            (one["metadata"]["namespace"], one["metadata"]["name"])
            for one in cluster.api.ask("GET", asked)["items"]
        }
        return {one.pod for one in calls(node)} <= there

    cluster.until(settled, f"the end of the networks of Pods that are gone from {node.name}")


# -- by hand, without a cluster -------------------------------------------------


GATEWAY = "198.18.0.1"  # the first address of the network below
#: A network of the bridge plugin that no lab uses (RFC 2544: for tests).
BY_HAND = {
    "cniVersion": "0.4.0",
    "name": "by-hand",
    "type": "bridge",
    "bridge": "hand0",
    "isGateway": True,
    "isDefaultGateway": True,
    "ipam": {
        "type": "host-local",
        "dataDir": "/run/by-hand",
        "ranges": [[{"subnet": "198.18.0.0/24"}]],
    },
}


@dataclass(slots=True)
class ByHand:
    """The effects of a plugin on an empty network namespace, step by step.

    ``added``, ``checked`` and ``deleted`` are its calls; ``before``, ``after`` and ``end`` are
    the links of the namespace; ``answers`` tells whether the other end of its link answered,
    ``reachable`` whether the machine can reach the API.
    """

    seen: Observation
    reachable: bool
    before: list[str]
    routes_before: list[dict[str, Any]]
    added: Result
    after: list[str]
    link: dict[str, Any]
    addresses: list[str]
    routes: list[dict[str, Any]]
    bridge: list[str]
    answers: bool
    checked: Result
    deleted: Result
    end: list[str]

    @property
    def result(self) -> dict[str, Any]:
        """The plugin's result, {} if it failed."""
        return dict(self.added.json()) if self.added.ok else {}


@pytest.fixture(scope="module")
def by_hand(lab: LiveLab, cluster: Cluster) -> ByHand:
    """Call the reference plugin ``bridge`` on a machine without network and runtime."""
    observe = Observation()
    node = cluster.other
    folder = plugins(lab, node)
    with scratch_machine(node, "bare machine") as machine:
        argv = ["curl", "-sk", "-m", "1", "-o", "/dev/null", config.server(lab.topology)]
        reachable = observe.run(machine, argv, check=False).ok
        observe.run(machine, ["ls", "/run"])
        machine.run(["ip", "netns", "add", "bare"])
        inside = machine.netns("bare")

        def names() -> list[str]:
            return [one["ifname"] for one in links(observe, inside)]

        before, routes_before = names(), routes(observe, inside)
        added = call(observe, machine, folder, "ADD", BY_HAND)
        after, found = names(), link(observe, inside, "eth0")
        own = [str(one) for one in addresses(observe, inside)]
        table = routes(observe, inside)
        bridge = [str(one) for one in addresses(observe, machine)]
        answered = answers(observe, inside, GATEWAY)
        known = {**BY_HAND, "prevResult": added.json() if added.ok else {}}
        checked = call(observe, machine, folder, "CHECK", known)
        deleted = call(observe, machine, folder, "DEL", known)
        return ByHand(
            observe, reachable, before, routes_before, added, after, found, own, table, bridge,
            answered, checked, deleted, names(),
        )  # fmt: skip


def call(
    observe: Observation, machine: Inside, folder: str, command: str, network: Mapping[str, Any]
) -> Result:
    """Call a plugin as the CNI specification defines: environment, JSON on standard input."""
    words = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "by-hand",
        "CNI_NETNS": "/run/netns/bare",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": folder,
    }
    environment = [f"{name}={value}" for name, value in words.items()]
    argv = ["env", "-i", *environment, f"{folder}/{network['type']}"]
    result = machine.run(argv, input=json.dumps(network).encode(), check=False)
    seen = {
        "environment": words,
        "standard input": network,
        "exit status": result.status,
        "standard output": result.json() if result.ok else result.stdout,
    }
    observe.note(f"{machine.name}# {network['type']}, {command}", seen)
    return result


#: Options of a program (its argument) that would concern CNI, and one that the kubelet has.
OPTIONS = """ "$1" --help 2>&1 | grep -iE 'cni|network-plugin|--node-ip' """


@pytest.mark.testbed_claim("cni-independent-plugins")
@pytest.mark.testbed_needs("kubernetes")
def test_a_plugin_needs_no_kubernetes(
    cluster: Cluster, by_hand: ByHand, observe: Observation
) -> None:
    observe.evidence += by_hand.seen.evidence
    assert not by_hand.reachable, "the API answers on the bare machine"
    observe.holds(
        by_hand.added.ok and by_hand.checked.ok and by_hand.deleted.ok,
        "ADD, CHECK and DEL end well where there is no runtime, and no API can be asked",
    )
    observe.holds(by_hand.answers, "the namespace is joined to the machine: the bridge answers it")
    program = f"/proc/{cluster.control.services()['kubelet'].pid}/exe"
    options = observe.run(cluster.control, ["sh", "-c", OPTIONS, "sh", program]).stdout.splitlines()
    assert options, "the kubelet does not tell its options"
    observe.holds(
        [line.split()[0] for line in options] == ["--node-ip"],
        "the kubelet has no option of CNI: plugins are the runtime's affair",
    )


@pytest.mark.testbed_claim("cni-assigns-ip")
@pytest.mark.testbed_needs("kubernetes")
def test_the_plugin_gives_the_address(
    cluster: Cluster, by_hand: ByHand, observe: Observation
) -> None:
    observe.evidence += by_hand.seen.evidence
    given = [one["address"] for one in by_hand.result.get("ips", ())]
    observe.holds(
        given and by_hand.addresses == given,
        f"by hand: the result says {', '.join(given) or 'nothing'}, and so does the namespace",
    )
    for name in ("web-1", "web-2"):
        tenant = cluster.pod(name)
        given = [address for one in joined(observe, tenant) for address in one.addresses]
        given = [one for one in given if ":" not in one]  # a dual-stack Pod has one of IPv6, too
        found = [str(one.ip) for one in addresses(observe, tenant, "eth0")]
        observe.holds(
            given == found == [tenant.address],
            f"{name}: the plugin's result says {given}, its eth0 {found}, "
            f"status.podIP {tenant.address}",
        )


@pytest.mark.testbed_claim("cni-creates-interface")
@pytest.mark.testbed_needs("kubernetes")
def test_the_plugin_makes_the_interface(
    cluster: Cluster, by_hand: ByHand, observe: Observation
) -> None:
    observe.evidence += by_hand.seen.evidence
    assert by_hand.before == ["lo"], "the namespace was not bare"
    observe.holds(by_hand.after == ["lo", "eth0"], "by hand: after ADD there is lo and eth0")
    observe.holds(kind(by_hand.link) == "veth", "eth0 is one end of a veth pair")
    observe.holds(by_hand.end == ["lo"], "after DEL there is lo alone")
    tenant = cluster.pod("web-2")
    made = next(iter(joined(observe, tenant)), None)
    names = [one["ifname"] for one in links(observe, tenant)]
    observe.holds(
        made and made.interface in names and set(names) == {"lo", made.interface},
        f"web-2: beside lo there is only the interface that the plugin was asked for: {names}",
    )


@pytest.mark.testbed_claim("cni-configures-environment")
@pytest.mark.testbed_needs("kubernetes")
def test_the_plugin_sets_the_routes(
    cluster: Cluster, by_hand: ByHand, observe: Observation
) -> None:
    observe.evidence += by_hand.seen.evidence
    assert by_hand.routes_before == [], "the namespace was not bare"
    wanted = {(one["dst"], one.get("gw")) for one in by_hand.result.get("routes", ())}
    found = {
        ("0.0.0.0/0" if one["dst"] == "default" else one["dst"], one.get("gateway"))
        for one in by_hand.routes
    }
    observe.holds(
        wanted and wanted <= found, f"by hand: the routes of the result are there: {sorted(wanted)}"
    )
    gateways = {gateway for _, gateway in wanted}
    own = {str(ip_interface(one).ip) for one in by_hand.bridge}
    observe.holds(gateways and gateways <= own, "their gateway is the bridge, with its address")
    tenant = cluster.pod("web-2")
    made = next(iter(joined(observe, tenant)), None)
    # A result's routes may only declare that a route exists (Calico's do).
    defaults = [one["dev"] for one in routes(observe, tenant) if one["dst"] == "default"]
    observe.holds(
        made and defaults == [made.interface],
        "web-2: it has a default route, by the interface that CNI was called for",
    )


@pytest.mark.testbed_claim("cni-layer-docker-to-docker")
@pytest.mark.testbed_needs("kubernetes")
def test_cni_is_called_for_a_pod_not_for_its_containers(
    cluster: Cluster, observe: Observation
) -> None:
    client, server, pair = (cluster.pod(name) for name in ("client", "web-2", "pair"))
    each = [joined(observe, one) for one in (client, server)]
    page = fetch(observe, client, f"http://{server.address}/")
    observe.holds_when(
        "the containers are of two Pods: CNI was called once for each, and one reaches the other",
        [len(made) for made in each] == [1, 1] and page and page["name"] == "web-2",
    )
    made = joined(observe, pair)
    observe.note("the containers of pair, by name", dict(pair.ids))
    assert len(pair.containers) == 2
    spaces = {namespace(observe, pair.node, pid) for pid in pair.containers.values()}
    page = fetch(observe, Within(pair, "a"), "http://127.0.0.1:8080/")
    observe.fails_when(
        "the containers are of one Pod: CNI was called for its infrastructure container alone, "
        "and they reach each other within its one network namespace",
        [one.container for one in made] == [pair.ids[""]] and len(spaces) == 1 and page,
    )


# -- another network for one node -------------------------------------------------


LEASES = "/run/check-macvlan"  # folder of its address leases
MASTER = "eth0"  # a node's link to its first network


def second_network(lab: LiveLab, node: Node, gateway: str) -> dict[str, Any]:
    """Return a network list that joins a Pod to the node's LAN, by macvlan."""
    subnet = lan(lab, node)
    last = last_host(subnet)
    scope = {"subnet": str(subnet), "rangeStart": str(last - 7), "rangeEnd": str(last)}
    return {
        "cniVersion": "0.4.0",
        "name": "check-macvlan",
        "plugins": [
            {
                "type": "macvlan",
                "master": MASTER,
                "mode": "bridge",
                "ipam": {
                    "type": "host-local",
                    "dataDir": LEASES,
                    "ranges": [[{**scope, "gateway": gateway}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def lan(lab: LiveLab, node: Node) -> IPv4Network:
    """Return the network of a node's eth0."""
    return lab.topology.nodes[node.name].ports[0].interfaces[0].network


@dataclass(slots=True)
class Second:
    """Observations of a Pod on a second network while the others keep theirs.

    Pages are None if none came; ``daemons`` are the process ids of kubelet and containerd
    before and after.
    """

    seen: Observation
    calls: list[Joined]
    link: dict[str, Any]
    status: str
    own: list[str]
    from_outside: dict[str, Any] | None
    from_its_node: dict[str, Any] | None
    to_a_service: dict[str, Any] | None
    control: dict[str, Any] | None
    first_network: dict[str, Any] | None
    daemons: tuple[dict[str, int], dict[str, int]]


@pytest.fixture(scope="module")
def second(lab: LiveLab, cluster: Cluster) -> Second:
    """Join a Pod of the other node by macvlan, only with a file in CNI's folder."""
    observe = Observation()
    node, outside = cluster.other, outside_node(lab)
    trial = ["ip", "link", "add", "check0", "link", MASTER, "type", "macvlan"]
    if not node.run(trial, check=False).ok:
        pytest.skip(f"the kernel of {node.name} makes no macvlan devices")
    node.run(["ip", "link", "delete", "check0"])
    network = second_network(lab, node, cluster.address(outside))
    web = cluster.api.ask("GET", f"/api/v1/namespaces/{NAMESPACE}/services/web")
    url = f"http://{web['spec']['clusterIP']}/"
    client, tenant = cluster.pod("client"), cluster.pod("web-2")
    before = daemons(node)
    with (
        plugged_in(cluster, observe, node, network),
        cluster.pods(observe, pod("on-the-lan", node=node.name)) as (member,),
    ):
        page = f"http://{member.address}/"
        return Second(
            seen=observe,
            calls=joined(observe, member),
            link=link(observe, member, "eth0"),
            status=member.address,
            own=[str(one.ip) for one in addresses(observe, member, "eth0")],
            from_outside=fetch(observe, outside, page),
            from_its_node=fetch(observe, node, page, seconds=SOON),
            to_a_service=fetch(observe, member, url, seconds=SOON),
            control=fetch(observe, client, url),
            first_network=fetch(observe, client, f"http://{tenant.address}/"),
            daemons=(before, daemons(node)),
        )


def daemons(node: Node) -> dict[str, int]:
    """Return the process ids of the daemons that use plugins."""
    found = node.services()
    return {name: found[name].pid for name in ("containerd", "kubelet")}


@contextlib.contextmanager
def plugged_in(
    cluster: Cluster, observe: Observation, node: Node, network: Mapping[str, Any]
) -> Iterator[None]:
    """Add a network list to a node, for Pods that start and end within the block."""
    wait_settled(cluster, node)
    observe.note(f"{node.name}: {SECOND}", network)
    node.put(json.dumps(network).encode(), SECOND)
    try:
        yield
    finally:
        try:
            wait_settled(cluster, node)
        finally:
            node.run(["rm", "-rf", SECOND, LEASES])


@pytest.mark.testbed_claim("cni-pluggable")
@pytest.mark.testbed_needs("kubernetes", "gateway")
def test_another_network_is_plugged_in_by_a_file(second: Second, observe: Observation) -> None:
    observe.evidence += second.seen.evidence
    used = [plugin["type"] for one in second.calls for plugin in one.plugins["plugins"]]
    observe.holds(
        used == ["macvlan"] and kind(second.link) == "macvlan",
        f"with one file more on a node, the next Pod there is joined by {', '.join(used)}",
    )
    observe.holds(second.daemons[0] == second.daemons[1], "kubelet and containerd just run on")
    page = second.from_outside
    observe.holds(page and page["name"] == "on-the-lan", "the new Pod answers in its network")
    page = second.first_network
    observe.holds(page and page["name"] == "web-2", "at the same time, the others do in theirs")


@pytest.mark.testbed_claim("k8s-pod-model-macvlan")
@pytest.mark.testbed_needs("kubernetes", "gateway")
def test_a_pod_can_be_a_member_of_the_lan(
    lab: LiveLab, cluster: Cluster, second: Second, observe: Observation
) -> None:
    observe.evidence += second.seen.evidence
    assert second.control, "the Service answers nobody"
    member = ip_address(second.status) in lan(lab, cluster.other)
    page = second.from_outside
    observe.holds_when(
        "a machine of the LAN asks it: its eth0 is a macvlan device there, with an address of "
        "the LAN that is its status.podIP",
        kind(second.link) == "macvlan" and member and second.own == [second.status] and page,
    )
    observe.fails_when(
        "its own node asks: a macvlan device and its parent do not reach each other",
        not second.from_its_node,
    )
    observe.fails_when(
        "it asks a Service, whose rules are on the node that its packets do not pass",
        not second.to_a_service,
    )


# -- without a network -------------------------------------------------------------


AWAY = "/run/check-cni"


@contextlib.contextmanager
def without_networks(cluster: Cluster, observe: Observation, node: Node) -> Iterator[None]:
    """Remove all CNI configuration from a node for the time of the block."""
    wait_settled(cluster, node)
    take = f"mkdir -p {AWAY} && mv {config.CNI}/* {AWAY}/"
    back = f"mv {AWAY}/* {config.CNI}/ && rmdir {AWAY}"
    with undone(observe, node, ["sh", "-c", take], ["sh", "-c", back]):
        observe.run(node, ["ls", "-l", config.CNI])
        yield


def readiness(cluster: Cluster, node: Node) -> dict[str, Any]:
    """Return a node's condition Ready, as the API has it."""
    found = cluster.find("Node", node.name)
    assert found
    (ready,) = [one for one in found["status"]["conditions"] if one["type"] == "Ready"]
    return dict(ready)


def wait_ready(cluster: Cluster, node: Node, status: str) -> None:
    """Wait for a status of a node's condition Ready: the kubelet polls its runtime."""
    cluster.until(
        lambda: readiness(cluster, node)["status"] == status,
        f"the condition Ready of {node.name} to be {status}",
    )


@pytest.mark.testbed_claim("cni-default-plugin")
@pytest.mark.testbed_needs("kubernetes")
def test_without_a_plugin_there_is_none(cluster: Cluster, observe: Observation) -> None:
    node = cluster.other
    wait_ready(cluster, node, "True")
    try:
        with without_networks(cluster, observe, node):
            cluster.create(pod("unplugged", node=node.name))

            def is_unready() -> bool:
                return bool(readiness(cluster, node)["status"] == "False")

            def has_address() -> bool:
                return bool((cluster.find("Pod", "unplugged") or {})["status"].get("podIP"))

            cluster.until(
                lambda: is_unready() or has_address(),
                f"the condition Ready of {node.name} to be False, or a Pod to be joined",
            )
            comes(is_unready, helpers.LATE)  # the kubelet polls its runtime every five seconds
            ready = readiness(cluster, node)
            observe.note(f"{node.name}'s condition Ready", ready)
            found = cluster.get(observe, "pod", "unplugged")
        wait_ready(cluster, node, "True")
        observe.note("with the configuration back", readiness(cluster, node))
        cluster.wait_ready("unplugged")
        after = cluster.pod("unplugged").address
    finally:
        cluster.delete("Pod", "unplugged")
    stays = ready["status"] == "True"
    assert stays or "NetworkPluginNotReady" in ready["message"], "not ready for another reason"
    observe.holds(stays, "a node without any configuration of CNI stays Ready")
    observe.holds(found["status"].get("podIP"), "a Pod there gets an address")
    assert after, "with the configuration, the Pod has no address either"


# -- folders and makers of plugins -------------------------------------------------------


#: The document's folders of the programs and of their configuration.
PRINTED = {"bin_dir": "/opt/cni/bin", "conf_dir": "/etc/cni/net.d"}


def folders(observe: Observation, node: Node, program: str, *words: str) -> dict[str, str]:
    """Return the two folders in containerd's configuration, by their keys."""
    text = observe.run(node, [program, *words]).stdout
    plugin = tomllib.loads(text)["plugins"]["io.containerd.grpc.v1.cri"]
    return {name: plugin["cni"][name] for name in PRINTED}


@pytest.mark.testbed_claim("cni-directories")
@pytest.mark.testbed_needs("kubernetes")
def test_the_folders_are_the_runtimes_default(
    lab: LiveLab, cluster: Cluster, observe: Observation
) -> None:
    node = cluster.other
    program = containerd(lab, node)
    default = folders(observe, node, program, "config", "default")
    observe.holds_when("the runtime is told nothing else: its defaults", default == PRINTED)
    told = folders(observe, node, program, f"--config={config.CONTAINERD_FILE}", "config", "dump")
    made = joined(observe, cluster.pod("web-2"))
    used = {f"{told['bin_dir']}/{one['type']}" for call in made for one in call.plugins["plugins"]}
    there = observe.run(node, ["ls", *sorted(used)], check=False).ok
    files = node.run(["sh", "-c", 'cat "$1"/*.conf*', "sh", told["conf_dir"]]).stdout
    observe.note(f"{node.name}: what is in {told['conf_dir']}", files)
    assert used, "no plugin was called for web-2"
    assert made[0].network in files, "the network that web-2 has joined is not configured there"
    observe.fails_when(
        f"it is told so, as in this lab: the programs that joined web-2 are in {told['bin_dir']}",
        there and told != PRINTED,
    )


#: The document's network plugins, and the Go module of each.
MODULES = {
    "Kube-router": "github.com/cloudnativelabs/kube-router",
    "Flannel": "github.com/flannel-io/flannel",
    "Calico": "github.com/projectcalico/calico",
    "Weave Net": "github.com/weaveworks/weave",
    "Cilium": "github.com/cilium/cilium",
}
#: Kubernetes' programs that run on a control plane's node.
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")


def modules(observe: Observation, node: Node, name: str) -> set[str]:
    """Return the plugins' Go modules that a running program contains.

    A Go program holds a line for each of its modules (``go version -m``, runtime/debug.BuildInfo).
    """
    pid = node.services()[name].pid
    wanted = "|".join(re.escape(module) for module in MODULES.values())
    pattern = f"(mod|dep)\t({wanted})(/v[0-9]+)?\t"
    argv = ["env", "LC_ALL=C", "grep", "-aoE", pattern, f"/proc/{pid}/exe"]
    lines = observe.run(node, argv, check=False).stdout.splitlines()
    return {re.sub(r"/v[0-9]+$", "", line.split("\t")[1]) for line in lines}


@pytest.mark.testbed_claim("cni-plugin-list")
@pytest.mark.testbed_needs("kubernetes")
def test_kubernetes_comes_without_a_plugin(cluster: Cluster, observe: Observation) -> None:
    node = cluster.control
    found = {name: modules(observe, node, name) for name in PROGRAMS}
    if "flanneld" in node.services():  # shows that an empty result means no module
        assert modules(observe, node, "flanneld") == {MODULES["Flannel"]}
    everywhere = set().union(*found.values())
    for plugin, module in MODULES.items():
        observe.holds(module in everywhere, f"{plugin} is in one of Kubernetes' own programs")


#: The plugins that the document names here, by their topology names.
NAMED = {"flannel": "Flannel", "calico": "Calico", "weave": "Weave Net"}


@pytest.mark.testbed_claim("cni-plugin-choices")
@pytest.mark.testbed_needs("kubernetes")
def test_the_plugin_joins_pods_of_all_nodes(cluster: Cluster, observe: Observation) -> None:
    plugin = NAMED.get(cluster.spec.cni)
    if plugin is None:
        pytest.skip(f"the lab's Pods are joined by {cluster.spec.cni}, which is not named here")
    one, other, client = (cluster.pod(name) for name in ("web-1", "web-2", "client"))
    for asker, server in ((one, other), (other, one), (client, one), (client, other)):
        page = fetch(observe, asker, f"http://{server.address}/")
        observe.holds(
            page and page["name"] == server.name and client_of(page) == asker.address,
            f"{plugin}: {asker.name} on {asker.node.name} to {server.name} on {server.node.name}",
        )
    if cluster.spec.cni == "flannel" and one.node is not other.node:
        way = flannels_way(observe, one.node, other.address)
        take, put = (["ip", "route", verb, *way.split()] for verb in ("del", "replace"))
        with undone(observe, one.node, take, put):
            page = fetch(observe, one, f"http://{other.address}/", seconds=SOON)
        observe.holds(page is None, f"without flannel's route there is no way: {way}")


def flannels_way(observe: Observation, node: Node, address: str) -> str:
    """Return the route to a Pod of another node, as ``ip route`` prints it."""
    argv = ["ip", "route", "show", "to", "match", address]
    found = [line for line in observe.run(node, argv).stdout.splitlines() if line.strip()]
    ways = [line.strip() for line in found if not line.startswith("default")]
    return max(ways, key=lambda line: IPv4Network(line.split()[0]).prefixlen)
