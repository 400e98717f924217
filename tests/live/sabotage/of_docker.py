"""Docker on one machine: its bridge, veth pairs, network modes and translation, made wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sabotage.means import changed, engine_makes, first, lying, nft, restart, runs_as, sh, veth
from sabotage.trials import sabotage
from testbed.nodes.engine import CONFIG, SERVICE
from testbed.suites.helpers import serving

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node

LAB = "docker-single"
PLAN_001 = "docker-10-1-27"
BRIDGED = ("nginx-1", "nginx-2", "web")
SUBNET = "172.17.0.0/16"
GATEWAY = "172.17.0.1"
WEB = "172.17.0.4"
HOST, OUTSIDE = "10.168.0.2", "10.168.0.1"


def host(lab: LiveLab) -> Node:
    return lab.node("host")


# -- docker0 -----------------------------------------------------------------------


@sabotage(
    LAB,
    "bridge-docker0-is-linux-bridge",
    "bridge-default-netns-name",
    "veth-one-end-on-bridge",
    "bridge-one-bridge-per-host",
)
def docker0_is_a_veth_device(lab: LiveLab) -> Iterator[None]:
    """Docker's bridge has another name, and a veth device is called docker0."""
    with changed(
        host(lab),
        """
        ip link set docker0 down
        ip link set docker0 name other0
        ip link set other0 up
        ip link add docker0 type veth peer name docker0-peer
        """,
        """
        ip link delete docker0
        ip link set other0 down
        ip link set other0 name docker0
        ip link set docker0 up
        """,
    ):
        yield


@sabotage(LAB, "bridge-docker0-virtual-device")
def docker0_is_hardware(lab: LiveLab) -> Iterator[None]:
    """/sys/class/net shows docker0 with a device on the PCI bus behind it."""
    with changed(
        host(lab),
        """
        mkdir -p /run/hardware/net /run/hardware/docker0/device
        ln -s /run/hardware/docker0 /run/hardware/net/docker0
        mount --bind /run/hardware/net /sys/class/net
        """,
        """
        umount /sys/class/net
        rm -r /run/hardware
        """,
    ):
        yield


def fresh_docker_has(lab: LiveLab, option: str) -> contextlib.AbstractContextManager[None]:
    """A new daemon, which a check starts by ``env PATH=... dockerd``, has one option more."""
    return lying(host(lab), env=f'exec /usr/bin/env "$@" {option}')


@sabotage(LAB, "bridge-docker0-created-at-first-start")
def a_new_daemon_makes_no_bridge(lab: LiveLab) -> Iterator[None]:
    """A new daemon has the option --bridge=none."""
    with fresh_docker_has(lab, "--bridge=none"):
        yield


@sabotage(LAB, "bridge-docker0-address-172", "ip-container-range-is-24")
def a_new_daemon_takes_10_9(lab: LiveLab) -> Iterator[None]:
    """A new daemon gives docker0 the address 10.9.0.1/16 by itself."""
    with fresh_docker_has(lab, "--bip=10.9.0.1/16"):
        yield


@sabotage(LAB, "ip-container-range-is-24", "bridge-docker0-address-172")
def a_new_daemon_takes_a_24(lab: LiveLab) -> Iterator[None]:
    """A new daemon gives docker0 the address 10.1.27.1/24 by itself."""
    with fresh_docker_has(lab, "--bip=10.1.27.1/24"):
        yield


@sabotage(
    LAB,
    "bridge-docker0-private-subnet",
    "bridge-docker0-first-address",
    "ip-host-route-docker0",
    "ip-first-container-172-17-0-2",
    ruins=True,
)
def docker0_has_a_public_range(lab: LiveLab) -> Iterator[None]:
    """The daemon is started anew with docker0 at 192.0.2.9/24."""
    config = json.loads(host(lab).get(CONFIG))
    config["bip"] = "192.0.2.9/24"
    host(lab).put(json.dumps(config).encode(), CONFIG)
    restart(host(lab), SERVICE)
    for name in lab.topology.containers:
        lab.engine("host").api.start(name)
    yield


@sabotage(LAB, "bridge-docker0-is-linux-bridge", "mode-bridge-is-default", ruins=True)
def the_daemon_has_another_bridge(lab: LiveLab) -> Iterator[None]:
    """The daemon is started anew with a bridge other0, and docker0 stays without containers."""
    config = json.loads(host(lab).get(CONFIG))
    del config["bip"]
    config["bridge"] = "other0"
    host(lab).put(json.dumps(config).encode(), CONFIG)
    sh(
        host(lab),
        "ip link add other0 type bridge",
        "ip addr add 172.18.0.1/16 dev other0",
        "ip link set other0 up",
    )
    restart(host(lab), SERVICE)
    yield


@contextlib.contextmanager
def docker0_at(lab: LiveLab, address: str) -> Iterator[None]:
    """docker0 with another address."""
    ours, others = f"{GATEWAY}/16 brd + dev docker0", f"{address} dev docker0"
    with changed(
        host(lab),
        f"ip addr del {GATEWAY}/16 dev docker0\nip addr add {others}",
        f"ip addr del {others}\nip addr add {ours}",
    ):
        yield


@sabotage(LAB, "bridge-docker0-first-address", "bridge-is-container-default-gateway")
def docker0_has_the_ninth_address(lab: LiveLab) -> Iterator[None]:
    """docker0 has 172.17.0.9/16."""
    with docker0_at(lab, "172.17.0.9/16"):
        yield


@sabotage(LAB, "bridge-docker0-address-32")
def docker0_has_a_32(lab: LiveLab) -> Iterator[None]:
    """docker0's address is a /32."""
    with docker0_at(lab, f"{GATEWAY}/32"):
        yield


@sabotage(LAB, "ip-host-and-docker0-different-ranges")
def docker0_is_in_the_hosts_range(lab: LiveLab) -> Iterator[None]:
    """docker0 has an address of the host's own network."""
    with docker0_at(lab, "10.168.0.129/25"):
        yield


@sabotage(
    LAB,
    "ip-host-route-docker0",
    "nat-inbound-host-delivers-to-veth",
    "bridge-docker0-routes-to-container",
)
def the_range_is_routed_to_eth0(lab: LiveLab) -> Iterator[None]:
    """The host's route to the containers leads to eth0."""
    kernels = f"{SUBNET} dev docker0 proto kernel scope link src {GATEWAY}"
    with changed(
        host(lab),
        f"ip route del {SUBNET}\nip route add {SUBNET} dev eth0 scope link src {GATEWAY}",
        f"ip route del {SUBNET}\nip route add {kernels}",
    ):
        yield


@sabotage(LAB, "ip-host-route-docker0")
def the_route_is_by_hand(lab: LiveLab) -> Iterator[None]:
    """The host's route to the containers is not the kernel's own, and has no source."""
    kernels = f"{SUBNET} dev docker0 proto kernel scope link src {GATEWAY}"
    with changed(
        host(lab),
        f"ip route del {SUBNET}\nip route add {SUBNET} dev docker0",
        f"ip route del {SUBNET}\nip route add {kernels}",
    ):
        yield


@sabotage(PLAN_001, "bridge-example-gateway-10-1-27-1")
def the_samples_docker0_is_another(lab: LiveLab) -> Iterator[None]:
    """docker0 has 10.1.27.9/24."""
    ours, others = "10.1.27.1/24 dev docker0", "10.1.27.9/24 dev docker0"
    with changed(
        host(lab),
        f"ip addr del {ours}\nip addr add {others}",
        f"ip addr del {others}\nip addr add {ours} brd +",
    ):
        yield


# -- who is on it -------------------------------------------------------------------


@sabotage(
    LAB,
    "bridge-one-bridge-per-host",
    "veth-one-end-on-bridge",
    "veth-other-end-is-eth0",
    "veth-container-has-peer-end",
    "veth-link-ids-match",
    "bridge-docker0-four-ports",
    "nat-outbound-eth0-to-docker0",
)
def a_container_is_detached(lab: LiveLab) -> Iterator[None]:
    """The veth device of the first container is no port of docker0 any more."""
    name = veth(first(lab))
    with changed(host(lab), f"ip link set {name} nomaster", f"ip link set {name} master docker0"):
        yield


@sabotage(
    LAB,
    "veth-bridge-ports-are-veth-ends",
    "veth-docker-name-pattern",
    "veth-host-end-has-link-id",
)
def docker0_has_no_ports(lab: LiveLab) -> Iterator[None]:
    """No veth device is a port of docker0 any more."""
    names = [veth(lab.container(name)) for name in BRIDGED]
    do, undo = (
        "\n".join(f"ip link set {name} {how}" for name in names)
        for how in ("nomaster", "master docker0")
    )
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "veth-container-has-peer-end")
def a_container_has_a_second_pair(lab: LiveLab) -> Iterator[None]:
    """The first container has both ends of another veth pair."""
    with changed(first(lab), "ip link add more0 type veth peer name more1", "ip link delete more0"):
        yield


@sabotage(
    LAB,
    "veth-bridge-ports-are-veth-ends",
    "veth-docker-name-pattern",
    "bridge-docker0-four-ports",
    "veth-link-ids-match",
)
def a_stray_pair_is_on_docker0(lab: LiveLab) -> Iterator[None]:
    """Both ends of a veth pair, of no container, are ports of docker0."""
    with changed(
        host(lab),
        """
        ip link add stray0 type veth peer name stray1
        ip link set stray0 master docker0
        ip link set stray1 master docker0
        """,
        "ip link delete stray0",
    ):
        yield


@sabotage(LAB, "veth-host-end-has-link-id", "veth-bridge-ports-are-veth-ends")
def a_tap_device_is_on_docker0(lab: LiveLab) -> Iterator[None]:
    """A tap device, which has no peer, is a port of docker0."""
    with changed(
        host(lab),
        "ip tuntap add stray0 mode tap\nip link set stray0 master docker0",
        "ip link delete stray0",
    ):
        yield


@sabotage(
    LAB, "veth-eth0-has-link-id", "veth-other-end-is-eth0", "veth-eth0-holds-address", ruins=True
)
def eth0_is_a_bridge(lab: LiveLab) -> Iterator[None]:
    """In the first container eth0 has another name, and a bridge is called eth0."""
    sh(
        first(lab),
        "ip link set eth0 down",
        "ip link set eth0 name real0",
        "ip link add eth0 type bridge",
    )
    yield


@sabotage(LAB, "veth-host-ends-in-default-netns", ruins=True)
def a_veth_is_moved_away(lab: LiveLab) -> Iterator[None]:
    """The host's end of the first container's pair is in another namespace."""
    name = veth(first(lab))
    sh(host(lab), "ip netns add elsewhere", f"ip link set {name} netns elsewhere")
    yield


@sabotage(
    LAB, "bridge-container-ip-from-subnet", "veth-eth0-holds-address", "veth-container-has-peer-end"
)
def a_container_has_another_address(lab: LiveLab) -> Iterator[None]:
    """eth0 of the first container has 192.0.2.7/24."""
    one = first(lab)
    ours, others = f"{one.address}/16 brd + dev eth0", "192.0.2.7/24 dev eth0"
    with changed(
        one,
        f"ip addr del {one.address}/16 dev eth0\nip addr add {others}",
        f"ip addr del {others}\nip addr add {ours}\nip route add default via {GATEWAY}",
    ):
        yield


@sabotage(LAB, "bridge-is-container-default-gateway")
def a_neighbour_is_the_gateway(lab: LiveLab) -> Iterator[None]:
    """The first container's default route is by way of the second."""
    way = "ip route replace default via"
    with changed(first(lab), f"{way} {first(lab, 1).address}", f"{way} {GATEWAY}"):
        yield


@sabotage(PLAN_001, "bridge-example-gateway-10-1-27-1")
def the_samples_gateway_is_another(lab: LiveLab) -> Iterator[None]:
    """The first container's default route is by way of 10.1.27.77."""
    way = "ip route replace default via"
    with changed(first(lab), f"{way} 10.1.27.77", f"{way} 10.1.27.1"):
        yield


@sabotage(LAB, "ip-gateway-written-as-32")
def the_gateway_has_a_route_of_its_own(lab: LiveLab) -> Iterator[None]:
    """The first container has a route to its gateway alone, a /32."""
    words = f"{GATEWAY}/32 dev eth0 scope link"
    with changed(first(lab), f"ip route add {words}", f"ip route del {words}"):
        yield


@sabotage(LAB, "ip-container-subnet-on-link")
def the_neighbours_are_behind_the_gateway(lab: LiveLab) -> Iterator[None]:
    """The first container's route to its own subnet has a gateway."""
    one = first(lab)
    with changed(
        one,
        f"""
        ip route add {GATEWAY}/32 dev eth0
        ip route del {SUBNET}
        ip route add {SUBNET} via {GATEWAY}
        """,
        f"""
        ip route del {SUBNET}
        ip route add {SUBNET} dev eth0 proto kernel scope link src {one.address}
        ip route del {GATEWAY}/32
        """,
    ):
        yield


@sabotage(LAB, "ip-first-container-172-17-0-2", ruins=True)
def the_first_container_comes_last(lab: LiveLab) -> Iterator[None]:
    """The first container is started anew while nginx-2 takes its address."""
    api = lab.engine("host").api
    for name in ("nginx-1", "nginx-2"):
        api.kill(name)
        api.wait(name)
    api.start("nginx-2")
    api.start("nginx-1")
    yield


@sabotage(
    LAB,
    "bridge-two-containers-two-ports",
    "veth-pair-per-container",
    "mode-bridge-is-default",
    "nat-publish-given-port",
)
def containers_get_no_network(lab: LiveLab) -> Iterator[None]:
    """A container for which bridge mode, or none, is asked gets the mode none."""

    def none(asked: dict[str, Any]) -> None:
        config = asked["host_config"]
        if config.get("NetworkMode", "default") in {"default", "bridge"}:
            config["NetworkMode"] = "none"

    with engine_makes(lab, host(lab), none):
        yield


@sabotage(LAB, "bridge-curl-172-17-0-2", "bridge-same-host-direct-ip")
def a_neighbour_is_refused(lab: LiveLab) -> Iterator[None]:
    """The host refuses what containers ask of each other's web servers."""
    rule = "FORWARD -i docker0 -o docker0 -p tcp --dport 80 -j REJECT --reject-with tcp-reset"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


# -- what passes it -----------------------------------------------------------------


@sabotage(
    LAB,
    "bridge-docker0-links-local-containers",
    "l2-http-seen-on-eth0",
    "l2-same-host-path",
)
def ports_are_isolated(lab: LiveLab) -> Iterator[None]:
    """docker0 passes nothing from one container to another."""
    names = [veth(lab.container(name)) for name in BRIDGED]
    do, undo = (
        "\n".join(f"bridge link set dev {name} isolated {how}" for name in names)
        for how in ("on", "off")
    )
    with changed(host(lab), do, undo):
        yield


@sabotage(
    LAB,
    "bridge-same-host-direct-ip",
    "bridge-docker0-links-local-containers",
    "l2-docker0-cam-lookup",
    "l2-same-host-path",
)
def containers_are_joined_directly(lab: LiveLab) -> Iterator[None]:
    """A veth pair joins the first two containers, beside docker0, and their routes use it."""
    one, other = first(lab), first(lab, 1)
    join = f"ip link add beside type veth peer name beside netns {other.pid}"
    with changed(one, f"{join}\nip link set beside up", "ip link delete beside"):
        sh(other, "ip link set beside up", f"ip route add {one.address} dev beside")
        sh(one, f"ip route add {other.address} dev beside")
        yield


@sabotage(LAB, "bridge-docker0-links-local-containers", "veth-links-container-and-host-netns")
def nothing_goes_down(lab: LiveLab) -> Iterator[None]:
    """`ip link set DEV down` does nothing."""
    script = 'for last; do :; done\n[ "$last" = down ] && exit 0\nexec $real/ip "$@"'
    with lying(host(lab), ip=script):
        yield


@sabotage(
    LAB,
    "veth-links-container-and-host-netns",
    "veth-link-ids-match",
    "bridge-docker0-routes-to-container",
)
def the_host_sends_no_pings(lab: LiveLab) -> Iterator[None]:
    """The host drops the ICMP packets that it sends to docker0 itself."""
    rule = "OUTPUT -o docker0 -p icmp -j DROP"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(LAB, "bridge-docker0-routes-to-container")
def a_container_answers_no_arp(lab: LiveLab) -> Iterator[None]:
    """The second container does not take part in ARP."""
    with changed(first(lab, 1), "ip link set eth0 arp off", "ip link set eth0 arp on"):
        yield


@sabotage(LAB, "arp-seen-with-http")
def what_arp_found_is_kept(lab: LiveLab) -> Iterator[None]:
    """`ip neigh flush` forgets nothing."""
    with lying(host(lab), ip='[ "$1 $2" = "neigh flush" ] && exit 0\nexec $real/ip "$@"'):
        yield


@sabotage(LAB, "arp-seen-with-http")
def what_is_known_is_forgotten(lab: LiveLab) -> Iterator[None]:
    """`ip neigh replace` deletes the entry."""
    script = """
    if [ "$1 $2" = "neigh replace" ]; then exec $real/ip neigh flush to "$3"; fi
    exec $real/ip "$@" """
    with lying(host(lab), ip=script):
        yield


@sabotage(LAB, "arp-resolves-ip-to-mac")
def the_neighbour_is_known_for_good(lab: LiveLab) -> Iterator[None]:
    """The first container has a permanent entry for the second, which no flush removes."""
    one, other = first(lab), first(lab, 1)
    (eth0,) = other.run(["ip", "-j", "link", "show", "eth0"]).json()
    entry = f"{other.address} dev eth0"
    with changed(
        one,
        f"ip neigh replace {entry} lladdr {eth0['address']} nud permanent",
        f"ip neigh del {entry}",
    ):
        yield


@sabotage(LAB, "arp-resolves-ip-to-mac")
def docker0_answers_arp_for_all(lab: LiveLab) -> Iterator[None]:
    """docker0 answers every ARP request with its own MAC (proxy ARP)."""
    answers, delay = "net.ipv4.conf.docker0.proxy_arp_pvlan", "net.ipv4.neigh.docker0.proxy_delay"
    with changed(
        host(lab),
        f"sysctl -qw {answers}=1\nsysctl -qw {delay}=0",
        f"sysctl -qw {answers}=0\nsysctl -qw {delay}=80",  # the kernel's own, in hundredths
    ):
        yield


@sabotage(LAB, "l2-docker0-is-switch", "bridge-docker0-routes-to-container")
def docker0_takes_one_off_the_ttl(lab: LiveLab) -> Iterator[None]:
    """Packets between ports of docker0 lose one of their TTL, as at a router."""
    rule = "FORWARD -i docker0 -o docker0 -j TTL --ttl-dec 1"
    do, undo = (f"iptables -t mangle {how} {rule}" for how in ("-I", "-D"))
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "l2-same-flow-on-docker0")
def docker0_changes_packets(lab: LiveLab) -> Iterator[None]:
    """Packets from a container's port to docker0 get another IP id."""
    do, undo = nft("filter hook prerouting priority -150\niifname docker0 tcp dport 80 ip id set 7")
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "l2-docker0-cam-lookup")
def docker0_is_a_hub(lab: LiveLab) -> Iterator[None]:
    """docker0 forgets at once where it has seen an address, and floods every frame."""
    # 30000 hundredths of a second is the kernel's own.
    do, undo = (f"ip link set docker0 type bridge ageing_time {time}" for time in (0, 30000))
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "ip-broadcast-reaches-all")
def broadcasts_are_always_answered(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets icmp_echo_ignore_broadcasts to 0 whatever is asked for."""
    with broadcasts_ignored(lab, "0"):
        yield


@sabotage(LAB, "ip-broadcast-reaches-all")
def broadcasts_are_never_answered(lab: LiveLab) -> Iterator[None]:
    """`sysctl` sets icmp_echo_ignore_broadcasts to 1 whatever is asked for."""
    with broadcasts_ignored(lab, "1"):
        yield


@contextlib.contextmanager
def broadcasts_ignored(lab: LiveLab, value: str) -> Iterator[None]:
    """`sysctl` sets icmp_echo_ignore_broadcasts; the kernel's own value, 1, is restored."""
    name = "net.ipv4.icmp_echo_ignore_broadcasts"
    script = f"""
    for last; do :; done
    case "$last" in *icmp_echo_ignore_broadcasts=*) exec $real/sysctl -q -w {name}={value} ;; esac
    exec $real/sysctl "$@" """
    with lying(host(lab), sysctl=script):
        yield
    for index in (1, 2):
        sh(first(lab, index), f"sysctl -q -w {name}=1")


# -- seen from outside --------------------------------------------------------------


@sabotage(
    LAB, "bridge-not-addressable-from-outside", "bridge-container-ip-not-reachable-externally"
)
def outside_knows_the_way(lab: LiveLab) -> Iterator[None]:
    """The machine outside has a route to the containers from the start."""
    way = f"172.16.0.0/12 via {HOST}"
    with changed(lab.node("outside"), f"ip route add {way}", f"ip route del {way}"):
        yield


@sabotage(LAB, "bridge-not-addressable-from-outside")
def the_host_answers_for_itself_alone(lab: LiveLab) -> Iterator[None]:
    """The host drops what comes by eth0 for docker0's address."""
    rule = f"INPUT -i eth0 -d {SUBNET} -j DROP"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(LAB, "bridge-container-ip-not-reachable-externally")
def everything_is_forwarded(lab: LiveLab) -> Iterator[None]:
    """The host forwards all packets to docker0."""
    rule = "FORWARD -o docker0 -j ACCEPT"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(LAB, "nat-inbound-dnat-address", "nat-inbound-dnat-port")
def outside_does_not_ask(lab: LiveLab) -> Iterator[None]:
    """The machine outside refuses itself the published port."""
    rule = "OUTPUT -p tcp --dport 8080 -j REJECT --reject-with tcp-reset"
    with changed(lab.node("outside"), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(LAB, "nat-publish-binds-host-port", "nat-inbound-hostip-hostport", ruins=True)
def another_port_is_published(lab: LiveLab) -> Iterator[None]:
    """The container's port is published as 8088."""
    (port,) = lab.topology.containers["web"].publish
    with runs_as(lab, "web", publish=(dataclasses.replace(port, host_port=8088),)):
        yield


@sabotage(LAB, "nat-publish-all-exposed")
def more_is_exposed(lab: LiveLab) -> Iterator[None]:
    """Every new container exposes port 81, too."""

    def more(asked: dict[str, Any]) -> None:
        asked["ports"] = [*(asked.get("ports") or ()), (81, "tcp")]

    with engine_makes(lab, host(lab), more):
        yield


@sabotage(
    LAB,
    "nat-publish-given-port",
    "nat-publish-all-exposed",
    "bridge-container-ip-not-reachable-externally",
    "nat-inbound-hostip-hostport",
    "nat-inbound-dnat-address",
    "nat-inbound-dnat-port",
    "nat-inbound-host-delivers-to-veth",
    "nat-inbound-veth-to-eth0",
)
def nothing_is_forwarded_to_docker0(lab: LiveLab) -> Iterator[None]:
    """The host forwards nothing from eth0 to docker0."""
    rule = "FORWARD -i eth0 -o docker0 -j REJECT"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(
    LAB, "nat-publish-binds-host-port", "nat-inbound-dnat-address", "nat-inbound-veth-to-eth0"
)
def published_ports_are_not_translated(lab: LiveLab) -> Iterator[None]:
    """The DNAT rule of the published port is deleted: docker-proxy carries what comes."""
    rule = f"DOCKER ! -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination {WEB}:80"
    with changed(host(lab), f"iptables -t nat -D {rule}", f"iptables -t nat -A {rule}"):
        yield


@sabotage(
    LAB, "nat-inbound-dnat-port", "nat-publish-binds-host-port", "nat-inbound-hostip-hostport"
)
def published_ports_lead_elsewhere(lab: LiveLab) -> Iterator[None]:
    """Traffic to the published port is sent to another port of the container."""
    rule = f"PREROUTING -p tcp --dport 8080 -j DNAT --to-destination {WEB}:81"
    leave = "FORWARD -o docker0 -p tcp --dport 81 -j ACCEPT"
    with changed(
        host(lab),
        f"iptables -t nat -I {rule}\niptables -I {leave}",
        f"iptables -t nat -D {rule}\niptables -D {leave}",
    ):
        yield


@sabotage(LAB, "nat-access-hostip-containerport")
def the_containers_port_is_published_too(lab: LiveLab) -> Iterator[None]:
    """Port 80 of the host leads to the container as port 8080 does."""
    rule = f"PREROUTING -d {HOST} -p tcp --dport 80 -j DNAT --to-destination {WEB}:80"
    with changed(host(lab), f"iptables -t nat -I {rule}", f"iptables -t nat -D {rule}"):
        yield


MASQUERADE = f"POSTROUTING -s {SUBNET} ! -o docker0 -j MASQUERADE"


@sabotage(LAB, "nat-outbound-snat-to-eth0-address", "nat-outbound-reaches-external")
def masquerade_is_missing(lab: LiveLab) -> Iterator[None]:
    """The rule that masquerades what containers send is deleted."""
    do, undo = (f"iptables -t nat {how} {MASQUERADE}" for how in ("-D", "-I"))
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "nat-outbound-snat-to-eth0-address", ruins=True)
def nat_is_done_elsewhere(lab: LiveLab) -> Iterator[None]:
    """Not Docker's rules masquerade, but a table beside them."""
    do, _ = nft("nat hook postrouting priority 100\noifname eth0 masquerade")
    sh(host(lab), "iptables -t nat -F POSTROUTING", *do.splitlines())
    yield


@sabotage(LAB, "l2-same-host-path")
def a_copy_leaves_by_eth0(lab: LiveLab) -> Iterator[None]:
    """Packets through docker0 are copied to the machine outside."""
    rule = f"FORWARD -i docker0 -o docker0 -p tcp -j TEE --gateway {OUTSIDE}"
    do, undo = (f"iptables -t mangle {how} {rule}" for how in ("-I", "-D"))
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "nat-outbound-bridge-forwards-to-eth0", "nat-outbound-reaches-external")
def nothing_is_forwarded_to_eth0(lab: LiveLab) -> Iterator[None]:
    """The host forwards nothing from docker0 to eth0."""
    rule = "FORWARD -i docker0 -o eth0 -j REJECT"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield


@sabotage(LAB, "nat-outside-sees-internal-addresses-as-private")
def outside_sees_the_containers(lab: LiveLab) -> Iterator[None]:
    """Nothing is masqueraded, and the machine outside has a route to the containers."""
    way = f"{SUBNET} via {HOST}"
    do, undo = (f"iptables -t nat {how} {MASQUERADE}" for how in ("-D", "-I"))
    with (
        changed(host(lab), do, undo),
        changed(lab.node("outside"), f"ip route add {way}", f"ip route del {way}"),
    ):
        yield


@sabotage(LAB, "nat-outbound-source-is-container")
def the_container_translates_itself(lab: LiveLab) -> Iterator[None]:
    """The first container rewrites the source of what it sends to another address."""
    rule = "POSTROUTING -o eth0 -p tcp -j SNAT --to-source 172.17.0.77"
    with changed(
        first(lab),
        f"ip addr add 172.17.0.77/32 dev eth0\niptables -t nat -I {rule}",
        f"iptables -t nat -D {rule}\nip addr del 172.17.0.77/32 dev eth0",
    ):
        yield


@sabotage(LAB, "nat-outbound-eth0-to-docker0", "nat-outbound-source-is-container")
def a_container_bypasses_docker0(lab: LiveLab) -> Iterator[None]:
    """The first container's default route is a veth pair of its own to the host."""
    one = first(lab)
    with (
        changed(
            host(lab),
            f"""
        ip link add bypass type veth peer name bypass netns {one.pid}
        ip addr add 192.0.2.1/30 dev bypass
        ip link set bypass up
        """,
            "ip link delete bypass",
        ),
        changed(
            one,
            """
            ip addr add 192.0.2.2/30 dev bypass
            ip link set bypass up
            ip route replace default via 192.0.2.1
            """,
            f"ip route replace default via {GATEWAY}",
        ),
    ):
        yield


@sabotage(LAB, "nat-outbound-bridge-forwards-to-eth0")
def forwarding_stays_on(lab: LiveLab) -> Iterator[None]:
    """`sysctl` does not switch IP forwarding off."""
    script = 'case "$*" in *ip_forward=0*) exit 0 ;; esac\nexec $real/sysctl "$@"'
    with lying(host(lab), sysctl=script):
        yield


# -- the network modes ----------------------------------------------------------------


@sabotage(
    LAB,
    "mode-host-shares-host-netns",
    "mode-host-no-clone-newnet",
    "mode-host-uses-host-eth0",
    "mode-host-shares-port-space",
    "mode-host-no-nat",
    "mode-host-no-isolation",
    "mode-four-modes",
    "netns-one-per-container",
)
def host_mode_is_bridge_mode(lab: LiveLab) -> Iterator[None]:
    """The container that is meant to be in host mode runs in bridge mode."""
    with runs_as(lab, "in-host-mode", network="bridge"):
        yield


@sabotage(LAB, "mode-host-port-conflict", "mode-none-unconfigured", "bridge-one-bridge-per-host")
def whoever_asks_for_a_mode_gets_bridge(lab: LiveLab) -> Iterator[None]:
    """Every new container runs in bridge mode."""

    def bridge(asked: dict[str, Any]) -> None:
        asked["host_config"]["NetworkMode"] = "bridge"

    with engine_makes(lab, host(lab), bridge):
        yield


@sabotage(LAB, "mode-host-shares-port-space", ruins=True)
def the_hosts_port_is_anothers(lab: LiveLab) -> Iterator[None]:
    """The container in host mode has another port, and a program of the host has its own."""
    server = serving(host(lab), 8081)
    with runs_as(lab, "in-host-mode", env={"PORT": "8089"}), server:
        yield


@sabotage(LAB, "mode-host-uses-host-eth0")
def host_mode_has_another_source(lab: LiveLab) -> Iterator[None]:
    """The host rewrites the source of what it sends itself."""
    rule = "POSTROUTING -p tcp --dport 18090 -j SNAT --to-source 10.168.0.77"
    with changed(
        host(lab),
        f"ip addr add 10.168.0.77/32 dev docker0\niptables -t nat -I {rule}",
        f"iptables -t nat -D {rule}\nip addr del 10.168.0.77/32 dev docker0",
    ):
        yield


@sabotage(LAB, "mode-container-lookup-then-join")
def the_partner_is_started(lab: LiveLab) -> Iterator[None]:
    """Whoever asks for a container that joins another has the other one started."""
    api = lab.engine("host").api

    def start(asked: dict[str, Any]) -> None:
        mode, _, partner = asked["host_config"].get("NetworkMode", "").partition(":")
        if mode == "container":
            api.start(partner)

    with engine_makes(lab, host(lab), start):
        yield


@sabotage(LAB, "mode-host-no-nat")
def host_mode_is_translated(lab: LiveLab) -> Iterator[None]:
    """The host rewrites the source of packets to the port of the container in host mode."""
    rule = f"INPUT -p tcp --dport 8081 -j SNAT --to-source {HOST}"
    with changed(host(lab), f"iptables -t nat -I {rule}", f"iptables -t nat -D {rule}"):
        yield


@sabotage(
    LAB,
    "mode-container-shares-other-netns",
    "mode-container-lookup-then-join",
    "mode-container-localhost",
    "netns-one-per-container",
)
def container_mode_is_bridge_mode(lab: LiveLab) -> Iterator[None]:
    """The container that is meant to join another's namespace runs in bridge mode."""
    with runs_as(lab, "sidecar", network="bridge"):
        yield


@sabotage(LAB, "mode-container-shares-other-netns", ruins=True)
def the_partner_is_in_host_mode(lab: LiveLab) -> Iterator[None]:
    """The container that another joins is in the host's own namespace, and so are both."""
    with runs_as(lab, "nginx-1", network="host", env={"PORT": "8084"}), runs_as(lab, "sidecar"):
        yield


@sabotage(LAB, "mode-none-own-netns", "mode-none-unconfigured", "netns-one-per-container")
def none_mode_is_host_mode(lab: LiveLab) -> Iterator[None]:
    """The container that is meant to be in none mode runs in host mode."""
    with runs_as(lab, "in-none-mode", network="host"):
        yield


@sabotage(LAB, "mode-none-unconfigured", "mode-four-modes")
def none_mode_is_bridge_mode(lab: LiveLab) -> Iterator[None]:
    """The container that is meant to be in none mode runs in bridge mode."""
    with runs_as(lab, "in-none-mode", network="bridge"):
        yield


@sabotage(LAB, "mode-bridge-own-stack", ruins=True)
def a_bridge_container_joins_another(lab: LiveLab) -> Iterator[None]:
    """nginx-2 is in the namespace of nginx-1."""
    with runs_as(lab, "nginx-2", network="container:nginx-1", env={"PORT": "8083"}):
        yield


@sabotage(LAB, "mode-bridge-own-stack", ruins=True)
def a_server_is_on_another_port(lab: LiveLab) -> Iterator[None]:
    """The server in nginx-2 listens on port 8083."""
    with runs_as(lab, "nginx-2", env={"PORT": "8083"}):
        yield


@sabotage(LAB, "mode-none-manual-networking")
def the_last_address_is_shut_out(lab: LiveLab) -> Iterator[None]:
    """docker0 passes nothing to or from the subnet's last address."""
    rules = [f"FORWARD -{way} 172.17.255.254 -j DROP" for way in "sd"]
    do, undo = ("\n".join(f"iptables {how} {rule}" for rule in rules) for how in ("-I", "-D"))
    with changed(host(lab), do, undo):
        yield


@sabotage(LAB, "mode-none-manual-networking")
def the_host_takes_no_packets(lab: LiveLab) -> Iterator[None]:
    """The host drops packets to itself that arrive at docker0."""
    rule = "INPUT -i docker0 -j DROP"
    with changed(host(lab), f"iptables -I {rule}", f"iptables -D {rule}"):
        yield
